"""Batches of random text for tests; the package makes them for `jaxlm.bench`."""

from jaxlm import config, flops
from jaxlm.benchmark.synthetic import batch, objective, vocabulary

__all__ = ["batch", "objective", "step_flops", "vocabulary"]


def step_flops(run_config: config.Config) -> int:
    """Return the FLOPs of the matrix products of one training step."""
    built = objective(run_config)
    sizes = built.length, built.source_length, built.predictions
    return run_config.training.batch_size * flops.training_flops(run_config.model, *sizes)
