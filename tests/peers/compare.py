"""Compare the training step of jaxlm with the same step in PyTorch, on this machine.

    python tests/peers/compare.py cpu [--shape NAME ...] [--rounds 2] [--steps N]
    python tests/peers/compare.py gpu [--shape NAME ...] [--seconds 300] [--edit key=value]
    python tests/peers/compare.py gemm [--rounds 2] [--steps N]

Each arm runs in a process of its own, and all arms of a shape take turns in each round. Every
process writes a line of JSON at once; a table and the ratios of tokens/s follow each shape. The
arms are in shapes.py. Needs tests/peers/requirements.txt.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gpu import step_speed
from peers import report, shapes
from peers.measure import Task
from peers.products import PRODUCTS
from peers.report import Line
from peers.shapes import BFLOAT16, CPU_ARMS, FLOAT32, GPU_ARMS, Arm
from support import synthetic

FOLDER = Path(__file__).parent
LONGEST = 1800.0  # seconds of one process
ERROR_CHARACTERS = 2000


class Output:
    """Prints lines of JSON, and appends them to a file where one is given."""

    def __init__(self, path: Path | None):
        self.path = path

    def line(self, line: Line) -> Line:
        """Write one line at once, and return it."""
        text = json.dumps(line)
        print(text, flush=True)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(text + "\n")
        return line


# --- processes ---


def run_script(name: str, arguments: Sequence[str], seconds: float) -> Line:
    """Run a script beside this one and return its last line, or why there is none."""
    command = [sys.executable, str(FOLDER / name), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {seconds:.0f} s"}
    if done.returncode != 0:
        error = done.stderr[-ERROR_CHARACTERS:]
        return {"status": f"exit code {done.returncode}", "error": error}
    return json.loads(done.stdout.splitlines()[-1]) | {"status": "ok"}


def measure_arm(task: Task, seconds: float) -> Line:
    """Return the figures of an arm, which has a process of its own."""
    return run_script("measure.py", [json.dumps(task._asdict())], seconds)


def take_turns(
    shape: str,
    arms: Sequence[Arm],
    rounds: int,
    measure: Callable[[Arm], Line],
    output: Output,
) -> list[Line]:
    """Measure all arms of a shape in every round; print the lines, the table and the ratios."""
    lines = []
    for number in range(1, rounds + 1):
        for arm in arms:
            names = {"shape": shape, "arm": arm.name, "round": number}
            lines.append(output.line(names | measure(arm)))

    print(f"\n{shape}: {report.format_versions(lines)}")
    print(report.format_table(lines, arms, rounds))
    found = report.ratios(shape, lines, arms)
    for ratio in found:
        print(report.format_ratio(ratio))
    print(flush=True)
    for ratio in found:
        output.line(ratio)
    return lines


# --- commands ---


def compare_cpu(args: argparse.Namespace, output: Output) -> list[Line]:
    """Compare the shapes of CPUs in float32 and bfloat16."""
    lines, known = [], shapes.cpu_shapes()
    for name in args.shape or known:
        steps = args.steps or known[name].steps

        def measure(arm: Arm, name: str = name, steps: int = steps) -> Line:
            return measure_arm(Task(name, arm.name, steps), LONGEST)

        lines += take_turns(name, select_arms(CPU_ARMS, args.arm), args.rounds, measure, output)
    return lines


def compare_gpu(args: argparse.Namespace, output: Output) -> list[Line]:
    """Compare recipes on one GPU in bfloat16, within `args.seconds`."""
    deadline = time.monotonic() + args.seconds
    lines = []
    for name in args.shape or shapes.GPU_EDITS:
        edits = (*shapes.GPU_EDITS[name], *args.edits)

        def measure(arm: Arm, name: str = name, edits: tuple[str, ...] = edits) -> Line:
            if arm.library == "jaxlm":
                return step_speed.attempts(name, edits, deadline)
            left = deadline - time.monotonic()
            if left < step_speed.SHORTEST:
                return {"status": "no time left"}
            task = Task(
                shape=name,
                arm=arm.name,
                steps=args.steps or step_speed.TIMED,
                warm_up=step_speed.WARM_UP,
                recipe=True,
                device=args.device,
                edits=edits,
            )
            return measure_arm(task, left)

        lines += take_turns(name, select_arms(GPU_ARMS, args.arm), args.rounds, measure, output)
    return lines


def select_arms(arms: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """Return the arms of these names, or all."""
    unknown = set(names or ()) - {arm.name for arm in arms}
    if unknown:
        known = ", ".join(repr(arm.name) for arm in arms)
        sys.exit(f"--arm: no {', '.join(map(repr, sorted(unknown)))}; known: {known}")
    return [arm for arm in arms if not names or arm.name in names]


def measure_products(args: argparse.Namespace, output: Output) -> list[Line]:
    """Measure the products of a linear layer, and the share of their rate that `gpt` reaches."""
    lines, best = [], {}
    for number in range(1, args.rounds + 1):
        for precision in (FLOAT32, BFLOAT16):
            for library in ("torch", "jax"):
                names = {"gemm": library, "precision": precision, "round": number}
                line = output.line(names | run_script("products.py", [library, precision], LONGEST))
                lines.append(line)
                rates = [line[name] for name in PRODUCTS if name in line]
                best[precision] = max([best.get(precision, 0.0), *rates])

        for arm in CPU_ARMS:
            if arm.library == "jaxlm" and arm.devices == 2:
                names = {"shape": "gpt", "arm": arm.name, "round": number}
                steps = args.steps or shapes.cpu_shapes()["gpt"].steps
                lines.append(
                    output.line(names | measure_arm(Task("gpt", arm.name, steps), LONGEST))
                )

    step_flops = synthetic.step_flops(shapes.cpu_shapes()["gpt"].config)
    print(f"\nthe step of gpt: {1e-9 * step_flops:.1f} GFLOP")
    for precision, rate in best.items():
        arm = report.fastest(
            [line for line in lines if "arm" in line], CPU_ARMS, "jaxlm", precision
        )
        steps_of = [line for line in lines if arm is not None and line.get("arm") == arm.name]
        reached = [line["gflops_per_second"] for line in steps_of if line["status"] == "ok"]
        print(f"{precision}: the fastest product {rate:.0f} GFLOP/s")
        if reached and rate:
            share = round(max(reached) / rate, 3)
            print(f"{precision}: the step {max(reached):.0f} GFLOP/s, {share:.1%} of it")
            output.line({"shape": "gpt", "precision": precision, "share_of_gemm": share})
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="float32 and bfloat16 on this CPU")
    gpu = commands.add_parser("gpu", help="bfloat16 on one GPU")
    gemm = commands.add_parser("gemm", help="the rate of matrix products on this CPU")
    for command, rounds in ((cpu, 2), (gpu, 1), (gemm, 2)):
        command.add_argument("--rounds", type=int, default=rounds)
        command.add_argument("--steps", type=int, help="timed in each process")
        command.add_argument("--json", type=Path, help="file to which the lines are appended too")
    cpu.add_argument("--shape", nargs="+", choices=shapes.cpu_shapes(), help="default: all")
    gpu.add_argument("--shape", nargs="+", choices=shapes.GPU_EDITS, help="default: all")
    for command in (cpu, gpu):
        command.add_argument("--arm", action="append", help="only this arm; may be repeated")
    gpu.add_argument("--seconds", type=float, default=300.0, help="within which all is done")
    gpu.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # of torch: tests
    gpu.add_argument("--edit", dest="edits", action="append", default=[], metavar="key=value")
    args = parser.parse_args()

    run = {"cpu": compare_cpu, "gpu": compare_gpu, "gemm": measure_products}[args.command]
    lines = run(args, Output(args.json))
    return int(any(line["status"] != "ok" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
