"""A model of each family, small enough to train in a test, and everything that trains it."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import optax

from jaxlm import mesh_execution, models, sharding, state, step
from jaxlm.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TokenizerConfig,
    TrainingConfig,
)
from jaxlm.models.adapters import with_frozen
from jaxlm.run import assemble_optimizer
from jaxlm.types import Batch

CONFIG = Config(
    model=ModelConfig(
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
    data=DataConfig(sequence_length=32),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2),
    precision=PrecisionConfig(compute="float32"),
    training=TrainingConfig(steps=100, batch_size=16),
)

# As BERT: post-norm, token types, a transform before the head. Learned positions from the third row
# on, as RoBERTa.
ENCODER = replace(
    CONFIG,
    model=ModelConfig(
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
    objective=ObjectiveConfig(kind="masked"),
)

# As T5: relative positions, unscaled attention, an untied head; stacks of different sizes.
ENCODER_DECODER = replace(
    CONFIG,
    model=ModelConfig(
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
    objective=ObjectiveConfig(kind="span"),
    tokenizer=TokenizerConfig(sentinels=20),
)

FAMILIES = {config.model.family: config for config in (CONFIG, ENCODER, ENCODER_DECODER)}


class Parts(NamedTuple):
    """The parts of a training step on one mesh."""

    config: Config
    model: models.Model
    placement: sharding.Placement
    optimizer: optax.GradientTransformation

    def start(self) -> state.TrainState:
        """Create a new state on the mesh, as a run does. This compiles a program."""
        return state.create_state(self.model, self.optimizer, self.placement, seed=0)

    def place(self, host_state: state.TrainState) -> state.TrainState:
        """Put a state from the host on the mesh. Compiles nothing."""
        return jax.device_put(host_state, self.shardings())

    def shardings(self) -> state.TrainState:
        return state.state_shardings(self.model, self.optimizer, self.placement)

    def step(self, seed: int = 0) -> Callable:
        return step.train_step(
            self.model, self.optimizer, self.config.training, self.placement, seed
        )

    def gradients(self, params, batch: Batch, key=None):
        """Return (loss sums, gradients), to be jitted or traced."""
        gradients = step.batch_gradients(self.model, self.config.training, self.placement, params)
        return gradients(params, step.number_rows(batch), key)

    def put(self, batch: Batch) -> Batch:
        return jax.device_put(batch, self.placement.batch())


def parts(devices: int, config: Config = CONFIG, **parallel) -> Parts:
    """Build the parts for `config` on the first `devices` emulated devices."""
    config = replace(config, parallel=ParallelConfig(**parallel))
    mesh = sharding.make_mesh(config.parallel, jax.devices()[:devices])
    execution = mesh_execution.build_execution(
        mesh,
        config.parallel,
        config.precision,
        "auto",
        width=config.model.width,
        token_width=config.model.token_width,
        rank=config.adapter.rank,
    )
    model = models.build(config.model, config.precision, execution, config.adapter)
    placement = sharding.Placement(
        mesh,
        model.axes,
        config.parallel.zero,
        config.precision.gradients,
        with_frozen(config.optimizer, config.adapter, model.axes).frozen,
    )
    optimizer = assemble_optimizer(config, model.axes, placement)
    return Parts(config, model, placement, optimizer)


def initial_state(config: Config) -> state.TrainState:
    """Return the initial state of `config` on the host. It is shared: do not write to it."""
    return host_state(replace(config, parallel=ParallelConfig(), training=CONFIG.training))


@cache
def host_state(config: Config) -> state.TrainState:
    return jax.device_get(parts(1, config).start())


def batch(number: int, config: Config = CONFIG) -> Batch:
    """Build a batch of random tokens, with rows of unequal lengths and unequal weights.

    Unequal weights show a wrong normalisation.
    """
    random = np.random.default_rng(number)
    rows, length = config.training.batch_size, config.data.sequence_length

    def ids(columns: int, below: int = config.model.vocabulary_size) -> np.ndarray:
        return random.integers(0, below, (rows, columns)).astype(np.int32)

    def weights(columns: int) -> np.ndarray:
        shares = np.linspace(0.2, 1.0, rows)[:, None]
        return (random.random((rows, columns)) < shares).astype(np.float32)

    lengths = random.integers(length // 2, length + 1, rows).astype(np.int32)
    if config.model.family == "decoder":
        tokens = ids(length + 1)
        return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=weights(length))

    if config.model.family == "encoder":
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


def equations(jaxpr, *, one_branch: bool = False) -> list:
    """Return all equations of a jaxpr and of the jaxprs inside it; of branches all, or the first.

    A product has a branch for CPUs and one for other platforms.
    """
    collected = []
    for equation in jaxpr.eqns:
        collected.append(equation)
        for name, value in equation.params.items():
            if name == "branches" and one_branch:
                value = value[0]
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(inner, "jaxpr", inner)  # of a ClosedJaxpr
                if hasattr(inner, "eqns"):
                    collected += equations(inner, one_branch=one_branch)
    return collected


def product_flops(jaxpr) -> int:
    """Return the FLOPs of the matrix products of a jaxpr; of branches the first is taken."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        elif name == "cond":
            total += product_flops(params["branches"][0].jaxpr)
        else:
            times = params["length"] if name == "scan" else 1
            values = [v for p in params.values() for v in (p if isinstance(p, tuple) else [p])]
            inside = [getattr(value, "jaxpr", value) for value in values]
            total += times * sum(product_flops(j) for j in inside if hasattr(j, "eqns"))
    return total
