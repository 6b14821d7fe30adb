"""The token store: a corpus as token shards in `STORE/HASH/`, built once and shared by every run of the same data and tokenizer.

The hash is taken over all that decides the tokens: the sources' contents and formats, the validation split and the tokenizer's
settings. A store is built beside its final place and renamed when it is whole, so what is found under its name is finished.
"""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import json
import lzma
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlm import config
from jaxlm.config.errors import ConfigError, LostError, UserError
from jaxlm.data.pairs import PairArray
from jaxlm.data.shards import TokenArray, TokenWriter
from jaxlm.data.sources import fingerprint
from jaxlm.data.split import (
    SPLITS,
    TRAIN,
    VALIDATION,
    Part,
    Size,
    corpora,
    cuts,
    parts,
    survey,
    total,
)
from jaxlm.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from jaxlm.data.vocabulary import SpecialTokens, special_tokens

FORMAT = 1
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
SHARD_TOKENS = 1 << 28
BATCH_CHARACTERS = 1 << 22  # text that is tokenised at once
PIECE_CHARACTERS = 1 << 16  # grain of the choice of the text that a tokenizer is trained on
COMPRESSED_BYTES = (
    16_000_000  # validation texts up to this size are also compressed, as a yardstick
)
REPORT_SECONDS = 10
POLL_SECONDS = 0.2

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Store:
    """A finished store. `train` has an array per source, in the order of the config; `validation` those that are not empty.

    Sources of format "pairs" give `PairArray`s.
    """

    hash: str
    path: Path
    tokenizer: Tokenizer
    train: tuple[TokenArray | PairArray, ...]
    validation: tuple[TokenArray | PairArray, ...]
    manifest: dict[str, Any]

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the validation text."""
        return self.manifest["validation"]["bytes"]

    @property
    def gzip_bytes(self) -> int | None:
        """Size of the validation text after `gzip -9`; None for a text over 16 MB."""
        return self.manifest["validation"]["gzip_bytes"]

    @property
    def xz_bytes(self) -> int | None:
        """Size of the validation text after `xz -9`; None for a text over 16 MB."""
        return self.manifest["validation"]["xz_bytes"]


def prepare(
    data: config.DataConfig,
    tokenizer: config.TokenizerConfig,
    vocabulary_size: int,
    report: Report,
    shard_tokens: int = SHARD_TOKENS,
    needs: tuple[str, ...] = (),
) -> Store:
    """The store of `data`, built if it is not there yet. `report` gets what is done as plain lines.

    `vocabulary_size` is the size of a BPE to be trained, `needs` the special tokens that the objective needs beside the end of
    text (`config.ObjectiveConfig.needs`). Raises `ConfigError` or `UserError` for what the user can mend: missing
    or malformed files, a split that is empty, an unusable tokenizer.json, a damaged store.
    """
    folder, inputs, special = identify(data, tokenizer, vocabulary_size, needs)
    if not folder.is_dir():
        with building(folder, report) as unfinished:
            if unfinished is not None:
                manifest = build(
                    unfinished, data, tokenizer, vocabulary_size, special, report, shard_tokens
                )
                write_synced(
                    unfinished / MANIFEST,
                    json.dumps({"format": FORMAT, "inputs": inputs} | manifest, indent=1),
                )
    store = open_store(folder)
    report(summary(store))
    return store


def await_store(
    data: config.DataConfig,
    tokenizer: config.TokenizerConfig,
    vocabulary_size: int,
    report: Report,
    ready: Callable[[], bool],
    seconds: float,
    needs: tuple[str, ...] = (),
) -> Path:
    """The folder of the store that `prepare` makes of the same arguments in another process, once it is there.

    Or once that process is `ready` with whatever it made. LostError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    folder, _, _ = identify(data, tokenizer, vocabulary_size, needs)
    if not folder.is_dir():
        report(f"store {folder}: waiting up to {seconds:g} s until process 0 has prepared it")
    while not folder.is_dir() and not ready():
        if time.monotonic() > deadline:
            limit = "runtime.preparation_timeout_seconds"
            raise LostError(
                f"data.store: process 0 has not prepared {folder} within {seconds:g} s ({limit})"
            )
        time.sleep(POLL_SECONDS)
    return folder


def identify(
    data: config.DataConfig,
    tokenizer: config.TokenizerConfig,
    vocabulary_size: int,
    needs: tuple[str, ...],
) -> tuple[Path, dict[str, Any], SpecialTokens]:
    """(where the store of these settings is or will be, all that its name is the hash of, its special tokens).

    One process of a machine at a time: the others then find the files' hashes in the cache.
    """
    root = Path(data.store).expanduser()
    special = special_tokens(tokenizer, needs)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(root / ".fingerprints.lock", lambda: None))
        inputs = hash_inputs(data, tokenizer, vocabulary_size, special, root / "fingerprints.json")
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    return root / key, inputs, special


