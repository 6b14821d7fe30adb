import random
import threading

import numpy as np
import pytest
from support.stores import build_store, data_config, read_texts, write_corpus

from jaxlm import config, progress
from jaxlm.data import open_store, prepare, tokenizer_training
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import SpecialTokens


def test_bpe_is_trained_on_at_most_the_megabytes_of_the_config(tmp_path, monkeypatch):
    excerpts = []

    def train_on_list(texts, size, special, *split):
        excerpts[:] = texts
        return train_bpe(excerpts, size, special, *split)

    monkeypatch.setitem(tokenizer_training.TRAINERS, "bpe", train_on_list)
    data = data_config(tmp_path, write_corpus(tmp_path / "c"))
    limited = config.TokenizerConfig(kind="bpe", training_megabytes=0.002)
    _, lines = build_store(data, limited)
    assert 1_000 < sum(len(excerpt.encode()) for excerpt in excerpts) <= 2_000
    assert "trained on 0.0 MB" in lines[0]

    store, _ = build_store(data, config.TokenizerConfig(kind="bpe"))
    assert excerpts == read_texts(store, store.train)[0]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_stores_of_every_trained_kind_hold_the_ids_of_their_texts(tmp_path, kind):
    data = data_config(tmp_path, write_corpus(tmp_path / "c"))
    lines = []
    trained = config.TokenizerConfig(kind=kind)
    store = prepare(data, trained, 400, lines.append, needs=("pad", "mask"))
    name = {"wordpiece": "WordPiece", "unigram": "Unigram"}[kind]
    assert lines[0].startswith(f"tokenizer: {name}, {store.tokenizer.size} ids, trained on 0.0 MB")
    text = read_texts(store, store.train)[0][0]
    assert store.tokenizer.decode(store.tokenizer.encode(text)) == text
    assert store.tokenizer.special == open_store(store.path).tokenizer.special


def test_training_text_is_spread_over_the_corpus():
    numbers = [f"{number:04}" for number in range(1000)]
    excerpts = list(tokenizer_training.choose_excerpts(iter(numbers), text_bytes=4000, budget=400))
    assert len(excerpts) == 100
    assert np.diff([int(excerpt) for excerpt in excerpts]).tolist() == [10] * 99


def test_long_texts_give_several_excerpts():
    texts = ["ab", "c" * 100_000]
    excerpts = tokenizer_training.choose_excerpts(iter(texts), text_bytes=100_002, budget=100_002)
    assert list(excerpts) == ["ab", "c" * 65536, "c" * 34464]


def test_progress_of_the_training_of_a_tokenizer_is_shown(tmp_path, monkeypatch, capsys):
    """The library is silent while it joins pairs."""
    monkeypatch.setattr(tokenizer_training, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(tokenizer_training, "TICK_SECONDS", 0.001)
    shown = threading.Event()

    def train(texts, size, special, *split):
        texts = list(texts)
        assert shown.wait(60)
        return train_bpe(texts, size, special, *split)

    class Watched(progress.Progress):
        def update(self, done, text):
            super().update(done, text)
            if "so far" in text:
                shown.set()

    monkeypatch.setitem(tokenizer_training.TRAINERS, "bpe", train)
    monkeypatch.setattr(tokenizer_training, "Progress", Watched)
    (tmp_path / "c.txt").write_text("some words " * 1000)
    data = data_config(tmp_path, tmp_path / "c.txt", method="tail", share=0.5)
    build_store(data, config.TokenizerConfig(kind="bpe"))
    assert "tokenizer: trains on 0.0 MB, 0:00 so far" in capsys.readouterr().err


def test_a_tokenizer_that_fails_to_train_leaves_no_thread(monkeypatch):
    with pytest.raises(ZeroDivisionError), tokenizer_training.training_progress(10):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if "tokenizer" in thread.name]


def test_other_threads_run_while_a_tokenizer_is_trained():
    """Or no progress could be shown."""
    words = "".join(random.Random(0).choices("ACGT", k=100_000))
    ticks, ended = [], threading.Event()

    def tick():
        while not ended.wait(0.001):
            ticks.append(None)

    thread = threading.Thread(target=tick)
    thread.start()
    train_bpe([words], 400, SpecialTokens("<|endoftext|>"))
    ended.set()
    thread.join()
    assert len(ticks) > 10
