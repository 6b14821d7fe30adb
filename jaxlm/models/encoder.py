"""Bidirectional encoders: BERT, RoBERTa and their relatives, by config alone."""

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models import electra
from jaxlm.models.model import Model
from jaxlm.models.transformer import build_transformer
from jaxlm.nn.execution import Execution


def build(
    config: ModelConfig, precision: PrecisionConfig, execution: Execution, adapter: AdapterConfig
) -> Model:
    """Return the encoder of a config; with a `generator_share` it is ELECTRA's."""
    if config.generator_share is not None:
        return electra.build(config, precision, execution, adapter)
    encoder = build_transformer(config, precision, execution, adapter, causal=False)
    return Model(
        config=config,
        init=encoder.init,
        axes=encoder.axes,
        features=encoder.features,
        head_weights=encoder.head_weights,
        scores=encoder.scores,
        kernels=encoder.kernels,
    )
