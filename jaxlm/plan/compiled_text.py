"""Read collectives, products and kernels from the text of a program that XLA compiled for GPUs.

Instructions in loops count as often as the loops run them. Imports no jax.
"""

import json
import math
import re
from collections import Counter, defaultdict
from functools import cached_property
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
BYTES |= {"u64": 8, "f64": 8}


class ArrayType(NamedTuple):
    """The type of an array of a program."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Return the bytes of the array."""
        return math.prod(self.shape) * BYTES[self.dtype]


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    arrays: tuple[ArrayType, ...]  # of the result, tuples flattened
    opcode: str
    operands: tuple[str, ...]  # names; the value of a constant, the number of a parameter
    attributes: str  # the rest of the line


class Collective(NamedTuple):
    """A collective: what all devices of a group hold together counts, not a device's part."""

    kind: str  # as in COLLECTIVES
    arrays: tuple[ArrayType, ...]  # whole: gathered, or before they are scattered
    group: int  # devices that take part together
    loops: tuple[int, ...]  # the trips of the loops around it, the outermost first
    line: str

    @property
    def bytes(self) -> int:
        """Return the bytes of all arrays, of one time."""
        return sum(array.bytes for array in self.arrays)

    @property
    def times(self) -> int:
        """Return how often the loops run it."""
        return math.prod(self.loops)


def array_types(text: str) -> tuple[ArrayType, ...]:
    """Return the types of arrays in a text, such as (f32[4,8]{1,0}, bf16[2]{0})."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    return tuple(
        ArrayType(dtype, tuple(int(size) for size in dims.split(",") if size))
        for dtype, dims in found
        if dtype in BYTES
    )


def closing(text: str, start: int) -> int:
    """Return the index of the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"unclosed bracket: {text[start : start + 80]}")


def parse_instruction(line: str) -> Instruction | None:
    """Return the instruction of a line, None for other lines."""
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if opcode is None:
        return None

    start = end + opcode.end() - 1
    stop = closing(rest, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:stop]))
    if opcode.group(1) in ("constant", "parameter"):
        operands = (rest[start + 1 : stop],)
    result = array_types(rest[:end])
    return Instruction(match.group(1), result, opcode.group(1), operands, rest[stop + 1 :])


class CompiledText:
    """The computations of a program by name, and how often each runs."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry, name = "", ""
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith((" ", "HloModule")):
                name = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
                self.entry = name if line.startswith("ENTRY") else self.entry
                self.computations[name] = {}
            elif name and (instruction := parse_instruction(line)):
                self.computations[name][instruction.name] = instruction

    @cached_property
    def loops(self) -> dict[str, list[tuple[int, ...]]]:
        """The trips of the loops around each computation, once for each place that calls it."""
        places: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)

        def visit(name: str, around: tuple[int, ...]) -> None:
            places[name].append(around)
            for instruction in self.computations[name].values():
                for attribute, called in called_computations(instruction.attributes):
                    # The functions of sums and sorts, and what a fusion does, are part of an
                    # instruction.
                    if called not in self.computations or attribute == "to_apply":
                        continue
                    is_body = instruction.opcode == "while" and attribute == "body"
                    trips = (self.trips(name, instruction),) if is_body else ()
                    visit(called, (*around, *trips))

        visit(self.entry, ())
        return places

    def trips(self, name: str, loop: Instruction) -> int:
        """Return how often the body of a loop of the computation `name` runs."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if match is not None:
            return int(match.group(1))

        # A loop whose first turn the compiler has moved out of it doesn't say: it counts up, in
        # steps of 1, to the constant of its condition.
        (state,) = loop.operands
        first = self.computations[name][self.computations[name][state].operands[0]]
        while first.opcode in ("copy", "bitcast"):
            first = self.computations[name][first.operands[0]]

        called = called_computations(loop.attributes)
        (condition,) = [part for attribute, part in called if attribute == "condition"]
        parts = [condition]
        for instruction in self.computations[condition].values():
            parts += [part for _, part in called_computations(instruction.attributes)]
        (limit,) = [
            int(instruction.operands[0])
            for part in parts
            for instruction in self.computations[part].values()
            if instruction.opcode == "constant"
        ]
        return limit - int(first.operands[0])

    def instructions(self) -> list[tuple[str, Instruction, tuple[int, ...]]]:
        """Return (computation, instruction, loops around it) of all that runs."""
        return [
            (name, instruction, around)
            for name, places in self.loops.items()
            for around in places
            for instruction in self.computations[name].values()
        ]

    def collectives(self) -> list[Collective]:
        """Return the collectives that run, once for each place that runs them."""
        return [
            collective_of(self.computations[name], instruction, around)
            for name, instruction, around in self.instructions()
            if instruction.opcode.removesuffix("-start") in COLLECTIVES
        ]

    def products(self) -> int:
        """Return the FLOPs of matrix products, those of attention kernels left out."""
        total = 0
        for name, instruction, around in self.instructions():
            contracted = contracted_dimensions(instruction)
            if contracted is None:
                continue
            left = self.computations[name][instruction.operands[0]].arrays[0]
            size = math.prod(left.shape[dimension] for dimension in contracted)
            total += 2 * math.prod(instruction.arrays[0].shape) * size * math.prod(around)
        return total

    def kernels(self) -> Counter[str]:
        """Return how often each kind of kernel runs: fusions, and library calls by their names."""
        counts: Counter[str] = Counter()
        for _, instruction, around in self.instructions():
            target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
            if instruction.opcode == "fusion":
                counts["fusion"] += math.prod(around)
            elif target is not None:
                counts[target.group(1)] += math.prod(around)
        return counts


