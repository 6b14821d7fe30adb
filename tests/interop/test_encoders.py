"""BERT and its relatives against `transformers`: config, weights, logits, gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file
from support.hf_directories import change_config, change_tensors, read_values
from support.interop_references import (
    check,
    compare,
    first_of_each,
    round_trip,
)
from support.parity import (
    SOURCE,
    build_reference,
    reference_logits,
    samples,
)
from support.trees import assert_same

from jaxlm import interop
from jaxlm.config import UserError
from jaxlm.interop.architectures import ARCHITECTURES
from jaxlm.interop.match_architecture import match_architecture

BERT: dict[str, Any] = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": SOURCE,
    "type_vocab_size": 3,
}
ROBERTA = BERT | {
    "max_position_embeddings": SOURCE + 2,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
DISTILBERT: dict[str, Any] = {
    "dim": 36,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 50,
    "max_position_embeddings": SOURCE,
}
# Windows of 7 of the 17 tokens; 4 layers are a period of the pattern and one more.
MODERNBERT: dict[str, Any] = {
    "hidden_size": 36,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": SOURCE,
    "local_attention": 6,
    "cls_token_id": 0,
    "sep_token_id": 0,
}
BIASES = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias", "decoder_bias")
EVERYWHERE = {"full_attention": {"rope_theta": 5000.0}, "sliding_attention": {"rope_theta": 70.0}}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", BERT),
    "bert, gelu_new, one type, one head": (
        "BertForMaskedLM",
        BERT
        | {
            "hidden_act": "gelu_new",
            "type_vocab_size": 1,
            "num_attention_heads": 1,
            "intermediate_size": 144,
        },
    ),
    "bert, relu, other epsilon": (
        "BertForMaskedLM",
        BERT | {"hidden_act": "relu", "layer_norm_eps": 1e-3},
    ),
    "roberta": ("RobertaForMaskedLM", ROBERTA),
    "roberta, gelu_new but for the head": (
        "RobertaForMaskedLM",
        ROBERTA | {"hidden_act": "gelu_new", "type_vocab_size": 2},
    ),
    "roberta, padding token 0": (
        "RobertaForMaskedLM",
        ROBERTA | {"pad_token_id": 0, "hidden_act": "silu"},
    ),
    "distilbert": ("DistilBertForMaskedLM", DISTILBERT),
    "distilbert, relu, untied": (
        "DistilBertForMaskedLM",
        DISTILBERT | {"activation": "relu", "tie_word_embeddings": False},
    ),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert, every bias, other bases": (
        "ModernBertForMaskedLM",
        MODERNBERT | dict.fromkeys(BIASES, True) | {"rope_parameters": EVERYWHERE},
    ),
    "modernbert, no bias, untied, own activations": (
        "ModernBertForMaskedLM",
        MODERNBERT
        | dict.fromkeys(BIASES, False)
        | {
            "tie_word_embeddings": False,
            "hidden_activation": "silu",
            "classifier_activation": "relu",
        },
    ),
    "modernbert, its own pattern": (
        "ModernBertForMaskedLM",
        MODERNBERT
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "modernbert, all layers full": (
        "ModernBertForMaskedLM",
        MODERNBERT | {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    ),
    "modernbert, all layers sliding": (
        "ModernBertForMaskedLM",
        MODERNBERT
        | {"num_hidden_layers": 2, "local_attention": 7, "layer_types": ["sliding_attention"] * 2},
    ),
}


@pytest.mark.parametrize("name", first_of_each(VARIANTS))
def test_as_transformers(name: str, tmp_path: Path):
    cls, fields = VARIANTS[name]
    peer = build_reference(cls, **fields)
    check(peer, tmp_path)


@pytest.mark.parametrize(
    ("cls", "fields", "head"), [("Bert", BERT, "cls.predictions"), ("Roberta", ROBERTA, "lm_head")]
)
def test_untied_head(cls, fields, head, tmp_path):
    """transformers 5 has two biases and adds the decoder's; in 4 both names are one tensor."""
    peer = build_reference(f"{cls}ForMaskedLM", **fields, tie_word_embeddings=False)
    peer.save_pretrained(tmp_path / "theirs")  # with two different biases
    model_config, params = interop.load(tmp_path / "theirs")
    assert not model_config.tied_head
    module = peer.get_submodule(head)
    with torch.no_grad():
        module.bias.copy_(module.decoder.bias)
    round_trip(peer, model_config, params, tmp_path / "ours")
    del module.bias  # has no gradient there
    compare(peer, model_config, params, tmp_path / "gradients")


