"""The same maths on every mesh, and bytes per device by the formula."""

import math
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from support import tiny

from jaxlm import config, mesh_execution, models, sharding, state
from jaxlm.config import ConfigError
from jaxlm.models.stack import REMAT
from jaxlm.precision import cast_for_compute, cast_for_gather
from jaxlm.run import describe_mesh, describe_ranges
from jaxlm.types import Tree

# The slow ones repeat: what a stage does shows in the decoder, what a family does at stage 3.
MESHES = [
    ("decoder", dict(zero=0)),
    pytest.param("decoder", dict(zero=1), marks=pytest.mark.slow),
    ("decoder", dict(zero=2)),
    pytest.param("decoder", dict(zero=3), marks=pytest.mark.slow),
    ("decoder", dict(zero=3, data=2)),
    ("decoder", dict(zero=1, tensor=2)),
    ("decoder", dict(zero=3, tensor=2)),
    pytest.param("encoder", dict(zero=0), marks=pytest.mark.slow),
    ("encoder", dict(zero=3)),
    pytest.param("encoder", dict(zero=3, tensor=2), marks=pytest.mark.slow),
    pytest.param("encoder_decoder", dict(zero=0), marks=pytest.mark.slow),
    ("encoder_decoder", dict(zero=3)),
    pytest.param("encoder_decoder", dict(zero=3, tensor=2), marks=pytest.mark.slow),
]


class Trained(NamedTuple):
    """The results of the first steps on one mesh."""

    losses: list[float]
    gradients: dict[str, np.ndarray]  # of the first step, clipped
    grad_norm: float  # of the first step, before clipping


def train(parts: tiny.Parts, steps: int) -> Trained:
    """Train for `steps` from the initial values of one device, with one compiled program.

    Every step is waited for, as emulated devices need it.
    """
    current, step = parts.place(tiny.initial_state(parts.config)), parts.step()
    losses, norms, gradients = [], [], {}
    for number in range(steps):
        current, metrics = step(current, parts.put(tiny.batch(number, parts.config)))
        losses.append(float(metrics.loss))
        norms.append(float(metrics.grad_norm))
        if number == 0:
            gradients = first_gradients(parts, current)

    assert_placed(parts, current)
    return Trained(losses, gradients, norms[0])


def first_gradients(parts: tiny.Parts, after: state.TrainState) -> dict[str, np.ndarray]:
    """Return the gradients of the first step: Adam's first moment is then (1 - beta1) of them."""
    share = 1 - parts.config.optimizer.beta1
    moments = jax.device_get(optax.tree.get(after.optimizer, "mu"))
    return {
        jax.tree_util.keystr(path): leaf / share
        for path, leaf in jax.tree_util.tree_leaves_with_path(moments)
    }


def assert_placed(parts: tiny.Parts, current: state.TrainState) -> None:
    """Check that every array of a state lies where the tables say."""
    for array, where in zip(
        jax.tree.leaves(current), jax.tree.leaves(parts.shardings()), strict=True
    ):
        assert array.sharding.is_equivalent_to(where, array.ndim), (array.sharding, where)


@cache
def one_device(family: str) -> Trained:
    return train(tiny.parts(1, tiny.FAMILIES[family]), 5)


def mesh_name(value) -> str:
    return value if isinstance(value, str) else "-".join(f"{k}{v}" for k, v in value.items())


@pytest.mark.parametrize(("family", "parallel"), MESHES, ids=mesh_name)
def test_every_mesh_computes_what_one_device_does(family, parallel):
    expected = one_device(family)
    found = train(tiny.parts(8, tiny.FAMILIES[family], **parallel), 5)
    # float32 sums in another order: 2e-7 a step at worst here. A wrong normalisation or a lost
    # shard is above 1e-3.
    np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-6)
    np.testing.assert_allclose(found.grad_norm, expected.grad_norm, rtol=1e-5)

    total = math.sqrt(sum(float(np.sum(np.square(g))) for g in expected.gradients.values()))
    for path, gradient in found.gradients.items():
        # Per tensor, relative to its norm. Tensors that are all but zero are held against the
        # global norm.
        size = max(np.linalg.norm(expected.gradients[path]), 1e-3 * total)
        error = np.linalg.norm(gradient - expected.gradients[path]) / size
        assert error < 1e-5, (path, error)


