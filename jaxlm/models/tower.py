"""What every family is made of: an embedding, a stack of blocks, the norm behind it and a head, as pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm import config
from jaxlm.models.stack import init_stack, run_stack, stack_axes
from jaxlm.nn.attention import Context, Memory
from jaxlm.nn.block import Block
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.dropout import site_key
from jaxlm.nn.embedding import Embedding, Head, padded_vocabulary
from jaxlm.nn.execution import Execution
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import init_params, param_axes
from jaxlm.nn.positions import RelativeBias, Rotation, alibi_bias, rotation
from jaxlm.types import Array, Tree


class Part(NamedTuple):
    """Layers that share a name in the parameters."""

    module: nn.Module  # as it runs
    plain: nn.Module  # the same on one device, for shapes and initial values
    inputs: Callable[[], tuple]  # smallest arguments of its call


class Tower(NamedTuple):
    """One stack with its ends. Its parameters are {part: weights}; a part without weights of its own is left out."""

    model: config.Model
    execution: Execution
    parts: dict[str, Part]
    axes: Tree  # of the parameters

    def init(self, key: Array) -> Tree:
        """Fresh parameters."""
        params = {}
        for name, part_key in zip(self.axes, jax.random.split(key, len(self.axes)), strict=True):
            part = self.parts[name]
            if name == "blocks":
                params[name] = init_stack(part.plain, self.model.layers, part_key, part.inputs)
            else:
                params[name] = init_params(part.plain, part_key, part.inputs)
        return params

    def weights(self, params: Tree, name: str) -> Tree:
        """A part's weights, whole."""
        return self.execution.gather(params[name], self.axes[name]) if name in self.axes else {}

    def apply(self, params: Tree, name: str, *arguments) -> Array:
        return self.parts[name].module.apply({"params": self.weights(params, name)}, *arguments)  # type: ignore[return-value]

    def run(
        self,
        params: Tree,
        tokens_BL: Array,
        mask: Mask,
        *,
        positions: Array | None = None,
        types: Array | None = None,
        table: Array | None = None,
        memory: Memory | None = None,
        predict: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """[B, L, D], or [B, M, D] at the positions `predict`. `table` is the token table of a tower that has none."""
        model, length = self.model, tokens_BL.shape[1]
        if model.positions == "learned" and positions is None and length > model.context_length:
            # Indexing a table past its end gives its last row without a word.
            raise ValueError(f"{length} tokens, but the table of positions has {model.context_length} rows (model.context_length)")
        positions_BL = jnp.arange(length)[None] if positions is None else positions
        types_BL = jnp.zeros((1, 1), jnp.int32) if types is None else types
        angles, bias = self.positional(params, positions_BL, length)
        context = Context(mask, angles, bias, memory)

        def layer(weights: Tree, x_BLD: Array, key: Array | None) -> Array:
            return self.parts["blocks"].module.apply({"params": weights}, x_BLD, context, key)  # type: ignore[return-value]

        key = site_key(dropout_key, model.layers)  # the layers use sites 0 to layers - 1
        x_BLD = self.apply(params, "embedding", tokens_BL, positions_BL, types_BL, key, table)
        x_BLD = run_stack(layer, params["blocks"], self.axes["blocks"], x_BLD, dropout_key, self.execution)
        if predict is not None:
            x_BLD = jax.vmap(lambda x_LD, at_M: x_LD[at_M])(x_BLD, predict)
        return self.apply(params, "final_norm", x_BLD) if "final_norm" in self.parts else x_BLD

    def positional(self, params: Tree, positions_BL: Array, length: int) -> tuple[Rotation | None, Array | None]:
        """(rotation, bias) of the model's kind of positions."""
        kind = self.model.positions
        if kind == "rotary":
            return rotation(self.model, positions_BL), None
        if kind == "alibi":
            return None, alibi_bias(self.model.heads, length, length)
        return None, self.apply(params, "relative_bias", length, length) if kind == "relative" else None

    def token_table(self, params: Tree) -> Array:
        """[padded V, D], whole."""
        return self.weights(params, "embedding")["tokens"]

    def head_weights(self, params: Tree, table: Array | None = None) -> Tree:
        """What `scores` reads. `table` is the token table of a tower that has none."""
        if not self.model.tied_head:
            table = None
        elif table is None:
            table = self.token_table(params)
        return {"own": self.weights(params, "head"), "table": table}

    def scores(self, weights: Tree, x: Array) -> Array:
        """[..., D] -> float32 [..., padded V]."""
        return self.parts["head"].module.apply({"params": weights["own"]}, x, weights["table"])  # type: ignore[return-value]


def build(
    model: config.Model,
    precision: config.Precision,
    execution: Execution,
    *,
    causal: bool,
    cross: bool = False,
    head: bool = True,
    own_table: bool = True,
) -> Tower:
    """The tower of `model`: `causal` if a position sees only those before it, `cross` if its blocks read an encoder too."""
    dtype, compute = jnp.dtype(precision.params), jnp.dtype(precision.compute)

    def x() -> Array:
        return jnp.zeros((1, 1, model.width))

    def table() -> Array:
        return jnp.zeros((padded_vocabulary(model.vocabulary_size), model.width))

    def embedded() -> tuple:
        ids = jnp.zeros((1, 1), jnp.int32)
        return ids, ids, ids, None, None if own_table else table()

    def part(make: Callable[[Execution], nn.Module], inputs: Callable[[], tuple]) -> Part:
        return Part(make(execution), make(Execution()), inputs)

    parts = {
        "embedding": part(lambda e: Embedding(model, e, dtype, compute), embedded),
        "blocks": part(lambda e: Block(model, e, dtype, cross), lambda: (x(), Context(Mask(causal), memory=Memory(x(), Mask())))),
    }
    if model.positions == "relative":
        parts["relative_bias"] = part(lambda e: RelativeBias(model, not causal, e, dtype), lambda: (1, 1))
    if head:
        parts["head"] = part(lambda e: Head(model, e, dtype), lambda: (x(), table() if model.tied_head else None))
    if model.norm_placement == "pre":  # post-norm blocks end in a norm already
        parts["final_norm"] = part(lambda e: Norm(model, dtype), lambda: (x(),))
    axes = {name: (stack_axes if name == "blocks" else param_axes)(part.plain, part.inputs) for name, part in parts.items()}
    return Tower(model, execution, parts, {name: names for name, names in axes.items() if names})