def hash_inputs(
    data: config.DataConfig,
    tokenizer: config.TokenizerConfig,
    vocabulary_size: int,
    special: SpecialTokens,
    cache: Path,
) -> dict[str, Any]:
    """All that decides the store's content, as JSON data. Where files lie, names and weights of sources don't."""
    spec: dict[str, Any] = {"kind": tokenizer.kind, **special.settings}
    if tokenizer.kind == "bpe":
        spec |= {"size": vocabulary_size, "training_megabytes": tokenizer.training_megabytes}
    elif tokenizer.path is not None:  # before the corpus is read: its mistakes are found at once
        spec["hash"] = load_tokenizer(Path(tokenizer.path).expanduser(), special).hash
    if tokenizer.kind != "file" and special.pad is not None and special.begin_of_text is not None:
        spec["numbering"] = "pad first"  # in older stores the begin of text came before it
    sources = [
        {"fingerprint": fingerprint(source, cache, key), "format": source.format} | keys(source)
        for source, key in corpora(data)
    ]
    validation = {"method": data.validation.method, "share": data.validation.share}
    return {"format": FORMAT, "sources": sources, "validation": validation, "tokenizer": spec}


def keys(source: config.SourceConfig) -> dict[str, str]:
    """The settings that say where the text is in JSON lines."""
    if source.format == "pairs":
        return {"source_key": source.source_key, "target_key": source.target_key}
    return {"text_key": source.text_key}


@contextlib.contextmanager
def building(folder: Path, report: Report) -> Iterator[Path | None]:
    """An empty folder that becomes `folder` at the end, or None if another process built it while this one waited for the lock.

    What is left of an interrupted build is removed. A failure to write is a `ConfigError` at `data.store`.
    """
    unfinished = folder.with_name(f".{folder.name}.building")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            folder.with_name(f".{folder.name}.lock"),
            lambda: report(f"store {folder}: another process builds it, waiting"),
        ):
            if folder.is_dir():
                yield None
                return
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                yield unfinished
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            "data.store", f"{error.filename or folder.parent}: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the file's lock, which ends with the process whatever happens. Calls `waiting` if another process has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(
    folder: Path,
    data: config.DataConfig,
    tokenizer_config: config.TokenizerConfig,
    vocabulary_size: int,
    special: SpecialTokens,
    report: Report,
    shard_tokens: int,
) -> dict[str, Any]:
    """Writes the tokenizer and the shards into `folder`; returns the manifest."""
    tails = cuts(data)
    sizes = survey(data, tails)
    texts = (text for part in parts(data, tails) if part.split == TRAIN for text in part.texts)
    tokenizer = make_tokenizer(
        tokenizer_config, vocabulary_size, special, texts, total(sizes, TRAIN).bytes, report
    )
    write_synced(folder / TOKENIZER, tokenizer.inner.to_str())
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    writers = {of: TokenWriter(folder, f"{of[1]}-{of[0]}", dtype, shard_tokens) for of in sizes}
    held_out = bytearray()
    for piece, ids in tokenised(
        parts(data, tails), tokenizer, sum(size.bytes for size in sizes.values()), report
    ):
        writer = writers[piece.corpus, piece.split]
        writer.add(ids)
        if piece.is_last:
            writer.end_document(tokenizer.end_of_text)
        if piece.split == VALIDATION and len(held_out) <= COMPRESSED_BYTES:
            held_out += piece.text.encode()
    found = [source for source, _ in corpora(data)]
    entries = {
        of: described(found[of[0]], sizes[of]) | writer.close() for of, writer in writers.items()
    }
    return {
        "dtype": dtype.name,
        "tokenizer": {
            "hash": tokenizer.hash,
            "size": tokenizer.size,
            "end_of_text": tokenizer.end_of_text,
        },
        "splits": {
            split: [entry for of, entry in entries.items() if of[1] == split] for split in SPLITS
        },
        "validation": validation_summary(entries, total(sizes, VALIDATION), bytes(held_out)),
    }


def described(source: config.SourceConfig, size: Size) -> dict[str, Any]:
    """What the manifest says of a source's text. A pair is two documents, source and target."""
    return {"source": source.name, "bytes": size.bytes} | (
        {"pairs": size.documents} if source.format == "pairs" else {}
    )


def make_tokenizer(
    settings: config.TokenizerConfig,
    vocabulary_size: int,
    special: SpecialTokens,
    texts: Iterator[str],
    text_bytes: int,
    report: Report,
) -> Tokenizer:
    """The tokenizer of the config; a BPE is trained on `texts`, `text_bytes` in all."""
    if settings.kind == "bytes":
        return byte_tokenizer(special)
    if settings.path is not None:
        return load_tokenizer(Path(settings.path).expanduser(), special)
    started = time.monotonic()
    budget = min(int(settings.training_megabytes * 1e6), text_bytes)
    tokenizer = train_bpe(spread(texts, text_bytes, budget), vocabulary_size, special)
    seconds = time.monotonic() - started
    report(
        f"tokenizer: byte-level BPE, {tokenizer.size:,} ids, trained on {budget / 1e6:.1f} MB in {seconds:.1f} s"
    )
    return tokenizer


