"""Time the training step of four recipes on one GPU: tokens/s, MFU, peak memory, as JSON lines.

    python tests/gpu/step_speed.py [--model NAME] [--model NAME] [key=value ...]

Each recipe runs in a process of its own, on random text cut by its objective, with the batch sizes
of `SHAPES` in turn until one fits into memory. Edits given on the command line come last.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

WARM_UP, TIMED = 3, 20
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")
SHORTEST = 40  # seconds: a model is not started with less left
EDITS = ("parallel.zero=0", "training.microbatches=1", "runtime.devices=1")


class Shape(NamedTuple):
    """How a recipe runs on one GPU of 80 GB."""

    batch_sizes: tuple[int, ...]  # sequences, the first that fits is taken
    edits: tuple[str, ...] = ()


# The largest batches whose activations fit without recomputation.
SHAPES = {
    "gpt2_124m": Shape((64, 32, 16)),
    "llama_1b": Shape((8, 4, 2), ("parallel.remat=none",)),
    "bert_base": Shape((256, 128, 64)),
    "t5_base": Shape((128, 64, 32)),
}


# --- One model, in its own process ---


def measure(name: str, edits: Sequence[str]) -> dict[str, Any]:
    """Compile the recipe's step, run it, and return the figures."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    started = time.perf_counter()

    # What the config says of the process comes before jax, as in jaxlm.train.
    from jaxlm import config, hardware, runtime

    run_config = config.load(ROOT / "configs" / f"{name}.py", edits)
    runtime.configure(run_config.runtime)

    from support import synthetic
    from support.timed_steps import time_steps

    steps = time_steps(run_config, warm_up=WARM_UP, timed=TIMED)
    run, seconds = steps.run, steps.seconds
    device = run.placement.mesh.devices.flat[0]
    objective = synthetic.objective(run_config)

    median = statistics.median(seconds)
    ranked = statistics.quantiles(seconds, n=10, method="inclusive")
    rows = run_config.training.batch_size
    step_flops = synthetic.step_flops(run_config)
    peak_flops = hardware.peak_flops(device.device_kind)
    memory, text = device.memory_stats() or {}, steps.compiled.as_text()
    return {
        "model": name,
        "device": device.device_kind,
        "parameters": run.model.parameter_count(),
        "batch_size": rows,
        "sequence_length": run_config.data.sequence_length,
        "tokens_per_step": rows * objective.tokens,
        "compute": run_config.precision.compute,
        "remat": run_config.parallel.remat,
        "edits": list(edits),
        "steps": len(seconds),
        "median_ms": round(1e3 * median, 3),
        "p10_ms": round(1e3 * ranked[0], 3),
        "p90_ms": round(1e3 * ranked[-1], 3),
        "tokens_per_second": round(rows * objective.tokens / median),
        "flops_per_step": step_flops,
        "mfu": None if peak_flops is None else round(step_flops / median / peak_flops, 4),
        "peak_memory_bytes": memory.get("peak_bytes_in_use"),
        "memory_limit_bytes": memory.get("bytes_limit"),
        "compiled_peak_bytes": steps.compiled.memory_analysis().peak_memory_in_bytes,
        "attention": {key: list(chosen) for key, chosen in run.kernels().items()},
        "flash_kernel_calls": text.count('custom_call_target="__cudnn$fmha'),
        "compile_seconds": round(steps.compile_seconds, 1),
        "process_seconds": round(time.perf_counter() - started, 1),
        "first_loss": steps.losses[0],
        "last_loss": steps.losses[-1],
        "versions": runtime.versions(),
        "date": datetime.date.today().isoformat(),
    }


# --- All of them ---


def attempts(name: str, extra: Sequence[str], deadline: float) -> dict[str, Any]:
    """Return the figures of the largest batch that fits, or why there are none."""
    shape, outcome = SHAPES[name], {"model": name, "status": "out of memory"}
    for batch_size in shape.batch_sizes:
        left = deadline - time.monotonic()
        if left < SHORTEST:
            return outcome | {"status": "no time left"}
        edits = [*EDITS, f"training.batch_size={batch_size}", *shape.edits, *extra]

        command = [sys.executable, __file__, "--measure", name, *edits]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            return {"model": name, "status": f"stopped after {left:.0f} s", "edits": edits}
        print(done.stderr, file=sys.stderr, flush=True)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"status": "ok"}

        outcome = {
            "model": name,
            "status": "out of memory",
            "edits": edits,
            "error": done.stderr[-2000:],
        }
        if not any(words in done.stderr for words in OUT_OF_MEMORY):
            return outcome | {"status": f"failed with exit code {done.returncode}"}
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=SHAPES, help="may be repeated")
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="within which all must be done"
    )
    parser.add_argument("--results", type=Path, help="file to which the lines are appended too")
    parser.add_argument("--measure", choices=SHAPES, help="only this model, in this process")
    parser.add_argument("edits", nargs="*", metavar="key=value", help="changes to the recipes")
    args = parser.parse_intermixed_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.edits)))
        return 0

    deadline, failures = time.monotonic() + args.seconds, 0
    for name in args.model or SHAPES:
        line = json.dumps(attempts(name, args.edits, deadline))
        print(line, flush=True)
        if args.results:
            with args.results.open("a") as file:
                file.write(line + "\n")
        failures += json.loads(line)["status"] != "ok"
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