def test_tied_bias_is_written_under_both_names(tmp_path):
    """Releases of transformers 4 that find one of them alone replace RoBERTa's by zeros."""
    build_reference("RobertaForMaskedLM", **ROBERTA).save_pretrained(tmp_path / "theirs")
    interop.save(tmp_path / "ours", *interop.load(tmp_path / "theirs"))
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert (
        np.array_equal(tensors["lm_head.bias"], tensors["lm_head.decoder.bias"])
        and tensors["lm_head.bias"].any()
    )


@pytest.mark.parametrize(
    ("cls", "fields", "changes"),
    [
        (
            "ModernBertForMaskedLM",
            MODERNBERT,
            {"layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 3},
        ),
        (
            "ModernBertForMaskedLM",
            MODERNBERT
            | {
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "rope_parameters": EVERYWHERE,
            },
            {
                "layer_types": None,
                "rope_parameters": None,
                "global_attn_every_n_layers": 2,
                "global_rope_theta": 5000.0,
                "local_rope_theta": 70.0,
                "position_embedding_type": "sans_pos",
            },
        ),
        (
            "DistilBertForMaskedLM",
            DISTILBERT,
            {
                "sinusoidal_pos_embds": True,
                "dim": None,
                "hidden_size": 36,
                "n_heads": None,
                "num_attention_heads": 3,
                "pruned_heads": {},
            },
        ),
        (
            "BertForMaskedLM",
            BERT,
            {
                "position_embedding_type": "absolute",
                "gradient_checkpointing": False,
                "chunk_size_feed_forward": 17,
            },
        ),
    ],
)
def test_older_forms(cls, fields, changes, tmp_path):
    """config.json as earlier releases write it reads the same."""
    peer = build_reference(cls, **fields)
    peer.save_pretrained(tmp_path / "new")
    new = interop.read_config(tmp_path / "new")[1]
    peer.save_pretrained(tmp_path / "old")
    change_config(tmp_path / "old", changes)
    assert interop.read_config(tmp_path / "old")[1] == new
    again = type(peer).from_pretrained(tmp_path / "old", attn_implementation="eager")
    batch = samples(new)
    assert torch.equal(reference_logits(again, batch), reference_logits(peer, batch))


def test_bert_for_pretraining(tmp_path):
    """The released files: a second head, poolers, norms called gamma and beta, repeated tensors."""
    peer = build_reference("BertForPreTraining", **BERT)
    peer.save_pretrained(tmp_path / "pretraining")
    transformers.BertForMaskedLM.from_pretrained(tmp_path / "pretraining").save_pretrained(
        tmp_path / "masked"
    )
    expected = interop.load(tmp_path / "masked")

    def old(tensors: dict) -> dict:
        names = {
            name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            for name in tensors
        }
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
        assert (
            any(name.endswith("gamma") for name in tensors)
            and "cls.seq_relationship.weight" in tensors
        )
        tensors["bert.embeddings.position_ids"] = np.arange(SOURCE)[None]
        tensors["cls.predictions.decoder.weight"] = tensors[
            "bert.embeddings.word_embeddings.weight"
        ].copy()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
        return tensors

    change_tensors(tmp_path / "pretraining", old)
    model_config, params = interop.load(tmp_path / "pretraining")
    assert model_config == expected[0]
    assert_same(params, expected[1])


def test_repeated_tensor_that_differs(tmp_path):
    build_reference("BertForMaskedLM", **BERT).save_pretrained(tmp_path)
    change_tensors(
        tmp_path,
        lambda tensors: (
            tensors | {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + 1}
        ),
    )
    with pytest.raises(
        UserError, match=r"cls\.predictions\.decoder\.bias.*differs from cls\.predictions\.bias"
    ):
        interop.load(tmp_path)


@pytest.mark.parametrize(
    "cls", ["BertConfig", "RobertaConfig", "DistilBertConfig", "ModernBertConfig"]
)
def test_defaults(cls):
    """Keys that a config.json leaves out have the defaults of `transformers`."""
    defaults = getattr(transformers, cls)().to_dict()
    model_type = defaults["model_type"]
    assert read_values(model_type, {}) == read_values(model_type, defaults)
    assert read_values(model_type, {"vocab_size": 99}) != read_values(model_type, defaults)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("bert", "add_cross_attention", True),
        ("bert", "quantization_config", {"quant_method": "gptq"}),
        ("bert", "hidden_act", "gelu_10"),
        ("bert", "hidden_size", 700),
        ("bert", "hidden_size", "768"),
        ("bert", "pruned_heads", {"0": [1]}),
        ("roberta", "position_embedding_type", "relative_key_query"),
        ("roberta", "is_decoder", True),
        ("roberta", "pad_token_id", None),
        ("roberta", "pad_token_id", -1),
        ("roberta", "max_position_embeddings", 2),
        ("distilbert", "dim", 700),
        ("distilbert", "num_hidden_layers", 7),
        ("distilbert", "activation", "quick_gelu"),
        ("modernbert", "hidden_activation", "mish"),
        ("modernbert", "classifier_activation", "tanh"),
        ("modernbert", "hidden_size", 700),
        ("modernbert", "head_dim", 32),
        ("modernbert", "sliding_window", 8),
        ("modernbert", "layer_types", ["full_attention"]),
        ("modernbert", "layer_types", ["chunked_attention"] * 22),
        ("modernbert", "global_attn_every_n_layers", 0),
        ("modernbert", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        (
            "modernbert",
            "rope_parameters",
            {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}},
        ),
        ("modernbert", "rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        ("modernbert", "local_rope_theta", None),
        ("modernbert", "is_decoder", True),
    ],
)
def test_refused(model_type, key, value):
    values = {"n_layers": 6} if key == "num_hidden_layers" else {}
    named = "rope_" if key == "rope_parameters" else key
    with pytest.raises(UserError, match=rf"^config\.json: (rope_parameters\.\w+\.)?{named}"):
        read_values(model_type, values | {key: value})


