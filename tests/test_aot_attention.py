"""Attention compiled for GPUs that are not there: masks that cuDNN reads, and blocks.

Needs the CUDA plugin of jax (extra `cuda`), no GPU.
"""

import re

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import Program, compiled, recipe

from jaxlm.plan.compiled_text import COLLECTIVES

MASKED_RECIPES = {
    "prefix LM": ("gpt2_124m", ("objective.kind=prefix",)),
    "prefix LM, learned bias": ("gpt2_124m", ("objective.kind=prefix", "model.positions=relative")),
    "ModernBERT": (
        "bert_base",
        (
            "model.positions=rotary",
            "model.sliding_window=65",
            'model.attention_pattern=["full","sliding"]',
        ),
    ),
}


@pytest.mark.parametrize("split", [("parallel.zero=3",), ("parallel.zero=1", "parallel.tensor=2")])
@pytest.mark.parametrize("name", MASKED_RECIPES)
def test_prefixes_and_windows_to_both_sides_use_the_flash_kernel(name, split):
    """Their masks are biases of all heads, a window's even of all rows; nothing is gathered."""
    base, edits = MASKED_RECIPES[name]
    sizes = ("training.batch_size=32", "training.microbatches=1", "model.layers=2")
    run_config = recipe(base, *sizes, *split, *edits)
    program = compiled(run_config, 8, attention="auto")

    with_mask = {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
    without = (
        {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} if name == "ModernBERT" else set()
    )
    assert program.attention_kernels().keys() == with_mask | without
    assert program.counts()["all-to-all"] == 0

    tensor = run_config.parallel.tensor
    rows, heads, length = 4 * tensor, 12 // tensor, run_config.data.sequence_length
    biases = {tuple(bias) for _, _, _, *biases in program.kernel_operands() for bias in biases}
    of_mask = {
        "prefix LM": (rows, 1, length, length),
        "prefix LM, learned bias": (rows, heads, length, length),
        "ModernBERT": (1, 1, length, length),
    }
    assert biases == {of_mask[name]}
    assert f"f32[{rows},{heads},{length},{length}]" not in program.text


# Gemma 2 2B with two of its 26 layers, one with a window: soft-caps, which cuDNN can't do.
GEMMA2 = (
    "model.width=2304",
    "model.layers=2",
    "model.heads=8",
    "model.kv_heads=4",
    "model.head_width=256",
    "model.mlp_width=9216",
    "model.norm_placement=both",
    "model.sliding_window=4096",
    'model.attention_pattern=["sliding","full"]',
    "model.attention_softcap=50",
    "model.context_length=8192",
    "data.sequence_length=8192",
    "training.microbatches=1",
)


def scores_of_a_group(program: Program) -> int:
    """Return the elements of the largest matrix of each group of heads, of which there are 4."""
    matrices = re.findall(r"(?:f32|bf16|pred)\[(?:\d+,)*4,(?:2,)?(\d+),(\d+)\]", program.text)
    return max(int(rows) * int(columns) for rows, columns in matrices)


def test_attention_by_blocks_holds_no_scores_of_all_positions():
    """A tile has 1,024 x 1,024 of the 8,192 x 8,192 positions, of both heads of a group."""
    edits = ("training.batch_size=1", "parallel.zero=0", "parallel.remat=none")
    run_config = recipe("llama_1b", *GEMMA2, *edits)
    blocks, whole = (compiled(run_config, 1, attention=name) for name in ("auto", "xla"))
    assert scores_of_a_group(blocks) == 2 * 1024**2
    assert scores_of_a_group(whole) >= 2 * 8192**2 // 4
    # 6.9 and 10.5 GiB.
    assert blocks.peak_bytes <= 7.2 * 2**30 < 10 * 2**30 <= whole.peak_bytes


@pytest.mark.parametrize("edits", [("parallel.zero=3",), ("parallel.zero=1", "parallel.tensor=2")])
def test_attention_by_blocks_adds_no_collective(edits):
    run_config = recipe("llama_1b", *GEMMA2, "training.batch_size=8", *edits)
    blocks, whole = (compiled(run_config, 8, attention=name) for name in ("auto", "xla"))
    assert scores_of_a_group(blocks) < scores_of_a_group(whole)
    assert blocks.counts() == whole.counts() and blocks.counts()["all-to-all"] == 0
    looped = [line for line in blocks.loop_lines() if re.search(r"attend/\S*while/body", line)]
    assert looped and not [line for line in looped if re.search("|".join(COLLECTIVES), line)]
