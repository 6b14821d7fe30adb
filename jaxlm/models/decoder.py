"""Causal decoders: GPT, Llama, BLOOM and their kin, by config alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm import config
from jaxlm.models.model import Model
from jaxlm.models.stack import init_stack, run_stack, stack_axes
from jaxlm.nn.attention import Context
from jaxlm.nn.block import Block
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.dropout import site_key
from jaxlm.nn.embedding import Embedding, Head, padded_vocabulary
from jaxlm.nn.execution import Execution
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import init_params, param_axes
from jaxlm.nn.positions import alibi_bias, rotation
from jaxlm.types import Array, Batch, Tree


def modules(model: config.Model, precision: config.Precision, execution: Execution) -> dict[str, nn.Module]:
    """The parts of the decoder, by the name of their parameters."""
    dtype, compute = jnp.dtype(precision.params), jnp.dtype(precision.compute)
    parts: dict[str, nn.Module] = {
        "embedding": Embedding(model, execution, dtype, compute),
        "blocks": Block(model, execution, dtype),
        "head": Head(model, execution, dtype),
    }
    if model.norm_placement == "pre":  # post-norm blocks end in a norm already
        parts["final_norm"] = Norm(model, dtype)
    return parts


def inputs(model: config.Model) -> dict[str, Callable[[], tuple]]:
    """Smallest arguments of each part's call, for its shapes."""

    def ids():
        return jnp.zeros((1, 1), jnp.int32)

    def x():
        return jnp.zeros((1, 1, model.width))

    def table():
        return jnp.zeros((padded_vocabulary(model.vocabulary_size), model.width)) if model.tied_head else None

    return {
        "embedding": lambda: (ids(), ids()),
        "blocks": lambda: (x(), Context(Mask(causal=True))),
        "final_norm": lambda: (x(),),
        "head": lambda: (x(), table()),
    }


def build(model: config.Model, precision: config.Precision, execution: Execution) -> Model:
    """The decoder of `model` as pure functions."""
    parts, plain, arguments = modules(model, precision, execution), modules(model, precision, Execution()), inputs(model)
    owners = [name for name in parts if name != "head" or not model.tied_head or model.head_bias]
    axes = {name: (stack_axes if name == "blocks" else param_axes)(plain[name], arguments[name]) for name in owners}

    def init(key: jax.Array) -> Tree:
        params = {}
        for name, part_key in zip(owners, jax.random.split(key, len(owners)), strict=True):
            if name == "blocks":
                params[name] = init_stack(plain[name], model.layers, part_key, arguments[name])
            else:
                params[name] = init_params(plain[name], part_key, arguments[name])
        return params

    def use(params: Tree, name: str) -> Tree:
        """A part's weights, whole; none for a head that owns none."""
        return execution.gather(params[name], axes[name]) if name in axes else {}

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        length = batch.tokens.shape[1]
        if model.positions == "learned" and batch.positions is None and length > model.context_length:
            # Indexing a table past its end gives its last row without a word.
            raise ValueError(f"{length} tokens, but the table of positions has {model.context_length} rows (model.context_length)")
        positions_BL = jnp.arange(length)[None] if batch.positions is None else batch.positions
        context = Context(
            Mask(True, model.sliding_window, batch.lengths, batch.segments, batch.prefix_lengths),
            rotation(model, positions_BL) if model.positions == "rotary" else None,
            alibi_bias(model.heads, length, length) if model.positions == "alibi" else None,
        )

        def layer(weights: Tree, x_BLD: Array, key: Array | None) -> Array:
            return parts["blocks"].apply({"params": weights}, x_BLD, context, key)

        key = site_key(dropout_key, model.layers)  # the layers use sites 0 to layers - 1
        x_BLD = parts["embedding"].apply({"params": use(params, "embedding")}, batch.tokens, positions_BL, key)
        x_BLD = run_stack(layer, params["blocks"], axes["blocks"], x_BLD, dropout_key, execution)
        return parts["final_norm"].apply({"params": use(params, "final_norm")}, x_BLD) if "final_norm" in parts else x_BLD

    def head_weights(params: Tree) -> Tree:
        table = use(params, "embedding")["tokens"] if model.tied_head else None
        return {"own": use(params, "head"), "table": table}

    def scores(weights: Tree, x: Array) -> Array:
        return parts["head"].apply({"params": weights["own"]}, x, weights["table"])

    return Model(model, init, axes, features, head_weights, scores)
