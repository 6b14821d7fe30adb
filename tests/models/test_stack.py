"""However a stack is run, it is the same function with the same gradient and the same tree.

Unrolled or scanned, with every recomputation policy.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny
from support.hf_directories import random_weights

from jaxlm import config, models
from jaxlm.losses import loss_sums
from jaxlm.models.stack import run_stack
from jaxlm.nn.execution import Execution
from jaxlm.plan.operations import BARRIER, flatten
from jaxlm.quantization import quantize_params
from jaxlm.types import Batch, Tree

# Dropout is on: its random numbers must not depend on how the stack is run either.
MODEL = config.ModelConfig(
    vocabulary_size=61, layers=2, width=24, heads=2, positions="none", norm="rmsnorm", dropout=0.1
)
WAYS = ["unrolled", "scanned"]
TOKENS = np.random.default_rng(0).integers(0, 61, (2, 9), np.int32)


def loss_of(execution: Execution) -> tuple[Any, Tree]:
    """The loss as a function of the parameters, and parameters for it."""
    model = models.build(MODEL, execution=execution)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes
    )
    key = jax.random.key(5, impl="rbg")  # compiles faster than the default

    def loss(params: Tree) -> jax.Array:
        x = model.features(params, Batch(TOKENS[:, :-1]), key)
        return loss_sums(
            model.scores(model.head_weights(params), x), TOKENS[:, 1:], jnp.ones((2, 8))
        ).loss

    return loss, params


def computed(blocks: str, remat: str) -> tuple[float, Tree]:
    loss, params = loss_of(Execution(blocks=blocks, remat=remat))
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), jax.tree.map(np.asarray, gradients)


@pytest.fixture(scope="module")
def plain() -> tuple[float, Tree]:
    return computed("unrolled", "none")


@pytest.mark.parametrize(
    ("blocks", "remat"),
    [("unrolled", "weights"), ("unrolled", "full"), ("scanned", "none"), ("scanned", "dots")],
)
def test_same_loss_and_gradients(blocks, remat, plain):
    """XLA may order sums differently in each program: a few roundings of float32 (6e-8)."""
    loss, gradients = computed(blocks, remat)
    expected_loss, expected = plain
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    scale = max(float(np.linalg.norm(g)) for g in jax.tree.leaves(expected))

    def compare(path: tuple, ours: np.ndarray, theirs: np.ndarray) -> None:
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs) + 1e-7 * scale, (
            jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, gradients, expected)


def marked_gather(weights: Tree, axes: Tree) -> Tree:
    """Stand in for gathering: like it, a function with a gradient of its own.

    A primitive that nothing else uses makes it visible.
    """
    del axes
    gather = jax.custom_vjp(lambda w: jnp.cosh(w))
    gather.defvjp(lambda w: (gather(w), None), lambda _, gradient: (gradient,))
    return jax.tree.map(gather, weights)


def work(blocks: str, remat: str, gathers: bool = False) -> tuple[float, float]:
    """(products, gathers) of one block, forward and backward."""
    execution = Execution(blocks=blocks, remat=remat, gather=marked_gather, gathers=gathers)
    loss, params = loss_of(execution)
    program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    counts = Counter(e.primitive.name for e in tiny.equations(program, one_branch=True))
    # A scanned block stands in the program once.
    copies = MODEL.layers if blocks == "unrolled" else 1
    # Outside the blocks: the head's product, three times; the token table, gathered twice, and the
    # last norm.
    return (counts["dot_general"] - 3) / copies, (counts["cosh"] - 3) / copies


@pytest.mark.parametrize("blocks", WAYS)
def test_policies_recompute_what_they_say(blocks):
    """A block has 14 weights, of which six multiply activations; attention has two more products.

    That makes three times eight products, forward and backward.
    """
    # No product again. Weights are gathered again, all but the six biases: products are kept with
    # theirs.
    assert work(blocks, "weights") == (24, 14 + 8)
    # Autodiff by itself keeps all, which a scan would stack, and would keep gathered weights.
    assert work(blocks, "none") == (24, 14 + (8 if blocks == "scanned" else 0))
    assert work(blocks, "none", gathers=True) == (24, 14 + 8)
    # The two products of attention again.
    assert work(blocks, "dots") == (24 + 2, 14 + 8)
    # Also the products with weights, but for the last, whose bias no gradient needs.
    assert work(blocks, "full") == (24 + 7, 14 + 13)


class FakeBlock:
    """A stand-in for a Flax module whose `apply` is a function of the test."""

    def __init__(self, layer: Any):
        self.layer = layer

    def apply(self, variables, x, inputs, dropout_key, cache, first):
        assert cache is None
        return self.layer(variables["params"], x, inputs, dropout_key, first), None


def run(layer: Any, params: Tree, x: Any, execution: Execution, **options: Any) -> Any:
    """Run a stack of fake blocks over the parameter `w`, whose axes are ("layers", "embed")."""
    inputs, key = options.get("inputs", [None]), options.get("dropout_key")
    axes = {"w": ("layers", "embed")}
    block: Any = FakeBlock(layer)
    return run_stack(block, inputs, params, axes, x, key, execution)


@pytest.mark.parametrize("blocks", WAYS)
def test_every_layer_gets_its_own_weights_and_key(blocks):
    key = jax.random.key(3)

    def layer(weights, x, inputs, layer_key, first):
        new = weights["w"] + jax.random.uniform(layer_key) + jnp.where(first, 0.5, 0.0)
        return jnp.concatenate([x[1:], new])

    params = {"w": 11 * jnp.arange(4.0)[:, None]}
    out = run(layer, params, jnp.zeros(4), Execution(blocks=blocks), dropout_key=key)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(4)]
    np.testing.assert_allclose(out, 11 * np.arange(4) + drawn + [0.5, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 4, 5])
@pytest.mark.parametrize("blocks", WAYS)
def test_kinds_of_layers_take_turns(blocks, layers):
    """Also where the last period is cut short."""

    def layer(weights, x, inputs, layer_key, first):
        return jnp.roll(x, -1).at[-1].set(100.0 * inputs + weights["w"][0])

    params = {"w": jnp.arange(float(layers))[:, None]}
    out = run(layer, params, jnp.zeros(layers), Execution(blocks=blocks), inputs=[0, 1])
    np.testing.assert_array_equal(out, [100.0 * (i % 2) + i for i in range(layers)])


def test_weights_are_gathered_layer_by_layer():
    """`gather` sees one layer's weights and axes at a time, without the stacked dimension."""
    seen = []

    def gather(weights, axes):
        seen.append((weights["w"].shape, axes["w"]))
        return jax.tree.map(lambda w: 2 * w, weights)

    def layer(weights, x, *_):
        return x + jnp.sum(weights["w"])

    out = run(layer, {"w": jnp.ones((3, 2))}, jnp.zeros(()), Execution(gather=gather))
    assert seen == [((2,), ("embed",))] * 3 and float(out) == 12.0


