"""Cross-entropy against optax and float64, and tiles against all positions at once."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxlm.losses import (
    LARGEST_GROUP,
    LossSums,
    label_loss,
    loss_sums,
    summed_scores,
    summed_scores_at_once,
    tile_length,
    tiled_loss,
    token_losses,
)
from jaxlm.nn.mask import MASKED

B, D, V = 3, 6, 11


def samples(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features [B, L, D], targets [B, L] and uneven weights [B, L]."""
    rng = np.random.default_rng(length)
    weights = rng.random((B, length)).astype(np.float32) * (rng.random((B, length)) < 0.7)
    return (
        rng.normal(size=(B, length, D)).astype(np.float32),
        rng.integers(0, V, (B, length)),
        weights.astype(np.float32),
    )


def table() -> np.ndarray:
    return np.random.default_rng(99).normal(size=(D, V)).astype(np.float32)


def scores(head: dict, x_BLD: jax.Array) -> jax.Array:
    return jnp.einsum("BLD,DV->BLV", x_BLD, head["kernel"]).astype(jnp.float32)


def test_token_losses_equal_optax():
    x, targets, _ = samples(7)
    s = 5 * x @ table()
    nll, lse = jax.jit(token_losses)(s, targets)
    np.testing.assert_allclose(
        nll, jax.jit(optax.softmax_cross_entropy_with_integer_labels)(s, targets), atol=1e-5
    )
    np.testing.assert_allclose(lse, np.log(np.exp(s.astype(np.float64)).sum(-1)), atol=1e-5)


