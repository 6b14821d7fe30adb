"""Schedules by values computed by hand, the decay mask, clipping, AdamW's formula, Adafactor.

Adafactor is compared with the one of transformers.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from support import tiny

from jaxlm import config, models, optim, state
from jaxlm.types import Tree

STEPS, WARMUP = 10, 4

# (fields, {step: rate}). The peak is 1, the final ratio 0.1 and the warmup 4 steps of 10, unless
# the fields say otherwise.
SCHEDULES = {
    "warmup": ({}, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 4: 1.0}),
    "cosine": (
        {},
        {4: 1.0, 5: 0.1 + 0.9 * 0.9330127, 7: 0.55, 9: 0.1 + 0.9 * 0.0669873, 10: 0.1, 50: 0.1},
    ),
    "cosine, decay_steps": ({"decay_steps": 8}, {4: 1.0, 6: 0.55, 8: 0.1, 9: 0.1}),
    "cosine, to zero": ({"final_learning_rate_ratio": 0.0}, {7: 0.5, 10: 0.0}),
    "linear": ({"schedule": "linear"}, {0: 0.25, 4: 1.0, 5: 0.85, 7: 0.55, 10: 0.1, 50: 0.1}),
    "linear, decay_steps": (
        {"schedule": "linear", "decay_steps": 6},
        {4: 1.0, 5: 0.55, 6: 0.1, 9: 0.1},
    ),
    "constant": ({"schedule": "constant"}, {0: 0.25, 3: 1.0, 4: 1.0, 9: 1.0, 50: 1.0}),
    "inverse_sqrt": ({"schedule": "inverse_sqrt"}, {0: 0.25, 4: 1.0, 9: 2 / 3, 16: 0.5, 400: 0.1}),
    "inverse_sqrt, no warmup": (
        {"schedule": "inverse_sqrt", "warmup_steps": 0},
        {0: 1.0, 1: 1.0, 4: 0.5, 100: 0.1},
    ),
    "wsd": (
        {"schedule": "wsd", "decay_share": 0.4},
        {0: 0.25, 4: 1.0, 6: 1.0, 7: 0.775, 8: 0.55, 10: 0.1, 50: 0.1},
    ),
    "wsd, no share": ({"schedule": "wsd", "decay_share": 0.0}, {4: 1.0, 9: 1.0}),
    "wsd, all": (
        {"schedule": "wsd", "decay_share": 1.0, "warmup_steps": 0},
        {0: 1.0, 5: 0.55, 10: 0.1},
    ),
    "wsd, the decay waits for the warmup": (
        {"schedule": "wsd", "decay_share": 1.0},
        {0: 0.25, 3: 1.0, 4: 1.0, 5: 0.85, 7: 0.55, 10: 0.1},
    ),
    "wsd, warmup cut to the steps": (
        {"schedule": "wsd", "warmup_steps": 100},
        {0: 0.1, 8: 0.9, 9: 1.0},
    ),
    "no warmup": ({"warmup_steps": 0}, {0: 1.0, 5: 0.55, 10: 0.1}),
    "warmup cut to the steps": ({"warmup_steps": 100}, {0: 0.1, 4: 0.5, 9: 1.0}),
    "warmup from half the peak": (
        {"warmup_start_ratio": 0.5},
        {0: 0.625, 1: 0.75, 2: 0.875, 3: 1.0, 4: 1.0, 7: 0.55},
    ),
    "warmup at the peak": ({"warmup_start_ratio": 1.0}, {0: 1.0, 1: 1.0, 3: 1.0, 4: 1.0, 7: 0.55}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    fields, expected = SCHEDULES[name]
    values = {
        "learning_rate": 1.0,
        "warmup_steps": WARMUP,
        "final_learning_rate_ratio": 0.1,
        "schedule": "cosine",
    } | fields
    rate = optim.learning_rate_schedule(config.OptimizerConfig(**values), STEPS)
    found = {step: float(np.asarray(rate(step))) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 80), st.floats(0, 1), st.floats(0, 1))
@pytest.mark.slow
def test_wsd_never_jumps_and_keeps_the_rates_of_decays_after_the_warmup(
    steps, warmup, share, final
):
    values = {"warmup_steps": warmup, "decay_share": share, "final_learning_rate_ratio": final}
    config_ = config.OptimizerConfig(learning_rate=1.0, schedule="wsd", **values)
    rates = np.asarray(optim.learning_rate_schedule(config_, steps)(jnp.arange(steps)))

    decay = max(1, round(steps * share))
    decay_steps = steps - max(min(warmup, steps), steps - decay)
    largest = max(1 / max(1, min(warmup, steps)), (1 - final) / max(1, decay_steps))
    assert np.abs(np.diff(rates)).max(initial=0) <= largest + 1e-6

    if steps - decay >= warmup:
        after = np.arange(warmup, steps, dtype=np.float32)
        expected = 1 + (final - 1) * np.clip((after - (steps - decay)) / decay, 0.0, 1.0)
        np.testing.assert_allclose(rates[warmup:], expected, rtol=1e-5)


def test_schedule_inside_jit_and_scaled_by_the_peak():
    rate = optim.learning_rate_schedule(
        config.OptimizerConfig(learning_rate=3e-4, warmup_steps=WARMUP), STEPS
    )
    traced = jax.jit(jax.vmap(rate))(jnp.arange(12))
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(
        traced, [float(np.asarray(rate(step))) for step in range(12)], rtol=1e-6
    )
    assert float(np.asarray(rate(7))) == pytest.approx(3e-4 * 0.55)


def test_warmup_from_zero_has_the_bits_of_its_formula():
    """A run from before there was a start ratio resumes to the same numbers.

    Not compiled, since XLA may round another order alike.
    """
    rate = optim.learning_rate_schedule(
        config.OptimizerConfig(learning_rate=3e-4, warmup_steps=777), 5000
    )
    steps = jnp.arange(777, dtype=jnp.float32)
    np.testing.assert_array_equal(rate(steps), 3e-4 * (steps + 1) / 777)


def test_the_schedule_of_t5():
    """1 / sqrt(max(step, 10,000)): arXiv 1910.10683, section 3.1.2."""
    fields = {
        "learning_rate": 0.01,
        "schedule": "inverse_sqrt",
        "warmup_steps": 10_000,
        "warmup_start_ratio": 1.0,
    }
    steps = np.asarray([0, 1, 5_000, 9_999, 10_000, 40_000, 2**19])
    rate = optim.learning_rate_schedule(config.OptimizerConfig(**fields), 2**19)
    np.testing.assert_allclose(rate(steps), 1 / np.sqrt(np.maximum(steps, 10_000)), rtol=1e-6)


EVERYTHING = config.ModelConfig(
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
NOT_DECAYED |= {
    f"{name}.scale" for name in ("blocks.attention.query_norm", "blocks.attention.key_norm")
}
NOT_DECAYED |= {
    f"{name}.{kind}"
    for name in ("embedding.norm", "blocks.attention_norm", "blocks.mlp_norm", "final_norm")
    for kind in ("scale", "bias")
}


def decayed(exclude: tuple[str, ...]) -> dict[str, bool]:
    shapes = jax.eval_shape(models.build(EVERYTHING).init, jax.random.key(0))
    mask = jax.tree_util.tree_leaves_with_path(optim.decay_mask(exclude, shapes))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in mask}


def test_decay_mask_names_every_parameter():
    expected = dict.fromkeys(KERNELS | TABLES, True) | dict.fromkeys(NOT_DECAYED, False)
    assert decayed(config.OptimizerConfig().weight_decay_exclude) == expected


def test_decay_mask_of_other_words():
    assert decayed(()) == dict.fromkeys(KERNELS | TABLES | NOT_DECAYED, True)
    assert decayed(("bias", "norm", "embedding")) == dict.fromkeys(KERNELS, True) | dict.fromkeys(
        TABLES | NOT_DECAYED, False
    )


PARAMS = {
    "mlp": {
        "up_kernel": jnp.asarray([[1.0, -2.0], [3.0, 4.0]]),
        "up_bias": jnp.asarray([5.0, -6.0]),
    }
}
AXES = {"mlp": {"up_kernel": ("embed", "mlp"), "up_bias": ("mlp",)}}


def optimizer_config(**fields) -> config.OptimizerConfig:
    plain = {
        "learning_rate": 0.1,
        "warmup_steps": 0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
    }
    return config.OptimizerConfig(**(plain | fields))


def updates(fields: dict, gradients: list) -> tuple[dict, dict]:
    """Return (parameters after the gradients, the first moment)."""
    optimizer = optim.build_optimizer(optimizer_config(**fields), STEPS, AXES)
    params, state = PARAMS, optimizer.init(PARAMS)

    @jax.jit
    def step(gradient: Tree, state: optax.OptState, params: Tree) -> tuple[Tree, optax.OptState]:
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    for gradient in gradients:
        params, state = step(gradient, state, params)
    return params, optax.tree.get(state, "mu")


def test_decay_is_decoupled_and_masked():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    params, _ = updates({"weight_decay": 0.5}, [zero, zero])
    np.testing.assert_allclose(
        params["mlp"]["up_kernel"], PARAMS["mlp"]["up_kernel"] * 0.95**2, rtol=1e-6
    )
    np.testing.assert_array_equal(params["mlp"]["up_bias"], PARAMS["mlp"]["up_bias"])


def test_decay_leaves_out_what_the_config_excludes():
    """Here the kernel by a part of its name, and not the bias."""
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    params, _ = updates({"weight_decay": 0.5, "weight_decay_exclude": ("kernel",)}, [zero])
    np.testing.assert_array_equal(params["mlp"]["up_kernel"], PARAMS["mlp"]["up_kernel"])
    np.testing.assert_allclose(params["mlp"]["up_bias"], PARAMS["mlp"]["up_bias"] * 0.95, rtol=1e-6)


def test_adamw_formula():
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), PARAMS)
        for _ in range(4)
    ]
    params, _ = updates({"weight_decay": 0.2, "gradient_clip": None, "epsilon": 0.01}, gradients)
    for name, decay in (("up_kernel", 0.2), ("up_bias", 0.0)):
        p, m, v = np.asarray(PARAMS["mlp"][name], np.float64), 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            g = gradient["mlp"][name]
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            p = p - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 0.01) + decay * p)
        np.testing.assert_allclose(params["mlp"][name], p, rtol=1e-5)


@pytest.mark.parametrize(
    ("clip", "size", "expected"),
    [(1.0, 8.0, 1.0), (2.5, 8.0, 2.5), (1.0, 0.5, 0.5), (None, 8.0, 8.0)],
)
def test_clipping_is_by_the_global_norm(clip, size, expected):
    """Seen in the first moment, which is (1 - beta1) times the clipped gradient."""
    gradient = jax.tree.map(lambda a: jnp.full_like(a, size / 6**0.5), PARAMS)  # six elements
    _, moment = updates({"gradient_clip": clip}, [gradient])
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moment)]) / 0.1
    np.testing.assert_allclose(leaves, expected / 6**0.5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_state_has_the_same_tree_with_and_without_clipping(kind):
    trees = [
        jax.tree.structure(
            optim.build_optimizer(
                optimizer_config(kind=kind, gradient_clip=clip), STEPS, AXES
            ).init(PARAMS)
        )
        for clip in (None, 1.0)
    ]
    assert trees[0] == trees[1]


# {path: (shape, logical axes)}: two depths of stacks, matrices on both sides of 128, heads to merge
# as the first and as the last dimensions, and vectors.
TENSORS = {
    "encoder.query_kernel": ((2, 160, 4, 33), ("layers", "embed", "heads", "head")),
    "encoder.key_kernel": (
        (2, 160, 2, 33),
        ("layers", "embed", "kv_heads", "head"),
    ),  # [160, 66] is not factored
    "encoder.output_kernel": ((2, 4, 33, 160), ("layers", "heads", "head", "embed")),
    "encoder.query_bias": ((2, 4, 33), ("layers", "heads", "head")),
    "decoder.up_kernel": ((3, 160, 200), ("layers", "embed", "mlp")),
    "decoder.norm_scale": ((3, 160), ("layers", "norm")),
    "embedding": ((256, 160), ("vocabulary", "embed")),
    "final_norm": ((160,), ("norm",)),
}
TENSOR_AXES = {path: axes for path, (_, axes) in TENSORS.items()}


def matrices(path: str, stacked: np.ndarray) -> list[np.ndarray]:
    """Return a tensor of TENSORS as an implementation without stacks holds it.

    That is a matrix or vector per layer. Tensors that are not factored are flat.
    """
    layers = list(stacked) if TENSOR_AXES[path][0] == "layers" else [stacked]
    if "query_kernel" in path:
        return [layer.reshape(160, 132) for layer in layers]
    if "output_kernel" in path:
        return [layer.reshape(132, 160) for layer in layers]
    return [
        layer if layer.ndim == 2 and min(layer.shape) >= 128 else layer.ravel() for layer in layers
    ]


def random_tensors(seed: int, sizes: dict[str, float]) -> dict[str, np.ndarray]:
    """Return normal numbers in the shapes of TENSORS, times `sizes` (0.05 where not given).

    Every layer has its own size, so that one RMS for the stack would show.
    """
    random, tensors = np.random.default_rng(seed), {}
    for path, (shape, _) in TENSORS.items():
        values = random.normal(size=shape) * sizes.get(path, 0.05)
        if TENSOR_AXES[path][0] == "layers":
            layer = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
            values = values * layer**3
        tensors[path] = values.astype(np.float32)
    return tensors


def test_adafactor_beside_that_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    steps = 12
    # Two tensors are below the least RMS, 1e-3.
    params = random_tensors(0, {"decoder.norm_scale": 1e-5, "final_norm": 0.0})
    fields = {
        "kind": "adafactor",
        "learning_rate": 0.05,
        "warmup_steps": 4,
        "schedule": "linear",
        "gradient_clip": None,
    }
    optimizer = optim.build_optimizer(optimizer_config(**fields), steps, TENSOR_AXES)
    rate = optim.learning_rate_schedule(optimizer_config(**fields), steps)
    references = {
        path: [torch.nn.Parameter(torch.tensor(m)) for m in matrices(path, value)]
        for path, value in params.items()
    }
    reference = transformers.Adafactor(
        [p for many in references.values() for p in many],
        lr=1.0,
        scale_parameter=True,
        relative_step=False,
    )

    @jax.jit
    def step(gradients, state, params):
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state

    ours, state = params, optimizer.init(params)
    for number in range(steps):
        # From large to small: the updates are clipped at first. Columns of unequal size make the
        # factors matter.
        gradients = {
            path: g * np.linspace(0.1, 2, g.shape[-1], dtype=np.float32)
            for path, g in random_tensors(1 + number, {}).items()
        }
        gradients = {path: g * np.float32(1.5**number) for path, g in gradients.items()}
        ours, state = step(gradients, state, ours)
        reference.param_groups[0]["lr"] = float(np.asarray(rate(number)))
        for path, many in references.items():
            for parameter, gradient in zip(many, matrices(path, gradients[path]), strict=True):
                parameter.grad = torch.tensor(gradient)
        reference.step()

    for path, many in references.items():
        for mine, theirs, first in zip(
            matrices(path, np.asarray(ours[path])), many, matrices(path, params[path]), strict=True
        ):
            theirs = theirs.detach().numpy()
            # float32 in another order of summation: 7e-7 of the movement at worst here.
            error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs - first)
            assert error < 1e-5, (path, error)


def test_decay_of_adafactor_is_decoupled_and_masked():
    """Without a gradient only decay is left: rate times decay, not times the parameter's RMS."""
    optimizer = optim.build_optimizer(
        optimizer_config(kind="adafactor", weight_decay=0.5), STEPS, AXES
    )
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    changes: Tree = jax.jit(lambda: optimizer.update(zero, optimizer.init(PARAMS), PARAMS)[0])()
    np.testing.assert_allclose(
        changes["mlp"]["up_kernel"], -0.05 * PARAMS["mlp"]["up_kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(changes["mlp"]["up_bias"], 0.0)


def test_statistics_of_bfloat16_parameters_are_float32():
    params = {path: jnp.zeros(shape, jnp.bfloat16) for path, (shape, _) in TENSORS.items()}
    shapes = jax.eval_shape(
        optim.build_optimizer(optimizer_config(kind="adafactor"), STEPS, TENSOR_AXES).init, params
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32", "int32"}


def test_adafactor_holds_a_row_and_a_column_per_matrix():
    layers, width, hidden = 3, 1024, 4096
    params = {"up_kernel": jax.ShapeDtypeStruct((layers, width, hidden), jnp.float32)}
    axes = {"up_kernel": ("layers", "embed", "mlp")}

    def held(kind: str) -> int:
        shapes = jax.eval_shape(
            optim.build_optimizer(optimizer_config(kind=kind), STEPS, axes).init, params
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    counters = 2 * 4
    assert held("adamw") == 4 * 2 * layers * width * hidden + counters
    assert (
        held("adafactor") == 4 * layers * (width + hidden + 1) + counters
    )  # optax keeps one number in place of the full moment
    assert held("adafactor") < 0.05 * held("adamw")


# Factored: the table, the MLP's kernels, query and output (128 x 128). Not factored: key and value
# (128 x 64), norms, biases. The attention has no biases: the gradient of a key's bias is rounding
# alone, and Adafactor makes steps of it.
WIDE = replace(
    tiny.CONFIG,
    model=replace(
        tiny.CONFIG.model,
        width=128,
        mlp_width=256,
        attention_bias=False,
        attention_output_bias=False,
    ),
    optimizer=config.OptimizerConfig(
        kind="adafactor", learning_rate=0.01, warmup_steps=2, warmup_start_ratio=1.0
    ),
)


def two_steps(parts: tiny.Parts) -> tuple[Tree, state.TrainState]:
    """Return (parameters before, state after)."""
    current, step = parts.start(), parts.step()
    first = jax.device_get(current.params)
    for number in range(2):
        current, _ = jax.block_until_ready(step(current, parts.put(tiny.batch(number, WIDE))))
    return first, jax.device_get(current)


@pytest.fixture(scope="module")
def one_device():
    return two_steps(tiny.parts(1, WIDE, blocks="scanned"))


@pytest.mark.parametrize(
    "zero", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 2)), 3]
)
def test_adafactor_sharded_is_adafactor_on_one_device(one_device, zero):
    first, expected = one_device
    _, found = two_steps(tiny.parts(8, WIDE, zero=zero, tensor=2, blocks="scanned"))
    # float32 sums in another order: 2e-6 of the movement at worst here, 1e-6 of the statistics.
    for start, mine, theirs in zip(
        *map(jax.tree.leaves, (first, found.params, expected.params)), strict=True
    ):
        assert np.linalg.norm(mine - theirs) < 1e-5 * np.linalg.norm(theirs - start)
    for mine, theirs in zip(
        jax.tree.leaves(found.optimizer), jax.tree.leaves(expected.optimizer), strict=True
    ):
        assert np.linalg.norm(mine - theirs) <= 1e-5 * np.linalg.norm(theirs)


def places(run_config: config.Config, moment: str) -> dict[str, P]:
    """Return {parameter: spec of its moment} at ZeRO-1 on a mesh with a tensor axis."""
    parts = tiny.parts(8, run_config, zero=1, tensor=2)
    where = parts.shardings().optimizer
    leaves = jax.tree_util.tree_leaves_with_path(optax.tree.get(where, moment))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): sharding.spec
        for path, sharding in leaves
    }


