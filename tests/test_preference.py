"""The losses of preferences, against the same in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxlm import models, preference
from jaxlm.config import PrecisionConfig
from jaxlm.losses import PreferenceLoss
from jaxlm.types import Batch

ROWS, LENGTH = 4, 16  # pairs, tokens of each of the two segments


def pairs(seed=0):
    """Return a batch of pairs; the last row is padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 300, (ROWS, 2 * LENGTH)).astype(np.int32)
    weights = np.zeros((ROWS, 2, LENGTH), np.float32)
    for row in range(ROWS - 1):
        for answer in range(2):
            start, end = sorted(rng.choice(LENGTH, 2, replace=False))
            weights[row, answer, start:end] = 1
    return Batch(
        tokens=tokens,
        segments=np.tile(np.repeat([1, 2], LENGTH).astype(np.int32), (ROWS, 1)),
        positions=np.tile(np.tile(np.arange(LENGTH, dtype=np.int32), 2), (ROWS, 1)),
        targets=np.roll(tokens, -1, axis=1),
        weights=weights.reshape(ROWS, 2 * LENGTH),
        reference=rng.normal(-40, 5, (ROWS, 2)).astype(np.float32),
    )


@pytest.mark.parametrize("kind", ["dpo", "ipo", "dpo_mean"])
def test_losses_rewards_and_gradients_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    answers = rng.normal(-40, 5, (5, 2)).astype(np.float32)
    reference = rng.normal(-40, 5, (5, 2)).astype(np.float32)
    tokens = rng.integers(1, 30, (5, 2)).astype(np.float32)
    tokens[4] = 0  # no pair

    policy = torch.tensor(answers, requires_grad=True)
    ratios = (policy - torch.tensor(reference))[:4]
    if kind == "dpo_mean":
        ratios = ratios / torch.tensor(tokens[:4])
    margin = ratios[:, 0] - ratios[:, 1]
    loss = (margin - 1 / (2 * 0.3)) ** 2
    if kind != "ipo":
        loss = -torch.nn.functional.logsigmoid(0.3 * margin)
    loss.sum().backward()

    def total(answers):
        sums = preference.preference_sums(PreferenceLoss(kind, 0.3), answers, reference, tokens)
        return sums.loss, sums

    (value, sums), gradient = jax.value_and_grad(total, has_aux=True)(answers)
    np.testing.assert_allclose(value, loss.sum().item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, policy.grad.numpy(), rtol=1e-5, atol=1e-7)
    rewards = (0.3 * ratios).sum(0).tolist()
    np.testing.assert_allclose([sums.rewards.chosen, sums.rewards.rejected], rewards, rtol=1e-5)
    assert (sums.correct, sums.count) == ((margin > 0).sum().item(), 4)


def test_answers_have_the_log_probabilities_of_rows_of_their_own():
    """A pair shares its row with nothing: neither answer sees the other one."""
    model = models.build(tiny.CONFIG.model, PrecisionConfig(compute="float32"))
    params = model.init(jax.random.key(0))
    batch = pairs()
    together = preference.answer_log_probabilities(model, params, batch, None, tile=8)

    for answer in range(2):
        half = slice(answer * LENGTH, (answer + 1) * LENGTH)
        logits = model.apply(params, Batch(tokens=jnp.asarray(batch.tokens[:, half])))
        scores = jax.nn.log_softmax(logits)
        targets = batch.targets[:, half, None]
        chosen = np.take_along_axis(np.asarray(scores), targets, axis=-1)[..., 0]
        alone = (chosen * batch.weights[:, half]).sum(axis=1)
        # Both sum the same terms in float32, in another order.
        np.testing.assert_allclose(together[:, answer], alone, rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_tiles_change_neither_loss_nor_gradient():
    model = models.build(tiny.CONFIG.model, PrecisionConfig(compute="float32"))
    model = model._replace(preference=PreferenceLoss("dpo", 0.1))
    params = model.init(jax.random.key(0))

    def loss(params, tile):
        return preference.preference_loss(model, params, pairs(), None, tile)[0]

    values = [jax.value_and_grad(loss)(params, tile) for tile in (8, 32)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
    for one, other in zip(*(jax.tree.leaves(gradient) for _, gradient in values), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
