"""Measured starting values of every parameter against the table, written out by hand."""

import math

import jax
import numpy as np
import pytest

from jaxlm import config, models
from jaxlm.nn.initializers import normal

LAYERS, WIDTH, HEADS, HEAD_WIDTH, HIDDEN = 3, 64, 2, 40, 96

EXPECTED = {
    "gpt2": {"embedding": 0.05, "input": 0.05, "output": 0.05 / math.sqrt(6), "down": 0.05 / math.sqrt(6), "head": 0.05},
    "normal": {"embedding": 0.05, "input": 0.05, "output": 0.05, "down": 0.05, "head": 0.05},
    "fan_in": {"embedding": 1 / 8, "input": 1 / 8, "output": 1 / math.sqrt(6 * 80), "down": 1 / math.sqrt(6 * 96), "head": 1 / 8},
}
ROLES = {
    "embedding.tokens": "embedding",
    "embedding.positions": "embedding",
    "blocks.attention.query_kernel": "input",
    "blocks.attention.key_kernel": "input",
    "blocks.attention.value_kernel": "input",
    "blocks.attention.output_kernel": "output",
    "blocks.mlp.gate_kernel": "input",
    "blocks.mlp.up_kernel": "input",
    "blocks.mlp.down_kernel": "down",
    "head.kernel": "head",
}


def draw(model: config.Model, seed: int) -> dict[str, np.ndarray]:
    """The starting values, by the path of the parameter."""
    params = jax.jit(models.build(model).init)(jax.random.key(seed))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", EXPECTED)
def test_table(name):
    """Every role's standard deviation; 100,000 values measure it to 0.2%."""
    model = config.Model(layers=LAYERS, initializer=name, initializer_std=0.05)
    for role, key, fan_in in (
        ("embedding", "embedding", WIDTH),
        ("input", "input", WIDTH),
        ("residual", "output", HEADS * HEAD_WIDTH),
        ("residual", "down", HIDDEN),
        ("head", "head", WIDTH),
    ):
        values = np.asarray(normal(model, role, fan_in)(jax.random.key(0), (100_000,)))
        assert values.std() == pytest.approx(EXPECTED[name][key], rel=0.01), role


def test_every_parameter():
    """Each with the role and the number of inputs that it has; layers and keys start differently."""
    fields = {"gated": True, "tied_head": False, "head_bias": True, "query_key_norm": True, "embedding_norm": True}
    sizes = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "head_width": HEAD_WIDTH, "mlp_width": HIDDEN}
    model = config.Model(vocabulary_size=128, context_length=128, **sizes, **fields, initializer="fan_in")
    params, others = draw(model, 0), draw(model, 1)
    roles = dict(ROLES)
    for key, values in params.items():
        if key.endswith("scale"):
            assert (values == 1).all(), key
        elif key.endswith("bias"):
            assert (values == 0).all(), key
        else:
            std = EXPECTED["fan_in"][roles.pop(key)]
            # 8,192 values at least: the standard deviation of their standard deviation is 0.8%, of their mean std / 90.
            assert values.std() == pytest.approx(std, rel=0.04), key
            assert abs(values.mean()) < 5 * std / math.sqrt(values.size), key
            assert correlation(values, others[key]) < 0.06, key
            if key.startswith("blocks"):
                assert correlation(values[0], values[1]) < 0.1, key
    assert not roles


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of independent values: 1 / sqrt(their number), so below 0.06 and 0.1 at five times that for 8,192 and 2,560 values."""
    return abs(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
