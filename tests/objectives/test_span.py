import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import (
    END,
    FIRST_ORDINARY,
    FIRST_SENTINEL,
    PAD,
    build_objective,
    make_batch,
    random_windows,
)

from jaxlm import config
from jaxlm.config import ConfigError
from jaxlm.objectives import span


def split_at_sentinels(line):
    """Return (tokens before the first sentinel, {sentinel: tokens after it}) of an ended line."""
    assert line[-1] == END
    parts, current = {}, (start := [])
    for token in line[:-1]:
        if FIRST_SENTINEL <= token < FIRST_ORDINARY:
            current = parts[token] = []
        else:
            current.append(token)
    return start, parts


def test_t5s_sizes():
    # The paper's C4 runs (section 3.1.4 and t5's gin files) make 512 tokens of source and 114 of
    # target from 568 of text.
    objective = build_objective("span", 512)
    assert (objective.window, objective.stride) == (568, 568)
    assert (objective.source_length, objective.length, objective.predictions) == (512, 114, 114)
    assert span.fit_sizes(512, config.ObjectiveConfig(kind="span")).spans == 28


@settings(max_examples=200, deadline=None)
@given(st.integers(3, 3000), st.floats(0.01, 0.95), st.floats(1.0, 50.0))
def test_the_longest_window_fits_exactly(length, noise, mean_span):
    objective = config.ObjectiveConfig(kind="span", noise_share=noise, mean_span=mean_span)
    sizes = span.fit_sizes(length, objective)
    assert sizes.source == length
    assert span.window_sizes(sizes.window + 1, objective).source > length


@settings(max_examples=60, deadline=None)
@given(
    st.integers(3, 120),
    st.sampled_from([0.0, 0.1]),
    st.floats(0.02, 0.6),
    st.floats(1.0, 9.0),
    st.integers(0, 2**32),
)
def test_the_text_comes_back(length, ends, noise, mean_span, seed):
    try:
        objective = build_objective("span", length, noise_share=noise, mean_span=mean_span)
    except ConfigError as error:
        assert error.path == "objective.mean_span"
        return
    text = random_windows(objective, 4, ends, seed)
    batch = make_batch(objective, text, seed=seed)
    sizes = span.fit_sizes(
        length, config.ObjectiveConfig(kind="span", noise_share=noise, mean_span=mean_span)
    )
    sentinels = list(range(FIRST_SENTINEL, FIRST_SENTINEL + sizes.spans))
    for line, source, target in zip(
        text.tolist(), batch.source.tolist(), batch.targets.tolist(), strict=True
    ):
        start, rest = split_at_sentinels(source)
        nothing, spans = split_at_sentinels(target)
        assert nothing == [] and start
        assert list(spans) == list(rest) == sentinels
        assert (
            start + [token for sentinel in sentinels for token in spans[sentinel] + rest[sentinel]]
            == line
        )
        assert all(spans.values()) and all(rest[sentinel] for sentinel in sentinels[:-1])
        assert rest[sentinels[-1]] == []  # as T5's masks, the text ends with a span


@pytest.mark.parametrize(("start", "token"), [(None, PAD), ("end_of_text", END)])
def test_the_decoder_reads_its_targets_shifted(start, token):
    objective = build_objective("span", 60, decoder_start=start)
    batch = make_batch(objective, random_windows(objective, 3))
    assert (batch.tokens[:, 0] == token).all()
    assert np.array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.weights.min() == 1
    assert batch.source_lengths is None


def test_span_lengths_are_those_of_a_random_segmentation():
    objective = build_objective("span", 100)
    rows = 4000
    batch = make_batch(objective, np.repeat(random_windows(objective, 1), rows, axis=0))
    noise, spans = 16, 5  # of a window of 110
    assert objective.length == noise + spans + 1
    starts = np.flatnonzero(batch.targets.ravel() < FIRST_ORDINARY)
    lengths = (np.diff(starts, append=batch.targets.size) - 1).reshape(rows, spans + 1)[:, :-1]
    assert (lengths.sum(axis=1) == noise).all()
    # All C(noise - 1, spans - 1) compositions are equally likely; C(noise - a - 1, spans - 2) of
    # them have a part of length a in a given place.
    for place in (0, 3, spans - 1):
        for a in range(1, 9):
            share = math.comb(noise - a - 1, spans - 2) / math.comb(noise - 1, spans - 1)
            assert abs((lengths[:, place] == a).sum() - rows * share) < 5 * np.sqrt(
                rows * share * (1 - share)
            )
    hidden = np.zeros(objective.window)
    places = {token: place for place, token in enumerate(random_windows(objective, 1)[0].tolist())}
    for token in batch.targets[batch.targets >= FIRST_ORDINARY].tolist():
        hidden[places[token]] += 1
    assert hidden[0] == 0 and hidden[-1] == rows  # begins with text, ends with a span
    assert hidden.sum() == rows * noise


def test_lengths_of_spans_and_of_the_text_between_are_independent():
    rows = 4000
    objective = build_objective("span", 24, noise_share=0.5, mean_span=6.0)  # 2 spans
    batch = make_batch(objective, np.repeat(random_windows(objective, 1), rows, axis=0))
    text, noise = (
        np.argmax(line == sentinel, axis=1)
        for line, sentinel in [(batch.source, FIRST_SENTINEL), (batch.targets, FIRST_SENTINEL + 1)]
    )
    assert min(text.std(), noise.std()) > 1
    standard_error = 1 / np.sqrt(rows)
    assert abs(np.corrcoef(text, noise)[0, 1]) < 5 * standard_error


def test_documents_of_a_row_are_cut_in_all_ways_alike():
    """Texts of 5 and 2 tokens in 3 parts and 1: the first in one of 6 ways, the second in one."""
    rows = 6000
    totals, parts = np.tile([5, 2], rows), np.tile([3, 1], rows)
    numbers = np.repeat(np.arange(rows), 2), np.tile([1, 2], rows)
    lengths = span.cut_texts(totals, parts, numbers, 0, 0).reshape(rows, 4)
    assert (lengths[:, :3].sum(axis=1) == 5).all() and (lengths[:, 3] == 2).all()
    ways, counts = np.unique(lengths, axis=0, return_counts=True)
    assert len(ways) == math.comb(4, 2)
    assert abs(counts - rows / 6).max() < 5 * np.sqrt(rows * 5 / 36)
