"""The same maths on every mesh, and bytes per device by the formula."""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny

from jaxlm import config, models, sharding, state, step
from jaxlm.config import ConfigError

MESHES = [
    ("decoder", dict(zero=0)),
    ("decoder", dict(zero=1)),
    ("decoder", dict(zero=2)),
    ("decoder", dict(zero=3)),
    ("decoder", dict(zero=3, data=2)),
    ("decoder", dict(zero=1, tensor=2)),
    ("decoder", dict(zero=3, tensor=2)),
    ("encoder", dict(zero=0)),
    ("encoder", dict(zero=3)),
    pytest.param("encoder", dict(zero=3, tensor=2), marks=pytest.mark.slow),
    ("encoder_decoder", dict(zero=0)),
    ("encoder_decoder", dict(zero=3)),
    pytest.param("encoder_decoder", dict(zero=3, tensor=2), marks=pytest.mark.slow),
]


def first_gradients(parts: tiny.Parts) -> dict[str, np.ndarray]:
    params = parts.start().params
    run = jax.jit(
        lambda p, b: step.accumulate_gradients(
            parts.model, parts.config.training, parts.placement, p, b, None
        )[1]
    )
    found = jax.device_get(run(params, parts.put(tiny.batch(0, parts.config))))
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


@cache
def one_device(family: str) -> tuple[list[float], dict[str, np.ndarray]]:
    parts = tiny.parts(1, tiny.FAMILIES[family])
    return tiny.losses(parts, 5), first_gradients(parts)


def mesh_name(value) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}{v}" for k, v in value.items())


@pytest.mark.parametrize(("family", "parallel"), MESHES, ids=mesh_name)
def test_every_mesh_computes_what_one_device_does(family, parallel):
    losses, gradients = one_device(family)
    parts = tiny.parts(8, tiny.FAMILIES[family], **parallel)
    # float32 sums in another order: 2e-7 a step at worst here, a wrong normalisation or a lost shard is above 1e-3.
    np.testing.assert_allclose(tiny.losses(parts, 5), losses, rtol=2e-6)
    total = math.sqrt(sum(float(np.sum(np.square(g))) for g in gradients.values()))
    for path, gradient in first_gradients(parts).items():
        # Per tensor, relative to its norm; tensors that are all but zero are held against the global norm.
        error = np.linalg.norm(gradient - gradients[path]) / max(
            np.linalg.norm(gradients[path]), 1e-3 * total
        )
        assert error < 1e-5, (path, error)


@pytest.mark.parametrize(
    "parallel", [dict(zero=2, devices=8), dict(zero=0, devices=1)], ids=["zero2", "one"]
)
def test_microbatches_change_nothing(parallel):
    settings = replace(tiny.CONFIG, training=replace(tiny.CONFIG.training, microbatches=2))
    parallel = dict(parallel)
    parts = tiny.parts(parallel.pop("devices"), settings, **parallel)
    np.testing.assert_allclose(tiny.losses(parts, 3), one_device("decoder")[0][:3], rtol=2e-6)


def expected_bytes(model: models.Model, fsdp: int, tensor: int, split: bool) -> int:
    """The formula: 4 bytes per element, over tensor where a dimension is one of its axes, over fsdp along the width."""
    total = 0
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves = zip(
        jax.tree.leaves(shapes),
        jax.tree.leaves(model.axes, is_leaf=lambda x: isinstance(x, tuple)),
        strict=True,
    )
    for shape, names in leaves:
        size = 4 * math.prod(shape.shape)
        for name, dimension in zip(names, shape.shape, strict=True):
            if name in ("heads", "kv_heads", "mlp", "vocabulary") and dimension % tensor == 0:
                size //= tensor
            if name == "embed" and split and dimension % fsdp == 0:
                size //= fsdp
        total += size
    return total


SPLITS = [("decoder", zero, tensor) for zero in (0, 1, 2, 3) for tensor in (1, 2)]
SPLITS += [
    (family, zero, tensor)
    for family in ("encoder", "encoder_decoder")
    for zero, tensor in ((1, 1), (3, 2))
]


@pytest.mark.parametrize(("family", "zero", "tensor"), SPLITS)
def test_bytes_per_device_are_the_formula(family, zero, tensor):
    parts = tiny.parts(8, tiny.FAMILIES[family], zero=zero, tensor=tensor)
    current = parts.start()

    def held(tree) -> set[int]:
        """Bytes on each device, counted on the arrays themselves."""
        counts = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                counts[shard.device] += shard.data.nbytes
        return set(counts.values())

    fsdp, counter = 8 // tensor, 4
    shapes = state.state_shapes(parts.model, parts.optimizer)
    where = state.state_shardings(parts.model, parts.optimizer, parts.placement)
    params = expected_bytes(parts.model, fsdp, tensor, split=zero == 3)
    moments = 2 * expected_bytes(parts.model, fsdp, tensor, split=zero >= 1)
    assert (
        held(current.params) == {params} == {sharding.bytes_per_device(shapes.params, where.params)}
    )
    # Two moments, and the two step counters of the chain (Adam's and the schedule's).
    assert (
        held(current.optimizer)
        == {moments + 2 * counter}
        == {sharding.bytes_per_device(shapes.optimizer, where.optimizer)}
    )


def test_gradients_are_split_from_stage_2_on():
    for zero in (1, 2):
        parts = tiny.parts(8, zero=zero)
        kinds = parts.placement.tree(
            "gradients", state.state_shapes(parts.model, parts.optimizer).params
        )
        assert ("fsdp" in kinds["embedding"]["tokens"].spec) == (zero == 2)


