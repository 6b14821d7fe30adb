"""Make the tokenizer of a config: of the bytes, of a file, or trained on excerpts of the texts."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from jaxlm.config import TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer, byte_tokenizer, load_tokenizer
from jaxlm.data.trained_tokenizers import TRAINERS
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.files import expand_home
from jaxlm.progress import LINE_SECONDS, Progress, format_duration

NAMES = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}
TICK_SECONDS = 1.0  # between two looks at the training of a tokenizer
EXCERPT_CHARACTERS = 1 << 16  # grain of the choice of the text that a tokenizer is trained on


def build_tokenizer(
    config: TokenizerConfig,
    vocabulary_size: int,
    special: SpecialTokens,
    texts: Iterator[str],
    text_bytes: int,
    report: Callable[[str], None],
) -> Tokenizer:
    """Return the tokenizer of the config.

    If it is of a kind that is trained, this reads `texts`, which have `text_bytes` in all.
    """
    if config.kind == "bytes":
        return byte_tokenizer(special)
    if config.path is not None:
        return load_tokenizer(expand_home(config.path), special)

    started = time.monotonic()
    budget = min(int(config.training_megabytes * 1e6), text_bytes)
    with training_progress(budget) as watch:
        excerpts = watch(choose_excerpts(texts, text_bytes, budget))
        train = TRAINERS[config.kind]
        tokenizer = train(
            excerpts, vocabulary_size, special, config.splits_by, config.longest_piece
        )
    report(
        f"tokenizer: {NAMES[config.kind]}, {tokenizer.size:,} ids, "
        f"trained on {budget / 1e6:.1f} MB in {time.monotonic() - started:.1f} s"
    )
    return tokenizer


def choose_excerpts(texts: Iterator[str], text_bytes: int, budget: int) -> Iterator[str]:
    """Yield excerpts of at most `budget` bytes in all, spread evenly over `text_bytes` of texts."""
    seen = kept = 0
    for text in texts:
        for start in range(0, len(text), EXCERPT_CHARACTERS):
            excerpt = text[start : start + EXCERPT_CHARACTERS]
            size = len(excerpt.encode())
            seen += size
            if (kept + size) * text_bytes <= seen * budget:
                kept += size
                yield excerpt


@contextlib.contextmanager
def training_progress(budget: int) -> Iterator[Callable[[Iterator[str]], Iterator[str]]]:
    """Show the progress of the training of a tokenizer while the block runs.

    Gives a function that counts the texts which pass through it, `budget` bytes in all. After
    these the library is silent for minutes, or for hours where words are long.
    """
    started, ended = time.monotonic(), threading.Event()
    seen = 0

    def watch(texts: Iterator[str]) -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += len(text.encode())
            yield text
        seen = budget

    def show() -> None:
        reading = Progress(budget, line_seconds=LINE_SECONDS)
        while not ended.wait(TICK_SECONDS) and seen < budget:
            reading.update(seen, f"tokenizer: read {seen / 1e6:,.0f} of {budget / 1e6:,.0f} MB")
        reading.close()

        joining = Progress(1, line_seconds=LINE_SECONDS)
        while not ended.wait(TICK_SECONDS):
            seconds = format_duration(time.monotonic() - started)
            joining.update(0, f"tokenizer: trains on {budget / 1e6:,.1f} MB, {seconds} so far")
        joining.close()

    thread = threading.Thread(target=show, name="tokenizer progress", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
