"""Bidirectional encoders: BERT, RoBERTa and their kin, by config alone."""

from jaxlm import config
from jaxlm.models import transformer
from jaxlm.models.model import Model
from jaxlm.nn.dot_product import Mask
from jaxlm.nn.execution import Execution
from jaxlm.types import Array, Batch, Tree


def build(
    model: config.ModelConfig, precision: config.PrecisionConfig, execution: Execution
) -> Model:
    """The encoder of `model` as pure functions."""
    encoder = transformer.build_transformer(model, precision, execution, causal=False)

    def features(params: Tree, batch: Batch, dropout_key: Array | None = None) -> Array:
        return encoder.run(
            params,
            batch.tokens,
            Mask(lengths=batch.lengths, query_lengths=batch.lengths, segments=batch.segments),
            positions=batch.positions,
            types=batch.token_types,
            predict=batch.predict,
            dropout_key=dropout_key,
        )

    def kernels(batch: Batch) -> dict[str, tuple[str, str]]:
        return encoder.kernels(
            precision.compute, batch.tokens.shape[1], Mask(segments=batch.segments)
        )

    return Model(
        model, encoder.init, encoder.axes, features, encoder.head_weights, encoder.scores, kernels
    )
