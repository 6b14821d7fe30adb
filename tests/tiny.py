"""A decoder small enough to train in a test, and the parts to do so."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jaxlm import config, models, optim, sharding, state, step
from jaxlm.types import Batch

CONFIG = config.Config(
    model=config.Model(
        vocabulary_size=300,
        layers=2,
        width=64,
        heads=4,
        kv_heads=2,
        context_length=32,
        norm="rmsnorm",
        positions="rotary",
        gated=True,
        activation="silu",
    ),
    data=config.Data(sequence_length=32),
    optimizer=config.Optimizer(learning_rate=3e-3, warmup_steps=2),
    precision=config.Precision(compute="float32"),
    training=config.Training(steps=100, batch_size=16),
)


class Parts(NamedTuple):
    """What a step needs, on one mesh."""

    config: config.Config
    model: models.Model
    placement: sharding.Placement
    optimizer: object

    def start(self) -> state.TrainState:
        return state.create(self.model, self.optimizer, self.placement, seed=0)

    def step(self):
        return step.train_step(self.model, self.optimizer, self.config.training, self.placement, seed=0)

    def put(self, batch: Batch) -> Batch:
        return jax.device_put(batch, self.placement.batch())


def parts(devices: int, settings: config.Config = CONFIG, **parallel) -> Parts:
    """`settings` on the first `devices` emulated devices."""
    settings = replace(settings, parallel=config.Parallel(**parallel))
    mesh = sharding.make_mesh(settings.parallel, jax.devices()[:devices])
    execution = sharding.execution(mesh, settings.parallel, settings.precision, "auto")
    model = models.build(settings.model, settings.precision, execution)
    placement = sharding.Placement(mesh, model.axes, settings.parallel.zero)
    return Parts(settings, model, placement, optim.build(settings.optimizer, settings.training.steps))


def batch(number: int, settings: config.Config = CONFIG) -> Batch:
    """Random tokens; rows of unequal weight, so that a wrong normalisation shows."""
    random = np.random.default_rng(number)
    shape = (settings.training.batch_size, settings.data.sequence_length)
    tokens = random.integers(0, settings.model.vocabulary_size, (shape[0], shape[1] + 1)).astype(np.int32)
    weights = (random.random(shape) < np.linspace(0.2, 1.0, shape[0])[:, None]).astype(np.float32)
    return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights)


def losses(parts: Parts, steps: int) -> list[float]:
    """Losses of the first steps; every step is waited for, as emulated devices need it."""
    current, train_step, found = parts.start(), parts.step(), []
    for number in range(steps):
        current, metrics = train_step(current, parts.put(batch(number, parts.config)))
        found.append(float(metrics.loss))
    return found
