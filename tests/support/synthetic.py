"""Batches of random text for tests; the package makes them for `jaxlm.bench`."""

from jaxlm.benchmark.synthetic import batch, objective, vocabulary

__all__ = ["batch", "objective", "vocabulary"]
