"""Adapters as directories of PEFT: adapter_config.json and adapter_model.safetensors.

PEFT (github.com/huggingface/peft) loads what is written here onto the exported base. Only LoRA is
read, with DoRA and rank-stabilised scales, and only from safetensors.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm import models
from jaxlm.config import AdapterConfig, ConfigError, ModelConfig, UserError
from jaxlm.directories import ADAPTER_FILE, check_directory
from jaxlm.interop.adapter_rules import (
    PREFIX,
    AdaptedModule,
    adapted_modules,
    adapter_rules,
)
from jaxlm.interop.hf_config import HFConfig, format_json, read_json
from jaxlm.interop.mapping import Architecture, Rule
from jaxlm.interop.match_architecture import find_match, parameter_shapes
from jaxlm.interop.read_weights import DirectoryTensors, read_weights
from jaxlm.interop.safetensors_reader import TensorIndex, equal_tensors, read_tensor_entries
from jaxlm.interop.safetensors_writer import staged_files, write_safetensors_file
from jaxlm.interop.tensor_mapping import map_tensors
from jaxlm.interop.write_weights import iterate_tensors, tensor_specs
from jaxlm.models.adapters import adapter_part
from jaxlm.parameter_names import drop
from jaxlm.types import Tree

ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINTS = ("adapter_model.bin", "adapter_model.pt")  # pickles, which are never read

TASK_TYPES = {"decoder": "CAUSAL_LM", "encoder_decoder": "SEQ_2_SEQ_LM", "encoder": None}
CLASSIFIER_TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}

# Initial values that are taken out of the weights of the base, which so is another one.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq")

# What changes the function, or the tensors, of a LoRA in PEFT and has no counterpart here: the
# values that leave it as it is.
PLAIN_VALUES: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": [],
    "layers_pattern": [],
    "layer_replication": [],
    "trainable_token_indices": [],
    "target_parameters": [],
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": [],
    "arrow_config": None,
    "ensure_weight_tying": False,
}


class PeftAdapter(NamedTuple):
    """An adapter that was read."""

    config: AdapterConfig
    params: Tree  # what is trained: adapters, and a classifier where there is one
    base: str | None  # the name or path of the base that the file gives


# Writing


def save_adapter(
    path: str | Path,
    model: ModelConfig,
    adapter: AdapterConfig,
    params: Tree,
    *,
    base: str | None = None,
) -> Architecture:
    """Write the adapters of `params` so that PEFT loads them onto the exported `base`.

    Returns the architecture. UserError where `transformers` has none for the model, or where PEFT
    can't say such an adapter.
    """
    architecture, values, plain = find_match(model)
    base_shapes = parameter_shapes(plain)
    if any(name in values for name in architecture.subfolders):
        raise UserError(f"adapter: {architecture.model_type} is two networks, but PEFT adapts one")
    built = models.build(model, adapter=adapter)
    shapes = jax.eval_shape(built.init, jax.random.key(0))
    rules = adapter_rules(architecture, built.axes, shapes, base_shapes)
    rules = tuple(
        rule._replace(
            tensor=PREFIX + rule.tensor, copies=tuple(PREFIX + name for name in rule.copies)
        )
        for rule in rules
    )

    table = architecture._replace(rules=rules)
    mapped = map_tensors(table, model, adapter_part(shapes))
    specs = tensor_specs(mapped, "F32")
    arrays = iterate_tensors(mapped, adapter_part(params), "F32")
    modules = list(adapted_modules(architecture, built.axes, base_shapes))
    config_values = adapter_values(model, adapter, modules, [spec.name for spec in specs], base)
    with staged_files(Path(path)) as files:
        write_safetensors_file(files.add(ADAPTER_WEIGHTS), specs, arrays)
        files.write_json(ADAPTER_FILE, config_values)
    return architecture


def adapter_values(
    model: ModelConfig,
    adapter: AdapterConfig,
    modules: list[AdaptedModule],
    tensors: list[str],
    base: str | None,
) -> dict[str, Any]:
    """Return the values of adapter_config.json."""
    written = {name.removeprefix(PREFIX) for name in tensors}
    adapted, others = [], []
    for module in modules:
        first = module.rule.first_layer
        has_adapter = f"{module.name.replace('{}', str(first))}.lora_B.weight" in written
        (adapted if has_adapter else others).append(module)

    names = {name.rpartition(".")[0] for name in written if ".lora_" not in name}
    is_transposed = adapted[0].rule.layout.split()[0] == adapted[0].inputs
    return {
        "peft_type": "LORA",
        "task_type": CLASSIFIER_TASKS.get(model.classifier.kind, TASK_TYPES[model.family]),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": target_names(adapted, others, written),
        "fan_in_fan_out": is_transposed,
        "bias": "none",
        "use_rslora": adapter.rank_stabilised,
        "use_dora": adapter.dora,
        "modules_to_save": sorted({saved_module(name) for name in names}) or None,
    }


def target_names(
    adapted: list[AdaptedModule], others: list[AdaptedModule], written: set[str]
) -> list[str]:
    """Return names by which PEFT finds the adapted modules and no others.

    PEFT adapts each module whose name ends in one of them. Where the end of a name, after the
    number of the layer, means other modules too, whole names are given.
    """
    ends = {module.name.partition("{}.")[2] for module in adapted}
    other_ends = [module.name.partition("{}.")[2] for module in others]
    if not any(f".{other}".endswith(f".{end}") for other in other_ends for end in ends):
        return sorted(ends)
    return sorted(
        name.removesuffix(".lora_B.weight") for name in written if name.endswith(".lora_B.weight")
    )


def saved_module(name: str) -> str:
    """Return the module that PEFT saves whole, of a trained layer of this name.

    A head of several layers ("classifier.dense") is one module. A layer within the body
    ("bert.pooler.dense") stands for itself.
    """
    first = name.partition(".")[0]
    return first if first in ("classifier", "score", "classification_head") else name


# Reading


def load_adapter(path: str | Path, model: ModelConfig) -> PeftAdapter:
    """Return the adapter of a PEFT directory, for a base model.

    Of a classifier's head it has what was trained: BERT's pooler may be left as the base has it.
    UserError, with file and key or tensor, for what is not a LoRA of this model.
    """
    directory = Path(path)
    check_directory(directory)
    values = read_adapter_config(directory)
    architecture, _, plain = find_match(model)
    base_shapes = parameter_shapes(plain)
    index = read_adapter_index(directory)

    # Names as the architecture has them; those of a class without a head lack its root.
    renamed = {rf"^{PREFIX.replace('.', '[.]')}": "", **architecture.renamed}
    table = architecture._replace(renamed=renamed)
    tensors = DirectoryTensors(table, index)

    modules = list(adapted_modules(architecture, models.build(model).axes, base_shapes))
    adapter = adapter_config(values, find_targets(values, modules, tensors))
    try:
        built = models.build(model, adapter=adapter)
        shapes = jax.eval_shape(built.init, jax.random.key(0))
    except ConfigError as error:
        raise UserError(f"{values.path}: {error}") from None
    rules, absent = [], set()
    for rule in adapter_rules(architecture, built.axes, shapes, base_shapes):
        if ".lora_" not in rule.tensor and rule.tensor not in tensors:
            absent |= set(rule.parameters)
        else:
            check_copies(tensors, rule)
            rules.append(rule)
    params = read_weights(
        table._replace(rules=tuple(rules), ignored=(), aliases={}),
        model,
        index,
        shapes=drop(adapter_part(shapes), lambda name: name in absent),
        dtype=np.float32,
    )
    base = values.get("base_model_name_or_path")
    return PeftAdapter(adapter, params, base if isinstance(base, str) and base else None)


def read_adapter_config(directory: Path) -> HFConfig:
    """Return adapter_config.json; UserError for what changes a LoRA in ways that have no place."""
    path = directory / ADAPTER_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")
    config = HFConfig(path, values)
    for key, plain in PLAIN_VALUES.items():
        value = config.get(key)
        if value is not None and value != plain:
            only = "is not read" if not plain else f"is not read, only {format_json(plain)}"
            config.refuse(key, f"{format_json(value)} {only}")

    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(CHANGED_BASES):
        config.refuse(
            "init_lora_weights", f"{format_json(initial)} changes the weights of the base"
        )
    return config


def read_adapter_index(directory: Path) -> TensorIndex:
    """Return the tensors of adapter_model.safetensors; pickles are refused."""
    path = directory / ADAPTER_WEIGHTS
    pickles = [name for name in CHECKPOINTS if (directory / name).exists()]
    if pickles and not path.exists():
        raise UserError(
            f"{directory / pickles[0]}: is a pickle, which can run code, and is not read: "
            f"save the adapter as {ADAPTER_WEIGHTS}"
        )
    return TensorIndex(path, read_tensor_entries(path))


def find_targets(
    values: HFConfig, modules: Iterable[AdaptedModule], tensors: DirectoryTensors
) -> tuple[str, ...]:
    """Return `adapter.targets`, by the modules that have a B in the file.

    The file says it whatever names, ends of names or patterns stand in target_modules.
    """
    found: dict[str, None] = {}
    for module in modules:
        name = module.name.replace("{}", str(module.rule.first_layer))
        if f"{name}.lora_B.weight" not in tensors:
            continue
        if len(module.roles) > 1 and module.target != "qkv":
            values.refuse(
                "target_modules",
                f"{module.name} holds {module.target}, which have an adapter each here",
            )
        found[module.target] = None
    if not found:
        shown = format_json(values.get("target_modules"))
        values.refuse("target_modules", f"{shown}: the file has no adapter of a matrix in a block")
    return tuple(found)


def check_copies(tensors: DirectoryTensors, rule: Rule) -> None:
    """Raise UserError where matrices differ that are one in the model: those of a gate's halves."""
    before, _, after = rule.tensor.partition("{}")
    for name, entry in tensors.entries.items():
        layer = name.removeprefix(before).removesuffix(after)
        if name != f"{before}{layer}{after}" or not layer.isdigit():
            continue
        for copy in rule.copies:
            other = tensors.find(copy.replace("{}", layer))
            if other is None or not equal_tensors(entry, other[1]):
                raise entry.error("differs from the other half of a gate, which is one matrix here")


def adapter_config(values: HFConfig, targets: tuple[str, ...]) -> AdapterConfig:
    """Return the section `adapter` of a run with this adapter."""
    rank = values.scalar("r", 8)
    alpha, dropout = (
        values.scalar("lora_alpha", 8, float),
        values.scalar("lora_dropout", 0.0, float),
    )
    if rank < 1 or not 0 < alpha < math.inf:
        values.refuse("r", f"r={rank} and lora_alpha={alpha} must be above 0")
    try:
        return AdapterConfig(
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=targets,  # type: ignore[arg-type]
            rank_stabilised=values.scalar("use_rslora", False, bool),
            dora=values.scalar("use_dora", False, bool),
            base="float32",
        )
    except ConfigError as error:
        raise UserError(f"{values.path}: {error}") from None
