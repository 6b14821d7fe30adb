"""Encoder-decoders: the original Transformer, T5, BART and their kin, by config alone."""

import jax

from jaxlm import config
from jaxlm.models import tower
from jaxlm.models.model import Model
from jaxlm.nn.attention import Memory, kernel
from jaxlm.nn.cache import Cache, empty
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.dropout import site_key
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(model: config.Model, precision: config.Precision, execution: Execution) -> Model:
    """The encoder-decoder of `model` as pure functions. A shared token table is the encoder's."""
    encoder = tower.build(model.encoder, precision, execution, causal=False, head=False)
    decoder = tower.build(model, precision, execution, causal=True, cross=True, own_table=not model.shared_embedding)

    def init(key: Array) -> Tree:
        encoder_key, decoder_key = jax.random.split(key)
        return {"encoder": encoder.init(encoder_key), "decoder": decoder.init(decoder_key)}

    def shared_table(params: Tree) -> Array | None:
        return encoder.token_table(params["encoder"]) if model.shared_embedding else None

    def encode(params: Tree, batch: Batch, dropout_key: Array | None) -> Memory:
        lengths, segments = batch.source_lengths, batch.source_segments
        states_BSD = encoder.run(
            params["encoder"],
            batch.source,
            Mask(lengths=lengths, query_lengths=lengths, segments=segments),
            positions=batch.source_positions,
            dropout_key=dropout_key,
        )
        return Memory(states_BSD, Mask(lengths=lengths, query_lengths=batch.lengths, segments=batch.segments, key_segments=segments))

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        if batch.source is None:
            raise ValueError("an encoder-decoder reads Batch.source; Batch.tokens is what its decoder reads")
        return decoder.run(
            params["decoder"],
            batch.tokens,
            Mask(causal=True, lengths=batch.lengths, query_lengths=batch.lengths, segments=batch.segments),
            positions=batch.positions,
            table=shared_table(params),
            memory=encode(params, batch, site_key(dropout_key, 0)),
            predict=batch.predict,
            dropout_key=site_key(dropout_key, 1),
        )

    def head_weights(params: Tree) -> Tree:
        return decoder.head_weights(params["decoder"], shared_table(params) if model.tied_head else None)

    def cache(batch_size: int, length: int) -> Cache:
        return empty(model, batch_size, length, precision.compute)

    def decode(params: Tree, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
        if batch.source is not None:
            memory = encode(params, batch, None)
            cache = cache._replace(memory=None, memory_lengths_B=batch.source_lengths)
        elif cache.memory is not None:
            memory = Memory(None, Mask(lengths=cache.memory_lengths_B))
        else:
            raise ValueError("the first call of decode reads Batch.source")
        table = shared_table(params)
        x, cache = decoder.read(params["decoder"], cache, batch.tokens, batch.lengths, table=table, memory=memory, predict=batch.predict)
        return decoder.logits(params["decoder"], x, table if model.tied_head else None), cache

    def kernels(batch: Batch) -> dict[str, tuple[str, str]]:
        length, source = batch.tokens.shape[1], batch.source.shape[1]  # type: ignore[union-attr]
        cross = kernel(model, precision.compute, length, source, Mask(segments=batch.segments), execution)
        return (
            encoder.kernels(precision.compute, source, Mask(segments=batch.source_segments), "encoder attention")
            | decoder.kernels(precision.compute, length, Mask(causal=True, segments=batch.segments), "decoder attention")
            | {"cross attention": cross}
        )

    axes = {"encoder": encoder.axes, "decoder": decoder.axes}
    return Model(model, init, axes, features, head_weights, decoder.scores, kernels, cache, decode)
