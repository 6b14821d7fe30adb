"""Plans before money is spent: budgets, memory, a step compiled for GPUs that are not there.

The names below are loaded when they are asked for, so that a command imports no more than it needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.plan.budget import plan_budget
    from jaxlm.plan.fit_plot import draw_fit
    from jaxlm.plan.fit_report import fit_runs
    from jaxlm.plan.isoflop import fit_isoflop
    from jaxlm.plan.observations import Observations, read_observations
    from jaxlm.plan.parametric_fit import fit_parametric
    from jaxlm.plan.question import Plan, Question
    from jaxlm.plan.scaling_laws import LAWS, REPEATED_DATA, Allocation, ParametricLaw, PowerLaw
    from jaxlm.plan.shapes import Shape, find_shape
    from jaxlm.plan.sweep import plan_isoflop, plan_sizes

__all__ = [
    "LAWS",
    "REPEATED_DATA",
    "Allocation",
    "Observations",
    "ParametricLaw",
    "Plan",
    "PowerLaw",
    "Question",
    "Shape",
    "draw_fit",
    "find_shape",
    "fit_isoflop",
    "fit_parametric",
    "fit_runs",
    "plan_budget",
    "plan_isoflop",
    "plan_sizes",
    "read_observations",
]

MODULES = {
    "LAWS": "scaling_laws",
    "REPEATED_DATA": "scaling_laws",
    "Allocation": "scaling_laws",
    "Observations": "observations",
    "ParametricLaw": "scaling_laws",
    "Plan": "question",
    "PowerLaw": "scaling_laws",
    "Question": "question",
    "Shape": "shapes",
    "draw_fit": "fit_plot",
    "find_shape": "shapes",
    "fit_isoflop": "isoflop",
    "fit_parametric": "parametric_fit",
    "fit_runs": "fit_report",
    "plan_budget": "budget",
    "plan_isoflop": "sweep",
    "plan_sizes": "sweep",
    "read_observations": "observations",
}


def __getattr__(name: str) -> Any:
    """Import the module of a name of this package."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = value
    return value
