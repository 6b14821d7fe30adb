"""The tensors of a PEFT adapter, from the table of the architecture that it adapts.

PEFT calls the matrices of an adapter after the module whose weight they adapt. A rule of the
architecture that holds adapted weights so gives one rule for A, one for B and, with DoRA, one for
the magnitudes. What is trained beside them, such as a classifier, keeps its rules.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxlm.config import UserError
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.interop.tensor_mapping import find_repeated_gates, leaves_by_path, rule_applies
from jaxlm.models.adapters import KERNEL, is_trained
from jaxlm.nn.adapter import is_adapter
from jaxlm.quantization import input_axes
from jaxlm.types import Axes, Tree

PREFIX = "base_model.model."  # of all names in a file
QUERY_KEY_VALUE = ("query", "key", "value")


class AdaptedModule(NamedTuple):
    """A module of `transformers` whose weight can have an adapter."""

    name: str  # "transformer.h.{}.attn.c_attn"; "{}" is the number of the layer
    rule: Rule  # of its weight
    roles: tuple[str, ...]  # of the weights in it: ("query", "key", "value")
    inputs: str  # dimension of the weight: "d"
    outputs: str  # "3hk"
    input_letters: str
    output_letters: str

    @property
    def target(self) -> str:
        """Return the name of `adapter.targets` that gives its weights one adapter."""
        return "qkv" if self.roles == QUERY_KEY_VALUE else " and ".join(self.roles)


def adapted_modules(
    architecture: Architecture, axes: Tree, base_shapes: Tree
) -> Iterator[AdaptedModule]:
    """Yield the modules of a model's blocks whose weights can have adapters.

    `axes` are the logical axes of the model's parameters, with adapters or without. `base_shapes`
    are as in `map_tensors`: a gate that the model lacks repeats the other half, adapter and all.
    """
    axes_by_path, base = leaves_by_name(axes), leaves_by_path(base_shapes)
    gates = find_repeated_gates(architecture, axes_by_path, base)
    repeated = {rule: rule._replace(parameters=(path,)) for path, rule in gates.items()}
    for table_rule in architecture.rules:
        rule = repeated.get(table_rule, table_rule)
        paths, is_block = rule.parameters, "{}" in rule.tensor
        if not is_block or not rule_applies(rule, base) or paths[0] not in axes_by_path:
            continue
        if not all(path.endswith(KERNEL) for path in paths):
            continue

        kernel_axes = axes_by_path[paths[0]][1:]
        inputs = input_axes(kernel_axes)
        assert inputs is not None, paths
        letters, outputs = rule.dims[: inputs.stop], rule.dims[inputs.stop :]
        first, second = rule.layout.split()
        is_transposed = set(letters) <= set(first)  # [inputs, outputs], as GPT-2 has it
        yield AdaptedModule(
            name=rule.tensor.removesuffix(".weight"),
            rule=rule,
            roles=tuple(path.rpartition(".")[2].removesuffix(KERNEL) for path in paths),
            inputs=first if is_transposed else second,
            outputs=second if is_transposed else first,
            input_letters=letters,
            output_letters=outputs,
        )


def leaves_by_name(axes: Tree) -> dict[str, Axes]:
    """Return logical axes by the paths of their parameters."""
    names: dict[str, Axes] = {}
    for key, child in axes.items():
        if isinstance(child, dict):
            names |= {f"{key}.{path}": leaf for path, leaf in leaves_by_name(child).items()}
        else:
            names[key] = child
    return names


def adapter_rules(
    architecture: Architecture, axes: Tree, shapes: Tree, base_shapes: Tree
) -> tuple[Rule, ...]:
    """Return the rules of all that is trained. Names of tensors are those without the prefix.

    `axes` and `shapes` are those of a model with adapters, `base_shapes` as in `map_tensors`.
    Matrices of several modules have one rule, with copies. Raises UserError where weights that
    `transformers` has as one matrix don't have one adapter.
    """
    paths = leaves_by_path(shapes)
    rules = []
    for module in adapted_modules(architecture, axes, base_shapes):
        rules += module_rules(architecture, module, set(paths))

    trained = {path for path in paths if is_trained(path) and not is_adapter(path)}
    rules += [rule for rule in architecture.rules if trained & set(rule.parameters)]
    return tuple(join_shared(rules))


def module_rules(architecture: Architecture, module: AdaptedModule, paths: set[str]) -> list[Rule]:
    """Return the rules of a module's adapter; none where it has none."""
    stems = [path.removesuffix(KERNEL) for path in module.rule.parameters]
    bs = [f"{stem}_lora_b" for stem in stems]
    if not paths & set(bs):
        return []

    owner = stems[0].rpartition(".")[0]
    shared = f"{owner}.qkv_lora_a"
    shares = shared in paths and set(module.roles) <= set(QUERY_KEY_VALUE)
    a = shared if shares else f"{stems[0]}_lora_a"
    if len(stems) > 1 and (a != shared or not paths.issuperset(bs)):
        remedy = "adapter.targets=('qkv',)" if module.target == "qkv" else "export merges it"
        raise UserError(
            f"adapter.targets: {architecture.model_type} has {', '.join(module.roles)} as one "
            f"matrix ({module.name}), which can have one adapter alone: {remedy}"
        )

    layer = module.rule._replace(parameters=(), copies=(), zeros=False)
    rules = [
        layer._replace(
            tensor=f"{module.name}.lora_A.weight",
            layout=f"r {module.inputs}",
            parameters=(a,),
            dims=f"{module.input_letters}r",
        ),
        layer._replace(
            tensor=f"{module.name}.lora_B.weight",
            layout=f"{module.outputs} r",
            parameters=tuple(bs),
            dims=f"r{module.output_letters}",
        ),
    ]
    if f"{stems[0]}_magnitude" in paths:
        magnitude = layer._replace(
            tensor=f"{module.name}.lora_magnitude_vector",
            layout=module.outputs,
            parameters=tuple(f"{stem}_magnitude" for stem in stems),
            dims=module.output_letters,
        )
        rules.append(magnitude)
    return rules


def join_shared(rules: list[Rule]) -> list[Rule]:
    """Return the rules with one for each parameter: others of it are written as copies."""
    joined: dict[tuple[str, ...], Rule] = {}
    for rule in rules:
        first = joined.get(rule.parameters)
        if first is not None:
            rule = first._replace(copies=(*first.copies, rule.tensor))
        joined[rule.parameters] = rule
    return list(joined.values())
