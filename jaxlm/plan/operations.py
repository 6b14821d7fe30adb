"""A traced program as one list of operations: calls are written out, and equal values are merged.

XLA removes common subexpressions and casts that change nothing, so both happen here too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr, Literal

# Operations that XLA computes in kernels of their own, from operands that are in memory.
KERNELS = {
    "all_gather",
    "cumsum",
    "dot_general",
    "dot_product_attention_bwd",
    "dot_product_attention_fwd",
    "psum",
    "psum_invariant",
    "reduce_scatter",
    "scan",
    "scatter",
    "scatter-add",
    "sort",
    "top_k",
    "while",
}

# Operations whose result is in memory, but which compute their operands on the way.
REDUCTIONS = {"argmax", "argmin", "concatenate", "reduce", "scatter-add"}

# Operations whose result is their operand in memory.
VIEWS = {"bitcast_convert_type", "copy", "expand_dims", "name", "reshape", "squeeze", "transpose"}

# Expensive to compute twice: what is made of them is kept, where it is used twice.
RANDOM = {"random_bits", "threefry2x32"}

BARRIER = "optimization_barrier"
OUTSIDE = "argument"  # values that somebody else accounts for


@dataclass(eq=False)
class Value:
    """An array of a program."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int
    operation: str  # that makes it, or OUTSIDE
    operands: tuple["Value", ...] = ()
    scope: str = ""  # the names around the code that made it
    users: int = 0  # operations that read it
    is_random: bool = False  # expensive to compute twice
    in_memory: bool = False
    derived: bool | None = None  # `is_derived`, once it is known

    @property
    def is_view(self) -> bool:
        """Return whether it lies in the memory of its operand."""
        return self.operation in VIEWS or self.operation == BARRIER

    @property
    def in_its_memory(self) -> "Value":
        """Return the value whose memory this one is a view of."""
        value = self
        while value.is_view:
            value = value.operands[0]
        return value

    @property
    def is_derived(self) -> bool:
        """Return whether it is made of arguments alone, by operations that are cheap to repeat."""
        if self.derived is None:
            is_made = self.is_kernel or self.is_random or self.operation == BARRIER
            self.derived = not is_made and all(
                v.operation == OUTSIDE or v.is_derived for v in self.operands
            )
        return self.derived

    @property
    def is_kernel(self) -> bool:
        """Return whether a kernel makes it, as opposed to the operations that read it."""
        is_reduction = self.operation in REDUCTIONS or self.operation.startswith("reduce_")
        return self.operation in KERNELS or is_reduction


@dataclass(eq=False)
class Operation:
    """A step of a program."""

    name: str
    operands: list[Value]
    results: list[Value]
    params: dict[str, Any]
    scope: str  # the names around the code that made it


@dataclass
class Program:
    """Operations in their order, and the values that outlive them."""

    operations: list[Operation] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)
    made: dict[Any, Value] = field(default_factory=dict)  # results of operations by what they are
    scope: str = ""  # the names around the code that calls it


def flatten(jaxpr: Jaxpr, arguments: Sequence[Value] = (), scope: str = "") -> Program:
    """Return the operations of a jaxpr, called in `scope`.

    `arguments` are its first ones. The others, and its constants, are OUTSIDE.
    """
    program = Program(scope=scope)
    others = [new_value(v.aval, OUTSIDE) for v in jaxpr.invars[len(arguments) :]]
    arguments = [*arguments, *others]
    program.results = inline(program, jaxpr, arguments, scope)
    drop_unread(program)
    return program


def drop_unread(program: Program) -> None:
    """Drop the operations whose results nobody reads, and count the readers of the others."""
    needed = set(program.results)
    kept = []
    for operation in reversed(program.operations):
        if needed.isdisjoint(operation.results):
            continue
        needed.update(operation.operands)
        kept.append(operation)
        for value in operation.operands:
            value.users += 1
    program.operations = kept[::-1]


def new_value(aval: Any, operation: str, operands: Sequence[Value] = (), scope: str = "") -> Value:
    """Return the value of this abstract array."""
    shape, dtype = tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4)
    size = math.prod(shape) * itemsize
    is_random = operation in RANDOM or (
        operation != "select_n" and any(v.is_random for v in operands)
    )
    return Value(shape, str(dtype), size, operation, tuple(operands), scope, 0, is_random)


def inline(program: Program, jaxpr: Jaxpr, arguments: Sequence[Value], scope: str) -> list[Value]:
    """Append the operations of a jaxpr, called in `scope`, and return its results."""
    values: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    values |= {v: new_value(v.aval, OUTSIDE) for v in jaxpr.constvars}

    def read(v: Any) -> Value:
        return new_value(v.aval, OUTSIDE) if isinstance(v, Literal) else values[v]

    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        names = f"{scope}/{equation.source_info.name_stack}"
        body = called_jaxpr(equation)
        if body is None:
            results = append(program, equation, operands, names)
        else:
            if equation.primitive.name == "cond":
                operands = operands[1:]
            elif equation.primitive.name == "shard_map":  # inside, they are a device's parts
                operands = [new_value(v.aval, OUTSIDE) for v in body.invars]
            elif equation.params.get("differentiated") and equation.params.get("prevent_cse"):
                operands = barrier(program, operands, names)
            results = inline(program, body, operands, names)
        values.update(zip(equation.outvars, results, strict=True))

    return [read(v) for v in jaxpr.outvars]


def called_jaxpr(equation: Any) -> Jaxpr | None:
    """Return the jaxpr that an equation calls once, or None.

    Of the branches of a choice it is the last one: that of GPUs, where the platform decides.
    """
    name, params = equation.primitive.name, equation.params
    if name in ("scan", "while", "reduce"):
        return None
    body = params["branches"][-1] if name == "cond" else None
    body = body or params.get("jaxpr") or params.get("call_jaxpr")
    return getattr(body, "jaxpr", body)


def barrier(program: Program, operands: Sequence[Value], scope: str) -> list[Value]:
    """Append a barrier, behind which nothing is merged with what is before it."""
    results = [Value(v.shape, v.dtype, v.bytes, BARRIER, (v,), scope) for v in operands]
    program.operations.append(Operation(BARRIER, list(operands), results, {}, scope))
    return results


def append(program: Program, equation: Any, operands: list[Value], scope: str) -> list[Value]:
    """Append the operation of an equation, unless an equal one is there, and return its results."""
    name, params = equation.primitive.name, equation.params
    if name == BARRIER:
        return barrier(program, operands, scope)
    if name == "convert_element_type":
        source = operands[0]
        before = source.operands[0] if source.operation == name else None
        is_back = before is not None and before.dtype == str(params["new_dtype"])
        if before is not None and is_back and before.bytes <= source.bytes:
            return [before]

    results = [new_value(v.aval, name, operands, scope) for v in equation.outvars]
    known = [
        id(v) for v, a in zip(operands, equation.invars, strict=True) if not isinstance(a, Literal)
    ]
    if known and len(results) == 1 and not results[0].is_kernel:
        literals = [v.val for v in equation.invars if isinstance(v, Literal)]
        key = (name, tuple(known), str(literals), str(params))
        if key in program.made:
            return [program.made[key]]
        program.made[key] = results[0]

    program.operations.append(Operation(name, operands, results, params, scope))
    return results
