"""The train step compiled for 8 GPUs that are not there: its kernels, collectives and memory.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m "aot and not campaign"
"""

import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import compiled, compiled_evaluation, recipe

from jaxlm.plan.compiled_text import COLLECTIVES, groups_of


def test_llama_1b_under_zero_3():
    run_config = recipe("llama_1b", "training.batch_size=32", "training.microbatches=1")
    assert run_config.parallel.zero == 3 and run_config.parallel.remat == "full"
    program = compiled(run_config, 8)
    counts = program.counts()
    assert "__cudnn$fmhaSoftmax" in program.text and "__cudnn$fmhaSoftmaxBackward" in program.text
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    # 4 sequences of 2048 per GPU: no gathered array has their shape, or that of all 32.
    assert not [
        shape
        for shape in program.gathered_shapes()
        if shape[:2] in ((4, 2048), (32, 2048)) and len(shape) > 2
    ]
    assert program.peak_bytes <= 5.5 * 2**30
    # Gradients are summed over the GPUs in float32, as precision.gradients says.
    reduced = [
        line
        for line in program.text.splitlines()
        if re.search(r"[ )]reduce-scatter(?:-start)?\(", line)
    ]
    assert reduced and not [
        line for line in reduced if "bf16[" in line.split("reduce-scatter-start(")[0]
    ]


def test_gpt2_under_zero_1_with_tensor_parallelism():
    run_config = recipe(
        "gpt2_124m", "training.batch_size=32", "training.microbatches=1", "parallel.tensor=2"
    )
    program = compiled(run_config, 8)
    assert "__cudnn$fmhaSoftmaxBackward" in program.text and program.counts()["all-to-all"] == 0


def test_one_gpu_has_no_collectives():
    run_config = recipe(
        "gpt2_124m", "training.batch_size=12", "training.microbatches=1", "parallel.zero=0"
    )
    program = compiled(run_config, 1)
    assert sum(program.counts().values()) == 0 and "__cudnn$fmhaSoftmax" in program.text


def test_kernels_of_products_add_biases_and_compute_gelu():
    """GPT-2 has four biases per layer in attention, and two in the MLP, one of them before GELU.

    With fewer rows XLA makes one product of query, key and value, and adds biases behind it.
    """
    layers = 2
    run_config = recipe(
        "gpt2_124m",
        f"model.layers={layers}",
        "training.batch_size=64",
        "training.microbatches=1",
        "parallel.zero=0",
    )
    text = compiled(run_config, 1).text
    epilogues = Counter(re.findall(r'"epilogue":"(\w+)"', text))
    assert epilogues["BIAS"] == 5 * layers and epilogues["BIAS_GELU_AUX"] == layers
    assert not re.search(r"__triton_(nested_)?gemm", text)
    # No kernel writes over a copy of the residual stream.
    assert not re.search(r"= bf16\[(64,1024|65536),768\]\S* copy\(", text)


def test_unrolled_layers_that_are_recomputed_keep_their_inputs_alone():
    """Weight gradients that XLA put off to the end would keep what they are computed from."""
    edits = ["training.batch_size=512", "training.microbatches=1", "model.layers=8"]
    full, none = (
        compiled(recipe("bert_base", *edits, f"parallel.remat={remat}"), 8).temp_bytes
        for remat in ("full", "none")
    )
    assert full < 0.5 * none, (full, none)


def test_sliding_windows_use_the_flash_kernel():
    base = recipe(
        "gpt2_124m", "training.batch_size=16", "training.microbatches=1", "model.layers=2"
    )
    program = compiled(replace(base, model=replace(base.model, sliding_window=256)), 8)
    assert "__cudnn$fmha" in program.text and program.counts()["all-to-all"] == 0


@pytest.mark.parametrize("name", ["gpt2_124m", "bert_base", "t5_base"])
def test_packed_rows_keep_the_flash_kernel(name):
    """Segments are a bias of all heads: no scores of a head and no mask of a head are stored."""
    edits = ["training.batch_size=32", "training.microbatches=1", "model.layers=2"]
    run_config = recipe(name, *edits, "data.sequences=packed")
    program = compiled(run_config, 8)
    kernels = program.attention_kernels()
    assert kernels.keys() == {
        "__cudnn$fmhaScaleBiasSoftmax",
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
    }

    # Learned relative positions have a bias per head, of which the segments become a part.
    length, heads = run_config.data.sequence_length, run_config.model.heads
    of_heads = f"[4,{heads},{length},{length}]"
    scores = re.findall(rf"(?:f32|bf16){re.escape(of_heads)}", program.text)
    assert bool(scores) == (name == "t5_base")
    assert f"f32{of_heads}" not in program.text
    assert program.counts()["all-to-all"] == 0


# The kernel's operands on each GPU, in all combinations that a config accepts.

