"""The choice of a kernel of attention: what cuDNN can do, and where blocks are better."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import config, mesh_execution, sharding
from jaxlm.nn import dot_product
from jaxlm.nn.attention import attention_kernel
from jaxlm.nn.execution import Execution
from jaxlm.nn.kernel_choice import MASK_BYTES, PAIR_COST, SCORES_BYTES, Case, choose_kernel
from jaxlm.nn.mask import Mask
from jaxlm.nn.tiles import cut_tiles

H100 = Execution(platform="cuda", compute_capability=9.0)
A100 = H100._replace(compute_capability=8.0)
LENGTHS: Any = np.array([8, 4])
SEGMENTS: Any = np.array([[0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 2]])
PREFIX = Mask(causal=True, prefix_lengths=LENGTHS)
CACHE = Mask(positions=(jnp.zeros((1, 1)), jnp.zeros((1, 1))))
GOOD = Case(dtype="bfloat16", queries=256, keys=256, head_width=64, mask=Mask(causal=True))


# cuDNN


@pytest.mark.parametrize(
    "case",
    [
        GOOD,
        GOOD._replace(dtype="float16"),
        GOOD._replace(queries=64, keys=200),
        GOOD._replace(mask=Mask(causal=True, window=100, lengths=LENGTHS)),
        GOOD._replace(mask=Mask()),
        GOOD._replace(mask=Mask(lengths=LENGTHS, query_lengths=LENGTHS)),
        GOOD._replace(mask=PREFIX),
        GOOD._replace(mask=PREFIX._replace(window=30, lengths=LENGTHS), bias=True),
        GOOD._replace(mask=Mask(window=100)),
        GOOD._replace(mask=Mask(window=100, lengths=LENGTHS, segments=SEGMENTS)),
    ],
)
def test_cudnn_where_supported(case):
    assert choose_kernel(H100, case) == ("cudnn", "supported")
    assert choose_kernel(H100._replace(attention="cudnn"), case) == ("cudnn", "supported")
    assert choose_kernel(H100._replace(attention="xla"), case) == ("xla", "asked for")


@pytest.mark.parametrize(
    ("execution", "case", "reason"),
    [
        (Execution(), GOOD, "platform is cpu"),
        (H100._replace(deterministic=True), GOOD, "runtime.deterministic is on"),
        (H100._replace(deterministic=True), GOOD._replace(mask=PREFIX), "runtime.deterministic"),
        (H100, GOOD._replace(dtype="float32"), "dtype is float32"),
        (H100, GOOD._replace(head_width=60), "heads of 60 channels"),
        (H100, GOOD._replace(head_width=264), "heads of 264 channels"),
        (A100, GOOD._replace(head_width=192), "up to 128"),
        (H100, GOOD._replace(queries=63), "63 queries"),
        (H100, GOOD._replace(keys=48), "48 keys"),
        (H100, GOOD._replace(softcap=True), "soft-cap"),
        (H100, GOOD._replace(dropout=True), "dropout"),
        (H100, GOOD._replace(mask=CACHE), "keys of a cache"),
    ],
)
def test_xla_where_cudnn_is_not_supported(execution, case, reason):
    chosen, why = choose_kernel(execution, case)
    assert chosen == "xla" and reason in why
    with pytest.raises(ValueError, match="cuDNN attention can't be used") as error:
        choose_kernel(execution._replace(attention="cudnn"), case)
    assert reason in str(error.value)


@pytest.mark.parametrize("capability", [7.0, 7.5])
def test_gpus_older_than_ampere_take_the_xla_path(capability):
    """cuDNN's flash kernels need compute capability 8.0: V100 and T4 have less."""
    older = H100._replace(compute_capability=capability)
    kernel, reason = choose_kernel(older, GOOD)
    assert kernel == "xla" and f"compute capability is {capability}" in reason
    with pytest.raises(ValueError, match=r"compute capability"):
        choose_kernel(older._replace(attention="cudnn"), GOOD)
    assert choose_kernel(A100, GOOD) == ("cudnn", "supported")


def test_wide_heads_on_hopper():
    assert choose_kernel(H100, GOOD._replace(head_width=256))[0] == "cudnn"
    assert choose_kernel(A100, GOOD._replace(head_width=128))[0] == "cudnn"


def test_asked_for_but_unsupported_raises_in_a_model_too():
    q = jnp.zeros((1, 8, 2, 4))
    with pytest.raises(ValueError, match="platform is cpu"):
        dot_product.attend(q, q, q, Mask(), Execution(attention="cudnn"), scale=0.5)


# Blocks

# Eight rows of 16 heads: 2 GiB of scores, twice what is allowed.
LONG = GOOD._replace(queries=2048, keys=2048, rows=8, heads=16)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (LONG._replace(softcap=True), "attention soft-cap"),
        (LONG._replace(softcap=True, mask=PREFIX), "attention soft-cap"),
        (LONG._replace(dtype="float32"), "the dtype is float32"),
        (LONG._replace(softcap=True, queries=1025, keys=2048), "attention soft-cap"),
    ],
)
def test_large_scores_that_cudnn_cant_do_are_computed_by_blocks(case, reason):
    assert 4 * case.rows * case.heads * case.queries * case.keys > SCORES_BYTES
    assert choose_kernel(H100, case) == ("blockwise", reason)
    assert choose_kernel(Execution(), case)[0] == "xla"
    assert choose_kernel(H100._replace(attention="xla"), case) == ("xla", "asked for")


