"""Plans before money is spent: budgets, memory, a step compiled for GPUs that are not there.

The names below are loaded when they are asked for, so that a command imports no more than it needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm.plan.budget import plan_budget
    from jaxlm.plan.question import Plan, Question
    from jaxlm.plan.scaling_laws import LAWS, REPEATED_DATA, Allocation, ParametricLaw, PowerLaw
    from jaxlm.plan.shapes import Shape, find_shape

__all__ = [
    "LAWS",
    "REPEATED_DATA",
    "Allocation",
    "ParametricLaw",
    "Plan",
    "PowerLaw",
    "Question",
    "Shape",
    "find_shape",
    "plan_budget",
]

MODULES = {
    "LAWS": "scaling_laws",
    "REPEATED_DATA": "scaling_laws",
    "Allocation": "scaling_laws",
    "ParametricLaw": "scaling_laws",
    "Plan": "question",
    "PowerLaw": "scaling_laws",
    "Question": "question",
    "Shape": "shapes",
    "find_shape": "shapes",
    "plan_budget": "budget",
}


def __getattr__(name: str) -> Any:
    """Import the module of a name of this package."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    globals()[name] = value
    return value