FAMILIES = {
    "decoder": ("gpt2_124m", ()),
    "encoder": ("bert_base", ("model.dropout=0",)),
    "encoder_decoder": ("t5_base", ()),
}
POSITIONS = ("rotary", "learned", "alibi", "relative")
KV_HEADS = (8, 4, 1)
TENSOR = (1, 2, 8)
STAGES = (0, 1, 3)
SOME = [  # those in which the operands once were split unalike, and one of each kind
    ("decoder", "alibi", 8, 2, 1),
    ("decoder", "rotary", 4, 8, 3),
    ("decoder", "learned", 1, 2, 0),
    ("encoder", "relative", 1, 8, 1),
    ("encoder_decoder", "alibi", 4, 8, 1),
    ("encoder_decoder", "relative", 1, 2, 3),
]


def check_kernel_operands(
    family: str, positions: str, kv_heads: int, tensor: int, zero: int
) -> None:
    """Compile a small model for 8 H100: each kernel gets its rows and heads of every operand."""
    name, edits = FAMILIES[family]
    shape = [
        "model.width=256",
        "model.heads=8",
        "model.head_width=64",
        f"model.kv_heads={kv_heads}",
        "model.layers=1",
        "model.mlp_width=512",
        "model.vocabulary_size=32128",
        "model.context_length=1024",
        f"model.positions={positions}",
        f"parallel.tensor={tensor}",
        f"parallel.fsdp={8 // tensor}",
        f"parallel.zero={0 if tensor == 8 else zero}",
        "training.batch_size=32",
        "training.microbatches=2",
    ]
    if family == "decoder":
        shape.append("data.sequence_length=512")
    run_config = recipe(name, *shape, *edits)
    program = compiled(run_config, 8)

    rows, heads = 16 * tensor // 8, 8 // tensor
    kernels = program.kernel_operands()
    assert len(kernels) >= (3 if family == "encoder_decoder" else 1)
    has_bias = positions in ("alibi", "relative")
    assert any(len(operands) == 4 for operands in kernels) == has_bias
    for q, k, v, *bias in kernels:
        assert (q[0], q[2]) == (rows, heads), (q, k, v, bias)
        assert k == v and k[0] == rows and k[2] == max(1, kv_heads // tensor), (q, k, v, bias)
        assert all(shape[:2] == (1, heads) for shape in bias), (q, k, v, bias)

    # Adafactor takes its means under vmap: the compiler may move a few vectors of its moments.
    moved = [*program.lines("all-to-all"), *program.lines("collective-permute")]
    assert not [line for line in moved if 'op_name="jit(step)/vmap()' not in line]

    # ALiBi's bias has no gradient that devices would sum.
    if positions == "alibi":
        assert not [line for line in program.lines("all-reduce") if re.search(r"512,512\]", line)]


@pytest.mark.parametrize(("family", "positions", "kv_heads", "tensor", "zero"), SOME)
def test_kernels_get_their_rows_and_heads_of_every_operand(
    family, positions, kv_heads, tensor, zero
):
    check_kernel_operands(family, positions, kv_heads, tensor, zero)


@pytest.mark.campaign
def test_kernels_get_their_rows_and_heads_in_every_combination():
    """All that differ in their program: with tensor=8 no device is left for a ZeRO stage."""
    failures = []
    for case in itertools.product(FAMILIES, POSITIONS, KV_HEADS, TENSOR, STAGES):
        if case[3] == 8 and case[4] > 0:
            continue
        try:
            check_kernel_operands(*case)
        except Exception as error:  # all of them are reported together
            failures.append((case, " ".join(str(error).split())[:300]))
        print(case, "failed" if failures and failures[-1][0] == case else "ok", flush=True)
    assert failures == []


# Memory and collectives


# With Adafactor, that of T5's recipe, ZeRO 1 saves a thousandth: its state is that small.
ADAMW = ("optimizer.kind=adamw", "optimizer.learning_rate=1e-4")


def memory(name: str, zero: int, remat: str, *edits: str) -> int:
    batch = ("training.batch_size=32", "training.microbatches=1")
    stage = (f"parallel.zero={zero}", f"parallel.remat={remat}")
    return compiled(recipe(name, *batch, *stage, *edits), 8).peak_bytes


@pytest.mark.parametrize(
    ("name", "remat", "edits"),
    [("llama_1b", "none", ("model.layers=8",)), ("t5_base", "none", ("model.layers=4", *ADAMW))],
)
def test_every_zero_stage_takes_less_memory(name, remat, edits):
    peaks = [memory(name, zero, remat, *edits) for zero in (3, 1, 0)]
    assert peaks[0] < peaks[1] < peaks[2], peaks


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["llama_1b", "t5_base"])
@pytest.mark.parametrize("remat", ["none", "weights", "dots", "full"])
def test_every_zero_stage_takes_less_memory_under_each_policy(name, remat):
    peaks = [memory(name, zero, remat, *ADAMW) for zero in (3, 1, 0)]
    print(name, remat, [f"{peak / 2**30:.2f} GiB" for peak in peaks], flush=True)
    assert peaks[0] < peaks[1] < peaks[2], peaks


