"""Tensors of torch models in our layout.

The maps are linear, so they apply to gradients as well as to weights.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
import torch

from jaxlm.nn.embedding import padded_vocabulary
from jaxlm.types import Tree

State = Mapping[str, np.ndarray]


def weights(reference: torch.nn.Module) -> State:
    """Return copies of the parameters."""
    return {
        name: parameter.detach().numpy().copy() for name, parameter in reference.named_parameters()
    }


def gradients(reference: torch.nn.Module) -> State:
    """Return copies of the gradients of the parameters that have one."""
    return {
        name: parameter.grad.numpy().copy()
        for name, parameter in reference.named_parameters()
        if parameter.grad is not None
    }


def rows(table_VD: np.ndarray, fill: float) -> np.ndarray:
    """Return the table with its padding rows; `fill` would show in a result if they were used."""
    V = table_VD.shape[0]
    return np.pad(table_VD, ((0, padded_vocabulary(V) - V), (0, 0)), constant_values=fill)


def padded(bias_V: np.ndarray, fill: float) -> np.ndarray:
    return rows(bias_V[:, None], fill)[:, 0]


def stacked(layer: Callable[[int], Tree], layers: int) -> Tree:
    return jax.tree.map(lambda *w: np.stack(w), *[layer(i) for i in range(layers)])


def part(state: State, prefix: str) -> dict[str, np.ndarray]:
    """Return the tensors under a prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def norm(state: State, name: str) -> Tree:
    named = {"scale": state.get(f"{name}.weight"), "bias": state.get(f"{name}.bias")}
    return {key: value for key, value in named.items() if value is not None}


def dense(state: State, name: str, ours: str) -> Tree:
    """Map a torch linear layer [out, in] -> our kernel [in, out] and bias."""
    out = {f"{ours}_kernel": state[f"{name}.weight"].T}
    return out | {f"{ours}_bias": state[f"{name}.bias"]} if f"{name}.bias" in state else out


def to_heads(state: State, name: str, ours: str, K: int) -> Tree:
    """Map a torch projection [H K, D] -> our kernel [D, H, K] and bias [H, K]."""
    kernel, *bias = dense(state, name, ours).values()
    out = {f"{ours}_kernel": kernel.reshape(kernel.shape[0], -1, K)}
    return out | {f"{ours}_bias": bias[0].reshape(-1, K)} if bias else out


def from_heads(state: State, name: str, K: int) -> Tree:
    """Map a torch projection [D, H K] -> our output kernel [H, K, D] and bias [D]."""
    kernel, *bias = dense(state, name, "output").values()
    out = {"output_kernel": kernel.reshape(-1, K, kernel.shape[1])}
    return out | {"output_bias": bias[0]} if bias else out


def gpt2(state: State, heads: int, layers: int, fill: float = 7.0) -> Tree:
    """Map transformers' GPT2LMHeadModel, whose weights are [in, out] and fuse q, k and v."""

    def layer(i: int) -> Tree:
        s = part(state, f"transformer.h.{i}.")
        D = s["attn.c_proj.bias"].size
        fused = zip(
            ("query", "key", "value"),
            np.split(s["attn.c_attn.weight"], 3, 1),
            np.split(s["attn.c_attn.bias"], 3),
            strict=True,
        )
        attention = {
            "output_kernel": s["attn.c_proj.weight"].reshape(heads, -1, D),
            "output_bias": s["attn.c_proj.bias"],
        }
        for name, kernel, bias in fused:
            attention |= {
                f"{name}_kernel": kernel.reshape(D, heads, -1),
                f"{name}_bias": bias.reshape(heads, -1),
            }
        mlp = {
            "up_kernel": s["mlp.c_fc.weight"],
            "up_bias": s["mlp.c_fc.bias"],
            "down_kernel": s["mlp.c_proj.weight"],
            "down_bias": s["mlp.c_proj.bias"],
        }
        return {
            "attention_norm": norm(s, "ln_1"),
            "attention": attention,
            "mlp_norm": norm(s, "ln_2"),
            "mlp": mlp,
        }

    s = part(state, "transformer.")
    return {
        "embedding": {"tokens": rows(s["wte.weight"], fill), "positions": s["wpe.weight"]},
        "blocks": stacked(layer, layers),
        "final_norm": norm(s, "ln_f"),
    }


def llama(state: State, head_width: int, layers: int, fill: float = 7.0) -> Tree:
    """Map transformers' LlamaForCausalLM with an untied head."""

    def layer(i: int) -> Tree:
        s = part(state, f"model.layers.{i}.")
        attention = from_heads(s, "self_attn.o_proj", head_width)
        for name in ("query", "key", "value"):
            attention |= to_heads(s, f"self_attn.{name[0]}_proj", name, head_width)
        mlp = (
            dense(s, "mlp.gate_proj", "gate")
            | dense(s, "mlp.up_proj", "up")
            | dense(s, "mlp.down_proj", "down")
        )
        return {
            "attention_norm": norm(s, "input_layernorm"),
            "attention": attention,
            "mlp_norm": norm(s, "post_attention_layernorm"),
            "mlp": mlp,
        }

    return {
        "embedding": {"tokens": rows(state["model.embed_tokens.weight"], fill)},
        "blocks": stacked(layer, layers),
        "final_norm": norm(state, "model.norm"),
        "head": {"kernel": rows(state["lm_head.weight"], fill).T},
    }


def torch_attention(state: State, name: str, heads: int) -> Tree:
    """Map a torch.nn.MultiheadAttention, which stacks query, key and value."""
    fused, fused_bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    D = fused.shape[1]
    attention = from_heads(state, f"{name}.out_proj", D // heads)
    for ours, weight, bias in zip(
        ("query", "key", "value"), np.split(fused, 3), np.split(fused_bias, 3), strict=True
    ):
        attention |= {
            f"{ours}_kernel": weight.T.reshape(D, heads, -1),
            f"{ours}_bias": bias.reshape(heads, -1),
        }
    return attention


def torch_layers(state: State, heads: int, layers: int) -> Tree:
    """Map the layers of torch.nn.TransformerEncoder and TransformerDecoder.

    A decoder's second attention reads the encoder.
    """

    def layer(i: int) -> Tree:
        s = part(state, f"layers.{i}.")
        block = {
            "attention": torch_attention(s, "self_attn", heads),
            "mlp": dense(s, "linear1", "up") | dense(s, "linear2", "down"),
        }
        norms = ["attention_norm", "mlp_norm"]
        if "multihead_attn.in_proj_weight" in s:
            block["cross_attention"] = torch_attention(s, "multihead_attn", heads)
            norms.insert(1, "cross_attention_norm")
        return block | {name: norm(s, f"norm{number}") for number, name in enumerate(norms, 1)}

    return stacked(layer, layers)


def torch_stack(state: State, heads: int, layers: int, fill: float = 7.0) -> Tree:
    """Map a torch.nn.TransformerEncoder between two tables and an untied head.

    It may have a norm at its end.
    """
    tables = {"tokens": rows(state["tokens.weight"], fill), "positions": state["positions.weight"]}
    final_norm = {"final_norm": norm(state, "stack.norm")} if "stack.norm.weight" in state else {}
    return {
        "embedding": tables,
        "blocks": torch_layers(part(state, "stack."), heads, layers),
        "head": {
            "kernel": rows(state["head.weight"], fill).T,
            "bias": padded(state["head.bias"], fill),
        },
        **final_norm,
    }
