"""Encoder-decoders: the original Transformer, T5, BART and their kin, by config alone."""

from typing import NamedTuple

import jax

from jaxlm import config
from jaxlm.models import transformer
from jaxlm.models.model import Model
from jaxlm.models.transformer import Transformer
from jaxlm.nn.attention import EncoderOutput, attention_kernel
from jaxlm.nn.cache import Cache, empty_cache
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.dropout import site_key
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(
    model: config.ModelConfig, precision: config.PrecisionConfig, execution: Execution
) -> Model:
    """The encoder-decoder of `model` as pure functions. A shared token table is the encoder's."""
    encoder = transformer.build_transformer(
        model.encoder, precision, execution, causal=False, head=False
    )
    decoder = transformer.build_transformer(
        model, precision, execution, causal=True, cross=True, own_table=not model.shared_embedding
    )
    both = Transformers(model, precision, execution, encoder, decoder)
    axes = {"encoder": encoder.axes, "decoder": decoder.axes}
    return Model(
        model,
        both.init,
        axes,
        both.features,
        both.head_weights,
        decoder.scores,
        both.kernels,
        cache=both.cache,
        decode=both.decode,
    )


class Transformers(NamedTuple):
    """The two stacks and what passes between them."""

    model: config.ModelConfig
    precision: config.PrecisionConfig
    execution: Execution
    encoder: Transformer
    decoder: Transformer

    def init(self, key: Array) -> Tree:
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": self.encoder.init(encoder_key),
            "decoder": self.decoder.init(decoder_key),
        }

    def shared_table(self, params: Tree) -> Array | None:
        return self.encoder.token_table(params["encoder"]) if self.model.shared_embedding else None

    def head_weights(self, params: Tree) -> Tree:
        return self.decoder.head_weights(
            params["decoder"], self.shared_table(params) if self.model.tied_head else None
        )

    def encode(self, params: Tree, batch: Batch, dropout_key: Array | None) -> EncoderOutput:
        lengths, segments = batch.source_lengths, batch.source_segments
        states_BSD = self.encoder.run(
            params["encoder"],
            batch.source,
            Mask(lengths=lengths, query_lengths=lengths, segments=segments),
            positions=batch.source_positions,
            dropout_key=dropout_key,
        )
        return EncoderOutput(
            states_BSD,
            Mask(
                lengths=lengths,
                query_lengths=batch.lengths,
                segments=batch.segments,
                key_segments=segments,
            ),
        )

    def features(self, params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        if batch.source is None:
            raise ValueError(
                "an encoder-decoder reads Batch.source; Batch.tokens is what its decoder reads"
            )
        return self.decoder.run(
            params["decoder"],
            batch.tokens,
            Mask(
                causal=True,
                lengths=batch.lengths,
                query_lengths=batch.lengths,
                segments=batch.segments,
            ),
            positions=batch.positions,
            table=self.shared_table(params),
            memory=self.encode(params, batch, site_key(dropout_key, 0)),
            predict=batch.predict,
            dropout_key=site_key(dropout_key, 1),
        )

    def cache(self, batch_size: int, length: int) -> Cache:
        return empty_cache(self.model, batch_size, length, self.precision.compute)

    def decode(self, params: Tree, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
        if batch.source is not None:
            memory = self.encode(params, batch._replace(lengths=None), None)
            cache = cache._replace(memory=None, memory_lengths_B=batch.source_lengths)
        elif cache.memory is not None:
            memory = EncoderOutput(None, Mask(lengths=cache.memory_lengths_B))
        else:
            raise ValueError("the first call of decode reads Batch.source")
        table = self.shared_table(params)
        x, cache = self.decoder.read(
            params["decoder"],
            cache,
            batch.tokens,
            batch.lengths,
            table=table,
            memory=memory,
            predict=batch.predict,
        )
        return self.decoder.logits(
            params["decoder"], x, table if self.model.tied_head else None
        ), cache

    def kernels(self, batch: Batch) -> dict[str, tuple[str, str]]:
        length, source = batch.tokens.shape[1], batch.source.shape[1]  # type: ignore[union-attr]
        compute, segments = self.precision.compute, batch.segments
        cross = attention_kernel(
            self.model, compute, length, source, Mask(segments=segments), self.execution
        )
        return (
            self.encoder.kernels(
                compute, source, Mask(segments=batch.source_segments), "encoder attention"
            )
            | self.decoder.kernels(
                compute, length, Mask(causal=True, segments=segments), "decoder attention"
            )
            | {"cross attention": cross}
        )
