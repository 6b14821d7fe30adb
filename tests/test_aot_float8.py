"""Steps with products in float8, compiled for H100 that are not there: which products cuBLAS has.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m "aot and not campaign"
"""

import re
from collections import Counter

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import compiled, recipe

ONE_GPU = ("model.layers=2", "training.microbatches=1", "parallel.zero=0")


def products(text: str) -> Counter[tuple[str, bool]]:
    """Count the matrix products by the part of the model they belong to, and if in float8."""
    assert not re.search(r"__triton_(nested_)?gemm|gemm_fusion| dot\(", text)
    counts: Counter[tuple[str, bool]] = Counter()
    for line in text.splitlines():
        kernel = re.search(r'custom_call_target="__cublas\$lt\$matmul(\$f8)?"', line)
        if kernel:
            name = re.search(r'op_name="([^"]*)"', line)
            assert name, line
            part = "head" if "Head" in name[1] else "block"
            counts[part, kernel[1] is not None] += 1
    return counts


@pytest.mark.parametrize(
    ("name", "rows", "blocks", "head"),
    [
        ("gpt2_124m", 64, 2 * 6, 1),
        ("bert_base", 64, 2 * 6, 2),  # a transform before the vocabulary
    ],
)
def test_one_gpu_multiplies_in_float8_in_blocks_alone(name, rows, blocks, head):
    """Forward, and both products of the backward pass."""
    run_config = recipe(name, *ONE_GPU, f"training.batch_size={rows}", "precision.matmul=float8")
    counts = products(compiled(run_config, 1, attention="auto").text)
    assert counts == {("block", True): 3 * blocks, ("head", False): 3 * head}
