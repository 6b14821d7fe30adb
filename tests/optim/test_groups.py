"""Rates and decays by role and name, layer-wise decay, and frozen parameters."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from support import tiny

from jaxlm import config, models, optim, sharding, state
from jaxlm.config import ConfigError, GroupConfig
from jaxlm.optim.groups import role_of
from jaxlm.parameter_names import matches, merge, without
from jaxlm.types import is_axes

STEPS = 10


def named(tree) -> dict:
    """Return the leaves of a tree by their dotted names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_axes)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def movement(model: models.Model, **fields) -> dict[str, np.ndarray]:
    """Return by what Lion moves each parameter by gradients of one: the rate, and the decay."""
    plain = {"kind": "lion", "learning_rate": 0.5, "warmup_steps": 0, "schedule": "constant"}
    plain |= {"gradient_clip": None, "weight_decay": 0.0}
    optimizer = optim.build_optimizer(config.OptimizerConfig(**(plain | fields)), STEPS, model.axes)
    ones = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes_of(model))
    frozen = fields.get("frozen", ())
    changes, _ = optimizer.update(without(ones, frozen), optimizer.init(ones), ones)
    return {name: -np.asarray(change) for name, change in named(changes).items()}


def shapes_of(model: models.Model):
    return jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_parameter_has_a_role(family):
    axes = named(models.build(tiny.FAMILIES[family].model).axes)
    roles = {name: role_of(name, names) for name, names in axes.items()}
    assert {name for name, role in roles.items() if role == "norms"} == {
        name for name in roles if name.endswith((".scale", "norm.bias"))
    }
    assert {name.rpartition(".")[2] for name, role in roles.items() if role == "matrices"} <= {
        f"{name}_kernel" for name in ("query", "key", "value", "output", "gate", "up", "down")
    }
    tables = {name for name, role in roles.items() if role == "embeddings"}
    assert tables == {
        name for name in roles if name.endswith(("tokens", "positions", "types", "table"))
    }
    heads = {name for name, role in roles.items() if role == "head"}
    assert heads == {name for name in roles if "head." in name and name.endswith("kernel")}


def test_groups_set_rates_and_decays_by_role_and_by_name():
    groups = (
        GroupConfig(parameters="embedding", learning_rate_ratio=0.25, weight_decay=0.0),
        GroupConfig(parameters="norms", learning_rate_ratio=2.0, weight_decay=0.3),
        GroupConfig(parameters="blocks.*.query_*", learning_rate_ratio=3.0),
        GroupConfig(parameters="matrices", learning_rate_ratio=0.5),
    )
    moved = movement(models.build(tiny.CONFIG.model), groups=groups, weight_decay=0.1)
    expected = {
        "embedding.tokens": 0.125,
        "final_norm.scale": 1.0 * 1.3,
        "blocks.mlp_norm.scale": 1.0 * 1.3,
        "blocks.attention.query_kernel": 1.5 * 1.1,
        "blocks.attention.query_bias": 1.5,
        "blocks.attention.key_kernel": 0.25 * 1.1,
        "blocks.mlp.down_kernel": 0.25 * 1.1,
        "blocks.mlp.down_bias": 0.5,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(moved[name], value, rtol=1e-6, err_msg=name)


def test_further_factors_multiply_the_rates():
    model = models.build(tiny.CONFIG.model)
    factors = jax.tree.map(lambda _: 1.0, shapes_of(model))
    factors["embedding"]["tokens"] = 4.0
    fields = {"kind": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "schedule": "constant"}
    groups = (GroupConfig(parameters="embeddings", learning_rate_ratio=0.5),)
    optimizer = optim.build_optimizer(
        config.OptimizerConfig(**fields, weight_decay=0.0, gradient_clip=None, groups=groups),
        STEPS,
        model.axes,
        factors,
    )
    ones = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes_of(model))
    changes = named(optimizer.update(ones, optimizer.init(ones), ones)[0])
    np.testing.assert_allclose(changes["embedding.tokens"], -1.0)
    np.testing.assert_allclose(changes["blocks.mlp.up_kernel"], -0.5)


def test_layer_decay_falls_from_layer_to_layer():
    """As BEiT's: 1 for the head, the decay for the last layer, and least for the embeddings."""
    model = models.build(replace(tiny.ENCODER.model, layers=3))
    moved = movement(model, layer_decay=0.5, learning_rate=1.0)
    for name, change in moved.items():
        if name.startswith("blocks"):
            for layer, value in enumerate((0.125, 0.25, 0.5)):
                np.testing.assert_allclose(change[layer], value, err_msg=name)
        else:
            expected = 0.0625 if name.startswith("embedding") else 1.0
            np.testing.assert_allclose(change, expected, err_msg=name)


@pytest.mark.slow
def test_the_stacks_of_an_encoder_decoder_decay_from_their_own_tops():
    model = models.build(tiny.ENCODER_DECODER.model)  # one layer in the encoder, two above
    moved = movement(model, layer_decay=0.5, learning_rate=1.0)
    np.testing.assert_allclose(moved["encoder.blocks.mlp.up_kernel"], 0.5)
    np.testing.assert_allclose(moved["decoder.blocks.mlp.up_kernel"][0], 0.25)
    np.testing.assert_allclose(moved["encoder.embedding.tokens"], 0.125)


