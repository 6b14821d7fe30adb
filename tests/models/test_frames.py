"""How deep a traceback of our own functions gets between the loss and a product.

A reader who follows an error in a model reads these frames one by one.
"""

import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from support import random_state, tiny

import jaxlm
from jaxlm import models
from jaxlm.nn.execution import Execution

PACKAGE = str(Path(jaxlm.__file__).parent)
PROJECTIONS = ("BLD,DHK->BLHK", "BLD,DGK->BLGK")  # queries; keys and values of self attention
MOST_FRAMES = 8  # from Model.features to a projection, an encoder's included
MOST_FRAMES_OF_A_STEP = 10  # from the jitted step, the loss included


def frames_of_projections(monkeypatch, trace) -> list[list[str]]:
    """Return the frames of ours, outermost first, at each projection that `trace()` makes."""
    stacks, einsum = [], jnp.einsum

    def record(spec, *operands, **options):
        if spec not in PROJECTIONS:
            return einsum(spec, *operands, **options)
        ours = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        stacks.append([f"{Path(frame.filename).name}:{frame.name}" for frame in ours])
        return einsum(spec, *operands, **options)

    monkeypatch.setattr(jnp, "einsum", record)
    trace()
    monkeypatch.undo()
    return stacks


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("blocks", ["unrolled", "scanned"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_few_frames_from_features_to_a_projection(family, blocks, remat, monkeypatch):
    config = tiny.FAMILIES[family]
    model = models.build(config.model, execution=Execution(blocks=blocks, remat=remat))
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = tiny.batch(0, config)

    def loss(params):
        return jnp.sum(model.features(params, batch))

    stacks = frames_of_projections(monkeypatch, lambda: jax.eval_shape(jax.grad(loss), params))
    assert len(stacks) >= 3
    for stack in stacks:
        assert "features" in stack[0] and "matmul.py" in stack[-1]
        assert len(stack) <= MOST_FRAMES, " ".join(stack)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_few_frames_from_the_step_to_a_projection(family, monkeypatch):
    parts = tiny.parts(1, tiny.FAMILIES[family])
    step, batch = parts.step(), tiny.batch(0, parts.config)
    state = random_state.abstract_state_of(parts)

    stacks = frames_of_projections(monkeypatch, lambda: step.trace(state, batch))
    assert stacks
    for stack in stacks:
        assert stack[0] == "step.py:step"
        assert len(stack) <= MOST_FRAMES_OF_A_STEP, " ".join(stack)
