"""Read and write models of Hugging Face `transformers`.

    model_config, params = load(HF_DIR)
    save(OUT_DIR, model_config, params)

The `model_type` of a config.json says which architecture it is. Only safetensors are read, and code
that comes with a checkpoint is never run.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxlm.config import ConfigError, ModelConfig, UserError
from jaxlm.config.fields import suggestion
from jaxlm.directories import check_is_not_quantized
from jaxlm.interop.architectures import ARCHITECTURES, OTHER_CLASSES
from jaxlm.interop.extension import apply_extension
from jaxlm.interop.fold_parametrization import fold_parametrization
from jaxlm.interop.hf_config import format_json, read_hf_config
from jaxlm.interop.mapping import Architecture
from jaxlm.interop.match_architecture import find_match, parameter_shapes
from jaxlm.interop.match_architecture import match_architecture as match_architecture
from jaxlm.interop.nonfinite import find_nonfinite_tensors
from jaxlm.interop.packed_weights import (
    Packing,
    pack_arrays,
    packed_names,
    packed_specs,
    quantization_config,
)
from jaxlm.interop.read_weights import DirectoryTensors, read_weights
from jaxlm.interop.safetensors_reader import TensorIndex, read_tensor_index
from jaxlm.interop.safetensors_writer import staged_files, write_safetensors
from jaxlm.interop.tensor_mapping import MappedTensor, check_params, map_tensors, own_leaves
from jaxlm.interop.write_weights import iterate_tensors, tensor_specs
from jaxlm.types import Tree

DEFAULT_SHARD_BYTES = 5_000_000_000
EXPORT_DTYPES = {"float32": "F32", "bfloat16": "BF16"}  # the range of float16 is too small


class HFDirectory(NamedTuple):
    """A Hugging Face directory whose config.json and headers have been read."""

    architecture: Architecture
    model: ModelConfig
    base: ModelConfig  # what config.json says without its section "jaxlm"
    indices: dict[str, TensorIndex]  # "" and the folders inside


def load(
    path: str | Path, *, dtype: str = "float32", shardings: Tree | None = None
) -> tuple[ModelConfig, Tree]:
    """Return the model of a Hugging Face directory and its parameters.

    `shardings` has a sharding for each parameter; without it all are on the default device.
    UserError, with file and key or tensor, where the directory can't be read.
    """
    directory = open_directory(Path(path))
    params: Tree = {}
    for name, index in directory.indices.items():
        architecture = folder_architecture(directory.architecture, name)
        part = read_weights(
            architecture,
            directory.model,
            index,
            shapes=own_leaves(directory.architecture, name, parameter_shapes(directory.model)),
            base_shapes=own_leaves(directory.architecture, name, parameter_shapes(directory.base)),
            shardings=shardings,
            dtype=jnp.dtype(dtype),
        )
        params = merge_parts(params, part, Path(path) / name)
    return directory.model, params


def folder_architecture(architecture: Architecture, name: str) -> Architecture:
    """Return the architecture of a folder inside, or of the directory itself ("")."""
    return architecture.subfolders[name] if name else architecture


def merge_parts(one: Tree, other: Tree, folder: Path) -> Tree:
    """Return the parameters of two directories; those that both have must be equal."""
    if not isinstance(one, dict):
        if not jnp.array_equal(one, other):
            raise UserError(f"{folder}: its embeddings are not those of the folder above it")
        return one
    both = {name: merge_parts(one[name], other[name], folder) for name in one if name in other}
    return one | other | both


def read_config(path: str | Path) -> tuple[Architecture, ModelConfig]:
    """Return the architecture and the model of a Hugging Face directory.

    Of its weights only the headers are read, and the tensors that the config depends on.
    """
    directory = open_directory(Path(path))
    return directory.architecture, directory.model


def open_directory(path: Path) -> HFDirectory:
    """Read config.json and the headers of the weights; UserError for what is not supported."""
    check_is_not_quantized(path, "they are read by generate, evaluate and harness alone")
    hf_config = read_hf_config(path)
    model_type = hf_config.get("model_type")
    known = [a for a in (*ARCHITECTURES.values(), *OTHER_CLASSES) if a.model_type == model_type]
    if not known:
        near = suggestion(model_type, ARCHITECTURES) if isinstance(model_type, str) else ""
        names = ", ".join(ARCHITECTURES)
        hf_config.refuse(
            "model_type", f"{format_json(model_type)} is not supported{near}; known: {names}"
        )
    classes = hf_config.strings("architectures")
    fitting = [a for a in known if not classes or set(classes) & set(a.classes)]
    if not fitting:
        names = " or ".join(name for a in known for name in a.classes)
        hf_config.refuse(
            "architectures", f"{', '.join(classes or ())} is not supported, only {names}"
        )
    architecture = fitting[0]

    values, indices = dict(hf_config.values), {"": read_tensor_index(path)}
    for name in architecture.subfolders:
        values.pop(name, None)
        if (path / name).is_dir():
            values[name] = dict(read_hf_config(path / name).values)
            indices[name] = read_tensor_index(path / name)
    hf_config = dataclasses.replace(hf_config, values=values)
    try:
        base = architecture.read(hf_config, DirectoryTensors(architecture, indices[""]))
        return HFDirectory(architecture, apply_extension(hf_config, base), base, indices)
    except ConfigError as error:  # names a field of jaxlm; the user needs the file
        raise UserError(f"{hf_config.path}: describes an impossible model: {error}") from None


def nonfinite_tensors(directory: Path, params: Tree) -> list[str]:
    """Return the names of a directory's tensors that have NaN or an infinity in `params`."""
    opened, names = open_directory(directory), []
    for folder in opened.indices:
        mapped = map_folder(opened.architecture, folder, opened.model, opened.base)
        own_params = own_leaves(opened.architecture, folder, params)
        names += find_nonfinite_tensors(mapped, own_params)
    return list(dict.fromkeys(names))