def test_factored_moments_are_split_along_the_dimensions_that_they_have():
    # optax's rows are the averages over the longest dimension, its columns those over the other.
    rows, columns = places(WIDE, "v_row"), places(WIDE, "v_col")
    assert (rows["embedding.tokens"], columns["embedding.tokens"]) == (P("fsdp"), P("tensor"))
    assert rows["blocks.mlp.up_kernel"] == rows["blocks.mlp.down_kernel"] == P(None, "fsdp")
    assert columns["blocks.mlp.up_kernel"] == P(None, "tensor")
    assert rows["blocks.mlp.up_bias"] == P()  # not factored: a single number

    # What is not factored: v has the parameter's shape. With a width of 64 that is everything.
    factored, whole = places(WIDE, "v"), places(replace(WIDE, model=tiny.CONFIG.model), "v")
    assert factored["blocks.mlp.up_kernel"] == factored["embedding.tokens"] == P()
    assert factored["blocks.mlp.up_bias"] == P(None, "tensor")
    # Its heads are merged: no dimension of the parameter.
    assert factored["blocks.attention.key_kernel"] == P()
    assert whole["blocks.mlp.up_kernel"] == P(None, "fsdp", "tensor")
    assert whole["embedding.tokens"] == P("tensor", "fsdp")