def collective_of(
    computation: dict[str, Instruction], instruction: Instruction, loops: tuple[int, ...]
) -> Collective:
    """Return the collective of an instruction of a computation with these loops around it."""
    kind = instruction.opcode.removesuffix("-start")
    group = len(groups_of(instruction.attributes)[0]) if kind != COLLECTIVES[4] else 2
    arrays = [array for name in instruction.operands for array in computation[name].arrays]
    if kind == "all-gather":
        # A part has 1/group of the elements; along which dimension doesn't matter here.
        arrays = [ArrayType(a.dtype, (group, *a.shape)) for a in arrays]
    return Collective(kind, tuple(arrays), group, loops, instruction.attributes)


def called_computations(attributes: str) -> list[tuple[str, str]]:
    """Return (attribute, name) of the computations that an instruction calls.

    Those of a condition have the attribute "branch".
    """
    called = re.findall(r"\b(body|condition|calls|to_apply)=%?([\w.\-]+)", attributes)
    names = re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", attributes)
    branches = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    if branches is not None:
        names += re.findall(r"%?([\w.\-]+)", branches.group(1))
    return called + [("branch", name) for name in names]


def contracted_dimensions(instruction: Instruction) -> list[int] | None:
    """Return the dimensions of a product's left operand that are summed over."""
    attributes = instruction.attributes
    if instruction.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
        return [int(d) for d in dims.group(1).split(",") if d] if dims else []
    if instruction.opcode == "custom-call" and "__cublas$" in attributes:
        dims = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', attributes)
        return [int(d) for d in json.loads(dims.group(1))] if dims else None
    return None


def groups_of(instruction: str) -> list[list[int]]:
    """Return the devices that take part together, in an instruction's replica_groups.

    They are written {{0,1},{2,3}}, [2,2]<=[4], or mesh['a'=2,'b'=2], device_ids=([4]) {'b'}.
    """
    text = instruction.partition("replica_groups=")[2]
    if text.startswith("{{"):
        listed = text.partition("}}")[0] + "}"
        groups = re.findall(r"\{([\d,]+)\}", listed)
        return [[int(number) for number in group.split(",")] for group in groups]
    if text.startswith("mesh"):
        return groups_of_mesh(text)

    order = re.search(r"<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if order is None:
        raise ValueError(f"unknown groups of devices: {text[:80]}")
    sizes = [int(size) for size in text[1:].partition("]")[0].split(",")]
    return iota(order).reshape(sizes).tolist()


def groups_of_mesh(text: str) -> list[list[int]]:
    """Return the groups of mesh['a'=2,'b'=2], device_ids=([4]) {'b'}: devices along the axes b."""
    axes = dict(re.findall(r"'(\w+)'=(\d+)", text.partition("]")[0]))
    braces = re.search(r"\{(.*?)\}", text)
    grouped = re.findall(r"'(\w+)'", braces.group(1)) if braces else []
    order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text)

    sizes = [int(size) for size in axes.values()]
    ids = np.arange(math.prod(sizes)) if order is None else iota(order)
    last = [number for number, axis in enumerate(axes) if axis in grouped]
    rest = [number for number in range(len(axes)) if number not in last]
    size = math.prod(sizes[number] for number in last)
    return ids.reshape(sizes).transpose(rest + last).reshape(-1, size).tolist()


def iota(order: re.Match[str]) -> np.ndarray:
    """Return 0, 1, ... in the shape of [4,2]T(1,0), its axes in that order."""
    sizes = [int(size) for size in order.group(1).split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if order.group(2) is None:
        return ids
    return ids.transpose([int(axis) for axis in order.group(2).split(",")])
