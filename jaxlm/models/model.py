"""The interface of all families: pure functions over a plain nested dict of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax

from jaxlm.config import AdapterConfig, ModelConfig
from jaxlm.losses import PreferenceLoss
from jaxlm.nn.adapter import is_adapter
from jaxlm.nn.cache import Cache
from jaxlm.parameter_names import drop
from jaxlm.quantization import QuantizedWeight, Rounding
from jaxlm.types import Array, Batch, Tree, is_axes


def no_decoder(*_: Any) -> NoReturn:
    """Raise ValueError: the model writes no text."""
    raise ValueError("encoders and classifiers read whole texts: they have no cache")


class Model(NamedTuple):
    """Pure functions of (params, inputs), deterministic unless a dropout key is given."""

    config: ModelConfig

    # key -> params
    init: Callable[[jax.Array], Tree]

    # The logical axes of each parameter.
    axes: Tree

    # (params, batch, dropout_key=None) -> [B, L, D], or [B, M, D] at the positions `batch.predict`.
    # A classifier of texts: [B, 1, D].
    features: Callable[..., Array]

    # params -> the whole weights that `scores` reads; called outside a loop over tiles.
    head_weights: Callable[[Tree], Tree]

    # (head_weights, [..., D]) -> float32 [..., padded V], padded columns far below all others; or
    # [..., C] of a classifier.
    scores: Callable[[Tree, Array], Array]

    # Batch or its shapes -> the kernel of each kind of attention, and why.
    kernels: Callable[[Batch], dict[str, tuple[str, str]]]

    # (rows, columns) -> an empty cache; columns are the L of all calls of `decode` together.
    cache: Callable[[int, int], Cache] = no_decoder

    # (params, cache, batch) -> (float32 logits [B, L or M, vocabulary_size], cache): reads the next
    # L tokens of each row, of which `batch.lengths` are real. The first call of an encoder-decoder
    # has the source too. The blocks of params may be a list of layers.
    decode: Callable[[Tree, Cache, Batch], tuple[Array, Cache]] = no_decoder

    # ELECTRA: the model that fills hidden tokens, over the same params. Then the scores of this one
    # are [..., 1]: the logit that a token was replaced.
    generator: "Model | None" = None

    # How the steps of training and evaluation round the parameters that they are given; None: not.
    rounding: Rounding | None = None

    # The adapters among the parameters; with rank 0 there are none.
    adapter: AdapterConfig = AdapterConfig()

    # The loss of steps on pairs of answers; None: that of tokens.
    preference: PreferenceLoss | None = None

    def head(self, params: Tree, x: Array) -> Array:
        """Return float32 logits [..., vocabulary_size], or [..., C], of features [..., D]."""
        return self.scores(self.head_weights(params), x)[..., : self.config.outputs]

    def apply(self, params: Tree, batch: Batch) -> Array:
        """Return float32 logits [B, L or M, vocabulary_size].

        `batch.targets[b, i]` is what `logits[b, i]` predicts. A classifier returns the scores of
        its labels: [B, C] for texts, [B, L, C] for tokens.
        """
        logits = self.head(params, self.features(params, batch))
        return logits[:, 0] if self.config.classifier.kind == "sequence" else logits

    def parameter_count(self) -> int:
        """Return the parameters as published tables count them.

        Rows that only pad the vocabulary are left out, and so is the norm before the first
        layer's attention in each stack where the model does without it. Of ELECTRA the
        discriminator is counted; what its generator adds is `generator_parameter_count`. Adapters
        are left out: `adapter_parameter_count` counts them.
        """
        shapes = drop(jax.eval_shape(self.init, jax.random.key(0)), is_adapter)
        axes = drop(self.axes, is_adapter)
        if "discriminator" in axes:
            shapes, axes = shapes["discriminator"], axes["discriminator"]
        sizes = jax.tree.map(self._logical_size, axes, shapes, is_leaf=is_axes)
        count = sum(jax.tree.leaves(sizes))
        if not self.config.first_norm:
            stacks = [shapes] if "blocks" in shapes else shapes.values()
            norms = [stack["blocks"]["attention_norm"] for stack in stacks]
            count -= sum(leaf.shape[1] for leaf in jax.tree.leaves(norms))
        return count

    def generator_parameter_count(self) -> int:
        """Return the parameters of ELECTRA's generator, without the embeddings that it shares."""
        shapes = jax.eval_shape(self.init, jax.random.key(0)).get("generator", {})
        axes = self.axes.get("generator", {})
        sizes = jax.tree.map(self._logical_size, axes, shapes, is_leaf=is_axes)
        return sum(jax.tree.leaves(sizes))

    def adapter_parameter_count(self) -> int:
        """Return the parameters of all adapters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(drop(shapes, lambda n: not is_adapter(n))))

    def _logical_size(self, names: tuple, leaf: Any) -> int:
        leaf, size = leaf.values if isinstance(leaf, QuantizedWeight) else leaf, 1
        for name, dimension in zip(names, leaf.shape, strict=True):
            size *= self.config.vocabulary_size if name == "vocabulary" else dimension
        return size
