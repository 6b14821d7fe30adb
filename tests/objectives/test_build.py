"""Test the rules that hold for every objective."""

import numpy as np
import pytest
from support.texts import END, FRAMED, VOCABULARY, build_objective, make_batch, random_windows

from jaxlm import config, objectives
from jaxlm.config import ConfigError

LENGTH = 24
CASES = {
    "causal": dict(kind="causal"),
    "prefix": dict(kind="prefix"),
    "fill_in_the_middle": dict(kind="fill_in_the_middle"),
    "masked": dict(kind="masked"),
    "masked, framed": dict(kind="masked", vocabulary=FRAMED),
    "masked, whole words": dict(kind="masked", whole_words=True, noise_share=0.4),
    "span": dict(kind="span", noise_share=0.4, mean_span=2.0),
    "infilling": dict(kind="infilling"),
    "infilling, framed": dict(kind="infilling", vocabulary=FRAMED, shuffle_sentences=False),
    "pairs": dict(kind="pairs", target_length=10),
    "mixture_of_denoisers": dict(kind="mixture_of_denoisers"),
    "mixture": dict(
        kind="mixture",
        parts=(
            config.ObjectiveConfig(kind="prefix", weight=2.0),
            config.ObjectiveConfig(kind="causal"),
            config.ObjectiveConfig(kind="fill_in_the_middle"),
        ),
    ),
    "mixture of lengths": dict(
        kind="mixture",
        parts=(
            config.ObjectiveConfig(kind="span", denoiser="R", decoder_start="end_of_text"),
            config.ObjectiveConfig(kind="infilling", weight=3.0),
        ),
    ),
}
RANDOM = [name for name in CASES if name not in ("causal", "pairs")]


VARYING = {  # the field that differs from sample to sample; "source" in other objectives
    "prefix": "prefix_lengths",
    "fill_in_the_middle": "tokens",
    "masked": "tokens",
    "mixture": "prefix_lengths",
}


def built(name):
    return build_objective(length=LENGTH, **CASES[name])


def fields(batch):
    return {name: value for name, value in batch._asdict().items() if value is not None}


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_formats_are_as_announced(name):
    objective = built(name)
    text = random_windows(objective, 5, ends=0.1)
    before = text.copy()
    batch = fields(make_batch(objective, text))
    assert np.array_equal(text, before)
    shapes = {"tokens": objective.length, "source": objective.source_length}
    shapes |= dict.fromkeys(("predict", "targets", "weights"), objective.predictions)
    for field, value in batch.items():
        assert value.dtype == (np.float32 if field == "weights" else np.int32), field
        assert value.flags.c_contiguous, field
        assert value.shape == ((5, shapes[field]) if field in shapes else (5,)), field
    assert ("source" in batch) == (objective.source_length > 0)
    assert set(np.unique(batch["weights"])) <= {0, 1}
    assert objective.tokens == LENGTH + (objective.length if objective.source_length else 0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "vocabulary" not in case])
