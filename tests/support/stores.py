"""Write small corpora, build their stores and read them back."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import config
from jaxlm.data import Store, prepare

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "été", "日本", "and"]
BYTES = config.TokenizerConfig(kind="bytes")


def random_text(seed: int, words: int = 60) -> str:
    """Return a line of random words that ends with the number `seed`."""
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}\n"


def write_corpus(folder: Path, count: int = 40) -> Path:
    """Write `random_text(0)`, ... into a file each and return the folder."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(random_text(number))
    return folder


def data_config(folder: Path, *paths: Path, **validation: Any) -> config.DataConfig:
    """Return the config of the sources s0, s1, ... with stores in `folder`."""
    sources = tuple(
        config.SourceConfig(name=f"s{number}", path=str(path)) for number, path in enumerate(paths)
    )
    method = config.ValidationConfig(**{"share": 0.2, **validation})
    return config.DataConfig(sources=sources, store=str(folder / "stores"), validation=method)


def build_store(
    data: config.DataConfig, tokenizer: config.TokenizerConfig = BYTES, **options: Any
) -> tuple[Store, list[str]]:
    """Return the store and the lines that were reported."""
    lines: list[str] = []
    return prepare(data, tokenizer, 300, lines.append, **options), lines


def read_tokens(array: Any) -> np.ndarray:
    """Return all tokens of an array; int32 [n]."""
    return array.read_windows(np.zeros(1, np.int64), len(array))[0]


def read_texts(store: Store, arrays: Sequence[Any]) -> list[list[str]]:
    """Return the documents of each array."""
    texts = []
    for array in arrays:
        tokens = read_tokens(array)
        ends = np.flatnonzero(tokens == store.tokenizer.end_of_text) + 1
        documents = [ids for ids in np.split(tokens, ends) if len(ids)]
        texts.append([store.tokenizer.decode(ids) for ids in documents])
    return texts


def all_texts(store: Store) -> list[str]:
    """Return the documents of both splits."""
    return [text for texts in read_texts(store, store.train + store.validation) for text in texts]