def test_init_does_not_depend_on_how_the_stack_is_run():
    """The traced programs are the same, so the values are."""
    ways = [
        Execution(),
        Execution(blocks="scanned", remat="full"),
        Execution(gather=marked_gather, constrain=lambda x, axes: 0 * x),
    ]
    programs = [
        str(jax.make_jaxpr(models.build(MODEL, execution=way).init)(jax.random.key(0)))
        for way in ways
    ]
    assert "random_bits" in programs[0]
    assert programs[0] == programs[1] == programs[2]


@pytest.mark.parametrize(
    ("blocks", "platform", "barriers"),
    [
        ("unrolled", "cuda", MODEL.layers),
        ("scanned", "cuda", 0),
        ("unrolled", "cpu", 0),
    ],
)
def test_unrolled_layers_on_gpus_finish_their_gradients_in_turn(blocks, platform, barriers):
    """A barrier per layer holds the gradients of its weights and of its input together."""
    loss, params = loss_of(Execution(blocks=blocks, platform=platform, attention="xla"))
    program = flatten(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    operands = [len(o.operands) for o in program.operations if o.name == BARRIER]
    assert operands.count(len(jax.tree.leaves(params["blocks"])) + 1) == barriers


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_stacks_are_freed_when_their_layers_are_cut_out(family):
    """Rounded weights too, whose stacks have an array of levels and one of scales."""
    shape = tiny.FAMILIES[family].model
    weights = jax.tree.map(jnp.asarray, random_weights(shape))
    params = quantize_params(models.build(shape).axes, weights, 4, group=8)
    expected = jax.tree.map(np.asarray, models.unstacked(params))
    stacks = params["blocks"] if family == "decoder" else params["decoder"]["blocks"]

    found = models.unstacked(params, free=True)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(stack.is_deleted() for stack in jax.tree.leaves(stacks))
