"""Every optimizer on every mesh: the same updates, and each device's share of Muon's work."""

import math
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from support import tiny

from jaxlm import config, state

# Fields of the optimizer that differ from the config of the tests.
OPTIMIZERS = {
    "muon": {"kind": "muon"},
    "shampoo": {"kind": "shampoo"},
    "lion": {"kind": "lion"},
    "sgd": {"kind": "sgd"},
    "adafactor": {"kind": "adafactor", "momentum": 0.9},
    "schedule_free": {"kind": "schedule_free", "schedule": "constant"},
    "bfloat16": {"first_moment": "bfloat16", "second_moment": "bfloat16"},
    "groups": {
        "layer_decay": 0.5,
        "groups": (config.GroupConfig(parameters="norms", weight_decay=0.3),),
    },
}
MESHES = (
    dict(zero=0),
    dict(zero=1),
    dict(zero=2, data=2),
    dict(zero=3),
    dict(zero=3, tensor=2),
    dict(zero=1, tensor=2, data=2),
)
# Three layers: what does not divide the devices is spread, too.
CONFIG = replace(tiny.CONFIG, model=replace(tiny.CONFIG.model, layers=3))
QUICK = {"xla_backend_optimization_level": 0}


def with_optimizer(name: str, base: config.Config = CONFIG) -> config.Config:
    return replace(base, optimizer=replace(base.optimizer, **OPTIMIZERS[name]))


def compile_update(parts: tiny.Parts):
    """Return (compiled update, shardings of gradients and parameters) of a step on a mesh."""
    target = state.abstract_state(parts.model, parts.optimizer, parts.placement)
    shardings = parts.placement.tree("optimizer", target.params)
    gradients = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), target.params, shardings
    )
    state_shardings = jax.tree.map(lambda x: x.sharding, target.optimizer)
    update = jax.jit(parts.optimizer.update, out_shardings=(shardings, state_shardings))
    lowered = update.lower(gradients, target.optimizer, target.params)
    return lowered.compile(compiler_options=QUICK), shardings


def updates(devices: int, name: str, **parallel) -> list[np.ndarray]:
    """Return the third update of the same gradients on a mesh."""
    parts = tiny.parts(devices, with_optimizer(name), **parallel)
    update, shardings = compile_update(parts)
    placed = parts.place(tiny.initial_state(parts.config))

    changes, current = None, placed.optimizer
    for number in range(3):
        gradients = jax.device_put(random_gradients(number), shardings)
        changes, current = jax.block_until_ready(update(gradients, current, placed.params))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(changes)]


def random_gradients(seed: int):
    random = np.random.default_rng(seed)
    shapes = tiny.initial_state(CONFIG).params
    return jax.tree.map(lambda p: random.normal(size=p.shape).astype(np.float32), shapes)


@cache
def one_device(name: str) -> list[np.ndarray]:
    return updates(1, name)


# A cell takes two compilations: the others are a campaign.
SHORT, LONG = [("muon", MESHES[4])], [("muon", MESHES[0]), ("shampoo", MESHES[3])]
LONGEST = [
    (name, mesh) for name in OPTIMIZERS for mesh in MESHES if (name, mesh) not in SHORT + LONG
]


# float32 in another order: 1e-6 at worst. It turns a random rounding now and then, which moves one
# number of thousands by 2^-8. Shampoo's eigenvalues are exact to 1e-7 of the largest, which is 1e-3
# of the damping where a side is longer than the rank of the gradients.
TOLERANCES = {"bfloat16": 1e-4, "shampoo": 1e-3}


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        *SHORT,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in LONG),
        *(pytest.param(*case, marks=pytest.mark.campaign) for case in LONGEST),
    ],
    ids=str,
)
def test_every_mesh_makes_the_same_updates(name, parallel):
    for ours, expected in zip(updates(8, name, **parallel), one_device(name), strict=True):
        error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
        assert error < TOLERANCES.get(name, 1e-5), error


@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        pytest.param(name, mesh, marks=pytest.mark.slow if number == 4 else pytest.mark.campaign)
        for name in OPTIMIZERS
        for number, mesh in enumerate(MESHES[:5])
    ],
    ids=str,
)
def test_every_mesh_has_the_losses_of_one_device(name, parallel):
    """By the bound that AdamW has in tests/sharding."""
    found, expected = (
        losses_with(count, name, tuple(given.items())) for count, given in ((8, parallel), (1, {}))
    )
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@cache
def losses_with(devices: int, name: str, parallel: tuple) -> list[float]:
    return losses(tiny.parts(devices, with_optimizer(name, tiny.CONFIG), **dict(parallel)), 5)


