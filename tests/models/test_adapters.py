"""Adapters: what is trained and held, what merging gives, and the same on every mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny
from support.marks import quick_and_slow
from support.trees import assert_same

from jaxlm import base_identity, models, sharding, state
from jaxlm.config import AdapterConfig, Config, UserError
from jaxlm.models.adapters import (
    adapter_part,
    attach_adapters,
    base_part,
    merge_adapters,
)
from jaxlm.parameter_names import merge
from jaxlm.types import Tree

ALL = ("query", "key", "value", "output", "gate", "up", "down")
PLAIN = AdapterConfig(rank=4, base="float32")
DORA = AdapterConfig(
    rank=4, targets=("query", "output", "up", "down"), dora=True, rank_stabilised=True, base="int8"
)


def with_adapter(family: str, adapter: AdapterConfig, **training) -> Config:
    config = tiny.FAMILIES[family]
    return replace(config, adapter=adapter, training=replace(config.training, **training))


def moved(params: Tree) -> Tree:
    """Return parameters whose adapters are no longer where they started."""
    random = np.random.default_rng(3)
    adapters = jax.tree.map(
        lambda x: x + 0.05 * random.normal(size=x.shape).astype(np.float32), adapter_part(params)
    )
    return merge(params, adapters)


# The state


def test_optimizer_bytes_are_those_of_the_formula():
    """AdamW has two float32 moments of each number of A and B, and two counters."""
    config = with_adapter("decoder", AdapterConfig(rank=8, targets=ALL))
    N, D, H, G, K, r = 2, 64, 4, 2, 16, 8
    F = config.model.hidden_width
    a = N * r * (3 * D + H * K + 2 * D + F)  # by query, key, value; output; gate, up; down
    b = N * r * (H * K + 2 * G * K + D + 2 * F + D)

    parts = tiny.parts(1, config)
    assert parts.model.adapter_parameter_count() == a + b
    assert parts.model.parameter_count() == models.build(config.model).parameter_count()
    shapes = state.state_shapes(parts.model, parts.optimizer)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes.optimizer))
    assert held == 8 * (a + b) + 8

    # ZeRO splits the width, and the rank where a matrix does not have the width.
    for devices, zero in ((4, 1), (8, 3)):
        other = tiny.parts(devices, config, zero=zero)
        shardings = state.state_shardings(other.model, other.optimizer, other.placement)
        held = sharding.bytes_per_device(shapes.optimizer, shardings.optimizer)
        assert held == 8 * (a + b) // devices + 8


def test_frozen_matrices_are_kept_as_the_config_says():
    for kept, block, table in (
        ("float32", jnp.float32, jnp.float32),
        ("bfloat16", jnp.bfloat16, jnp.bfloat16),
        ("int8", jnp.int8, jnp.bfloat16),
    ):
        model = tiny.parts(1, with_adapter("decoder", replace(PLAIN, base=kept))).model
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        attention = shapes["blocks"]["attention"]
        for name in ("query_kernel", "output_kernel"):  # with an adapter, and without
            assert jax.tree.leaves(attention[name])[0].dtype == block
        assert shapes["embedding"]["tokens"].dtype == table
        assert attention["query_lora_a"].dtype == jnp.float32
        assert shapes["final_norm"]["scale"].dtype == jnp.float32


def test_without_adapters_the_model_is_the_one_it_was():
    """Also with one whose rank is 0; its tree and values have no part of an adapter."""
    config = tiny.CONFIG.model
    plain = models.build(config)
    other = models.build(config, adapter=AdapterConfig(targets=("up",), dora=True))
    key = jax.random.key(0)
    assert plain.axes == other.axes
    assert_same(plain.init(key), other.init(key))


# Training


@pytest.mark.parametrize(
    ("family", "adapter"),
    quick_and_slow(
        [("decoder", PLAIN)],
        [(family, adapter) for family in tiny.FAMILIES for adapter in (PLAIN, DORA)],
    ),
    ids=str,
)
def test_adapters_alone_are_trained(family, adapter):
    parts = tiny.parts(1, with_adapter(family, adapter))
    current = parts.start()
    start = jax.device_get(current.params)
    step, batch = parts.step(), parts.put(tiny.batch(0, parts.config))
    losses = []
    for _ in range(5):
        current, metrics = step(current, batch)
        losses.append(float(metrics.loss))

    end = jax.device_get(current.params)
    assert losses[-1] < losses[0]
    assert_same(base_part(start), base_part(end))
    unmoved = jax.tree.map(np.array_equal, adapter_part(start), adapter_part(end))
    assert not any(jax.tree.leaves(unmoved))
    moments = optax.tree.get(current.optimizer, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(adapter_part(start))


MESHES = {
    "ZeRO 3, scanned": dict(devices=8, zero=3, data=2, fsdp=4),
    "ZeRO 3 x tensor 2, unrolled": dict(devices=8, zero=3, tensor=2, blocks="unrolled"),
    "ZeRO 2 x tensor 2": dict(devices=4, zero=2, tensor=2),
    "ZeRO 1": dict(devices=4, zero=1),
    "ZeRO 0, scanned": dict(devices=2, zero=0, blocks="scanned"),
}
CELLS = [(mesh, family) for mesh in MESHES for family in tiny.FAMILIES]


@pytest.mark.parametrize(("mesh", "family"), quick_and_slow([], CELLS))
def test_a_step_on_a_mesh_is_that_of_one_device(mesh, family):
    """With microbatches, rounded weights, DoRA and dropout on the inputs of A."""
    adapter = replace(DORA, dropout=0.1)
    results = []
    for microbatches, parallel in ((1, dict(devices=1)), (2, MESHES[mesh])):
        parts = tiny.parts(
            **parallel, config=with_adapter(family, adapter, microbatches=microbatches)
        )
        start = tiny.initial_state(parts.config)
        start = start._replace(params=moved(start.params))
        batch = parts.put(tiny.batch(0, parts.config))
        current, metrics = parts.step()(parts.place(start), batch)
        results.append((metrics, jax.device_get(optax.tree.get(current.optimizer, "mu"))))

    (one, gradients), (other, mesh_gradients) = results
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(mesh_gradients), strict=True):
        assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(a)


def test_frozen_weights_have_no_gradients_on_the_network():
    """ZeRO 3 gathers them; what it reduces is of the adapters, and of the loss."""
    parts = tiny.parts(8, with_adapter("decoder", PLAIN), zero=3, fsdp=8, blocks="unrolled")
    shapes = state.state_shapes(parts.model, parts.optimizer).params
    batch = jax.eval_shape(lambda: tiny.batch(0, parts.config))
    jaxpr = jax.make_jaxpr(lambda p, b: parts.gradients(p, b))(shapes, batch)
    reduced = [
        equation.invars[0].aval.size
        for equation in tiny.equations(jaxpr.jaxpr)
        if equation.primitive.name in ("reduce_scatter", "psum", "psum_invariant")
    ]
    largest = max(leaf.size for leaf in jax.tree.leaves(adapter_part(shapes)))
    assert reduced and max(reduced) <= largest


# Merging


@pytest.mark.parametrize(
    ("family", "adapter"),
    quick_and_slow(
        [],  # test_peft.py has one
        [
            (family, replace(adapter, base=kept))
            for family in tiny.FAMILIES
            for adapter in (PLAIN, DORA)
            for kept in ("float32", "bfloat16", "int8")
        ],
    ),
    ids=str,
)
def test_merged_weights_give_the_logits_of_unmerged_ones(family, adapter):
    config = with_adapter(family, adapter)
    model, plain = models.build(config.model, adapter=adapter), models.build(config.model)
    params = moved(model.init(jax.random.key(0)))
    batch = tiny.batch(0, config)

    merged = merge_adapters(adapter, model.axes, params)
    assert jax.tree.structure(merged) == jax.tree.structure(
        plain.axes, is_leaf=lambda x: isinstance(x, tuple)
    )
    ours, theirs = model.apply(params, batch), plain.apply(merged, batch)
    start = model.apply(merge(params, adapter_part(model.init(jax.random.key(0)))), batch)
    assert np.abs(ours - start).max() > 1e-3
    assert np.abs(ours - theirs).max() <= 1e-5


@pytest.mark.slow
def test_fresh_adapters_change_nothing():
    """Of DoRA neither: the magnitudes are the norms of the base that is there."""
    adapter = replace(DORA, base="float32")
    model, plain = models.build(tiny.CONFIG.model, adapter=adapter), models.build(tiny.CONFIG.model)
    base, batch = plain.init(jax.random.key(5)), tiny.batch(0)
    params = attach_adapters(adapter, model.axes, base, model.init(jax.random.key(0)))
    assert_same(base_part(params), base)
    assert np.abs(model.apply(params, batch) - plain.apply(base, batch)).max() <= 1e-6


def test_a_shared_a_is_one_matrix_over_query_key_and_value():
    """As a single adapter [D, 3 D] of the three matrices beside each other."""
    adapter = AdapterConfig(rank=4, targets=("qkv",), base="float32")
    model = models.build(tiny.CONFIG.model, adapter=adapter)
    params = moved(model.init(jax.random.key(0)))
    own, merged = params["blocks"]["attention"], merge_adapters(adapter, model.axes, params)
    names = ("query", "key", "value")
    assert not [name for name in own if name.endswith("_lora_a") and name != "qkv_lora_a"]
    b = np.concatenate([np.reshape(own[f"{n}_lora_b"], (2, 4, -1)) for n in names], -1)
    change = 4.0 * np.asarray(own["qkv_lora_a"]) @ b  # alpha / rank
    merged = merged["blocks"]["attention"]
    both = [
        np.concatenate([np.reshape(tree[f"{n}_kernel"], (2, 64, -1)) for n in names], -1)
        for tree in (own, merged)
    ]
    np.testing.assert_allclose(both[0] + change, both[1], atol=1e-6)


# Bases


def test_equal_weights_have_equal_hashes_on_every_mesh():
    params = tiny.initial_state(tiny.CONFIG).params
    parts = tiny.parts(8, zero=3, tensor=2)
    placed = jax.device_put(params, parts.shardings().params)
    first = base_identity.hash_params(params)
    assert base_identity.hash_params(placed) == first and len(first) == 64

    tokens = np.array(params["embedding"]["tokens"])
    tokens[[3, 5]] = tokens[[5, 3]]  # the same values in other places
    swapped = merge(params, {"embedding": {"tokens": tokens}})
    second = base_identity.hash_params(swapped)
    assert second != first
    base_identity.check_base("runs/base", first, first)
    message = f"base: runs/base: .* {second[:16]}, .* trained on those with {first[:16]}$"
    with pytest.raises(UserError, match=message):
        base_identity.check_base("runs/base", first, second)
