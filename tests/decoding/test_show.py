"""The samples of a training run: what the model writes, and how it is shown."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from support import tiny
from support.tiny_models import WholeContext, lively_params

from jaxlm import config, decoding, models
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding import show
from jaxlm.types import Batch

TOKENIZER = byte_tokenizer(SpecialTokens("<end>", pad="<pad>", mask="<mask>", sentinels=3))
END, MASK = TOKENIZER.end_of_text, TOKENIZER.vocabulary.mask
FIRST = TOKENIZER.vocabulary.sentinels[0]
GREEDY = config.EvaluationConfig(
    samples=2, sample_tokens=10, sample_temperature=0.0, sample_prompt="It was"
)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).tolist()


@cache
def setup(family):
    """(config, lively parameters, batch) of a tiny model; ids above 261 are no tokens."""
    run_config = tiny.FAMILIES[family]
    model = models.build(run_config.model)
    return run_config, lively_params(model), tiny.batch(0, run_config)._replace(token_types=None)


def sampled(family, evaluation=GREEDY, window=32, seed=0, devices=1, precision=None, **parallel):
    run_config, params, batch = setup(family)
    run_config = replace(run_config, precision=precision or run_config.precision)
    parts = tiny.parts(devices, run_config, **parallel)
    shapes = jax.eval_shape(parts.model.init, jax.random.key(0))
    params = jax.device_put(params, parts.placement.tree("parameters", shapes))
    return decoding.samples(parts.model, params, TOKENIZER, evaluation, window, [batch], seed)


# --- what is written ---


@pytest.mark.parametrize("window", [32, 8])
def test_a_decoder_continues_the_prompt_as_it_would_read_it(window):
    """Within the window greedily; beyond it from the last half of the window on."""
    run_config, params, _ = setup("decoder")
    reference = WholeContext(models.build(run_config.model), params, width=32)
    context, new = np.array([END, *ids("It was")], np.int32), []
    for _ in range(10):
        if len(context) > window:
            context = context[-(window // 2) :]
        new.append(int(reference.scores(context).argmax()))
        context = np.append(context, new[-1]).astype(np.int32)
    assert END not in new and len(set(new)) > 3
    texts = sampled("decoder", window=window)
    assert texts == ["It was" + TOKENIZER.decode(new)] * 2


def test_texts_stop_at_the_end_of_text_and_are_drawn_by_the_seed():
    evaluation = replace(GREEDY, samples=8, sample_tokens=20, sample_temperature=3.0)
    texts = sampled("decoder", evaluation, window=16)
    assert texts == sampled("decoder", evaluation, window=16)
    assert texts != sampled("decoder", evaluation, window=16, seed=1)
    assert len(set(texts)) == 8 and all(text.startswith("It was") for text in texts)


def test_past_the_window_rows_draw_other_numbers_and_end_alone():
    run_config, params, _ = setup("decoder")
    engine = show.Engine(models.build(run_config.model), params, show.StopTokens(tuple(range(10))))
    flat = show.SamplingConfig(temperature=1e6)
    arguments = {"count": 8, "new_tokens": 24, "window": 8, "sampling": flat, "seed": 0}
    rows = show.continue_beyond_window(engine, np.array([99], np.int32), **arguments)
    lengths = [len(row) for row in rows]
    assert max(lengths) == 24 and min(lengths) < 13
    for row in rows:
        stops = np.flatnonzero(row < 10).tolist()
        assert stops in ([], [len(row) - 1]) and (stops or len(row) == 24)
        # The second and the third window add 5 tokens each.
        assert len(row) < 18 or row[8:13].tolist() != row[13:18].tolist()


def test_masks_are_filled_with_the_likeliest_token():
    run_config, params, batch = setup("encoder")
    model = models.build(run_config.model)
    logits = jax.jit(model.apply)(params, batch._replace(predict=None))
    everywhere = np.asarray(logits).argmax(axis=-1)
    guesses = show.guess_masked(model, params, batch)
    for row, guessed in enumerate(guesses):
        counts = batch.weights[row] > 0
        assert guessed.tolist() == everywhere[row][batch.predict[row]][counts].tolist()


def test_targets_are_the_likeliest_at_every_token():
    """Read again as inputs, the written tokens are what the model predicts at each place."""
    run_config, params, batch = setup("encoder_decoder")
    model = models.build(run_config.model)
    written = np.stack(show.write_targets(model, params, batch, end_of_text=-1))
    assert written.shape == batch.tokens.shape and len(np.unique(written)) > 3
    again = np.concatenate([batch.tokens[:, :1], written[:, :-1]], axis=1)
    expected = jax.jit(model.apply)(params, batch._replace(tokens=again)).argmax(axis=-1)
    assert np.array_equal(expected, written)


@pytest.mark.parametrize(
    "family", ["decoder", "encoder", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_samples_of_a_sharded_model_are_those_of_one_device(family):
    evaluation = replace(GREEDY, sample_temperature=0.5)
    one = sampled(family, evaluation)
    assert sampled(family, evaluation, devices=8, zero=3) == one and len(one) == 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_samples_in_bfloat16(family):
    texts = sampled(family, precision=config.PrecisionConfig(compute="bfloat16"))
    assert len(texts) == 2
    assert texts[0] == texts[1] if family == "decoder" else texts[0] != texts[1]


# --- how it is shown ---


def test_filled_masks_are_marked_with_what_the_text_has():
    tokens = [*ids("a b"), MASK, *ids("d"), 0xC3, 0xA9, MASK]
    batch = Batch(
        tokens=np.array([tokens], np.int32),
        predict=np.array([[3, 7, 0]]),
        targets=np.array([[*ids("c"), *ids("f"), 0]]),
        weights=np.array([[1.0, 1.0, 0.0]]),
    )
    guesses = [np.array([*ids("c"), *ids("x")])]
    shown = show.describe_filled_masks(TOKENIZER, batch, guesses)
    assert shown == ["a b«c»dé«x|f»\n(1 of 2 right)"]


def describe(source, target, written, source_length=None):
    batch = Batch(
        tokens=np.zeros((1, len(target)), np.int32),
        source=np.array([source]),
        source_lengths=None if source_length is None else np.array([source_length]),
        targets=np.array([target]),
        weights=np.ones((1, len(target))),
    )
    (text,) = show.describe_written_targets(TOKENIZER, batch, [np.array(written)])
    return text.splitlines()


def test_written_spans_are_shown_in_their_places():
    source = [*ids("one "), FIRST, *ids(" three "), FIRST - 1, END]
    assert describe(
        source=[*source, 257, 257],
        source_length=len(source),
        target=[FIRST, *ids("two"), FIRST - 1, *ids("four"), END],
        written=[FIRST, *ids("2"), FIRST - 1, *ids("vier")],
    ) == [
        "source: one <extra_id_0> three <extra_id_1><end>",
        "written: <extra_id_0>2<extra_id_1>vier",
        "target: <extra_id_0>two<extra_id_1>four<end>",
        "filled: one «2» three «vier»<end>",
    ]


def test_text_written_for_masks_is_marked():
    lines = describe(
        source=[*ids("one "), MASK, *ids(" three"), MASK, END],
        target=[*ids("one two three four"), END],
        written=ids("one 2 three vier"),
    )
    assert lines[-1] == "filled: one «2» three« vier»"


def test_targets_without_spans_have_no_places():
    lines = describe(source=ids("ja"), target=[*ids("no"), END], written=ids("yes"))
    assert lines == ["source: ja", "written: yes", "target: no<end>"]
