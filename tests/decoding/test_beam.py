"""Beam search against a search of all continuations; test_against_transformers.py has the rest."""

import jax
import numpy as np
import pytest
from support.tiny_models import VOCABULARY, build_tiny, random_prompts

from jaxlm import models
from jaxlm.decoding.beam import BeamConfig, BeamSearch
from jaxlm.decoding.engine import Engine, StopTokens
from jaxlm.types import Batch

PROMPTS = random_prompts([6, 4])


def log_probabilities(model, params, contexts):
    logits = jax.jit(model.apply)(params, Batch(tokens=np.stack(contexts)))
    return np.asarray(jax.nn.log_softmax(logits[:, -1]), np.float64)


@pytest.mark.parametrize("length_penalty", [0.0, 4.0])
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
