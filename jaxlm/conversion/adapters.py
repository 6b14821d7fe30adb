"""Adapters of PEFT: write those of a run, and make a run of a directory with one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jaxlm import card, checkpoint, config, models, runtime
from jaxlm.base_identity import hash_params
from jaxlm.config import AdapterConfig, Config, ModelConfig, NoCheckpointError, UserError
from jaxlm.config.base import adopt_base
from jaxlm.conversion.export_run import ExportedModel, find_best_step, new_directory
from jaxlm.conversion.import_model import (
    ImportedRun,
    check_is_empty,
    nonfinite_warnings,
    removed_after_error,
)
from jaxlm.directories import is_run
from jaxlm.interop.kept_files import copy_kept_files
from jaxlm.interop.match_architecture import differences, match_architecture
from jaxlm.interop.nonfinite import all_finite
from jaxlm.interop.peft_directory import load_adapter, save_adapter
from jaxlm.interop.tensor_mapping import leaves_by_path
from jaxlm.interop.tokenizer import TOKENIZER_FILE
from jaxlm.load_model import load_model
from jaxlm.models.adapters import adapter_part
from jaxlm.parameter_names import name_of
from jaxlm.run_weights import BaseRecord, write_base_record
from jaxlm.types import Tree

BASE_KEY = "base="  # of the edit that names the base


def export_adapter(
    run: Path, out: Path, *, step: int | None = None, best: bool = False, ema: bool = False
) -> ExportedModel:
    """Write the adapters of a run into `out`, for PEFT and the exported base of the run.

    The checkpoint is chosen as in `export_run`. UserError where the run has no adapters, where PEFT
    can't say them, or where `out` is not empty; then there is no `out`.
    """
    run_config, _ = checkpoint.read_run_config(run)
    if not is_run(run):
        raise NoCheckpointError(f"{run}: there is no checkpoint")
    if not run_config.adapter.rank:
        raise UserError(f"{run}: --adapter: the run has no adapters (adapter.rank=0)")
    check_is_empty(out)
    match_architecture(run_config.model)

    step = find_best_step(run) if best else step
    loaded = load_model(run, step=step, ema=ema, merged=False)
    with new_directory(out) as folder:
        architecture = save_adapter(folder, run_config.model, run_config.adapter, loaded.params)
    count = loaded.model.adapter_parameter_count()
    return ExportedModel(architecture.model_type, loaded.step, count, [])


def import_adapter(directory: Path, run: Path, edits: Sequence[str]) -> ImportedRun:
    """Make the run directory `run` of an adapter of PEFT and of the run that `base=` names.

    The other edits are changes to the run's config. UserError where the adapter can't be read or is
    none of the base, or where `run` is not empty; then there is no `run`.
    """
    check_is_empty(run)
    base, edits = find_base(directory, edits)
    base_config, _ = checkpoint.read_run_config(base)
    start = replace(base_config, run_directory=str(run), base=str(base), adapter=AdapterConfig())
    start = adopt_base(start, base_config)
    model = config.apply_edits(start, edits).model
    check_model(model, start.model)
    architecture, _ = match_architecture(model)
    adapter = load_adapter(directory, model)
    run_config = adapter_run_config(replace(start, adapter=adapter.config), edits)

    loaded = load_model(base, rounded=False)
    assert loaded.step is not None
    record = BaseRecord(str(base), loaded.step, hash_params(loaded.params))
    trained = complete_adapter(directory, run_config, adapter.params, loaded.params)
    leaves = leaves_by_path(adapter.params)
    names = [name for name, leaf in leaves.items() if not all_finite(leaf)]
    with runtime.lock_run_directory(run):
        check_is_empty(run)  # again: another process may have been quicker
        with removed_after_error(run):
            copy_kept_files(base, run)
            (run / TOKENIZER_FILE).write_bytes((base / TOKENIZER_FILE).read_bytes())
            keep = run_config.checkpoint.keep
            with checkpoint.Checkpoints(run / "checkpoints", keep) as checkpoints:
                checkpoints.save_params(trained)
            write_base_record(run, record)
            card.record_import(run, architecture.model_type)
            # The last file: it turns the folder into a run.
            checkpoint.write_run_config(run, run_config, None, runtime.versions())
    return ImportedRun(
        architecture.model_type, run_config, [], nonfinite_warnings(directory, names)
    )


def complete_adapter(directory: Path, run_config: Config, adapter: Tree, base: Tree) -> Tree:
    """Return all that is trained: an adapter, and what it leaves to the base of a head.

    UserError, with a name, for a part of the head that neither has.
    """
    model = models.build(run_config.model, adapter=run_config.adapter)
    wanted = adapter_part(jax.eval_shape(model.init, jax.random.key(0)))
    there = leaves_by_path(adapter_part(base)) | leaves_by_path(adapter)
    missing = [path for path in leaves_by_path(wanted) if path not in there]
    if missing:
        raise UserError(f"{directory}: has no {missing[0]}, and neither has the base")
    return jax.tree_util.tree_map_with_path(lambda path, _: there[name_of(path)], wanted)


def find_base(directory: Path, edits: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the run that an adapter is of, as the edit `base=` says, and the other edits."""
    bases = [edit.removeprefix(BASE_KEY) for edit in edits if edit.startswith(BASE_KEY)]
    if not bases:
        raise UserError(f"{directory}: is an adapter of PEFT: say of which run, such as base=RUN")
    base = Path(bases[-1])
    if not is_run(base):
        raise UserError(
            f"base: {base} is no run; for a Hugging Face directory make one first: "
            f"python -m jaxlm.convert import {base} runs/{base.name}"
        )
    return base, [edit for edit in edits if not edit.startswith(BASE_KEY)]


def adapter_run_config(start: Config, edits: Sequence[str]) -> Config:
    """Return the config of a run that goes on with an adapter: `start`, changed by the edits.

    UserError where they make another adapter of it, or move the run.
    """
    edited, adapter = config.apply_edits(start, edits), start.adapter
    if edited.run_directory != start.run_directory:
        run = start.run_directory
        raise UserError(f"run_directory: is that of RUN ({run}); choose another RUN instead")
    if replace(edited.adapter, base=adapter.base, dropout=adapter.dropout) != adapter:
        raise UserError("adapter: is that of the directory; its base and dropout alone can change")
    return edited


def check_model(edited: ModelConfig, base: ModelConfig) -> None:
    """Raise UserError if edits make another model of the base's; a classifier's head is its own."""
    differing = differences(replace(edited, classifier=base.classifier), base)
    if differing:
        key = differing[0].partition(" ")[0]
        raise UserError(f"{key}: the base has another model: {differing[0]}")
