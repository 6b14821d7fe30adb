"""Measured starting values of every parameter against the table, written out by hand."""

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from jaxlm import config, models
from jaxlm.nn.initializers import normal

LAYERS, WIDTH, HEADS, HEAD_WIDTH, HIDDEN = 3, 64, 2, 40, 96

FAN_IN = {
    "embedding": WIDTH,
    "query": WIDTH,
    "input": WIDTH,
    "output": HEADS * HEAD_WIDTH,
    "down": HIDDEN,
    "head": WIDTH,
    "relative": WIDTH,
}
EXPECTED: dict[str, dict[str, float]] = {
    "gpt2": dict.fromkeys(FAN_IN, 0.05)
    | {"output": 0.05 / math.sqrt(6), "down": 0.05 / math.sqrt(6)},
    "normal": dict.fromkeys(FAN_IN, 0.05),
    "fan_in": dict.fromkeys(FAN_IN, 1 / 8)
    | {"output": 1 / math.sqrt(6 * 80), "down": 1 / math.sqrt(6 * 96)},
    # transformers' T5 starts so as well, but for the untied head, which is T5X's.
    "t5": dict.fromkeys(FAN_IN, 1 / 8)
    | {
        "embedding": 1.0,
        "query": 1 / math.sqrt(64 * 40),
        "output": 1 / math.sqrt(80),
        "down": 1 / math.sqrt(96),
    },
}
ATTENTION = {
    "query_kernel": "query",
    "key_kernel": "input",
    "value_kernel": "input",
    "output_kernel": "output",
}
BLOCK = {
    **{f"blocks.attention.{name}": role for name, role in ATTENTION.items()},
    "blocks.mlp.gate_kernel": "input",
    "blocks.mlp.up_kernel": "input",
    "blocks.mlp.down_kernel": "down",
}
CROSS = {f"blocks.cross_attention.{name}": role for name, role in ATTENTION.items()}
DECODER = {
    "embedding.tokens": "embedding",
    "embedding.positions": "embedding",
    **BLOCK,
    "head.kernel": "head",
}
ENCODER = {
    "embedding.tokens": "embedding",
    "embedding.types": "embedding",
    **BLOCK,
    "head.kernel": "head",
    "head.transform_kernel": "head",
}
BOTH = {
    **{f"encoder.{name}": role for name, role in BLOCK.items()},
    **{f"decoder.{name}": role for name, role in (BLOCK | CROSS).items()},
    "encoder.embedding.tokens": "embedding",
    "decoder.embedding.tokens": "embedding",
    "encoder.relative_bias.table": "relative",
    "decoder.relative_bias.table": "relative",
    "decoder.head.kernel": "head",
}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "fan_in": ({"query_key_norm": True}, DECODER),
    "normal": (
        {
            "family": "encoder",
            "positions": "none",
            "token_types": 40,
            "head_transform": True,
            "initializer_std": 0.05,
        },
        ENCODER,
    ),
    "t5": (
        {
            "family": "encoder_decoder",
            "positions": "relative",
            "relative_buckets": 1024,
            "relative_max_distance": 4096,
        }
        | {"shared_embedding": False},
        BOTH,
    ),
}


def draws(model: config.ModelConfig, seeds: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    """The starting values of each seed, by the path of the parameter."""
    init = jax.jit(models.build(model).init)
    trees = [jax.tree_util.tree_leaves_with_path(init(jax.random.key(seed))) for seed in seeds]
    return [
        {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
            for path, leaf in tree
        }
        for tree in trees
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_table(name):
    """Every role's standard deviation; 100,000 values measure it to 0.2%."""
    model = config.ModelConfig(
        layers=LAYERS,
        width=WIDTH,
        heads=HEADS,
        head_width=HEAD_WIDTH,
        initializer=name,
        initializer_std=0.05,
    )
    for key, fan_in in FAN_IN.items():
        role: Any = "residual" if key in ("output", "down") else key
        values = np.asarray(normal(model, role, fan_in)(jax.random.key(0), (100_000,)))
        assert values.std() == pytest.approx(EXPECTED[name][key], rel=0.01), key


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter(name):
    """Each has its own role and number of inputs; layers and keys start differently."""
    fields, roles = FAMILIES[name]
    roles = dict(roles)
    sizes: dict[str, Any] = {
        "layers": LAYERS,
        "width": WIDTH,
        "heads": HEADS,
        "head_width": HEAD_WIDTH,
        "mlp_width": HIDDEN,
    }
    common: dict[str, Any] = {
        "vocabulary_size": 128,
        "context_length": 128,
        "gated": True,
        "tied_head": False,
        "head_bias": True,
        "embedding_norm": True,
    }
    model = config.ModelConfig(**(sizes | common | fields), initializer=name)
    params, others = draws(model, (0, 1))
    for key, values in params.items():
        if key.endswith("scale"):
            assert (values == 1).all(), key
        elif key.endswith("bias"):
            assert (values == 0).all(), key
        else:
            std = EXPECTED[name][roles.pop(key)]
            # 2,048 values at least: the standard deviation of their standard deviation is 1.6%,
            # that of their mean std / 45.
            assert values.std() == pytest.approx(std, rel=0.08), key
            assert abs(values.mean()) < 5 * std / math.sqrt(values.size), key
            assert correlation(values, others[key]) < 5 / math.sqrt(values.size), key
            if "blocks" in key:
                assert correlation(values[0], values[1]) < 5 / math.sqrt(values[0].size), key
    assert not roles


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two arrays.

    For independent values its standard deviation is 1 / sqrt(their number).
    """
    return abs(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_a_head_can_start_at_zero(family):
    model = config.ModelConfig(
        family=family, layers=1, width=16, heads=2, vocabulary_size=64, tied_head=False
    )
    (start,) = draws(replace(model, zero_head=True), (0,))
    (other,) = draws(model, (0,))
    assert start.keys() == other.keys()
    for path, weight in start.items():
        is_head = path.endswith("head.kernel")
        assert not weight.any() if is_head else (weight == other[path]).all(), path
        assert other[path].any() or not is_head
