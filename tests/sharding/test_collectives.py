"""What travels between devices in a step, and how often: counted in the traced program."""

import math
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import pytest
from jax.extend import core
from support import tiny

from jaxlm import communication, state
from jaxlm.config import PrecisionConfig

MICROBATCHES, LAYERS, DEVICES = 2, 3, 8
LARGE = 512  # elements: the sums of losses and norms are smaller


class Collective(NamedTuple):
    """A collective of a traced program."""

    kind: str  # "psum", "reduce_scatter" or "all_gather"
    dtype: str
    elements: int  # of its operand on one device, times the trips of the loops around it
    loops: tuple[int, ...]  # the trips of these loops, the outermost first


def collectives(jaxpr: Any, loops: tuple[int, ...] = ()) -> list[Collective]:
    """Return the collectives of a program, those of inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("psum", "reduce_scatter", "all_gather"):
            for operand in equation.invars:
                size = math.prod(operand.aval.shape) * math.prod(loops)
                found.append(Collective(name, operand.aval.dtype.name, size, loops))

        inner_loops = (*loops, equation.params["length"]) if name == "scan" else loops
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
        ):
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, core.Jaxpr):
                found += collectives(inner, inner_loops)
    return found


@cache
def traced(family: str, zero: int, **parallel: Any) -> tuple[tiny.Parts, list[Collective]]:
    """Return the parts of a run in bfloat16 and the large collectives of its step."""
    config = tiny.FAMILIES[family]
    encoder_layers = LAYERS if family == "encoder_decoder" else None
    config = replace(
        config,
        model=replace(
            config.model, layers=LAYERS, encoder_layers=encoder_layers, vocabulary_size=384
        ),
        precision=PrecisionConfig(compute="bfloat16"),
        training=replace(config.training, microbatches=MICROBATCHES),
    )
    parts = tiny.parts(DEVICES, config, zero=zero, **parallel)
    shapes = state.state_shapes(parts.model, parts.optimizer)
    program = jax.make_jaxpr(parts.step())(shapes, tiny.batch(0, config))
    return parts, [c for c in collectives(program.jaxpr) if c.elements >= LARGE]


class Sizes(NamedTuple):
    """Elements of the large parameters."""

    blocks: int  # split by fsdp, in the stacks of blocks
    others: int  # split by fsdp: tables, head
    whole: int  # not split


def sizes(parts: tiny.Parts) -> Sizes:
    shapes = state.state_shapes(parts.model, parts.optimizer).params
    specs = jax.tree.leaves(parts.placement._replace(zero=3).tree("parameters", shapes))
    counts = dict.fromkeys(Sizes._fields, 0)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, shape), sharding in zip(leaves, specs, strict=True):
        if shape.size >= LARGE:
            is_block = "blocks" in jax.tree_util.keystr(path)
            split = "blocks" if is_block else "others"
            counts[split if "fsdp" in sharding.spec else "whole"] += shape.size
    return Sizes(**counts)


def total(found: list[Collective], kind: str, *loops: int) -> int:
    return sum(c.elements for c in found if c.kind == kind and c.loops == loops)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_zero_0_sums_the_gradients_once_per_step(family):
    parts, found = traced(family, 0)
    assert {(c.kind, c.dtype, c.loops) for c in found} == {("psum", "float32", ())}
    assert total(found, "psum") == sum(sizes(parts))


@pytest.mark.parametrize(
    ("family", "parallel"),
    [("decoder", {}), ("decoder", {"data": 2}), ("encoder", {}), ("encoder_decoder", {"data": 2})],
)
def test_zero_1_reduce_scatters_the_gradients_once_per_step(family, parallel):
    parts, found = traced(family, 1, **parallel)
    blocks, others, whole = sizes(parts)
    assert {c.loops for c in found} == {()}
    assert total(found, "reduce_scatter") == blocks + others
    # Between replicas only the parts travel.
    fsdp = parts.placement.mesh.shape["fsdp"]
    assert total(found, "psum") == whole + ((blocks + others) // fsdp if parallel else 0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_zero_2_reduce_scatters_every_gradient_once_per_microbatch(family):
    parts, found = traced(family, 2)
    blocks, others, whole = sizes(parts)
    assert {c.loops for c in found} <= {(MICROBATCHES,), ()}
    assert total(found, "reduce_scatter", MICROBATCHES) == MICROBATCHES * (blocks + others)
    assert total(found, "psum", MICROBATCHES) == 0
    assert total(found, "psum") == whole


@pytest.mark.parametrize(
    ("family", "remat"),
    [
        ("decoder", "none"),
        ("decoder", "dots"),
        ("decoder", "full"),
        ("encoder", "weights"),
        ("encoder_decoder", "none"),
    ],
)
def test_zero_3_gathers_twice_and_scatters_once_per_microbatch(family, remat):
    """A layer is gathered forward and again backward, in the compute dtype; summed in float32."""
    parts, found = traced(family, 3, remat=remat)
    blocks, others, whole = sizes(parts)
    assert {c.dtype for c in found if c.kind == "all_gather"} == {"bfloat16"}
    assert {c.dtype for c in found if c.kind != "all_gather"} == {"float32"}

    layers = (MICROBATCHES, LAYERS)
    assert total(found, "all_gather", *layers) * DEVICES == MICROBATCHES * 2 * blocks
    assert total(found, "reduce_scatter", *layers) == MICROBATCHES * blocks
    # A table that is also the head is gathered, and its gradient is split, once for each use.
    for kind, parts_of in (("all_gather", DEVICES), ("reduce_scatter", 1)):
        outside = total(found, kind, MICROBATCHES) * parts_of
        assert MICROBATCHES * others <= outside <= MICROBATCHES * 2 * others
    assert total(found, "psum") == whole
    assert total(found, "psum", MICROBATCHES) == total(found, "psum", *layers) == 0


def test_gradients_travel_in_the_dtype_that_the_config_says():
    config = replace(
        tiny.CONFIG, precision=PrecisionConfig(compute="bfloat16", gradients="bfloat16")
    )
    for zero in (1, 3):
        parts = tiny.parts(DEVICES, config, zero=zero)
        shapes = state.state_shapes(parts.model, parts.optimizer)
        program = jax.make_jaxpr(parts.step())(shapes, tiny.batch(0, config))
        found = [c for c in collectives(program.jaxpr) if c.elements >= LARGE]
        # Norms and biases along the width, which every device has whole, are summed in float32.
        matrices = [c.dtype for c in found if c.kind != "psum" or c.elements >= 64 * 64]
        assert set(matrices) == {"bfloat16"}


@pytest.mark.parametrize(
    ("family", "zero", "parallel"),
    [
        ("encoder", 0, {}),
        ("decoder", 1, {"data": 2}),
        ("encoder_decoder", 2, {}),
        ("decoder", 3, {"remat": "full"}),
        ("encoder", 3, {"remat": "weights"}),
        ("encoder_decoder", 3, {"remat": "none"}),
    ],
)
def test_the_formula_counts_what_a_step_sends(family, zero, parallel):
    """The partitioner gathers the updated parameters of stages 1 and 2: not in a traced program."""
    parts, found = traced(family, zero, **parallel)
    mesh = parts.placement.mesh.shape
    formula = communication.step_transfers(
        parts.config.model,
        parts.config.precision,
        zero=zero,
        fsdp=mesh["fsdp"],
        data=mesh["data"],
        microbatches=MICROBATCHES,
    )

    def elements(kind: str) -> int:
        large = [t for t in formula if t.kind == kind and t.elements >= LARGE]
        return sum(t.elements * t.times for t in large)

    assert total_of(found, "reduce_scatter") == elements("reduce-scatter")
    assert total_of(found, "psum") == elements("all-reduce") + sizes(parts).whole
    gathered = total_of(found, "all_gather") * mesh["fsdp"]
    assert gathered == (elements("all-gather") if zero == 3 else 0)


def total_of(found: list[Collective], kind: str) -> int:
    """Return the elements of all collectives of a kind, in and outside loops."""
    return sum(c.elements for c in found if c.kind == kind)
