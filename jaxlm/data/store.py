"""Open a token store: a corpus as token shards, shared by all runs of the same data and tokenizer.

A store is the folder `STORE/HASH/` with a manifest, the tokenizer and the shards. `identity.py`
computes the hash, `build.py` writes the files and `preparation.py` brings the two together.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxlm.config import ConfigError, UserError
from jaxlm.data.example_array import ExampleArray, StoredParts
from jaxlm.data.pairs import PairArray
from jaxlm.data.samples import SampleArray
from jaxlm.data.shards import TokenArray
from jaxlm.data.split import SPLITS, TRAIN
from jaxlm.data.tokenizer import Tokenizer, load_tokenizer
from jaxlm.data.verification import how_to_rebuild
from jaxlm.data.vocabulary import SpecialTokens

if TYPE_CHECKING:
    from jaxlm.data.growing import Construction

AnyTokenArray = TypeVar("AnyTokenArray", bound=TokenArray)
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Store:
    """A store: finished, or complete but for its training split, which grows (`growing.py`).

    `train` has an array per source, in the order of the config; `validation` has those that are
    not empty. Sources of format "pairs" are `PairArray`s, those of examples `ExampleArray`s.
    """

    hash: str
    path: Path
    tokenizer: Tokenizer
    train: tuple[SampleArray, ...]
    validation: tuple[TokenArray | PairArray | ExampleArray, ...]
    manifest: dict[str, Any]
    construction: "Construction | None" = None  # None: it is finished

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

    manifest, tokenizer = read_description(folder, MANIFEST)
    try:
        dtype = np.dtype(manifest["dtype"])
        train, validation = (
            [open_array(folder, entry, dtype, tokenizer) for entry in manifest["splits"][split]]
            for split in SPLITS
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / MANIFEST}: damaged; {how_to_rebuild(folder / MANIFEST)}"
        ) from error
    return Store(
        hash=folder.name,
        path=folder,
        tokenizer=tokenizer,
        train=tuple(train),
        validation=tuple(filter(len, validation)),
        manifest=manifest,
    )


def read_description(folder: Path, name: str) -> tuple[dict[str, Any], Tokenizer]:
    """Return the manifest of that name, and the tokenizer. Raises `UserError` as `open_store`."""
    rebuild = how_to_rebuild(folder / name)
    try:
        manifest = json.loads((folder / name).read_bytes())
        spec = manifest["inputs"]["tokenizer"]
        special = SpecialTokens(
            **{name: spec[name] for name in SpecialTokens._fields if name in spec}
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / name}: missing or damaged; {rebuild}") from error

    try:
        tokenizer = load_tokenizer(folder / TOKENIZER, special)
    except ConfigError as error:
        raise UserError(f"{folder / TOKENIZER}: missing or damaged; {rebuild}") from error

    try:
        tokenizer_hash = manifest["tokenizer"]["hash"]
    except (LookupError, TypeError) as error:
        raise UserError(f"{folder / name}: damaged; {rebuild}") from error
    if tokenizer.hash != tokenizer_hash:
        raise UserError(
            f"{folder / TOKENIZER}: differs from the one that the store was built with; {rebuild}"
        )
    return manifest, tokenizer


def open_array(
    folder: Path, entry: dict[str, Any], dtype: np.dtype, tokenizer: Tokenizer
) -> TokenArray | PairArray | ExampleArray:
    """Open the array of a source in a split by its entry in the manifest."""
    tokens = open_tokens(folder, entry, dtype)
    if "examples" in entry:
        offsets, counts = folder / entry["offsets"], (entry["examples"], entry["parts"])
        return ExampleArray(StoredParts(tokens, offsets, *counts))
    if "pairs" not in entry:
        return tokens
    return PairArray(tokens, folder / entry["offsets"], entry["pairs"], tokenizer.vocabulary)


def count_records(entry: dict[str, Any]) -> int:
    """Return the number of documents, pairs or examples of an entry in a manifest."""
    return entry.get("examples", entry.get("pairs", entry["documents"]))


def count_tokens(entry: dict[str, Any]) -> int:
    """Return the tokens of an entry in a manifest, without the numbers and ends of examples."""
    return entry.get("text_tokens", entry["tokens"])


def open_tokens(
    folder: Path, entry: dict[str, Any], dtype: np.dtype, kind: type[AnyTokenArray] = TokenArray
) -> AnyTokenArray:
    """Open the shards of a source in a split as a `kind` of array."""
    checksums = [shard.get("crc32") for shard in entry["shards"]]
    return kind(
        [folder / shard["file"] for shard in entry["shards"]],
        [shard["tokens"] for shard in entry["shards"]],
        dtype.newbyteorder("<"),
        None if None in checksums else checksums,
        offsets=folder / entry["offsets"],
        documents=entry["documents"],
    )


def summarize_store(store: Store) -> str:
    """Return one line with the path and size of a store."""
    validation = store.manifest["validation"]
    held_out = f"validation {validation['tokens']:,} tokens, {validation['bytes']:,} bytes"
    if store.construction is not None:
        size = sum(part["bytes"] for part in store.manifest["parts"])
        return f"store {store.path}: train {size:,} bytes, tokenised during the run, {held_out}"

    entries = store.manifest["splits"][TRAIN]
    unit = next((key for key in ("pairs", "examples") if key in entries[0]), "documents")
    tokens, count = sum(map(count_tokens, entries)), sum(entry[unit] for entry in entries)
    return f"store {store.path}: train {tokens:,} tokens in {count:,} {unit}, {held_out}"
