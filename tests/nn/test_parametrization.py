"""muP: initial values, learning rates and scales against table 8 of arXiv 2203.03466."""

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from support import tiny

from jaxlm import models, optim
from jaxlm.config import ConfigError, ModelConfig, OptimizerConfig
from jaxlm.nn.parametrization import attention_scale, head_scale
from jaxlm.optim import rate_factors
from jaxlm.optim.width_rates import is_hidden
from jaxlm.state import initial_state
from jaxlm.types import Tree, is_axes

QUICK = {"xla_backend_optimization_level": 0}  # to compile takes much longer than to run
ADAMW = OptimizerConfig(schedule="constant", warmup_steps=0, gradient_clip=None)


def at_base(model: ModelConfig, kind: Any = "mup") -> ModelConfig:
    """Return the model in muP at its base width."""
    return replace(model, parametrization=kind, mup_base_width=model.width)


def by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves by the path of the parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axes)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


# At the base width


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_at_the_base_width_the_step_is_that_of_the_standard_model(family):
    """The traced programs are the same, and so is every bit."""
    config = tiny.FAMILIES[family]

    def program(config):
        parts = tiny.parts(1, config)
        state = jax.eval_shape(
            lambda key: initial_state(parts.model, parts.optimizer, key), jax.random.key(0)
        )
        return str(parts.step().trace(state, tiny.batch(0, config)).jaxpr)

    assert program(replace(config, model=at_base(config.model))) == program(config)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("parametrization", ["mup", "mup_wide_heads"])
def test_at_the_base_width_initial_values_are_those_of_the_standard_model(
    family, parametrization, standard_deviations
):
    model = tiny.FAMILIES[family].model
    assert standard_deviations(at_base(model, parametrization)) == standard_deviations(model)


@pytest.fixture
def standard_deviations(monkeypatch):
    """Return the function from a model to the standard deviation of each parameter's values."""
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: jax.numpy.ones(shape, dtype)
    )

    def read(model: ModelConfig) -> dict[str, float]:
        params = jax.jit(models.build(model).init, compiler_options=QUICK)(jax.random.key(0))
        return {name: float(values.ravel()[0]) for name, values in by_path(params).items()}

    return read


# At other widths


ROLES = {  # parameter: (standard deviation over that at the base width, its AdamW learning rate)
    "embedding.tokens": (1, 1),
    "embedding.positions": (1, 1),
    "embedding.projection": (0.5, 0.25),
    "blocks.attention.query_kernel": (0.5, 0.25),
    "blocks.attention.query_bias": (1, 1),
    "blocks.attention.key_kernel": (0.5, 0.25),
    "blocks.attention.value_kernel": (0.5, 0.25),
    "blocks.attention.output_kernel": (0.5, 0.25),
    "blocks.mlp.gate_kernel": (0.5, 0.25),
    "blocks.mlp.up_kernel": (0.5, 0.25),
    "blocks.mlp.down_kernel": (0.5, 0.25),
    "blocks.mlp.down_bias": (1, 1),
    "blocks.mlp_norm.scale": (1, 1),
    "head.transform_kernel": (0.5, 0.25),
    "head.projection": (0.5, 0.25),
    "head.kernel": (1, 1),
    "final_norm.scale": (1, 1),
}
WIDE = ModelConfig(
    vocabulary_size=256,
    layers=2,
    width=128,
    heads=8,
    context_length=64,
    embedding_width=64,
    gated=True,
    tied_head=False,
    head_transform=True,
)


@pytest.mark.parametrize("initializer", ["gpt2", "normal", "fan_in", "t5"])
def test_every_role_has_its_initial_values_and_rate(initializer, standard_deviations):
    """Four times as wide as the base, against the standard model at the base width."""
    wide = replace(WIDE, initializer=initializer, parametrization="mup", mup_base_width=32)
    base = replace(WIDE, initializer=initializer, width=32, heads=2, embedding_width=16)
    started, before = map(standard_deviations, (wide, base))
    factors = by_path(rate_factors(wide, models.build(wide).axes))
    assert factors.keys() == started.keys()
    for name, (std, rate) in ROLES.items():
        assert factors[name] == rate, name
        assert started[name] == pytest.approx(std * before[name], rel=1e-6), name


