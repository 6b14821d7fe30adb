"""python -m jaxlm.convert import HF_DIR RUN | export RUN OUT: models from and for Hugging Face transformers.

jax is imported inside the functions, after `runtime.configure` has set what must be set before it.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm import config, runtime
from jaxlm.config import Config, UserError

if TYPE_CHECKING:
    from jaxlm.interop import Architecture
    from jaxlm.interop.tokenizer import TokenizerFrame

EXAMPLE = """examples:
  python -m jaxlm.convert import gpt2/ runs/gpt2
  python -m jaxlm.train --config runs/gpt2/config.json --data 'books/*.txt' training.steps=2000

  python -m jaxlm.convert import bert/ runs/bert optimizer.learning_rate=5e-5 data.sequence_length=256
  python -m jaxlm.convert export runs/quickstart quickstart-hf
  python -m jaxlm.convert export runs/llama llama-hf --step 20000 --dtype bfloat16 --max-shard-size 2GB --archive

HF_DIR is a folder with config.json, safetensors and tokenizer.json; RUN a run_directory. What is exported loads in transformers."""

LONGEST_SAMPLE, SHORTEST_SAMPLE = 1024, 16  # tokens of a sample where an import may choose
LOCK = ".lock"  # of a run directory
UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024))
}


def parser() -> runtime.Parser:
    made = runtime.Parser(
        prog="python -m jaxlm.convert",
        description="Bring a model in from Hugging Face transformers, or take one there.",
        epilog=EXAMPLE,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="import|export")
    into = commands.add_parser(
        "import",
        description="Make a run directory that training goes on from.",
        epilog=EXAMPLE,
        help="HF_DIR RUN: make a run directory of a Hugging Face one",
    )
    into.add_argument(
        "directory",
        type=Path,
        metavar="HF_DIR",
        help="config.json, model.safetensors (or shards) and tokenizer.json",
    )
    into.add_argument("run", type=Path, metavar="RUN", help="the run directory to make")
    into.add_argument(
        "edits",
        nargs="*",
        metavar="key=value",
        help="changes to the run's config, such as optimizer.learning_rate=5e-5",
    )
    out = commands.add_parser(
        "export",
        description="Write a run's model for transformers.",
        epilog=EXAMPLE,
        help="RUN OUT: write a run's model for transformers",
    )
    out.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    out.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    which = out.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint to take (the newest)")
    which.add_argument(
        "--best", action="store_true", help="take the checkpoint with the lowest eval/loss"
    )
    out.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (float32)",
    )
    out.add_argument(
        "--max-shard-size",
        type=size,
        default="5GB",
        metavar="SIZE",
        help="bytes of a weights file: 5GB, 500MB, 2GiB (5GB)",
    )
    out.add_argument(
        "--archive",
        action="store_true",
        help="also write OUT/model.tar.gz, as SageMaker's Hugging Face containers read it",
    )
    return made


def size(text: str) -> int:
    """Bytes; argparse turns the error into ours."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B|)", text)
    count = int(float(found[1]) * UNITS.get(found[2], 0)) if found else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 5GB or 500MB")
    return count


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    runtime.configure(config.RuntimeConfig(platform="cpu"))
    if args.command == "import":
        bring(args.directory, args.run, args.edits)
    else:
        take(
            args.run, args.out, args.step, args.best, args.dtype, args.max_shard_size, args.archive
        )
    return 0


