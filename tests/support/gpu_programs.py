"""Steps compiled for H100 that are not there. They need the extra `cuda`, but no GPU."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm import config, hardware, step
from jaxlm.evaluation.validation import evaluation_batch_size
from jaxlm.plan.compile_step import build_target_run, lower_step
from jaxlm.plan.compiled_text import COLLECTIVES
from jaxlm.run import Run, abstract_arguments

H100_BYTES = hardware.usable_memory(hardware.find_accelerator("h100"))


class Program(NamedTuple):
    """A compiled step."""

    text: str
    peak_bytes: int  # on each GPU
    temp_bytes: int  # of these, beside state and batch

    def kernel_operands(self) -> list[list[tuple[int, ...]]]:
        """Return the shapes of q, k, v and the bias, if there is one, of each forward kernel."""
        kernels = []
        for line in self.text.splitlines():
            if re.search(r'custom_call_target="__cudnn\$fmha(ScaleBias)?Softmax"', line):
                operands = line.partition("operand_layout_constraints={")[2].partition("}, api")[0]
                shapes = re.findall(r"bf16\[([\d,]+)\]", operands)
                kernels.append([tuple(map(int, dims.split(","))) for dims in shapes])
        return kernels

    def attention_kernels(self) -> dict[str, int]:
        """Return the calls of cuDNN's flash kernels by their names."""
        found = re.findall(r"__cudnn\$fmha\w+", self.text)
        return {name: found.count(name) for name in set(found)}

    def loop_lines(self) -> list[str]:
        """Return the instructions in bodies of loops, and in what these call."""
        computations, name = {}, ""
        for line in self.text.splitlines():
            if line and not line.startswith((" ", "}")):
                name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
                computations[name] = []
            elif name:
                computations[name].append(line)

        reached = re.findall(r"body=%?([\w.\-]+)", self.text)
        for name in reached:  # grows
            for line in computations.get(name, []):
                calls = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
                reached += [call for call in calls if call not in reached]
        return [line for name in dict.fromkeys(reached) for line in computations.get(name, [])]

    def counts(self) -> dict[str, int]:
        return {
            name: len(re.findall(rf"[ )]{name}(?:-start)?\(", self.text)) for name in COLLECTIVES
        }

    def lines(self, name: str) -> list[str]:
        """The instructions of a collective."""
        return [
            line for line in self.text.splitlines() if re.search(rf" {name}(?:-start)?\(", line)
        ]

    def gathered_shapes(self) -> set[tuple[int, ...]]:
        """Shapes of what all-gathers give."""
        results = re.findall(r"= (.*?) all-gather(?:-start)?\(", self.text)
        return {
            tuple(map(int, dims.split(",")))
            for result in results
            for dims in re.findall(r"\[([\d,]+)\]", result)
        }


def build_run(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Run:
    """Build a run on machines with `devices` H100 each."""
    runtime = replace(run_config.runtime, attention=attention)
    cluster = hardware.parse_cluster(f"h100:{machines}x{devices}")
    return build_target_run(replace(run_config, runtime=runtime), cluster)


def compile_lowered(lowered: Any) -> Program:
    program = lowered.compile()
    memory = program.memory_analysis()
    return Program(program.as_text(), memory.peak_memory_in_bytes, memory.temp_size_in_bytes)


def compiled(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Program:
    """The train step of `run_config` on machines with `devices` H100 each."""
    return compile_lowered(lowered_step(run_config, devices, machines, attention))


def lowered_step(
    run_config: config.Config, devices: int, machines: int = 1, attention: str = "cudnn"
) -> Any:
    """The same step before it is compiled, a jax.stages.Lowered."""
    return lower_step(build_run(run_config, devices, machines, attention))


def compiled_evaluation(
    run_config: config.Config, devices: int, attention: str = "cudnn"
) -> Program:
    """The evaluation step of `run_config` on `devices` H100."""
    run = build_run(run_config, devices, attention=attention)
    state, batch = abstract_arguments(run, evaluation_batch_size(run_config))
    evaluate = step.eval_step(
        run.model,
        run_config.training,
        run.placement,
        state.params,
        compiler_options=run.compiler_options,
    )
    traced = evaluate.trace(state.params, batch)  # type: ignore[attr-defined]
    return compile_lowered(traced.lower(lowering_platforms=("cuda",)))


def recipe(name: str, *edits: str) -> config.Config:
    return config.load(Path(__file__).parents[2] / "configs" / f"{name}.py", edits)
