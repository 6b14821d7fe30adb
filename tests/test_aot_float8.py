"""Steps with products in float8, compiled for H100 that are not there: which products cuBLAS has.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m "aot and not campaign"
"""

import re
from collections import Counter

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import compiled, recipe

ONE_GPU = ("training.microbatches=1", "parallel.zero=0")


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
    ("name", "devices", "edits", "blocks", "head"),
    [
        ("gpt2_124m", 1, ("training.batch_size=64", *ONE_GPU), 3 * 2 * 6, 3),
        # A transform before the vocabulary.
        ("bert_base", 1, ("training.batch_size=64", *ONE_GPU), 3 * 2 * 6, 6),
        # An encoder's layer has 7 products, a decoder's 11.
        ("t5_base", 1, ("training.batch_size=16", *ONE_GPU), 3 * 2 * 18, 3),
        # ZeRO 3 computes all but the last product of a layer again in the backward pass.
        (
            "llama_1b",
            8,
            ("training.batch_size=32", "training.microbatches=1"),
            3 * 2 * 7 + 2 * 6,
            3,
        ),
        (
            "gpt2_124m",
            8,
            ("training.batch_size=64", "training.microbatches=1", "parallel.tensor=2"),
            3 * 2 * 6,
            3,
        ),
    ],
    ids=["gpt2", "bert", "t5", "llama, zero 3", "gpt2, tensor 2"],
)
def test_products_of_blocks_are_in_float8_and_no_others(name, devices, edits, blocks, head):
    """Forward, and both products of the backward pass."""
    run_config = recipe(name, "model.layers=2", *edits, "precision.matmul=float8")
    counts = products(compiled(run_config, devices, attention="auto").text)
    assert counts == {("block", True): blocks, ("head", False): head}