def test_an_evaluation_takes_less_memory_than_the_training():
    """Also where scores of attention are in memory and a batch is 40 microbatches."""
    run_config = recipe(
        "gpt2_124m",
        "training.microbatches=40",
        "training.batch_size=480",
        "model.attention_softcap=50",
        "parallel.zero=0",
        "model.layers=2",
    )
    training = compiled(run_config, 1, attention="xla").peak_bytes
    assert compiled_evaluation(run_config, 1, attention="xla").peak_bytes < training


def test_the_loss_keeps_all_scores_where_the_memory_allows():
    """GPT-2 at 12 x 1024 has 2.5 GB of scores: an H100 doesn't compute them twice."""
    edits = ("training.microbatches=1", "training.batch_size=12", "parallel.zero=0")
    program = compiled(recipe("gpt2_124m", *edits, "model.layers=1"), 1)
    assert not program.loop_lines()


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_gradients_are_not_summed_in_every_microbatch(zero):
    """Below ZeRO 2 the loop over microbatches has no collective at all."""
    edits = ("training.batch_size=128", "training.microbatches=4", "model.layers=2")
    program = compiled(recipe("gpt2_124m", *edits, f"parallel.zero={zero}"), 8)
    looped = [
        name
        for line in program.loop_lines()
        for name in COLLECTIVES
        if re.search(rf" {name}(?:-start)?\(", line)
    ]
    counts = program.counts()
    assert program.loop_lines()
    if zero == 2:
        assert set(looped) == {"reduce-scatter"} and len(looped) <= 3, looped
    else:
        assert looped == []
        assert counts["reduce-scatter"] >= zero and counts["all-to-all"] == 0
    assert counts["all-reduce"] <= 12


@pytest.mark.parametrize("name", ["bert_base", "roberta_base", "t5_base", "bart_base"])
def test_encoders_and_encoder_decoders_under_zero_3(name):
    """Attention runs in flash kernels, both ways, and nothing of the batch moves between GPUs."""
    edits = [
        "training.batch_size=128",
        "training.microbatches=1",
        "parallel.zero=3",
        "parallel.remat=full",
    ]
    run_config = recipe(name, *edits)
    program = compiled(run_config, 8)
    kinds = (
        3 if run_config.model.family == "encoder_decoder" else 1
    )  # encoder, decoder and cross attention
    kernels = program.attention_kernels()
    backward = sum(count for kernel, count in kernels.items() if "Backward" in kernel)
    assert backward >= kinds and sum(kernels.values()) >= 3 * kinds, (
        kernels
    )  # scanned: once forward, once recomputed, once backward
    counts, length = program.counts(), run_config.data.sequence_length
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    # 16 sequences per GPU: no gathered array has their shape, or that of all 128.
    assert not [
        shape
        for shape in program.gathered_shapes()
        if shape[:2] in ((16, length), (128, length)) and len(shape) > 2
    ]


def test_the_gradient_of_relative_positions_comes_from_the_flash_kernel():
    """T5's bias is learned: its gradient is among what the backward kernel gives."""
    program = compiled(
        recipe("t5_base", "training.batch_size=16", "training.microbatches=1", "model.layers=1"), 8
    )
    assert {
        "__cudnn$fmhaScaleBiasSoftmax",
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
    } <= program.attention_kernels().keys()


def test_llama_1b_on_two_machines():
    """Parameters are gathered inside a machine; only shards of gradients cross between (HSDP)."""
    run_config = recipe(
        "llama_1b", "parallel.data=2", "training.batch_size=64", "training.microbatches=1"
    )
    program = compiled(run_config, 8, machines=2)
    counts = program.counts()
    assert counts["all-to-all"] == counts["collective-permute"] == 0
    assert counts["reduce-scatter"] >= 1
    groups = {
        name: [groups_of(line) for line in program.lines(name)]
        for name in ("all-gather", "reduce-scatter", "all-reduce")
    }
    machine = [list(range(8)), list(range(8, 16))]
    assert groups["all-gather"] and all(found == machine for found in groups["all-gather"])
    assert all(found == machine for found in groups["reduce-scatter"])
    assert [[gpu, gpu + 8] for gpu in range(8)] in groups["all-reduce"]
    # Summed over all GPUs: the tables of tokens, norms and scalars, nothing of a layer's kernels.
    whole = [line for line in program.lines("all-reduce") if groups_of(line) == [list(range(16))]]
    largest = {
        dims
        for line in whole
        for dims in re.findall(r"f32\[([\d,]+)\]", line.partition("all-reduce")[0])
        if "," in dims
    }
    assert largest <= {"2048,32000", "32000,2048"}
