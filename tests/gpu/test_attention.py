"""cuDNN's attention against the XLA path: outputs and gradients, with bfloat16 inputs.

Each case is one program that computes three versions: cuDNN in bfloat16, the XLA path in bfloat16,
and the XLA path in float32 on the same values, which is the reference.
"""

import re
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.dot_product import attend
from jaxlm.nn.execution import Execution
from jaxlm.nn.kernel_choice import Case as KernelCase
from jaxlm.nn.kernel_choice import choose_kernel, is_read_as_bias
from jaxlm.nn.mask import Mask

pytestmark = pytest.mark.gpu

ROWS = 3

# Bounds on ||cudnn - reference|| / ||reference||. bfloat16 keeps 8 bits: a value is rounded by at
# most u = 2**-9 = 0.2% of itself, 0.11% in the mean square. The output carries two such roundings
# (the softmax weights before they meet v, and the output itself), a gradient up to four (the
# weights, their gradient, the output that enters the softmax's gradient, and the result). As
# independent errors these are 0.16% and 0.22%; an H100 gives 0.2% and up to 0.3%. The bounds, 0.6%
# and 1%, are far below the error of one wrong column of the mask, or of a scale off by 2%.
OUTPUT_BOUND = 3 * 2**-9
GRADIENT_BOUND = 5 * 2**-9


class Case(NamedTuple):
    """One kind of attention. Lengths are those of the rows, None where every position is real."""

    queries: int
    keys: int
    heads: int = 4
    groups: int = 4
    channels: int = 64
    causal: bool = False
    window: int | None = None
    lengths: tuple[int, ...] | None = None
    query_lengths: tuple[int, ...] | None = None
    bias: bool = False
    scale: float | None = None
    packed: bool = False  # rows of three documents and padding; in cross attention of the keys too
    prefixes: tuple[int, ...] | None = None

    def mask(self) -> Mask:
        """Return the mask as the layers describe it."""

        def per_row(numbers: tuple[int, ...] | None) -> jax.Array | None:
            return None if numbers is None else jnp.asarray(numbers, jnp.int32)

        mask = Mask(
            self.causal,
            self.window,
            lengths=per_row(self.lengths),
            query_lengths=per_row(self.query_lengths),
            prefix_lengths=per_row(self.prefixes),
        )
        if not self.packed:
            return mask
        segments = document_numbers(self.queries)
        return mask._replace(segments=segments, key_segments=document_numbers(self.keys))

    def real(self, name: str) -> np.ndarray:
        """Return bool [ROWS, positions] of an array: True where the position is no padding."""
        is_query = name in ("output", "q")
        size = self.queries if is_query else self.keys
        lengths = self.query_lengths if is_query else self.lengths
        return np.arange(size)[None] < np.asarray(lengths or (size,) * ROWS)[:, None]


def document_numbers(length: int) -> jax.Array:
    """Return the segments of each row, int32 [ROWS, `length`]: unequal documents, then padding."""
    ends = np.array([[0.1, 0.7, 0.9], [0.5, 0.52, 1.0], [0.9, 0.95, 0.98]]) * length
    places = np.arange(length)[None, :, None]
    numbers = (places >= ends.astype(int)[:, None, :]).sum(axis=2) + 1
    return jnp.asarray(np.where(numbers == 4, 0, numbers), jnp.int32)


