"""Schedule-free AdamW: the average of the steps is trained towards, and evaluated."""

import optax

from jaxlm.config import OptimizerConfig
from jaxlm.parameter_names import merge, without
from jaxlm.types import Tree


def second_moment(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return Adam's direction without a first moment."""
    return optax.scale_by_rms(config.beta2, config.epsilon, eps_in_sqrt=False, bias_correction=True)


def schedule_free(
    config: OptimizerConfig, schedule: optax.Schedule, steps: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return schedule-free AdamW (Defazio et al., arXiv 2405.15682), whose beta1 is above 0.

    The parameters of the run are y, where gradients are taken. The state has z, which takes the
    `steps`; their average x, for which beta1 stands, follows from both.
    """
    return optax.contrib.schedule_free(steps, schedule, b1=config.beta1)


def evaluation_params(config: OptimizerConfig, params: Tree, optimizer_state: Tree) -> Tree:
    """Return the parameters that are evaluated and exported: those of a run, or their average.

    `optimizer_state` is that of the optimizer which `build_optimizer` makes of the config.
    """
    if config.kind != "schedule_free":
        return params

    _, state = optimizer_state
    trained = without(params, config.frozen)
    return merge(params, optax.contrib.schedule_free_eval_params(state, trained))
