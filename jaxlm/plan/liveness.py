"""The arrays that a traced program has in memory when it has most, with the fusions that XLA makes.

XLA computes elementwise operations inside the kernels that read them, so most values of a program
never are in memory. Here a value is in memory if a kernel of its own makes it or reads it (a
product, attention, a collective, a loop), or if it is read twice and expensive to make again. An
array lives from the operation that makes it to the last one that reads it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Jaxpr

from jaxlm.plan.operation_order import (
    BACKWARD_NAME,
    FORWARD_NAME,
    deferred_products,
    order_operations,
)
from jaxlm.plan.operations import (
    BARRIER,
    KERNELS,
    OUTSIDE,
    Operation,
    Program,
    Value,
    flatten,
)

# Values up to this many bytes are computed again rather than kept.
SMALL = 4096

# What reads more than this many times its own bytes is computed once, where it is read twice.
READS = 1.5

# Parts of a step. A peak of the backward pass is near one of its ends: while it runs, what the
# forward pass kept is freed and gradients of weights are added.
FORWARD, EARLY, LATE, END = "forward", "backward, first half", "backward, second half", "gradients"

# The name of the arrays that the last turn of a loop has ready before it begins.
PEELED = "peeled"


@dataclass
class Peak:
    """The moment at which a part of a program has most in memory."""

    bytes: int = 0
    arrays: list[Value] = field(default_factory=list)  # alive then


Peaks = dict[str, Peak]  # by the part of a step


def find_peaks(jaxpr: Jaxpr, arguments: Sequence[Value] = (), scope: str = "") -> Peaks:
    """Return the peaks of a jaxpr, without its arguments (or called with these, in a scope)."""
    program = flatten(jaxpr, arguments, scope)
    program.operations = order_operations(program.operations)
    place(program)
    return run(program)


# What is in memory


def place(program: Program) -> None:
    """Decide which values are in memory. The others are computed by the kernels that read them."""
    for operation in program.operations:
        for value in operation.results:
            value.in_memory = value.is_kernel

    for operation in program.operations:
        if operation.name in KERNELS - {"scatter-add"} or operation.name == BARRIER:
            for value in operation.operands:
                keep(read_value(operation, value))
    for value in program.results:
        keep(value)

    kernels = reading_kernels(program)
    for operation in program.operations:
        for value in operation.results:
            if value.is_view or value.in_memory or value.bytes <= SMALL:
                continue
            if len(kernels[value]) < 2:  # the one that reads it computes it once
                continue
            is_masklike = value.dtype == "bool"
            read = 0 if is_masklike else sum(v.bytes for v in sources(value))
            value.in_memory = value.is_random or read > READS * value.bytes


def reading_kernels(program: Program) -> dict[Value, set[Operation]]:
    """Return the operations in whose kernels each value is read, or computed for what is read."""
    kernels: dict[Value, set[Operation]] = defaultdict(set)
    for operation in reversed(program.operations):
        is_kernel = operation.name in KERNELS or operation.name == BARRIER
        made = [value for value in operation.results if value.in_memory or value.is_kernel]
        reading = {operation} if is_kernel or made else set()
        if not reading:
            for value in operation.results:
                reading |= kernels[value]
        for value in operation.operands:
            kernels[value] |= reading
    return kernels


def keep(value: Value) -> None:
    """Have a value in memory."""
    value = value.in_its_memory
    if value.operation != OUTSIDE:
        value.in_memory = True


def read_value(operation: Operation, value: Value) -> Value:
    """Return the value that an operation reads in place of an operand.

    A weight that is cast to a wider dtype before a loop is cast in each of its turns.
    """
    if operation.name != "scan" or value.operation != "convert_element_type":
        return value
    before = value.operands[0]
    return before if value.is_derived and before.bytes < value.bytes else value


def sources(value: Value) -> set[Value]:
    """Return the values in memory that a kernel reads which computes this one."""
    found, seen, waiting = set(), set(), list(value.operands)
    while waiting:
        v = waiting.pop()
        if v in seen or v.operation == OUTSIDE:
            continue
        seen.add(v)
        if v.in_memory and not v.is_derived:
            found.add(v)
        else:
            waiting += v.operands
    return found


def read_from_memory(operation: Operation) -> set[Value]:
    """Return the values in memory that an operation reads."""
    is_kernel = operation.name in KERNELS or operation.name == BARRIER
    found = set()
    for operand in operation.operands:
        value = read_value(operation, operand).in_its_memory
        if value.operation == OUTSIDE:
            continue
        if value.in_memory and (is_kernel or not value.is_derived):
            found.add(value)
        else:
            found |= sources(value)
    return found


# How long it is there


def run(program: Program) -> Peaks:
    """Return the peaks of a program whose values are placed."""
    operations = program.operations
    starts, ends = lifetimes(program)
    ahead = gathered_ahead(operations)
    backward = [i for i, o in enumerate(operations) if BACKWARD_NAME in o.scope]
    middle = backward[len(backward) // 2] if backward else 0

    peaks: Peaks = {}
    live: dict[Value, None] = {}
    total = 0
    for index, operation in enumerate(operations):
        ending = [v for v in ends[index] if v in live or v in starts[index]]
        overwriting = written_over(operation, starts[index], ending)
        live |= dict.fromkeys(starts[index])
        total += sum(v.bytes for v in starts[index])

        now = total - sum(v.bytes for v in overwriting)
        part = name_part(operation, index, backward, middle)
        for inner_part, inner in inner_peaks(operation).items():
            name = inner_part if is_step_loop(operation) else part
            peak = peaks.setdefault(name, Peak())
            if now + inner.bytes > peak.bytes:
                arrays = [v for v in live if v not in overwriting]
                peaks[name] = Peak(now + inner.bytes, arrays + inner.arrays)

        for value in ending:
            del live[value]
            total -= value.bytes
    return {part: Peak(p.bytes + ahead.bytes, [*p.arrays, ahead]) for part, p in peaks.items()}


def gathered_ahead(operations: list[Operation]) -> Value:
    """Return the weights of the layer that is gathered before the loop over layers needs it."""
    sizes = [0]
    for operation in operations:
        if operation.name == "scan" and not is_step_loop(operation):
            body = operation.params["jaxpr"].jaxpr
            results = [v for o in flatten(body).operations for v in o.results]
            sizes.append(sum(v.bytes for v in results if v.operation == "all_gather"))
    return Value((), "", max(sizes), "all_gather")


def lifetimes(program: Program) -> tuple[dict[int, list[Value]], dict[int, list[Value]]]:
    """Return the values that begin, and those that end, with each operation."""
    operations = program.operations
    final = len(operations) - 1
    made: dict[Value, int] = {}
    first: dict[Value, int] = {}
    last: dict[Value, int] = {}
    late = deferred_products(program)
    for index, operation in enumerate(operations):
        kept = [v for v in operation.results if v.in_memory]
        made |= dict.fromkeys(kept, index)
        if not kept and operation.name not in KERNELS and operation.name != BARRIER:
            continue
        # The gradients of a layer, or of a step, are sent together.
        until = final if operation.name == "reduce_scatter" or operation in late else index
        for value in read_from_memory(operation):
            first.setdefault(value, index)
            last[value] = max(until, last.get(value, until))
    for value in program.results:
        first.setdefault(value.in_its_memory, final)
        last[value.in_its_memory] = len(operations)

    starts, ends = defaultdict(list), defaultdict(list)
    for value, index in made.items():
        # What is made of arguments alone is made when it is needed.
        start = first.get(value, index) if value.is_derived else index
        starts[start].append(value)
        ends[max(last.get(value, start), start)].append(value)
    return starts, ends


def written_over(operation: Operation, results: list[Value], ending: list[Value]) -> set[Value]:
    """Return the results that lie in the memory of operands that end.

    Those are what a loop carries, and what a kernel computes element by element.
    """
    free = [v for v in ending if v not in operation.results]
    found: set[Value] = set()
    if operation.name == "scan":
        start, count = loop_counts(operation)
        before = operation.operands[start : start + count]
        for operand, result in zip(before, operation.results[:count], strict=True):
            # Equal values are one here, of which one result takes the place.
            if operand.in_its_memory in free and result.bytes == operand.bytes:
                free.remove(operand.in_its_memory)
                found.add(result)
    elif operation.name not in KERNELS:
        sizes = sorted(v.bytes for v in free)
        for value in results:
            if value.bytes in sizes:
                sizes.remove(value.bytes)
                found.add(value)
    return found


def name_part(operation: Operation, index: int, backward: list[int], middle: int) -> str:
    """Return the part of a step to which an operation belongs."""
    if BACKWARD_NAME in operation.scope:
        return EARLY if index < middle else LATE
    if FORWARD_NAME in operation.scope or not backward or index < backward[0]:
        return FORWARD
    return END if index > backward[-1] else EARLY


def is_step_loop(operation: Operation) -> bool:
    """Return whether an operation is the loop over microbatches."""
    return operation.name == "scan" and FORWARD_NAME not in operation.scope


# Loops


def inner_peaks(operation: Operation) -> Peaks:
    """Return the peaks of a loop's body; of other operations a single one of nothing."""
    if operation.name != "scan":
        return {"": Peak()}

    body = operation.params["jaxpr"].jaxpr
    constants = [outside(operation, v) for v in operation.operands[: loop_counts(operation)[0]]]
    peaks = find_peaks(body, constants, operation.scope)
    if not is_step_loop(operation) or operation.params["length"] == 1 or not has_gather(body):
        return peaks

    extra = Value((), PEELED, ready_bytes(body, constants), PEELED, scope=operation.scope)
    return {
        part: Peak(peak.bytes + extra.bytes, [*peak.arrays, extra]) for part, peak in peaks.items()
    }


