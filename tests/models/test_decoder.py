"""The reach of a decoder's logits, its padded vocabulary, its dtypes and its dropout."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.trees import random_params

from jaxlm import config, models
from jaxlm.losses import loss_sums
from jaxlm.types import Batch, is_axes

VOCABULARY, LENGTH = 61, 9
TINY = config.ModelConfig(
    vocabulary_size=VOCABULARY,
    layers=1,
    width=24,
    heads=2,
    context_length=LENGTH,
    initializer="fan_in",
)
ROTARY = replace(TINY, positions="rotary", kv_heads=1, norm="rmsnorm", gated=True)


def reach(model: config.ModelConfig, **fields) -> np.ndarray:
    """bool [L, L]: [q, k] is whether the logits at q change with the token at k."""
    built = models.build(model)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY - 1, LENGTH, np.int32)
    changed = tokens + np.eye(LENGTH, dtype=np.int32)
    rows = np.concatenate([tokens[None], changed])
    fields = {
        name: np.broadcast_to(np.asarray(value, np.int32), (LENGTH + 1, *np.shape(value)))
        for name, value in fields.items()
    }
    logits = np.asarray(jax.jit(built.apply)(random_params(built), Batch(rows, **fields)))
    # What can't be seen contributes exact zeros, what can be seen more than rounding (1e-6).
    return (np.abs(logits[1:] - logits[0]).max(-1) > 1e-5).T


def grid(rule: Any) -> np.ndarray:
    """A position always depends on its own token: the residual path."""
    return np.array([[q == k or bool(rule(q, k)) for k in range(LENGTH)] for q in range(LENGTH)])


SEGMENTS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])

REACHES: dict[str, tuple[config.ModelConfig, dict, Any]] = {
    "learned": (TINY, {}, lambda q, k: k <= q),
    "alibi": (replace(TINY, positions="alibi", heads=3), {}, lambda q, k: k <= q),
    "sinusoidal, post-norm": (
        replace(TINY, positions="sinusoidal", norm_placement="post"),
        {},
        lambda q, k: k <= q,
    ),
    "rotary": (ROTARY, {}, lambda q, k: k <= q),
    "window": (replace(ROTARY, sliding_window=3), {}, lambda q, k: q - 2 <= k <= q),
    "two layers, window": (
        replace(ROTARY, layers=2, sliding_window=3),
        {},
        lambda q, k: q - 4 <= k <= q,
    ),
    "prefix": (ROTARY, {"prefix_lengths": 4}, lambda q, k: k <= q or k < 4),
    "segments": (
        ROTARY,
        {"segments": SEGMENTS},
        lambda q, k: k <= q and SEGMENTS[q] == SEGMENTS[k],
    ),
    "lengths": (ROTARY, {"lengths": 6}, lambda q, k: k <= q and k < 6),
}


@pytest.mark.parametrize("name", REACHES)
def test_reach(name):
    model, fields, rule = REACHES[name]
    np.testing.assert_array_equal(reach(model, **fields), grid(rule))


@pytest.mark.parametrize("positions", ["learned", "rotary", "alibi"])
def test_packed_documents_equal_separate_ones(positions):
    """Row 0 is two documents in one; rows 1 and 2 have one each.

    What follows it there a causal model can't see.
    """
    model = models.build(replace(TINY, positions=positions))
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (3, LENGTH), np.int32)
    tokens[1, :4], tokens[2, :5] = tokens[0, :4], tokens[0, 4:]
    segments, within = (
        np.zeros((3, LENGTH), np.int32),
        np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1)),
    )
    segments[0, 4:], within[0, 4:] = 1, np.arange(5)
    packed, first, second = np.asarray(
        jax.jit(model.apply)(
            random_params(model), Batch(tokens, segments=segments, positions=within)
        )
    )
    np.testing.assert_allclose(packed, np.concatenate([first[:4], second[:5]]), atol=1e-5)


def test_rotary_logits_do_not_see_absolute_positions():
    model = models.build(ROTARY)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (1, LENGTH), np.int32)
    here = np.arange(LENGTH, dtype=np.int32)
    logits = np.asarray(
        jax.jit(model.apply)(
            random_params(model),
            Batch(np.tile(tokens, (3, 1)), positions=np.stack([here, here + 20, 2 * here])),
        )
    )
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-5)
    assert np.abs(logits[2] - logits[0]).max() > 0.01


def test_more_tokens_than_learned_positions_is_an_error():
    model = models.build(TINY)
    with pytest.raises(ValueError, match="10 tokens, but the table of positions has 9 rows"):
        jax.eval_shape(
            model.apply,
            jax.eval_shape(model.init, jax.random.key(0)),
            Batch(np.zeros((1, LENGTH + 1), np.int32)),
        )
    assert reach(replace(ROTARY, context_length=4)).shape == (LENGTH, LENGTH)


HEADS = {
    "tied": TINY,
    "tied, bias, soft-cap": replace(TINY, head_bias=True, logit_softcap=3.0),
    "untied": replace(TINY, tied_head=False),
    "no padding": replace(TINY, vocabulary_size=128),
}


@pytest.mark.parametrize("name", HEADS)
def test_padded_vocabulary_is_never_likely_and_never_learns(name):
    model = models.build(HEADS[name])
    V = HEADS[name].vocabulary_size
    # Padding rows with huge values: they must not matter.
    params = jax.tree.map(
        lambda names, a: pad_with(a, names, V, 50.0),
        model.axes,
        random_params(model),
        is_leaf=is_axes,
    )
    rng = np.random.default_rng(0)
    x_BLD, targets = (
        rng.normal(size=(2, LENGTH, TINY.width)).astype(np.float32),
        rng.integers(0, V, (2, LENGTH)),
    )

    def loss(params):
        scores = model.scores(model.head_weights(params), x_BLD)
        return loss_sums(scores, targets, jnp.ones((2, LENGTH))).loss, (
            scores,
            model.head(params, x_BLD),
        )

    (value, (scores, logits)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert logits.shape == (2, LENGTH, V) and scores.shape == (2, LENGTH, 128)
    scores, logits = np.asarray(scores), np.asarray(logits, np.float64)
    np.testing.assert_array_equal(scores[..., :V], logits)
    assert (np.exp(scores[..., V:] - scores.max(-1, keepdims=True)) == 0).all()
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.log(
        np.exp(logits).sum(-1)
    )
    assert float(value) == pytest.approx(-chosen.sum(), rel=1e-6)

    def check(path: tuple, names: tuple, gradient: Any) -> None:
        if "vocabulary" in names:
            rows = np.moveaxis(np.asarray(gradient), names.index("vocabulary"), 0)
            used = path[0].key == "head" or model.config.tied_head
            assert (rows[V:] == 0).all() and (rows[:V] != 0).any() == used

    jax.tree_util.tree_map_with_path(check, model.axes, gradients, is_leaf=is_axes)


def pad_with(array: Any, names: tuple, size: int, value: float) -> Any:
    """`array` with `value` in the rows that pad its vocabulary."""
    if "vocabulary" not in names:
        return array
    np.moveaxis(array, names.index("vocabulary"), 0)[size:] = value
    return array


def test_bfloat16_stays_close_to_float32():
    model = replace(ROTARY, norm="layernorm", embedding_norm=True)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH + 1), np.int32)
    batch, targets, weights = Batch(tokens[:, :-1]), tokens[:, 1:], np.ones((4, LENGTH), np.float32)
    params = random_params(models.build(model))

    def run(compute: Any):
        built = models.build(model, config.PrecisionConfig(compute=compute))

        def loss(params):
            x = built.features(params, batch)
            scores = built.head(params, x)
            return loss_sums(scores, targets, weights).loss / targets.size, (x, scores)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss32, (x32, scores32)), gradients32 = run("float32")
    (loss16, (x16, scores16)), gradients16 = run("bfloat16")
    assert (x32.dtype, x16.dtype) == (jnp.float32, jnp.bfloat16)
    assert scores32.dtype == scores16.dtype == jnp.float32
    # bfloat16 rounds by 2^-9 of a value at most. Some 20 roundings lie between tokens and logits,
    # and add up like a random walk.
    scores16, scores32 = np.asarray(scores16), np.asarray(scores32)
    assert np.linalg.norm(scores16 - scores32) < 5 * 2**-9 * np.linalg.norm(scores32)
    assert float(loss16) == pytest.approx(float(loss32), abs=0.01)
    assert {a.dtype for a in jax.tree.leaves(gradients16)} == {jnp.dtype(jnp.float32)}
    g16, g32 = (
        np.concatenate([np.asarray(a).ravel() for a in jax.tree.leaves(g)])
        for g in (gradients16, gradients32)
    )
    assert np.linalg.norm(g16 - g32) < 5 * 2**-9 * np.linalg.norm(g32)


def test_dropout_needs_a_key_and_a_rate():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, LENGTH), np.int32)
    plain, dropping = (
        models.build(TINY),
        models.build(replace(TINY, dropout=0.3, attention_dropout=0.2)),
    )
    params, (a, b) = (
        random_params(plain),
        [jax.random.key(seed, impl="rbg") for seed in (0, 1)],
    )  # compiles faster than the default
    features, dropped = jax.jit(plain.features), jax.jit(dropping.features)
    expected = np.asarray(features(params, Batch(tokens)))
    np.testing.assert_array_equal(features(params, Batch(tokens), a), expected)
    np.testing.assert_array_equal(dropped(params, Batch(tokens)), expected)
    first, again, other = (np.asarray(dropped(params, Batch(tokens), key)) for key in (a, a, b))
    np.testing.assert_array_equal(first, again)
    assert (first != expected).mean() > 0.9 and (first != other).mean() > 0.9
