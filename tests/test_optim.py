"""Schedules by hand-computed values, the decay mask by name, clipping, and AdamW's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import config, models, optim

STEPS, WARMUP = 10, 4

# (fields, {step: rate}) with a peak of 1, a final ratio of 0.1, 4 steps of warmup out of 10 unless told otherwise.
SCHEDULES = {
    "warmup": ({}, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
    "cosine": ({}, {4: 1.0, 5: 0.1 + 0.9 * 0.9330127, 7: 0.55, 9: 0.1 + 0.9 * 0.0669873, 10: 0.1, 50: 0.1}),
    "cosine, decay_steps": ({"decay_steps": 8}, {4: 1.0, 6: 0.55, 8: 0.1, 9: 0.1}),
    "cosine, to zero": ({"final_learning_rate_ratio": 0.0}, {7: 0.5, 10: 0.0}),
    "linear": ({"schedule": "linear"}, {0: 0.25, 4: 1.0, 5: 0.85, 7: 0.55, 10: 0.1, 50: 0.1}),
    "linear, decay_steps": ({"schedule": "linear", "decay_steps": 6}, {4: 1.0, 5: 0.55, 6: 0.1, 9: 0.1}),
    "constant": ({"schedule": "constant"}, {0: 0.25, 3: 1.0, 4: 1.0, 9: 1.0, 50: 1.0}),
    "inverse_sqrt": ({"schedule": "inverse_sqrt"}, {0: 0.25, 4: 1.0, 9: 2 / 3, 16: 0.5, 400: 0.1}),
    "inverse_sqrt, no warmup": ({"schedule": "inverse_sqrt", "warmup_steps": 0}, {0: 1.0, 1: 1.0, 4: 0.5, 100: 0.1}),
    "wsd": ({"schedule": "wsd", "decay_share": 0.4}, {0: 0.25, 4: 1.0, 6: 1.0, 7: 0.775, 8: 0.55, 10: 0.1, 50: 0.1}),
    "wsd, no share": ({"schedule": "wsd", "decay_share": 0.0}, {4: 1.0, 9: 1.0}),
    "wsd, all": ({"schedule": "wsd", "decay_share": 1.0, "warmup_steps": 0}, {0: 1.0, 5: 0.55, 10: 0.1}),
    "no warmup": ({"warmup_steps": 0}, {0: 1.0, 5: 0.55, 10: 0.1}),
    "warmup cut to the steps": ({"warmup_steps": 100}, {0: 0.1, 4: 0.5, 9: 1.0}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    fields, expected = SCHEDULES[name]
    values = {"learning_rate": 1.0, "warmup_steps": WARMUP, "final_learning_rate_ratio": 0.1, "schedule": "cosine"} | fields
    rate = optim.schedule(config.Optimizer(**values), STEPS)
    found = {step: float(rate(step)) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_schedule_inside_jit_and_scaled_by_the_peak():
    rate = optim.schedule(config.Optimizer(learning_rate=3e-4, warmup_steps=WARMUP), STEPS)
    traced = jax.jit(jax.vmap(rate))(jnp.arange(12))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, [float(rate(step)) for step in range(12)], rtol=1e-6)
    assert float(rate(7)) == pytest.approx(3e-4 * 0.55)


EVERYTHING = config.Model(
    vocabulary_size=128,
    layers=2,
    width=8,
    heads=2,
    context_length=4,
    gated=True,
    head_bias=True,
    tied_head=False,
    embedding_norm=True,
    query_key_norm=True,
)
KERNELS = {f"blocks.attention.{name}_kernel" for name in ("query", "key", "value", "output")}
KERNELS |= {f"blocks.mlp.{name}_kernel" for name in ("gate", "up", "down")} | {"head.kernel"}
TABLES = {"embedding.tokens", "embedding.positions"}
NOT_DECAYED = {f"blocks.attention.{name}_bias" for name in ("query", "key", "value", "output")}
NOT_DECAYED |= {f"blocks.mlp.{name}_bias" for name in ("gate", "up", "down")} | {"head.bias"}
NOT_DECAYED |= {f"{name}.scale" for name in ("blocks.attention.query_norm", "blocks.attention.key_norm")}
NOT_DECAYED |= {
    f"{name}.{kind}" for name in ("embedding.norm", "blocks.attention_norm", "blocks.mlp_norm", "final_norm") for kind in ("scale", "bias")
}


def decayed(exclude: tuple[str, ...]) -> dict[str, bool]:
    shapes = jax.eval_shape(models.build(EVERYTHING).init, jax.random.key(0))
    mask = jax.tree_util.tree_leaves_with_path(optim.decay_mask(exclude, shapes))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in mask}


def test_decay_mask_names_every_parameter():
    expected = dict.fromkeys(KERNELS | TABLES, True) | dict.fromkeys(NOT_DECAYED, False)
    assert decayed(config.Optimizer().weight_decay_exclude) == expected


def test_decay_mask_of_other_words():
    assert decayed(()) == dict.fromkeys(KERNELS | TABLES | NOT_DECAYED, True)
    assert decayed(("bias", "norm", "embedding")) == dict.fromkeys(KERNELS, True) | dict.fromkeys(TABLES | NOT_DECAYED, False)


PARAMS = {"mlp": {"up_kernel": jnp.asarray([[1.0, -2.0], [3.0, 4.0]]), "up_bias": jnp.asarray([5.0, -6.0])}}


def settings(**fields) -> config.Optimizer:
    plain = {"learning_rate": 0.1, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99}
    return config.Optimizer(**(plain | fields))


def updates(fields: dict, gradients: list) -> tuple[dict, dict]:
    """(parameters after the gradients, the first moment)."""
    optimizer = optim.build(settings(**fields), STEPS)
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(gradient: dict, state: optax.OptState, params: dict) -> tuple[dict, optax.OptState]:
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    for gradient in gradients:
        params, state = step(gradient, state, params)
    return params, optax.tree.get(state, "mu")


def test_decay_is_decoupled_and_masked():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    params, _ = updates({"weight_decay": 0.5}, [zero, zero])
    np.testing.assert_allclose(params["mlp"]["up_kernel"], PARAMS["mlp"]["up_kernel"] * 0.95**2, rtol=1e-6)
    np.testing.assert_array_equal(params["mlp"]["up_bias"], PARAMS["mlp"]["up_bias"])


def test_adamw_formula():
    rng = np.random.default_rng(0)
    gradients = [jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), PARAMS) for _ in range(4)]
    params, _ = updates({"weight_decay": 0.2, "gradient_clip": None, "epsilon": 0.01}, gradients)
    for name, decay in (("up_kernel", 0.2), ("up_bias", 0.0)):
        p, m, v = np.asarray(PARAMS["mlp"][name], np.float64), 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            g = gradient["mlp"][name]
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            p = p - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 0.01) + decay * p)
        np.testing.assert_allclose(params["mlp"][name], p, rtol=1e-5)


@pytest.mark.parametrize(("clip", "size", "expected"), [(1.0, 8.0, 1.0), (2.5, 8.0, 2.5), (1.0, 0.5, 0.5), (None, 8.0, 8.0)])
def test_clipping_is_by_the_global_norm(clip, size, expected):
    """Seen in the first moment, which is (1 - beta1) times the clipped gradient."""
    gradient = jax.tree.map(lambda a: jnp.full_like(a, size / 6**0.5), PARAMS)  # six elements
    _, moment = updates({"gradient_clip": clip}, [gradient])
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moment)]) / 0.1
    np.testing.assert_allclose(leaves, expected / 6**0.5, rtol=1e-5)


def test_state_has_the_same_tree_with_and_without_clipping():
    trees = [jax.tree.structure(optim.build(settings(gradient_clip=clip), STEPS).init(PARAMS)) for clip in (None, 1.0)]
    assert trees[0] == trees[1]
