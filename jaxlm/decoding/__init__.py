"""Text from a trained model."""

from jaxlm.decoding.fill import fill, write
from jaxlm.decoding.sample import sample
from jaxlm.decoding.show import samples

__all__ = ["fill", "sample", "samples", "write"]
