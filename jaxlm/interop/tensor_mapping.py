"""An architecture's table applied to one model: which tensors there are, and of which shapes."""

from collections.abc import Container, Iterator
from typing import Any, NamedTuple

import jax

from jaxlm.config import ModelConfig, UserError
from jaxlm.interop.layout import DimensionSizes, dimension_sizes, tensor_shape
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.types import Tree


class MappedTensor(NamedTuple):
    """A rule with the sizes of one model; in a stack it stands for one tensor of each layer."""

    rule: Rule
    parameters: tuple[jax.ShapeDtypeStruct, ...]  # none where the tensor is only written as zeros
    sizes: DimensionSizes
    shape: tuple[int, ...]  # of the tensor
    layers: range | None  # None: it isn't in a stack
    # Names under which the tensor must be repeated, since the model lacks a parameter that the
    # architecture has (a gate that equals the other half).
    repeated: tuple[str, ...] = ()

    def layer_names(self) -> Iterator[tuple[int | None, str]]:
        """Yield (layer, name of its tensor)."""
        if self.layers is None:
            yield None, self.rule.tensor
        else:
            for layer in self.layers:
                yield layer, self.rule.tensor.replace("{}", str(layer))

    def repeated_names(self, layer: int | None) -> list[str]:
        """Return the names under which the tensor of a layer must be repeated."""
        return [name.replace("{}", str(layer)) for name in self.repeated]

    def copy_names(self, layer: int | None) -> list[str]:
        """Return all other names under which the tensor of a layer is written."""
        copies = [name.replace("{}", str(layer)) for name in self.rule.copies]
        return copies + self.repeated_names(layer)