def test_the_example_has_the_shapes_of_a_batch(name):
    example = objectives.example(
        config.ObjectiveConfig(**CASES[name]), LENGTH, len(VOCABULARY.sentinels)
    )
    batch = make_batch(built(name), random_windows(built(name), 1))
    assert {n: (a.shape, a.dtype) for n, a in fields(example).items()} == {
        n: (a.shape, a.dtype) for n, a in fields(batch).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_a_sample_does_not_depend_on_its_batch(name):
    objective = built(name)
    text = random_windows(objective, 7, ends=0.1)
    together = fields(make_batch(objective, text, first_sample=100, seed=3))
    first = fields(make_batch(objective, text[:2], first_sample=100, seed=3))
    rest = fields(make_batch(objective, text[2:], first_sample=102, seed=3))
    backwards = fields(objective.make_batch(text[::-1], 100 + np.arange(7)[::-1], 3))

    for field, value in together.items():
        assert np.array_equal(np.concatenate([first[field], rest[field]]), value), field
        assert np.array_equal(backwards[field][::-1], value), field


@pytest.mark.parametrize("name", RANDOM)
def test_another_visit_or_seed_draws_anew(name):
    objective = built(name)
    text = np.repeat(random_windows(objective, 1), 80, axis=0)
    varying = VARYING.get(name.partition(",")[0], "source")
    assert objective.random
    first, second = (fields(make_batch(objective, text, seed=seed))[varying] for seed in (0, 1))
    assert len(np.unique(first, axis=0)) > 10
    assert not np.array_equal(first, second)


# Prefix lengths, or what the model reads first of the text 300, 301, ...
GOLDEN = {
    "prefix": "2 15 20 17 8 21 17 16 16 11 21 8",
    "fill_in_the_middle": "1000 1002 306 307 308 1001 300 301 302 303 304 305 0"
    " 1000 1002 315 316 317 1001 310 311 312 313 314",
    "masked": "3 301 302 303 304 305 306 307 308 0 310 311 312 313"
    " 314 315 316 3 318 319 3 321 322 323",
    "masked, framed": "1 3 301 302 303 304 305 306 307 308 0 310 311 312 313"
    " 314 315 316 3 318 319 3 321 0",
    "masked, whole words": "3 301 302 303 304 305 306 307 308 0 310 311 312 3 3"
    " 315 3 3 3 319 3 321 322 323",
    "span": "300 4 303 304 305 306 5 308 0 6 314 315 7 317 318 319 8 321 322 323 324 325 9 0",
    "infilling": "300 301 302 303 304 3 0 3 322 323 310 311 312 313 314 315 316 317 318 3 2 2 2 2",
    "infilling, framed": "1 300 301 302 303 304 3 0 3 312 313 314 315 316 317 318"
    " 319 320 321 0 2 2 2 2",
    "mixture_of_denoisers": "1005 300 301 302 303 304 305 306 307 308 0 310 311"
    " 4 325 326 327 328 329 330 331 332 5 0",
    "mixture": "0 15 0 0 0 21 0 0 16 0 0 8",
    "mixture of lengths": "300 301 302 303 304 3 0 3 322 323 310 311 312 313 314 315 316 317"
    " 318 3 2 2 2 2",
}


@pytest.mark.parametrize("name", RANDOM)
def test_draws_are_fixed_for_ever(name):
    """A run that resumes must see the same samples."""
    objective = built(name)
    text = np.tile(300 + np.arange(objective.window, dtype=np.int32), (12, 1))
    text[:, 9] = END
    batch = make_batch(objective, text, first_sample=5, seed=11)

    if VARYING.get(name) == "prefix_lengths":
        drawn = batch.prefix_lengths
    else:
        drawn = batch.tokens[0] if batch.source is None else batch.source[0]
    assert " ".join(map(str, drawn.tolist())) == GOLDEN[name]


@pytest.mark.parametrize(
    ("key", "length", "case"),
    [
        ("data.sequence_length", 1, dict(kind="prefix")),
        ("data.sequence_length", 2, dict(kind="masked", vocabulary=FRAMED)),
        ("data.sequence_length", 2, dict(kind="span")),
        ("data.sequence_length", 2, dict(kind="infilling", vocabulary=FRAMED)),
        ("data.sequence_length", 10, dict(kind="infilling", noise_share=0.01)),
        ("objective.mean_span", 20, dict(kind="infilling", mean_span=0.5)),
        ("objective.mean_span", 20, dict(kind="span", noise_share=0.8, mean_span=1.0)),
        ("objective.noise_share", 20, dict(kind="span", noise_share=1 - 1e-7, mean_span=1e9)),
        (
            "tokenizer.sentinels",
            512,
            dict(kind="span", vocabulary=VOCABULARY._replace(sentinels=VOCABULARY.sentinels[:27])),
        ),
    ],
)
def test_sizes_that_make_no_sense_are_refused(key, length, case):
    with pytest.raises(ConfigError) as raised:
        build_objective(length=length, **case)
    assert raised.value.path == key


SMALLEST = {
    "causal": 1,
    "prefix": 2,
    "fill_in_the_middle": 1,
    "masked": 1,
    "span": 3,
    "infilling": 2,
    "pairs": 1,
    "mixture_of_denoisers": 6,
}


@pytest.mark.parametrize(("kind", "length"), SMALLEST.items())
def test_the_smallest_sizes_work(kind, length):
    objective = build_objective(kind, length)
    batch = make_batch(objective, random_windows(objective, 3))
    assert batch.tokens.shape == (3, objective.length)


def test_as_many_sentinels_as_spans_are_enough():
    objective = build_objective(
        "span", 512, VOCABULARY._replace(sentinels=VOCABULARY.sentinels[:28])
    )
    assert objective.window == 568
