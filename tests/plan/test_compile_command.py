"""The command `plan compile` and `train --rehearse`: mistakes, before jax and the compiler."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import runtime, train
from jaxlm.plan import __main__ as plan
from jaxlm.plan.compile_command import main

CONFIG = str(Path(__file__).parents[2] / "configs/llama2_7b.py")


def error_of(capsys, function, *arguments: str) -> str:
    """Run a command that must end with 2; return its only line."""
    assert runtime.command(function, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "h101:8"], "there is no GPU 'h101' in the table (did you mean 'h100'?)"),
        (["--target", "h100:12"], "12 GPUs don't fill servers of 8 h100"),
        (["--target", "h100:64", "parallel.tensor=3"], "parallel.tensor: 3 does not divide"),
        (["--target", "h100:64", "parallel.fsdp=5"], "fsdp 5 x tensor 1 does not fit 64 devices"),
        (["--target", "h100:64", "training.batch_size=64"], "training.batch_size: 64 sequences"),
        (["--target", "h100:64", "precision.loss_scale_backoff=1"], "must be below 1, got 1.0"),
        (["--target", "h100:64", "--price", "-1"], "--price: must be a number from 0 on, got '-1'"),
        (["--target", "h100:64", "--zero", "3"], "--zero: lists values for --sweep"),
        (["--target", "h100:64", "--sweep", "--tensor", "3"], "tensor 3 does not fit 64 devices"),
        (["--target", "h100:64", "--json", "/none/x.json"], "--json: /none: no such folder"),
        (["--target", "h100:64", "--hardware", "/none.json"], "/none.json: No such file"),
        ([], "the following arguments are required: --target"),
    ],
)
def test_a_mistake_is_told_in_one_line(capsys, arguments, message):
    assert message in error_of(capsys, main, "--config", CONFIG, *arguments)


def test_without_the_plugin_the_package_is_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = error_of(capsys, main, "--config", CONFIG, "--target", "h100:64")
    assert line.endswith('pip install "jaxlm[cuda]"')
    assert error_of(capsys, train.main, "--config", CONFIG, "--rehearse", "h100:64") == line


def test_a_rehearsal_refuses_what_training_would(capsys):
    arguments = ("--config", CONFIG, "--rehearse", "h100:64", "training.batch_size=64")
    assert "training.batch_size: 64 sequences" in error_of(capsys, train.main, *arguments)


def test_a_mistake_is_told_before_jax_is_imported():
    code = (
        "import sys; from jaxlm.plan.__main__ import main; from jaxlm import runtime; "
        "code = runtime.command(main, sys.argv[1:]); sys.exit(code if 'jax' not in sys.modules "
        "else 99)"
    )
    arguments = ["compile", "--config", CONFIG, "--target", "h100:8", "parallel.tensor=3"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_the_command_is_listed(capsys):
    assert runtime.command(plan.main, ["--help"]) == 0
    assert "python -m jaxlm.plan compile" in capsys.readouterr().out


def test_a_run_that_dies_of_memory_names_the_plan_of_its_config():
    advice = runtime.memory_advice("configs/my run.py", ["model.layers=2"])
    expected = "python -m jaxlm.plan memory --config 'configs/my run.py' model.layers=2"
    assert f"; `{expected}` says" in advice