# tests/test_step.py holds those of one device against float64.
@pytest.mark.parametrize(
    "parallel",
    [
        dict(zero=2, devices=8),
        pytest.param(dict(zero=0, devices=1), marks=pytest.mark.slow),
    ],
    ids=["zero2", "one"],
)
def test_microbatches_change_nothing(parallel):
    training = replace(tiny.CONFIG.training, microbatches=2)
    devices = parallel["devices"]
    parts = tiny.parts(devices, replace(tiny.CONFIG, training=training), zero=parallel["zero"])
    found = train(parts, 3)
    np.testing.assert_allclose(found.losses, one_device("decoder").losses[:3], rtol=2e-6)


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param(dict(zero=0, data=2, fsdp=1), marks=pytest.mark.slow),
        dict(zero=1),
        pytest.param(dict(zero=2), marks=pytest.mark.slow),
        dict(zero=3, data=2),
    ],
    ids=mesh_name,
)
def test_bfloat16_gradients_are_summed_beside_tensor_parallelism(parallel):
    """XLA for CPUs aborts at such a sum in bfloat16."""
    small = replace(tiny.CONFIG, model=replace(tiny.CONFIG.model, layers=1))
    rounded = replace(
        small, precision=config.PrecisionConfig(compute="float32", gradients="bfloat16")
    )
    devices = 2 * parallel.get("data", 2) * parallel.get("fsdp", 2)
    found = train(tiny.parts(devices, rounded, tensor=2, **parallel), 1)
    expected = train(tiny.parts(1, small), 1)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=2e-6)
    # Each device's share is rounded once: by 2^-9 of itself at most.
    np.testing.assert_allclose(found.grad_norm, expected.grad_norm, rtol=2**-8)
    # They were rounded: it shows by 1.5e-5 here, another order of the sum by 1e-7.
    assert found.grad_norm != pytest.approx(expected.grad_norm, rel=1e-6)


# The width of the model and that of its token table, of which 8 devices divide one or both.
WIDTHS = [
    (36, 16),
    pytest.param(64, 12, marks=pytest.mark.slow),
    pytest.param(64, 16, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("width", "token_width"), WIDTHS)
def test_zero_3_gathers_the_width_of_the_token_table_by_itself(width, token_width):
    model = replace(tiny.CONFIG.model, layers=1, width=width, head_width=16, tied_head=False)
    changed = replace(tiny.CONFIG, model=replace(model, embedding_width=token_width))
    losses = [train(tiny.parts(n, changed, zero=3), 2).losses for n in (1, 8)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-6)


def expected_bytes(model: models.Model, fsdp: int, tensor: int, split: bool) -> int:
    """Compute the formula: 4 bytes per element, divided by the sizes of the mesh axes.

    By tensor where a dimension is one of its axes, by fsdp along the width.
    """
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
            if name in ("embed", "token_embed") and split and dimension % fsdp == 0:
                size //= fsdp
        total += size
    return total


SPLITS = [("decoder", zero, tensor) for zero in (0, 1, 2, 3) for tensor in (1, 2)]
SPLITS += [
    (family, zero, tensor)
    for family in ("encoder", "encoder_decoder")
    for zero, tensor in ((1, 1), (3, 2))
]


def held_bytes(tree: Tree) -> set[int]:
    """Count the bytes on each device on the arrays themselves."""
    counts = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            counts[shard.device] += shard.data.nbytes
    return set(counts.values())


@pytest.mark.parametrize(("family", "zero", "tensor"), SPLITS)
def test_bytes_per_device_are_the_formula(family, zero, tensor):
    """The arrays are zeros: `train` checks that a step leaves its state where the tables say."""
    parts = tiny.parts(8, tiny.FAMILIES[family], zero=zero, tensor=tensor)
    shapes, where = state.state_shapes(parts.model, parts.optimizer), parts.shardings()
    current = parts.place(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))

    fsdp, counter = 8 // tensor, 4
    params = expected_bytes(parts.model, fsdp, tensor, split=zero == 3)
    assert held_bytes(current.params) == {params}
    assert sharding.bytes_per_device(shapes.params, where.params) == params

    # Two moments, and the two step counters of the chain (Adam's and the schedule's).
    moments = 2 * expected_bytes(parts.model, fsdp, tensor, split=zero >= 1) + 2 * counter
    assert held_bytes(current.optimizer) == {moments}
    assert sharding.bytes_per_device(shapes.optimizer, where.optimizer) == moments


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_each_stage_splits_one_more_tree(zero):
    """Stage 1 splits the optimizer's moments, 2 the gradients too, 3 the parameters as well."""
    parts = tiny.parts(8, zero=zero)
    shapes = state.state_shapes(parts.model, parts.optimizer).params

    def is_split(tree_name: str) -> bool:
        return "fsdp" in parts.placement.tree(tree_name, shapes)["embedding"]["tokens"].spec

    split = [name for name in ("optimizer", "gradients", "parameters") if is_split(name)]
    assert split == ["optimizer", "gradients", "parameters"][:zero]


