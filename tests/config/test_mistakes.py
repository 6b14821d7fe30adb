"""A user's mistake gives one line that names the key or the file, and exit code 2."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import absl.logging
import jax
import pytest

import jaxlm
from jaxlm import runtime, train, trainer
from jaxlm.config import UserError

RECIPE = """
from jaxlm.config import *

config = Config(
    model=ModelConfig(vocabulary_size=257, layers=1, width=16, heads=2, context_length=16),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(
        sources=(SourceConfig(name="text", path="text.txt"),),
        sequence_length=16,
        validation=ValidationConfig(method="tail", share=0.1),
    ),
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
    """Enter the working directory of a user, with the files above.

    What a command sets for its whole process is put back.
    """
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
    """Return the message. stderr holds one line and nothing else."""
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
    (["--data", ""], "data.sources.0.path: must not be empty"),
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
    (["parallel.data=3"], "parallel: data 3 x tensor 1 does not fit 8 devices"),
    (
        ["parallel.data=4", "parallel.fsdp=4"],
        "parallel: data 4 x fsdp 4 x tensor 1 does not fit 8 devices",
    ),
    (["parallel.tensor=4"], "parallel.tensor: 4 does not divide model.heads (2)"),
    (
        ["parallel.zero=1", "parallel.data=8", "parallel.fsdp=1"],
        "parallel.zero: stage 1 splits the state over parallel.fsdp, which is 1",
    ),
    (
        ["--devices", "1000", "training.batch_size=1000"],
        "runtime.devices: 1000 devices requested, ",
    ),
    (["run_directory=file"], "run_directory: "),
    (["data.store=file"], "data.store: file"),
    (
        ["--data", "tex.txt"],
        "data.sources.0.path: tex.txt: no such file (did you mean 'text.txt'?)",
    ),
    (["--data", "nothing"], "data.sources.0.path: nothing: holds no files"),
    (["--data", "*.csv"], "data.sources.0.path: *.csv: no such file"),
    (["--data", "empty.txt"], "data.sources.0.path: empty.txt holds no text"),
    (["--data", "latin.txt"], "latin.txt: not UTF-8 at byte 3 (0xe9)"),
    (["--data", "broken.jsonl"], "broken.jsonl:3: not JSON: "),
    (
        ["--data", "otherkey.jsonl"],
        "otherkey.jsonl:2: no key 'text' (did you mean 'txt'?); data.sources.0.text_key",
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
    new = contents(folder) - before
    assert not {
        path
        for path in new
        if path.endswith((".jsonl", ".json", ".bin")) and path != "stores/fingerprints.json"
    }
    assert (folder / "file").read_bytes() == b""


def test_a_tokenizer_larger_than_the_model(folder, capsys):
    """The size of a tokenizer from a file is known only once it is read."""
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
    # This mistake shows last: all data is prepared when no window fits. It must not block a retry.
    shutil.copy("short.txt", "mine.txt")
    argv = ["--config", "recipe.py", "--data", "mine.txt"]
    assert command(*argv) == 2
    line = only_line(capsys.readouterr().err)
    assert line.startswith(
        "data.sequence_length: a window takes 17 tokens, but the training split of "
    )

    # With more data it comes as far as the state, which would take seconds to compile.
    def create_state(*_, **__):
        raise UserError("the data is ready")

    monkeypatch.setattr(trainer, "build_state", create_state)
    shutil.copy("text.txt", "mine.txt")
    assert command(*argv) == 2
    assert only_line(capsys.readouterr().err) == "the data is ready"


def test_a_missing_file_for_an_existing_run_is_named(copied_run, capsys):
    """The run also differs in the name of its source, which helps nobody."""
    copied_run("decoder")
    assert command("--config", "tiny.py", "--data", "nothere.txt", "training.steps=14") == 2
    message = only_line(capsys.readouterr().err)
    assert message.startswith("data.sources.0.path: nothere.txt: no such file")


def test_a_damaged_shard_ends_a_run_in_one_line(copied_run, capsys):
    folder = copied_run("decoder")
    (shard,) = folder.glob("stores/*/train-0-00000.bin")
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert command("--config", "tiny.py", "training.steps=14") == 2
    message = only_line(capsys.readouterr().err)
    assert message.startswith(f"{shard.relative_to(folder)}: damaged: its checksum is ")


def test_words_that_are_never_hidden_whole_are_warned_of(folder, capsys, monkeypatch):
    def create_state(*_, **__):
        raise UserError("the data is ready")

    monkeypatch.setattr(trainer, "build_state", create_state)
    (folder / "dna.txt").write_text("ACGT" * 1000)
    edits = [
        "model.family=encoder",
        "objective.kind=masked",
        "model.vocabulary_size=259",
        "objective.whole_words=true",
    ]
    for path, warnings in (("dna.txt", 1), ("text.txt", 0)):
        assert command("--config", "recipe.py", "--data", path, *edits) == 2
        output = capsys.readouterr()
        assert only_line(output.err) == "the data is ready"
        assert output.out.count("warning: objective: nothing is predicted") == warnings


def test_the_config_json_of_a_run_may_have_a_byte_order_mark(copied_run, capsys):
    path = copied_run("decoder") / "runs" / "tiny" / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert command("--config", "tiny.py", "run_directory=runs/tiny") == 0
    assert "12 of 12 steps are done" in capsys.readouterr().out


ITSELF = [
    ([], "the following arguments are required: --config"),
    (["--config", "recipe.py", "--data", "no.txt"], "data.sources.0.path: no.txt: no such file"),
]


def python(*arguments):
    """Run Python in a process of its own."""
    root = Path(jaxlm.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("argv", "message"), ITSELF, ids=["without jax", "with jax"])
def test_the_command_itself(folder, argv, message):
    """Run as a shell does, a command prints nothing but the line, whatever libraries log."""
    done = python("-m", "jaxlm.train", *argv)
    assert done.returncode == 2
    assert only_line(done.stderr).startswith(message)


def test_help_needs_no_config(capsys):
    with pytest.raises(SystemExit) as left:
        command("--help")
    assert left.value.code == 0
    assert "python -m jaxlm.train --config configs/" in capsys.readouterr().out


WITHOUT_JAX = """
import importlib, sys
from jaxlm import runtime

for name in ("train", "evaluate", "generate", "convert", "harness"):
    main = importlib.import_module(f"jaxlm.{name}").main
    try:
        runtime.command(main, ["--help"])
    except SystemExit as end:
        assert end.code == 0, name
    if name != "harness":  # lm_eval parses its arguments
        assert runtime.command(main, ["--no-such-option"]) == 2, name

main = sys.modules["jaxlm.train"].main
for edit in ("layers=3", "model.heads=7", "training.microbatches=3", "runtime.processes=2"):
    assert runtime.command(main, ["--config", "recipe.py", edit]) == 2, edit

loaded = {"jax", "flax", "optax", "orbax", "grain"} & set(sys.modules)
assert not loaded, loaded
"""


def test_help_and_config_errors_do_not_load_jax(folder):
    """Loading jax takes a second, several times as long as everything else at the start."""
    done = python("-c", WITHOUT_JAX)
    assert done.returncode == 0, done.stderr


def test_a_recipe_of_an_older_version_is_told_the_new_name(folder, capsys):
    (folder / "my.py").write_text(
        "# An old recipe.\n\nfrom jaxlm.config import Config, Model\nconfig = Config()\n"
    )
    assert command("--config", "my.py") == 2
    message = only_line(capsys.readouterr().err)
    assert message == "my.py:3: jaxlm.config.Model is called ModelConfig"
