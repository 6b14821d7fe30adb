"""Steps with adapters compiled for H100 that are not there. They need the extra `cuda`, no GPU."""

import math
import re

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import compiled, recipe

RANK, WIDTH = 16, 2048


@pytest.mark.parametrize("kept", ["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_zero_3_reduces_gradients_of_adapters_alone(kept):
    """The largest is that of an A, [2048, 16]; the whole model would reduce [2048, 5632]."""
    edits = ("training.batch_size=8", "training.microbatches=1", "parallel.zero=3")
    adapter = (f"adapter.rank={RANK}", f"adapter.base={kept}", "model.layers=4")
    program = compiled(recipe("llama_1b", *edits, *adapter), 8)
    shapes = [
        tuple(map(int, shape.split(",")))
        for name in ("reduce-scatter", "all-reduce")
        for line in program.lines(name)
        for shape in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", line)
    ]
    assert (WIDTH, RANK) in shapes
    assert max(map(math.prod, shapes)) <= 2 * WIDTH * RANK