def leaves_by_path(tree: Tree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths: {"blocks.mlp.up_kernel": leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def own_leaves(architecture: Architecture, folder: str, tree: Tree) -> Tree:
    """Return the part of a tree of parameters that a directory holds, or a `folder` inside it.

    The directory itself ("") holds all but what only folders have rules for. A parameter without a
    rule stays there, where it is an error.
    """
    paths = rule_paths(architecture)
    inside = {name: rule_paths(other) for name, other in architecture.subfolders.items()}

    def holds(path: str) -> bool:
        if folder:
            return path in inside[folder]
        return path in paths or not any(path in others for others in inside.values())

    def select(node: Tree, place: str) -> Tree:
        kept = {}
        for name, child in node.items():
            if isinstance(child, dict):
                child = select(child, f"{place}{name}.")
                if child:
                    kept[name] = child
            elif holds(f"{place}{name}"):
                kept[name] = child
        return kept

    return select(tree, "")


def rule_paths(architecture: Architecture) -> set[str]:
    """Return the paths of the parameters that the rules name."""
    return {path for rule in architecture.rules for path in rule.parameters}


def map_tensors(
    architecture: Architecture, model: ModelConfig, shapes: Tree, base_shapes: Tree | None = None
) -> list[MappedTensor]:
    """Return the tensors that `model` has in this architecture.

    `shapes` are those of the model's parameters. `base_shapes` are those that the architecture has
    without the section "jaxlm" of config.json: what the model lacks of them is zeros, or a gate
    that repeats the other half. Raises UserError where a tensor can't do without what is lacking,
    ValueError where the table doesn't have each parameter exactly once.
    """
    known = leaves_by_path(shapes)
    base = known if base_shapes is None else leaves_by_path(base_shapes)
    gates = find_repeated_gates(architecture, known, base)

    mapped: list[MappedTensor] = []
    unmapped = set(known)
    for rule in architecture.rules:
        if not rule_applies(rule, base) or rule in gates.values():
            continue

        present = [path for path in rule.parameters if path in known]
        if not present:
            if rule.parameters[0] in base:
                mapped.append(map_lacking_parameter(rule, base, model))
            elif rule.zeros:
                mapped.append(map_zero_tensor(rule, model))
            continue

        if len(present) < len(rule.parameters) and base.keys() >= set(rule.parameters):
            raise UserError(
                f"{architecture.model_type} has one tensor {rule.tensor} for "
                f"{' and '.join(rule.parameters)}, so that a model needs all of them"
            )
        if set(present) != set(rule.parameters) or not unmapped.issuperset(present):
            raise ValueError(
                f"{architecture.model_type}: {rule.parameters} are not all in the model, "
                "or in an earlier rule too"
            )
        unmapped.difference_update(present)
        mapped.append(map_parameters(rule, known, gates.get(rule.parameters[0]), model))

    if unmapped:
        raise ValueError(f"{architecture.model_type}: no rule for {', '.join(sorted(unmapped))}")
    return mapped


def rule_applies(rule: Rule, paths: Container[str]) -> bool:
    """Return whether the parameters fulfil `rule.when`."""
    return all(
        (path.removeprefix("!") in paths) != path.startswith("!") for path in rule.when.split()
    )


def find_repeated_gates(
    architecture: Architecture, known: dict[str, Any], base: dict[str, Any]
) -> dict[str, Rule]:
    """Return the rules of gates that the model lacks, by the path of the half that they repeat."""
    gates: dict[str, Rule] = {}
    for rule in architecture.rules:
        gate = rule.parameters[0]
        up = gate.replace(".gate_", ".up_")
        lacking = rule_applies(rule, base) and gate in base and gate not in known
        if lacking and up in known and len(rule.parameters) == 1:
            gates[up] = rule
    return gates


def map_parameters(
    rule: Rule, known: dict[str, Any], gate: Rule | None, model: ModelConfig
) -> MappedTensor:
    """Return a tensor of parameters that the model has; `gate` is a rule that repeats it."""
    parameters = tuple(known[path] for path in rule.parameters)
    stacked = "{}" in rule.tensor
    sizes = dimension_sizes(
        rule, [leaf.shape[stacked:] for leaf in parameters], model.vocabulary_size
    )
    layers = range(rule.first_layer, parameters[0].shape[0]) if stacked else None

    if gate is None:
        return MappedTensor(rule, parameters, sizes, tensor_shape(rule, sizes), layers)
    if (gate.layout, gate.dims, gate.first_layer) != (rule.layout, rule.dims, rule.first_layer):
        raise ValueError(f"{gate} can't repeat {rule}")
    repeated = (gate.tensor,)
    return MappedTensor(rule, parameters, sizes, tensor_shape(rule, sizes), layers, repeated)


def map_lacking_parameter(rule: Rule, base: dict[str, Any], model: ModelConfig) -> MappedTensor:
    """Return a tensor of zeros for a parameter of the architecture that the model lacks."""
    leaves = [base[path] for path in rule.parameters]
    stacked = "{}" in rule.tensor
    sizes = dimension_sizes(rule, [leaf.shape[stacked:] for leaf in leaves], model.vocabulary_size)
    layers = range(rule.first_layer, leaves[0].shape[0]) if stacked else None
    return MappedTensor(rule, (), sizes, tensor_shape(rule, sizes), layers)


def map_zero_tensor(rule: Rule, model: ModelConfig) -> MappedTensor:
    """Return a tensor of zeros that has no parameter: its sizes come from the config."""
    stack = model.encoder if rule.parameters[0].startswith("encoder.") else model
    sizes = {
        "d": stack.width,
        "e": stack.token_width,
        "h": stack.heads,
        "g": stack.key_value_heads,
        "k": stack.width_per_head,
        "f": stack.hidden_width,
        "v": stack.vocabulary_size,
        "p": stack.context_length + stack.position_offset,
        "t": stack.token_types,
        "b": stack.relative_buckets,
    }
    layers = range(rule.first_layer, stack.layers) if "{}" in rule.tensor else None

    return MappedTensor(rule, (), sizes, tensor_shape(rule, sizes), layers)


def check_params(shapes: Tree, params: Tree) -> None:
    """Raise ValueError where `params` don't have the paths and shapes of the model."""
    expected = {path: leaf.shape for path, leaf in leaves_by_path(shapes).items()}
    given = {path: tuple(leaf.shape) for path, leaf in leaves_by_path(params).items()}
    for path in expected | given:
        if expected.get(path) != given.get(path):
            raise ValueError(
                f"{path}: shape {given.get(path)} given, {expected.get(path)} in the model"
            )
