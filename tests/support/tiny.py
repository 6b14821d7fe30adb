"""A model of each family, small enough to train in a test, and the parts to do so."""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from jaxlm import config, models, optim, sharding, state, step
from jaxlm.types import Batch

CONFIG = config.Config(
    model=config.ModelConfig(
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
    data=config.DataConfig(sequence_length=32),
    optimizer=config.OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
    precision=config.PrecisionConfig(compute="float32"),
    training=config.TrainingConfig(steps=100, batch_size=16),
)

# As BERT: post-norm, token types, a transform before the head; learned positions from the third row on, as RoBERTa.
ENCODER = replace(
    CONFIG,
    model=config.ModelConfig(
        family="encoder",
        vocabulary_size=300,
        layers=2,
        width=64,
        heads=4,
        context_length=32,
        norm_placement="post",
        embedding_norm=True,
        token_types=2,
        position_offset=2,
        head_bias=True,
        head_transform=True,
    ),
    objective=config.ObjectiveConfig(kind="masked"),
)

# As T5: relative positions, unscaled attention, an untied head; stacks of different sizes.
ENCODER_DECODER = replace(
    CONFIG,
    model=config.ModelConfig(
        family="encoder_decoder",
        vocabulary_size=300,
        layers=2,
        encoder_layers=1,
        width=64,
        heads=4,
        encoder_heads=2,
        encoder_mlp_width=128,
        norm="rmsnorm",
        positions="relative",
        relative_max_distance=20,
        attention_scale=1.0,
        activation="gelu_tanh",
        gated=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        tied_head=False,
        initializer="t5",
    ),
    objective=config.ObjectiveConfig(kind="span"),
    tokenizer=config.TokenizerConfig(sentinels=20),
)

FAMILIES = {settings.model.family: settings for settings in (CONFIG, ENCODER, ENCODER_DECODER)}


class Parts(NamedTuple):
    """What a step needs, on one mesh."""

    config: config.Config
    model: models.Model
    placement: sharding.Placement
    optimizer: object

    def start(self) -> state.TrainState:
        return state.create_state(self.model, self.optimizer, self.placement, seed=0)

    def step(self):
        return step.train_step(
            self.model, self.optimizer, self.config.training, self.placement, seed=0
        )

    def put(self, batch: Batch) -> Batch:
        return jax.device_put(batch, self.placement.batch())


def parts(devices: int, settings: config.Config = CONFIG, **parallel) -> Parts:
    """`settings` on the first `devices` emulated devices."""
    settings = replace(settings, parallel=config.ParallelConfig(**parallel))
    mesh = sharding.make_mesh(settings.parallel, jax.devices()[:devices])
    execution = sharding.build_execution(mesh, settings.parallel, settings.precision, "auto")
    model = models.build(settings.model, settings.precision, execution)
    placement = sharding.Placement(mesh, model.axes, settings.parallel.zero)
    return Parts(
        settings,
        model,
        placement,
        optim.build_optimizer(settings.optimizer, settings.training.steps, model.axes),
    )


def batch(number: int, settings: config.Config = CONFIG) -> Batch:
    """Random tokens, rows of unequal lengths; and of unequal weight, so that a wrong normalisation shows."""
    random = np.random.default_rng(number)
    rows, length = settings.training.batch_size, settings.data.sequence_length

    def ids(columns: int, below: int = settings.model.vocabulary_size) -> np.ndarray:
        return random.integers(0, below, (rows, columns)).astype(np.int32)

    def weights(columns: int) -> np.ndarray:
        return (random.random((rows, columns)) < np.linspace(0.2, 1.0, rows)[:, None]).astype(
            np.float32
        )

    lengths = random.integers(length // 2, length + 1, rows).astype(np.int32)
    if settings.model.family == "decoder":
        tokens = ids(length + 1)
        return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights(length))
    if settings.model.family == "encoder":
        predict, types = np.sort(ids(5, length // 2), axis=1), np.sort(ids(length, 2), axis=1)
        return Batch(
            tokens=ids(length),
            lengths=lengths,
            token_types=types,
            predict=predict,
            targets=ids(5),
            weights=weights(5),
        )
    return Batch(
        tokens=ids(12),
        source=ids(length),
        source_lengths=lengths,
        targets=ids(12),
        weights=weights(12),
    )


def losses(parts: Parts, steps: int) -> list[float]:
    """Losses of the first steps; every step is waited for, as emulated devices need it."""
    current, train_step, found = parts.start(), parts.step(), []
    for number in range(steps):
        current, metrics = train_step(current, parts.put(batch(number, parts.config)))
        found.append(float(metrics.loss))
    return found
