"""Decisions of the loop over the steps that need no run."""

import contextlib
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import training_loop
from jaxlm.config import DivergedError
from jaxlm.evaluation.evaluator import Evaluator, fills_batches
from jaxlm.step import StepMetrics
from jaxlm.training_loop import (
    TrainingLoop,
    best_saves_allowed,
    is_due,
    parameter_norm,
    require_finite,
)


@pytest.mark.parametrize(("step", "every", "due"), [(6, 3, True), (7, 3, False), (7, 0, False)])
def test_what_is_due(step, every, due):
    assert is_due(step, every) == due


def test_the_norm_shows_parameters_that_are_no_use():
    """Also finite ones whose products would overflow, in bfloat16 too."""
    sound = {"a": jnp.full((3,), 2.0), "b": {"c": jnp.full((1, 4), 1.0, jnp.bfloat16)}}
    assert parameter_norm(sound) == 4.0
    for bad in (np.nan, np.inf, 1e38):
        params = sound | {"b": {"c": jnp.full((1, 4), bad, jnp.bfloat16)}}
        with pytest.raises(DivergedError, match=r"the norm is (nan|inf) after step 3"):
            require_finite("norm", float(parameter_norm(params)), 3)


def test_a_step_waits_for_its_tokens_until_a_signal_stops_it(monkeypatch):
    monkeypatch.setattr(training_loop, "WAIT_SECONDS", 0)
    lines: list[str] = []
    ready, growing = [False, False, True, False, True], [True] * 4 + [False]
    loop = SimpleNamespace(
        is_growing=True,
        stream=Found(ready, growing),
        group=SimpleNamespace(share=lambda topic, value: value),
        monitor=SimpleNamespace(line=lines.append),
    )
    stop = SimpleNamespace(reached=lambda: False)
    assert TrainingLoop.await_tokens(cast(Any, loop), 1, cast(Any, stop))
    assert loop.is_growing and lines == ["step 1 waits for its tokens: the store is being built"]

    stop.reached = lambda: True
    assert not TrainingLoop.await_tokens(cast(Any, loop), 2, cast(Any, stop))
    assert TrainingLoop.await_tokens(cast(Any, loop), 2, cast(Any, stop))
    assert not loop.is_growing and lines[-1] == "step 2: the store has all its tokens"


class Found:
    """A stream that finds what it is told, one look after the other."""

    def __init__(self, ready: list[bool], growing: list[bool]):
        self.ready, self.growing = iter(ready), iter(growing)

    @property
    def is_growing(self) -> bool:
        return next(self.growing)

    def is_ready(self, step: int) -> bool:
        return next(self.ready)


@pytest.mark.parametrize(
    ("saves", "seconds", "elapsed", "allowed"),
    [
        (0, 0.0, 0.0, True),
        (500, 0.05, 10.0, True),  # a minute in all is always allowed
        (1, 60.0, 100.0, False),
        (0, 59.0, 100.0, True),
        (9, 100.0, 20_000.0, True),  # 1,000 s are 5% of it
        (10, 100.0, 20_000.0, False),
    ],
)
def test_better_models_are_saved_as_long_as_there_is_time(saves, seconds, elapsed, allowed):
    assert (saves < best_saves_allowed(seconds, elapsed)) == allowed
    lines: list[str] = []
    loop = SimpleNamespace(
        checkpoints=SimpleNamespace(save_seconds=lambda: seconds, ranked_by="eval/loss"),
        throughput=SimpleNamespace(elapsed=lambda: elapsed),
        group=SimpleNamespace(share=lambda topic, value: value),
        monitor=SimpleNamespace(line=lines.append),
        best_saves=saves,
    )
    assert TrainingLoop.affords_best(cast(Any, loop), 7) == allowed
    assert len(lines) == (not allowed)
    assert allowed or lines[0].startswith("step 7: the lowest loss so far, but not saved: at ")


