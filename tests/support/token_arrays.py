"""Write small token arrays, and compare batches."""

from pathlib import Path

import numpy as np

from jaxlm.data.shards import TokenArray, TokenWriter
from jaxlm.types import Batch

UINT32 = np.dtype("<u4")


def write_array(folder: Path, tokens: np.ndarray, shard_tokens: int = 1 << 20) -> TokenArray:
    """Write tokens as shards into `folder` and open them."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = TokenWriter(folder, "train", UINT32, shard_tokens)
    for part in np.array_split(tokens, 2):
        writer.add(part)

    shards = writer.close()["shards"]
    paths = [folder / shard["file"] for shard in shards]
    return TokenArray(paths, [shard["tokens"] for shard in shards], UINT32)


def write_numbered(folder: Path, count: int, first: int = 0) -> TokenArray:
    """Write tokens that are their own positions, plus `first`, in several shards.

    So a window shows where it was cut.
    """
    return write_array(folder, np.arange(first, first + count), max(count // 3, 1))


def batches_equal(one: Batch, other: Batch) -> bool:
    """Return whether two batches have the same fields with equal values."""
    for a, b in zip(one, other, strict=True):
        if (a is None) != (b is None):
            return False
        if a is not None and not np.array_equal(np.asarray(a), np.asarray(b)):
            return False
    return True
