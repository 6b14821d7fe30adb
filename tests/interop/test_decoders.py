"""Decoders against `transformers`: config, weights, logits, gradients.

Keys that would be lost are refused.
"""

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file
from support import interop_references
from support.hf_directories import assert_same_model, random_weights, read_values
from support.parity import build_reference

from jaxlm import config, interop
from jaxlm.config import ConfigError, UserError
from jaxlm.interop.architectures import ARCHITECTURES

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "bloom", "gpt_neox", "opt")
LENGTH = {"max_position_embeddings": 22}

GPT2 = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50, "n_positions": 22}
BLOOM = {"n_layer": 2}
GATED = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
    **LENGTH,
}
NEOX = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    **LENGTH,
}
OPT = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 50, **LENGTH}
GEMMA2 = GATED | {
    "num_hidden_layers": 3,
    "head_dim": 8,
    "sliding_window": 6,
    "attn_logit_softcapping": 1.5,
}


def rope(kind: str, **values) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 700.0, **values}}


LLAMA3 = rope(
    "llama3",
    factor=6.0,
    low_freq_factor=1.0,
    high_freq_factor=3.0,
    original_max_position_embeddings=16,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=12, beta_fast=2.0, beta_slow=0.25)
NAMED_YARN = rope("yarn", factor=2.0, original_max_position_embeddings=11, attention_factor=0.8)
WINDOWS = {"use_sliding_window": True, "sliding_window": 5}
ALTERNATING = {"layer_types": ["full_attention", "sliding_attention"]}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2, untied, relu, no scale": (
        "GPT2LMHeadModel",
        GPT2
        | {
            "tie_word_embeddings": False,
            "activation_function": "relu",
            "scale_attn_weights": False,
            "n_inner": None,
        },
    ),
    "llama": ("LlamaForCausalLM", GATED),
    "llama, multi-query, biases, tied": (
        "LlamaForCausalLM",
        GATED
        | {
            "num_key_value_heads": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-3,
        },
    ),
    "llama, head_dim, llama3": ("LlamaForCausalLM", GATED | {"head_dim": 10} | LLAMA3),
    "llama, linear, relu2": (
        "LlamaForCausalLM",
        GATED | {"hidden_act": "relu2", "num_key_value_heads": 6} | rope("linear", factor=2.5),
    ),
    "llama, yarn": ("LlamaForCausalLM", GATED | {"head_dim": 16} | YARN),
    "llama, yarn, attention_factor": ("LlamaForCausalLM", GATED | {"head_dim": 12} | NAMED_YARN),
    "mistral, window": ("MistralForCausalLM", GATED | {"sliding_window": 5} | rope("default")),
    "mistral, no window, head_dim": (
        "MistralForCausalLM",
        GATED | {"sliding_window": None, "head_dim": 10},
    ),
    "qwen2": ("Qwen2ForCausalLM", GATED),
    "qwen2, max_window_layers, tied": (
        "Qwen2ForCausalLM",
        GATED
        | WINDOWS
        | {"num_hidden_layers": 3, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2, alternating": (
        "Qwen2ForCausalLM",
        GATED | WINDOWS | {"num_hidden_layers": 4, "layer_types": ALTERNATING["layer_types"] * 2},
    ),
    "qwen3, tied": ("Qwen3ForCausalLM", GATED | {"head_dim": 10, "tie_word_embeddings": True}),
    "qwen3, biases, windows, yarn": (
        "Qwen3ForCausalLM",
        GATED
        | WINDOWS
        | ALTERNATING
        | {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 6}
        | YARN,
    ),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "gemma2, untied, biases, no caps": (
        "Gemma2ForCausalLM",
        GEMMA2
        | {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "query_pre_attn_scalar": 9,
            "num_hidden_layers": 2,
            "head_dim": 12,
        }
        | {
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "hidden_activation": "silu",
            "num_key_value_heads": 1,
        },
    ),
    "gemma2, no windows": ("Gemma2ForCausalLM", GEMMA2 | {"layer_types": ["full_attention"] * 3}),
    "bloom, 4 heads": ("BloomForCausalLM", BLOOM | {"hidden_size": 32, "n_head": 4}),
    "bloom, 6 heads, untied": (
        "BloomForCausalLM",
        BLOOM | {"hidden_size": 36, "n_head": 6, "tie_word_embeddings": False},
    ),
    "bloom, 7 heads, normed residual": (
        "BloomForCausalLM",
        BLOOM | {"hidden_size": 42, "n_head": 7, "apply_residual_connection_post_layernorm": True},
    ),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        NEOX | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox, serial, no bias, tied": (
        "GPTNeoXForCausalLM",
        NEOX
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_new",
        }
        | rope("linear", factor=2.0, partial_rotary_factor=1.0),
    ),
    "gpt_neox, half rotated, yarn": (
        "GPTNeoXForCausalLM",
        NEOX
        | {"hidden_size": 48}
        | rope("yarn", factor=4.0, original_max_position_embeddings=12, partial_rotary_factor=0.5),
    ),
    "opt": ("OPTForCausalLM", OPT),
    "opt, post-norm, projection": (
        "OPTForCausalLM",
        OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 20},
    ),
    "opt, projection, no bias, untied": (
        "OPTForCausalLM",
        OPT
        | {
            "word_embed_proj_dim": 44,
            "enable_bias": False,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
        },
    ),
}


