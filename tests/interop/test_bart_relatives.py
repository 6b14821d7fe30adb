"""Blenderbot, mBART and Marian against `transformers`: config, weights, logits, gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import numpy as np
from safetensors.torch import load_file, save_file
from support.hf_directories import assert_same_model, change_config, read_values
from support.interop_references import (
    check,
    first_of_each,
)
from support.parity import (
    LENGTH,
    PAD,
    SOURCE,
    build_reference,
    real_positions,
    reference_logits,
    samples,
)

from jaxlm import interop, models
from jaxlm.config import UserError
from jaxlm.interop.match_architecture import match_architecture

# One layer in the encoder, two in the decoder.
SIZES: dict[str, Any] = {
    "d_model": 36,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 30,
    "max_position_embeddings": SOURCE,
    "decoder_start_token_id": PAD,
}
CLASSES = {
    "blenderbot": "BlenderbotForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration",
    "marian": "MarianMTModel",
}
OWN_TABLES: dict[str, Any] = {"share_encoder_decoder_embeddings": False}


def peer_of(model_type: str, bias: bool = True, **fields) -> Any:
    """Return a model with random numbers in every tensor that can be trained.

    Marian's tables of sines stay, and the bias of the logits is zeros unless `bias`.
    """
    peer = build_reference(CLASSES[model_type], **(SIZES | fields))
    if not bias:
        peer.final_logits_bias.zero_()
    if model_type == "marian":
        for stack in (peer.model.encoder, peer.model.decoder):
            stack.embed_positions.weight.data.copy_(stack.embed_positions.create_weight())
    return peer


VARIANTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "blenderbot": ("blenderbot", True, {}),
    "blenderbot, scaled, relu2": (
        "blenderbot",
        False,
        {"scale_embedding": True, "activation_function": "relu2"},
    ),
    "mbart": ("mbart", True, {}),
    "mbart, scaled, relu, plain sizes": (
        "mbart",
        False,
        {
            "scale_embedding": True,
            "activation_function": "relu",
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "encoder_layers": 2,
        },
    ),
    "marian": ("marian", True, {}),
    "marian, scaled, silu": (
        "marian",
        False,
        {"scale_embedding": True, "activation_function": "swish", "decoder_attention_heads": 6},
    ),
    "marian, own tables": ("marian", True, OWN_TABLES),
    "marian, own tables and head": ("marian", False, OWN_TABLES | {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("name", first_of_each(VARIANTS))
def test_as_transformers(name: str, tmp_path: Path):
    model_type, bias, fields = VARIANTS[name]
    peer = peer_of(model_type, bias, **fields)
    model_config, differences = check(peer, tmp_path)
    print(name, differences)
    assert model_config.head_bias == bias
    assert model_config.tied_head == fields.get("tie_word_embeddings", True)
    assert model_config.shared_embedding == fields.get("share_encoder_decoder_embeddings", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", [pytest.param("blenderbot", marks=pytest.mark.slow), "mbart", "marian"]
)
def test_untied_head(model_type, tmp_path):
    """transformers 5 then has three tables, which may differ; jaxlm writes one three times."""
    peer = peer_of(model_type, tie_word_embeddings=False)
    peer.save_pretrained(tmp_path / "three")
    with pytest.raises(
        UserError, match=r"(en|de)coder\.embed_tokens\.weight: differs from model\.shared\.weight"
    ):
        interop.load(tmp_path / "three")
    for stack in (peer.model.encoder, peer.model.decoder):
        stack.embed_tokens.weight.data.copy_(peer.model.shared.weight)
    peer.save_pretrained(tmp_path / "one")
    model_config, params = interop.load(tmp_path / "one")
    assert not model_config.tied_head and model_config.shared_embedding
    interop.save(tmp_path / "ours", model_config, params)
    again, report = type(peer).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    expected = peer.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
    batch = samples(model_config)
    ours, theirs = (
        models.build(model_config).apply(params, batch),
        reference_logits(again, batch).detach().numpy(),
    )
    here = real_positions(batch.lengths, LENGTH)
    assert np.abs(np.asarray(ours)[here] - theirs[here]).max() <= 2e-5
    assert_same_model(interop.load(tmp_path / "ours"), (model_config, params))


OLD = {
    "blenderbot": {
        "normalize_before": True,
        "normalize_embedding": False,
        "add_final_layer_norm": True,
        "extra_pos_embeddings": 0,
    },
    "mbart": {
        "normalize_before": True,
        "normalize_embedding": True,
        "add_final_layer_norm": True,
        "extra_pos_embeddings": 2,
    },
    "marian": {
        "normalize_before": False,
        "normalize_embedding": False,
        "static_position_embeddings": True,
        "decoder_vocab_size": None,
    },
}


@pytest.mark.parametrize("model_type", CLASSES)
def test_older_files(model_type, tmp_path):
    """Tables under each of their names, names of the base model, keys that were dropped since."""
    peer = peer_of(model_type, False)
    peer.save_pretrained(tmp_path)
    expected = interop.load(tmp_path)
    change_config(
        tmp_path,
        {
            "architectures": [
                CLASSES[model_type].replace("ForConditionalGeneration", "Model").replace("MT", "")
            ]
        }
        | OLD[model_type],
    )
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    again = {
        name: tensors["shared.weight"].clone()
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    }
    if model_type == "marian":
        positions = peer.model.encoder.embed_positions.weight.data
        again |= {
            f"{stack}.embed_positions.weight": positions.clone() for stack in ("encoder", "decoder")
        }
    save_file(tensors | again, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_model(interop.load(tmp_path), expected)


def test_a_head_of_its_own_beside_tied_own_tables(tmp_path):
    """Nothing says which of the two counts."""
    peer_of("marian", **OWN_TABLES).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors and "model.shared.weight" not in tensors
    other = {"lm_head.weight": tensors["model.decoder.embed_tokens.weight"] + 1}
    save_file(tensors | other, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head\.weight: is not a tensor of a marian model"):
        interop.load(tmp_path)


@pytest.mark.parametrize("model_type", CLASSES)
def test_defaults(model_type):
    """Keys that a config.json leaves out have the defaults of `transformers`."""
    defaults = transformers.AutoConfig.for_model(model_type).to_dict()
    assert read_values(model_type, {}) == read_values(model_type, defaults)
    assert read_values(model_type, {"vocab_size": 99}) != read_values(model_type, {})


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("blenderbot", {"normalize_before": False}),
        ("blenderbot", {"normalize_embedding": True}),
        ("blenderbot", {"extra_pos_embeddings": 2}),
        ("blenderbot", {"activation_function": "quick_gelu"}),
        ("blenderbot", {"encoder_attention_heads": 3}),
        ("blenderbot", {"tie_word_embeddings": "yes"}),
        ("blenderbot", {"is_encoder_decoder": False}),
        ("mbart", {"normalize_before": False}),
        ("mbart", {"normalize_embedding": False}),
        ("mbart", {"add_final_layer_norm": False}),
        ("mbart", {"quantization_config": {"quant_method": "gptq"}}),
        ("marian", {"normalize_before": True}),
        ("marian", {"static_position_embeddings": False}),
        ("marian", {"decoder_vocab_size": 99}),
        ("marian", {"share_encoder_decoder_embeddings": 1}),
        ("marian", {"is_decoder": True}),
    ],
)
def test_refused(model_type, values):
    with pytest.raises(UserError, match=rf"^config\.json: {next(iter(values))}:"):
        read_values(model_type, values)


def changed(model_type: str, **fields) -> Any:
    """The model of an architecture's default config, with other fields."""
    return dataclasses.replace(read_values(model_type, {}), **fields)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        *((changed(model_type), model_type) for model_type in CLASSES),
        *(
            (changed(model_type, head_bias=True, tied_head=False), model_type)
            for model_type in CLASSES
        ),
        (changed("marian", shared_embedding=False), "marian"),
        (changed("marian", shared_embedding=False, tied_head=False), "marian"),
        (changed("blenderbot", position_offset=2, embedding_norm=True), "mbart"),
        (changed("mbart", norm_placement="post"), "bart"),
        (changed("blenderbot", shared_embedding=False), None),
        (changed("blenderbot", position_offset=2), None),
        (changed("blenderbot", positions="sinusoidal"), None),
        (changed("mbart", embedding_norm=False, norm_placement="post"), None),
        (changed("marian", norm_placement="pre"), None),
        (changed("marian", norm_epsilon=1e-6), None),
    ],
)
def test_expressed_as(model, expected):
    """A model is written as an architecture that computes the same function, or not at all."""
    if expected is None:
        with pytest.raises(UserError, match="no supported architecture of transformers"):
            match_architecture(model)
    else:
        architecture, values = match_architecture(model)
        assert architecture.model_type == expected and "jaxlm" not in values
        transformers.AutoConfig.for_model(expected, **values)
