"""`build` makes the model of a config. Flax ends here: what comes out is pure functions and plain dicts."""

from jaxlm import config
from jaxlm.models import decoder, encoder, encoder_decoder
from jaxlm.models.model import Model
from jaxlm.models.stack import unstack
from jaxlm.nn.execution import Execution
from jaxlm.types import Tree

FAMILIES = {
    "decoder": decoder.build,
    "encoder": encoder.build,
    "encoder_decoder": encoder_decoder.build,
}


def build(
    model: config.ModelConfig,
    precision: config.PrecisionConfig | None = None,
    execution: Execution | None = None,
) -> Model:
    """The model of `model`; float32 throughout unless a `precision` is given, plain single-device JAX unless an `execution` is."""
    precision = precision or config.PrecisionConfig(compute="float32")
    return FAMILIES[model.family](model, precision, execution or Execution())


def unstacked(params: Tree) -> Tree:
    """The same parameters with the blocks that `decode` reads as a list of layers: so none is cut out of a stack for every token."""
    if "decoder" in params:  # its encoder reads the source once
        return params | {"decoder": unstacked(params["decoder"])}
    return params | {"blocks": unstack(params["blocks"])}


__all__ = ["Model", "build", "unstacked"]