CASES = {
    "causal": Case(256, 256, causal=True),
    "causal, odd length": Case(203, 203, causal=True),
    "causal, heads of 128": Case(256, 256, heads=2, groups=2, channels=128, causal=True),
    "grouped heads": Case(256, 256, heads=8, groups=2, causal=True),
    "sliding window": Case(384, 384, causal=True, window=100),
    "bidirectional with lengths": Case(
        256, 256, lengths=(256, 131, 64), query_lengths=(256, 131, 64)
    ),
    "bidirectional, odd lengths": Case(
        197, 197, lengths=(197, 131, 1), query_lengths=(197, 131, 1)
    ),
    "cross": Case(114, 256, lengths=(256, 200, 77), query_lengths=(114, 91, 114)),
    "T5 bias": Case(256, 256, bias=True, scale=1.0),
    "T5 bias, causal, odd length": Case(114, 114, causal=True, bias=True, scale=1.0),
    "T5 bias with lengths": Case(
        200, 200, lengths=(200, 131, 70), query_lengths=(200, 131, 70), bias=True, scale=1.0
    ),
    "packed, causal": Case(256, 256, causal=True, packed=True),
    "packed, causal, grouped heads": Case(384, 384, heads=8, groups=2, causal=True, packed=True),
    "packed, sliding window": Case(384, 384, causal=True, window=100, packed=True),
    "packed, bidirectional, odd length": Case(203, 203, packed=True),
    "packed, cross": Case(114, 256, packed=True),
    "packed, T5 bias": Case(256, 256, bias=True, scale=1.0, packed=True),
    "packed, T5 bias, causal": Case(114, 114, causal=True, bias=True, scale=1.0, packed=True),
    "packed, two-sided window": Case(384, 384, window=65, packed=True),
    "two-sided window": Case(384, 384, window=65),
    "two-sided window, odd length": Case(203, 203, heads=8, groups=2, window=20),
    "two-sided window with lengths": Case(
        384, 384, window=65, lengths=(384, 131, 64), query_lengths=(384, 131, 64)
    ),
    "prefix": Case(256, 256, causal=True, prefixes=(200, 3, 0)),
    "prefix, odd length": Case(203, 203, heads=8, groups=2, causal=True, prefixes=(203, 70, 1)),
    "prefix with lengths": Case(
        256,
        256,
        causal=True,
        lengths=(256, 131, 64),
        query_lengths=(256, 131, 64),
        prefixes=(200, 100, 0),
    ),
    "prefix, sliding window": Case(384, 384, causal=True, window=100, prefixes=(300, 50, 0)),
    "prefix, heads of 256": Case(
        256, 256, heads=2, groups=1, channels=256, causal=True, prefixes=(200, 3, 0)
    ),
    "prefix, T5 bias": Case(256, 256, causal=True, bias=True, scale=1.0, prefixes=(200, 3, 0)),
}


class Result(NamedTuple):
    """Arrays by version ("cudnn", "xla", "reference") and name ("output", "q", "k", ...)."""

    text: str  # of the compiled program
    arrays: dict[str, dict[str, np.ndarray]]

    def error(self, case: Case, version: str, name: str) -> float:
        """Return ||version - reference|| / ||reference|| over the positions that are no padding."""
        found, expected = (
            self.arrays[key][name].astype(np.float64) for key in (version, "reference")
        )
        if name != "bias":
            found, expected = found[case.real(name)], expected[case.real(name)]
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def inputs(case: Case) -> dict[str, jax.Array]:
    """Return random q, k, v, the output's cotangent and the bias, all in bfloat16."""
    shapes = {
        "q": (ROWS, case.queries, case.heads, case.channels),
        "k": (ROWS, case.keys, case.groups, case.channels),
        "v": (ROWS, case.keys, case.groups, case.channels),
        "cotangent": (ROWS, case.queries, case.heads, case.channels),
    }
    if case.bias:
        shapes["bias"] = (1, case.heads, case.queries, case.keys)
    random = np.random.default_rng(sum(map(ord, repr(case))))
    arrays = {name: random.normal(size=shape) for name, shape in shapes.items()}

    # Without the scale that other models have, T5 starts from queries smaller by as much.
    arrays["q"] *= 1.0 if case.scale is None else case.channels**-0.5
    # Nothing reads the output at padded queries, so nothing flows back from there.
    arrays["cotangent"] *= case.real("output")[:, :, None, None]
    return {name: jnp.asarray(array, jnp.bfloat16) for name, array in arrays.items()}


def forward_and_backward(
    case: Case, execution: Execution, dtype: Any, values: dict[str, jax.Array]
):
    """Return the output and the gradient of every input in `dtype`; the bias is always float32."""
    operands = {name: x.astype(dtype) for name, x in values.items() if name != "cotangent"}
    if case.bias:
        operands["bias"] = operands["bias"].astype(jnp.float32)
    scale = case.scale or case.channels**-0.5

    def attention(operands: dict[str, jax.Array]) -> jax.Array:
        q, k, v = (operands[name] for name in "qkv")
        return attend(q, k, v, case.mask(), execution, scale=scale, bias=operands.get("bias"))

    output, backward = jax.vjp(attention, operands)
    return {"output": output} | backward(values["cotangent"].astype(dtype))[0]


