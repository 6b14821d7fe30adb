"""The training step against float64, its dropout by step, row and seed, and bfloat16."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxlm import step
from jaxlm.config import DataConfig, ModelConfig, PrecisionConfig, TrainingConfig
from jaxlm.losses import LossSums, loss_sums
from jaxlm.nn.dropout import fold_rows
from jaxlm.types import Batch, Tree

VOCABULARY, PADDED, ROWS, LENGTH = 300, 384, 8, 16
CONFIG = replace(
    tiny.CONFIG,
    model=ModelConfig(
        vocabulary_size=VOCABULARY,
        layers=1,
        width=32,
        heads=2,
        context_length=LENGTH,
        tied_head=False,
    ),
    data=DataConfig(sequence_length=LENGTH),
    training=TrainingConfig(steps=10, batch_size=ROWS),
)
DROPPING = replace(CONFIG, model=replace(CONFIG.model, dropout=0.3))


def with_training(config=CONFIG, **fields):
    return replace(config, training=replace(config.training, **fields))


@pytest.fixture(scope="module")
def params() -> Tree:
    """Larger weights than the initial ones, so that the softmax is not uniform.

    Tables are of size 1: where the stream is small, its norm makes the loss too curved for a slope.
    """
    factors = {"kernel": 5, "tokens": 50, "positions": 50}

    def scale(path: tuple, weight: np.ndarray) -> np.ndarray:
        return weight * factors.get(path[-1].key.rpartition("_")[-1], 1)

    return jax.tree_util.tree_map_with_path(scale, tiny.initial_state(CONFIG).params)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Targets with weights of 0 and 1, fewer in the first rows than in the last."""
    batch = tiny.batch(0, CONFIG)
    assert set(np.unique(np.asarray(batch.weights))) == {0.0, 1.0}
    return batch


class Outputs(NamedTuple):
    """The forward pass, which does not depend on the config of training."""

    features: np.ndarray  # float64 [B, L, D]
    logits: np.ndarray  # float64 [B, L, V]
    apply: Callable  # (params, batch) -> logits, jitted


@pytest.fixture(scope="module")
def outputs(params, batch) -> Outputs:
    model = tiny.parts(1, CONFIG).model
    features, apply = jax.jit(model.features)(params, batch), jax.jit(model.apply)
    return Outputs(
        np.asarray(features, np.float64), np.asarray(apply(params, batch), np.float64), apply
    )


def float64_sums(logits: np.ndarray, batch: Batch) -> LossSums:
    """Compute the loss sums of logits [B, L, V] in float64."""
    logits, targets = logits.astype(np.float64), np.asarray(batch.targets)
    lse = np.log(np.exp(logits).sum(-1))
    nll = lse - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    correct = logits.argmax(-1) == targets
    values = (nll, lse**2, correct, np.ones_like(nll))
    return LossSums(*(float((value * batch.weights).sum()) for value in values))


def assert_same_sums(found: LossSums, expected: LossSums) -> None:
    assert found.detection is None
    for name, ours, exact in zip(LossSums._fields[:4], found[:4], expected[:4], strict=True):
        assert float(ours) == pytest.approx(exact, rel=1e-5), name


