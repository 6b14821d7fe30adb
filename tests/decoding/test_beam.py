"""Beam search against a search of all continuations; test_against_transformers.py has the rest."""

import jax
import numpy as np
import pytest
from support.tiny_models import VOCABULARY, build_tiny, random_prompts

from jaxlm import generate, models
from jaxlm.config import UserError
from jaxlm.decoding.beam import MOST_LENGTH_PENALTY, BeamConfig, BeamSearch, length_powers
from jaxlm.decoding.engine import Engine, StopTokens
from jaxlm.types import Batch

PROMPTS = random_prompts([6, 4])


def log_probabilities(model, params, contexts):
    logits = jax.jit(model.apply)(params, Batch(tokens=np.stack(contexts)))
    return np.asarray(jax.nn.log_softmax(logits[:, -1]), np.float64)


@pytest.mark.parametrize("length_penalty", [pytest.param(0.0, marks=pytest.mark.slow), 4.0])
def test_the_best_of_all_continuations_of_two_tokens_is_found(length_penalty):
    """A beam for each token cuts nothing; the likeliest first token ends a text."""
    model, params = build_tiny("learned")
    for prompt in PROMPTS:
        (first,) = log_probabilities(model, params, [prompt])
        contexts = [np.append(prompt, token).astype(np.int32) for token in range(VOCABULARY)]
        second = log_probabilities(model, params, contexts)

        stop = int(first.argmax())
        scores = {(stop,): first[stop]}
        for token in range(VOCABULARY):
            if token != stop:
                best = int(second[token].argmax())
                total = first[token] + second[token, best]
                scores[token, best] = total / 2**length_penalty

        engine = Engine(model, models.unstacked(params), StopTokens((stop,)))
        config = BeamConfig(beams=VOCABULARY, length_penalty=length_penalty)
        (row,) = BeamSearch(engine, config).generate([prompt], [2])
        assert tuple(row.tolist()) == max(scores, key=scores.get)
        assert len(row) == (1 if length_penalty == 0 else 2)


@pytest.mark.parametrize("length_penalty", [-30.0, -4.0, -1.0, 0.0, 0.7, 1.0, 30.0])
@pytest.mark.parametrize("room", [16, 128, 1024])
def test_the_divisors_of_all_lengths_stay_in_order(length_penalty, room):
    powers = length_powers(length_penalty, room)
    assert powers.dtype == np.float32 and np.isfinite(powers).all() and (powers > 0).all()
    assert (np.sign(np.diff(powers)) == np.sign(length_penalty)).all() or room == 1024
    if abs(length_penalty) <= 1:  # a power of two away from the plain ones: no digit differs
        plain = np.arange(1, room + 1, dtype=np.float64) ** length_penalty
        ratios = powers / plain.astype(np.float32)
        assert (ratios == ratios[0]).all() and np.log2(ratios[0]) % 1 == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("length_penalty", "ends_early"), [(-30.0, True), (-30.0, False), (30.0, True)]
)
def test_extreme_length_penalties_decide_by_the_length(length_penalty, ends_early):
    """Where no text may end early, the longest is the best, however low its score is."""
    model, params = build_tiny("learned")
    (prompt, _), engine = PROMPTS, None
    free = Engine(model, models.unstacked(params), StopTokens(()))
    (first,) = log_probabilities(model, params, [prompt])
    # The third likeliest token is likely enough to end one of the first beams.
    stop = int(np.argsort(-first)[2])
    engine = Engine(model, free.params, StopTokens((stop,) if ends_early else ()))
    config = BeamConfig(beams=4, length_penalty=length_penalty, early_stopping="never")
    (row,) = BeamSearch(engine, config).generate([prompt], [56])
    if ends_early:
        assert (len(row) == 1) if length_penalty < 0 else (len(row) > 1)
    else:
        assert len(row) == 56


def test_a_length_penalty_has_bounds():
    model, params = build_tiny("learned")
    engine = Engine(model, models.unstacked(params), StopTokens(()))
    for length_penalty in (400.0, -31.0, float("nan")):
        with pytest.raises(UserError, match="--length-penalty: must be between -30 and 30"):
            BeamSearch(engine, BeamConfig(length_penalty=length_penalty))
    assert generate.MOST_LENGTH_PENALTY == MOST_LENGTH_PENALTY
