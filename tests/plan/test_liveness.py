"""What is in memory of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxlm.plan.liveness import find_peaks, place
from jaxlm.plan.operations import flatten

ROWS, WIDTH = 1024, 512
SQUARE = ROWS * WIDTH * 4  # bytes of x


def arrays_of(function, *shapes, dtype="float32"):
    """Return the bytes of the arrays in memory at the peak, from the largest on."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    peaks = find_peaks(jax.make_jaxpr(function)(*arguments).jaxpr)
    peak = max(peaks.values(), key=lambda peak: peak.bytes)
    assert sum(v.bytes for v in peak.arrays) == peak.bytes
    return sorted((v.bytes for v in peak.arrays if v.bytes > 4096), reverse=True)


def test_what_lies_between_products_is_computed_by_them():
    def function(x, w):
        y = jnp.exp(x) + 1  # one array: the operand of the product
        return (y @ w).sum()

    assert arrays_of(function, (ROWS, WIDTH), (WIDTH, WIDTH)) == [SQUARE, SQUARE]


def test_arguments_are_not_counted():
    assert arrays_of(lambda x: x.sum(), (ROWS, WIDTH)) == []


def test_an_array_ends_with_its_last_reader():
    def chain(x, w):
        for _ in range(5):
            x = x @ w
        return x

    assert arrays_of(chain, (ROWS, WIDTH), (WIDTH, WIDTH)) == [SQUARE, SQUARE]


def test_equal_values_are_one():
    def function(x, w):
        return (jnp.tanh(x) @ w).sum() + (jnp.tanh(x) @ (2 * w)).sum()

    program = flatten(
        jax.make_jaxpr(function)(jnp.zeros((ROWS, WIDTH)), jnp.zeros((WIDTH, WIDTH))).jaxpr
    )
    assert [o.name for o in program.operations].count("tanh") == 1


def test_a_cast_and_back_is_nothing():
    def function(x):
        return x.astype(jnp.float32).astype(jnp.bfloat16) @ x.T

    assert arrays_of(function, (ROWS, WIDTH), dtype="bfloat16") == [ROWS * ROWS * 2]


def test_a_loop_carries_its_arrays_in_place():
    def function(x, w):
        start = jnp.zeros_like(x)
        return jax.lax.scan(lambda c, _: (c + x @ w, None), start, None, length=4)[0]

    # The sum, and the product of one turn.
    assert arrays_of(function, (ROWS, WIDTH), (WIDTH, WIDTH)) == [SQUARE, SQUARE]


def test_the_backward_pass_reads_what_was_kept_of_every_layer():
    layers = 6

    def loss(x, w):
        for _ in range(layers):
            x = jnp.tanh(x @ w)
        return x.sum()

    def recomputed(x, w):
        for _ in range(layers):
            x = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))(x)
        return x.sum()

    kept = arrays_of(jax.grad(loss), (ROWS, WIDTH), (WIDTH, WIDTH))
    assert kept.count(SQUARE) == pytest.approx(layers, abs=2)
    # Twice the products in each, and no more is kept.
    assert len(arrays_of(jax.grad(recomputed), (ROWS, WIDTH), (WIDTH, WIDTH))) <= layers + 4


def test_of_two_losses_one_is_done_with_before_the_other_begins():
    @jax.named_scope("Block")
    def loss(x, w):
        for _ in range(6):
            x = jnp.tanh(x @ w)
        return x.sum()

    def both(x, w, v):
        return loss(x, w) + loss(x, v)

    one = arrays_of(jax.grad(loss, 1), (ROWS, WIDTH), (WIDTH, WIDTH))
    two = arrays_of(jax.grad(both, (1, 2)), (ROWS, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH))
    assert sum(two) < 1.5 * sum(one)


def test_random_bits_that_are_read_twice_are_kept():
    def loss(x, w):
        kept = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape)
        return jnp.where(kept, x @ w, 0).sum()

    def masks_in_memory(function):
        shapes = jax.ShapeDtypeStruct((ROWS, WIDTH), "float32"), jnp.zeros((WIDTH, WIDTH))
        program = flatten(jax.make_jaxpr(function)(*shapes).jaxpr)
        place(program)
        values = [v for o in program.operations for v in o.results]
        return sum(v.in_memory for v in values if v.dtype == "bool")

    assert masks_in_memory(loss) == 0 and masks_in_memory(jax.value_and_grad(loss)) == 1