@pytest.mark.parametrize(
    "training",
    [
        dict(),
        dict(z_loss=0.1, loss_tile=4),
        dict(z_loss=0.1, microbatches=4),
    ],
    ids=["plain", "z-loss, tiles", "z-loss, microbatches"],
)
def test_gradients_are_those_of_the_loss_per_target(training, params, batch, outputs):
    """The head's gradient in closed form, and all others by the slope of a float64 loss.

    loss = sum(weights * (nll + z_loss * lse^2)) / sum(weights), whatever the microbatches: their
    numbers of targets differ, so that a mean of means is another loss.
    """
    parts = tiny.parts(1, with_training(**training))
    sums, grads = jax.device_get(jax.jit(parts.gradients)(params, batch))
    z_loss = parts.config.training.z_loss
    assert_same_sums(sums, float64_sums(outputs.logits, batch))

    lse = np.log(np.exp(outputs.logits).sum(-1, keepdims=True))
    softmax = np.exp(outputs.logits - lse)
    one_hot = np.eye(VOCABULARY)[batch.targets]
    count = batch.weights.sum()
    slope = batch.weights[..., None] / count * (softmax * (1 + 2 * z_loss * lse) - one_hot)
    expected = np.einsum("BLD,BLV->DV", outputs.features, slope)
    # float32 sums of 128 positions: 1e-6 of the largest at worst here.
    kernel = grads["head"]["kernel"]
    np.testing.assert_allclose(kernel[:, :VOCABULARY], expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_array_equal(kernel[:, VOCABULARY:], 0.0)  # columns that only pad

    # Along the gradient the loss rises by the gradient's norm.
    norm = float(optax.tree.norm(grads))

    def loss_at(distance: float) -> float:
        moved = jax.tree.map(lambda w, g: w + distance / norm * g, params, grads)
        found = float64_sums(np.asarray(outputs.apply(moved, batch)), batch)
        return (found.loss + z_loss * found.z) / found.count

    distance = 1e-2
    rise = (loss_at(distance) - loss_at(-distance)) / (2 * distance)
    # Float32 logits and a difference of second order.
    assert rise == pytest.approx(norm, rel=2e-3)


def test_only_the_scores_of_a_tile_are_computed_at_once(batch):
    def shapes(**training) -> set[tuple[int, ...]]:
        parts = tiny.parts(1, with_training(**training))
        params = tiny.initial_state(CONFIG).params
        jaxpr = jax.make_jaxpr(parts.gradients)(params, batch).jaxpr
        return {out.aval.shape for e in tiny.equations(jaxpr) for out in e.outvars}

    assert (ROWS, LENGTH, PADDED) in shapes()
    assert (ROWS, LENGTH, PADDED) not in shapes(loss_tile=4)
    assert (ROWS, 4, PADDED) in shapes(loss_tile=4)


def test_a_step_reports_norms_and_reuses_the_memory_of_its_state(batch):
    """The gradient's norm before clipping, the parameters' before the update."""
    clipping = replace(CONFIG.optimizer, gradient_clip=1e-3)
    parts = tiny.parts(1, replace(with_training(z_loss=0.1), optimizer=clipping))
    before = tiny.initial_state(CONFIG)
    state = parts.place(before)
    after, metrics = parts.step()(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert int(after.step) == 1

    sums, grads = jax.jit(parts.gradients)(before.params, batch)
    assert float(metrics.loss) == pytest.approx(float(sums.loss / sums.count), rel=1e-6)
    assert float(metrics.grad_norm) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert float(metrics.param_norm) == pytest.approx(
        float(optax.tree.norm(before.params)), rel=1e-6
    )
    assert float(metrics.grad_norm) > 0.1 and float(metrics.param_norm) > 5


def test_an_evaluation_counts_all_targets_without_dropout_or_z_loss(params, batch, outputs):
    parts = tiny.parts(1, with_training(DROPPING, z_loss=0.1, microbatches=2))
    evaluate = step.eval_step(parts.model, parts.config.training, parts.placement, params)
    assert_same_sums(evaluate(params, batch), float64_sums(outputs.logits, batch))


@pytest.fixture(scope="module")
def twin_rows() -> tuple[Batch, Batch]:
    """A batch whose even rows equal its odd rows, with all weight on the even rows or the odd.

    Two microbatches split the rows like this: the first has the even rows.
    """
    batch = tiny.batch(0, CONFIG)
    batch = jax.tree.map(lambda rows: np.repeat(rows[::2], 2, axis=0), batch)
    is_even = np.arange(ROWS)[:, None] % 2 == 0
    weights = np.ones((ROWS, LENGTH), np.float32)
    return (
        batch._replace(weights=weights * is_even),
        batch._replace(weights=weights * ~is_even),
    )


def test_dropout_differs_by_step_row_and_seed(twin_rows):
    """The key is fold_in(fold_in(key(seed), step), row): a resumed run repeats it."""
    parts = tiny.parts(1, DROPPING)
    host_state = tiny.initial_state(CONFIG)
    steps = {seed: parts.step(seed) for seed in (0, 1)}

    def loss(seed: int, number: int, twin: int) -> float:
        state = parts.place(host_state._replace(step=np.int32(number)))
        return float(steps[seed](state, twin_rows[twin])[1].loss)

    @jax.jit
    def expected(seed: Any, number: Any, twin: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), number)
        keys = fold_rows(key, twin + jnp.arange(0, ROWS, 2))
        batch = jax.tree.map(lambda rows: jnp.asarray(rows)[::2], twin_rows[0])
        params = jax.tree.map(jnp.asarray, host_state.params)
        x = parts.model.features(params, batch, keys)
        scores = parts.model.scores(parts.model.head_weights(params), x)
        sums = loss_sums(scores, batch.targets, batch.weights)
        return sums.loss / sums.count

    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    losses = [loss(*place) for place in places]
    assert losses == [loss(*place) for place in places]  # the same place, the same bits
    assert len(set(losses)) == len(places)
    np.testing.assert_allclose(losses, [float(expected(*place)) for place in places], rtol=1e-5)


@pytest.mark.parametrize(
    ("devices", "microbatches", "parallel"),
    [
        (4, 2, dict(zero=3)),
        pytest.param(1, 4, dict(), marks=pytest.mark.slow),
        pytest.param(4, 1, dict(), marks=pytest.mark.slow),
        pytest.param(4, 2, dict(zero=1, tensor=2), marks=pytest.mark.slow),
    ],
)
def test_dropout_follows_the_row_over_devices_and_microbatches(
    devices, microbatches, parallel, batch
):
    model = replace(DROPPING.model, attention_dropout=0.2)
    config = with_training(replace(DROPPING, model=model), microbatches=microbatches)
    parts = tiny.parts(devices, config, **parallel)
    alone = tiny.parts(1, with_training(config, microbatches=1))

    def loss(parts: tiny.Parts) -> float:
        state = parts.place(tiny.initial_state(CONFIG))
        return float(parts.step()(state, parts.put(batch))[1].loss)

    # Sums of float32 in another order; other masks differ by 1e-2.
    assert loss(parts) == pytest.approx(loss(alone), rel=2e-6)


@pytest.mark.parametrize("field", ["dropout", "attention_dropout"])
def test_either_rate_alone_turns_dropout_on(field, batch):
    model = replace(CONFIG.model, **{field: 0.3})
    parts = tiny.parts(1, replace(CONFIG, model=model))
    jaxpr = jax.make_jaxpr(parts.step())(tiny.initial_state(CONFIG), batch).jaxpr
    assert "random_bits" in {e.primitive.name for e in tiny.equations(jaxpr)}


@pytest.mark.parametrize(
    "family",
    ["decoder", *(pytest.param(n, marks=pytest.mark.slow) for n in ("encoder", "encoder_decoder"))],
)
def test_a_bfloat16_step_is_near_a_float32_step(family):
    """The default precision. In three steps on one batch the losses fall; weights stay float32.

    bfloat16 has 8 bits: scores of about 1 are off by 2^-9 each, and the errors of the targets
    average out. The losses differ by 1e-4 at worst here, the norms of the gradients by 0.1%.
    """
    small = tiny.FAMILIES[family]
    small = replace(small, model=replace(small.model, layers=1, encoder_layers=None))
    host_state, batch = tiny.initial_state(small), tiny.batch(0, small)
    exact = tiny.parts(1, small)
    sums, grads = jax.jit(exact.gradients)(host_state.params, batch)

    parts = tiny.parts(1, replace(small, precision=PrecisionConfig(compute="bfloat16")))
    state, run, losses, norms = parts.place(host_state), parts.step(), [], []
    for _ in range(3):
        state, metrics = run(state, batch)
        losses.append(float(metrics.loss))
        norms.append(float(metrics.grad_norm))

    expected = float(sums.loss / sums.count)
    assert losses[0] != expected  # it did compute in bfloat16
    assert losses[0] == pytest.approx(expected, abs=1e-3)
    assert norms[0] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-2)
    assert losses[2] < losses[1] < losses[0]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))


def test_a_device_splits_its_own_rows_into_microbatches():
    """No row moves between devices."""
    rows = np.arange(ROWS * 2).reshape(ROWS, 2)
    np.testing.assert_array_equal(step.split_rows(rows, 2), [rows[0::2], rows[1::2]])
