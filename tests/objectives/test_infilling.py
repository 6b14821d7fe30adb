import math

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
    PAD,
    VOCABULARY,
    build_objective,
    make_batch,
    random_windows,
)

from jaxlm.objectives import infilling, random_ops


def hidden_runs(source, text):
    """Return [(masks, hidden tokens), ...]; fails unless the rest of the text is the same."""
    runs, masks, place = [], 0, 0
    for token in [*source, None]:
        if token == MASK:
            masks += 1
            continue
        # Ends of text repeat, but are never hidden: the next one is meant.
        end = len(text) if token is None else text.index(token, place)
        assert masks or end == place
        if masks:
            runs.append((masks, text[place:end]))
        masks, place = 0, end + 1
    return runs


@settings(max_examples=100, deadline=None)
@given(
    st.integers(4, 90),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.floats(0.3, 0.98),
    st.floats(1.0, 9.0),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_text_comes_back_and_special_tokens_stay(length, ends, noise, mean_span, framed, seed):
    vocabulary = FRAMED if framed else VOCABULARY
    objective = build_objective(
        "infilling",
        length,
        vocabulary,
        noise_share=noise,
        mean_span=mean_span,
        shuffle_sentences=False,
    )
    text = random_windows(objective, 4, ends, seed)
    batch = make_batch(objective, text, seed=seed)
    expected = (
        np.pad(text, ((0, 0), (1, 1)), constant_values=((0, 0), (BEGIN, END))) if framed else text
    )
    assert np.array_equal(batch.targets, expected)
    for line, source, size in zip(
        text.tolist(), batch.source.tolist(), batch.source_lengths, strict=True
    ):
        assert source[size:] == [PAD] * (length - size)
        source = source[:size]
        if framed:
            assert (source[0], source[-1]) == (BEGIN, END)
            source = source[1:-1]
        runs = hidden_runs(source, line)
        hidden = [token for _, tokens in runs for token in tokens]
        assert END not in hidden
        assert len(hidden) == round(noise * sum(token != END for token in line))


@pytest.mark.parametrize(("start", "token"), [(None, END), ("pad", PAD)])
def test_the_decoder_reads_its_targets_shifted(start, token):
    objective = build_objective("infilling", 30, FRAMED, decoder_start=start)
    batch = make_batch(objective, random_windows(objective, 3))
    assert (batch.tokens[:, 0] == token).all()
    assert np.array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.weights.min() == 1


def test_span_lengths_are_poisson():
    for mean in (1.0, 3.0, 3.5, 30.0):
        probabilities = np.diff(infilling.poisson_thresholds(mean, most=10_000) / 2**32, prepend=0)
        expected = [
            math.exp(-mean) * mean**k / math.factorial(k) for k in range(len(probabilities))
        ]
        # Thresholds are rounded to 2**-32.
        np.testing.assert_allclose(probabilities, expected, atol=2**-31)
        assert sum(expected) == pytest.approx(1, abs=2**-32)
    far = infilling.poisson_thresholds(3000.0, most=10_000)
    assert np.isfinite(far.astype(float)).all()  # exp(-3000) is 0


@pytest.mark.parametrize("mean", [1.0, 3.5, 30.0])
def test_lengths_beyond_the_noise_are_not_told_apart(mean):
    bits = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint64)
    drawn = np.searchsorted(infilling.poisson_thresholds(mean, most=10_000), bits, side="right")
    trimmed = np.searchsorted(infilling.poisson_thresholds(mean, most=4), bits, side="right")
    assert np.array_equal(np.minimum(drawn, 4), trimmed)


def test_a_mean_span_beyond_all_samples_hides_one_span():
    objective = build_objective("infilling", 30, mean_span=3e38)
    batch = make_batch(objective, random_windows(objective, 3))
    assert ((batch.source == MASK).sum(axis=1) == 1).all()
    assert (batch.source_lengths == 30 - 9 + 1).all()


def test_masks_are_as_many_as_spans_that_cover_the_noise():
    objective = build_objective("infilling", 400, shuffle_sentences=False)
    batch = make_batch(objective, random_windows(objective, 800))
    masks = (batch.source == MASK).sum(axis=1)
    hidden = 400 - (batch.source_lengths - masks)
    assert (hidden == 120).all()
    # The definition, with numpy's Poisson numbers: spans are drawn while their sum is below 120.
    sums = np.cumsum(np.random.default_rng(0).poisson(3.0, (20_000, 120)), axis=1)
    expected = 1 + (sums < 120).sum(axis=1)
    error = np.hypot(masks.std() / np.sqrt(800), expected.std() / np.sqrt(20_000))
    assert abs(masks.mean() - expected.mean()) < 5 * error
    assert masks.std() == pytest.approx(expected.std(), rel=0.15)  # 6 standard errors of 800 rows


