"""Continuations of token ids against a model that reads the whole context for every token."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_models import WholeContext, build_tiny, random_prompts

from jaxlm import config, models
from jaxlm.decoding import engine as engine_module
from jaxlm.decoding.beam import BeamConfig, BeamSearch
from jaxlm.decoding.constraints import StopTokens, build_context
from jaxlm.decoding.engine import Engine, bucket_size, split_into_chunks
from jaxlm.decoding.sampling import SamplingConfig

LENGTHS = [3, 20, 1, 9]
BFLOAT16_CASES = [  # model, key/value heads of its 4 heads, how tokens are chosen
    ("rotary", 1, "sampled"),
    ("t5", 2, "beams"),
    pytest.param("learned", 4, "greedy", marks=pytest.mark.slow),
    pytest.param("rotary", 2, "beams", marks=pytest.mark.slow),
    pytest.param("bart", 1, "greedy", marks=pytest.mark.slow),
]
START = np.array([5], np.int32)


@cache
def setup(name):
    """(engine without stop tokens, prompts, sources or None, whole-context reference)"""
    model, params = build_tiny(name)
    engine = Engine(model, models.unstacked(params), StopTokens(()))
    if model.config.family == "decoder":
        return engine, random_prompts(LENGTHS), None, WholeContext(model, params)
    return engine, [START] * len(LENGTHS), random_prompts(LENGTHS), WholeContext(model, params)


def with_stop(engine, *ids, **constraints):
    return Engine(engine.model, engine.params, StopTokens(ids, **constraints))


def one_by_one(reference, starts, sources, limits, stop_ids=()):
    sources = sources or [None] * len(starts)
    return [
        reference.greedy(ids, limit, stop_ids, source)
        for ids, source, limit in zip(starts, sources, limits, strict=True)
    ]


def listed(rows):
    return [row.tolist() for row in rows]


def test_scores_that_are_no_numbers_after_the_first_token_are_noticed():
    stop, greedy = StopTokens(()), SamplingConfig()
    scores = np.zeros((2, 5), np.float32)
    state = engine_module.start_rows(
        stop,
        greedy,
        4,
        cache=None,
        scores_BV=jnp.asarray(scores),
        history=None,
        context=build_context(stop, [START, START], 16),
        limits_B=np.array([3, 3], np.int32),
        rows_B=np.arange(2),
        seed=np.uint32(0),
    )
    assert state.finite
    scores[1, 2] = np.nan
    state = engine_module.append_token(stop, greedy, state, jnp.asarray(scores))
    assert not state.finite
    assert state.lengths_B.tolist() == [2, 1] and state.open_B.tolist() == [True, False]


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
    engine, starts, sources, reference = setup(name)
    limits = [30, 12, 30, 1]
    rows = listed(engine.generate(starts, limits, sources=sources))
    assert rows == one_by_one(reference, starts, sources, limits)
    assert max(len(set(row)) for row in rows) > 3  # no loops of a token
    # Another batch, the same rows.
    again = engine.generate(starts[1:3], [12, 12], sources=sources and sources[1:3])
    assert listed(again) == [rows[1], rows[2][:12]]


def test_rows_end_with_a_stop_token_or_at_their_limits():
    engine, starts, _, reference = setup("learned")
    longest = one_by_one(reference, starts, None, [24] * 4)
    ids = longest[0][5], longest[1][10]
    stopping = with_stop(engine, *ids, pad_id=60)
    for limits in ([24] * 4, [3, 1, 0, 24]):
        expected = one_by_one(reference, starts, None, limits, ids)
        assert listed(stopping.generate(starts, limits)) == expected
    # No stop token comes before its time.
    late = with_stop(engine, *ids, min_new_tokens=8).generate(starts, [24] * 4)
    assert all(len(row) >= 9 and not set(row[:8].tolist()) & set(ids) for row in late)
    # The first token after the least length may be a stop token.
    text = next(text for text in longest if text[8] not in text[:8])
    start = starts[longest.index(text)]
    (row,) = with_stop(engine, text[8], min_new_tokens=8).generate([start], [24])
    assert row.tolist() == text[:9]


def test_long_prompts_are_read_in_chunks(monkeypatch):
    engine, _, _, reference = setup("learned")
    monkeypatch.setattr(engine_module, "CHUNK", 16)
    starts = random_prompts([50, 16, 17, 3])
    assert [tokens.shape[1] for tokens, _ in split_into_chunks(starts)] == [16, 16, 16, 16]
    assert listed(engine.generate(starts, [8] * 4)) == one_by_one(reference, starts, None, [8] * 4)


def test_new_lengths_within_a_bucket_compile_nothing():
    engine, _, _, _ = setup("learned")
    engine.generate(random_prompts([3, 16]), [9, 16])

    def programs():
        jitted = (engine._read_first, engine._read_next, engine._start, engine._decode)
        return [function._cache_size() for function in jitted]  # pyright: ignore

    before = programs()
    for lengths, limits in ([1, 2], [16, 3]), ([11, 12], [10, 11]):
        engine.generate(random_prompts(lengths), limits)
    watch = lambda tokens, lengths: np.ones(2, bool)  # noqa: E731
    engine.generate(random_prompts([5, 5]), [12, 12], on_tokens=watch)
    assert programs() == before


def test_buckets_hold_the_size_and_little_more():
    buckets = [bucket_size(size) for size in range(1, 2000)]
    assert all(size <= buckets[size - 1] <= max(16, size * 3 // 2) for size in range(1, 2000))
    assert sorted(set(buckets))[:8] == [16, 24, 32, 48, 64, 96, 128, 192]


def test_the_last_position_of_a_table_is_reached_and_not_passed():
    """Prompt and continuation fill the table; a row that ends early doesn't read on meanwhile."""
    engine, _, _, reference = setup("learned")
    starts = random_prompts([40, 63, 2])
    limits = [24, 1, 62]
    assert listed(engine.generate(starts, limits)) == one_by_one(reference, starts, None, limits)


