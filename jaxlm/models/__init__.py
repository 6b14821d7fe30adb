"""`build` makes the model of a config: pure functions over plain dicts. Flax ends here."""

from jaxlm.config import AdapterConfig, ModelConfig, PrecisionConfig
from jaxlm.models import decoder, encoder, encoder_decoder
from jaxlm.models.adapters import with_adapters
from jaxlm.models.extend_vocabulary import extend_vocabulary
from jaxlm.models.model import Model, no_decoder
from jaxlm.models.stack import take_apart, unstack
from jaxlm.nn.execution import Execution
from jaxlm.quantization import Rounding
from jaxlm.types import Tree

FAMILIES = {
    "decoder": decoder.build,
    "encoder": encoder.build,
    "encoder_decoder": encoder_decoder.build,
}


def build(
    config: ModelConfig,
    precision: PrecisionConfig | None = None,
    execution: Execution | None = None,
    adapter: AdapterConfig | None = None,
) -> Model:
    """Return the model of a config.

    It computes in float32 throughout unless a `precision` is given, and in plain single-device JAX
    unless an `execution` is. With an `adapter` its parameters have adapters beside frozen weights.
    """
    precision = precision or PrecisionConfig(compute="float32")
    adapter = adapter or AdapterConfig()
    model = FAMILIES[config.family](config, precision, execution or Execution(), adapter)
    if config.is_classifier:  # it writes no text
        model = model._replace(cache=no_decoder, decode=no_decoder)
    if adapter.rank:
        init = with_adapters(model.init, adapter, model.axes)
        model = model._replace(init=init, adapter=adapter)
    if precision.weights is None:
        return model
    return model._replace(rounding=Rounding(precision.weights, precision.weights_start))


def unstacked(params: Tree, *, free: bool = False) -> Tree:
    """Return the same parameters with the blocks that `decode` reads as a list of layers.

    Generation is faster so: no layer is cut out of a stack for every token. With `free` each stack
    is deleted when its layers are cut out, so that no two are in memory twice; not under jit.
    """
    if "decoder" in params:  # the encoder stays stacked: it reads the source once
        return params | {"decoder": unstacked(params["decoder"], free=free)}
    blocks = params["blocks"]
    return params | {"blocks": take_apart(blocks) if free else unstack(blocks)}


__all__ = ["Model", "build", "extend_vocabulary", "unstacked"]