def losses(parts: tiny.Parts, steps: int) -> list[float]:
    """Return the losses of steps from the initial values of one device."""
    current, step = parts.place(tiny.initial_state(parts.config)), parts.step()
    found = []
    for number in range(steps):
        current, metrics = step(current, parts.put(tiny.batch(number, parts.config)))
        found.append(float(metrics.loss))
    return found


@pytest.mark.parametrize(
    ("family", "kind", "parallel"),
    [
        pytest.param("decoder", "muon", dict(zero=3, tensor=2), marks=pytest.mark.slow),
        *(
            pytest.param(family, "adamw", mesh, marks=pytest.mark.campaign)
            for family in tiny.FAMILIES
            for mesh in MESHES
        ),
    ],
    ids=str,
)
def test_every_mesh_and_microbatches_train_mup_as_one_device_does(family, kind, parallel):
    base = tiny.FAMILIES[family]
    width = base.model.width // 2
    wide = replace(base.model, parametrization="mup", mup_base_width=width)
    mup = replace(base, model=wide, optimizer=replace(base.optimizer, kind=kind))
    expected = losses(tiny.parts(1, mup), 4)
    # float32 sums in another order, as in tests/sharding.
    np.testing.assert_allclose(losses(tiny.parts(8, mup, **parallel), 4), expected, rtol=2e-6)
    halves = replace(mup, training=replace(mup.training, microbatches=2))
    np.testing.assert_allclose(losses(tiny.parts(8, halves, **parallel), 4), expected, rtol=2e-6)
    # The factors do something: the standard model has other losses.
    plain = replace(mup, model=base.model)
    assert not np.allclose(losses(tiny.parts(1, plain), 2), expected[:2], rtol=1e-4)


# The work of Muon


def orthogonalization_flops(rows: int, columns: int) -> int:
    """Return the FLOPs of the products of one matrix: five times the polynomial."""
    short, long = sorted((rows, columns))
    return 5 * (2 * short * short * long + 2 * short**3 + 2 * short * short * long)


def product_flops(text: str) -> int:
    """Return the FLOPs of the matrix products in a device's compiled program."""
    shapes = {
        name: [int(n) for n in dimensions.split(",")]
        for name, dimensions in re.findall(r"%([\w.-]+) = f32\[([\d,]+)\]", text)
    }
    total = 0
    pattern = (
        r"%([\w.-]+) = f32\[[\d,]+\]\S* dot\((?:f32\S+ )?%([\w.-]+),.*?lhs_contracting_dims={(\d+)}"
    )
    for result, left, dimension in re.findall(pattern, text):
        total += 2 * math.prod(shapes[result]) * shapes[left][int(dimension)]
    return total


@pytest.mark.parametrize(
    "parallel",
    [dict(zero=1), pytest.param(dict(zero=3, tensor=2, data=2), marks=pytest.mark.slow)],
    ids=str,
)
def test_each_device_orthogonalizes_its_share_of_the_matrices(parallel):
    """Queries and outputs are one stack of 6 matrices on 8 devices, gate, up and down one of 9."""
    width, mlp, keys = 64, 256, 32
    flops = {}
    for devices, given in ((1, {}), (8, parallel)):
        update, _ = compile_update(tiny.parts(devices, with_optimizer("muon"), **given))
        flops[devices] = product_flops(update.as_text())

    square, narrow, wide = (orthogonalization_flops(width, n) for n in (width, keys, mlp))
    assert flops[1] == 6 * square + 6 * narrow + 9 * wide
    assert flops[8] == square + narrow + 2 * wide


def test_no_device_gathers_the_momentum_of_all_matrices():
    """Exchanges between the devices of one mesh axis, of a device's share each."""
    parts = tiny.parts(8, with_optimizer("muon"), zero=3, tensor=2)
    text = compile_update(parts)[0].as_text()
    assert "all-to-all" in text
    for dimensions in re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text):
        assert math.prod(int(n) for n in dimensions.split(",")) < 3 * 64 * 256 / 4
