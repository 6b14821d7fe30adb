"""The transformer of all families, as pure functions.

An embedding, a stack of blocks, the norm after it, and a head.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models.components import Component, component_axes, label_components
from jaxlm.models.stack import init_stack, layer_axes, run_stack, unstack
from jaxlm.nn.adapter import adapted
from jaxlm.nn.attention import AttentionInputs, EncoderOutput, attention_kernel
from jaxlm.nn.block import Block
from jaxlm.nn.cache import Cache, empty_cache
from jaxlm.nn.classifier import pool
from jaxlm.nn.dropout import dropout, site_key
from jaxlm.nn.embedding import Embedding, Head, padded_vocabulary
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask
from jaxlm.nn.matmul import MATMULS
from jaxlm.nn.norms import Norm
from jaxlm.nn.parameters import init_params
from jaxlm.nn.positions import RelativeBias, alibi_bias, rotation_at
from jaxlm.types import Array, Batch, Tree


class Transformer(NamedTuple):
    """One stack of blocks with its ends.

    The parameters are {component: weights}. A component without weights has no entry.
    """

    config: ModelConfig
    compute: str  # dtype of the activations
    execution: Execution
    causal: bool  # a position sees only those before it
    components: dict[str, Component]
    axes: Tree  # logical axes of the parameters

    # Parameters

    def init(self, key: Array) -> Tree:
        """Return fresh parameters."""
        params = {}
        keys = jax.random.split(key, len(self.axes))
        for name, component_key in zip(self.axes, keys, strict=True):
            _, template, inputs = self.components[name]
            if name == "blocks":
                params[name] = init_stack(template, self.config.layers, component_key, inputs)
            else:
                params[name] = init_params(template, component_key, inputs)
        return params

    def weights(self, params: Tree, name: str) -> Tree:
        """Return the whole weights of a component, {} where it has none."""
        return self.execution.gather(params[name], self.axes[name]) if name in self.axes else {}

    def token_table(self, params: Tree) -> Array:
        """Return the token table [padded V, D], whole."""
        table = {"tokens": params["embedding"]["tokens"]}
        return self.execution.gather(table, {"tokens": self.axes["embedding"]["tokens"]})["tokens"]

    def apply(self, params: Tree, name: str, *inputs) -> Array:
        """Apply a component with its weights."""
        variables = {"params": self.weights(params, name)}
        return self.components[name].module.apply(variables, *inputs)  # type: ignore[return-value]

    # Whole sequences

    def features(
        self,
        params: Tree,
        batch: Batch,
        dropout_key: Array | None = None,
        *,
        table: Array | None = None,
        embedded: Array | None = None,
        encoder_output: EncoderOutput | None = None,
    ) -> Array:
        """Return [B, L, D], or [B, M, D] at the positions `batch.predict`.

        Those of a classifier are what it computes scores from: [B, 1, D] for texts. `table` is the
        token table of a transformer that has none of its own, and `embedded` are the
        tokens [B, L, D] of one that has no embedding. `encoder_output` is what cross attention
        reads.
        """
        length = batch.tokens.shape[1]
        self.check_length(batch)
        positions_BL = token_positions(batch)
        bias = self.position_bias(params, length, length)
        inputs = self.attention_inputs(self.mask(batch), positions_BL, bias, encoder_output)

        x_BLD = embedded
        if x_BLD is None:
            x_BLD = self.embed(params, batch, positions_BL, table, dropout_key)
        block = self.components["blocks"].module
        x_BLD = run_stack(
            block,
            inputs,
            params["blocks"],
            self.axes["blocks"],
            x_BLD,
            dropout_key,
            self.execution,
            adapts=bool(block.adapter.rank),
        )
        if "classifier" in self.components:
            return self.label_features(params, x_BLD, batch.lengths, dropout_key)
        return self.final_norm(params, x_BLD, batch.predict)

    def check_length(self, batch: Batch) -> None:
        """Raise ValueError where the table of learned positions is too short for the batch.

        Indexing a table past its end gives its last row without an error.
        """
        length, rows = batch.tokens.shape[1], self.config.context_length
        if self.config.positions == "learned" and batch.positions is None and length > rows:
            raise ValueError(
                f"{length} tokens, but the table of positions has {rows} rows"
                " (model.context_length)"
            )

    def mask(self, batch: Batch) -> Mask:
        """Return which positions of the batch see each other."""
        return Mask(
            causal=self.causal,
            lengths=batch.lengths,
            query_lengths=batch.lengths,
            segments=batch.segments,
            prefix_lengths=batch.prefix_lengths,
        )

    def attention_inputs(
        self,
        mask: Mask,
        positions_BL: Array,
        bias: Array | None,
        encoder_output: EncoderOutput | None,
    ) -> list[AttentionInputs]:
        """Return what attention reads in each layer of a period: layers differ by their window."""
        config, rotation = self.config, None
        inputs = []
        for window in config.windows:
            if config.positions == "rotary":
                sliding_theta = config.rotary_theta_sliding if window is not None else None
                theta = sliding_theta or config.rotary_theta
                rotation = rotation_at(config, positions_BL, theta)

            window_mask = mask._replace(window=window)
            inputs.append(AttentionInputs(window_mask, rotation, bias, encoder_output))
        return inputs

    def position_bias(
        self, params: Tree, queries: int, keys: int, positions: tuple[Array, Array] | None = None
    ) -> Array | None:
        """Return what positions add to the scores, float32 [1 or B, H, L, S], or None.

        `positions` are those of queries [B, L] and of keys [B, S]; None: both count from 0.
        """
        if self.config.positions == "relative":
            return self.apply(params, "relative_bias", queries, keys, positions)
        if self.config.positions == "alibi":
            positions = positions or (jnp.arange(queries)[None], jnp.arange(keys)[None])
            bias = alibi_bias(self.config.heads, *positions)
            axes = ("batch", "heads_act", "length", "length")
            # It has no gradient: without the stop, kernels would compute one and devices sum it.
            return jax.lax.stop_gradient(self.execution.constrain(bias, axes))
        return None

    def embed(
        self,
        params: Tree,
        batch: Batch,
        positions_BL: Array,
        table: Array | None,
        dropout_key: Array | None,
    ) -> Array:
        """Return the input of the first block, [B, L, D]."""
        types_BL = batch.token_types
        if types_BL is None:
            types_BL = jnp.zeros((1, 1), jnp.int32)
        key = site_key(dropout_key, self.config.layers)  # the layers use sites 0 to layers - 1
        return self.apply(params, "embedding", batch.tokens, positions_BL, types_BL, key, table)

    def final_norm(self, params: Tree, x_BLD: Array, predict_BM: Array | None) -> Array:
        """Return the features, at all positions or at `predict`."""
        if predict_BM is not None:
            x_BLD = jax.vmap(lambda x_LD, at_M: x_LD[at_M])(x_BLD, predict_BM)
        return self.apply(params, "final_norm", x_BLD) if "final_norm" in self.components else x_BLD

    def label_features(
        self, params: Tree, x_BLD: Array, lengths_B: Array | None, dropout_key: Array | None
    ) -> Array:
        """Return the features that a classifier computes scores from, [B, 1 or L, D]."""
        head, layers = self.config.label_head, self.config.layers
        x_BLD = pool(self.final_norm(params, x_BLD, None), lengths_B, head.pooling)

        rate = head.dropout or 0.0
        # The layers and the embedding use sites 0 to `layers`.
        first_key, second_key = site_key(dropout_key, layers + 1), site_key(dropout_key, layers + 2)
        for name in ("head", "pooler"):
            if name in self.components:
                if head.transform_dropout:
                    x_BLD = dropout(x_BLD, rate, first_key)
                x_BLD = self.apply(params, name, x_BLD)
        return dropout(x_BLD, rate, second_key)

    # Generation, chunk by chunk

    def empty_cache(self, batch_size: int, length: int) -> Cache:
        """Return a cache with room for `length` columns in each row."""
        return empty_cache(self.config, batch_size, length, self.compute)

    def decode(
        self,
        params: Tree,
        cache: Cache,
        batch: Batch,
        *,
        table: Array | None = None,
        encoder_output: EncoderOutput | None = None,
    ) -> tuple[Array, Cache]:
        """Return float32 logits [B, L or M, V] of each row's next tokens, and the cache with them.

        `batch.lengths` [B] (None: all) of the tokens are real. The blocks of `params` may be a list
        of layers.
        """
        length, columns = batch.tokens.shape[1], cache.positions_BS.shape[1]
        if length > columns:
            raise ValueError(f"{length} tokens, but the cache has room for {columns} in all")

        # The cache says where each row's tokens stand: their positions, and those of all columns.
        positions_BL = cache.filled_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
        filled = cache.advance(length, batch.lengths)
        positions = (positions_BL, filled.positions_BS)
        bias = self.position_bias(params, length, columns, positions)
        mask = Mask(causal=True, positions=positions)
        inputs = self.attention_inputs(mask, positions_BL, bias, encoder_output)

        blocks, block = params["blocks"], self.components["blocks"].module
        if not isinstance(blocks, (list, tuple)):
            blocks = unstack(blocks)
        weight_axes = layer_axes(self.axes["blocks"])

        x_BLD = self.embed(params, batch._replace(token_types=None), positions_BL, table, None)
        layers = []
        for index, weights in enumerate(blocks):
            variables = {"params": self.execution.gather(weights, weight_axes)}
            layer_inputs, layer_cache = inputs[index % len(inputs)], cache.layer(index)
            x_BLD, layer_cache = block.apply(
                variables, x_BLD, layer_inputs, None, layer_cache, index == 0
            )
            layers.append(layer_cache)

        x_BLD = self.final_norm(params, x_BLD, batch.predict)
        scores = self.scores(self.head_weights(params, table), x_BLD)
        return scores[..., : self.config.vocabulary_size], filled.with_layers(layers)

    # The head

    def head_weights(self, params: Tree, table: Array | None = None) -> Tree:
        """Return the whole weights that `scores` reads.

        `table` is the token table of a transformer that has none of its own.
        """
        if "classifier" in self.components:
            return {"own": self.weights(params, "classifier"), "table": None}
        if not self.config.tied_head:
            table = None
        elif table is None:
            table = self.token_table(params)
        return {"own": self.weights(params, "head"), "table": table}

    def scores(self, weights: Tree, x: Array) -> Array:
        """Return float32 scores [..., padded V], a classifier's [..., C], of features [..., D]."""
        is_classifier = "classifier" in self.components
        module = self.components["classifier" if is_classifier else "head"].module
        inputs = (x,) if is_classifier else (x, weights["table"])
        return module.apply({"params": weights["own"]}, *inputs)  # type: ignore[return-value]

    # What runs where

    def kernels(self, batch: Batch, name: str = "attention") -> dict[str, tuple[str, str]]:
        """Return the kernel of each kind of self attention of this stack, and why.

        `batch` has the rows of a microbatch on all devices.
        """
        windows = dict.fromkeys(self.config.windows)  # each once, in order
        (rows, length), mask = batch.tokens.shape, self.mask(batch)

        kernels = {}
        for window in windows:
            suffix = ", full" if window is None else ", sliding"
            kernels[name + suffix if len(windows) > 1 else name] = attention_kernel(
                self.config,
                self.compute,
                rows=rows,
                queries=length,
                keys=length,
                mask=mask._replace(window=window),
                execution=self.execution,
                has_bias=self.config.positions in ("relative", "alibi"),
            )
        return kernels


