"""python -m jaxlm names the commands, and the nearest one to a misspelt name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import runtime
from jaxlm.__main__ import COMMANDS, main


def test_the_commands_are_those_of_the_package():
    package = Path(importlib.import_module("jaxlm").__path__[0])
    commands = {
        path.stem
        for path in package.glob("*.py")
        if "runtime.run(main)" in path.read_text() and path.stem != "__main__"
    }
    commands |= {path.parent.name for path in package.glob("*/__main__.py")}
    assert set(COMMANDS) == commands


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_commands_are_named(capsys, arguments, code):
    assert runtime.command(main, arguments) == code
    captured = capsys.readouterr()
    text = captured.err if code else captured.out
    assert all(f"python -m jaxlm.{name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_command_names_the_nearest(capsys, name):
    assert runtime.command(main, [name[1:]]) == 2
    assert f"(did you mean {name!r}?); see python -m jaxlm --help" in capsys.readouterr().err


def test_an_unknown_command_lists_those_that_there_are(capsys):
    assert runtime.command(main, ["xyzzy"]) == 2
    assert (
        "prepare, train, generate, predict, evaluate, convert, plan, bench, harness"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_can_be_given_as_an_argument(capsys, name):
    ends = name not in ("plan", "harness")
    with pytest.raises(SystemExit) if ends else pytest.MonkeyPatch.context():
        runtime.command(main, [name, "--help"])
    assert f"python -m jaxlm.{name}" in capsys.readouterr().out


# Mistakes that need no device, and nothing of the content of a text or a model.
QUICK = "--config configs/quickstart.py runtime.measure_cpu=false run_directory=no/such"
QUICK_ENCODER_DECODER = QUICK.replace("quickstart", "quickstart_encoder_decoder")
CONFIG_MISTAKES = (
    "model.layer=3",
    "model.layers",
    "model.layers=few",
    "model.heads=3",
    "data.sources.0.path=x",
    "runtime.processes=2",
)
TRAINING_MISTAKES = (
    *CONFIG_MISTAKES,
    "precision.loss_scale_backoff=1",
    "--data no/such.txt",
    "objective.kind=prefix data.sequence_length=1",
    "parallel.fsdp=3 runtime.devices=2",
    "parallel.data=2 parallel.zero=3 runtime.devices=2",
    "parallel.tensor=3 runtime.devices=2",
    "training.batch_size=3 runtime.devices=2",
    "evaluation.batch_size=3 runtime.devices=2",
)
MISTAKES = (
    *(f"train {QUICK} {mistake}" for mistake in TRAINING_MISTAKES),
    *(f"bench {QUICK} {mistake}" for mistake in TRAINING_MISTAKES),
    *(f"prepare {QUICK} {mistake}" for mistake in CONFIG_MISTAKES[:-1]),
    f"prepare {QUICK} --data no/such.txt",
    f"prepare show {QUICK} --data no/such.txt --sample 1",
    f"prepare show {QUICK_ENCODER_DECODER} data.sequence_length=2 --sample 1",
    f"train {QUICK} runtime.processes=2 runtime.process=0 runtime.coordinator=localhost:9 "
    "precision.loss_scale_backoff=1",
    f"train {QUICK} runtime.processes=2 runtime.process=0 runtime.coordinator=localhost:9 "
    "parallel.data=4 parallel.fsdp=1 parallel.zero=1 runtime.devices=2",
    "train --config no/such.py",
    "train --config pyproject.toml",
    "train --no-such-option",
    "generate no/such --prompt x",
    "generate docs --prompt x",
    "generate docs --prompt x --temperature -1",
    "generate docs",
    "predict no/such --texts README.md",
    "predict docs --texts README.md",
    "predict docs",
    "predict docs --texts README.md --best",
    "predict docs --texts README.md --batch-size 0",
    "evaluate no/such",
    "evaluate docs",
    "evaluate docs --stride 3",
    "convert export no/such out",
    "convert export docs out",
    "convert import no/such out",
    "convert import docs out",
    "convert improt docs out",
    "harness rum",
    "harness run --model_args path=no/such --tasks x",
    "harness run --model_args path=docs,step=3 --tasks x",
    "harness run --model_args=pat=no/such --tasks x",
    "plan budgte",
    "plan budget",
    "plan budget --flops 0",
    "plan budget --gpus 8xh1000 --days 3",
    "plan budget --gpus 8xh100 --days 3 --mfu 3",
    "plan memory --parameters 1e9 --gpus 0",
    "plan memory --config configs/quickstart.py --gpu h1000 --gpus 8",
    "plan compile --config configs/quickstart.py --target h100:0",
    "plan compile --config configs/quickstart.py --target h100:8 parallel.fsdp=3",
    "plan fit no/such.csv",
    "plan fit docs",
    "plan sweep --config no/such.py --out no/such --sizes 4 --budgets 1e12",
    "plan sweep --config configs/quickstart.py --out no/such --sizes 4 --budgets 0",
    "plan transfer --config configs/quickstart.py --widths 0",
    "plan transfer --config configs/quickstart.py --widths 64 --compare",
    "train --config configs/quickstart.py model.parametrization=mup",
)


def test_help_and_mistakes_come_without_jax():
    """Importing jax takes a second or more, in which a user waits for a line."""
    program = f"""
import importlib, sys
from jaxlm import runtime
from jaxlm.__main__ import command_module
for name in {list(COMMANDS)}:
    try:
        code = runtime.command(importlib.import_module(command_module(name)).main, ["--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0, name
    assert "numpy" not in sys.modules, name
for line in {MISTAKES}:
    name, *arguments = line.split()
    main = importlib.import_module(command_module(name)).main
    assert runtime.command(main, arguments) == 2, line
    assert not {{"jax", "tokenizers", "lm_eval"}} & set(sys.modules), line
"""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(MISTAKES)
