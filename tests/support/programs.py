"""Programs that tests run in a Python of their own, since they change their process."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Variables that jaxlm sets
OURS = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_NUM_CPU_DEVICES",
    "JAX_COMPILATION_CACHE_DIR",
    "TF_CPP_MIN_LOG_LEVEL",
)
OF_TESTS = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def start_python(program: str, **environment: str) -> subprocess.Popen:
    """Start a program, with our own variables absent from its environment."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a program to its end."""
    process = start_python(program, **environment)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_command(body: str) -> subprocess.CompletedProcess:
    """Run a command whose `main` has this body, with the one argument x."""
    return run_python(
        f"import sys, threading\nfrom jaxlm import config, runtime\nsys.argv[1:] = ['x']\n"
        f"def main(argv):\n{textwrap.indent(textwrap.dedent(body), '    ')}\nruntime.run(main)\n"
    )


def words(program: str, **environment: str) -> list[str]:
    """Return the words that a program prints."""
    done = run_python(program, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def train_recipe(name: str, directory: Path, *arguments: str) -> dict[str, float]:
    """Train configs/NAME.py as a user does, in optimized programs: the last value of every tag."""
    clean = {key: value for key, value in os.environ.items() if key not in (*OURS, *OF_TESTS)}
    recipe = str(ROOT / "configs" / f"{name}.py")
    command = [sys.executable, "-m", "jaxlm.train", "--config", recipe]
    subprocess.run(
        [*command, *arguments, f"run_directory={directory}"],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return {tag: value for line in lines for tag, value in json.loads(line).items()}
