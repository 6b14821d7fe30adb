"""The part of a training step that each instruction of its compiled program belongs to.

XLA keeps with an instruction the path of the code that it was made from (`op_name`), in which the
names of Flax modules and of `jax.named_scope` stand:
`jit(step)/transpose(jvp(Block))/mlp/mlp.dense/BLI,IO->BLO/dot_general`. An instruction that XLA has
merged from several has the path of one of them, so that a part may have a little of its neighbours.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

ATTENTION, MLP, HEAD, NORMS = "attention", "mlp", "head_and_loss", "norms_and_embedding"
OPTIMIZER, COMMUNICATION, OTHER = "optimizer", "communication", "other"
PARTS = (ATTENTION, MLP, HEAD, NORMS, OPTIMIZER, COMMUNICATION, OTHER)

# The first name of a path that is here decides. What is left of a block are its residual sums.
NAMES = {
    "attention": ATTENTION,
    "cross_attention": ATTENTION,
    "RelativeBias": ATTENTION,
    "mlp": MLP,
    "loss": HEAD,
    "Head": HEAD,
    "GeneratorHead": HEAD,
    "DetectionHead": HEAD,
    "Embedding": NORMS,
    "Projection": NORMS,
    "Norm": NORMS,
    "attention_norm": NORMS,
    "attention_post_norm": NORMS,
    "cross_attention_norm": NORMS,
    "cross_attention_post_norm": NORMS,
    "mlp_norm": NORMS,
    "mlp_post_norm": NORMS,
    "Block.add_residual": NORMS,
    "optimizer": OPTIMIZER,
}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-")
COLLECTIVES += ("ragged-all-to-all", "partition-id", "send", "recv")
# Instructions that only call others, which have events of their own.
CONTAINERS = ("while", "call", "conditional", "async-start", "async-update", "async-done")

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*? ([a-z][a-z0-9\-]*)\((.*)$")
OP_NAME = re.compile(r'op_name="([^"]*)"')
CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
OPERAND = re.compile(r"%([\w.\-]+)")
PATH_SEPARATOR = re.compile(r"[/()]")


class Instruction(NamedTuple):
    """An instruction of a compiled program, as far as its part depends on it."""

    opcode: str
    path: str  # op_name; "" where XLA gives none
    operands: tuple[str, ...]
    called: tuple[str, ...]  # computations, by name


class Operation(NamedTuple):
    """The part of an instruction, and whether it is only a frame around others."""

    part: str
    is_container: bool = False


def find_operation(operations: dict[str, Operation], name: str) -> Operation | None:
    """Return the operation of an instruction by its name, None where the program has none so named.

    An instruction within an asynchronous one has a name of its own in a trace of a GPU, which the
    text of the program leaves out; that of a collective is still known by it.
    """
    if name not in operations and name.replace("_", "-").startswith(COLLECTIVES):
        return Operation(COMMUNICATION)
    return operations.get(name)


def read_program(text: str) -> tuple[dict[str, Instruction], dict[str, list[str]]]:
    """Return the instructions of a program by name, and their names by computation.

    `text` is `compiled.as_text()`. Names are unique in it.
    """
    instructions: dict[str, Instruction] = {}
    computations: dict[str, list[str]] = {}
    names: list[str] = []

    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            names = computations.setdefault(match[1], [])
        elif match := INSTRUCTION.match(line):
            name, opcode, rest = match.groups()
            path = OP_NAME.search(rest)
            operands = rest.partition(")")[0]
            instructions[name] = Instruction(
                opcode=opcode,
                path=path[1] if path else "",
                operands=tuple(OPERAND.findall(operands)),
                called=tuple(CALLED.findall(rest)),
            )
            names.append(name)
    return instructions, computations


def path_part(path: str) -> str | None:
    """Return the part that a path names, or None."""
    for name in PATH_SEPARATOR.split(path):
        if name in NAMES:
            return NAMES[name]
    return None


def assign_parts(text: str) -> dict[str, Operation]:
    """Return the part of each instruction of a compiled program, by the instruction's name.

    Copies and casts that XLA adds have no path. They belong to what they contain, else to what they
    read, else to what reads them.
    """
    instructions, computations = read_program(text)
    operations: dict[str, Operation] = {}
    unnamed = []

    for name, instruction in instructions.items():
        if instruction.opcode in CONTAINERS:
            calls = [instructions[n] for c in instruction.called for n in computations.get(c, ())]
            travels = any(call.opcode.startswith(COLLECTIVES) for call in calls)
            is_async = instruction.opcode.startswith("async")
            communicates = is_async and travels
            part = COMMUNICATION if communicates else OTHER
            operations[name] = Operation(part, is_container=not communicates)
        elif instruction.opcode.startswith(COLLECTIVES):
            operations[name] = Operation(COMMUNICATION)
        elif part := path_part(instruction.path):
            operations[name] = Operation(part)
        elif not instruction.path:
            unnamed.append(name)

    readers: dict[str, list[str]] = {}
    for name in instructions:
        for operand in instructions[name].operands:
            readers.setdefault(operand, []).append(name)

    def most(names: Iterable[str]) -> str | None:
        """Return the part that most of the instructions have."""
        parts = [operations[name].part for name in names if name in operations]
        counts = Counter(part for part in parts if part not in (OTHER, COMMUNICATION))
        return counts.most_common(1)[0][0] if counts else None

    # In the order of the program, so that what an instruction reads has its part already.
    for name in unnamed:
        inside = [n for c in instructions[name].called for n in computations.get(c, ())]
        if part := most(inside) or most(instructions[name].operands):
            operations[name] = Operation(part)
    for name in reversed(unnamed):
        if name not in operations and (part := most(readers.get(name, ()))):
            operations[name] = Operation(part)
    return {name: operations.get(name, Operation(OTHER)) for name in instructions}
