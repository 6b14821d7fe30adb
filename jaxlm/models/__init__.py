"""`build` makes the model of a config. Flax ends here: what comes out is pure functions and plain dicts."""

from jaxlm import config
from jaxlm.models import decoder, encoder, encoder_decoder
from jaxlm.models.model import Model
from jaxlm.nn.execution import Execution

FAMILIES = {"decoder": decoder.build, "encoder": encoder.build, "encoder_decoder": encoder_decoder.build}


def build(model: config.Model, precision: config.Precision | None = None, execution: Execution | None = None) -> Model:
    """The model of `model`; float32 throughout unless a `precision` is given, plain single-device JAX unless an `execution` is."""
    precision = precision or config.Precision(compute="float32")
    return FAMILIES[model.family](model, precision, execution or Execution())


__all__ = ["Model", "build"]
