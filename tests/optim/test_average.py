"""The average of the weights in the optimizer state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny

from jaxlm import optim
from jaxlm.optim.average import with_average
from jaxlm.types import Tree

DECAY = 0.8
AVERAGING = replace(tiny.CONFIG, optimizer=replace(tiny.CONFIG.optimizer, ema_decay=DECAY))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_average_is_that_of_the_weights_after_each_step(dtype):
    optimizer = with_average(optax.sgd(0.1), DECAY)
    params: Tree = {"a": jnp.asarray([1.0, -2.0, 3.0], dtype), "b": jnp.asarray(0.5, dtype)}
    state = optimizer.init(params)
    expected = {name: np.float64(value) for name, value in params.items()}

    for step in range(1, 40):
        grads = jax.tree.map(lambda p: jnp.cos(step * p), params)  # noqa: B023 (called now)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = {
            name: decay * mean + (1 - decay) * np.float64(params[name])
            for name, mean in expected.items()
        }

    average = optim.averaged_weights(state)
    for name, value in expected.items():
        assert average[name].dtype == jnp.float32
        np.testing.assert_allclose(average[name], value, rtol=1e-5)  # 39 sums in float32


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"zero": 0, "data": -1, "fsdp": 1}, {"zero": 3}])
def test_it_changes_no_weight_and_is_split_like_the_moments(mesh):
    averaging, plain = (tiny.parts(2, config, **mesh) for config in (AVERAGING, tiny.CONFIG))
    states = {}
    for name, parts in {"averaging": averaging, "plain": plain}.items():
        state, step = parts.start(), parts.step()
        for number in range(2):
            state, _ = jax.block_until_ready(step(state, parts.put(tiny.batch(number))))
        states[name] = state

    average = optim.averaged_weights(states["averaging"].optimizer)
    moments = averaging.placement.tree("optimizer", states["plain"].params)
    assert jax.tree.map(lambda x: x.sharding, average) == moments
    jax.tree.map(np.testing.assert_array_equal, states["averaging"].params, states["plain"].params)
    assert optim.averaged_weights(states["plain"].optimizer) is None
    # Far from the first weights, since the first steps count little, and not the last ones.
    distance = optax.tree.norm(jax.tree.map(jnp.subtract, average, states["plain"].params))
    assert (
        0
        < float(distance)
        < 0.5
        * float(
            optax.tree.norm(
                jax.tree.map(jnp.subtract, states["plain"].params, plain.start().params)
            )
        )
    )
