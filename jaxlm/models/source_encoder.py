"""The encoder of an encoder-decoder: the source as its batch, and the encoder by itself."""

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models.model import Model
from jaxlm.models.transformer import build_transformer
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(
    config: ModelConfig, precision: PrecisionConfig, execution: Execution, adapter: AdapterConfig
) -> Model:
    """Return the encoder by itself; it reads the source, and its tree has no decoder."""
    encoder = build_transformer(config.encoder, precision, execution, adapter, causal=False)

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        check_source(batch)
        return encoder.features(params["encoder"], encoder_batch(batch), dropout_key)

    return Model(
        config=config,
        init=lambda key: {"encoder": encoder.init(key)},
        axes={"encoder": encoder.axes},
        features=features,
        head_weights=lambda params: encoder.head_weights(params["encoder"]),
        scores=encoder.scores,
        kernels=lambda batch: encoder.kernels(encoder_batch(batch), "encoder attention"),
    )


def check_source(batch: Batch) -> None:
    """Raise ValueError where the batch has no source."""
    if batch.source is None:
        raise ValueError(
            "an encoder-decoder reads Batch.source; Batch.tokens is what its decoder reads"
        )


def encoder_batch(batch: Batch) -> Batch:
    """Return the source as the batch of the encoder."""
    return Batch(
        tokens=batch.source,
        lengths=batch.source_lengths,
        segments=batch.source_segments,
        positions=batch.source_positions,
    )
