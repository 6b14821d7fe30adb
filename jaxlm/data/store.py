"""Open a token store: a corpus as token shards, shared by all runs of the same data and tokenizer.

A store is the folder `STORE/HASH/` with a manifest, the tokenizer and the shards. `identity.py`
computes the hash, `build.py` writes the files and `preparation.py` brings the two together.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.config import ConfigError, UserError
from jaxlm.data.pairs import PairArray
from jaxlm.data.shards import TokenArray
from jaxlm.data.split import SPLITS, TRAIN
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.vocabulary import SpecialTokens

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """A finished store.

    `train` has an array per source, in the order of the config; `validation` has those that are
    not empty. Sources of format "pairs" are `PairArray`s.
    """

    hash: str
    path: Path
    tokenizer: Tokenizer
    train: tuple[TokenArray | PairArray, ...]
    validation: tuple[TokenArray | PairArray, ...]
    manifest: dict[str, Any]

    @property
    def validation_bytes(self) -> int:
        """Size in bytes of the validation text in UTF-8."""
        return self.manifest["validation"]["bytes"]

    @property
    def gzip_bytes(self) -> int | None:
        """Size of the validation text after `gzip -9`; None for a text over 16 MB."""
        return self.manifest["validation"]["gzip_bytes"]

    @property
    def xz_bytes(self) -> int | None:
        """Size of the validation text after `xz -9`; None for a text over 16 MB."""
        return self.manifest["validation"]["xz_bytes"]


def open_store(folder: Path) -> Store:
    """Open a finished store.

    Raises `UserError` naming the file that is missing, damaged or of the wrong size.
    """
    if not folder.is_dir():
        raise ConfigError(
            "data.store",
            f"there is no {folder} here: "
            "all processes of a run need the folder that process 0 has prepared",
        )

    rebuild = f"delete the folder {folder} to have it built again"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        spec = manifest["inputs"]["tokenizer"]
        special = SpecialTokens(
            **{name: spec[name] for name in SpecialTokens._fields if name in spec}
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or damaged; {rebuild}") from error

    try:
        tokenizer = load_tokenizer(folder / TOKENIZER, special)
    except ConfigError as error:
        raise UserError(f"{folder / TOKENIZER}: missing or damaged; {rebuild}") from error

    try:
        tokenizer_hash = manifest["tokenizer"]["hash"]
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        train, validation = (
            [open_array(folder, entry, dtype, tokenizer) for entry in manifest["splits"][split]]
            for split in SPLITS
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST}: damaged; {rebuild}") from error
    if tokenizer.hash != tokenizer_hash:
        raise UserError(
            f"{folder / TOKENIZER}: differs from the one that the store was built with; {rebuild}"
        )
    return Store(
        hash=folder.name,
        path=folder,
        tokenizer=tokenizer,
        train=tuple(train),
        validation=tuple(filter(len, validation)),
        manifest=manifest,
    )


def open_array(
    folder: Path, entry: dict[str, Any], dtype: np.dtype, tokenizer: Tokenizer
) -> TokenArray | PairArray:
    """Open the array of a source in a split by its entry in the manifest."""
    paths = [folder / shard["file"] for shard in entry["shards"]]
    lengths = [shard["tokens"] for shard in entry["shards"]]
    checksums = [shard.get("crc32") for shard in entry["shards"]]
    if None in checksums:
        checksums = None
    offsets = folder / entry["offsets"]
    tokens = TokenArray(
        paths, lengths, dtype, checksums, offsets=offsets, documents=entry["documents"]
    )
    if "pairs" not in entry:
        return tokens
    return PairArray(tokens, offsets, entry["pairs"], tokenizer.vocabulary)


def summarize_store(store: Store) -> str:
    """Return one line with the path and size of a store."""
    entries = store.manifest["splits"][TRAIN]
    unit = "pairs" if "pairs" in entries[0] else "documents"
    tokens, count = (sum(entry[key] for entry in entries) for key in ("tokens", unit))
    validation = store.manifest["validation"]
    return (
        f"store {store.path}: train {tokens:,} tokens in {count:,} {unit}, "
        f"validation {validation['tokens']:,} tokens, {validation['bytes']:,} bytes"
    )
