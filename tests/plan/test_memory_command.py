"""The command `plan memory`: what it prints and writes, and mistakes in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import runtime
from jaxlm.config import UserError
from jaxlm.plan.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"
GPT2 = str(CONFIGS / "gpt2_124m.py")


def test_bytes_per_parameter_alone(capsys, tmp_path):
    file = tmp_path / "memory.json"
    line = ["--parameters", "7.5e9", "--gpus", "64", "--zero", "1", "--bytes", "2,2,12"]
    assert main(["memory", *line, "--gpu", "a100", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["total"] == pytest.approx(31.4e9, abs=0.05e9) and document["fits"]
    assert "31.4" in capsys.readouterr().out


def test_a_config(capsys, tmp_path):
    file = tmp_path / "memory.json"
    edits = ["model.layers=1", "training.batch_size=8", "training.microbatches=1"]
    line = ["--config", GPT2, "--gpu", "h100", "--gpus", "8", *edits, "--json", str(file)]
    # In a process of its own: the command settles where jax runs.
    command = [sys.executable, "-m", "jaxlm.plan", "memory", *line]
    subprocess.run(command, check=True, capture_output=True, timeout=300)

    document = json.loads(file.read_text())
    names = ("parameters", "gradients", "optimizer", "activations", "logits", "buffers")
    assert sum(document[name] for name in names) == document["total"]
    assert document["fits"] and document["largest_microbatch"]["rows"] > 1
    assert document["argument_bytes"] - document["state_bytes"] == 1024 * (4 + 4 + 4)


MISTAKES = {
    "neither": ([], "--config FILE or --parameters N"),
    "both": (["--config", GPT2, "--parameters", "1e9"], "--config FILE or --parameters N"),
    "unknown GPU": (["--parameters", "1e9", "--gpu", "h101"], "h101"),
    "no GPUs": (["--parameters", "1e9", "--gpus", "0"], "--gpus"),
    "twice the GPUs": (["--parameters", "1e9", "--gpu", "h100:8", "--gpus", "8"], "--gpus"),
    "no parameters": (["--parameters", "0"], "--parameters"),
    "two numbers": (["--parameters", "1e9", "--bytes", "2,2"], "--bytes"),
    "negative bytes": (["--parameters", "1e9", "--bytes", "2,-2,12"], "--bytes"),
    "stage 4": (["--parameters", "1e9", "--zero", "4"], "--zero"),
    "nothing to split": (["--parameters", "1e9", "--zero", "3", "--gpus", "1"], "--zero"),
    "stage of a config": (["--config", GPT2, "--zero", "3"], "parallel.zero"),
    "edits without a config": (["--parameters", "1e9", "model.layers=2"], "key=value"),
    "impossible mesh": (["--config", GPT2, "parallel.fsdp=3"], "parallel"),
    "unknown key": (["--config", GPT2, "model.layer=2"], "model.layer"),
    "a batch that does not divide": (["--config", GPT2, "--gpus", "7"], "batch"),
    "a loss scale": (
        ["--config", GPT2, "precision.loss_scale_start=0"],
        "precision.loss_scale_start",
    ),
    "no lengths": (["--config", GPT2, "--lengths", "a"], "--lengths"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(name):
    line, named = MISTAKES[name]
    with pytest.raises(UserError) as mistake:
        main(["memory", *line])
    assert named in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_share_of_memory_that_is_none_is_a_mistake(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "2")
    with pytest.raises(UserError, match="XLA_PYTHON_CLIENT_MEM_FRACTION"):
        main(["memory", "--parameters", "1e9"])


def test_mistakes_and_bare_parameters_need_no_jax():
    script = """
import sys
from jaxlm.plan.__main__ import main
assert main(["memory", "--parameters", "1e9"]) == 0
for line in (["--config", sys.argv[1], "--gpus", "7"], ["--parameters", "x"]):
    try:
        main(["memory", *line])
    except Exception as error:
        assert type(error).__name__ in ("UserError", "ConfigError"), error
    else:
        sys.exit("no mistake")
assert "jax" not in sys.modules
"""
    command = [sys.executable, "-c", script, GPT2]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_the_exit_code_of_a_mistake_is_2(capsys):
    assert runtime.command(main, ["memory", "--parameters", "1e9", "--gpu", "nothing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