def test_forced_tokens_come_first_and_last():
    engine, starts, sources, _ = setup("t5")
    forced = with_stop(engine, 7, forced_first_id=11, forced_last_id=7)
    for limits in ([6] * 4, [1, 2, 3, 9]):
        rows = listed(forced.generate(starts, limits, sources=sources))
        assert all(row[0] == 11 for row, limit in zip(rows, limits, strict=True) if limit > 1)
        assert all(row[-1] == 7 for row in rows)


def test_penalized_repetitions_include_the_prompt():
    engine, starts, _, reference = setup("learned")
    assert (reference.scores(starts[0]) >= 0).any()
    rows = engine.generate(starts, [20] * 4, SamplingConfig(repetition_penalty=1e9))
    for start, row in zip(starts, rows, strict=True):
        assert len(set(row.tolist())) >= 19 and not set(row.tolist()) & set(start.tolist())


def test_samples_depend_on_seed_row_and_place_alone():
    engine, starts, _, _ = setup("learned")
    sampling = SamplingConfig(temperature=1.5, top_k=30, top_p=0.95)
    first = listed(engine.generate(starts, [16] * 4, sampling, seed=3))
    assert first == listed(engine.generate(starts, [16] * 4, sampling, seed=3))
    assert first != listed(engine.generate(starts, [16] * 4, sampling, seed=4))
    # The same numbers in another batch.
    two = engine.generate([starts[2], starts[0]], [16] * 2, sampling, rows=[2, 0], seed=3)
    assert listed(two) == [first[2], first[0]]
    watch = lambda tokens, lengths: np.ones(4, bool)  # noqa: E731
    assert first == listed(engine.generate(starts, [16] * 4, sampling, seed=3, on_tokens=watch))


def test_a_watcher_sees_every_token_and_ends_rows():
    engine, starts, _, reference = setup("learned")
    expected = one_by_one(reference, starts, None, [40] * 4)
    seen = [np.zeros(4, int)]

    def watch(tokens, lengths):
        assert (lengths >= seen[-1]).all()
        for row, length in enumerate(lengths):
            assert tokens[row, :length].tolist() == expected[row][:length]
        seen.append(lengths)
        return lengths < np.array([40, 6, 40, 11])

    rows = listed(engine.generate(starts, [40] * 4, on_tokens=watch))
    assert rows[0] == expected[0] and rows[2] == expected[2]
    assert 6 <= len(rows[1]) < 40 and 11 <= len(rows[3]) < 40
    assert len(seen) > 3


def test_the_cache_is_reused_in_place():
    engine, starts, _, _ = setup("learned")
    cache, scores = engine.prefill(starts, None, 16)
    limits, rows = np.full(4, 9, np.int32), np.arange(4, dtype=np.int32)
    context = build_context(engine.stop, starts, 24)
    state = engine._start(
        SamplingConfig(), 16, cache, scores, None, context, limits, rows, np.uint32(0)
    )
    old = state.cache.layers[0].keys_BGSK
    engine._decode(SamplingConfig(), engine.params, state, np.ones(4, bool), 16)
    assert old.is_deleted()


@pytest.mark.parametrize(("name", "kv_heads", "way"), BFLOAT16_CASES)
def test_several_rows_are_written_in_bfloat16(name, kv_heads, way):
    """A CPU refuses some bfloat16 products of several rows, and not the same for each shape."""
    model, params = build_tiny(name, kv_heads=kv_heads)
    model = models.build(model.config, config.PrecisionConfig(compute="bfloat16"))
    engine = Engine(model, models.unstacked(params), StopTokens(()))
    prompts = random_prompts([9, 4])
    starts, sources = ([START] * 2, prompts) if name in ("t5", "bart") else (prompts, None)

    def write(rows):
        chosen = sources and [sources[row] for row in rows]
        chosen_starts, limits = [starts[row] for row in rows], [8] * len(rows)
        if way == "beams":
            return listed(BeamSearch(engine, BeamConfig(2)).generate(chosen_starts, limits, chosen))
        sampling = SamplingConfig(temperature=1.0 if way == "sampled" else 0.0)
        return listed(
            engine.generate(chosen_starts, limits, sampling, sources=chosen, rows=rows, seed=1)
        )

    together = write([0, 1, 0, 1])
    assert together[:2] == together[2:] or way == "sampled"
    assert [len(row) for row in together] == [8] * 4
    # One by one the same: no two scores of these models are near.
    assert write([0]) == together[:1] and write([1]) == together[1:2]


def test_a_seed_gives_the_key_of_jax():
    engine, starts, _, _ = setup("learned")
    cache, scores = engine.prefill(starts, None, 16)
    limits, rows = np.full(4, 9, np.int32), np.arange(4, dtype=np.int32)
    seed = 2**32 - 1
    context = build_context(engine.stop, starts, 24)
    state = engine._start(
        SamplingConfig(), 16, cache, scores, None, context, limits, rows, np.uint32(seed)
    )
    assert np.array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(seed)))