@pytest.mark.parametrize(
    "case",
    [
        LONG._replace(softcap=True, dropout=True),
        LONG._replace(softcap=True, mask=CACHE),
        LONG._replace(softcap=True, queries=1024),
        LONG._replace(softcap=True, rows=4),
        LONG._replace(softcap=True, heads=8),
    ],
)
def test_dropout_caches_and_small_scores_take_the_xla_path(case):
    assert choose_kernel(H100, case)[0] == "xla"


@pytest.mark.parametrize(
    ("length", "kernel"), [(1024, "cudnn"), (2048, "blockwise"), (8192, "blockwise")]
)
def test_a_window_to_both_sides_takes_the_kernel_that_was_faster(length, kernel):
    """64 positions to either side, 4 rows of 12 heads, on an H200 (docs/performance.md)."""
    case = GOOD._replace(queries=length, keys=length, rows=4, heads=12, mask=Mask(window=65))
    assert choose_kernel(H100, case)[0] == kernel


def test_a_mask_too_large_for_cudnn_is_computed_by_blocks():
    """It is one for all heads, unless it becomes a part of a bias."""
    rows = MASK_BYTES // (2 * 4096**2)
    fits = GOOD._replace(queries=4096, keys=4096, rows=rows, heads=12, mask=PREFIX)
    assert choose_kernel(H100, fits) == ("cudnn", "supported")
    assert choose_kernel(H100, fits._replace(rows=rows + 1)) == ("blockwise", "a mask of 4,128 MiB")
    assert choose_kernel(H100, fits._replace(bias=True))[0] == "blockwise"
    packed = fits._replace(rows=2 * rows, mask=Mask(causal=True, segments=SEGMENTS))
    assert choose_kernel(H100, packed)[0] == "blockwise"
    assert choose_kernel(H100._replace(attention="cudnn"), packed) == ("cudnn", "supported")

    # No mask of rows is read for these.
    for mask in (Mask(causal=True, window=100), Mask(lengths=LENGTHS), Mask(window=4000)):
        case = fits._replace(rows=100 * rows, mask=mask)
        assert choose_kernel(H100, case) == ("cudnn", "supported")


@pytest.mark.parametrize(("over", "softcap"), [("cudnn", False), ("xla", True)])
def test_a_narrow_window_is_computed_by_blocks(over, softcap):
    """Where they compute so many pairs less than all that each of these takes longer."""
    lengths = [2**n for n in range(8, 16)]
    mask, chosen = Mask(window=65), []
    for length in lengths:
        case = GOOD._replace(queries=length, keys=length, mask=mask, softcap=softcap)
        chosen.append(choose_kernel(H100, case)[0])
        tiling = cut_tiles(mask, length, length, rows_and_heads=1)
        assert (chosen[-1] == "blockwise") == (PAIR_COST[over] * tiling.pairs < length**2)
    assert chosen == sorted(chosen, key=over.__ne__) and set(chosen) == {over, "blockwise"}

    # A wide one leaves nearly all, and cuDNN knows a causal one.
    wide = GOOD._replace(queries=8192, keys=8192, mask=Mask(window=4096), softcap=softcap)
    assert choose_kernel(H100, wide)[0] == over
    causal = wide._replace(mask=Mask(causal=True, window=65))
    assert choose_kernel(H100, causal)[0] == over


def test_blockwise_attention_can_be_asked_for():
    asked = Execution(attention="blockwise")
    assert choose_kernel(asked, GOOD) == ("blockwise", "asked for")
    assert choose_kernel(asked, GOOD._replace(mask=CACHE)) == ("xla", "keys of a cache")
    with pytest.raises(ValueError, match="can't be used: attention dropout"):
        choose_kernel(asked, GOOD._replace(dropout=True))


# Models


def test_kernel_of_a_model():
    def chosen(
        fields: dict, compute: str = "bfloat16", keys: int = 1000, mask: Mask = GOOD.mask
    ) -> tuple[str, str]:
        model_config = config.ModelConfig(width=256, heads=4, **fields)
        return attention_kernel(model_config, compute, 1, 1000, keys, mask, H100)

    assert (
        chosen({})
        == chosen({}, keys=64)
        == chosen({"sliding_window": 64})
        == ("cudnn", "supported")
    )
    assert chosen({"attention_softcap": 30.0}) == ("xla", "attention soft-cap")
    assert chosen({"attention_dropout": 0.1}) == ("xla", "attention dropout")
    assert chosen({}, mask=Mask(segments=SEGMENTS)) == ("cudnn", "supported")
    assert chosen({}, "float32") == ("xla", "the dtype is float32")
    assert chosen({}, keys=50)[0] == chosen({"head_width": 12})[0] == "xla"


def test_the_choice_is_that_of_one_device():
    """Rows and heads are split over the devices, where these divide them."""
    parallel = config.ParallelConfig(fsdp=2, tensor=2, zero=0)
    mesh = sharding.make_mesh(parallel, jax.devices()[:4])
    execution = mesh_execution.build_execution(
        mesh, parallel, config.PrecisionConfig(), "auto", width=512
    )
    execution = execution._replace(platform="cuda", compute_capability=9.0)

    def chosen(rows: int, heads: int) -> str:
        model_config = config.ModelConfig(width=64 * heads, heads=heads, attention_softcap=30.0)
        mask, length = Mask(causal=True), 4096
        return attention_kernel(model_config, "bfloat16", rows, length, length, mask, execution)[0]

    # A row and head has 64 MiB of scores: 16 of them are no more than 1 GiB.
    assert (chosen(8, 8), chosen(10, 8), chosen(8, 10)) == ("xla", "blockwise", "blockwise")
    assert (chosen(9, 8), chosen(4, 15), chosen(1, 16)) == ("blockwise", "blockwise", "xla")