def token_positions(batch: Batch) -> Array:
    """Return the position of each token, int32 [B or 1, L]."""
    if batch.positions is None:
        return jnp.arange(batch.tokens.shape[1])[None]
    return batch.positions


def build_transformer(
    config: ModelConfig,
    precision: PrecisionConfig,
    execution: Execution,
    adapter: AdapterConfig,
    *,
    causal: bool,
    cross: bool = False,
    embedding: bool = True,
    head: bool = True,
    own_table: bool = True,
) -> Transformer:
    """Return the transformer of a config.

    It is `causal` if a position sees only those before it, and `cross` if its blocks read an
    encoder too.
    """
    dtype, compute = jnp.dtype(precision.params), jnp.dtype(precision.compute)

    def example_x() -> Array:
        return jnp.zeros((1, 1, config.width))

    def example_table() -> Array:
        return jnp.zeros((padded_vocabulary(config.vocabulary_size), config.token_width))

    def embedding_inputs() -> tuple:
        ids = jnp.zeros((1, 1), jnp.int32)
        return ids, ids, ids, None, None if own_table else example_table()

    def block_inputs() -> tuple:
        encoder_output = EncoderOutput(example_x(), Mask())
        return example_x(), AttentionInputs(Mask(causal=causal), encoder=encoder_output)

    def head_inputs() -> tuple:
        return example_x(), example_table() if config.tied_head else None

    def component(
        make: Callable[[Execution], nn.Module], example_inputs: Callable[[], tuple]
    ) -> Component:
        return Component(make(execution), make(Execution()), example_inputs)

    # Their order decides which random key initialises which.
    components = {}
    if embedding:
        components["embedding"] = component(
            lambda e: Embedding(config, e, dtype, compute), embedding_inputs
        )
    product = MATMULS[precision.matmul]
    if adapter.rank:
        product = adapted(product)
    components["blocks"] = component(
        lambda e: Block(config, e, dtype, cross, product, adapter), block_inputs
    )
    if config.positions == "relative":
        components["relative_bias"] = component(
            lambda e: RelativeBias(config, not causal, e, dtype), lambda: (1, 1)
        )
    if head and config.is_classifier:
        components |= label_components(config, dtype, lambda: (example_x(),))
    elif head:
        components["head"] = component(lambda e: Head(config, e, dtype), head_inputs)
    if config.norm_placement != "post":  # such blocks end in a norm already
        components["final_norm"] = component(lambda _: Norm(config, dtype), lambda: (example_x(),))

    axes = component_axes(components)
    return Transformer(config, precision.compute, execution, causal, components, axes)