def loop_counts(operation: Operation) -> tuple[int, int]:
    """Return how many operands of a loop are constants, and how many arrays it carries.

    Versions of jax name them differently. What is neither has one dimension more than in the body.
    """
    body = operation.params["jaxpr"].jaxpr
    pairs = zip(operation.results, body.outvars, strict=True)
    carried = sum(value.shape == inner.aval.shape for value, inner in pairs)
    pairs = zip(operation.operands, body.invars, strict=True)
    whole = sum(value.shape == inner.aval.shape for value, inner in pairs)
    return whole - carried, carried


def outside(operation: Operation, value: Value) -> Value:
    """Return a constant of a loop as its body sees it: cast anew, if it is cast in each turn."""
    before = read_value(operation, value)
    argument = Value(before.shape, before.dtype, before.bytes, OUTSIDE)
    if before is value:
        return argument
    return Value(value.shape, value.dtype, value.bytes, value.operation, (argument,))


def has_gather(jaxpr: Jaxpr) -> bool:
    """Return whether a program gathers weights (ZeRO 3)."""
    return any(
        equation.primitive.name == "all_gather" or any(map(has_gather, called(equation)))
        for equation in jaxpr.eqns
    )


def called(equation: Any) -> Iterator[Jaxpr]:
    """Yield the jaxprs that an equation calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            body = getattr(part, "jaxpr", part)
            if isinstance(body, Jaxpr):
                yield body


def ready_bytes(jaxpr: Jaxpr, constants: Sequence[Value]) -> int:
    """Return the bytes that the last turn of a loop has ready while the others run.

    XLA gathers the weights of the next turn ahead, which takes the last turn out of the loop. There
    its first arrays need nothing from the others, so that they are made at once: gathered weights,
    and the zeros into which inner loops write and gradients are added.
    """
    program = flatten(jaxpr, constants)
    place(program)
    total = 0
    for operation in program.operations:
        results = operation.results
        if operation.name == "scan":
            total += sum(v.bytes for v in results[loop_counts(operation)[1] :])
        elif operation.name in ("all_gather", "scatter-add"):
            total += sum(v.bytes for v in results)
        elif operation.name == "broadcast_in_dim":
            total += sum(v.bytes for v in results if v.in_memory and v.is_derived)
    return total
