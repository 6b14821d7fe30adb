"""Make a run directory of a Hugging Face directory: its config, tokenizer and parameters."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import card, checkpoint, config, data, interop, objectives, runtime
from jaxlm.config import Config, ModelConfig, ObjectiveConfig, TokenizerConfig, UserError
from jaxlm.data.vocabulary import special_tokens
from jaxlm.interop.generation_config import read_generation_config
from jaxlm.interop.hf_config import read_hf_config
from jaxlm.interop.kept_files import keep_files
from jaxlm.interop.match_architecture import differences
from jaxlm.interop.tokenizer import (
    TOKENIZER_FILE,
    TokenizerFrame,
    load_tokenizer_json,
    read_tokenizer,
)

# Tokens of a sample, where the model leaves a choice.
MAX_SAMPLE_LENGTH, MIN_SAMPLE_LENGTH = 1024, 16
LOCK_FILE = ".lock"  # of a run directory


class ImportedRun(NamedTuple):
    """A run directory that was made."""

    model_type: str
    config: Config
    notes: list[str]  # what the run does otherwise than the Hugging Face directory says


def import_model(directory: Path, run: Path, edits: Sequence[str]) -> ImportedRun:
    """Make the run directory `run`, with the parameters of `directory` as step 0.

    `edits` are key=value changes to the run's config. UserError where the directory can't be read,
    where the edits make another model of it, or where `run` is not empty; then there is no `run`.
    """
    check_is_empty(run)
    architecture, model_config = interop.read_config(directory)
    tokenizer_config, frame = read_tokenizer(directory)
    objective, notes = choose_objective(model_config.family, frame)
    run_config = build_run_config(model_config, tokenizer_config, objective, run, edits)

    needed_tokens = special_tokens(run_config.tokenizer, run_config.objective.needs)
    tokenizer = data.load_tokenizer(directory / TOKENIZER_FILE, needed_tokens)
    if tokenizer.size > model_config.vocabulary_size:
        raise UserError(
            f"{directory / TOKENIZER_FILE}: has {tokenizer.size} ids, more than the vocabulary "
            f"of the model in config.json ({model_config.vocabulary_size})"
        )
    hf_config = read_hf_config(directory)
    notes += read_generation_config(directory, hf_config).warnings
    _, params = interop.load(directory)

    with runtime.lock_run_directory(run):
        check_is_empty(run)  # again: another process may have been quicker
        with removed_after_error(run):
            tokenizer.save(run / TOKENIZER_FILE)
            keep_files(directory, run, hf_config, load_tokenizer_json(directory / TOKENIZER_FILE))
            keep = run_config.checkpoint.keep
            with checkpoint.Checkpoints(run / "checkpoints", keep) as checkpoints:
                checkpoints.save_params(params)
            card.record_import(run, architecture.model_type)
            # The last file: it turns the folder into a run.
            checkpoint.write_run_config(run, run_config, None, runtime.versions())
    return ImportedRun(architecture.model_type, run_config, notes)


def check_is_empty(folder: Path) -> None:
    """Raise UserError unless a folder is absent or empty; the lock of a run doesn't count."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose a new folder")


@contextlib.contextmanager
def removed_after_error(run: Path) -> Iterator[None]:
    """Remove the run directory again if the import fails; it was empty before."""
    try:
        yield
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise


def build_run_config(
    model_config: ModelConfig,
    tokenizer_config: TokenizerConfig,
    objective: ObjectiveConfig,
    run: Path,
    edits: Sequence[str],
) -> Config:
    """Return the config of a run that continues with this model.

    UserError where the edits make another model of it, or move the run.
    """
    longest = min(model_config.context_length, MAX_SAMPLE_LENGTH)
    imported = Config(
        run_directory=str(run),
        model=model_config,
        objective=objective,
        tokenizer=replace(tokenizer_config, path=str(run / TOKENIZER_FILE)),
        data=config.DataConfig(
            sequence_length=sample_length(objective, longest, tokenizer_config.sentinels),
            # Unlike a hash it holds something out, however few the documents are.
            validation=config.ValidationConfig(method="tail"),
        ),
    )
    edited = config.apply_edits(imported, edits)

    if (edited.run_directory, edited.tokenizer.path) != (
        imported.run_directory,
        imported.tokenizer.path,
    ):
        raise UserError(
            f"run_directory, tokenizer.path: are those of RUN ({run}); choose another RUN instead"
        )
    differing = differences(edited.model, model_config)
    if differing:
        key = differing[0].partition(" ")[0]
        raise UserError(
            f"{key}: the imported parameters are those of another model: {differing[0]}"
        )
    return edited


def sample_length(objective: ObjectiveConfig, length: int, sentinels: int) -> int:
    """Return `length`, halved until its spans need no more sentinels than there are."""
    while length > MIN_SAMPLE_LENGTH:
        try:
            objectives.example(objective, length, sentinels)
            break
        except config.ConfigError:
            length //= 2
    return length


def choose_objective(family: str, frame: TokenizerFrame) -> tuple[ObjectiveConfig, list[str]]:
    """Return the objective that family and special tokens allow, and notes for the user."""
    if family != "encoder_decoder":
        return ObjectiveConfig(kind="causal" if family == "decoder" else "masked"), []

    kind = "span" if frame.sentinels else "infilling"
    if frame.decoder_start_id is None:
        return ObjectiveConfig(kind=kind), []
    starts: dict[int | None, Any] = {frame.eos_ids[0]: "end_of_text", frame.pad_id: "pad"}
    if frame.decoder_start_id in starts:
        return ObjectiveConfig(kind=kind, decoder_start=starts[frame.decoder_start_id]), []
    note = (
        f"the decoder starts with token {frame.decoder_start_id}; "
        "jaxlm trains it with the pad or the end of text instead"
    )
    return ObjectiveConfig(kind=kind), [note]
