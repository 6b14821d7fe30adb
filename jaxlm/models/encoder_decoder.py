"""Encoder-decoders: the original Transformer, T5, BART and their relatives, by config alone."""

from typing import NamedTuple

import jax

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models import source_encoder
from jaxlm.models.model import Model
from jaxlm.models.source_encoder import check_source, encoder_batch
from jaxlm.models.transformer import Transformer, build_transformer
from jaxlm.nn.attention import EncoderOutput, attention_kernel
from jaxlm.nn.cache import Cache
from jaxlm.nn.dropout import site_key
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask
from jaxlm.types import Array, Batch, Tree


def build(
    config: ModelConfig, precision: PrecisionConfig, execution: Execution, adapter: AdapterConfig
) -> Model:
    """Return the encoder-decoder of a config. A shared token table is the encoder's.

    A classifier of tokens is its encoder alone.
    """
    if config.classifier.kind == "token":
        return source_encoder.build(config, precision, execution, adapter)
    encoder = build_transformer(
        config.encoder, precision, execution, adapter, causal=False, head=False
    )
    decoder = build_transformer(
        config,
        precision,
        execution,
        adapter,
        causal=True,
        cross=True,
        own_table=not config.shared_embedding,
    )
    both = EncoderDecoder(config, encoder, decoder)
    return Model(
        config=config,
        init=both.init,
        axes={"encoder": encoder.axes, "decoder": decoder.axes},
        features=both.features,
        head_weights=both.head_weights,
        scores=decoder.scores,
        kernels=both.kernels,
        cache=decoder.empty_cache,
        decode=both.decode,
    )


class EncoderDecoder(NamedTuple):
    """Two transformers, of which the decoder reads the encoder's output by cross attention."""

    config: ModelConfig
    encoder: Transformer
    decoder: Transformer

    def init(self, key: Array) -> Tree:
        """Return fresh parameters."""
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": self.encoder.init(encoder_key),
            "decoder": self.decoder.init(decoder_key),
        }

    def features(self, params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        """Return the decoder's [B, L, D], or [B, M, D] at the positions `batch.predict`."""
        check_source(batch)
        table = self.shared_table(params)
        states_BSD = self.encoder.features(
            params["encoder"], encoder_batch(batch), site_key(dropout_key, 0)
        )
        return self.decoder.features(
            params["decoder"],
            batch,
            site_key(dropout_key, 1),
            table=table,
            encoder_output=EncoderOutput(states_BSD, cross_mask(batch)),
        )

    def decode(self, params: Tree, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
        """Return float32 logits of the next tokens, and the cache with them.

        The first call has the source. The others find its keys and values in the cache.
        """
        if batch.source is not None:
            states_BSD = self.encoder.features(params["encoder"], encoder_batch(batch))
            mask = cross_mask(batch._replace(lengths=None))
            encoder_output = EncoderOutput(states_BSD, mask)
            cache = cache._replace(cross_layers=None, source_lengths_B=batch.source_lengths)
        elif cache.cross_layers is not None:
            encoder_output = EncoderOutput(None, Mask(lengths=cache.source_lengths_B))
        else:
            raise ValueError("the first call of decode reads Batch.source")

        return self.decoder.decode(
            params["decoder"],
            cache,
            batch,
            table=self.shared_table(params),
            encoder_output=encoder_output,
        )

    def head_weights(self, params: Tree) -> Tree:
        """Return the whole weights that `scores` reads."""
        reads_table = self.config.tied_head and not self.config.is_classifier
        table = self.shared_table(params) if reads_table else None
        return self.decoder.head_weights(params["decoder"], table)

    def shared_table(self, params: Tree) -> Array | None:
        """Return the token table that both stacks use, whole; None where each has its own."""
        if not self.config.shared_embedding:
            return None
        return self.encoder.token_table(params["encoder"])

    def kernels(self, batch: Batch) -> dict[str, tuple[str, str]]:
        """Return the kernel of each kind of attention, and why."""
        encoder = self.encoder.kernels(encoder_batch(batch), "encoder attention")
        decoder = self.decoder.kernels(batch, "decoder attention")
        cross = attention_kernel(
            self.config,
            self.decoder.compute,
            rows=batch.tokens.shape[0],
            queries=batch.tokens.shape[1],
            keys=batch.source.shape[1],  # type: ignore[union-attr]
            mask=Mask(segments=batch.segments),
            execution=self.decoder.execution,
        )
        return encoder | decoder | {"cross attention": cross}


def cross_mask(batch: Batch) -> Mask:
    """Return which positions of the source each position of the decoder sees."""
    return Mask(
        lengths=batch.source_lengths,
        query_lengths=batch.lengths,
        segments=batch.segments,
        key_segments=batch.source_segments,
    )
