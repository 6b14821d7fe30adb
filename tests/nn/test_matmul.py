"""Products with weights: values and gradients in every form, and the forms that CPUs need."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.matmul import matmul

# Those of the layers, with a result that is wider than x, and narrower.
SHAPES = {
    "BLI,IO->BLO": [((2, 24, 8), (8, 20)), ((2, 24, 20), (20, 8))],
    "BLD,DHK->BLHK": [((2, 24, 8), (8, 3, 4)), ((2, 24, 8), (8, 1, 4))],
    "BLHK,HKD->BLD": [((2, 24, 3, 4), (3, 4, 8)), ((2, 24, 3, 4), (3, 4, 16))],
    "BLD,VD->BLV": [((2, 24, 8), (20, 8)), ((2, 24, 8), (5, 8))],  # a tied head
    "BGMK,BGSK->BGMS": [((2, 3, 24, 4), (2, 3, 10, 4))],
    "BGMS,BGSK->BGMK": [((2, 3, 24, 10), (2, 3, 10, 4))],
}
CASES = [(spec, *shapes) for spec, cases in SHAPES.items() for shapes in cases]


def operands(x_shape, weight_shape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=x_shape).astype(np.float32),
        rng.normal(size=weight_shape).astype(np.float32),
    )


def squares(product, x, weight):
    return jnp.sum(jnp.square(product(x, weight).astype(jnp.float32)))


@pytest.mark.parametrize(("spec", "x_shape", "weight_shape"), CASES)
def test_gradients_are_those_of_einsum(spec, x_shape, weight_shape):
    """In float32, and in bfloat16, for which CPUs have no product in some forms."""
    x, weight = operands(x_shape, weight_shape)

    def gradients(product, x):
        run = jax.value_and_grad(partial(squares, product), argnums=(0, 1))
        return jax.jit(run)(x, weight)

    expected = gradients(partial(jnp.einsum, spec), x)
    found = gradients(partial(matmul, spec), x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)

    _, (of_x, of_weight) = gradients(partial(matmul, spec), jnp.asarray(x, jnp.bfloat16))
    assert of_x.dtype == jnp.bfloat16 and of_weight.dtype == jnp.float32
    for rounded, exact in ((of_x, expected[1][0]), (of_weight, expected[1][1])):
        # Operands, result and its gradient are rounded to 8 bits: 2**-9 each, by the norm.
        error = np.linalg.norm(np.asarray(rounded, np.float32) - exact)
        assert error <= 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize(("inside", "outside"), [(16, 48), (48, 16)])
def test_a_cpu_transposes_the_narrower_operand(inside, outside):
    """And not the wider one, with the activation that made it."""
    rows = 96
    x, weight = operands((1, rows, inside), (inside, outside))

    def loss(x, weight):
        return squares(partial(matmul, "BLI,IO->BLO"), jnp.tanh(x), weight)

    text = jax.jit(jax.grad(loss, argnums=1)).lower(x, weight).compile().as_text()
    assert f"f32[{max(inside, outside)},{rows}]" not in text
    assert f"f32[{min(inside, outside)},{rows}]" in text


def test_a_gpu_rounds_a_product_in_its_own_kernel():
    """No float32 result with a conversion after it, which cuBLAS could not compute at once."""
    x, weight = operands((2, 24, 8), (8, 20))
    x = jnp.asarray(x, jnp.bfloat16)

    def lowered(platform: str) -> list[str]:
        run = jax.jit(jax.value_and_grad(partial(squares, partial(matmul, "BLI,IO->BLO")), (0, 1)))
        text = run.trace(x, weight).lower(lowering_platforms=(platform,)).as_text()
        return re.findall(r"dot_general.*-> tensor<[\dx]*x(\w+)>", text)

    # The product, x's gradient, and the weight's, which is float32.
    assert sorted(lowered("cuda")).count("bf16") == 2
    assert set(lowered("cpu")) == {"f32"}