def plain(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json that `transformers` writes after it has read these values."""
    return json.loads(cls(**values).to_json_string(use_diff=False))


def config_class(model_type: str) -> Any:
    return transformers.AutoConfig.for_model(model_type).__class__


ONLY_HERE = (
    "llama, head_dim, llama3",
    "qwen3, biases, windows, yarn",
    "bloom, 7 heads, normed residual",
    "opt, post-norm, projection",
)


@pytest.mark.parametrize("name", interop_references.first_of_each(VARIANTS, also=ONLY_HERE))
def test_against_transformers(name, tmp_path):
    cls, fields = VARIANTS[name]
    interop_references.check(build_reference(cls, **fields), tmp_path)


WITHOUT_WINDOWS = {
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False},
    "gemma2": {"layer_types": ["full_attention"] * 2, "head_dim": 8},
    "gemma2, sliding_window null": {
        "layer_types": ["full_attention"] * 2,
        "sliding_window": None,
        "head_dim": 8,
    },
}


@pytest.mark.parametrize("name", WITHOUT_WINDOWS)
def test_exports_without_windows_run(name, tmp_path):
    model_type = name.partition(",")[0]
    model = read_values(model_type, GATED | {"vocab_size": 64} | WITHOUT_WINDOWS[name])
    assert set(model.windows) == {None}
    interop.save(tmp_path, model, random_weights(model))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.model_type == model_type
    assert theirs(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert interop.read_config(tmp_path)[1] == model


@pytest.mark.parametrize("model_type", DECODERS)
def test_what_a_file_leaves_out_is_the_default_of_the_class(model_type):
    assert read_values(model_type, {}) == read_values(
        model_type, plain(config_class(model_type), {})
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_written_config_is_read_the_same(name):
    """Unchanged, with either form of the rotary keys alone, and rewritten by `transformers`."""
    cls, fields = VARIANTS[name]
    settings_class = getattr(transformers, cls).config_class
    model_type = settings_class.model_type
    model = read_values(model_type, plain(settings_class, fields))
    written = ARCHITECTURES[model_type].write(model)
    assert json.loads(json.dumps(written)) == written
    forms = (
        {},
        {"rope_parameters"},
        {"rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base"},
    )
    for without in forms:
        values = {key: value for key, value in written.items() if key not in without}
        assert read_values(model_type, values) == model, without
        assert read_values(model_type, plain(settings_class, values)) == model, without


OLD: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2, other names": (
        "gpt2",
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 9,
        },
    ),
    "llama, theta": ("llama", {"rope_theta": 5e5, "rope_scaling": None}),
    "llama, linear": (
        "llama",
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "llama, both names": (
        "llama",
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}},
    ),
    "llama, llama3": (
        "llama",
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        },
    ),
    "llama, 3.1's original length left out": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "mistral, nulls": ("mistral", {"sliding_window": None, "head_dim": None, "rope_theta": 1e6}),
    "mistral, layers that all have the window": (
        "mistral",
        {"layer_types": ["sliding_attention"] * 32},
    ),
    "qwen2, yarn": (
        "qwen2",
        {
            "rope_theta": 1e6,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32768,
            },
        },
    ),
    "qwen2, layers without a window": (
        "qwen2",
        {"num_hidden_layers": 5, "max_window_layers": 3, "use_sliding_window": True},
    ),
    "qwen2, window that isn't used": (
        "qwen2",
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 21},
    ),
    "qwen3, no layer without a window": (
        "qwen3",
        {"max_window_layers": 0, "use_sliding_window": True, "sliding_window": 64},
    ),
    "gemma2, an odd number of layers": (
        "gemma2",
        {
            "hidden_act": "gelu",
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 5,
            "rope_theta": 1e4,
        },
    ),
    "gemma2, no caps": (
        "gemma2",
        {
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "query_pre_attn_scalar": 144,
        },
    ),
    "bloom, other names": (
        "bloom",
        {"n_embed": 24, "num_attention_heads": 3, "num_hidden_layers": 5, "seq_length": 512},
    ),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500}),
    "gpt_neox, twice": (
        "gpt_neox",
        {
            "rotary_pct": 1.0,
            "rotary_emb_base": 500,
            "rope_theta": 500,
            "partial_rotary_factor": 1.0,
        },
    ),
    "gpt_neox, linear": ("gpt_neox", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "opt, 350M": (
        "opt",
        {
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 512,
            "_remove_final_layer_norm": True,
        },
    ),
}


SAME_AS_DEFAULT = ("qwen2, window that isn't used", "mistral, layers that all have the window")


@pytest.mark.parametrize("name", OLD)
def test_older_forms_mean_what_transformers_makes_of_them(name):
    model_type, values = OLD[name]
    model = read_values(model_type, values)
    assert model == read_values(model_type, plain(config_class(model_type), values))
    assert (model == read_values(model_type, {})) == (name in SAME_AS_DEFAULT)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "quantised": (
        "llama",
        {"quantization_config": {"bits": 4}},
        "quantization_config: quantised weights are not read",
    ),
    "layers that differ": (
        "llama",
        {"per_layer_config": {"0": {"head_dim": 4}}},
        "per_layer_config",
    ),
    "pruned": ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "cross attention": (
        "gpt2",
        {"add_cross_attention": True},
        "add_cross_attention: true is not supported",
    ),
    "scale by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    "activation": (
        "gpt2",
        {"activation_function": "quick_gelu"},
        'activation_function: "quick_gelu" is not supported',
    ),
    "two sizes": ("gpt2", {"n_embd": 36, "hidden_size": 48}, "hidden_size: 48 contradicts n_embd"),
    "not a number": ("gpt2", {"n_layer": "12"}, "n_layer: must be a whole number"),
    "heads": (
        "llama",
        {"hidden_size": 36, "num_attention_heads": 5},
        "hidden_size: 36 is not a multiple",
    ),
    "dynamic": (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling.type: 'dynamic' .* length of each input",
    ),
    "longrope": (
        "llama",
        {"rope_parameters": {"rope_type": "longrope"}},
        "rope_parameters.rope_type: 'longrope' is not supported",
    ),
    "unknown rope": (
        "llama",
        {"rope_scaling": {"type": ["linear"]}},
        "rope_scaling.type: .* is unknown",
    ),
    "two ropes": (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}} | rope("default"),
        "contradict",
    ),
    "two thetas": (
        "llama",
        {"rope_theta": 1e6} | rope("default"),
        "rope_theta: 1000000.0 contradicts another",
    ),
    "two kinds": (
        "llama",
        {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
        "contradicts rope_type",
    ),
    "no factor": ("llama", rope("linear"), "rope_parameters.factor: is missing"),
    "no frequencies": (
        "llama",
        rope("llama3", factor=2.0, low_freq_factor=1.0),
        "high_freq_factor: is missing",
    ),
    "mscale": (
        "llama",
        rope("yarn", factor=2.0, mscale=1.0, mscale_all_dim=0.7),
        "rope_parameters.mscale: is not supported",
    ),
    "not truncated": (
        "qwen2",
        rope("yarn", factor=2.0, truncate=False),
        "rope_parameters.truncate: false is not supported",
    ),
    "a length outside": (
        "llama",
        {"original_max_position_embeddings": 8} | rope("yarn", factor=2.0),
        "original_max_position_embeddings: 8 contradicts",
    ),
    "two lengths": (
        "llama",
        {"original_max_position_embeddings": 8}
        | rope("yarn", factor=2.0, original_max_position_embeddings=4),
        "original_max_position_embeddings: 8 contradicts",
    ),
    "part of the channels": (
        "llama",
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor: 0.5 is not supported",
    ),
    "rope by layer": (
        "gemma2",
        {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}},
        "per layer type",
    ),
    "mistral's layers": ("mistral", {"layer_types": ["full_attention"] * 32}, "layer_types"),
    "chunks": (
        "qwen2",
        {"layer_types": ["chunked_attention"] * 32},
        "layer_types: 'chunked_attention' is not supported",
    ),
    "too few layers": (
        "qwen2",
        {"layer_types": ["full_attention"] * 2},
        "layer_types: has 2 layers, the model 32",
    ),
    "no window": ("qwen3", {"layer_types": ["sliding_attention"] * 32}, "needs sliding_window"),
    "both directions": (
        "gemma2",
        {"use_bidirectional_attention": True},
        "use_bidirectional_attention",
    ),
    "scalar": ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: must be above 0"),
    "two thetas of NeoX": (
        "gpt_neox",
        {"rotary_emb_base": 500, "rope_theta": 10000},
        "rope_theta: 10000.0 contradicts",
    ),
    "two shares of NeoX": (
        "gpt_neox",
        {"rotary_pct": 0.5, "partial_rotary_factor": 1.0},
        "partial_rotary_factor: 1.0 contradicts",
    ),
    "norms without weights": (
        "opt",
        {"layer_norm_elementwise_affine": False},
        "layer_norm_elementwise_affine",
    ),
    "no last norm": ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused(name):
    model_type, values, reason = REFUSED[name]
    with pytest.raises(UserError, match=f"^config.json: .*{reason}") as error:
        read_values(model_type, values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt2", {"n_layer": 0}),
        ("llama", {"num_key_value_heads": 5}),
        ("gpt_neox", {"num_attention_heads": 0}),
        ("opt", {"vocab_size": -1}),
    ],
)
def test_impossible_sizes_are_refused(model_type, values):
    with pytest.raises((ConfigError, UserError)):
        read_values(model_type, values)


PREFIXES = {
    "gpt2": "transformer.",
    "bloom, 4 heads": "transformer.",
    "opt, post-norm, projection": "model.",
}


@pytest.mark.parametrize("name", PREFIXES)
def test_base_models_with_buffers(name, tmp_path):
    """The first releases' files: no prefix, masks among the tensors, the tied head once more."""
    cls, fields = VARIANTS[name]
    peer = build_reference(cls, **fields)
    peer.save_pretrained(tmp_path)
    model, params = interop.load(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix(PREFIXES[name]): value for key, value in load_file(path).items()}
    assert tensors.keys() == getattr(peer, PREFIXES[name][:-1]).state_dict().keys()
    if name == "gpt2":
        masks = {
            f"h.{layer}.attn.{kind}": np.tri(22, dtype=np.float32)[None, None]
            for layer in range(2)
            for kind in ("bias", "masked_bias")
        }
        tensors |= masks | {"lm_head.weight": tensors["wte.weight"]}
    save_file(tensors, path)
    assert_same_model(interop.load(tmp_path), (model, params))


BUFFERS = {
    "llama": "model.layers.{}.self_attn.rotary_emb.inv_freq",
    "gpt_neox": "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
}


@pytest.mark.parametrize("name", BUFFERS)
def test_buffers_are_left_aside(name, tmp_path):
    cls, fields = VARIANTS[name]
    build_reference(cls, **fields).save_pretrained(tmp_path)
    expected = interop.load(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(
        load_file(path)
        | {BUFFERS[name].format(layer): np.ones(3, np.float32) for layer in range(2)},
        path,
    )
    assert_same_model(interop.load(tmp_path), expected)


GATED_MODEL = {
    "layers": 2,
    "width": 36,
    "heads": 3,
    "norm": "rmsnorm",
    "positions": "rotary",
    "gated": True,
    "activation": "silu",
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
}
EXPRESSED: dict[str, tuple[str, dict[str, Any]]] = {
    "the default": ("gpt2", {}),
    "no window": ("llama", GATED_MODEL),
    "head width": ("llama", GATED_MODEL | {"head_width": 10}),
    "heads that don't divide the width": ("mistral", GATED_MODEL | {"head_width": 10, "heads": 5}),
    "a window": ("mistral", GATED_MODEL | {"sliding_window": 7}),
    "biases on the inputs alone": ("qwen2", GATED_MODEL | {"attention_bias": True}),
    "windows and biases": (
        "qwen2",
        GATED_MODEL
        | {"attention_bias": True, "sliding_window": 7, "attention_pattern": ("full", "sliding")},
    ),
    "norms of queries and keys": (
        "qwen3",
        GATED_MODEL | {"query_key_norm": True, "tied_head": True},
    ),
    "norms of queries and keys, window": (
        "qwen3",
        GATED_MODEL | {"query_key_norm": True, "sliding_window": 9},
    ),
}


@pytest.mark.parametrize("name", EXPRESSED)
def test_the_simplest_class_is_written(name):
    expected, fields = EXPRESSED[name]
    model = config.ModelConfig(**{"vocabulary_size": 97, "context_length": 22} | fields)
    architecture, values = interop.match_architecture(model)
    assert architecture.model_type == expected
    theirs = plain(config_class(expected), values)
    assert theirs["vocab_size"] == 97


LOST: dict[str, tuple[dict[str, Any], str]] = {
    "rotation of a part": (GATED_MODEL | {"rotary_share": 0.5}, "rotary_share"),
    "bias on the output alone": (
        GATED_MODEL | {"attention_output_bias": True},
        "attention_output_bias",
    ),
    "soft-capped logits": (GATED_MODEL | {"logit_softcap": 30.0}, "logit_softcap"),
    "gated, with layernorm": (GATED_MODEL | {"norm": "layernorm"}, "norm"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_no_class_has_is_refused(name):
    fields, reason = LOST[name]
    with pytest.raises(UserError, match=f"model.{reason} = "):
        interop.match_architecture(config.ModelConfig(**fields))
