"""What a model puts where text was hidden, and how it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxlm import models
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding import fill, show, write
from jaxlm.types import Batch

TOKENIZER = byte_tokenizer(SpecialTokens("<end>", pad="<pad>", mask="<mask>", sentinels=3))
MASK, FIRST = TOKENIZER.vocabulary.mask, TOKENIZER.vocabulary.sentinels[0]


def made(family):
    settings = tiny.FAMILIES[family]
    model = models.build(settings.model)
    params = jax.jit(model.init)(jax.random.key(0))
    return model, params, jax.tree.map(lambda rows: rows[:3], tiny.batch(0, settings))


def test_masks_are_filled_with_the_likeliest_token():
    model, params, batch = made("encoder")
    everywhere = jnp.argmax(jax.jit(model.apply)(params, batch._replace(predict=None)), axis=-1)
    assert np.array_equal(
        fill(model, params, batch),
        np.take_along_axis(np.asarray(everywhere), batch.predict, axis=1),
    )


def test_what_is_written_is_the_likeliest_at_every_token():
    """Read again as inputs, the written tokens are what the model predicts at each place, all at once."""
    model, params, batch = made("encoder_decoder")
    written = write(model, params, batch)
    assert written.shape == batch.tokens.shape and len(np.unique(written)) > 3
    again = np.concatenate([batch.tokens[:, :1], written[:, :-1]], axis=1)
    assert np.array_equal(
        np.argmax(jax.jit(model.apply)(params, batch._replace(tokens=again)), axis=-1), written
    )


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).tolist()


@pytest.fixture
def guesses(monkeypatch):
    """Makes the model guess what it is told."""

    def guess(name, rows):
        monkeypatch.setattr(show, name, lambda model, params, batch: np.array(rows))

    return guess


def test_filled_masks_are_marked_with_what_the_text_has(guesses):
    tokens = [*ids("a b"), MASK, *ids("d"), 0xC3, 0xA9, MASK]
    batch = Batch(
        tokens=np.array([tokens], np.int32),
        predict=np.array([[3, 7, 0]]),
        targets=np.array([[*ids("c"), *ids("f"), 0]]),
        weights=np.array([[1.0, 1.0, 0.0]]),
    )
    guesses("fill", [[*ids("c"), *ids("x"), 5]])
    assert show.filled_masks(None, None, TOKENIZER, batch) == ["a b«c»dé«x|f»\n(1 of 2 right)"]


def test_written_spans_are_shown_in_their_places(guesses):
    source = [*ids("one "), FIRST, *ids(" three "), FIRST - 1, 256]
    target = [FIRST, *ids("two"), FIRST - 1, *ids("four"), 256]
    batch = Batch(
        tokens=np.zeros((1, 10), np.int32),
        source=np.array([[*source, 257, 257]]),
        source_lengths=np.array([len(source)]),
        targets=np.array([target]),
        weights=np.ones((1, 10)),
    )
    guesses("write", [[FIRST, *ids("2"), FIRST - 1, *ids("vier"), 256, 1, 1]])
    (text,) = show.written_targets(None, None, TOKENIZER, batch)
    assert text.splitlines() == [
        "source: one <extra_id_0> three <extra_id_1><end>",
        "written: <extra_id_0>2<extra_id_1>vier",
        "target: <extra_id_0>two<extra_id_1>four<end>",
        "filled: one «2» three «vier»<end>",
    ]


def test_what_was_written_behind_masks_is_marked(guesses):
    source = [*ids("one "), MASK, *ids(" three"), MASK, 256]
    batch = Batch(
        tokens=np.zeros((1, 10), np.int32),
        source=np.array([source]),
        targets=np.array([[*ids("one two three four"), 256]]),
        weights=np.ones((1, 19)),
    )
    guesses("write", [[*ids("one 2 three vier"), 256, 5, 5]])
    (text,) = show.written_targets(None, None, TOKENIZER, batch)
    assert text.splitlines()[-1] == "filled: one «2» three« vier»"


def test_targets_without_spans_have_no_places(guesses):
    batch = Batch(
        tokens=np.zeros((1, 3), np.int32),
        source=np.array([ids("ja")]),
        targets=np.array([[*ids("no"), 256]]),
        weights=np.ones((1, 3)),
    )
    guesses("write", [[*ids("yes")]])
    assert show.written_targets(None, None, TOKENIZER, batch) == [
        "source: ja\nwritten: yes\ntarget: no<end>"
    ]
