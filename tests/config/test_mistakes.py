"""What a user sees after a mistake: one line that names the key or the file, exit code 2, and nothing that stands in the way."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import absl.logging
import jax
import pytest

from jaxlm import runtime, train, trainer

RECIPE = """
from jaxlm.config import Config, DataConfig, EvaluationConfig, ModelConfig, PrecisionConfig, SourceConfig, TokenizerConfig, TrainingConfig, ValidationConfig

config = Config(
    model=ModelConfig(vocabulary_size=257, layers=1, width=16, heads=2, context_length=16),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(sources=(SourceConfig(name="text", path="text.txt"),), sequence_length=16, validation=ValidationConfig(method="tail", share=0.1)),
    training=TrainingConfig(steps=2, batch_size=8),
    evaluation=EvaluationConfig(samples=0, steps=1),
    precision=PrecisionConfig(compute="float32"),
)
"""

FILES = {
    "recipe.py": RECIPE.encode(),
    "text.txt": b"It was the best of times, it was the worst of times. " * 10,
    "empty.txt": b"",
    "latin.txt": b"caf\xe9",
    "short.txt": b"too short",
    "broken.jsonl": b'{"text": "fine"}\n\n{"text": "no end\n',
    "otherkey.jsonl": b'{"text": "fine"}\n{"txt": "oh"}\n',
    "notokenizer.json": b'{"a": 1}',
    "file": b"",
}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stocked")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    return folder


@pytest.fixture
def folder(stocked, tmp_path, monkeypatch):
    """The working directory of a user, with the files above. What a command sets for its whole process is put back."""
    shutil.copytree(stocked, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert len(jax.devices()) == 8  # a command could ask for more before jax starts
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    levels = absl.logging.get_verbosity(), logging.getLogger("asyncio").level
    yield tmp_path
    absl.logging.set_verbosity(levels[0])
    logging.getLogger("asyncio").setLevel(levels[1])


def command(*argv):
    return runtime.command(train.main, argv)


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def only_line(text):
    """The message: stderr holds one line and nothing else."""
    assert text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.removeprefix("error: ").rstrip("\n")


BEFORE_ANYTHING = [  # arguments after `--config recipe.py`, what the line begins with
    (["--color"], "unrecognized arguments: --color (see python -m jaxlm.train --help)"),
    (["--data"], "argument --data: expected one argument"),
    (["layers=3"], "layers: unknown key (did you mean 'model.layers'?)"),
    (["model.layers"], "model.layers: is not an edit"),
    (["model.layers=many"], "model.layers: must be a whole number, got 'many'"),
    (["--devices", "two"], "runtime.devices: must be a whole number or none, got 'two'"),
    (["--data", ""], "data.sources.path: must not be empty"),
    (["model.vocabulary_size=256"], "model.vocabulary_size: 256 is below the 257 ids"),
    (["data.sequence_length=32"], "data.sequence_length: 32 exceeds model.context_length (16)"),
    (["--config", "recip.py"], "recip.py: no such config file (did you mean 'recipe.py'?)"),
    (["--config", "text.txt"], "text.txt: is neither a Python file nor a saved config.json"),
    (["runtime.compilation_cache=file/cache"], "runtime.compilation_cache: can't make "),
]


@pytest.mark.parametrize(
    ("argv", "message"), BEFORE_ANYTHING, ids=[" ".join(argv) for argv, _ in BEFORE_ANYTHING]
)
def test_mistakes_in_the_config_leave_no_trace(folder, capsys, argv, message):
    before = contents(folder)
    assert command("--config", "recipe.py", *argv) == 2
    assert only_line(capsys.readouterr().err).startswith(message)
    assert contents(folder) == before


LATER = [  # found with jax (on the 8 devices of these tests) or in the data
    (
        ["training.batch_size=6"],
        "training.batch_size: 6 sequences can't be split evenly over 8 devices",
    ),
    (
        ["evaluation.batch_size=6"],
        "evaluation.batch_size: 6 sequences can't be split evenly over 8 devices",
    ),
    (
        ["training.microbatches=2"],
        "training.batch_size: 8 sequences can't be split evenly over 8 devices x 2 microbatches",
    ),
    (["parallel.tensor=3"], "parallel: data 1 x tensor 3 does not fit 8 devices"),
    (
        ["parallel.data=4", "parallel.fsdp=4"],
        "parallel: data 4 x fsdp 4 x tensor 1 does not fit 8 devices",
    ),
    (["parallel.tensor=4"], "parallel.tensor: 4 does not divide model.heads (2)"),
    (
        ["parallel.zero=1", "parallel.data=8", "parallel.fsdp=1"],
        "parallel.zero: stage 1 splits the state over parallel.fsdp, which is 1",
    ),
    (["--devices", "1000"], "runtime.devices: 1000 devices asked for, "),
    (["run_directory=file"], "run_directory: "),
    (["data.store=file"], "data.store: file"),
    (["--data", "tex.txt"], "data.sources: tex.txt: no such file (did you mean 'text.txt'?)"),
    (["--data", "nothing"], "data.sources: nothing: holds no files"),
    (["--data", "*.csv"], "data.sources: *.csv: no such file"),
    (["--data", "empty.txt"], "data.sources"),
    (["--data", "latin.txt"], "latin.txt: not UTF-8 at byte 3 (0xe9)"),
    (["--data", "broken.jsonl"], "broken.jsonl:3: not JSON: "),
    (
        ["--data", "otherkey.jsonl"],
        "otherkey.jsonl:2: no key 'text' (did you mean 'txt'?); data.sources.text_key",
    ),
    (
        ["data.validation.method=hash"],
        "data.validation.method: 'hash' needs at least 20 documents, found 1; 'tail' ",
    ),
    (
        ["data.validation.method=source", "data.validation.path=no.txt"],
        "data.validation.path: no.txt: no such file",
    ),
    (["tokenizer.kind=file", "tokenizer.path=no.json"], "tokenizer.path: no.json: "),
    (
        ["tokenizer.kind=file", "tokenizer.path=notokenizer.json"],
        "tokenizer.path: notokenizer.json: not a tokenizer.json: ",
    ),
]


@pytest.mark.parametrize(("argv", "message"), LATER, ids=[" ".join(argv) for argv, _ in LATER])
def test_mistakes_found_later_start_no_run(folder, capsys, argv, message):
    before = contents(folder)
    assert command("--config", "recipe.py", *argv) == 2
    assert only_line(capsys.readouterr().err).startswith(message)
    found = contents(folder) - before
    assert not {
        path
        for path in found
        if path.endswith((".jsonl", ".json", ".bin")) and path != "stores/fingerprints.json"
    }
    assert (folder / "file").read_bytes() == b""


def test_a_tokenizer_larger_than_the_model(folder, capsys):
    """A tokenizer from a file tells its size only once it is read."""
    inner = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
    }
    words = {"[UNK]": 0, "<|endoftext|>": 1} | {
        f"word{number}": number + 2 for number in range(298)
    }
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    (folder / "words.json").write_text(
        json.dumps(inner | {"added_tokens": [], "decoder": None, "model": model})
    )
    assert command("--config", "recipe.py", "tokenizer.kind=file", "tokenizer.path=words.json") == 2
    assert only_line(capsys.readouterr().err).startswith(
        "model.vocabulary_size: 257 is below the 300 ids of the tokenizer"
    )


def test_after_too_little_data_the_same_command_goes_on_with_more(folder, capsys, monkeypatch):
    """The mistake that shows last: all has been prepared when no window fits. What it leaves must not stand in the way."""
    # Takes seconds to compile, and no step is reached.
    monkeypatch.setattr(trainer, "build_state", lambda *_: SimpleNamespace(params=None))
    monkeypatch.setattr(trainer, "Evaluator", lambda *_, **__: None)
    shutil.copy("short.txt", "mine.txt")
    argv = ["--config", "recipe.py", "--data", "mine.txt"]
    assert command(*argv) == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith(
        "data.sequence_length: a window takes 17 tokens, but the training split of "
    )
    shutil.copy("text.txt", "mine.txt")
    monkeypatch.setattr(trainer, "run_steps", lambda *_: (None, True))
    assert command(*argv) == trainer.STOPPED, capsys.readouterr().err


ITSELF = [
    ([], "the following arguments are required: --config"),
    (["--config", "recipe.py", "--data", "no.txt"], "data.sources: no.txt: no such file"),
]


@pytest.mark.parametrize(("argv", "message"), ITSELF, ids=["without jax", "with jax"])
def test_the_command_itself(folder, argv, message):
    """In a process of its own, as a shell starts it: nothing but the line, whatever libraries would like to say."""
    root = Path(train.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxlm.train", *argv],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert only_line(done.stderr).startswith(message)


def test_help_needs_no_config(capsys):
    with pytest.raises(SystemExit) as left:
        command("--help")
    assert left.value.code == 0
    assert "python -m jaxlm.train --config configs/" in capsys.readouterr().out
