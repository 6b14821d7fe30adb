"""Name a store: the hash of everything that decides its tokens.

These are the contents and formats of the sources, the validation split and the config of the
tokenizer. Where files lie, and the names and weights of sources, do not count.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jaxlm.config import DataConfig, SourceConfig, TokenizerConfig
from jaxlm.data.corpus import check_files, numbered_sources
from jaxlm.data.documents import EXAMPLE_FORMATS, SourceKeys
from jaxlm.data.examples import ExampleSpec
from jaxlm.data.fingerprints import fingerprint_source
from jaxlm.data.formats import is_json_lines
from jaxlm.data.listing import list_files
from jaxlm.data.rules import Predicate, check_rules, describe_rules, raised_versions
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import SpecialTokens, special_tokens
from jaxlm.files import expand_home

FORMAT = 1
FINGERPRINTS = "fingerprints.json"  # in the folder of the stores
DUPLICATES = {"exact_duplicates": False, "near_duplicates": None}  # of data.curation: off
# As those of the rules (document_rules.py): raise one when other duplicates are found than before.
DUPLICATES_VERSIONS = {"exact_duplicates": 1, "near_duplicates": 1}


class StoreIdentity(NamedTuple):
    """The name of a store and what it follows from."""

    folder: Path  # where the store is or will be
    inputs: dict[str, Any]  # JSON data; `folder.name` is the hash of it
    special: SpecialTokens
    newlines: dict[str, tuple[int, ...]]  # of large files (fingerprints.py)


def identify_store(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    vocabulary_size: int,
    needs: tuple[str, ...],
    predicate: Predicate | None = None,
    examples: ExampleSpec | None = None,
) -> StoreIdentity:
    """Return which store the config means, whether or not it is built.

    `vocabulary_size` is the size of a BPE to be trained, `needs` are the special tokens that the
    objective needs (`ObjectiveConfig.needs`). The `predicate` chooses documents beside the rules,
    `examples` says how records become examples.
    """
    root = expand_home(data.store)
    special = special_tokens(tokenizer, needs)
    # The tokenizer and the names of the files come first: their mistakes are found before the
    # corpus is read, and before anything is written.
    tokenizer_inputs = describe_tokenizer(tokenizer, vocabulary_size, special)
    check_files(data)
    check_rules(data)

    with contextlib.ExitStack() as stack:
        # One process of a machine at a time hashes the files; the others then find the hashes in
        # the cache. A folder that can't be written has no cache.
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(file_lock(root / ".fingerprints.lock", lambda: None))
        source_inputs, newlines = describe_sources(data, root / FINGERPRINTS)
        rules = describe_rules(data, predicate)

    inputs: dict[str, Any] = {
        "format": FORMAT,
        "sources": source_inputs,
        "validation": {"method": data.validation.method, "share": data.validation.share},
        "tokenizer": tokenizer_inputs,
    }
    # Older stores know nothing of these: where they are not used, the name stays the same.
    if data.on_error != "fail":
        inputs["on_error"] = data.on_error
    duplicates = {key: getattr(data.curation, key) for key in DUPLICATES}
    if duplicates != DUPLICATES:
        # Of near duplicates exact ones are found as well.
        used = DUPLICATES if data.curation.near_duplicates is not None else ("exact_duplicates",)
        if versions := raised_versions(DUPLICATES_VERSIONS, used):
            duplicates["versions"] = versions
        inputs["curation"] = duplicates
    if rules:
        inputs["rules"] = rules
    if examples is not None:
        inputs["examples"] = examples.describe()
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    return StoreIdentity(root / key, inputs, special, newlines)


def describe_tokenizer(
    tokenizer: TokenizerConfig, vocabulary_size: int, special: SpecialTokens
) -> dict[str, Any]:
    """Return what decides the tokenizer, as JSON data."""
    spec: dict[str, Any] = {"kind": tokenizer.kind, **special.keywords}
    if tokenizer.is_trained:
        spec |= {"size": vocabulary_size, "training_megabytes": tokenizer.training_megabytes}
        # Older stores know nothing of these: where they are not used, the name stays the same.
        if (tokenizer.kind, tokenizer.splits_by) != ("bpe", "gpt2"):
            spec["pre_tokenization"] = tokenizer.splits_by
        if tokenizer.longest_piece is not None:
            spec["longest_piece"] = tokenizer.longest_piece
    elif tokenizer.path is not None:
        spec["hash"] = load_tokenizer(expand_home(tokenizer.path), special).hash

    # In older stores the begin of text was numbered before the padding.
    if tokenizer.kind != "file" and special.pad is not None and special.begin_of_text is not None:
        spec["numbering"] = "pad first"
    return spec


def describe_sources(
    data: DataConfig, cache: Path
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, ...]]]:
    """Return the contents and formats of the sources as JSON data, and `StoreIdentity.newlines`."""
    descriptions, newlines = [], {}
    for number, (source, keys) in enumerate(numbered_sources(data)):
        is_validation = number == len(data.sources)
        fingerprint = fingerprint_source(source, cache, keys, skips=data.on_error == "skip")
        newlines |= fingerprint.newlines
        descriptions.append(
            {
                "fingerprint": fingerprint.hash,
                "format": name_validation_format(source, keys) if is_validation else source.format,
                **record_keys(source),
            }
        )
    return descriptions, newlines


def name_validation_format(source: SourceConfig, keys: SourceKeys) -> str:
    """Return the format of the validation files in the name of a store.

    Earlier versions went by the names of the files. Where that is the same, so is the store.
    """
    if source.format == "text" or (
        source.format == "jsonl" and all(map(is_json_lines, list_files(source, keys)))
    ):
        return "auto"
    return source.format


def record_keys(source: SourceConfig) -> dict[str, Any]:
    """Return the fields of the config that say what is read of the records of a source."""
    keys: dict[str, Any] = {"text_key": source.text_key}
    if source.format == "pairs":
        keys = {"source_key": source.source_key, "target_key": source.target_key}
    if source.format in EXAMPLE_FORMATS:
        keys = {"keys": sorted(map(list, source.keys))}
    # Older stores know nothing of these: where they are not used, the name stays the same.
    if source.text_keys:
        keys |= {"text_keys": source.text_keys, "text_join": source.text_join}
    if source.documents is not None:
        keys["documents"] = source.documents
    return keys


@contextlib.contextmanager
def file_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, which ends with the process whatever happens.

    `on_wait` is called if another process has it. The file is removed in the end.
    """
    with open_locked(path, on_wait):
        try:
            yield
        finally:
            # While the lock is held: who waits for it finds that its file is gone, and makes
            # another.
            with contextlib.suppress(OSError):
                path.unlink()


def open_locked(path: Path, on_wait: Callable[[], None]) -> TextIO:
    """Return the file at `path`, made where it is missing, with its lock."""
    while True:
        file = path.open("w")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)

            if is_same_file(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def is_same_file(file: TextIO, path: Path) -> bool:
    """Return whether `path` still names an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