@pytest.mark.parametrize("columns", [V + 3, 2 * LARGEST_GROUP])
@pytest.mark.parametrize("scale", [1e-3, 5.0, 1e4])
def test_sums_in_one_pass_are_those_of_two(scale, columns):
    """GPUs read the scores once. Columns that pad the vocabulary count for nothing."""
    x, targets, _ = samples(7)
    padding = np.full((B, 7, columns - V), MASKED, np.float32)
    s = jnp.asarray(np.concatenate([scale * x @ table(), padding], axis=-1))
    is_target = jnp.arange(columns)[None, None, :] == jnp.asarray(targets)[:, :, None]
    operands = s, jnp.where(is_target, s, 0.0)
    found, expected = jax.jit(summed_scores_at_once)(*operands), summed_scores(*operands)
    for ours, theirs in zip(found, expected, strict=True):
        # A few roundings of float32 (6e-8): of a sum of few numbers, and of its logarithm.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)

    # Neighbours are summed before the one reduction.
    (reduction,) = [
        equation
        for equation in jax.make_jaxpr(summed_scores_at_once)(*operands).jaxpr.eqns
        if equation.primitive.name == "reduce"
    ]
    group = math.gcd(columns, LARGEST_GROUP)
    assert {v.aval.shape[-1] for v in reduction.invars[:3]} == {columns // group}


def test_the_gradients_of_both_losses_are_those_of_autodiff():
    x, targets, weights = samples(7)
    s = jnp.asarray(x @ table())

    def plain(s: jax.Array, targets: np.ndarray) -> tuple[jax.Array, jax.Array]:
        lse = jax.nn.logsumexp(s, axis=-1)
        return lse - jnp.take_along_axis(s, targets[:, :, None], axis=-1)[:, :, 0], lse

    def loss(losses, s: jax.Array) -> jax.Array:
        nll, lse = losses(s, targets)
        return jnp.sum(weights * nll) + 0.3 * jnp.sum(weights * jnp.square(lse))

    found, expected = (jax.jit(jax.grad(partial(loss, f)))(s) for f in (token_losses, plain))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_gradient_is_softmax_minus_one_hot():
    x, targets, weights = samples(7)
    s = (x @ table()).astype(np.float64)
    gradient = jax.jit(jax.grad(lambda s: loss_sums(s, targets, weights).loss))(
        s.astype(np.float32)
    )
    expected = (np.exp(s) / np.exp(s).sum(-1, keepdims=True) - np.eye(V)[targets]) * weights[
        ..., None
    ]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_large_scores_stay_finite():
    s = jnp.asarray([[[1e4, -1e4, 0.0]]])
    nll, lse = token_losses(s, jnp.asarray([[2]]))
    assert float(nll[0, 0]) == 1e4 and float(lse[0, 0]) == 1e4


def test_sums():
    x, targets, weights = samples(7)
    s = (3 * x @ table()).astype(np.float64)
    lse = np.log(np.exp(s).sum(-1))
    nll = lse - np.take_along_axis(s, targets[..., None], -1)[..., 0]
    sums = jax.jit(loss_sums)(s.astype(np.float32), targets, weights)
    expected = LossSums(
        (nll * weights).sum(),
        (lse**2 * weights).sum(),
        ((s.argmax(-1) == targets) * weights).sum(),
        weights.sum(),
    )
    assert sums.detection is None
    for name, ours, exact in zip(LossSums._fields[:4], sums[:4], expected[:4], strict=True):
        assert ours.dtype == jnp.float32 and ours.shape == ()
        assert float(ours) == pytest.approx(float(exact), rel=1e-6), name


def test_targets_without_weight_do_not_count():
    """Neither their loss nor their gradient depends on which tokens they are."""
    x, targets, weights = samples(7)
    assert (weights == 0).any()
    other = np.where(weights == 0, -100, targets)
    run = jax.jit(jax.value_and_grad(lambda s, t: loss_sums(s, t, weights).loss))
    (loss, gradient), (other_loss, other_gradient) = (
        run(x @ table(), targets),
        run(x @ table(), other),
    )
    assert float(loss) == float(other_loss)
    np.testing.assert_array_equal(gradient, other_gradient)


@pytest.mark.parametrize(("length", "tile"), [(12, 4), (15, 5), (15, 1), (7, 7), (7, 100)])
def test_tiles_equal_all_positions_at_once(length, tile):
    """In values and in gradients of the features and of the head: float32 sums in another order."""
    x, targets, weights = samples(length)

    def dense(head, x):
        sums = loss_sums(scores(head, x), targets, weights)
        return 3 * (sums.loss + 0.1 * sums.z), sums

    def tiled(head, x):
        loss, sums = tiled_loss(scores, head, x, targets, weights, tile, z_loss=0.1)
        return 3 * loss, sums

    tiled, dense = (
        jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))({"kernel": table()}, x)
        for run in (tiled, dense)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), tiled, dense)


def test_tiles_add_up_the_gradient_of_a_bfloat16_head_in_float32():
    """64 tiles each add 1 to a 256. In bfloat16, with its 8 bits, 256 + 1 is 256."""
    length = 65
    x, targets, weights = (
        np.ones((1, length, 1), np.float32),
        np.zeros((1, length), np.int32),
        np.ones((1, length), np.float32),
    )
    x[0, 0] = 256.0

    def bfloat16_scores(head, x):
        return scores(head, x.astype(jnp.bfloat16))

    def loss(head):
        # Two equal scores: the gradient of each tile is -x / 2 for the target's column.
        return 2 * tiled_loss(bfloat16_scores, head, x, targets, weights, 1)[0]

    gradient = jax.jit(jax.grad(loss))({"kernel": jnp.zeros((1, 2), jnp.bfloat16)})["kernel"]
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient.astype(jnp.float32), [[-320.0, 320.0]])


@pytest.mark.parametrize("tile", [4, 12])
def test_only_the_loss_has_a_gradient(tile):
    """In one tile as in several: the sums are metrics."""
    x, targets, weights = samples(12)

    def slope(pick):
        def run(x):
            return pick(tiled_loss(scores, {"kernel": table()}, x, targets, weights, tile))

        return float(jnp.abs(jax.grad(run)(x)).max())

    assert slope(lambda result: result[0]) > 0
    assert slope(lambda result: result[1].loss) == 0