def log(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def bring(directory: Path, run: Path, edits: Sequence[str]) -> None:
    """Makes the run directory `run` of a Hugging Face directory: config.json, tokenizer.json and the parameters as step 0."""
    from jaxlm import card, checkpoint, data, interop
    from jaxlm.data.vocabulary import special_tokens
    from jaxlm.interop import generation_config, tokenizer
    from jaxlm.interop import hf_config as files

    check_empty(run)
    architecture, model = interop.read_config(directory)
    found, special = tokenizer.read(directory)
    settings = run_config(model, found, special, run, edits)
    inner = data.load_tokenizer(
        directory / tokenizer.FILE, special_tokens(settings.tokenizer, settings.objective.needs)
    )
    if inner.size > model.vocabulary_size:
        reason = f"has {inner.size} ids, more than the vocabulary of the model in config.json ({model.vocabulary_size})"
        raise UserError(f"{directory / tokenizer.FILE}: {reason}")
    _, params = interop.load(directory)
    with runtime.lock(run):
        check_empty(run)  # again: another process may have been quicker
        with undone(run):
            inner.save(run / tokenizer.FILE)
            with checkpoint.Checkpoints(run / "checkpoints", settings.checkpoint.keep) as saved:
                saved.save_params(params)
            card.record_import(run, architecture.model_type)
            checkpoint.write_run_config(
                run, settings, None, runtime.versions()
            )  # last: it makes a run of the folder
    log(
        *(
            f"note: {line}"
            for line in generation_config.read(directory, files.read(directory)).warnings
        )
    )
    again = f"python -m jaxlm.train --config {shlex.quote(str(run / 'config.json'))} --data TEXT training.steps=N"
    log(
        f"{run}: {architecture.model_type}, objective {settings.objective.kind}. Train it on with\n  {again}"
    )


def check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder")
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise UserError(f"{folder}: is not empty; choose a new folder")


@contextlib.contextmanager
def undone(run: Path) -> Iterator[None]:
    """After an error the run directory, which was empty, is gone again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        raise


def run_config(
    model: config.ModelConfig,
    tokenizer: config.TokenizerConfig,
    special: "TokenizerFrame",
    run: Path,
    edits: Sequence[str],
) -> Config:
    """The config of a run that goes on with this model; UserError where the edits make another model of it."""
    from jaxlm.interop.match_architecture import differences

    goal = objective(model.family, special)
    made = Config(
        run_directory=str(run),
        model=model,
        objective=goal,
        tokenizer=replace(tokenizer, path=str(run / "tokenizer.json")),
        data=config.DataConfig(
            sequence_length=sample_length(
                goal, min(model.context_length, LONGEST_SAMPLE), tokenizer.sentinels
            ),
            validation=config.ValidationConfig(
                method="tail"
            ),  # has enough to hold out, however few the documents are
        ),
    )
    settings = config.edited(made, edits)
    if (settings.run_directory, settings.tokenizer.path) != (
        made.run_directory,
        made.tokenizer.path,
    ):
        raise UserError(
            f"run_directory, tokenizer.path: are those of RUN ({run}); choose another RUN instead"
        )
    differing = differences(settings.model, model)
    if differing:
        raise UserError(
            f"{differing[0].partition(' ')[0]}: the imported parameters are of another model: {differing[0]}"
        )
    return settings


def sample_length(goal: config.ObjectiveConfig, length: int, sentinels: int) -> int:
    """`length`, or the first of its halves whose spans don't need more sentinels than there are."""
    from jaxlm import objectives

    while length > SHORTEST_SAMPLE:
        try:
            objectives.example(goal, length, sentinels)
            break
        except config.ConfigError:
            length //= 2
    return length


def objective(family: str, special: "TokenizerFrame") -> config.ObjectiveConfig:
    """The objective that the family, and the special tokens that there are, allow."""
    if family != "encoder_decoder":
        return config.ObjectiveConfig(kind="causal" if family == "decoder" else "masked")
    starts: dict[int | None, Any] = {special.eos_ids[0]: "end_of_text", special.pad_id: "pad"}
    start = None if special.decoder_start_id is None else starts.get(special.decoder_start_id)
    if special.decoder_start_id is not None and start is None:
        log(
            f"note: the decoder starts with token {special.decoder_start_id}, which jaxlm trains with the pad or the end of text instead"
        )
    return config.ObjectiveConfig(
        kind="span" if special.sentinels else "infilling", decoder_start=start
    )


def take(
    run: Path, out: Path, step: int | None, best: bool, dtype: str, shard_bytes: int, archived: bool
) -> None:
    """Writes the model of a run into the new folder `out`: config.json, weights, tokenizer, generation_config.json and the card."""
    from jaxlm import card, interop, load_model
    from jaxlm.interop import archive, generation_config, tokenizer

    settings = exportable(run)
    check_empty(out)
    architecture, values = interop.match_architecture(settings.model)
    special = tokenizer.of_run(
        settings.tokenizer, settings.objective, tokenizer.load(run / tokenizer.FILE)
    )
    tokens = token_ids(special, architecture)
    interop.with_tokens(
        architecture, settings.model, values, tokens
    )  # what can't be written is said before any work
    model = load_model.load_model(run, step=best_step(run, settings) if best else step)
    with appearing(out) as folder:
        interop.save(
            folder,
            settings.model,
            model.params,
            dtype=dtype,
            max_shard_bytes=shard_bytes,
            tokens=tokens,
        )
        text, length = (
            (run / tokenizer.FILE).read_text(encoding="utf-8"),
            settings.model.context_length,
        )
        tokenizer.write(folder, text, special, length, token_types=settings.model.token_types > 1)
        if settings.model.family != "encoder":
            generation_config.write(folder, tokens, length)
        card.write_card(
            folder,
            card.gather_facts(
                run,
                settings,
                model.model.parameter_count(),
                model.step,
                exported=architecture.model_type,
            ),
        )
        if archived:
            archive.pack(folder)
    log(
        f"{out}: {architecture.model_type} of step {model.step}, {dtype}, {model.model.parameter_count():,} parameters"
    )


def exportable(run: Path) -> Config:
    """The config of a run directory."""
    path = run / "config.json"
    if not run.is_dir():
        raise UserError(
            f"{run}: {'is not a directory' if run.exists() else 'there is no such directory'}"
        )
    if not path.exists():
        raise UserError(f"{run}: is no run directory: it has no config.json")
    if "run_directory" not in path.read_text(encoding="utf-8", errors="replace"):
        raise UserError(
            f"{path}: is not the config.json of a run; a Hugging Face directory needs no export"
        )
    if not (run / "checkpoints").is_dir():
        raise config.NoCheckpointError(f"{run}: there is no checkpoint")
    return config.load(path)


def best_step(run: Path, settings: Config) -> int:
    from jaxlm.checkpoint import Checkpoints

    folder = run / "checkpoints"
    with Checkpoints(folder, settings.checkpoint.keep) as saved:
        best = saved.best()
    if best is None:
        raise config.NoCheckpointError(f"{folder}: --best: no checkpoint has an eval/loss")
    return best


def token_ids(special: "TokenizerFrame", architecture: "Architecture") -> dict[str, Any]:
    """The ids for config.json and generation_config.json, None where there is no such token."""
    from jaxlm.interop import generation_config

    end = special.eos_ids[0]
    ids = {"bos_token_id": special.bos_id, "eos_token_id": end, "pad_token_id": special.pad_id}
    if architecture.family == "encoder" and special.begin_of_text is not None:
        ids |= {"cls_token_id": special.bos_id, "sep_token_id": end}
    if architecture.family == "encoder_decoder":
        ids["decoder_start_token_id"] = special.decoder_start_id
    if "forced_eos_token_id" in generation_config.DEFAULTS.get(architecture.model_type, {}):
        ids["forced_eos_token_id"] = end  # else the class's own number, which is another token here
    return ids


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all is in it; after an error there is nothing of it left."""
    folder = out.absolute().parent / f".{out.absolute().name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.replace(out)
    except OSError as error:
        raise UserError(f"{out}: can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    runtime.run(main)