def test_the_state_has_the_same_tree_with_groups_and_without():
    model = models.build(tiny.CONFIG.model)
    groups = (GroupConfig(parameters="head", weight_decay=0.1),)
    untied = models.build(replace(tiny.CONFIG.model, tied_head=False))
    for kind in ("adamw", "adafactor"):
        plain, grouped = (
            optim.build_optimizer(config.OptimizerConfig(kind=kind, **fields), STEPS, untied.axes)
            for fields in ({}, {"groups": groups, "layer_decay": 0.9})
        )
        structures = [
            jax.tree.structure(jax.eval_shape(o.init, shapes_of(untied))) for o in (plain, grouped)
        ]
        assert structures[0] == structures[1]
    with pytest.raises(ConfigError, match="'head' means no parameter"):
        optim.build_optimizer(config.OptimizerConfig(groups=groups), STEPS, model.axes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"frozen": ("blocks.mlp", "embeding")},
            "optimizer.frozen.1: 'embeding' means no parameter of the model (did you mean "
            "'embedding.tokens'?); there are 'blocks.attention.key_bias', ",
        ),
        (
            {"frozen": ("embedding.token",)},
            "optimizer.frozen.0: 'embedding.token' means no parameter of the model (did you mean "
            "'embedding.tokens'?); there are ",
        ),
        (
            {"groups": (GroupConfig(parameters="kernels"),)},
            "optimizer.groups.0.parameters: 'kernels' means no parameter of the model; there are ",
        ),
        ({"frozen": ("*",)}, "optimizer.frozen: leaves no parameter to train"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(fields, message):
    axes = models.build(tiny.CONFIG.model).axes
    with pytest.raises(ConfigError) as caught:
        optim.build_optimizer(config.OptimizerConfig(**fields), STEPS, axes)
    assert str(caught.value).startswith(message)


def test_patterns_mean_names_and_parts_of_the_tree():
    assert matches("blocks.mlp.up_kernel", "blocks.mlp")
    assert matches("blocks.mlp.up_kernel", "blocks.*_kernel")
    assert not matches("blocks.mlp_norm.scale", "blocks.mlp")
    tree = {"a": {"b": 1, "c": 2}, "d": {"e": 3}}
    assert without(tree, ("a.b", "d")) == {"a": {"c": 2}}
    assert merge(tree, {"a": {"c": 5}}) == {"a": {"b": 1, "c": 5}, "d": {"e": 3}}


# Frozen parameters


FROZEN = ("embedding", "blocks.attention.*")


def frozen_config(base: config.Config = tiny.CONFIG, **fields) -> config.Config:
    optimizer = replace(base.optimizer, **({"frozen": FROZEN} | fields))
    return replace(base, optimizer=optimizer)


@pytest.mark.parametrize(
    "parallel",
    [dict(devices=1), pytest.param(dict(devices=8, zero=3, tensor=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_frozen_parameters_keep_their_bits_and_the_others_train_on(parallel):
    """The others move as they do in a step of all parameters, but for the clipping."""
    results = []
    for frozen in (FROZEN, ()):
        parts = tiny.parts(**parallel, config=frozen_config(frozen=frozen, gradient_clip=None))
        start = tiny.initial_state(parts.config)
        current, metrics = parts.step()(parts.place(start), parts.put(tiny.batch(0, parts.config)))
        results.append((named(start.params), named(jax.device_get(current)), metrics))

    (start, frozen, metrics), (_, full, whole) = results
    assert float(metrics.grad_norm) < 0.9 * float(whole.grad_norm)
    for name, before in start.items():
        after, reference = frozen[f"params.{name}"], full[f"params.{name}"]
        if any(matches(name, pattern) for pattern in FROZEN):
            np.testing.assert_array_equal(after, before)
        else:
            assert np.linalg.norm(after - before) > 0
            # Adam's first step is the sign of a gradient: few are near zero.
            assert np.mean(np.abs(after - reference) < 1e-6) > 0.999, name


def test_frozen_parameters_have_no_state_and_no_gradient():
    parts = tiny.parts(1, frozen_config())
    shapes = state.state_shapes(parts.model, parts.optimizer)
    trained = without(shapes.params, FROZEN)
    moments = optax.tree.get(shapes.optimizer, "mu")
    assert named(moments).keys() == named(trained).keys()
    sizes = [leaf.size for leaf in jax.tree.leaves(trained)]
    held = sum(leaf.size for leaf in jax.tree.leaves(shapes.optimizer) if leaf.ndim)
    assert held == 2 * sum(sizes)

    # Of the products of a weight that is trained, one of three is for its gradient.
    batch = jax.eval_shape(lambda: tiny.batch(0))
    flops = {}
    for name, frozen in {"none": (), "attention": ("blocks.attention.*",)}.items():
        other = tiny.parts(1, frozen_config(frozen=frozen))
        used = jax.jit(lambda p, b, parts=other: parts.gradients(p, b)[1])
        assert (
            named(jax.eval_shape(used, shapes.params, batch)).keys()
            == named(without(shapes.params, frozen)).keys()
        )
        flops[name] = used.lower(shapes.params, batch).compile().cost_analysis()["flops"]
    width, heads, kv_heads, head = 64, 4, 2, 16
    weights = 2 * width * head * (2 * heads + 2 * kv_heads)  # of two layers
    tokens = tiny.CONFIG.training.batch_size * tiny.CONFIG.data.sequence_length
    assert flops["none"] - flops["attention"] == pytest.approx(2 * weights * tokens, rel=0.05)


def test_the_shardings_of_gradients_leave_frozen_parameters_out():
    parts = tiny.parts(8, frozen_config(), zero=2)
    shapes = state.state_shapes(parts.model, parts.optimizer).params
    specs = named(jax.tree.map(lambda s: s.spec, parts.placement.tree("gradients", shapes)))
    assert specs["final_norm.scale"] == P(None) and "embedding.tokens" not in specs
    placed = sharding.bytes_per_device(shapes, parts.placement.tree("parameters", shapes))
    assert placed == sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes))
