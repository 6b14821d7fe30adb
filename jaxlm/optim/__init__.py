"""Optimizers and the learning-rate schedule, built from the config."""

from jaxlm.optim.groups import decay_mask
from jaxlm.optim.optimizer import build_optimizer
from jaxlm.optim.schedule import learning_rate_schedule
from jaxlm.optim.schedule_free import evaluation_params

__all__ = ["build_optimizer", "decay_mask", "evaluation_params", "learning_rate_schedule"]
