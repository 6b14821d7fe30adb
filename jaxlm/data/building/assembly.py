"""Put the tokens of the units together: the shards and offsets of a source in a split."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.building.encoding import read_parts_entries
from jaxlm.data.building.units import Unit
from jaxlm.data.building.workers import advance
from jaxlm.data.shards import TokenWriter

COPY_TOKENS = 1 << 22


def join_parts(
    folder: Path, units: Sequence[Unit], source: int, split: str, dtype: str, shard_tokens: int
) -> dict[str, Any]:
    """Write the shards of a source in a split from the parts of its units.

    Returns their entry in the manifest, as `TokenWriter.close` does. Raises UserError for a part
    that is damaged.
    """
    writer = TokenWriter(folder, f"{split}-{source}", np.dtype(dtype), shard_tokens)
    for unit in units:
        entry = read_parts_entries(folder, unit)[split]
        checksum = 0
        for shard in entry["shards"]:
            tokens = np.memmap(folder / shard["file"], dtype, "r")
            for start in range(0, len(tokens), COPY_TOKENS):
                block = tokens[start : start + COPY_TOKENS]
                checksum = zlib.crc32(block.tobytes(), checksum)
                writer.add(block)
                advance(block.nbytes)
            if checksum != shard["crc32"]:
                raise UserError(f"{folder / shard['file']}: damaged on the disk: prepare again")
        writer.add_ends(np.fromfile(folder / entry["offsets"], "<i8")[1:])
    return writer.close()
