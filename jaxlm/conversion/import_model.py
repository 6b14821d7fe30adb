"""Make a run directory of a Hugging Face directory: its config, tokenizer and parameters."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import card, chat, checkpoint, config, data, interop, models, objectives, runtime
from jaxlm.config import Config, ModelConfig, ObjectiveConfig, TokenizerConfig, UserError
from jaxlm.data.new_tokens import NewToken, add_new_tokens
from jaxlm.data.vocabulary import special_tokens
from jaxlm.directories import is_run
from jaxlm.interop.generation_config import read_generation_config
from jaxlm.interop.hf_config import read_hf_config
from jaxlm.interop.kept_files import keep_files
from jaxlm.interop.match_architecture import differences
from jaxlm.interop.tokenizer import (
    TOKENIZER_FILE,
    TokenizerFrame,
    check_tokens,
    load_tokenizer_json,
    read_tokenizer,
)
from jaxlm.types import Tree

# Tokens of a sample, where the model leaves a choice.
MAX_SAMPLE_LENGTH, MIN_SAMPLE_LENGTH = 1024, 16
LOCK_FILE = ".lock"  # of a run directory


class ImportedRun(NamedTuple):
    """A run directory that was made."""

    model_type: str
    config: Config
    notes: list[str]  # what the run does otherwise than the Hugging Face directory says
    warnings: list[str]  # what is wrong with the model


def import_model(
    directory: Path, run: Path, edits: Sequence[str], new_tokens: Sequence[NewToken] = ()
) -> ImportedRun:
    """Make the run directory `run`, with the parameters of `directory` as step 0.

    `edits` are key=value changes to the run's config. `new_tokens` are added to the tokenizer, and
    their rows to the parameters. UserError where the directory can't be read, where the edits make
    another model of it, or where `run` is not empty; then there is no `run`.
    """
    check_is_empty(run)
    check_is_no_run(directory)
    architecture, model_config = interop.read_config(directory)
    tokenizer_config, frame = read_tokenizer(directory)
    objective, notes = choose_objective(model_config.family, frame, edited_objective(edits))
    if model_config.is_classifier:
        objective, notes = replace(objective, kind="classify"), []
        if frame.pad_id is None:  # a length says where the padding is: any token will do
            tokenizer_config = replace(tokenizer_config, pad=tokenizer_config.end_of_text)
    elif model_config.generator_share is not None:
        objective = ObjectiveConfig(kind="replaced_tokens")
    if model_config.generator_share == 0 and not model_config.is_classifier:
        notes.append(
            "there is no folder generator with an ElectraForMaskedLM, without which the model is "
            "not trained any further; it can be the base of a classifier"
        )
    run_config = build_run_config(model_config, tokenizer_config, objective, run, edits)

    inner = load_tokenizer_json(directory / TOKENIZER_FILE)
    needed_tokens = special_tokens(run_config.tokenizer, run_config.objective.needs)
    check_tokens(
        directory / TOKENIZER_FILE, inner, run_config.objective.kind, needed_tokens.required
    )
    tokenizer = data.wrap_tokenizer(
        load_tokenizer_json(directory / TOKENIZER_FILE), needed_tokens, directory / TOKENIZER_FILE
    )
    if tokenizer.size > model_config.vocabulary_size:
        raise UserError(
            f"{directory / TOKENIZER_FILE}: has {tokenizer.size} ids, more than the vocabulary "
            f"of the model in config.json ({model_config.vocabulary_size})"
        )
    hf_config = read_hf_config(directory)
    notes += read_generation_config(directory, hf_config).warnings
    _, params = interop.load(directory)
    warnings = nonfinite_warnings(directory, interop.nonfinite_tensors(directory, params))

    if new_tokens:
        add_new_tokens(inner, new_tokens)  # the flags of its tokens are kept
        run_config, tokenizer, params = add_tokens(run_config, tokenizer, params, new_tokens)

    with runtime.lock_run_directory(run):
        check_is_empty(run)  # again: another process may have been quicker
        with removed_after_error(run):
            keep_files(directory, run, hf_config, inner)
            if run_config.tokenizer.chat_template is not None:
                chat.keep_template(run_config.tokenizer, run)
            card.record_import(run, architecture.model_type)
            write_first_step(run, run_config, tokenizer, params)
    return ImportedRun(architecture.model_type, run_config, notes, warnings)


def add_tokens(
    run_config: Config, tokenizer: data.Tokenizer, params: Tree, new_tokens: Sequence[NewToken]
) -> tuple[Config, data.Tokenizer, Tree]:
    """Return config, tokenizer and parameters of a run with more tokens.

    Raises the errors of `add_new_tokens`.
    """
    pieces = add_new_tokens(tokenizer.inner, new_tokens)
    extended = data.Tokenizer(tokenizer.inner, tokenizer.special)
    model = models.build(run_config.model)
    model_config, params = models.extend_vocabulary(model, params, pieces)
    return replace(run_config, model=model_config), extended, params


def write_first_step(
    run: Path, run_config: Config, tokenizer: data.Tokenizer, params: Tree
) -> None:
    """Write the files that make a folder a run whose step 0 are these weights."""
    tokenizer.save(run / TOKENIZER_FILE)
    with checkpoint.Checkpoints(run / "checkpoints", run_config.checkpoint.keep) as checkpoints:
        checkpoints.save_params(params)
    # The last file: it turns the folder into a run.
    checkpoint.write_run_config(run, run_config, None, runtime.versions())


def check_is_no_run(directory: Path) -> None:
    """Raise UserError for a run directory, which needs no import."""
    if is_run(directory) or "run_directory" in read_hf_config(directory):
        raise UserError(
            f"{directory}: is a run, not a Hugging Face directory; train continues it: "
            f"python -m jaxlm.train --config {directory / 'config.json'}"
        )


def nonfinite_warnings(source: Path, names: list[str]) -> list[str]:
    """Return a line about the tensors that have NaN or an infinity, if there are any."""
    if not names:
        return []
    have = "has" if len(names) == 1 else f"and {len(names) - 1} more have"
    return [
        f"{source}: {names[0]} {have} values that are not finite (NaN or infinity), so that the "
        "model's scores are not finite either"
    ]


def check_is_empty(folder: Path) -> None:
    """Raise UserError unless a folder is absent or empty; the lock of a run doesn't count."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder")
    try:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder}: can't be read: {error.strerror}") from error
    if set(names) - {LOCK_FILE}:
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
    if objective.kind == "pairs":
        sources = (config.SourceConfig(name="pairs", path="pairs.jsonl", format="pairs"),)
        validation = config.ValidationConfig()  # cutting off the tail would cut pairs in two
    elif objective.kind == "classify":
        labelled = config.SourceConfig(name="labelled", path="labelled.jsonl", format="labelled")
        sources, validation = (labelled,), config.ValidationConfig()
    else:
        sources = config.DataConfig().sources
        # Unlike a hash it holds something out, however few the documents are.
        validation = config.ValidationConfig(method="tail")
    imported = Config(
        run_directory=str(run),
        model=model_config,
        objective=objective,
        tokenizer=replace(tokenizer_config, path=str(run / TOKENIZER_FILE)),
        data=config.DataConfig(
            sources=sources,
            sequence_length=sample_length(objective, longest, tokenizer_config.sentinels),
            validation=validation,
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
    while length > MIN_SAMPLE_LENGTH and objective.kind != "classify":
        try:
            objectives.example(objective, length, sentinels)
            break
        except config.ConfigError:
            length //= 2
    return length


def edited_objective(edits: Sequence[str]) -> str | None:
    """Return the objective that the edits ask for; None where they leave it open."""
    values = [edit.partition("=")[2] for edit in edits if edit.startswith("objective.kind=")]
    return values[-1] if values else None


def choose_objective(
    family: str, frame: TokenizerFrame, wanted: str | None = None
) -> tuple[ObjectiveConfig, list[str]]:
    """Return the objective that family and special tokens allow, and notes for the user.

    Pairs, whose sources have a format of their own, are also chosen where they are `wanted`.
    """
    if family != "encoder_decoder":
        return ObjectiveConfig(kind="causal" if family == "decoder" else "masked"), []

    notes = []
    kind = "span" if frame.sentinels else "infilling"
    if wanted == "pairs" or (wanted is None and not frame.sentinels and frame.mask is None):
        kind = "pairs"
    if kind == "pairs" and wanted is None:
        notes.append(
            "the tokenizer has no mask and no sentinels, so the objective is pairs: --data takes "
            'JSON lines with "source" and "target"'
        )
    if frame.decoder_start_id is None:
        return ObjectiveConfig(kind=kind), notes

    starts: dict[int | None, Any] = {frame.eos_ids[0]: "end_of_text", frame.pad_id: "pad"}
    if frame.decoder_start_id in starts:
        return ObjectiveConfig(kind=kind, decoder_start=starts[frame.decoder_start_id]), notes
    notes.append(
        f"the decoder starts with token {frame.decoder_start_id}; "
        "jaxlm trains it with the pad or the end of text instead"
    )
    return ObjectiveConfig(kind=kind), notes
