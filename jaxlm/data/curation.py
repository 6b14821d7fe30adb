"""Judge the documents of the sources: which are kept, and why others are dropped."""

import hashlib
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxlm.config import DataConfig
from jaxlm.data.corpus import Corpus, new_notes
from jaxlm.data.near_duplicates import SignatureFile, find_near_duplicates, sign_text
from jaxlm.data.reading_notes import ReadingNotes
from jaxlm.progress import LINE_SECONDS, Progress

UNREADABLE, EXACT_DUPLICATE, NEAR_DUPLICATE = "unreadable", "exact_duplicate", "near_duplicate"
REASONS = ("", EXACT_DUPLICATE, NEAR_DUPLICATE)  # by verdict; 0 is kept
SIGNATURES = "signatures"


def judge_documents(
    data: DataConfig, folder: Path, report: Callable[[str], None]
) -> tuple[np.ndarray, ...] | None:
    """Return the verdicts of each source, uint8 [documents], an index of REASONS; None: all kept.

    This reads all the text. `folder` holds 512 bytes for each document meanwhile where near
    duplicates are looked for. Verdicts take one byte of memory, exact duplicates eight more.
    """
    curation = data.curation
    if not curation.exact_duplicates and curation.near_duplicates is None:
        return None

    started = time.monotonic()
    counts, digests, signatures = sign_documents(data, folder)
    # A copy is a near duplicate as well, but is called what it is.
    is_copy = find_copies(np.frombuffer(digests, np.uint64))
    verdicts = np.where(is_copy, REASONS.index(EXACT_DUPLICATE), 0).astype(np.uint8)
    if signatures is not None and curation.near_duplicates is not None:
        all_signatures = signatures.finish()
        is_near = find_near_duplicates(all_signatures, len(verdicts), curation.near_duplicates)
        verdicts[is_near & ~is_copy] = REASONS.index(NEAR_DUPLICATE)
        signatures.path.unlink()

    report(
        f"curation: {np.count_nonzero(verdicts):,} of {len(verdicts):,} documents are duplicates "
        f"({np.count_nonzero(is_copy):,} exact), in {time.monotonic() - started:.1f} s"
    )
    return tuple(np.split(verdicts, np.cumsum(counts)[:-1]))


def sign_documents(data: DataConfig, folder: Path) -> tuple[list[int], array, SignatureFile | None]:
    """Return the documents of each source, the digests of all, and the file of their signatures.

    The numbers run on from one source to the next.
    """
    looks_for_near = data.curation.near_duplicates is not None
    signatures = SignatureFile(folder / SIGNATURES) if looks_for_near else None
    counts, digests, size = [], array("Q"), 0
    progress = Progress(1, line_seconds=LINE_SECONDS)
    corpus = Corpus(data)
    for number in range(len(data.sources)):
        before = len(digests)
        for document in corpus.documents(number, new_notes(data)):
            text = "\0".join(document.texts)
            encoded = text.encode()
            digest = hashlib.blake2b(encoded, digest_size=8).digest()
            digests.append(int.from_bytes(digest, "little"))
            if signatures is not None:
                signatures.add(sign_text(text))
            size += len(encoded)
            progress.update(0, f"curation: compared {size / 1e6:,.0f} MB")
        counts.append(len(digests) - before)
    progress.close()
    return counts, digests, signatures


def find_copies(digests: np.ndarray) -> np.ndarray:
    """Return which digests an earlier document has as well, bool [documents]."""
    _, first = np.unique(digests, return_index=True)
    is_copy = np.ones(len(digests), bool)
    is_copy[first] = False
    return is_copy


def count_dropped(corpus: Corpus, number: int, notes: ReadingNotes) -> dict[str, int]:
    """Return how many documents of a source were dropped for each reason."""
    counts = {UNREADABLE: notes.fault_count}
    if corpus.verdicts is not None and number < len(corpus.verdicts):
        found = np.bincount(corpus.verdicts[number], minlength=len(REASONS))
        counts |= {reason: int(found[code]) for code, reason in enumerate(REASONS) if code}
    return {reason: count for reason, count in counts.items() if count}
