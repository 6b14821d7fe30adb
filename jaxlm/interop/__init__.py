"""Models in and out of Hugging Face directories: `model_config, params = load(HF_DIR)`, `save(OUT_DIR, model_config, params)`.

Models are known by the `model_type` of their config.json; only safetensors are read and no code that comes with a checkpoint is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxlm import config
from jaxlm.config import ConfigError, UserError
from jaxlm.config.fields import suggestion
from jaxlm.interop import extension, files, hf_config, weights, writer
from jaxlm.interop.architectures import ARCHITECTURES
from jaxlm.interop.files import Listing
from jaxlm.interop.mapping import Architecture
from jaxlm.interop.match_architecture import fit, shapes_of
from jaxlm.interop.match_architecture import match_architecture as match_architecture
from jaxlm.types import Tree

SHARD_BYTES = 5_000_000_000
WRITTEN = {"float32": "F32", "bfloat16": "BF16"}  # float16 has no room for large weights


def load(
    path: str | Path, *, dtype: str = "float32", shardings: Tree | None = None
) -> tuple[config.ModelConfig, Tree]:
    """The model of a Hugging Face directory and its parameters.

    `shardings` are those of the parameters; without them all is on the default device.
    """
    architecture, model, whole, listing = opened(Path(path))
    return model, weights.read(
        architecture,
        model,
        listing,
        shapes_of(model),
        shardings,
        jnp.dtype(dtype),
        shapes_of(whole),
    )


def read_config(path: str | Path) -> tuple[Architecture, config.ModelConfig]:
    """What a Hugging Face directory says of itself; its weights are not read, but for what config.json leaves open."""
    return opened(Path(path))[:2]


def opened(directory: Path) -> tuple[Architecture, config.ModelConfig, config.ModelConfig, Listing]:
    """(architecture, the model, what it is without our section, tensors)."""
    values = hf_config.read(directory)
    model_type = values.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        near = suggestion(model_type, ARCHITECTURES) if isinstance(model_type, str) else ""
        values.refuse(
            "model_type",
            f"{hf_config.shown(model_type)} is not supported{near}; known: {', '.join(ARCHITECTURES)}",
        )
    classes = values.words("architectures")
    if classes and not set(classes) & set(architecture.classes):
        values.refuse(
            "architectures",
            f"{', '.join(classes)} is not supported, only {' or '.join(architecture.classes)}",
        )
    listing = files.listing(directory)
    try:
        whole = architecture.read(values, weights.Tensors(architecture, listing))
        return architecture, extension.read(values, whole), whole, listing
    except ConfigError as error:  # names our field; the file that it comes from is theirs
        raise UserError(f"{values.path}: gives a model that can't be: {error}") from None


def save(
    path: str | Path,
    model: config.ModelConfig,
    params: Tree,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = SHARD_BYTES,
    tokens: Mapping[str, Any] | None = None,
) -> Architecture:
    """Writes config.json and the weights such that `transformers` loads them. UserError where no architecture of theirs is this model.

    `tokens` are ids for config.json: {"eos_token_id": 0, "pad_token_id": 1}; None says that there is no such token.
    """
    if dtype not in WRITTEN:
        raise UserError(f"dtype: {dtype!r} is not supported; known: {', '.join(WRITTEN)}")
    architecture, values, whole = fit(model)
    shapes = shapes_of(model)
    weights.check_tree(shapes, params)
    rows = weights.rows(architecture, model, shapes, shapes_of(whole))
    config_values = {
        "architectures": [architecture.classes[0]],
        "model_type": architecture.model_type,
        **with_tokens(architecture, model, values, tokens or {}),
        "dtype": dtype,
        "torch_dtype": dtype,  # its name before transformers 5
    }
    with writer.staged(Path(path)) as staged:
        code = WRITTEN[dtype]
        writer.write(
            staged, weights.written(rows, code), weights.arrays(rows, params, code), max_shard_bytes
        )
        staged.json("config.json", config_values)
    return architecture


def with_tokens(
    architecture: Architecture,
    model: config.ModelConfig,
    values: dict[str, Any],
    tokens: Mapping[str, Any],
) -> dict[str, Any]:
    """The values of config.json with the ids of special tokens, some of which the model's own sizes may settle."""
    for name, ids in tokens.items():
        for number in ids if isinstance(ids, (list, tuple)) else [ids]:
            if number is not None and not 0 <= number < model.vocabulary_size:
                raise UserError(
                    f"{name}: {number} is not in the vocabulary (0 to {model.vocabulary_size - 1})"
                )
        settled = values.get(name)
        if settled is not None and ids is not None and settled != ids:
            settled_by = (
                f"; model.position_offset ({model.position_offset}) is pad_token_id + 1 in it"
                if name == "pad_token_id"
                else ""
            )
            raise UserError(
                f"{name}: {ids} can't be written: a {architecture.model_type} of this shape has {settled}{settled_by}"
            )
    # A token that is said not to be is null: the class of transformers would have an id of its own.
    return values | {
        name: ids for name, ids in tokens.items() if ids is not None or values.get(name) is None
    }
