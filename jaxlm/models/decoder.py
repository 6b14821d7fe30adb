"""Causal decoders: GPT, Llama, BLOOM and their relatives, by config alone."""

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models.model import Model
from jaxlm.models.transformer import build_transformer
from jaxlm.nn.execution import Execution


def build(
    config: ModelConfig, precision: PrecisionConfig, execution: Execution, adapter: AdapterConfig
) -> Model:
    """Return the decoder of a config."""
    decoder = build_transformer(config, precision, execution, adapter, causal=True)
    return Model(
        config=config,
        init=decoder.init,
        axes=decoder.axes,
        features=decoder.features,
        head_weights=decoder.head_weights,
        scores=decoder.scores,
        kernels=decoder.kernels,
        cache=decoder.empty_cache,
        decode=decoder.decode,
    )
