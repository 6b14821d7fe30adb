"""Rounded weights as `transformers` reads them with the package compressed-tensors.

Its format "pack-quantized" holds for each torch.nn.Linear, in place of `weight` [out, in], the
levels plus half of their range, packed along the inputs into int32 (`weight_packed`), scales
[out, groups] (`weight_scale`), and the shape (`weight_shape`). Only the matrices of the blocks are
rounded; embeddings and head stay as they are.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.config import UserError
from jaxlm.interop.safetensors_writer import TensorSpec
from jaxlm.interop.tensor_mapping import MappedTensor
from jaxlm.quantization import DEFAULT_GROUP, round_to_levels

# Architectures whose class in `transformers` (5.24) fails on packed weights.
UNLOADABLE = {
    "t5": "transformers can't load a packed t5: it initialises `weight`, which packed layers lack"
}


class Packing(NamedTuple):
    """How the weights of an export are rounded."""

    bits: int
    group: int | None = None  # inputs that share a scale; None: all of a channel

    @property
    def group_size(self) -> int | None:
        """Return the inputs that share a scale; None: all."""
        return (self.group or DEFAULT_GROUP) if self.bits == 4 else None


def packed_names(mapped: Sequence[MappedTensor], model_type: str) -> dict[str, str]:
    """Return the tensors that are rounded, each with the pattern of its module's name.

    UserError where a matrix of the blocks is stored as [in, out]: its module is no torch.nn.Linear.
    """
    if model_type in UNLOADABLE:
        raise UserError(f"--bits: {UNLOADABLE[model_type]}; jaxlm.convert quantize rounds it")
    names: dict[str, str] = {}
    for each in mapped:
        rule = each.rule
        kernels = [path for path in rule.parameters if path.endswith("_kernel")]
        if "{}" not in rule.tensor or not each.parameters or not kernels:
            continue
        inputs = rule.dims[:-1] if kernels[0].endswith("output_kernel") else rule.dims[0]
        if rule.layout.split()[-1] != inputs:
            raise UserError(
                f"--bits: a {model_type} has {rule.tensor} as [in, out], which is no "
                "torch.nn.Linear, and compressed-tensors packs these alone; jaxlm.convert quantize "
                "rounds it for jaxlm"
            )
        pattern = re.escape(rule.tensor.removesuffix(".weight")).replace(r"\{\}", r"\d+")
        for layer, name in each.layer_names():
            names |= dict.fromkeys((name, *each.copy_names(layer)), f"re:.*{pattern}$")
    return names


def packed_specs(
    specs: Sequence[TensorSpec], names: dict[str, str], packing: Packing
) -> list[TensorSpec]:
    """Return the tensors that `pack_arrays` yields. UserError where the shape can't be packed."""
    packed = []
    for spec in specs:
        if spec.name not in names:
            packed.append(spec)
            continue
        rows, inputs = spec.shape
        group = packing.group_size or inputs
        if inputs % group or inputs * packing.bits % 32:
            raise UserError(
                f"--bits {packing.bits}: {spec.name} has {inputs} inputs, which are no multiple of "
                f"{packing.group_size or 32 // packing.bits}"
            )
        stem = spec.name.removesuffix("weight")
        words = inputs * packing.bits // 32
        packed += [
            TensorSpec(f"{stem}weight_packed", "I32", (rows, words)),
            TensorSpec(f"{stem}weight_scale", "F32", (rows, inputs // group)),
            TensorSpec(f"{stem}weight_shape", "I64", (2,)),
        ]
    return packed


def pack_arrays(
    specs: Sequence[TensorSpec],
    arrays: Iterator[np.ndarray],
    names: dict[str, str],
    packing: Packing,
) -> Iterator[np.ndarray]:
    """Yield the arrays of `specs`, three in place of each that is rounded."""
    for spec, array in zip(specs, arrays, strict=True):
        if spec.name not in names:
            yield array
            continue
        rows, inputs = array.shape
        grouped = array.reshape(rows, -1, packing.group_size or inputs)
        levels, scales = round_to_levels(grouped, (2,), packing.bits)  # type: ignore[arg-type]
        digits = np.asarray(levels).reshape(rows, inputs) + 2 ** (packing.bits - 1)
        numbers = digits.astype(np.uint8)
        if packing.bits == 4:
            numbers = numbers[:, ::2] | numbers[:, 1::2] << 4
        yield np.ascontiguousarray(numbers).view("<i4")
        yield np.asarray(scales)[:, :, 0]
        yield np.array([rows, inputs], np.int64)


def quantization_config(names: dict[str, str], packing: Packing) -> dict[str, Any]:
    """Return the section "quantization_config" of config.json."""
    weights = {
        "num_bits": packing.bits,
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        "strategy": "channel" if packing.group_size is None else "group",
        "group_size": packing.group_size,
    }
    group = {"targets": sorted(set(names.values())), "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [],
    }
