"""Measure one arm in this process, and print one line of JSON; compare.py starts it.

python tests/peers/measure.py '{"shape": "gpt", "arm": "torch f32", "steps": 6, ...}'
"""

import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from peers import shapes
from peers.shapes import Arm
from support import synthetic

from jaxlm.config import Config

WARM_UP = 3  # steps


class Task(NamedTuple):
    """What a process is to measure."""

    shape: str
    arm: str
    steps: int
    warm_up: int = WARM_UP
    recipe: bool = False  # the shape is a recipe, measured on a GPU
    device: str = "cpu"  # torch's
    edits: tuple[str, ...] = ()  # of a recipe


def measure(task: Task) -> dict[str, Any]:
    """Return the figures of an arm."""
    started = time.perf_counter()
    if task.recipe:
        arm = next(arm for arm in shapes.GPU_ARMS if arm.name == task.arm)
        run_config = shapes.gpu_config(task.shape, task.edits)
    else:
        arm = next(arm for arm in shapes.CPU_ARMS if arm.name == task.arm)
        run_config = shapes.with_arm(shapes.cpu_shapes()[task.shape].config, arm)

    library = measure_jaxlm if arm.library == "jaxlm" else measure_torch
    figures = library(run_config, arm, task)
    return figures | {
        "process_seconds": round(time.perf_counter() - started, 1),
        "date": datetime.date.today().isoformat(),
    }


def measure_jaxlm(run_config: Config, arm: Arm, task: Task) -> dict[str, Any]:
    """Return the figures of jaxlm on CPUs; step_speed.py has those of GPUs."""
    from jaxlm import runtime

    # What the config says of the process comes before jax, as in jaxlm.train.
    run_config = runtime.settle_cpu(run_config, lambda line: print(line, file=sys.stderr))
    runtime.configure(run_config.runtime, trains=True)
    from support.timed_steps import time_steps

    steps = time_steps(run_config, warm_up=task.warm_up, timed=task.steps)
    run = steps.run
    return speed(run_config, steps.seconds) | {
        "precision": run.config.precision.compute,
        "devices": len(run.devices),
        "parameters": run.model.parameter_count(),
        "compile_seconds": round(steps.compile_seconds, 1),
        "first_loss": steps.losses[0],
        "last_loss": steps.losses[-1],
        "versions": runtime.versions(),
    }


def measure_torch(run_config: Config, arm: Arm, task: Task) -> dict[str, Any]:
    """Return the figures of PyTorch. `compile_seconds` are those of the whole first step."""
    # jaxlm.interop, which names the class of a model, must not take the memory of a GPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from peers import torch_steps

    timed = torch_steps.time_steps(
        run_config, arm, task.device, warm_up=task.warm_up, timed=task.steps
    )
    return speed(run_config, timed.seconds, timed.batch_size) | {
        "precision": arm.precision,
        "attention": timed.attention,
        "parameters": timed.parameters,
        "compile_seconds": round(timed.first_step_seconds, 1),
        "peak_memory_bytes": timed.peak_memory_bytes,
        "first_loss": timed.losses[0],
        "last_loss": timed.losses[-1],
        "versions": torch_steps.versions(),
    }


def speed(run_config: Config, seconds: list[float], batch_size: int | None = None) -> dict:
    """Return the time of a step and what follows from it; `batch_size` where not the config's."""
    rows = batch_size or run_config.training.batch_size
    median = statistics.median(seconds)
    ranked = statistics.quantiles(seconds, n=10, method="inclusive")
    tokens = rows * synthetic.objective(run_config).tokens
    step_flops = synthetic.step_flops(run_config) * rows // run_config.training.batch_size
    return {
        "batch_size": rows,
        "tokens_per_step": tokens,
        "steps": len(seconds),
        "median_ms": round(1e3 * median, 3),
        "p10_ms": round(1e3 * ranked[0], 3),
        "p90_ms": round(1e3 * ranked[-1], 3),
        "tokens_per_second": round(tokens / median),
        "flops_per_step": step_flops,
        "gflops_per_second": round(1e-9 * step_flops / median, 1),
    }


if __name__ == "__main__":
    document = json.loads(sys.argv[1])
    print(json.dumps(measure(Task(**document))))
