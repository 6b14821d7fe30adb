"""Put the tokens of the units together: the shards and offsets of a source in a split.

`joined-SPLIT-SOURCE.json`, which comes last, is their entry in the manifest.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import UserError
from jaxlm.data.building.encoding import read_part_entry
from jaxlm.data.building.units import Unit
from jaxlm.data.building.workers import advance
from jaxlm.data.shards import TokenWriter
from jaxlm.files import write_atomically

COPY_TOKENS = 1 << 22


def joined_path(folder: Path, source: int, split: str) -> Path:
    """Return the file that ends the joining of a source in a split."""
    return folder / f"joined-{split}-{source}.json"


def is_joined(folder: Path, source: int, split: str) -> bool:
    """Return whether the shards of a source in a split are there."""
    return joined_path(folder, source, split).exists()


def read_joined(folder: Path, source: int, split: str) -> dict[str, Any]:
    """Return the entry of a source in a split, as `TokenWriter.close` gave it."""
    return json.loads(joined_path(folder, source, split).read_bytes())


def join_parts(
    folder: Path, units: Sequence[Unit], source: int, split: str, dtype: str, shard_tokens: int
) -> None:
    """Write the shards of a source in a split from the parts of its units.

    Raises UserError for a part that is damaged.
    """
    writer = TokenWriter(folder, f"{split}-{source}", np.dtype(dtype), shard_tokens)
    for unit in units:
        entry = read_part_entry(folder, unit.name, split)
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
    write_atomically(joined_path(folder, source, split), json.dumps(writer.close()))
