"""What every family is made of: an embedding, a stack of blocks, the norm behind it and a head, as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm import config
from jaxlm.models.stack import Layer, init_stack, run_stack, stack_axes, unstack
from jaxlm.nn.attention import Context, EncoderOutput, attention_kernel
from jaxlm.nn.block import Block
from jaxlm.nn.cache import Cache, LayerCache
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.dropout import site_key
from jaxlm.nn.embedding import Embedding, Head, padded_vocabulary
from jaxlm.nn.execution import Execution
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import init_params, param_axes
from jaxlm.nn.positions import RelativeBias, alibi_bias, rotation
from jaxlm.types import Array, Tree, is_axes


class Part(NamedTuple):
    """Layers that share a name in the parameters."""

    module: nn.Module  # as it runs
    plain: nn.Module  # the same on one device, for shapes and initial values
    inputs: Callable[[], tuple]  # smallest arguments of its call


class Transformer(NamedTuple):
    """One stack with its ends. Its parameters are {part: weights}; a part without weights of its own is left out."""

    config: config.ModelConfig
    execution: Execution
    parts: dict[str, Part]
    axes: Tree  # of the parameters

    def init(self, key: Array) -> Tree:
        """Fresh parameters."""
        params = {}
        for name, part_key in zip(self.axes, jax.random.split(key, len(self.axes)), strict=True):
            part = self.parts[name]
            if name == "blocks":
                params[name] = init_stack(part.plain, self.config.layers, part_key, part.inputs)
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
        memory: EncoderOutput | None = None,
        predict: Array | None = None,
        dropout_key: Array | None = None,
    ) -> Array:
        """[B, L, D], or [B, M, D] at the positions `predict`. `table` is the token table of a tower that has none."""
        model, length = self.config, tokens_BL.shape[1]
        if model.positions == "learned" and positions is None and length > model.context_length:
            # Indexing a table past its end gives its last row without a word.
            raise ValueError(
                f"{length} tokens, but the table of positions has {model.context_length} rows (model.context_length)"
            )
        positions_BL = jnp.arange(length)[None] if positions is None else positions
        bias = self.bias(params, length, length)
        kinds = [self.layer(mask, window, positions_BL, bias, memory) for window in model.windows]
        x_BLD = self.embed(params, tokens_BL, positions_BL, types, table, dropout_key)
        x_BLD = run_stack(
            kinds, params["blocks"], self.axes["blocks"], x_BLD, dropout_key, self.execution
        )
        return self.finish(params, x_BLD, predict)

    def read(
        self,
        params: Tree,
        cache: Cache,
        tokens_BL: Array,
        lengths: Array | None,
        *,
        table: Array | None = None,
        memory: EncoderOutput | None = None,
        predict: Array | None = None,
    ) -> tuple[Array, Cache]:
        """As `run` on the next tokens of each row, of which `lengths` [B] (None: all) are real, with the rest in the cache.

        The blocks of `params` may be a list of layers.
        """
        model, length, columns = self.config, tokens_BL.shape[1], cache.positions_BS.shape[1]
        if length > columns:
            raise ValueError(f"{length} tokens, but the cache has room for {columns} in all")
        positions_BL = cache.filled_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        column, cache = cache.columns, cache.advanced(length, lengths)
        positions = (positions_BL, cache.positions_BS)
        bias = self.bias(params, length, columns, positions)
        mask = Mask(causal=True, positions=positions)
        kinds = [self.context(mask, window, positions_BL, bias, memory) for window in model.windows]
        layer_axes = jax.tree.map(lambda names: names[1:], self.axes["blocks"], is_leaf=is_axes)
        blocks = (
            params["blocks"]
            if isinstance(params["blocks"], (list, tuple))
            else unstack(params["blocks"])
        )
        x_BLD = self.embed(params, tokens_BL, positions_BL, None, table, None)
        read = []
        for index, (weights, own) in enumerate(zip(blocks, cache.layers, strict=True)):
            past = LayerCache(own, column, None if cache.memory is None else cache.memory[index])
            weights = {"params": self.execution.gather(weights, layer_axes)}
            x_BLD, kept = self.parts["blocks"].module.apply(
                weights, x_BLD, kinds[index % len(kinds)], None, past, index == 0
            )
            read.append(kept)
        layers, memories = zip(*read, strict=True)
        cache = cache._replace(layers=layers, memory=None if memory is None else memories)
        return self.finish(params, x_BLD, predict), cache

    def embed(
        self,
        params: Tree,
        tokens_BL: Array,
        positions_BL: Array,
        types: Array | None,
        table: Array | None,
        dropout_key: Array | None,
    ) -> Array:
        types_BL = jnp.zeros((1, 1), jnp.int32) if types is None else types
        key = site_key(dropout_key, self.config.layers)  # the layers use sites 0 to layers - 1
        return self.apply(params, "embedding", tokens_BL, positions_BL, types_BL, key, table)

    def finish(self, params: Tree, x_BLD: Array, predict: Array | None) -> Array:
        """What leaves the tower, at all positions or at those of `predict` [B, M]."""
        if predict is not None:
            x_BLD = jax.vmap(lambda x_LD, at_M: x_LD[at_M])(x_BLD, predict)
        return self.apply(params, "final_norm", x_BLD) if "final_norm" in self.parts else x_BLD

    def layer(
        self,
        mask: Mask,
        window: int | None,
        positions_BL: Array,
        bias: Array | None,
        memory: EncoderOutput | None,
    ) -> Layer:
        """A layer whose attention has this window, as a function of its weights."""
        context = self.context(mask, window, positions_BL, bias, memory)

        def apply(weights: Tree, x_BLD: Array, key: Array | None, index: Any) -> Array:
            x_BLD, _ = self.parts["blocks"].module.apply(
                {"params": weights}, x_BLD, context, key, None, index == 0
            )
            return x_BLD

        return apply

    def context(
        self,
        mask: Mask,
        window: int | None,
        positions_BL: Array,
        bias: Array | None,
        memory: EncoderOutput | None,
    ) -> Context:
        """What layers with this window share."""
        model = self.config
        theta = (
            model.rotary_theta_sliding
            if window is not None and model.rotary_theta_sliding
            else model.rotary_theta
        )
        angles = rotation(model, positions_BL, theta) if model.positions == "rotary" else None
        return Context(mask._replace(window=window), angles, bias, memory)

    def bias(
        self, params: Tree, queries: int, keys: int, positions: tuple[Array, Array] | None = None
    ) -> Array | None:
        """What the kind of positions adds to the scores, [1 or B, H, L, S]; without `positions` both count from 0."""
        if self.config.positions == "relative":
            return self.apply(params, "relative_bias", queries, keys, positions)
        if self.config.positions == "alibi":
            return alibi_bias(
                self.config.heads,
                *(positions or (jnp.arange(queries)[None], jnp.arange(keys)[None])),
            )
        return None

    def token_table(self, params: Tree) -> Array:
        """[padded V, D], whole."""
        return self.weights(params, "embedding")["tokens"]

    def head_weights(self, params: Tree, table: Array | None = None) -> Tree:
        """What `scores` reads. `table` is the token table of a tower that has none."""
        if not self.config.tied_head:
            table = None
        elif table is None:
            table = self.token_table(params)
        return {"own": self.weights(params, "head"), "table": table}

    def logits(self, params: Tree, x: Array, table: Array | None = None) -> Array:
        """[..., D] -> float32 [..., V]."""
        return self.scores(self.head_weights(params, table), x)[..., : self.config.vocabulary_size]

    def scores(self, weights: Tree, x: Array) -> Array:
        """[..., D] -> float32 [..., padded V]."""
        return self.parts["head"].module.apply({"params": weights["own"]}, x, weights["table"])  # type: ignore[return-value]

    def kernels(
        self, compute: str, length: int, mask: Mask, name: str = "attention"
    ) -> dict[str, tuple[str, str]]:
        """The kernel of each kind of attention of this stack over itself, and why."""
        windows = dict.fromkeys(self.config.windows)
        names = {
            window: name
            if len(windows) == 1
            else f"{name}, {'full' if window is None else 'sliding'}"
            for window in windows
        }
        return {
            names[window]: attention_kernel(
                self.config, compute, length, length, mask._replace(window=window), self.execution
            )
            for window in windows
        }


def build_transformer(
    model: config.ModelConfig,
    precision: config.PrecisionConfig,
    execution: Execution,
    *,
    causal: bool,
    cross: bool = False,
    head: bool = True,
    own_table: bool = True,
) -> Transformer:
    """The tower of `model`: `causal` if a position sees only those before it, `cross` if its blocks read an encoder too."""
    dtype, compute = jnp.dtype(precision.params), jnp.dtype(precision.compute)

    def x() -> Array:
        return jnp.zeros((1, 1, model.width))

    def table() -> Array:
        return jnp.zeros((padded_vocabulary(model.vocabulary_size), model.token_width))

    def embedded() -> tuple:
        ids = jnp.zeros((1, 1), jnp.int32)
        return ids, ids, ids, None, None if own_table else table()

    def part(make: Callable[[Execution], nn.Module], inputs: Callable[[], tuple]) -> Part:
        return Part(make(execution), make(Execution()), inputs)

    parts = {
        "embedding": part(lambda e: Embedding(model, e, dtype, compute), embedded),
        "blocks": part(
            lambda e: Block(model, e, dtype, cross),
            lambda: (x(), Context(Mask(causal), encoder=EncoderOutput(x(), Mask()))),
        ),
    }
    if model.positions == "relative":
        parts["relative_bias"] = part(
            lambda e: RelativeBias(model, not causal, e, dtype), lambda: (1, 1)
        )
    if head:
        parts["head"] = part(
            lambda e: Head(model, e, dtype), lambda: (x(), table() if model.tied_head else None)
        )
    if model.norm_placement != "post":  # such blocks end in a norm already
        parts["final_norm"] = part(lambda e: Norm(model, dtype), lambda: (x(),))
    axes = {
        name: (stack_axes if name == "blocks" else param_axes)(part.plain, part.inputs)
        for name, part in parts.items()
    }
    return Transformer(
        model, execution, parts, {name: names for name, names in axes.items() if names}
    )
