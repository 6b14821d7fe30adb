"""Decoders and the torch models that they are compared with."""

import math
from collections.abc import Callable
from typing import Any

import peers
import torch
from pairs import ROWS, VOCABULARY, Pair, TorchStack, made

from jaxlm import config
from jaxlm.types import Tree


def decoder(**fields) -> config.Model:
    return config.Model(vocabulary_size=VOCABULARY, context_length=ROWS, **fields)


def gpt2() -> Pair:
    sizes = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50, "n_positions": ROWS}
    peer = made("GPT2LMHeadModel", **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = decoder(layers=2, width=36, heads=3, mlp_width=50)
    return Pair(peer, model, lambda state, fill=7.0: peers.gpt2(state, 3, 2, fill))


def bloom(heads: int) -> Pair:
    peer = made("BloomForCausalLM", hidden_size=8 * heads, n_layer=2, n_head=heads)
    model = decoder(layers=2, width=8 * heads, heads=heads, positions="alibi", embedding_norm=True)
    return Pair(peer, model, lambda state, fill=7.0: peers.bloom(state, heads, 2, fill))


LLAMA_SIZES = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 50}
LLAMA: dict[str, Any] = {
    "layers": 2,
    "width": 36,
    "heads": 6,
    "kv_heads": 2,
    "mlp_width": 50,
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "attention_bias": False,
    "attention_output_bias": False,
    "mlp_bias": False,
    "tied_head": False,
    "norm_epsilon": 1e-6,
}


def llama(theirs: dict | None = None, ours: dict | None = None, cls: str = "Llama") -> Pair:
    """Six heads in two groups unless told otherwise."""
    peer = made(f"{cls}ForCausalLM", **(LLAMA_SIZES | (theirs or {})))
    model = decoder(**(LLAMA | (ours or {})))
    return Pair(peer, model, lambda state, fill=7.0: peers.llama(state, model.width_per_head, 2, fill))


def llama3_scaling() -> Pair:
    """Pairs of channels on all three branches: kept, blended and divided."""
    scaling = {"rope_type": "llama3", "rope_theta": 700.0, "factor": 6.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
    ours = {
        "head_width": 10,
        "rotary_theta": 700.0,
        "rotary_scaling": "llama3",
        "rotary_scaling_factor": 6.0,
        "rotary_low_frequency_factor": 1.0,
        "rotary_high_frequency_factor": 3.0,
        "rotary_original_length": 16,
    }
    return llama({"head_dim": 10, "rope_parameters": scaling | {"original_max_position_embeddings": 16}}, ours)


def linear_scaling() -> Pair:
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}
    return llama({"rope_parameters": scaling}, {"rotary_scaling": "linear", "rotary_scaling_factor": 2.5})


def biased_multi_query() -> Pair:
    biases = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
    return llama({"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, {"kv_heads": 1} | biases)


def mistral() -> Pair:
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    return llama({"sliding_window": 5} | theta, {"sliding_window": 5, "rotary_theta": 50.0}, "Mistral")


def qwen3() -> Pair:
    theirs = {"head_dim": 10, "tie_word_embeddings": True}
    return llama(theirs, {"head_width": 10, "query_key_norm": True, "tied_head": True}, "Qwen3")


def gemma2() -> Pair:
    """Soft-caps, GEGLU and windows. The norms that Gemma 2 puts behind each sublayer are taken out: we have no such placement.

    What is left of its differences are units of the weights: its embedding is multiplied by sqrt(width), its norms by 1 + weight.
    """
    theirs = {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
    ours = {"head_width": 8, "attention_softcap": 1.5, "logit_softcap": 2.0, "activation": "gelu_tanh", "sliding_window": 6}
    windows = {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2}
    peer = made("Gemma2ForCausalLM", **(LLAMA_SIZES | theirs | windows), tie_word_embeddings=False)
    for weight in (w for name, w in peer.named_parameters() if name.endswith("norm.weight")):
        weight.data -= 1.0
    for layer in peer.model.layers:
        layer.post_attention_layernorm = layer.post_feedforward_layernorm = torch.nn.Identity()

    def convert(state: peers.State) -> Tree:
        units = {"model.embed_tokens.weight": lambda w: w * math.sqrt(36)}
        units |= {name: lambda w: w + 1.0 for name in state if name.endswith("norm.weight")}
        state = {name: units.get(name, lambda w: w)(value) for name, value in state.items()}
        return peers.llama(state, 8, 2, mlp_norm="pre_feedforward_layernorm")

    return Pair(peer, decoder(**(LLAMA | ours)), convert)


def post_norm() -> Pair:
    """norm(x + f(x)), exact GELU, a head with a bias."""
    peer = TorchStack(causal=True, norm_first=False)
    fields = {"norm_placement": "post", "activation": "gelu", "tied_head": False, "head_bias": True}
    model = decoder(layers=2, width=36, heads=3, mlp_width=50, **fields)
    return Pair(peer, model, lambda state, fill=7.0: peers.torch_stack(state, 3, 2, fill))


DECODERS: dict[str, Callable[[], Pair]] = {
    "gpt2": gpt2,
    "bloom, 4 heads": lambda: bloom(4),
    "bloom, 7 heads": lambda: bloom(7),
    "llama": llama,
    "llama, multi-query with biases": biased_multi_query,
    "llama, llama3 scaling and free head width": llama3_scaling,
    "llama, linear scaling": linear_scaling,
    "mistral, window and theta": mistral,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "post-norm": post_norm,
}
