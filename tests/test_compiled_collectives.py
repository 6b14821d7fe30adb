"""What ZeRO 3 sends in steps compiled for 8 and 64 H100, against the formula of `communication`.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. The whole table of docs/distributed.md:

    python -m pytest -m "aot and campaign" -n 0 -s tests/test_compiled_collectives.py
"""

import math
import re
from collections import Counter

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import H100_BYTES, Program, compiled, recipe

from jaxlm import communication
from jaxlm.config import Config
from jaxlm.plan.compiled_text import Collective, CompiledText

# Sequences on each GPU and microbatch.
ROWS = {"llama_1b": 4, "llama2_7b": 1}
DTYPES = {"bfloat16": "bf16", "float32": "f32"}
EDITS = ("training.microbatches=1", "parallel.remat=full", "parallel.zero=3")
SMALL = 1e-3  # share of the parameters: norms, which every GPU has whole, and sums of the loss


def sharded_config(name: str, gpus: int, remat: str, microbatches: int = 1, *edits: str) -> Config:
    return recipe(
        name,
        f"training.batch_size={ROWS[name] * gpus * microbatches}",
        *EDITS,
        f"training.microbatches={microbatches}",
        f"parallel.remat={remat}",
        *edits,
    )


def transfers_of(run_config: Config, fsdp: int) -> list[communication.Transfer]:
    return communication.step_transfers(
        run_config.model,
        run_config.precision,
        zero=run_config.parallel.zero,
        fsdp=fsdp,
        microbatches=run_config.training.microbatches,
    )


def total_bytes(found: list, kind: str) -> dict[str, int]:
    """Return the bytes of all collectives of a kind, by dtype."""
    totals: Counter[str] = Counter()
    for item in found:
        if item.kind == kind and isinstance(item, Collective):
            for array in item.arrays:
                totals[array.dtype] += array.bytes * item.times
        elif item.kind == kind:
            totals[DTYPES[item.dtype]] += item.bytes
    return dict(totals)


def times(found: list, kind: str) -> int:
    return sum(item.times for item in found if item.kind == kind)


