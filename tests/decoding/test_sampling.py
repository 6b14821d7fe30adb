"""The next token: filters against their definitions in numpy, draws against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.decoding.sampling import (
    SamplingConfig,
    filter_scores,
    penalize_repetitions,
    pick_tokens,
    sample_tokens,
    seen_tokens,
)

RANDOM = np.random.default_rng(0)
SCORES = {
    "random": 3 * RANDOM.normal(size=(5, 40)).astype(np.float32),
    "ties": RANDOM.integers(-2, 3, (5, 40)).astype(np.float32),
    "all the same": np.zeros((2, 8), np.float32),
    "one is certain": np.where(np.arange(8) == 3, 60.0, 0.0)[None].astype(np.float32),
    "one token": np.zeros((3, 1), np.float32),
    "some are out": np.where(
        RANDOM.random((5, 40)) < 0.5, -np.inf, RANDOM.normal(size=(5, 40))
    ).astype(np.float32),
}
CONFIGS = {
    "temperature": SamplingConfig(temperature=0.7),
    "top-k": SamplingConfig(temperature=1.0, top_k=5),
    "top-1": SamplingConfig(temperature=1.0, top_k=1),
    "top-k above the vocabulary": SamplingConfig(temperature=1.0, top_k=1000),
    "top-p": SamplingConfig(temperature=1.0, top_p=0.75),
    "top-p of all": SamplingConfig(temperature=1.0, top_p=1.0),
    "top-p of nothing": SamplingConfig(temperature=1.0, top_p=0.0),
    "min-p": SamplingConfig(temperature=1.0, min_p=0.2),
    "min-p of all": SamplingConfig(temperature=1.0, min_p=1.0),
    "all": SamplingConfig(temperature=1.3, top_k=20, top_p=0.8, min_p=0.1),
}


def probabilities(row):
    shares = np.exp(row.astype(np.float64) - row.max())
    return shares / shares.sum()


def reference(sampling, row):
    """The kept ids of one row, step by step from the definitions."""
    row = (row / np.float32(sampling.temperature)).astype(np.float32)
    ids = [i for i in range(len(row)) if row[i] > -np.inf]
    if sampling.top_k is not None:
        least = sorted(row[ids], reverse=True)[: sampling.top_k][-1]
        ids = [i for i in ids if row[i] >= least]
    if sampling.top_p < 1:
        share = probabilities(row[ids])
        order, gone, total = (
            sorted(range(len(ids)), key=lambda n: (row[ids[n]], ids[n])),
            set(),
            0.0,
        )
        for n in order[:-1]:  # one stays in any case
            total += share[n]
            if total > 1 - sampling.top_p + 1e-7:
                break
            gone.add(n)
        ids = [i for n, i in enumerate(ids) if n not in gone]
    share = probabilities(row[ids])
    return [i for n, i in enumerate(ids) if share[n] >= sampling.min_p * share.max() * (1 - 1e-6)]


@pytest.mark.parametrize("sampling", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
def test_kept_tokens_are_those_of_the_definitions(scores, sampling):
    found = np.asarray(filter_scores(sampling, jnp.asarray(scores)))
    for row, left in zip(scores, found, strict=True):
        ids = reference(sampling, row)
        assert np.flatnonzero(left > -np.inf).tolist() == ids
        np.testing.assert_allclose(left[ids], row[ids] / sampling.temperature, rtol=1e-6)


def test_top_p_drops_tokens_that_sum_to_exactly_the_rest():
    scores = np.log(np.array([[0.5, 0.25, 0.125, 0.125]], np.float32))
    kept = filter_scores(SamplingConfig(temperature=1.0, top_p=0.75), jnp.asarray(scores))
    assert np.flatnonzero(np.asarray(kept)[0] > -np.inf).tolist() == [0, 1]


def test_kept_tokens_are_those_of_transformers():
    torch, process = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.generation.logits_process"),
    )
    for scores in SCORES.values():
        for sampling in CONFIGS.values():
            theirs = process.TemperatureLogitsWarper(sampling.temperature)(
                None, torch.from_numpy(scores)
            )
            if sampling.top_k is not None:
                theirs = process.TopKLogitsWarper(sampling.top_k)(None, theirs)
            if sampling.top_p < 1:
                theirs = process.TopPLogitsWarper(sampling.top_p)(None, theirs)
            theirs = process.MinPLogitsWarper(sampling.min_p)(None, theirs).numpy()
            ours = np.asarray(filter_scores(sampling, jnp.asarray(scores)))
            # Which of equally likely tokens top-p keeps is up to the sort there:
            # as many are kept, equally likely.
            np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=1e-6)


def test_repetitions_are_penalised_as_in_transformers():
    torch, process = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.generation.logits_process"),
    )
    tokens, lengths = RANDOM.integers(0, 40, (5, 12)), np.array([12, 1, 5, 0, 7])
    scores = SCORES["random"]
    ours = np.asarray(penalize_repetitions(scores, seen_tokens(tokens, lengths, 40), 1.7))
    for row in range(5):
        ids = torch.from_numpy(tokens[row : row + 1, : lengths[row]])
        theirs = process.RepetitionPenaltyLogitsProcessor(1.7)(
            ids, torch.from_numpy(scores[row : row + 1])
        )
        np.testing.assert_allclose(ours[row], theirs[0].numpy(), rtol=1e-6)
    assert (ours != scores).any() and (ours[3] == scores[3]).all()


def test_the_likeliest_token_is_taken_at_temperature_0():
    scores = SCORES["random"]
    found = sample_tokens(SamplingConfig(top_k=3), scores, jax.random.key(0), np.arange(5), 0)
    assert np.array_equal(found, scores.argmax(axis=1))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-6, 1e-9, 1e-12, 1e-38, 1e-40, 5e-324])
@pytest.mark.parametrize("vocabulary_size", [40, 257, 4096])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature, vocabulary_size):
    scores = (RANDOM.normal(size=(9, vocabulary_size)) * 20).astype(np.float32)
    scores[:, 1] = -np.inf  # a token that is forbidden
    for jitted in (False, True):

        def draw(scores):
            sampling = SamplingConfig(temperature=temperature)
            return sample_tokens(sampling, scores, jax.random.key(0), np.arange(9), 0)

        found = (jax.jit(draw) if jitted else draw)(jnp.asarray(scores))
        assert np.array_equal(found, scores.argmax(axis=1))


@pytest.mark.filterwarnings("error")
def test_a_huge_temperature_draws_any_token_that_is_allowed():
    scores = np.where(np.arange(8) < 4, SCORES["random"][:1, :8], -np.inf).astype(np.float32)
    scores = jnp.broadcast_to(jnp.asarray(scores), (400, 8))
    for temperature in (1e30, 1e39, 1e300):
        sampling = SamplingConfig(temperature=temperature, repetition_penalty=1e39)
        found = sample_tokens(sampling, scores, jax.random.key(0), np.arange(400), 0)
        assert set(np.asarray(found).tolist()) == {0, 1, 2, 3}
        penalized = penalize_repetitions(scores, jnp.ones((400, 8), bool), temperature)
        assert np.array_equal(np.isfinite(penalized), np.isfinite(scores))


def test_a_draw_does_not_depend_on_the_level_of_the_scores():
    """At a low temperature the rounding of high scores would exceed their differences."""
    scores = np.broadcast_to(np.arange(8, dtype=np.float32) / 2**14, (400, 8))
    low, high = (
        sample_tokens(
            SamplingConfig(temperature=1e-4),
            jnp.asarray(level + scores),  # without rounding
            jax.random.key(0),
            np.arange(400),
            0,
        )
        for level in (np.float32(0), np.float32(1000))
    )
    assert np.array_equal(low, high) and len(set(np.asarray(low).tolist())) > 3


def drawn(rows, seed=0, position=0, sampling=CONFIGS["all"]):
    scores = np.broadcast_to(SCORES["random"][:1], (len(rows), 40))
    return np.asarray(
        sample_tokens(sampling, scores, jax.random.key(seed), np.asarray(rows, np.int32), position)
    )


def test_a_draw_is_decided_by_seed_row_and_position():
    first = drawn(range(64))
    assert np.array_equal(first, drawn(range(64)))
    assert np.array_equal(first[[9, 3]], drawn([9, 3]))  # another batch
    assert (first != drawn(range(64), seed=1)).any() and (
        first != drawn(range(64), position=1)
    ).any()
    assert len(set(first.tolist())) > 3


def test_draws_have_the_scores_probabilities():
    draws = (
        np.bincount(
            drawn(range(20_000), sampling=SamplingConfig(temperature=0.8, top_k=6)), minlength=40
        )
        / 20_000
    )
    left = np.asarray(
        filter_scores(SamplingConfig(temperature=0.8, top_k=6), SCORES["random"][:1])
    )[0]
    expected = probabilities(left)
    # Five standard errors of a share.
    assert (np.abs(draws - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()


def test_a_pick_is_where_the_sum_of_probabilities_passes_the_number():
    shares = RANDOM.random((1, 1000)) * (RANDOM.random((1, 1000)) < 0.1)
    shares = (shares / shares.sum()).astype(np.float32)
    numbers = np.concatenate(
        [np.linspace(0, 1, 5000, endpoint=False), [np.nextafter(np.float32(1), np.float32(0))]]
    ).astype(np.float32)
    found = np.asarray(pick_tokens(np.broadcast_to(shares, (len(numbers), 1000)), numbers))
    sums = np.cumsum(shares[0].astype(np.float64))
    assert (shares[0][found] > 0).all()
    # Where a number is within rounding of a sum, either side will do.
    assert (sums[found] > numbers * sums[-1] - 1e-6).all() and (
        sums[found] - shares[0][found] <= numbers * sums[-1] + 1e-6
    ).all()
    assert set(found.tolist()) >= set(
        np.flatnonzero(shares[0] > 1 / 4000).tolist()
    )  # a number comes every 5000th
