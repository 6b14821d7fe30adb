"""Text from a trained model."""

from jaxlm.decoding.sample import sample

__all__ = ["sample"]