def evaluator(**objective) -> Evaluator:
    """Return an evaluator that only describes what was measured."""
    made = Evaluator.__new__(Evaluator)
    made.config = cast(Any, SimpleNamespace(objective=SimpleNamespace(**objective)))
    made.sources = []
    return made


def test_targets_of_one_kind_are_no_yardstick():
    masked = evaluator(kind="masked", whole_words=False)
    scores = {"eval/loss": 0.25, "eval/unigram_entropy": 0.0, "eval/targets": 40}
    assert not masked.is_ranked(scores)
    expected = "loss 0.2500 (the 40 targets are all the same token: this says nothing)"
    assert masked.describe(scores) == expected
    assert masked.is_ranked(scores | {"eval/unigram_entropy": 1.0})


def test_a_loss_that_says_nothing_makes_no_checkpoint_the_best():
    scores = {"eval/loss": 0.25, "eval/unigram_entropy": 0.0, "eval/targets": 40}
    rated: list[dict] = []
    loop = SimpleNamespace(
        evaluator=SimpleNamespace(describe=str, is_ranked=lambda scores: False),
        score=lambda state, stop: scores,
        throughput=SimpleNamespace(paused=lambda outputs: contextlib.nullcontext()),
        monitor=SimpleNamespace(scalars=lambda step, scores: None, line=lambda text: None),
        group=SimpleNamespace(share=lambda topic, value: value),
        checkpoints=SimpleNamespace(
            is_saving=lambda: False,
            rate=lambda step, scores, now: rated.append(scores),
            cost=lambda scores: scores.get("eval/loss", np.inf),
        ),
        lowest_cost=1.0,
    )
    state, stop = SimpleNamespace(params=None), SimpleNamespace(reached=lambda: False)
    assert TrainingLoop.evaluate(cast(Any, loop), 4, cast(Any, state), cast(Any, stop))
    assert rated == [{"eval/unigram_entropy": 0.0, "eval/targets": 40}] and loop.lowest_cost == 1.0


def test_a_state_is_only_saved_if_it_computes_a_loss():
    """Its parameters may be finite and its last step sound, and their products overflow."""
    losses = {"empty": 0.0, "sound": 2.0, "overflows": np.nan}
    masked = evaluator(kind="masked", whole_words=False)

    def score(params, source, stop, batches):
        return SimpleNamespace(loss=losses[source.name] if batches == 1 else 0.0, detection=None)

    cast(Any, masked)._score = score
    loop = SimpleNamespace(
        evaluator=masked,
        throughput=SimpleNamespace(paused=lambda outputs: contextlib.nullcontext()),
        parameter_norm=lambda params: jnp.float32(1.0),
    )
    metrics = StepMetrics(jnp.float32(2.0), jnp.float32(1.0), jnp.float32(1.0))
    check = partial(TrainingLoop.check, cast(Any, loop), 4, None, metrics)

    def source(name, samples):
        return cast(Any, SimpleNamespace(name=name, windows=SimpleNamespace(samples=samples)))

    masked.sources = [source("empty", 0), source("sound", 3), source("overflows", 3)]
    check()
    masked.sources = [source("empty", 0), source("overflows", 3)]
    with pytest.raises(DivergedError, match="the validation loss is nan after step 4"):
        check()


def test_nothing_to_predict_is_no_loss_of_zero():
    masked = evaluator(kind="span", whole_words=False)
    assert not masked.is_ranked({"eval/targets": 0})
    assert masked.describe({"eval/targets": 0}) == "without targets"


@pytest.mark.parametrize(
    ("parts", "together", "fills"),
    [([5], 5, True), ([1, 1], 1, True), ([4, 4, 4], 10, True), ([1] * 1000, 75, False)],
)
def test_sources_have_batches_of_their_own_unless_most_would_be_empty(parts, together, fills):
    batches = [cast(Any, range(count)) for count in parts]
    assert fills_batches(batches, cast(Any, range(together))) == fills