def test_scores_of_tiles_are_computed_once():
    """A tile has three products: scores, and the gradients of the head and of x."""
    x, targets, weights = samples(12)

    def products(function) -> int:
        jaxpr = jax.make_jaxpr(function)({"kernel": table()}, x).jaxpr
        return sum(e.primitive.name == "dot_general" for e in tiny.equations(jaxpr))

    def loss(head, x):
        return tiled_loss(scores, head, x, targets, weights, 4)[0]

    assert products(loss) == 1
    assert products(jax.grad(loss, argnums=(0, 1))) == 3


def test_only_the_scores_of_a_tile_are_in_memory():
    """The compiled gradient needs less than the scores of all positions."""
    length, vocabulary = 256, 4096
    head = {"kernel": jax.ShapeDtypeStruct((D, vocabulary), jnp.float32)}
    x, y, w = (
        jax.ShapeDtypeStruct((1, length, *rest), kind)
        for rest, kind in (((D,), jnp.float32), ((), jnp.int32), ((), jnp.float32))
    )

    def memory(tile: int) -> int:
        def loss(head, x, y, w):
            return tiled_loss(scores, head, x, y, w, tile)[0]

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(head, x, y, w).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    all_scores = 4 * length * vocabulary
    assert memory(16) < all_scores / 2 < all_scores <= memory(length)


@pytest.mark.parametrize(
    ("positions", "requested", "expected"),
    [
        (12, 5, 4),
        (12, 12, 12),
        (12, 100, 12),
        (15, 4, 3),
        (13, 12, 1),
        (1024, None, 256),
        (8, None, 8),
    ],
)
def test_tile_length(positions, requested, expected):
    # 8 x 50304 scores are 1.6 MB a position: 333 positions fit 512 MiB.
    tile = tile_length(
        rows=8,
        positions=positions,
        vocabulary_size=50304,
        requested=requested,
        tile_bytes=512 * 2**20,
    )
    assert tile == expected


@pytest.mark.parametrize(
    ("rows", "gigabytes", "expected"), [(8, 1, 512), (8, 5, 1024), (12, 5, 1024), (100_000, 1, 1)]
)
def test_tile_length_follows_the_memory_and_is_never_zero(rows, gigabytes, expected):
    tile = tile_length(
        rows=rows,
        positions=1024,
        vocabulary_size=50304,
        requested=None,
        tile_bytes=gigabytes * 10**9,
    )
    assert tile == expected


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_losses_of_labels_are_those_of_optax(problem):
    """The mean over the labels, each text counted by its weight."""
    random = np.random.default_rng(0)
    scores_BLC = 3 * random.normal(size=(5, 1, 4)).astype(np.float32)
    weights_BL = np.array([[1.0], [0.5], [0.0], [2.0], [1.0]], np.float32)
    targets_BLC = random.normal(size=scores_BLC.shape).astype(np.float32)
    is_right_B = np.zeros(5)
    if problem == "multi_label":
        targets_BLC = (targets_BLC > 0).astype(np.float32)
        targets_BLC[0] = scores_BLC[0] > 0
        losses = optax.losses.sigmoid_binary_cross_entropy(scores_BLC, targets_BLC)
        is_right_B = ((scores_BLC > 0) == (targets_BLC > 0)).all((1, 2))
        assert is_right_B[0] and not is_right_B.all()
    else:
        losses = optax.losses.squared_error(scores_BLC, targets_BLC)

    loss, sums = label_loss(problem, scores_BLC, targets_BLC, weights_BL)
    expected = float((np.asarray(losses).mean(-1) * weights_BL).sum())
    assert float(loss) == pytest.approx(expected, rel=1e-6) == float(sums.loss)
    assert float(sums.count) == 4.5
    assert float(sums.correct) == (is_right_B * weights_BL[:, 0]).sum()