@pytest.mark.parametrize(
    ("kind", "block", "transform", "table"),
    [
        ("adamw", 1 / 4, 1 / 4, 1),
        ("lion", 1 / 4, 1 / 4, 1),
        ("adafactor", 1 / 2, 1 / 2, 1),
        ("muon", 1 / 2, 1 / 4, 1),
        ("sgd", 1, 1, 4),
    ],
)
def test_the_rates_of_each_optimizer(kind, block, transform, table):
    wide = replace(WIDE, parametrization="mup", mup_base_width=32)
    factors = by_path(rate_factors(wide, models.build(wide).axes, kind))
    assert factors["blocks.mlp.up_kernel"] == block
    assert factors["head.transform_kernel"] == transform
    assert factors["embedding.tokens"] == factors["blocks.mlp.up_bias"] == table


def test_electra_and_relative_tables_have_a_rate():
    electra = replace(
        tiny.ENCODER.model,
        parametrization="mup",
        mup_base_width=16,
        generator_share=0.5,
        embedding_width=16,
    )
    factors = by_path(rate_factors(electra, models.build(electra).axes))
    hidden = {name for name, factor in factors.items() if factor != 1}
    assert {factors[name] for name in hidden} == {0.25}
    assert "discriminator.projection.kernel" in hidden and "generator.projection.kernel" in hidden
    assert "discriminator.head.dense_kernel" in hidden
    assert "generator.head.transform_kernel" in hidden
    assert factors["discriminator.head.kernel"] == factors["discriminator.projection.bias"] == 1

    both = replace(tiny.ENCODER_DECODER.model, parametrization="mup", mup_base_width=16)
    factors = by_path(rate_factors(both, models.build(both).axes))
    assert factors["encoder.relative_bias.table"] == factors["decoder.head.kernel"] == 1
    assert factors["decoder.blocks.cross_attention.query_kernel"] == 0.25


def test_a_parameter_without_a_rate_is_an_error():
    with pytest.raises(ValueError, match="muP has no learning rate"):
        is_hidden((jax.tree_util.DictKey("block"), jax.tree_util.DictKey("gain")), ("embed",))


def test_scales():
    wide = replace(WIDE, parametrization="mup", mup_base_width=32, head_width=32)
    assert attention_scale(wide) == 32**-0.5
    assert head_scale(wide) == 1 / 4
    assert head_scale(replace(wide, head_scaling=True)) == 32**-0.5 / 4

    # Heads of width 8 at the base: 1 / 32 in place of its root, times that of 8.
    wide_heads = replace(wide, parametrization="mup_wide_heads")
    assert attention_scale(wide_heads) == pytest.approx(math.sqrt(8) / 32)
    assert attention_scale(replace(wide_heads, attention_scale=1.0)) == 1 / 4


def test_weight_decay_keeps_the_common_rate():
    """The factor is that of Adam's direction: the decay is that of optax at the whole rate."""
    params: Tree = {"a": jax.numpy.array([2.0]), "b": jax.numpy.array([3.0])}
    gradients: Tree = {"a": jax.numpy.array([0.5]), "b": jax.numpy.array([0.5])}
    config = replace(ADAMW, learning_rate=0.1, weight_decay=0.5, weight_decay_exclude=())
    axes, factors = {"a": (None,), "b": (None,)}, {"a": 1.0, "b": 0.25}
    ours = optim.build_optimizer(config, 10, axes, factors)

    def reference(rate) -> Tree:
        adam = optax.adam(rate, config.beta1, config.beta2, config.epsilon)
        updates, _ = adam.update(gradients, adam.init(params))
        return updates

    updates: Tree = ours.update(gradients, ours.init(params), params)[0]
    for name, factor in factors.items():
        expected = reference(0.1 * factor)[name] - 0.1 * 0.5 * params[name]
        np.testing.assert_allclose(updates[name], expected, rtol=1e-6)


def test_the_state_of_the_optimizer_has_the_same_tree():
    params = {"a": jax.numpy.zeros(3)}
    states = [
        optim.build_optimizer(ADAMW, 10, {"a": (None,)}, factors).init(params)
        for factors in (None, {"a": 0.5})
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_an_optimizer_without_known_rates_is_refused():
    wide = replace(WIDE, parametrization="mup", mup_base_width=32)
    with pytest.raises(ConfigError, match="no learning rates for optimizer"):
        rate_factors(wide, models.build(wide).axes, "shampoo")
