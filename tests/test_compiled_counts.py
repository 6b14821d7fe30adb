"""Counts of steps compiled for H100 are those on file: times drift on shared machines.

FLOPs of products, calls of attention kernels and bytes of collectives follow from the config. The
number of collectives, fusions and temporary memory depend on the version of XLA: they may not grow
from those of the same version of jax. Needs the CUDA plugin of jax (extra `cuda`), no GPU. A change
that means to alter the counts writes the file anew, and its diff shows by how much:

    PYTHONPATH=.:tests python tests/test_compiled_counts.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

import jax
from support.gpu_programs import compiled, recipe

from jaxlm.plan.compiled_text import COLLECTIVES, CompiledText

COUNTS = Path(__file__).parent / "compiled_counts.json"
RENEW = f"if that is meant: PYTHONPATH=.:tests python tests/{Path(__file__).name}"
BY_VERSION = ("collectives", "fusions", "temporary_bytes")
GROWTH = 1.05
CASES: dict[str, tuple[int, str, tuple[str, ...]]] = {  # name -> (GPUs, recipe, edits)
    "gpt2": (1, "gpt2_124m", ("training.batch_size=12", "parallel.zero=0", "model.layers=2")),
    "bert": (1, "bert_base", ("training.batch_size=32", "parallel.zero=0", "model.layers=2")),
    "t5": (1, "t5_base", ("training.batch_size=32", "parallel.zero=0", "model.layers=2")),
    "llama zero 1": (
        8,
        "llama_1b",
        ("training.batch_size=32", "parallel.zero=1", "model.layers=2"),
    ),
    "llama zero 3": (8, "llama_1b", ("training.batch_size=32", "parallel.zero=3")),
}


def count(case: str) -> dict[str, Any]:
    """Compile the step of a case and count what it does on one GPU."""
    gpus, name, edits = CASES[case]
    program = compiled(recipe(name, "training.microbatches=1", *edits), gpus)
    text = CompiledText(program.text)
    kernels, collectives = text.kernels(), text.collectives()
    counts: dict[str, Any] = {
        "product_flops": text.products(),
        "attention_kernels": sum(n for kernel, n in kernels.items() if "fmha" in kernel),
    }
    for kind in COLLECTIVES:
        found = [c for c in collectives if c.kind == kind]
        counts[f"{kind}_bytes"] = sum(c.bytes * c.times for c in found)
    return counts | {
        "jax": jax.__version__,
        "collectives": sum(c.times for c in collectives),
        "fusions": kernels["fusion"],
        "temporary_bytes": program.temp_bytes,
    }


@pytest.mark.parametrize("case", CASES)
def test_a_compiled_step_does_what_it_did(case):
    expected, actual = json.loads(COUNTS.read_text())[case], count(case)
    changes = [
        f"{name}: {value} -> {actual[name]}"
        for name, value in expected.items()
        if name not in (*BY_VERSION, "jax") and actual[name] != value
    ]
    for name in BY_VERSION:
        if actual["jax"] == expected["jax"] and actual[name] > GROWTH * expected[name]:
            changes.append(f"{name}: {expected[name]} -> {actual[name]}")
    assert not changes, f"the compiled step of {case} changed: {'; '.join(changes)}; {RENEW}"


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"], os.environ["CUDA_VISIBLE_DEVICES"] = "cpu", "-1"
    COUNTS.write_text(json.dumps({case: count(case) for case in CASES}, indent=1) + "\n")