def spread(texts: Iterator[str], text_bytes: int, budget: int) -> Iterator[str]:
    """At most `budget` of the texts' `text_bytes`, in pieces taken evenly from the whole."""
    seen = kept = 0
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            piece = text[start : start + PIECE_CHARACTERS]
            size = len(piece.encode())
            seen += size
            if (kept + size) * text_bytes <= seen * budget:
                kept += size
                yield piece


class Piece(NamedTuple):
    """A stretch of a text that can be tokenised by itself; `is_last` ends the text."""

    corpus: int
    split: str
    text: str
    is_last: bool


def pieces(found: Iterator[Part], tokenizer: Tokenizer) -> Iterator[Piece]:
    for part in found:
        for text in part.texts:
            left = len(text)
            for piece in tokenizer.pieces(text):
                left -= len(piece)
                yield Piece(part.corpus, part.split, piece, left == 0)


def tokenised(
    found: Iterator[Part], tokenizer: Tokenizer, text_bytes: int, report: Report
) -> Iterator[tuple[Piece, np.ndarray]]:
    """(piece, its ids) in order, tokenised in batches so that all cores work. Reports how far it is while it takes long."""
    done, started = 0, time.monotonic()
    reported = started
    for batch in batched(pieces(found, tokenizer)):
        yield from zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True)
        done += sum(len(piece.text.encode()) for piece in batch)
        now = time.monotonic()
        if now - reported > REPORT_SECONDS:
            reported = now
            left = (now - started) * (text_bytes / done - 1)
            report(
                f"tokenised {done / 1e6:,.0f} of {text_bytes / 1e6:,.0f} MB, about {left:,.0f} s left"
            )


def batched(found: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Lists of about BATCH_CHARACTERS."""
    batch, characters = [], 0
    for piece in found:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def validation_summary(
    entries: dict[tuple[int, str], dict], size: Size, text: bytes
) -> dict[str, Any]:
    """Tokens and bytes of the validation split, and what general-purpose compressors make of its text."""
    small = size.bytes <= COMPRESSED_BYTES
    return {
        "bytes": size.bytes,
        "tokens": sum(
            entry["tokens"] for (_, split), entry in entries.items() if split == VALIDATION
        ),
        "gzip_bytes": len(gzip.compress(text, 9, mtime=0)) if small else None,
        "xz_bytes": len(lzma.compress(text, preset=9)) if small else None,
    }


def write_synced(path: Path, text: str) -> None:
    """Writes a file and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def open_store(folder: Path) -> Store:
    """A finished store. `UserError` names the file that is missing, damaged or of the wrong size."""
    if not folder.is_dir():
        raise ConfigError(
            "data.store",
            f"there is no {folder} here: all processes of a run need the folder that process 0 has prepared",
        )
    rebuild = f"delete the folder {folder} to have it built again"
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        made_with = manifest["inputs"]["tokenizer"]
        special = SpecialTokens(
            **{name: made_with[name] for name in SpecialTokens._fields if name in made_with}
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST}: missing or damaged; {rebuild}") from error
    try:
        tokenizer = load_tokenizer(folder / TOKENIZER, special)
    except ConfigError as error:
        raise UserError(f"{folder / TOKENIZER}: missing or damaged; {rebuild}") from error
    if tokenizer.hash != manifest["tokenizer"]["hash"]:
        raise UserError(
            f"{folder / TOKENIZER}: differs from the one that the store was built with; {rebuild}"
        )
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    train, validation = (
        [open_array(folder, entry, dtype, tokenizer) for entry in manifest["splits"][split]]
        for split in SPLITS
    )
    return Store(
        folder.name, folder, tokenizer, tuple(train), tuple(filter(len, validation)), manifest
    )


def open_array(
    folder: Path, entry: dict[str, Any], dtype: np.dtype, tokenizer: Tokenizer
) -> TokenArray | PairArray:
    shards = entry["shards"]
    array = TokenArray(
        [folder / shard["file"] for shard in shards], [shard["tokens"] for shard in shards], dtype
    )
    return (
        PairArray(array, folder / entry["offsets"], entry["pairs"], tokenizer.vocabulary)
        if "pairs" in entry
        else array
    )


def summary(store: Store) -> str:
    entries = store.manifest["splits"][TRAIN]
    unit = "pairs" if "pairs" in entries[0] else "documents"
    tokens, count = (sum(entry[key] for entry in entries) for key in ("tokens", unit))
    held_out = store.manifest["validation"]
    return (
        f"store {store.path}: train {tokens:,} tokens in {count:,} {unit}, "
        f"validation {held_out['tokens']:,} tokens, {held_out['bytes']:,} bytes"
    )