def map_folder(
    architecture: Architecture, folder: str, model: ModelConfig, base: ModelConfig
) -> list[MappedTensor]:
    """Return the tensors that a directory has of a model, or a folder inside it."""
    shapes, base_shapes = parameter_shapes(model), parameter_shapes(base)
    return map_tensors(
        folder_architecture(architecture, folder),
        model,
        own_leaves(architecture, folder, shapes),
        own_leaves(architecture, folder, base_shapes),
    )


def save(
    path: str | Path,
    model: ModelConfig,
    params: Tree,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokens: Mapping[str, Any] | None = None,
    packing: Packing | None = None,
) -> Architecture:
    """Write config.json and the weights of a model so that `transformers` loads them.

    With `packing` the matrices of the blocks are rounded, for the package compressed-tensors.
    `tokens` are ids for config.json: {"eos_token_id": 0, "pad_token_id": 1}; None means that there
    is no such token. Returns the architecture. UserError where `transformers` has none for the
    model.
    """
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"dtype: {dtype!r} is not supported; known: {', '.join(EXPORT_DTYPES)}")

    architecture, values, base = find_match(model)
    check_params(parameter_shapes(model), params)
    model, params = fold_parametrization(model, params)
    folders = [name for name in architecture.subfolders if name in values]
    own_values = {key: value for key, value in values.items() if key not in folders}

    file_dtype = EXPORT_DTYPES[dtype]
    for name in (*folders, ""):
        part = folder_architecture(architecture, name)
        mapped = map_folder(architecture, name, model, base)
        config_values = {
            "architectures": [part.classes[0]],
            "model_type": part.model_type,
            **add_token_ids(part, model, values[name] if name else own_values, tokens or {}),
            "dtype": dtype,
            "torch_dtype": dtype,  # its name before transformers 5
        }
        specs = tensor_specs(mapped, file_dtype)
        arrays = iterate_tensors(mapped, params, file_dtype)
        if packing is not None:
            names = packed_names(mapped, part.model_type)
            arrays = pack_arrays(specs, arrays, names, packing)
            specs = packed_specs(specs, names, packing)
            config_values["quantization_config"] = quantization_config(names, packing)
        with staged_files(Path(path) / name) as files:
            write_safetensors(files, specs, arrays, max_shard_bytes)
            files.write_json("config.json", config_values)
    return architecture


def add_token_ids(
    architecture: Architecture,
    model: ModelConfig,
    values: dict[str, Any],
    tokens: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the values of config.json with the ids of special tokens.

    UserError for an id outside of the vocabulary, or another one than the model's sizes imply.
    """
    for name, token_ids in tokens.items():
        for number in token_ids if isinstance(token_ids, (list, tuple)) else [token_ids]:
            if number is not None and not 0 <= number < model.vocabulary_size:
                last = model.vocabulary_size - 1
                raise UserError(f"{name}: {number} is not in the vocabulary (0 to {last})")

        implied = values.get(name)
        if implied is not None and token_ids is not None and implied != token_ids:
            reason = ""
            if name == "pad_token_id":
                reason = (
                    f"; its model.position_offset ({model.position_offset}) is pad_token_id + 1"
                )
            raise UserError(
                f"{name}: {token_ids} can't be written: a {architecture.model_type} "
                f"of this shape has {implied}{reason}"
            )

    # None is written as null, or the class of transformers would fill in an id of its own.
    return values | {
        name: token_ids
        for name, token_ids in tokens.items()
        if token_ids is not None or values.get(name) is None
    }