def program(case: Case, gpu: Execution):
    """Return a function of `inputs` that computes the three versions."""

    def versions(values: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
        run = partial(forward_and_backward, case)
        found = {
            "cudnn": run(gpu._replace(attention="cudnn"), jnp.bfloat16, values),
            "xla": run(gpu._replace(attention="xla"), jnp.bfloat16, values),
        }
        # Left to itself the GPU would multiply float32 in 10 bits (TF32).
        with jax.default_matmul_precision("highest"):
            found["reference"] = run(gpu._replace(attention="xla"), jnp.float32, values)
        return found

    return versions


def gpu_execution(device: Any) -> Execution:
    """Return the execution that a run on this device would have."""
    return Execution(platform=device.platform, compute_capability=float(device.compute_capability))


def flash_kernels(text: str) -> set[str]:
    """Return the names of cuDNN's attention kernels in a compiled program."""
    return set(re.findall(r"__cudnn\$fmha\w+", text))


@cache
def result(name: str, device: Any) -> Result:
    """Compile and run a case, once for all tests."""
    case = CASES[name]
    values = jax.device_put(inputs(case), device)
    compiled = jax.jit(program(case, gpu_execution(device))).lower(values).compile()

    # What a kernel leaves unwritten is to show: the memory that it gets held NaN before.
    poison = jax.device_put(jnp.full(2**26, jnp.nan, jnp.float32), device)
    jax.block_until_ready(poison)
    poison.delete()

    arrays = jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), compiled(values))
    return Result(compiled.as_text() or "", arrays)


@pytest.fixture(params=CASES)
def name(request, gpu) -> str:
    if CASES[request.param].channels > 128 and float(gpu.compute_capability) < 9.0:
        pytest.skip("older GPUs have no flash kernel for heads of more than 128 channels")
    return request.param


def test_the_flash_kernels_are_chosen(gpu, name):
    case = CASES[name]
    kernel_case = KernelCase("bfloat16", case.queries, case.keys, case.channels, case.mask())
    assert choose_kernel(gpu_execution(gpu), kernel_case) == ("cudnn", "supported")

    kernels = flash_kernels(result(name, gpu).text)
    backward = {kernel for kernel in kernels if "Backward" in kernel}
    assert backward and kernels - backward
    has_bias = case.bias or is_read_as_bias(case.mask())
    assert all(("Bias" in kernel) == has_bias for kernel in kernels)


def test_output_and_gradients_are_those_of_the_xla_path(gpu, name, record):
    case, found = CASES[name], result(name, gpu)
    names = list(found.arrays["cudnn"])
    errors = {key: found.error(case, "cudnn", key) for key in names}
    record(cudnn=errors, xla={key: found.error(case, "xla", key) for key in names})

    assert errors.keys() >= {"output", "q", "k", "v"} and ("bias" in errors) == case.bias
    bounds = {key: OUTPUT_BOUND if key == "output" else GRADIENT_BOUND for key in errors}
    # The comparison is written so that NaN fails.
    assert {key: error for key, error in errors.items() if not error <= bounds[key]} == {}


def test_nothing_at_padded_positions_reaches_the_others(gpu, name):
    """Outputs are finite, since the next layer reads them with a weight of 0; gradients are 0."""
    case, found = CASES[name], result(name, gpu).arrays["cudnn"]
    assert [key for key, array in found.items() if not np.isfinite(array).all()] == []

    padding = {key: found[key][~case.real(key)] for key in "qkv"}
    assert [key for key, array in padding.items() if array.any()] == []


def test_no_document_of_a_row_reaches_another_one(gpu):
    """Outputs of a document are the same bits whatever stands beside it.

    Its gradients are the same but for the order in which the kernel's threads add them up.
    """
    case = CASES["packed, causal"]
    execution = gpu_execution(gpu)._replace(attention="cudnn")
    values = inputs(case)
    is_first = np.asarray(case.mask().segments == 1)[:, :, None, None]
    values["cotangent"] = values["cotangent"] * is_first
    others = {name: jnp.where(is_first, x, jnp.flip(x)) for name, x in values.items()}
    run = jax.jit(partial(forward_and_backward, case, execution, jnp.bfloat16))
    found, expected = (
        jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)), run(jax.device_put(x, gpu)))
        for x in (others, values)
    )
    np.testing.assert_array_equal(found["output"] * is_first, expected["output"] * is_first)
    for name in "qkv":
        error = np.linalg.norm((found[name] - expected[name]) * is_first)
        assert error <= 2**-9 * np.linalg.norm(expected[name]), name
    assert not any((expected[name] * ~is_first).any() for name in "qkv")