def check_zero_3(run_config: Config, gpus: int) -> Program:
    """Compile a step and compare its collectives with the formula; return the program."""
    program = compiled(run_config, min(gpus, 8), machines=max(1, gpus // 8))
    found = CompiledText(program.text).collectives()
    formula = transfers_of(run_config, gpus)

    # The same bytes in the stated dtypes: so neither activations nor another copy of weights.
    for kind in ("all-gather", "reduce-scatter"):
        assert total_bytes(found, kind) == total_bytes(formula, kind)
        assert times(found, kind) == times(formula, kind)
        assert all(c.group == gpus for c in found if c.kind == kind)
    assert times(found, "all-to-all") == times(found, "collective-permute") == 0
    summed = sum(total_bytes(found, "all-reduce").values())
    assert summed < SMALL * sum(total_bytes(formula, "reduce-scatter").values())

    # In the loops over layers: a gather forward, and a gather and a reduce-scatter backward. The
    # compiler moves the first turns of loops out of them, those of the loop over microbatches too.
    layers = run_config.model.layers
    looped = [c for c in found if c.loops and c.loops[-1] >= layers - 2]
    assert {len(c.arrays) for c in looped} == {7}  # q, k, v, output and the three of the MLP
    for outer in {c.loops[:-1] for c in looped}:
        kinds = Counter(c.kind for c in looped if c.loops[:-1] == outer)
        assert kinds == {"all-gather": 2, "reduce-scatter": 1}
    return program


@pytest.mark.parametrize(
    ("name", "gpus", "remat", "microbatches"),
    [
        ("llama_1b", 8, "none", 1),
        ("llama_1b", 8, "dots", 1),
        ("llama_1b", 64, "full", 2),
        ("llama2_7b", 8, "weights", 1),
        ("llama2_7b", 64, "full", 1),
    ],
)
def test_a_layer_is_gathered_twice_and_its_gradients_are_scattered_once(
    name, gpus, remat, microbatches
):
    check_zero_3(sharded_config(name, gpus, remat, microbatches), gpus)


def test_gradients_travel_in_bfloat16_where_the_config_says_so():
    check_zero_3(sharded_config("llama_1b", 8, "full", 1, "precision.gradients=bfloat16"), 8)


@pytest.mark.parametrize("zero", [1, 2])
def test_lower_stages_scatter_gradients_and_gather_updated_parameters(zero):
    edits = ("model.layers=2", f"parallel.zero={zero}")
    run_config = sharded_config("llama_1b", 8, "full", 2, *edits)
    found = CompiledText(compiled(run_config, 8).text).collectives()
    formula = transfers_of(run_config, 8)
    for kind in ("all-gather", "reduce-scatter"):
        assert total_bytes(found, kind) == total_bytes(formula, kind)


@pytest.mark.campaign
@pytest.mark.parametrize("remat", ["none", "weights", "dots", "full"])
@pytest.mark.parametrize("gpus", [8, 64])
@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_all_policies(name, gpus, remat):
    run_config = sharded_config(name, gpus, remat)
    program = check_zero_3(run_config, gpus)
    found, formula = CompiledText(program.text).collectives(), transfers_of(run_config, gpus)

    cells = [name, str(gpus), f"`{remat}`"]
    for kind in ("all-gather", "reduce-scatter"):
        compiled_bytes = sum(total_bytes(found, kind).values())
        formula_bytes = sum(total_bytes(formula, kind).values())
        cells += [str(times(found, kind)), f"{compiled_bytes / 1e9:.3f}"]
        cells.append(f"{formula_bytes / 1e9:.3f}")
    cells.append(f"{program.peak_bytes / 2**30:.1f}")
    print(f"\n| {' | '.join(cells)} |", flush=True)


# Overlap


def overlapped_calls(program: Program) -> dict[str, int]:
    """Return how many kernels of attention run while a layer's gathers are under way.

    By kind of loop: the one that calls attention's backward kernel, and the other.
    """
    calls = {}
    for lines in computations(program.text):
        starts = {}
        for index, line in enumerate(lines):
            start = re.match(r"\s+%?([\w.\-]+) = .* all-gather-start\(", line)
            done = re.search(r" all-gather-done\(%?([\w.\-]+)\)", line)
            if start:
                starts[start.group(1)] = index
            elif done and done.group(1) in starts:
                between = "\n".join(lines[starts[done.group(1)] : index])
                text = "\n".join(lines)
                kind = "backward" if "__cudnn$fmhaSoftmaxBackward" in text else "forward"
                if "ENTRY" not in lines[0]:
                    calls[kind] = between.count('custom_call_target="__cudnn$fmha')
    return calls


def computations(text: str) -> list[list[str]]:
    """Return the lines of each computation."""
    return [block.splitlines() for block in re.split(r"\n\n", text) if "{" in block]


def test_the_next_layer_is_gathered_while_one_is_computed():
    program = compiled(sharded_config("llama_1b", 8, "full"), 8)
    calls = overlapped_calls(program)
    assert calls.keys() == {"forward", "backward"} and min(calls.values()) >= 1, calls


# The loss


def scores_of_all_tokens(program: Program, tokens: int, vocabulary: int) -> set[str]:
    """Return the types of arrays that have the scores of so many tokens."""
    found = set()
    for dtype, dims in re.findall(r"\b(f32|bf16)\[([\d,]+)\]", program.text):
        sizes = [int(size) for size in dims.split(",")]
        if vocabulary in sizes and math.prod(sizes) >= tokens * vocabulary:
            found.add(f"{dtype}[{dims}]")
    return found


def largest_microbatch() -> tuple[int, Program]:
    """Return the most sequences per GPU, by 16, that fit, and the program of llama_1b."""
    for rows in (208, 192, 176, 160):
        program = compiled(recipe("llama_1b", f"training.batch_size={8 * rows}", *EDITS), 8)
        if program.peak_bytes <= H100_BYTES:
            return rows, program
    raise AssertionError("160 sequences don't fit")


def test_scores_are_never_whole_in_memory_at_the_largest_microbatch():
    """With jax 0.10.2 it is 192 x 2,048 tokens, whose scores would take 47 GiB in float32."""
    rows, program = largest_microbatch()
    assert rows < 208  # so that it is the largest

    config = recipe("llama_1b").model
    tokens, vocabulary = rows * config.context_length, config.vocabulary_size
    assert not scores_of_all_tokens(program, tokens, vocabulary)
    assert f"f32[{rows},128,{vocabulary}]" in program.text  # a tile, 1/16 of the positions

    # Scores come when the inputs of all layers are kept for the backward pass.
    inputs = 2 * config.layers * tokens * config.width
    assert program.temp_bytes < inputs + 4 * tokens * vocabulary
