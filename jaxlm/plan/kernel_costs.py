"""FLOPs and memory traffic of the kernels of a program, from the shapes in its compiled text.

Imports no jax.
"""

import math
import re
from collections import Counter

from jaxlm.flops import causal_pairs
from jaxlm.plan.compiled_text import (
    CompiledText,
    Instruction,
    called_computations,
    contracted_dimensions,
)

Computation = dict[str, Instruction]

# Products of a flash kernel: the scores and the weighted sum, and backward the scores again, the
# gradients of weights, values, queries and keys (FlashAttention, arXiv 2205.14135).
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5
# Operations that read of an operand what they give, and those that write of it what they change.
READ_A_PART = ("dynamic-slice", "slice", "gather")
WRITE_A_PART = {"dynamic-update-slice": 1, "scatter": 2}  # the operand that is written


def result_bytes(instruction: Instruction) -> int:
    """Return the bytes of an instruction's result."""
    return sum(array.bytes for array in instruction.arrays)


def called_fusion(instruction: Instruction) -> str:
    """Return the name of the computation that a fusion is."""
    (name,) = [name for key, name in called_computations(instruction.attributes) if key == "calls"]
    return name


# FLOPs


def product_flops(text: CompiledText, name: str, instruction: Instruction) -> Counter[str]:
    """Return the FLOPs of matrix products in an instruction of the computation `name`, by dtype.

    Those of attention kernels are left out.
    """
    flops: Counter[str] = Counter()
    if instruction.opcode == "fusion":
        called = called_fusion(instruction)
        for inner in text.computations[called].values():
            flops.update(product_flops(text, called, inner))
        return flops

    contracted = contracted_dimensions(instruction)
    if contracted is not None:
        left = text.computations[name][instruction.operands[0]].arrays[0]
        size = math.prod(left.shape[dimension] for dimension in contracted)
        flops[left.dtype] += 2 * math.prod(instruction.arrays[0].shape) * size
    return flops


def is_attention(instruction: Instruction) -> bool:
    """Return whether an instruction calls a flash kernel of cuDNN."""
    return instruction.opcode == "custom-call" and "__cudnn$fmha" in instruction.attributes


def attention_flops(computation: Computation, instruction: Instruction) -> int:
    """Return the FLOPs of a flash kernel, of the pairs of positions that its mask lets through."""
    rows, queries, heads, width = attention_shape(computation, instruction)
    keys = computation[instruction.operands[1]].arrays[0].shape[1]
    pairs = queries * keys
    if re.search(r'"mask_type": ?"(PADDING_)?CAUSAL"', instruction.attributes):
        window = re.search(r'"sliding_window_length": ?"?([1-9]\d*)', instruction.attributes)
        pairs = causal_pairs(queries, None if window is None else int(window.group(1)))

    products = BACKWARD_PRODUCTS if "Backward" in instruction.attributes else FORWARD_PRODUCTS
    return 2 * products * rows * heads * width * pairs


def attention_shape(
    computation: Computation, instruction: Instruction
) -> tuple[int, int, int, int]:
    """Return rows, queries, heads and channels of a head of a flash kernel."""
    rows, queries, heads, width = computation[instruction.operands[0]].arrays[0].shape
    return rows, queries, heads, width


def has_bias(instruction: Instruction) -> bool:
    """Return whether a flash kernel adds a bias to the scores."""
    return "ScaleBias" in instruction.attributes


# Memory traffic


def traffic_bytes(text: CompiledText, name: str, instruction: Instruction) -> int:
    """Return the bytes that an instruction of the computation `name` reads and writes."""
    computation = text.computations[name]
    if instruction.opcode == "fusion":
        inner = text.computations[called_fusion(instruction)]
        parameters = [i.name for i in inner.values() if i.opcode == "parameter"]
        read = sum(bytes_read(inner, parameter) for parameter in parameters)
        return read + bytes_written(inner, list(inner)[-1])

    if instruction.opcode in WRITE_A_PART:
        return 2 * bytes_written(computation, instruction.name)
    if instruction.opcode in READ_A_PART:
        return 2 * result_bytes(instruction)
    operands = [computation[operand] for operand in instruction.operands if operand in computation]
    return sum(map(result_bytes, operands)) + result_bytes(instruction)


def bytes_read(computation: Computation, name: str) -> int:
    """Return the bytes of a value that a fusion reads: all of it, or the parts that are used."""
    whole, parts = result_bytes(computation[name]), 0
    for user in computation.values():
        if name not in user.operands or user.opcode == "constant":
            continue
        is_first = user.operands[0] == name
        if user.opcode in READ_A_PART and is_first:
            parts += result_bytes(user)
        elif user.opcode == "bitcast":
            parts += bytes_read(computation, user.name)
        elif user.opcode not in WRITE_A_PART or not is_first:
            return whole
    return min(whole, parts)


def bytes_written(computation: Computation, name: str) -> int:
    """Return the bytes of a value that a fusion writes: what changes, where that is a part."""
    value = computation[name]
    if value.opcode == "tuple":
        return sum(bytes_written(computation, operand) for operand in value.operands)
    if value.opcode == "bitcast":
        return bytes_written(computation, value.operands[0])
    if value.opcode in WRITE_A_PART:
        return result_bytes(computation[value.operands[WRITE_A_PART[value.opcode]]])
    return result_bytes(value)