def test_spans_lie_anywhere():
    rows = 9000
    keys = random_ops.order_keys(0, np.arange(rows), 0, 8)
    # The share 0.75 of 4 ordinary tokens is 3, so the spans of 2, 0 and 1 tokens are used.
    drawn = np.tile([2, 0, 1, 5], (rows, 1))
    spans = infilling.place_spans(drawn, keys, np.full(rows, 4), 0.75)
    assert spans.used[0].tolist() == [True, True, True, False]
    assert spans.lengths[0].tolist() == [2, 0, 1, 0]
    # One token stays: before, between or after the spans, in one of 4 slots.
    firsts, counts = np.unique(spans.starts[:, :3], axis=0, return_counts=True)
    assert firsts.tolist() == [[0, 2, 2], [0, 2, 3], [0, 3, 3], [1, 3, 3]]
    assert abs(counts - rows / 4).max() < 5 * np.sqrt(rows * 3 / 16)
    trimmed = infilling.place_spans(np.array([[5, 1]]), keys[:1], np.array([4]), 0.5)
    assert (trimmed.lengths.tolist(), trimmed.used.tolist()) == ([[2, 0]], [[True, False]])


def infill(text, starts, lengths):
    line = np.array([text], np.int32)
    spans = infilling.Spans(
        np.array([starts]), np.array([lengths]), np.ones((1, len(starts)), bool)
    )
    source, segments = infilling.hide_spans(
        line, line >= FIRST_ORDINARY, np.ones_like(line), spans, VOCABULARY
    )
    size = np.count_nonzero(segments)
    assert source[0, size:].tolist() == [PAD] * (len(text) - size)
    return source[0, :size].tolist()


def test_one_mask_for_each_span():
    assert infill([201, 202, 203, 204, 205], [1], [3]) == [201, MASK, 205]
    assert infill([201, 202, 203, 204, 205], [0, 2], [2, 2]) == [MASK, MASK, 205]
    assert infill([201, 202, 203, 204, 205], [0, 2, 5], [0, 3, 0]) == [MASK, 201, 202, MASK, MASK]
    # Special tokens are not counted and not hidden; after one a span has a mask of its own.
    assert infill([201, END, 202, 203, END], [1], [1]) == [201, END, MASK, 203, END]
    assert infill([201, 202, END, 203, 204], [1], [2]) == [201, MASK, END, MASK, 204]
    # No room: the last empty spans go.
    assert infill([201, 202, 203], [0, 1, 3], [0, 1, 0]) == [201, MASK, 203]
    assert infill([201, 202, 203], [0, 1, 3], [0, 2, 0]) == [MASK, 201, MASK]


def split(line, ends):
    """Cut the line after each token for which `ends` holds."""
    parts = [[]]
    for token in line:
        parts[-1].append(token)
        if ends(token):
            parts.append([])
    return [part for part in parts if part]


def test_sentences_move_within_their_document():
    objective = build_objective("infilling", 120)
    text = random_windows(objective, 60, ends=0.05)
    moved = infilling.shuffle_sentences(text, np.arange(60), 0, VOCABULARY)
    for line, shuffled in zip(text.tolist(), moved.tolist(), strict=True):
        documents = [split(one, lambda token: token == END) for one in (line, shuffled)]
        for before, after in zip(*documents, strict=True):
            assert len(before) == len(after)
            assert (before[-1] == END) == (after[-1] == END)
            sentences = split(
                [token for token in before if token != END],
                lambda token: VOCABULARY.ends_sentence[token],
            )
            in_order = sorted(sentences, key=lambda sentence: after.index(sentence[0]))
            assert [token for sentence in in_order for token in sentence] == [
                token for token in after if token != END
            ]
    assert (moved != text).mean() > 0.5


def test_all_orders_of_sentences_are_alike():
    rows = 6000
    # Three sentences, the last one unfinished.
    text = np.tile(np.array([209, 301, 219, 302, 303], np.int32), (rows, 1))
    moved = infilling.shuffle_sentences(text, np.arange(rows), 0, VOCABULARY)
    orders, counts = np.unique(moved, axis=0, return_counts=True)
    assert len(orders) == 6
    assert abs(counts - rows / 6).max() < 5 * np.sqrt(rows * 5 / 36)


def test_the_target_is_the_text_in_its_order():
    objective = build_objective("infilling", 60)
    text = random_windows(objective, 5)
    batch = make_batch(objective, text)
    assert np.array_equal(batch.targets, text)
    for line, source in zip(text, batch.source, strict=True):
        kept = source[(source != MASK) & (source != PAD)]
        assert set(kept) <= set(line.tolist())
        assert len(kept) == 60 - round(0.3 * 60)
