"""Generate text, fill masks and embed texts with a trained model."""

from jaxlm.decoding.show import samples

__all__ = ["samples"]
