"""The Flax modules of a transformer, each with a name of its own in the parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn

from jaxlm.config import ModelConfig
from jaxlm.models.stack import stack_axes
from jaxlm.nn.classifier import LabelScores, Pooler
from jaxlm.nn.embedding import HeadTransform
from jaxlm.nn.parameters import param_axes
from jaxlm.types import Tree


class Component(NamedTuple):
    """A Flax module with a name of its own in the parameters."""

    module: nn.Module  # with the execution that it runs with
    template: nn.Module  # the same on one device, for shapes and initial values
    example_inputs: Callable[[], tuple]  # smallest arguments of its call


def label_components(
    config: ModelConfig, dtype: Any, example_inputs: Callable[[], tuple]
) -> dict[str, Component]:
    """Return the components of a classifier's head, which run alike on any mesh."""
    modules: dict[str, nn.Module] = {}
    if config.label_head.transform == "head":
        modules["head"] = HeadTransform(config, dtype)
    elif config.label_head.transform != "none":
        modules["pooler"] = Pooler(config, dtype)
    modules["classifier"] = LabelScores(config, dtype)
    return {name: Component(m, m, example_inputs) for name, m in modules.items()}


def component_axes(components: dict[str, Component]) -> Tree:
    """Return the logical axes of the parameters of components, by their names."""
    axes = {}
    for name, part in components.items():
        read_axes = stack_axes if name == "blocks" else param_axes
        part_axes = read_axes(part.template, part.example_inputs)
        if part_axes:  # without weights: no entry
            axes[name] = part_axes
    return axes
