"""The matrix products of a whole training step, counted: no more of them than its FLOPs say.

Times drift from machine to machine; this count doesn't. A step that computes something twice, or
in a larger shape, fails here.
"""

import math
from dataclasses import replace

import jax
import pytest
from support import random_state, synthetic, tiny

from jaxlm import flops
from jaxlm.config import Config


def product_flops(jaxpr) -> int:
    """Return the FLOPs of the matrix products of a jaxpr; of branches the first is taken."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        elif name == "cond":
            total += product_flops(params["branches"][0].jaxpr)
        else:
            times = params["length"] if name == "scan" else 1
            values = [v for p in params.values() for v in (p if isinstance(p, tuple) else [p])]
            inside = [getattr(value, "jaxpr", value) for value in values]
            total += times * sum(product_flops(j) for j in inside if hasattr(j, "eqns"))
    return total


def counted_and_exact(config: Config, **parallel) -> tuple[int, int]:
    """Return the FLOPs of the products of a step on one device, and those of a forward pass."""
    # The vocabulary is padded to a multiple of 128.
    config = replace(config, model=replace(config.model, vocabulary_size=384))
    parts = tiny.parts(1, config, **parallel)
    batch = synthetic.batch(config, 0)
    jaxpr = jax.make_jaxpr(parts.step())(random_state.abstract_state_of(parts), batch).jaxpr

    objective = synthetic.objective(config)
    sizes = objective.length, objective.source_length, objective.predictions
    rows = config.training.batch_size
    return product_flops(jaxpr), rows * flops.forward_flops(config.model, *sizes)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_step_has_three_products_for_each_of_the_forward_pass(family):
    found, forward = counted_and_exact(tiny.FAMILIES[family])
    assert found == 3 * forward


@pytest.mark.parametrize(("tile", "microbatches"), [(8, 1), (None, 4), (8, 4)])
def test_neither_tiles_nor_microbatches_add_products(tile, microbatches):
    training = replace(tiny.CONFIG.training, loss_tile=tile, microbatches=microbatches)
    found, forward = counted_and_exact(replace(tiny.CONFIG, training=training))
    assert found == 3 * forward


def test_full_recomputation_adds_the_forward_pass_of_the_blocks():
    """But neither the head nor the last product of a block, which no gradient reads."""
    found, forward = counted_and_exact(tiny.CONFIG, remat="full")
    model, tokens = tiny.CONFIG.model, tiny.CONFIG.training.batch_size * 32
    head, down = (2 * tokens * model.width * size for size in (384, model.hidden_width))
    assert found == 4 * forward - head - model.layers * down
