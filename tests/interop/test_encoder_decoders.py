"""T5 and BART against `transformers`: config, weights, logits, gradients."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support.hf_directories import assert_same_model, change_config, change_tensors, read_values
from support.interop_references import (
    check,
    first_of_each,
)
from support.parity import (
    SOURCE,
    VOCABULARY,
    build_reference,
    randomise,
    reference_logits,
    samples,
)

from jaxlm import interop
from jaxlm.config import UserError
from jaxlm.interop.match_architecture import match_architecture

# One layer in the encoder, two in the decoder, narrow heads; few buckets: the last are used.
T5: dict[str, Any] = {
    "d_model": 36,
    "d_kv": 10,
    "num_heads": 3,
    "d_ff": 50,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "d_model": 36,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 30,
    "max_position_embeddings": SOURCE,
}


def t5(own_head: bool = False, **fields) -> Any:
    """Return a T5. transformers 5 ties the head unless a checkpoint has one."""
    peer = build_reference("T5ForConditionalGeneration", **(T5 | fields))
    if own_head:
        peer.lm_head.weight = torch.nn.Parameter(torch.empty(VOCABULARY, 36))
        randomise(peer)
    with torch.no_grad():
        for name, weight in peer.named_parameters():
            if name.endswith(".q.weight"):
                weight /= T5[
                    "d_kv"
                ]  # scores are not scaled: sharp attention would amplify the rounding of both sides
    return peer


GELU: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "1.0": (False, {}),
    "1.1": (True, GELU),
    "gated silu, tied without scaling": (
        False,
        {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
    ),
    "gated relu, heads that share the width": (
        False,
        {
            "feed_forward_proj": "gated-relu",
            "d_kv": 12,
            "d_ff": 144,
            "num_layers": 2,
            "num_decoder_layers": None,
        },
    ),
    "exact gelu, other epsilon": (False, {"feed_forward_proj": "gelu", "layer_norm_epsilon": 1e-3}),
    "exact gelu, gated, untied": (
        True,
        {"feed_forward_proj": "gated-gelu_python", "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize(
    "name", first_of_each(VARIANTS, lambda name: name if name in ("1.0", "1.1") else "1.0")
)
def test_t5(name: str, tmp_path: Path):
    own_head, fields = VARIANTS[name]
    model_config, _ = check(t5(own_head, **fields), tmp_path)
    assert model_config.tied_head == (not own_head)
    assert model_config.head_scaling == fields.get("tie_word_embeddings", True)


@pytest.mark.parametrize(
    ("own_head", "fields", "changes"),
    [
        (False, {}, {}),
        (False, {}, {"tie_word_embeddings": None, "num_decoder_layers": 2, "n_positions": 512}),
        (True, GELU, {"tie_word_embeddings": False}),
        (False, GELU, {"tie_word_embeddings": False, "dense_act_fn": None, "is_gated_act": None}),
    ],
)
def test_t5_as_transformers_4_writes_it(own_head, fields, changes, tmp_path):
    """There `tie_word_embeddings` says too whether the head is scaled; 5 has a key for it."""
    peer = t5(own_head, **fields)
    peer.save_pretrained(tmp_path)
    new = interop.read_config(tmp_path)[1]
    change_config(tmp_path, {"scale_decoder_outputs": None} | changes)
    assert interop.read_config(tmp_path)[1] == new
    again = type(peer).from_pretrained(tmp_path, attn_implementation="eager")
    batch = samples(new)
    assert torch.equal(reference_logits(again, batch), reference_logits(peer, batch))


def test_untied_t5_is_written_for_both_versions(tmp_path):
    """`tie_word_embeddings` unties the head in transformers 4; in 5 it only turns scaling off."""
    t5(True, **GELU).save_pretrained(tmp_path / "theirs")
    model_config, params = interop.load(tmp_path / "theirs")
    interop.save(tmp_path / "ours", model_config, params)
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert values["tie_word_embeddings"] is False and values["scale_decoder_outputs"] is False
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert (
        again.lm_head.weight is not again.shared.weight and not again.config.scale_decoder_outputs
    )


@pytest.mark.parametrize(
    "kept", ["shared.weight", "lm_head.weight", "decoder.embed_tokens.weight", "all"]
)
def test_t5_with_its_table_under_other_names(kept, tmp_path):
    """Tied numbers may stand under any of their names, or under all."""
    t5().save_pretrained(tmp_path)
    expected = interop.load(tmp_path)
    names = (
        "shared.weight",
        "lm_head.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    )
    unused = {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones(
            (8, 3), np.float32
        )
    }

    def change(tensors: dict) -> dict:
        table = tensors.pop("shared.weight")
        return tensors | unused | {name: table.copy() for name in names if kept in (name, "all")}

    change_tensors(tmp_path, change)
    assert_same_model(interop.load(tmp_path), expected)


def test_t5_tied_by_its_config_with_another_head(tmp_path):
    """transformers 4 would tie it, 5 would not: neither is chosen in silence."""
    t5().save_pretrained(tmp_path)
    change_config(tmp_path, {"scale_decoder_outputs": None})
    change_tensors(
        tmp_path, lambda tensors: tensors | {"lm_head.weight": tensors["shared.weight"] + 1}
    )
    with pytest.raises(UserError, match=r"lm_head\.weight.*differs from shared\.weight"):
        interop.load(tmp_path)


def bart(bias: bool = True, **fields) -> Any:
    """The bias of the logits is a buffer of zeros that nothing trains, but that a file may fill."""
    peer = build_reference("BartForConditionalGeneration", **(BART | fields))
    if not bias:
        peer.final_logits_bias.zero_()
    return peer


@pytest.mark.parametrize(
    ("bias", "fields"),
    [
        (True, {}),
        (False, {"scale_embedding": True}),
        pytest.param(
            True,
            {
                "activation_function": "gelu_new",
                "scale_embedding": True,
                "decoder_attention_heads": 6,
                "encoder_layers": 2,
            },
            marks=pytest.mark.campaign,
        ),
        pytest.param(
            False,
            {"activation_function": "relu", "encoder_ffn_dim": 144, "decoder_ffn_dim": 144},
            marks=pytest.mark.campaign,
        ),
    ],
)
def test_bart(bias: bool, fields: dict[str, Any], tmp_path: Path):
    model_config, _ = check(bart(bias, **fields), tmp_path)
    assert model_config.head_bias == bias


def test_older_bart(tmp_path):
    """The first files: names of the base model, dropped keys, every table, no logits bias."""
    peer = bart(False)
    peer.save_pretrained(tmp_path)
    expected = interop.load(tmp_path)
    dropped = {
        "normalize_before": False,
        "normalize_embedding": True,
        "add_final_layer_norm": False,
        "static_position_embeddings": False,
    }
    change_config(
        tmp_path,
        {
            "architectures": ["BartModel"],
            "extra_pos_embeddings": 2,
            "num_hidden_layers": 9,
            "add_bias_logits": False,
            **dropped,
        },
    )

    def change(tensors: dict) -> dict:
        tensors = {
            name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
            if name != "final_logits_bias"
        }
        tables = {
            f"{stack}.embed_tokens.weight": tensors["shared.weight"].copy()
            for stack in ("encoder", "decoder")
        }
        return (
            tensors
            | tables
            | {f"{stack}.version": np.array([3.0], np.float32) for stack in ("encoder", "decoder")}
        )

    change_tensors(tmp_path, change)
    assert_same_model(interop.load(tmp_path), expected)


@pytest.mark.parametrize("cls", ["T5Config", "BartConfig"])
def test_defaults(cls):
    """Keys that a config.json leaves out have the defaults of `transformers`."""
    defaults = getattr(transformers, cls)().to_dict()
    model_type = defaults["model_type"]
    assert read_values(model_type, {}) == read_values(model_type, defaults)
    assert read_values(model_type, {"vocab_size": 99}) != read_values(model_type, defaults)


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("t5", {"feed_forward_proj": "gated-mish"}),
        ("t5", {"feed_forward_proj": "gelu-gated"}),
        ("t5", {"feed_forward_proj": 3}),
        ("t5", {"is_gated_act": True}),
        ("t5", {"dense_act_fn": "silu"}),
        ("t5", {"dense_act_fn": "mish"}),
        ("t5", {"is_encoder_decoder": False}),
        ("t5", {"is_decoder": True}),
        ("t5", {"tie_encoder_decoder": True}),
        ("t5", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("t5", {"hidden_size": 36, "d_model": 48}),
        ("t5", {"num_decoder_layers": 1.5}),
        ("bart", {"tie_word_embeddings": False}),
        ("bart", {"normalize_before": True}),
        ("bart", {"normalize_embedding": False}),
        ("bart", {"add_final_layer_norm": True}),
        ("bart", {"static_position_embeddings": True}),
        ("bart", {"extra_pos_embeddings": 0}),
        ("bart", {"activation_function": "quick_gelu"}),
        ("bart", {"encoder_attention_heads": 5}),
        ("bart", {"decoder_attention_heads": 5}),
        ("bart", {"is_encoder_decoder": False}),
        ("bart", {"is_decoder": True}),
        ("bart", {"quantization_config": {"quant_method": "gptq"}}),
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
        (changed("t5"), "t5"),
        (changed("t5", tied_head=False, head_scaling=False, gated=True), "t5"),
        (changed("t5", head_scaling=False), "t5"),
        (changed("t5", gated=True, activation="gelu"), "t5"),
        (changed("t5", gated=True, activation="gelu_tanh"), "t5"),
        (changed("t5", gated=True, activation="relu_squared"), "t5"),
        (changed("t5", tied_head=False), None),  # scaled and untied: transformers 4 would tie it
        (changed("t5", shared_embedding=False), None),
        (changed("t5", kv_heads=2), None),
        (changed("t5", encoder_heads=4), None),
        (changed("t5", encoder_mlp_width=512), None),
        (changed("t5", mlp_bias=True), None),
        (changed("t5", attention_scale=None), None),
        (changed("bart"), "bart"),
        (
            changed(
                "bart", head_bias=True, encoder_layers=2, encoder_heads=8, encoder_mlp_width=512
            ),
            "bart",
        ),
        (changed("bart", position_offset=0), None),
        (changed("bart", tied_head=False), None),
        (changed("bart", embedding_norm=False), None),
        (changed("bart", norm_epsilon=1e-6), None),
        (changed("bart", head_width=32), None),
    ],
)
def test_expressed_as(model, expected):
    """A model is written as an architecture that computes the same function, or not at all."""
    if expected is None:
        with pytest.raises(UserError, match="no supported architecture of transformers"):
            match_architecture(model)
    else:
        architecture, values = match_architecture(model)
        assert architecture.model_type == expected
        transformers.AutoConfig.for_model(expected, **values)
