"""The matrix products of a whole training step, counted: no more of them than its FLOPs say.

Times drift from machine to machine; this count doesn't. A step that computes something twice, or
in a larger shape, fails here.
"""

from dataclasses import replace

import jax
import pytest
from support import random_state, synthetic, tiny

from jaxlm import flops
from jaxlm.config import Config


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
    return tiny.product_flops(jaxpr), rows * flops.forward_flops(config.model, *sizes)


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