def test_two_forms_that_contradict():
    parameters = {"sliding_attention": {"rope_theta": 70.0}}
    with pytest.raises(
        UserError,
        match=r"local_rope_theta: 80.0 contradicts "
        r"rope_parameters.sliding_attention.rope_theta \(70.0\)",
    ):
        read_values("modernbert", {"rope_parameters": parameters, "local_rope_theta": 80.0})
    assert (
        read_values(
            "modernbert", {"rope_parameters": parameters, "local_rope_theta": 70.0}
        ).rotary_theta_sliding
        == 70.0
    )


def changed(model_type: str, **fields) -> Any:
    """The model of an architecture's default config, with other fields."""
    return dataclasses.replace(read_values(model_type, {}), **fields)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (changed("bert"), "bert"),
        (changed("bert", norm_epsilon=1e-5, position_offset=2, token_types=1), "roberta"),
        (changed("bert", activation="relu", head_activation="gelu", position_offset=1), "roberta"),
        (changed("bert", token_types=0), "distilbert"),
        (changed("bert", token_types=0, norm_epsilon=1e-5), None),
        (changed("bert", head_bias=False), None),
        (changed("bert", head_activation="relu"), None),
        (changed("bert", kv_heads=4), None),
        (changed("bert", positions="none"), None),
        (changed("modernbert"), "modernbert"),
        (changed("modernbert", rotary_theta_sliding=500.0), "modernbert"),
        (
            changed(
                "modernbert", attention_pattern=(), rotary_theta_sliding=None, sliding_window=None
            ),
            "modernbert",
        ),
        (
            changed(
                "modernbert", attention_pattern=("sliding", "sliding", "full"), sliding_window=5
            ),
            "modernbert",
        ),
        (changed("modernbert", first_norm=True), None),
        (changed("modernbert", attention_output_bias=True), None),
        (changed("modernbert", rotary_share=0.5), None),
        (changed("modernbert", gated=False), None),
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


def test_pattern_for_transformers_4():
    """It reads the period alone; a pattern that has none must not pass for another one."""
    write = ARCHITECTURES["modernbert"].write
    assert write(changed("modernbert"))["global_attn_every_n_layers"] == 3
    assert (
        write(changed("modernbert", attention_pattern=("sliding", "full")))[
            "global_attn_every_n_layers"
        ]
        == 0
    )
