"""The state of a run keeps its tree, dtypes and shapes over a step, so that it can be restored."""

import itertools
from dataclasses import replace
from typing import get_args

import jax
import numpy as np
import pytest
from support import tiny

from jaxlm import state
from jaxlm.config import OptimizerConfig, PrecisionConfig

OPTIMIZERS = get_args(OptimizerConfig.__dataclass_fields__["kind"].type)
PARAMS = get_args(PrecisionConfig.__dataclass_fields__["params"].type)


def list_cases() -> list:
    """Return (family, params, optimizer, gradients). Most of newer optimizers are a campaign."""
    grids = [(family, "float32") for family in tiny.FAMILIES] + [("decoder", "bfloat16")]
    cases = []
    for (family, gradients), params, optimizer in itertools.product(grids, PARAMS, OPTIMIZERS):
        if optimizer == "schedule_free" and params == "bfloat16":  # refused
            continue
        short = optimizer in ("adamw", "adafactor") or (family, gradients) == grids[0]
        marks = [] if short else pytest.mark.campaign
        cases.append(pytest.param(family, params, optimizer, gradients, marks=marks))
    return cases


@pytest.mark.parametrize(("family", "params", "optimizer", "gradients"), list_cases())
def test_a_step_keeps_the_dtypes_and_shapes_of_the_state(family, params, optimizer, gradients):
    config = tiny.FAMILIES[family]
    precision = PrecisionConfig(compute="bfloat16", params=params, gradients=gradients)
    kind = replace(config.optimizer, kind=optimizer)
    parts = tiny.parts(1, replace(config, precision=precision, optimizer=kind))

    before = state.state_shapes(parts.model, parts.optimizer)
    after, metrics = jax.eval_shape(parts.step(), before, tiny.batch(0, config))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.map(describe, after) == jax.tree.map(describe, before)
    assert {leaf.dtype for leaf in jax.tree.leaves(before.params)} == {np.dtype(params)}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(metrics)} == {"float32"}


def describe(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{leaf.dtype.name}{leaf.shape}"
