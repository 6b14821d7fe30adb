"""Attention by blocks on a GPU: outputs and gradients.

Each case is one program that computes the blocks in its dtype, and the XLA path in float32 on the
same values, which is the reference. Its blocks have their full size, and there are several.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.dot_product import attend
from jaxlm.nn.execution import Execution
from jaxlm.nn.mask import Mask

pytestmark = pytest.mark.gpu

ROWS = 2

# Bounds on ||blocks - reference|| / ||reference||. In bfloat16 they are those of the flash kernel
# (tests/gpu/test_attention.py). In float32 a GPU would multiply with 10 bits of mantissa (TF32,
# which rounds by at most 2**-11); the test asks for full products, so that only the order of the
# sums differs: 1e-6 would be seen.
BOUNDS = {"bfloat16": {"output": 3 * 2**-9, "gradient": 5 * 2**-9}}
BOUNDS["float32"] = {"output": 1e-5, "gradient": 1e-5}


class Case(NamedTuple):
    """One kind of attention."""

    mask: Mask
    length: int = 1100  # no multiple of a block
    heads: int = 4
    groups: int = 4
    channels: int = 64
    softcap: float | None = None
    bias: bool = False
    dtype: str = "bfloat16"


def prefixes(*lengths: int) -> jax.Array:
    return jnp.asarray(lengths, jnp.int32)


CASES = {
    "causal, soft-cap": Case(Mask(causal=True), heads=4, groups=2, channels=256, softcap=50.0),
    "causal window, soft-cap": Case(Mask(causal=True, window=300), groups=2, softcap=50.0),
    "two-sided window": Case(Mask(window=65), length=2100),
    "prefix": Case(Mask(causal=True, prefix_lengths=prefixes(700, 3))),
    "bias and prefix": Case(Mask(causal=True, prefix_lengths=prefixes(700, 3)), bias=True),
    "causal, float32": Case(Mask(causal=True), dtype="float32"),
}


def inputs(case: Case) -> dict[str, jax.Array]:
    """Return random q, k, v and the output's cotangent in the case's dtype, and a float32 bias."""
    shapes = {
        "q": (ROWS, case.length, case.heads, case.channels),
        "k": (ROWS, case.length, case.groups, case.channels),
        "v": (ROWS, case.length, case.groups, case.channels),
        "cotangent": (ROWS, case.length, case.heads, case.channels),
    }
    random = np.random.default_rng(17)
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}
    values = {name: jnp.asarray(array, case.dtype) for name, array in arrays.items()}
    if case.bias:
        bias = random.normal(size=(1, case.heads, case.length, case.length))
        values["bias"] = jnp.asarray(bias, jnp.float32)
    return values


def forward_and_backward(case: Case, execution: Execution, dtype: Any, values: dict[str, Any]):
    """Return the output and the gradient of every input in `dtype`; the bias is always float32."""
    operands = {name: x.astype(dtype) for name, x in values.items() if name in ("q", "k", "v")}
    if case.bias:
        operands["bias"] = values["bias"]

    def attention(operands: dict[str, jax.Array]) -> jax.Array:
        q, k, v = (operands[name] for name in "qkv")
        options = {"scale": case.channels**-0.5, "softcap": case.softcap}
        return attend(q, k, v, case.mask, execution, bias=operands.get("bias"), **options)

    output, backward = jax.vjp(attention, operands)
    return {"output": output} | backward(values["cotangent"].astype(dtype))[0]


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients_are_those_of_the_xla_path(gpu, name, record):
    case = CASES[name]
    execution = Execution(
        platform="cuda",
        compute_capability=float(gpu.compute_capability),
        attention="blockwise",
    )

    @jax.jit
    def both(values: dict[str, jax.Array]):
        run = partial(forward_and_backward, case, values=values)
        # Left to itself the GPU would multiply float32 in 10 bits (TF32).
        with jax.default_matmul_precision("highest"):
            reference = run(execution=execution._replace(attention="xla"), dtype=jnp.float32)
            if case.dtype == "float32":
                return run(execution=execution, dtype=jnp.float32), reference
        return run(execution=execution, dtype=case.dtype), reference

    found, expected = both(jax.device_put(inputs(case), gpu))
    errors = {}
    for key in expected:
        reference = np.asarray(expected[key], np.float64)
        difference = np.asarray(found[key].astype(jnp.float32), np.float64) - reference
        errors[key] = float(np.linalg.norm(difference) / np.linalg.norm(reference))
    record(blockwise=errors)

    assert errors.keys() >= {"output", "q", "k", "v"} and ("bias" in errors) == case.bias
    kinds = {key: "output" if key == "output" else "gradient" for key in errors}
    bounds = {key: BOUNDS[case.dtype][kind] for key, kind in kinds.items()}
    # The comparison is written so that NaN fails.
    assert {key: error for key, error in errors.items() if not error <= bounds[key]} == {}