def test_initial_values_do_not_depend_on_the_mesh():
    one, sharded = tiny.parts(1).start(), tiny.parts(8, zero=3, tensor=2).start()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
        one.params,
        sharded.params,
    )


@pytest.mark.parametrize(
    ("parallel", "key"),
    [
        (dict(data=3), "parallel"),
        (dict(data=2, fsdp=2, tensor=1), "parallel"),
        (dict(data=8, fsdp=1, zero=1), "parallel.zero"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(parallel, key):
    with pytest.raises(ConfigError) as caught:
        sharding.make_mesh(config.ParallelConfig(**parallel), jax.devices())
    assert caught.value.path == key


def test_model_and_batch_must_divide():
    mesh = sharding.make_mesh(config.ParallelConfig(tensor=8), jax.devices())
    with pytest.raises(ConfigError, match=r"parallel.tensor: 8 does not divide model.heads \(4\)"):
        sharding.check_mesh(mesh, tiny.CONFIG.model, [16], 1, config.EvaluationConfig())
    mesh = sharding.make_mesh(config.ParallelConfig(), jax.devices())
    with pytest.raises(ConfigError, match=r"training.batch_size: 12 sequences"):
        sharding.check_mesh(mesh, tiny.CONFIG.model, [16, 12], 1, config.EvaluationConfig())
    with pytest.raises(ConfigError, match=r"evaluation.batch_size: 12 sequences"):
        sharding.check_mesh(
            mesh, tiny.CONFIG.model, [16], 1, config.EvaluationConfig(batch_size=12)
        )


def test_unknown_axes_and_collisions_name_the_parameter():
    mesh = sharding.make_mesh(config.ParallelConfig(), jax.devices())
    with pytest.raises(ValueError, match=r"params\.x: unknown logical axis 'embeds'"):
        sharding.weight_spec(mesh, ("embeds",), (8,), True, "params.x")
    with pytest.raises(ValueError, match=r"params\.x: two dimensions"):
        sharding.weight_spec(mesh, ("heads", "mlp"), (8, 8), True, "params.x")


def test_a_width_that_does_not_divide_stays_whole_and_is_listed():
    settings = replace(tiny.CONFIG, model=replace(tiny.CONFIG.model, width=36, head_width=16))
    parts = tiny.parts(8, settings, zero=3)
    shapes = state.state_shapes(parts.model, parts.optimizer).params
    listed = sharding.list_replicated(shapes, parts.placement.tree("parameters", shapes))
    assert "embedding.tokens" in listed
    gpt2 = models.build(config.ModelConfig())
    shapes = jax.eval_shape(gpt2.init, jax.random.key(0))
    placement = sharding.Placement(parts.placement.mesh, gpt2.axes, zero=3)
    assert sharding.list_replicated(shapes, placement.tree("parameters", shapes)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_reduced_in_their_dtype(dtype):
    precision = config.PrecisionConfig(compute="bfloat16", gradients=dtype)
    mesh = sharding.make_mesh(config.ParallelConfig(zero=3), jax.devices())

    def used(weight):
        return sharding.gather(
            mesh, 3, precision, {"kernel": weight}, {"kernel": ("embed", "mlp")}
        )["kernel"]

    weight = jnp.ones((8, 8), jnp.float32)
    # A gradient has the dtype of what the layer is given, and is summed in it; it comes back in the dtype that is stored.
    assert used(weight).dtype == dtype
    assert jax.grad(lambda w: used(w).astype(jnp.float32).sum())(weight).dtype == jnp.float32


def test_the_mesh_is_described_with_its_hosts():
    devices = [SimpleNamespace(process_index=n // 2, id=n) for n in range(8)]
    mesh = lambda **sizes: SimpleNamespace(
        devices=np.array(devices).reshape(*sizes.values()), shape=sizes
    )  # noqa: E731
    hosts = ("a", "a", "b", "b")
    assert (
        sharding.describe_mesh(mesh(data=1, fsdp=8, tensor=1), ("a",) * 4)
        == "data 1 x fsdp 8 x tensor 1 on 4 processes (a: 0-3)"
    )
    where = "on 4 processes (a: 0-1; b: 2-3)"
    assert (
        sharding.describe_mesh(mesh(data=2, fsdp=2, tensor=2), hosts)
        == f"data 2 (across hosts) x fsdp 2 x tensor 2 {where}"
    )
    assert (
        sharding.describe_mesh(mesh(data=1, fsdp=4, tensor=2), hosts)
        == f"data 1 x fsdp 4 (across hosts) x tensor 2 {where}"
    )
    one = mesh(data=2, fsdp=4, tensor=1)
    assert sharding.describe_mesh(
        SimpleNamespace(devices=np.array(devices[:2] * 4).reshape(2, 4, 1), shape=one.shape), ("a",)
    ).endswith("tensor 1")


def test_many_hosts_are_shortened():
    assert sharding.ranges([0, 1, 2, 4, 7, 8]) == "0-2, 4, 7-8"
    hosts = [f"n{n}" for n in range(20)]
    devices = [SimpleNamespace(process_index=n, id=n) for n in range(20)]
    mesh = SimpleNamespace(
        devices=np.array(devices).reshape(20, 1, 1), shape=dict(data=20, fsdp=1, tensor=1)
    )
    assert sharding.describe_mesh(mesh, hosts).endswith("n7: 7; 12 more hosts)")
