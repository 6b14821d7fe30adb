"""Random command lines with hostile values, over all commands.

Each ends with a documented exit code and at most one `error:` line, and soon. The lines are run in
one process on a tiny run and its export; `HOSTILE_LINES` and `HOSTILE_SEED` set others.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import traceback
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxlm import __main__, convert, evaluate, generate, runtime, train, trainer
from jaxlm.config import Config, SourceConfig
from jaxlm.config.edits import all_keys, item_keys
from jaxlm.config.fields import field_types, join, split_bounds, split_optional

COMMANDS = ("jaxlm", "prepare", "train", "generate", "evaluate", "convert", "harness")
EXIT_CODES = (0, 2, 3, 4, 75)
LINES = int(os.environ.get("HOSTILE_LINES", "50"))  # of each command
SEED = int(os.environ.get("HOSTILE_SEED", "0"))
SECONDS_TO_STOP, SECONDS_TO_HANG = 120, 240  # a signal to stop; then the command hangs
MEMORY = 8 << 30  # bytes beyond what the process has: /dev/zero has no end

NUMBERS = (
    *("-1", "0", "1", "2", "3", "2.5", "1e39", "1e-40", "1e400", "nan", "inf", "-inf", "-0.0"),
    *(
        "65536",
        "1000000",
        "2147483647",
        "2147483648",
        "9" * 30,
        "9" * 5000,
        "0x10",
        "1_0",
        "\u0661",
    ),
)
# Numbers that many keys and options accept.
WHOLE = ("0", "1", "2", "3", "5", "7", "16", "31", "1e3", "65536", "1000000", "2147483647")
SHARES = ("0", "-0.0", "1e-40", "1e-30", "1e-9", "0.001", "0.3", "0.999", "1", "1.0000001", "1e38")
TEXTS = (
    *("", " ", "x", "True", "none", "null", "[", "[]", "{}", "=", "a=", "=b", "--", "-", "x\ny"),
    *("a" * 5000, "\udcff", "\u2028", "\N{SNOWMAN}", "\0", "%s", "{0}", "*", "[a-", "\x1b[31m"),
)
LISTS = (
    "[]",
    "[1]",
    "[[1, 2]]",
    "[[1, 8], [2, 16]]",
    '["bias"]',
    "[null]",
    "[{}]",
    '{"a": 1}',
    "[NaN]",
)
FILES = (
    *("missing", "missing/below", "text.txt", "text.txt/below", "tiny.py", "prompts.jsonl", "/"),
    *(".", "folder", "empty", "binary", "nul.txt", "deep.jsonl", "half.jsonl", "list.json"),
    *(
        "dangling",
        "loop",
        "pipe",
        "socket",
        "/dev/zero",
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
    ),
    *("~nobody/x", "runs/tiny", "hf", "runs/tiny/config.json", "hf/config.json", "a/" * 1500),
    *("hf/model.safetensors", "hf/tokenizer.json", "runs", "stores", "stores/*", "*.txt", "**"),
)
VALUES = (*NUMBERS, *TEXTS, *FILES)


class Hang(BaseException):
    """A command that takes too long. No `except Exception` stops it."""


@pytest.fixture(scope="module")
def workplace(finished_run, tmp_path_factory):
    """A folder with a finished run, its export in hf, and the files of `FILES`."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(finished_run("decoder"), folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        assert runtime.command(convert.main, ["export", "runs/tiny", "hf"]) == 0
    prompts = "".join(json.dumps({"text": text}) + "\n" for text in ("tree", "of the"))
    (folder / "prompts.jsonl").write_text(prompts)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 9)
    (folder / "nul.txt").write_bytes(b"\0" * 4000)
    (folder / "deep.jsonl").write_text("[" * 100_000)
    (folder / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(folder):
        listener.bind("socket")
    (folder / "task.yaml").write_text(TASK)
    return folder


TASK = """task: local
dataset_path: json
dataset_kwargs: {data_files: {test: prompts.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


# --- lines ---


FILE_OPTIONS = ("--config", "--data", "--prompts", "--json", "--out", "path", "--include_path")
FILE_OPTIONS += ("--output_path", "--use_cache")
TEXT_OPTIONS = (
    "--prompt",
    "--stop",
    "--text-key",
    "--tasks",
    "--gen_kwargs",
    "--model",
    "--device",
)
# To open a pipe waits for its other end, as in any command; `--prompts <(command)` needs that.
WAITING = ("--prompts", "--json", "--out", "--output_path")


def hostile_value(rng, name):
    """Return a value for an option or a key: most are of its kind, so that they go further."""
    kinds = (NUMBERS, FILES, TEXTS)
    likely = (
        FILES
        if name in FILE_OPTIONS
        else TEXTS
        if name in TEXT_OPTIONS
        else (*WHOLE, *SHARES, *NUMBERS)
    )
    value = rng.choice(likely if rng.random() < 0.7 else rng.choice(kinds))
    return "/dev/null" if value == "pipe" and name in WAITING else value


def options(parser):
    """Return the options of a parser -> whether they take a value, or the values to choose from."""
    return {
        action.option_strings[-1]: action.choices or action.nargs != 0
        for action in parser._actions
        if action.option_strings and action.option_strings[-1] != "--help"
    }


CONVERT_OPTIONS = {"--step": True, "--best": False, "--dtype": True, "--archive": False}
CONVERT_OPTIONS["--max-shard-size"] = ("1B", "1KB", "5000", "1e3B", "9TiB", *NUMBERS)
HARNESS_OPTIONS = (
    *("--tasks", "--batch_size", "--limit", "--num_fewshot", "--include_path", "--output_path"),
    *("--model", "--seed", "--gen_kwargs", "--device", "--max_batch_size", "--use_cache"),
)


def random_options(rng, known):
    """Return one to three options, with hostile values where they take one."""
    arguments = []
    for name in rng.sample(sorted(known), min(len(known), rng.choice((1, 1, 1, 2, 3)))):
        value = hostile_value(rng, name)
        if not isinstance(known[name], bool) and rng.random() < 0.7:
            value = rng.choice(known[name])
        if not known[name]:
            arguments.append(name)
        elif rng.random() < 0.5:
            arguments.append(f"{name}={value}")
        else:
            arguments += [name, value]
    return arguments


@functools.cache
def key_types():
    """Return the types of all keys of the config and of the first source."""
    types = {}
    for cls, path in ((Config, ""), (SourceConfig, "data.sources.0")):
        add_types(cls, path, types)
    return types


def add_types(cls, path, types):
    for name, annotation in field_types(cls).items():
        types[join(path, name)] = annotation
        if dataclasses.is_dataclass(annotation):
            add_types(annotation, join(path, name), types)


def random_edits(rng):
    """Return one to three edits of the config."""
    keys = [key for key in (*all_keys(), *item_keys()) if "." in key or rng.random() < 0.2]
    # Other processes are not waited for here: tests/runtime has them.
    keys = [key for key in keys if not key.startswith(("runtime.proc", "runtime.coord"))]
    edits = []
    for key in rng.sample(keys, rng.choice((1, 1, 2, 3))):
        inner = split_bounds(split_optional(key_types()[key])[0])[0]
        likely = {int: WHOLE, float: SHARES, bool: ("true", "false"), str: (*FILES, *TEXTS)}
        is_literal = typing.get_origin(inner) is typing.Literal
        choices = likely.get(inner) or (typing.get_args(inner) if is_literal else LISTS)
        value = rng.choice(choices) if rng.random() < 0.8 else hostile_value(rng, key)
        edits.append(f"{key}={value}")
    return edits if rng.random() < 0.9 else [*edits, rng.choice(VALUES)]


def train_line(rng, number):
    line = [
        "--config",
        "tiny.py",
        "training.steps=1",
        "evaluation.steps=1",
        "training.batch_size=8",
    ]
    line += ["evaluation.every_steps=0", f"run_directory=runs/new{number}"]
    kind = rng.random()
    if kind < 0.7:
        return line + random_edits(rng)
    if kind < 0.8:
        return ["--config", hostile_value(rng, "--config"), *line[2:]]
    return line + random_options(rng, {"--data": True, "--devices": True})


def prepare_line(rng, number):
    line = ["--config", "tiny.py", f"data.store=stores{rng.randrange(3)}"]
    kind = rng.random()
    if kind < 0.5:
        return line + random_edits(rng)
    if kind < 0.6:
        return ["--config", hostile_value(rng, "--config"), *line[2:]]
    if kind < 0.8:
        split = rng.choice(("train", "validation", "test"))
        return ["show", *line, "--sample", rng.choice(WHOLE), "--split", split]
    options = {"--data": True, "--json": True, "--dry-run": False}
    return line + random_options(rng, options | {"--sample-megabytes": True})


def generate_line(rng, number):
    line = [rng.choice(("runs/tiny", "hf")), "--prompt", "tree"]
    if rng.random() < 0.15:
        line[0] = rng.choice(VALUES)
    line += random_options(rng, options(generate.build_generate_parser()))
    # Else 128 tokens take most of the time.
    return (
        line
        if "--embed" in line or rng.random() < 0.1
        else [*line[:3], "--max-new-tokens", "2", *line[3:]]
    )


def evaluate_line(rng, number):
    line = [rng.choice(("runs/tiny", "hf")), "--data", "prompts.jsonl"]
    if rng.random() < 0.15:
        line[0] = rng.choice(VALUES)
    if rng.random() < 0.5:
        line[2] = hostile_value(rng, "--data")
    return line + random_options(rng, options(evaluate.build_evaluate_parser()))


def convert_line(rng, number):
    if rng.random() < 0.5:
        line = ["import", "hf", f"runs/imported{number}", *random_edits(rng)]
    else:
        line = ["export", "runs/tiny", f"out{number}", *random_options(rng, CONVERT_OPTIONS)]
    if rng.random() < 0.5:
        line[rng.choice((0, 1, 1, 2, 2))] = rng.choice(VALUES)
    return line


def harness_line(rng, number):
    arguments = ["path=runs/tiny"]
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice(("path", "step", "compute", "max_length", "devices", "x"))
        arguments.append(f"{key}={hostile_value(rng, key)}")
    line = ["run", "--model_args", ",".join(arguments), "--tasks", "local", "--include_path", "."]
    if rng.random() < 0.1:
        line[0] = rng.choice(VALUES)
    if rng.random() < 0.5:
        option = rng.choice(HARNESS_OPTIONS)
        line += [option, hostile_value(rng, option)]
    return line


def any_line(rng, number):
    """Return the arguments of `python -m jaxlm`."""
    name = rng.choice(COMMANDS[1:])
    line = [name, *LINE_MAKERS[name](rng, number)]
    if rng.random() < 0.3:
        line[rng.randrange(2)] = rng.choice(VALUES)
    return line


LINE_MAKERS = {
    "jaxlm": any_line,
    "prepare": prepare_line,
    "train": train_line,
    "generate": generate_line,
    "evaluate": evaluate_line,
    "convert": convert_line,
    "harness": harness_line,
}


# --- running them ---


@contextlib.contextmanager
def time_limits():
    """Send the signal to stop after some time, and raise Hang after more."""

    def too_long(number, frame):
        if number == signal.SIGALRM and not stops:
            stops.append(number)
            signal.alarm(SECONDS_TO_HANG - SECONDS_TO_STOP)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            raise Hang("no end after the signal to stop" if stops else "a signal")

    stops: list[int] = []
    signals = (signal.SIGALRM, signal.SIGTERM)
    before = [signal.signal(number, too_long) for number in signals]
    signal.alarm(SECONDS_TO_STOP)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def memory_limit():
    """Let the process have some GB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run_line(name, arguments):
    """Return (exit code, what was printed) of a command line."""
    main = (importlib.import_module(f"jaxlm.{name}") if name != "jaxlm" else __main__).main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            with time_limits(), memory_limit():
                code = runtime.command(main, arguments)
        except SystemExit as error:  # --help
            code = error.code or 0
        except BaseException:
            code = "ended by"
            output.write(traceback.format_exc())
    return code, output.getvalue()


def find_fault(code, output):
    """Return what is wrong with the end of a command, or ''."""
    if "Traceback" in output:
        return "a traceback"
    if code not in EXIT_CODES:
        return f"the exit code {code}"
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if len(errors) != (code in (2, 3, 4)):
        return f"{len(errors)} lines of errors with the exit code {code}"
    return ""


def run_lines(folder, names, lines, seed, capsys):
    """Run lines of each command; return the faults and how many ended with which code."""
    faults, codes = [], {}
    for name in names:
        rng = random.Random(f"{name} {seed}")
        for number in range(lines):
            arguments = LINE_MAKERS[name](rng, f"{name}{number}")
            code, output = run_line(name, arguments)
            codes[code] = codes.get(code, 0) + 1
            fault = find_fault(code, output)
            if fault:
                faults.append((fault, name, arguments, output[-3000:]))
            with capsys.disabled():
                shown = " ".join(arguments)[:150].encode(errors="backslashreplace").decode()
                last = (output.splitlines() or [""])[-1][:150]
                print(f"{fault or code}: {name} {shown!r}: {last!r}", flush=True)
    return faults, codes


@pytest.fixture
def entered(workplace, monkeypatch):
    """Enter the working directory. stdin has one line, and nothing is looked for in the network."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(workplace / "cache"))
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"from stdin\n")))
    return workplace


@pytest.mark.campaign
@pytest.mark.parametrize("name", COMMANDS)
def test_a_random_command_line_ends_as_documented(name, entered, capsys):
    if name in ("harness", "jaxlm"):
        pytest.importorskip("lm_eval")
    faults, codes = run_lines(entered, [name], LINES, SEED, capsys)
    with capsys.disabled():
        print(f"{name}: {LINES} lines of seed {SEED}, by exit code: {codes}", flush=True)
    assert not faults, "\n\n".join(
        f"{fault}: {name} {arguments}\n{output}" for fault, name, arguments, output in faults
    )


def test_every_key_takes_or_refuses_any_value(finished_run, tmp_path, monkeypatch, capsys):
    """Up to the work itself: the config, the folder of the run, and the place of the process."""
    finished = finished_run("decoder")
    shutil.copy(finished / "runs/tiny/config.json", tmp_path / "c.json")
    shutil.copy(finished / "text.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "train", lambda *_: 0)
    trains = []
    monkeypatch.setattr(runtime, "configure", lambda _, **options: trains.append(options["trains"]))
    monkeypatch.setattr(runtime, "ProcessGroup", lambda *_: contextlib.nullcontext())

    rng = random.Random(SEED)
    for key in key_types():
        for value in rng.sample((*VALUES, *WHOLE, *SHARES), 2):
            code = runtime.command(train.main, ["--config", "c.json", f"{key}={value}"])
            output = capsys.readouterr()
            fault = find_fault(code, output.out + output.err)
            assert not fault, (fault, key, value, output.err[-2000:])
    assert trains and all(trains)  # the process keeps the memory of its steps
