import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import (
    BEGIN,
    END,
    FIRST_ORDINARY,
    FRAMED,
    MASK,
    SIZE,
    VOCABULARY,
    build_objective,
    make_batch,
    random_windows,
)

from jaxlm.objectives import masked, random_ops


def restored(batch):
    """Return the tokens with every target put back."""
    text = batch.tokens.copy()
    for row, places, targets, weights in zip(
        text, batch.predict, batch.targets, batch.weights, strict=True
    ):
        row[places[weights > 0]] = targets[weights > 0]
    return text


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 60),
    st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    st.floats(0.01, 0.99),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_text_comes_back_and_special_tokens_stay(
    length, ends, noise, framed, whole_words, seed
):
    objective = build_objective(
        "masked",
        length,
        FRAMED if framed else VOCABULARY,
        noise_share=noise,
        whole_words=whole_words,
    )
    text = random_windows(objective, 4, ends, seed)
    batch = make_batch(objective, text, seed=seed)
    original = (
        np.pad(text, ((0, 0), (1, 1)), constant_values=((0, 0), (BEGIN, END))) if framed else text
    )
    assert np.array_equal(restored(batch), original)
    for places, targets, weights, line in zip(
        batch.predict, batch.targets, batch.weights, original, strict=True
    ):
        eligible = (line >= FIRST_ORDINARY).sum()
        budget = min(max(1, round(noise * eligible)), eligible)
        used = int(weights.sum())
        assert used <= budget if whole_words else used == budget
        assert weights.tolist() == [1] * used + [0] * (len(weights) - used)
        assert (np.diff(places[:used]) > 0).all()
        assert (line[places[:used]] >= FIRST_ORDINARY).all()
        assert places[used:].tolist() == targets[used:].tolist() == [0] * (len(weights) - used)


def test_shares_are_those_of_bert():
    objective = build_objective("masked", 512)
    assert objective.predictions == 77  # round(0.15 * 512)
    text = random_windows(objective, 300)
    batch = make_batch(objective, text)
    now = np.take_along_axis(batch.tokens, batch.predict, axis=1)
    chosen = now.size
    ordinary = SIZE - FIRST_ORDINARY
    # A random token is the old one once in `ordinary` times. The bounds are 5 standard deviations
    # of a binomial count.
    for hits, share in [(now == MASK, 0.8), (now == batch.targets, 0.1 + 0.1 / ordinary)]:
        assert abs(hits.sum() - share * chosen) < 5 * np.sqrt(chosen * share * (1 - share))
    replaced = now[(now != MASK) & (now != batch.targets)] - FIRST_ORDINARY
    assert replaced.min() >= 0
    quarters = np.bincount(replaced * 4 // ordinary, minlength=4)
    assert abs(quarters - len(replaced) / 4).max() < 5 * np.sqrt(len(replaced) * 3 / 16)
    # Every position is as likely as any other.
    each = np.bincount(batch.predict.ravel(), minlength=512)
    assert abs(each - 300 * 77 / 512).max() < 5 * np.sqrt(300 * 77 / 512 * (1 - 77 / 512))


@pytest.mark.parametrize(("mask_share", "random_share"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_shares_may_be_all_or_none(mask_share, random_share):
    objective = build_objective("masked", 200, mask_share=mask_share, random_share=random_share)
    text = random_windows(objective, 20)
    batch = make_batch(objective, text)
    now = np.take_along_axis(batch.tokens, batch.predict, axis=1)
    assert (now == MASK).mean() == mask_share
    # A random token may be the old one.
    assert (now != batch.targets).mean() == pytest.approx(mask_share + random_share, abs=0.02)


def words_of(line):
    """Return the positions of each word, by the definition in `Vocabulary`."""
    words = []
    for place, token in enumerate(line):
        before = line[place - 1] if place else END
        joins = (
            min(token, before) >= FIRST_ORDINARY
            and VOCABULARY.first_class[token] == VOCABULARY.last_class[before]
        )
        if joins:
            words[-1].append(place)
        elif token >= FIRST_ORDINARY:
            words.append([place])
    return words


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 80),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.floats(0.05, 0.9),
    st.integers(0, 2**32),
)
def test_words_are_chosen_as_by_a_loop_over_them(length, ends, noise, seed):
    objective = build_objective("masked", length, noise_share=noise, whole_words=True)
    text = random_windows(objective, 3, ends, seed)
    ordinary = text >= FIRST_ORDINARY
    keys = random_ops.order_keys(seed, np.arange(3), 0, length)
    counts = masked.target_budget(ordinary.sum(axis=1), noise)
    chosen = masked.choose_words(
        keys, ordinary, counts, *masked.word_bounds(text, ordinary, VOCABULARY)
    )
    for line, places, key, budget in zip(text, chosen, keys, counts, strict=True):
        taken = []
        for word in sorted(words_of(line), key=lambda word: key[word[0]]):
            if len(taken) + len(word) <= budget:
                taken += word
        assert places.tolist() == sorted(taken) + [length] * (length - len(taken))


def test_whole_words_are_whole_and_their_tokens_differ_in_fate():
    objective = build_objective("masked", 400, whole_words=True)
    text = random_windows(objective, 50, ends=0.01)
    batch = make_batch(objective, text)
    fates = set()
    for line, tokens, places, weights in zip(
        text, batch.tokens, batch.predict, batch.weights, strict=True
    ):
        chosen = set(places[weights > 0].tolist())
        for word in words_of(line):
            assert len(chosen & set(word)) in (0, len(word))
            if len(word) == 2 and chosen & set(word):
                fates.add(tuple((tokens[word] == MASK).tolist()))
    assert len(fates) == 4


def test_words_of_one_token_are_chosen_as_tokens_are():
    single = VOCABULARY._replace(last_class=np.full(SIZE, 5, np.int8))
    whole, plain = (
        build_objective("masked", 100, single, whole_words=True),
        build_objective("masked", 100, single),
    )
    text = random_windows(plain, 10, ends=0.1)
    assert np.array_equal(make_batch(whole, text).tokens, make_batch(plain, text).tokens)
    assert np.array_equal(make_batch(whole, text).predict, make_batch(plain, text).predict)
