"""Directories of rounded weights: model.safetensors, quantization.json, config and tokenizer.

The tensors have the paths of the parameters ("blocks.mlp.up_kernel.values" and ".scales" of a
matrix, "final_norm.scale" of a vector), so that any model has such a directory. quantization.json
says how they were rounded and holds the section `model` of a config. config.json and the files of
the tokenizer are those of the run, or of the Hugging Face directory, that was rounded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxlm.config import ConfigError, ModelConfig, UserError, to_dict
from jaxlm.config.plain_data import build_section
from jaxlm.directories import QUANTIZATION_FILE
from jaxlm.interop.hf_config import read_json
from jaxlm.interop.safetensors_reader import (
    TensorReader,
    aligned_zeros,
    read_tensor_index,
)
from jaxlm.interop.safetensors_writer import TensorSpec, staged_files, write_safetensors
from jaxlm.interop.tensor_mapping import leaves_by_path
from jaxlm.types import Tree

FORMAT, VERSION = "jaxlm-quantized", 1
FILE_DTYPES = {"float32": "F32", "int8": "I8", "uint8": "U8"}


class Quantization(NamedTuple):
    """The contents of quantization.json."""

    bits: int
    group: int | None  # inputs that share a scale; None at 8 bits, where all inputs do
    source: Literal["run", "hugging_face"]  # which config.json and tokenizer lie beside it
    step: int | None  # of a run's checkpoint
    model: ModelConfig


def write_quantized(
    directory: Path, quantization: Quantization, params: Tree, max_shard_bytes: int
) -> None:
    """Write quantization.json and the weights. UserError where they can't be written."""
    leaves = leaves_by_path(params)
    specs = [
        TensorSpec(name, FILE_DTYPES[str(leaf.dtype)], leaf.shape) for name, leaf in leaves.items()
    ]

    def arrays() -> Iterator[np.ndarray]:
        for leaf in leaves.values():
            yield np.asarray(leaf)

    document = {"format": FORMAT, "version": VERSION, **quantization._asdict()}
    document["model"] = to_dict(quantization.model)
    with staged_files(directory) as files:
        write_safetensors(files, specs, arrays(), max_shard_bytes)
        files.write_json(QUANTIZATION_FILE, document)


def read_quantization(directory: Path) -> Quantization:
    """Return what quantization.json says; UserError with the key where that can't be."""
    path = directory / QUANTIZATION_FILE
    values = read_json(path)

    def refuse(key: str, reason: str) -> UserError:
        return UserError(f"{path}: {key}: {reason}")

    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise refuse("format", f"is not {FORMAT!r}")
    if values.get("version") != VERSION:
        raise refuse("version", f"{values.get('version')!r} is not supported, only {VERSION}")
    bits, group, step = (values.get(key) for key in ("bits", "group", "step"))
    if bits not in (4, 8):
        raise refuse("bits", f"must be 8 or 4, got {bits!r}")
    if (group is None) != (bits == 8) or (bits == 4 and not is_positive(group)):
        raise refuse("group", f"must be a number at 4 bits and null at 8, got {group!r}")
    if group is not None and group % 2:
        raise refuse("group", f"must be even, got {group}")
    if values.get("source") not in ("run", "hugging_face"):
        raise refuse("source", f"must be 'run' or 'hugging_face', got {values.get('source')!r}")
    if step is not None and not (isinstance(step, int) and step >= 0):
        raise refuse("step", f"must be a number or null, got {step!r}")
    try:
        model = build_section(ModelConfig, values.get("model"), "model")
    except ConfigError as error:
        raise UserError(f"{path}: {error}") from None
    return Quantization(bits, group, values["source"], step, model)


def is_positive(value: Any) -> bool:
    """Return whether a value of JSON is an integer above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def read_quantized(directory: Path, shapes: Tree, shardings: Tree) -> Tree:
    """Return the parameters of these `shapes`, each placed as `shardings` says.

    UserError, with file and tensor, for weights that are not those of the model.
    """
    index = read_tensor_index(directory)
    expected, placed = leaves_by_path(shapes), leaves_by_path(shardings)
    for name, entry in index.entries.items():
        if name not in expected:
            raise entry.error("is not a tensor of the model that quantization.json describes")

    params = {}
    with TensorReader(0) as reader:
        for name, leaf in expected.items():
            entry = index.entries.get(name)
            if entry is None:
                raise UserError(f"{index.source}: {name}: there is no such tensor")
            dtype = FILE_DTYPES[str(leaf.dtype)]
            if (entry.dtype, entry.shape) != (dtype, leaf.shape):
                has, needs = [entry.dtype, *entry.shape], [dtype, *leaf.shape]
                raise entry.error(f"is {has}, but quantization.json asks for {needs}")

            raw = aligned_zeros((entry.size,), np.uint8)
            array = reader.read_bytes(entry, 0, entry.size, raw).view(leaf.dtype)
            placed_array = jax.device_put(array.reshape(leaf.shape), placed[name])
            params[name] = jax.block_until_ready(placed_array)
    return jax.tree_util.tree_map_with_path(
        lambda path, _: params[jax.tree_util.keystr(path, simple=True, separator=".")], shapes
    )
