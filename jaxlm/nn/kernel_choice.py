"""Which kernel computes a call of attention: cuDNN's, attention by blocks, or the XLA path.

`choose_kernel` decides and says why, so that a run can print which kernel it uses.
"""

from typing import NamedTuple

from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask
from jaxlm.nn.tiles import cut_tiles

GPUS = ("cuda", "gpu")  # platforms

# Compute capability of the oldest GPUs with flash kernels (Ampere; cuDNN 9 developer guide,
# "fused flash attention"). 0.0 stands for a GPU that is not there.
OLDEST_FLASH = 8.0

# cuDNN pads sequences to a multiple of 128. Below this length most of that would be padding.
CUDNN_MIN_LENGTH = 64

# Blocks take 1.5 to 2.5 times as long as the XLA path for prefixes and soft-caps (H200, bfloat16,
# 1,024 to 4,096 positions), so they are for scores that take more than this in float32, for all
# rows and heads of a call. Without recomputation every layer keeps such an array.
SCORES_BYTES = 2**30

# A mask that cuDNN reads as a bias may take this much. It is there once for all layers, and up to
# some ten thousand positions smaller than what one layer keeps of a row; blocks take four times as
# long (a prefix of 4,096 or 8,192 positions on an H200).
MASK_BYTES = 2**32

# The time that blocks take for a pair of positions, in that of the other kernel. Where a window to
# both sides leaves them fewer pairs by more than this, they are faster: on an H200, with 64
# positions to either side, not yet at 1,024 positions, where the pairs of all blocks are 1 of 2.7,
# but at 2,048, where they are 1 of 5.3.
PAIR_COST = {"cudnn": 4, "xla": 3}


class Case(NamedTuple):
    """The properties of an attention call, as one device sees it, that decide about its kernel."""

    dtype: str
    queries: int
    keys: int
    head_width: int
    mask: Mask
    softcap: bool = False
    dropout: bool = False
    bias: bool = False
    rows: int = 1
    heads: int = 1


def choose_kernel(execution: Execution, case: Case) -> tuple[str, str]:
    """Return "cudnn", "blockwise" or "xla", and why.

    Asking for a kernel that can't do the case is a ValueError with the reason.
    """
    if execution.attention == "xla":
        return "xla", "asked for"
    if execution.attention == "blockwise":
        return choose_blockwise(case)

    obstacle = cudnn_obstacle(execution, case)
    if execution.attention == "cudnn" and obstacle:
        raise ValueError(f"cuDNN attention can't be used: {obstacle}")
    if execution.attention == "cudnn":
        return "cudnn", "supported"

    gain = ""
    if execution.platform in GPUS and not blockwise_obstacle(case):
        gain = blockwise_gain(case, over="xla" if obstacle else "cudnn")
    if obstacle:
        return "blockwise" if gain else "xla", obstacle
    return ("blockwise", gain) if gain else ("cudnn", "supported")


def choose_blockwise(case: Case) -> tuple[str, str]:
    """Return the kernel where blockwise attention is asked for, and why."""
    if case.mask.positions is not None:  # a few queries at a time: their scores are small
        return "xla", "keys of a cache"
    if blockwise_obstacle(case):
        raise ValueError(f"blockwise attention can't be used: {blockwise_obstacle(case)}")
    return "blockwise", "asked for"


def blockwise_obstacle(case: Case) -> str:
    """Return why blockwise attention can't do the case, or ''."""
    if case.dropout:
        return "attention dropout"
    return "keys of a cache" if case.mask.positions is not None else ""


def blockwise_gain(case: Case, over: str) -> str:
    """Return why blockwise attention is better than the kernel `over` ("cudnn", "xla"), or ''."""
    pairs, mask = case.queries * case.keys, case.mask
    if mask.window is not None and not mask.causal:
        rows_and_heads = case.rows * case.heads
        tiling = cut_tiles(
            mask, case.queries, case.keys, rows_and_heads=rows_and_heads, has_bias=case.bias
        )
        if PAIR_COST[over] * tiling.pairs < pairs:
            return f"a narrow window, {mask.window - 1} to either side"

    if over == "cudnn":
        needed, limit, what = mask_bytes(case), MASK_BYTES, "a mask"
    else:
        needed, limit, what = 4 * case.rows * case.heads * pairs, SCORES_BYTES, "scores"
    return f"{what} of {needed >> 20:,} MiB" if needed > limit else ""


def is_read_as_bias(mask: Mask) -> bool:
    """Return whether cuDNN has no type for this mask, and reads its values as a bias."""
    to_both_sides = mask.window is not None and not mask.causal
    return to_both_sides or mask.segments is not None or mask.prefix_lengths is not None


def mask_bytes(case: Case) -> int:
    """Return the bytes of the mask that cuDNN reads as a bias; 0 if it reads none."""
    if not is_read_as_bias(case.mask):
        return 0
    # Added to a bias, which differs by head, it is one per head.
    heads = case.heads if case.bias else 1
    of_rows = case.mask.segments is not None or case.mask.prefix_lengths is not None
    return 2 * heads * (case.rows if of_rows else 1) * case.queries * case.keys


def cudnn_obstacle(execution: Execution, case: Case) -> str:
    """Return why cuDNN can't do the case, or ''."""
    mask, width = case.mask, case.head_width
    widest = 256 if execution.compute_capability >= 9.0 else 128
    shortest = min(case.queries, case.keys)

    obstacles = {
        f"the platform is {execution.platform}": execution.platform not in GPUS,
        f"the GPU's compute capability is {execution.compute_capability} (8.0 or newer)": 0.0
        < execution.compute_capability
        < OLDEST_FLASH,
        f"the dtype is {case.dtype}": case.dtype not in ("bfloat16", "float16"),
        f"heads of {width} channels (multiples of 8 up to {widest})": width % 8 or width > widest,
        f"{case.queries} queries, {case.keys} keys (at least {CUDNN_MIN_LENGTH})": shortest
        < CUDNN_MIN_LENGTH,
        # XLA loses the kernel it built for a deterministic backward pass (openxla/xla#46500).
        "runtime.deterministic is on": execution.deterministic,
        "attention soft-cap": case.softcap,
        "attention dropout": case.dropout,
        "keys of a cache": mask.positions is not None,
    }
    return next((reason for reason, holds in obstacles.items() if holds), "")
