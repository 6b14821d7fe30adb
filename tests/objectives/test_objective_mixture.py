"""Test mixtures of objectives, and UL2's mixture of denoisers."""

import numpy as np
import pytest
from support.texts import (
    DENOISER_R,
    DENOISER_S,
    DENOISER_X,
    END,
    FIM_PREFIX,
    FIRST_ORDINARY,
    FIRST_SENTINEL,
    MASK,
    PAD,
    VOCABULARY,
    build_objective,
    make_batch,
    random_windows,
)

from jaxlm import objectives
from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import span

TOKENS = {"R": DENOISER_R, "S": DENOISER_S, "X": DENOISER_X}


def mix(length, *parts):
    return build_objective("mixture", length, parts=parts)


def test_parts_have_the_share_of_their_weights_and_their_own_samples():
    parts = (
        ObjectiveConfig(kind="causal", weight=1.0),
        ObjectiveConfig(kind="prefix", weight=5.0),
        ObjectiveConfig(kind="fill_in_the_middle", fim_rate=1.0, weight=2.0),
    )
    objective = mix(30, *parts)
    text, rows = random_windows(objective, 1), 8000
    batch = make_batch(objective, np.repeat(text, rows, axis=0), first_sample=70, seed=9)

    is_prefix = batch.prefix_lengths > 0
    is_fim = batch.tokens[:, 0] == FIM_PREFIX
    members = (~is_prefix & ~is_fim, is_prefix, is_fim)
    for part, member, share in zip(parts, members, (1 / 8, 5 / 8, 2 / 8), strict=True):
        assert abs(member.sum() - rows * share) < 5 * np.sqrt(rows * share * (1 - share))
        # Its rows are those of the part alone.
        alone = objectives.build(part, 30, VOCABULARY)
        numbers = 70 + np.flatnonzero(member)
        expected = alone.make_batch(np.repeat(text, len(numbers), axis=0), numbers, 9)
        for field in ("tokens", "targets", "weights"):
            assert np.array_equal(getattr(batch, field)[member], getattr(expected, field))
        if expected.prefix_lengths is not None:
            assert np.array_equal(batch.prefix_lengths[member], expected.prefix_lengths)


def test_shorter_parts_are_padded():
    parts = (
        ObjectiveConfig(kind="span", denoiser="X", noise_share=0.5, decoder_start="end_of_text"),
        ObjectiveConfig(kind="infilling"),
    )
    objective = mix(40, *parts)
    wide = objectives.build(parts[0], 40, VOCABULARY).window
    assert (objective.window, objective.stride) == (wide, 40) and wide > 40
    batch = make_batch(objective, random_windows(objective, 60))
    is_span = batch.source[:, 0] == DENOISER_X
    assert 0 < is_span.sum() < 60
    assert (batch.source_lengths[is_span] == 40).all()
    assert (batch.source_lengths[~is_span] <= 40).all()
    assert (np.sum(batch.source[~is_span] == MASK, axis=1) > 0).all()
    assert (batch.tokens[:, 0] == END).all()
    # The targets of span corruption are the shorter ones.
    length = span.fit_sizes(39, ObjectiveConfig(kind="span", noise_share=0.5)).target
    assert length < objective.length == 40
    assert (batch.weights[is_span].sum(axis=1) == length).all()
    assert (batch.tokens[is_span, length:] == PAD).all()
    assert batch.weights[~is_span].min() == 1


def test_a_denoiser_marks_a_padded_source():
    plain = build_objective("infilling", 29)
    marked = build_objective("infilling", 30, denoiser="S")
    assert (marked.source_length, marked.length, marked.window) == (30, 29, 29)
    text = random_windows(plain, 20, ends=0.1)
    alone, batch = make_batch(plain, text), make_batch(marked, text)
    assert (batch.source[:, 0] == DENOISER_S).all()
    assert np.array_equal(batch.source[:, 1:], alone.source)
    assert np.array_equal(batch.source_lengths, alone.source_lengths + 1)
    assert np.array_equal(batch.targets, alone.targets)


def test_errors_of_a_part_name_it():
    with pytest.raises(ConfigError) as raised:
        mix(
            20,
            ObjectiveConfig(kind="span"),
            ObjectiveConfig(kind="infilling", mean_span=0.5, decoder_start="pad"),
        )
    assert raised.value.path == "objective.parts.1.mean_span"


# Table 1 of UL2 (arXiv 2205.05131): the mean lengths of spans and the shares of noise.
TABLE_1 = {
    "R": [(3, 0.15), (8, 0.15)],
    "S": [(None, 0.25)],  # one span: the end
    "X": [(3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)],
}


def test_the_denoisers_are_those_of_the_paper():
    sentinels = np.arange(FIRST_SENTINEL, FIRST_SENTINEL + 200, dtype=np.int32)
    vocabulary = VOCABULARY._replace(sentinels=sentinels)
    objective = build_objective("mixture_of_denoisers", 512, vocabulary)
    assert objective.source_length == 512
    # The released models have 512 tokens of targets (section 3.2 of the paper, "512/512").
    assert abs(objective.length - 512) <= 1

    text = np.tile(np.arange(300, 300 + objective.window, dtype=np.int32), (2100, 1))
    batch = make_batch(objective, text)
    assert batch.source_lengths is None and (batch.source[:, -1] == END).all()
    found = {}
    for source, targets, weights in zip(batch.source, batch.targets, batch.weights, strict=True):
        target = targets[weights > 0]
        spans = np.isin(target, sentinels).sum()
        noise = len(target) - spans - 1  # without the end
        kept = len(source) - spans - 2  # without token and end
        found.setdefault((source[0].item(), spans), []).append((noise, kept))
        if source[0] == DENOISER_S:  # the text, a sentinel in place of its end, and the end
            assert source[-2] == FIRST_SENTINEL and (np.diff(source[1:-2]) == 1).all()

    expected = [(mode, *setting) for mode, settings in TABLE_1.items() for setting in settings]
    assert len(found) == len(expected) == 7
    for mode, mean_span, share in expected:
        sizes = {
            spans: rows
            for (token, spans), rows in found.items()
            if token == TOKENS[mode]
            and abs(rows[0][0] / sum(rows[0]) - share) < 0.002
            and (mean_span is None or abs(spans - rows[0][0] / mean_span) <= 0.5)
        }
        (rows,) = sizes.values()
        assert len({*rows}) == 1
        # Uniform: a seventh of the samples each.
        assert abs(len(rows) - 300) < 5 * np.sqrt(2100 * 1 / 7 * 6 / 7)


def test_more_spans_than_sentinels_are_refused():
    with pytest.raises(ConfigError) as raised:
        build_objective("mixture_of_denoisers", 512)
    assert raised.value.path == "tokenizer.sentinels" and "127 spans" in raised.value.reason
    assert FIRST_ORDINARY - FIRST_SENTINEL == 100


def test_rows_of_documents_have_no_place_for_the_token_of_a_denoiser():
    plain, marked = (build_objective("span", 64, denoiser=denoiser) for denoiser in (None, "R"))
    assert objectives.packed_rows(plain, "packed") is not None
    with pytest.raises(ConfigError, match=r"^data\.sequences: 'packed' does not exist"):
        objectives.packed_rows(marked, "packed")
