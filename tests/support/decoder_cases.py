"""Decoders and the torch models that they are compared with."""

from collections.abc import Callable
from typing import Any

from jaxlm.config import ModelConfig
from support import model_references
from support.cases import ROWS, Pair, TorchStack
from support.parity import VOCABULARY, build_reference


def decoder(**fields) -> ModelConfig:
    return ModelConfig(vocabulary_size=VOCABULARY, context_length=ROWS, **fields)


def gpt2() -> Pair:
    sizes = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_inner": 50, "n_positions": ROWS}
    reference = build_reference(
        "GPT2LMHeadModel", **sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )
    config = decoder(layers=2, width=36, heads=3, mlp_width=50)
    return Pair(reference, config, lambda state, fill=7.0: model_references.gpt2(state, 3, 2, fill))


LLAMA_SIZES = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 50,
}
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


def llama() -> Pair:
    """Six heads in two groups."""
    reference = build_reference("LlamaForCausalLM", **LLAMA_SIZES)
    config = decoder(**LLAMA)
    return Pair(
        reference,
        config,
        lambda state, fill=7.0: model_references.llama(state, config.width_per_head, 2, fill),
    )


def post_norm() -> Pair:
    """norm(x + f(x)), exact GELU, a head with a bias."""
    reference = TorchStack(causal=True, norm_first=False)
    fields = {"norm_placement": "post", "activation": "gelu", "tied_head": False, "head_bias": True}
    config = decoder(layers=2, width=36, heads=3, mlp_width=50, **fields)
    return Pair(
        reference, config, lambda state, fill=7.0: model_references.torch_stack(state, 3, 2, fill)
    )


# tests/interop has the other architectures, each read from its own files.
DECODERS: dict[str, Callable[[], Pair]] = {"gpt2": gpt2, "llama": llama, "post-norm": post_norm}
