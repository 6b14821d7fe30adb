"""Causal decoders: GPT, Llama, BLOOM and their kin, by config alone."""

from jaxlm import config
from jaxlm.models import transformer
from jaxlm.models.model import Model
from jaxlm.nn.cache import Cache, empty_cache
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(
    model: config.ModelConfig, precision: config.PrecisionConfig, execution: Execution
) -> Model:
    """The decoder of `model` as pure functions."""
    decoder = transformer.build_transformer(model, precision, execution, causal=True)

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        return decoder.run(
            params,
            batch.tokens,
            Mask(
                True, None, batch.lengths, batch.lengths, batch.segments, None, batch.prefix_lengths
            ),
            positions=batch.positions,
            predict=batch.predict,
            dropout_key=dropout_key,
        )

    def cache(batch_size: int, length: int) -> Cache:
        return empty_cache(model, batch_size, length, precision.compute)

    def decode(params: Tree, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
        x, cache = decoder.read(params, cache, batch.tokens, batch.lengths, predict=batch.predict)
        return decoder.logits(params, x), cache

    def kernels(batch: Batch) -> dict[str, tuple[str, str]]:
        mask = Mask(True, segments=batch.segments, prefix_lengths=batch.prefix_lengths)
        return decoder.kernels(precision.compute, batch.tokens.shape[1], mask)

    return Model(
        model,
        decoder.init,
        decoder.axes,
        features,
        decoder.head_weights,
        decoder.scores,
        kernels,
        cache,
        decode,
    )
