"""Optimizers and the learning-rate schedule, built from the config."""

from jaxlm.optim.optimizer import build_optimizer, decay_mask
from jaxlm.optim.schedule import learning_rate_schedule

__all__ = ["build_optimizer", "decay_mask", "learning_rate_schedule"]