def constraints(function, *arguments) -> set[tuple[tuple[int, ...], P]]:
    """Trace `function` and return (shape, spec) of every sharding that it asks for."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    requested = set()
    for equation in tiny.equations(jaxpr):
        if equation.primitive.name == "sharding_constraint":
            requested.add((equation.outvars[0].aval.shape, equation.params["sharding"].spec))
    return requested


def split_kernels(parts: tiny.Parts, tree_name: str) -> set[tuple[tuple[int, ...], P]]:
    """Return (shape, spec) of the stacked MLP kernels in a tree, where fsdp splits them."""
    shapes = state.state_shapes(parts.model, parts.optimizer).params
    where = parts.placement.tree(tree_name, shapes)
    kernels = zip(
        jax.tree.leaves(shapes["blocks"]["mlp"]),
        jax.tree.leaves(where["blocks"]["mlp"]),
        strict=True,
    )
    return {(leaf.shape, place.spec) for leaf, place in kernels if "fsdp" in place.spec}


def test_gradients_reach_the_optimizer_placed_like_its_moments():
    """Each device updates the part of the weights whose moments it holds."""
    for zero in (0, 1, 2):
        parts = tiny.parts(8, zero=zero, blocks="scanned")
        moments = split_kernels(parts, "optimizer")
        assert len(moments) == (2 if zero else 0)  # [D, F] and [F, D]

        abstract = state.abstract_state(parts.model, parts.optimizer, parts.placement)
        assert moments <= constraints(parts.step(), abstract, tiny.batch(0))


def test_activations_are_placed_between_the_layers():
    """All by rows, and heads, the MLP's width and the vocabulary by the tensor axis as well.

    In a step each device has its own rows, and only the tensor axis is left to place.
    """
    parts = tiny.parts(8, data=2, tensor=2)
    params = state.state_shapes(parts.model, parts.optimizer).params
    length, config = 32, parts.config.model
    for function, rows, batch in (
        (parts.model.apply, 16, ("data", "fsdp")),
        (parts.gradients, 16 // 4, None),
    ):
        assert constraints(function, params, tiny.batch(0)) >= {
            ((rows, length, config.width), P(batch, None, None)),
            ((rows, length, config.hidden_width), P(batch, None, "tensor")),
            ((rows, length, config.heads, config.width_per_head), P(batch, None, "tensor", None)),
            ((rows, length, 384), P(batch, None, "tensor")),  # scores of the padded vocabulary
        }


def test_initial_values_do_not_depend_on_the_mesh():
    """And `create_state` puts every array where the tables say."""
    parts = tiny.parts(8, zero=3, tensor=2)
    current = parts.start()
    assert_placed(parts, current)
    assert held_bytes(current.params) == {expected_bytes(parts.model, 4, 2, split=True)}

    one_device = tiny.initial_state(tiny.CONFIG)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(current), one_device)


def test_a_state_around_given_parameters_is_new_and_placed():
    parts = tiny.parts(8, zero=1)
    params = parts.place(tiny.initial_state(tiny.CONFIG)).params
    current = state.state_from_params(parts.model, parts.optimizer, parts.placement, params)
    assert_placed(parts, current)
    assert current.params is params
    assert int(current.step) == 0
    for moment in jax.tree.leaves(optax.tree.get(current.optimizer, "mu")):
        assert not np.asarray(moment).any()


@pytest.mark.parametrize("remat", ["none", "weights", "dots", "full"])
def test_the_model_recomputes_what_the_config_says(remat):
    """`tests/models/test_stack.py` counts what each policy recomputes."""
    parts = tiny.parts(1, remat=remat, blocks="unrolled")
    jaxpr = jax.make_jaxpr(parts.gradients)(tiny.initial_state(tiny.CONFIG).params, tiny.batch(0))
    policies = set()
    for equation in tiny.equations(jaxpr.jaxpr):
        if "policy" in equation.params and equation.params["policy"] is not None:
            policies.add(equation.params["policy"])
    assert policies == (set() if remat == "none" else {REMAT[remat]})


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


def test_unknown_axes_and_collisions_name_the_parameter():
    mesh = sharding.make_mesh(config.ParallelConfig(), jax.devices())
    with pytest.raises(ValueError, match=r"params\.x: unknown logical axis 'embeds'"):
        sharding.weight_spec(mesh, ("embeds",), (8,), True, "params.x")
    with pytest.raises(ValueError, match=r"params\.x: two dimensions"):
        sharding.weight_spec(mesh, ("heads", "mlp"), (8, 8), True, "params.x")


def test_a_width_that_does_not_divide_stays_whole_and_is_listed():
    model = replace(tiny.CONFIG.model, width=36, head_width=16)
    parts = tiny.parts(8, replace(tiny.CONFIG, model=model), zero=3)
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

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P(), check_vma=False)
    def gathered(weight):
        axes = {"kernel": ("embed", "mlp")}
        return mesh_execution.gather(mesh, {"embed"}, precision, {"kernel": weight}, axes)["kernel"]

    # A gradient has the dtype of the layer's weight and is summed in it. It comes back in the dtype
    # that is stored.
    weight = jnp.ones((8, 8), jnp.float32)
    assert gathered(weight).dtype == dtype
    assert jax.grad(lambda w: gathered(w).astype(jnp.float32).sum())(weight).dtype == jnp.float32


def test_weights_travel_in_the_compute_dtype():
    """A bfloat16 gather moves half of the bytes. Vectors along the width travel as they are."""
    precision = config.PrecisionConfig(compute="bfloat16")
    mesh = sharding.make_mesh(config.ParallelConfig(zero=3), jax.devices())

    def travelling(axes, spec: P | None) -> set[str]:
        """Return the dtypes of the arrays that are made whole, on each device or (None) in jit."""

        def gathered(weight):
            return mesh_execution.gather(mesh, {"embed"}, precision, {"w": weight}, {"w": axes})[
                "w"
            ]

        if spec is not None:
            gathered = jax.shard_map(
                gathered, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False
            )
        shape = jax.ShapeDtypeStruct((8,) * len(axes), jnp.float32)
        dtypes = set()
        for equation in tiny.equations(jax.make_jaxpr(gathered)(shape).jaxpr):
            if equation.primitive.name in ("sharding_constraint", "all_gather"):
                dtypes.add(equation.invars[0].aval.dtype.name)
        return dtypes

    assert travelling(("embed", "mlp"), P("fsdp")) == {"bfloat16"}
    assert travelling(("embed", "mlp"), None) == {"bfloat16"}
    assert travelling(("norm",), P()) == set()  # every device has it
    assert travelling(("norm",), None) == {"float32"}


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gradients", ["float32", "bfloat16"])
def test_weights_are_not_rounded_to_the_dtype_of_the_gradients(compute, gradients):
    precision = config.PrecisionConfig(compute=compute, gradients=gradients)
    weight = jnp.linspace(0.1, 1.0, 16, dtype=jnp.float32).reshape(2, 8).astype(compute)
    used = cast_for_compute(("embed", "mlp"), weight, precision)
    assert (used.astype(jnp.float32) == weight.astype(jnp.float32)).all()


def test_bfloat16_gradients_of_float32_weights_travel_in_bfloat16():
    precision = config.PrecisionConfig(compute="float32", gradients="bfloat16")
    mesh = sharding.make_mesh(config.ParallelConfig(zero=3), jax.devices())

    @partial(jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)
    def gradient(weight):
        def whole(w):
            axes = {"w": ("embed", "mlp")}
            return mesh_execution.gather(mesh, {"embed"}, precision, {"w": w}, axes)["w"].sum()

        return jax.grad(whole)(weight)

    jaxpr = jax.make_jaxpr(gradient)(jnp.ones((8, 8), jnp.float32))
    scattered = [e for e in tiny.equations(jaxpr.jaxpr) if "scatter" in e.primitive.name]
    assert [e.invars[0].aval.dtype.name for e in scattered] == ["bfloat16"]


@pytest.mark.parametrize("cast", [cast_for_gather, cast_for_compute])
def test_norms_and_biases_along_the_width_are_not_cast(cast):
    precision = config.PrecisionConfig(compute="bfloat16", gradients="bfloat16")
    weight = jnp.ones((2, 8), jnp.float32)
    assert cast(("layers", "norm"), weight, precision).dtype == jnp.float32
    assert cast(("layers", "mlp"), weight, precision).dtype == jnp.bfloat16


def test_the_mesh_is_described_with_its_hosts():
    devices = [SimpleNamespace(process_index=n // 2, id=n) for n in range(8)]

    def mesh(**sizes) -> Any:
        return SimpleNamespace(devices=np.array(devices).reshape(*sizes.values()), shape=sizes)

    hosts = ("a", "a", "b", "b")
    assert (
        describe_mesh(mesh(data=1, fsdp=8, tensor=1), ("a",) * 4)
        == "data 1 x fsdp 8 x tensor 1 on 4 processes (a: 0-3)"
    )
    where = "on 4 processes (a: 0-1; b: 2-3)"
    assert (
        describe_mesh(mesh(data=2, fsdp=2, tensor=2), hosts)
        == f"data 2 (across hosts) x fsdp 2 x tensor 2 {where}"
    )
    assert (
        describe_mesh(mesh(data=1, fsdp=4, tensor=2), hosts)
        == f"data 1 x fsdp 4 (across hosts) x tensor 2 {where}"
    )
    one = mesh(data=2, fsdp=4, tensor=1)
    one.devices = np.array(devices[:2] * 4).reshape(2, 4, 1)  # of one process
    assert describe_mesh(one, ("a",)).endswith("tensor 1")


def test_many_hosts_are_shortened():
    assert describe_ranges([0, 1, 2, 4, 7, 8]) == "0-2, 4, 7-8"
    hosts = [f"n{n}" for n in range(20)]
    devices = [SimpleNamespace(process_index=n, id=n) for n in range(20)]
    sizes = dict(data=20, fsdp=1, tensor=1)
    mesh: Any = SimpleNamespace(devices=np.array(devices).reshape(20, 1, 1), shape=sizes)
    assert describe_mesh(mesh, hosts).endswith("n7: 7; 12 more hosts)")
