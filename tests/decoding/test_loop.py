"""Continuations of token ids against a model that reads the whole context for every token."""

from functools import cache

import jax
import numpy as np
import pytest
from support.tiny_models import WholeContext, made, prompts

from jaxlm import models
from jaxlm.decoding import engine
from jaxlm.decoding.engine import Ends, Writer
from jaxlm.decoding.sampling import SamplingConfig

LENGTHS = [3, 20, 1, 9]
START = np.array([5], np.int32)


@cache
def setup(name):
    """(writer without ends, prompts, sources or None, whole-context reference)"""
    model, params = made(name)
    writer = Writer(model, models.unstacked(params), Ends(()))
    if model.config.family == "decoder":
        return writer, prompts(LENGTHS), None, WholeContext(model, params)
    return writer, [START] * len(LENGTHS), prompts(LENGTHS), WholeContext(model, params)


def one_by_one(reference, starts, sources, limits, ends=()):
    sources = sources or [None] * len(starts)
    return [
        reference.greedy(ids, limit, ends, source)
        for ids, source, limit in zip(starts, sources, limits, strict=True)
    ]


def listed(rows):
    return [row.tolist() for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        "learned",
        "t5",
        *(
            pytest.param(name, marks=pytest.mark.campaign)
            for name in ("rotary", "alibi, window", "bart")
        ),
    ],
)
def test_greedy_tokens_are_those_of_the_whole_context(name):
    writer, starts, sources, reference = setup(name)
    limits = [30, 12, 30, 1]
    found = listed(writer.write(starts, limits, sources=sources))
    assert found == one_by_one(reference, starts, sources, limits)
    assert max(len(set(row)) for row in found) > 3  # no loops of a token
    # Another batch, the same rows.
    assert listed(writer.write(starts[1:3], [12, 12], sources=sources and sources[1:3])) == [
        found[1],
        found[2][:12],
    ]


def test_rows_end_with_an_end_or_at_their_limits():
    writer, starts, _, reference = setup("rotary")
    longest = one_by_one(reference, starts, None, [24] * 4)
    ends = longest[0][5], longest[1][10]
    ending = Writer(writer.model, writer.params, Ends(ends, pad=60))
    assert listed(ending.write(starts, [24] * 4)) == one_by_one(
        reference, starts, None, [24] * 4, ends
    )
    assert listed(ending.write(starts, [3, 1, 0, 24])) == one_by_one(
        reference, starts, None, [3, 1, 0, 24], ends
    )
    # No end comes before its time.
    late = Writer(writer.model, writer.params, Ends(ends, least=8)).write(starts, [24] * 4)
    assert all(len(row) >= 9 and not set(row[:8].tolist()) & set(ends) for row in late)


def test_long_prompts_are_read_in_chunks(monkeypatch):
    writer, _, _, reference = setup("rotary")
    monkeypatch.setattr(engine, "CHUNK", 16)
    starts = prompts([50, 16, 17, 3])
    assert [tokens.shape[1] for tokens, _ in engine.chunks(starts)] == [16, 16, 16, 16]
    assert listed(writer.write(starts, [8] * 4)) == one_by_one(reference, starts, None, [8] * 4)


def test_new_lengths_within_a_bucket_compile_nothing():
    writer, _, _, _ = setup("learned")
    writer.write(prompts([3, 16]), [9, 16])
    before = {name: getattr(writer, name)._cache_size() for name in ("_read", "_begin", "_steps")}
    for lengths, limits in ([1, 2], [16, 3]), ([11, 12], [10, 11]):
        writer.write(prompts(lengths), limits)
    writer.write(prompts([5, 5]), [12, 12], watch=lambda tokens, lengths: np.ones(2, bool))
    assert before == {name: getattr(writer, name)._cache_size() for name in before}


def test_buckets_hold_what_they_must_and_little_more():
    found = [engine.bucket(size) for size in range(1, 2000)]
    assert all(size <= found[size - 1] <= max(16, size * 3 // 2) for size in range(1, 2000))
    assert sorted(set(found))[:8] == [16, 24, 32, 48, 64, 96, 128, 192]


def test_the_last_position_of_a_table_is_reached_and_not_passed():
    """Prompt and continuation fill the table of positions; a row that ends early doesn't read on meanwhile."""
    writer, _, _, reference = setup("learned")
    starts = prompts([40, 63, 2])
    limits = [24, 1, 62]
    assert listed(writer.write(starts, limits)) == one_by_one(reference, starts, None, limits)


def test_forced_tokens_come_first_and_last():
    writer, starts, sources, _ = setup("bart")
    forced = Writer(writer.model, writer.params, Ends((7,), first=11, last=7))
    for limits in ([6] * 4, [1, 2, 3, 9]):
        rows = listed(forced.write(starts, limits, sources=sources))
        assert all(row[0] == 11 for row, limit in zip(rows, limits, strict=True) if limit > 1)
        assert all(row[-1] == 7 for row in rows)


def test_penalised_repetitions_include_the_prompt():
    writer, starts, _, reference = setup("learned")
    penalty = 1e9 if (reference.scores(starts[0]) >= 0).any() else 1.0
    rows = writer.write(starts, [20] * 4, SamplingConfig(repetition_penalty=penalty))
    for start, row in zip(starts, rows, strict=True):
        everything = np.concatenate([start, row]).tolist()
        assert len(set(everything[len(set(start.tolist())) :])) >= 19 and not set(
            row.tolist()
        ) & set(start.tolist())


def test_samples_depend_on_seed_row_and_place_alone():
    writer, starts, _, _ = setup("rotary")
    choice = SamplingConfig(temperature=1.5, top_k=30, top_p=0.95)
    first = listed(writer.write(starts, [16] * 4, choice, seed=3))
    assert first == listed(writer.write(starts, [16] * 4, choice, seed=3))
    assert first != listed(writer.write(starts, [16] * 4, choice, seed=4))
    assert [first[2], first[0]] == listed(
        writer.write([starts[2], starts[0]], [16] * 2, choice, rows=[2, 0], seed=3)
    )
    again = writer.write(
        starts, [16] * 4, choice, seed=3, watch=lambda tokens, lengths: np.ones(4, bool)
    )
    assert first == listed(again)


def test_a_watcher_sees_every_token_and_ends_rows():
    writer, starts, _, reference = setup("alibi, window")
    expected = one_by_one(reference, starts, None, [40] * 4)
    seen = [np.zeros(4, int)]

    def watch(tokens, lengths):
        assert (lengths >= seen[-1]).all()
        for row, length in enumerate(lengths):
            assert tokens[row, :length].tolist() == expected[row][:length]
        seen.append(lengths)
        return lengths < np.array([40, 6, 40, 11])

    rows = listed(writer.write(starts, [40] * 4, watch=watch))
    assert rows[0] == expected[0] and rows[2] == expected[2]
    assert 6 <= len(rows[1]) < 40 and 11 <= len(rows[3]) < 40
    assert len(seen) > 3


def test_the_cache_is_reused_in_place():
    writer, starts, _, _ = setup("learned")
    cache, scores = writer.read(starts, None, 16)
    state = writer._begin(
        SamplingConfig(),
        16,
        cache,
        scores,
        None,
        np.full(4, 9, np.int32),
        np.arange(4, dtype=np.int32),
        jax.random.key(0),
    )
    old = state.cache.layers[0].keys_BGSK
    writer._steps(SamplingConfig(), writer.params, state, 16)
    assert old.is_deleted()
