"""Optimizers and the learning-rate schedule, built from the config."""

from jaxlm.optim.average import averaged_weights
from jaxlm.optim.groups import decay_mask
from jaxlm.optim.optimizer import build_optimizer
from jaxlm.optim.resumed_rates import (
    RatesAtResume,
    check_restart,
    describe_rates,
    rates_at_resume,
)
from jaxlm.optim.schedule import learning_rate_schedule
from jaxlm.optim.schedule_free import evaluation_params
from jaxlm.optim.width_rates import rate_factors

__all__ = [
    "RatesAtResume",
    "averaged_weights",
    "build_optimizer",
    "check_restart",
    "decay_mask",
    "describe_rates",
    "evaluation_params",
    "learning_rate_schedule",
    "rate_factors",
    "rates_at_resume",
]
