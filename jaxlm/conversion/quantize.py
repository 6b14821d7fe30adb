"""Write the model of a run, or of a Hugging Face directory, with weights of 8 or 4 bits."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlm import interop
from jaxlm.config import UserError
from jaxlm.conversion.export_run import new_directory
from jaxlm.conversion.import_model import check_is_empty
from jaxlm.directories import check_is_not_quantized
from jaxlm.interop.quantized_files import Quantization, write_quantized
from jaxlm.interop.tensor_mapping import leaves_by_path
from jaxlm.load_model import load_model
from jaxlm.quantization import DEFAULT_GROUP, quantize_params
from jaxlm.types import Tree

# Beside the weights: configs, tokenizers and their vocabularies, chat templates.
KEPT_SUFFIXES = {".json", ".txt", ".model", ".jinja"}
RUN_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)


class QuantizedModel(NamedTuple):
    """A model that was written."""

    step: int | None  # of a run
    parameter_count: int
    bytes: int  # of the weights
    float32_bytes: int  # of the same weights before


def quantize_model(
    directory: Path,
    out: Path,
    *,
    bits: int,
    group: int | None = None,
    step: int | None = None,
    ema: bool = False,
    max_shard_bytes: int = interop.DEFAULT_SHARD_BYTES,
) -> QuantizedModel:
    """Write the rounded weights into `out`, with the config and the tokenizer of `directory`.

    A run's newest checkpoint is taken unless `step` is given, and with `ema` the average of its
    weights. `group` is the number of inputs that share a scale at 4 bits. UserError where
    `directory` can't be read or holds rounded weights already, where its weights are no numbers,
    where the group doesn't divide the inputs of a weight, or where `out` is not empty; then there
    is no `out`.
    """
    check_is_not_quantized(directory, "to round them again loses more; take what they were made of")
    check_is_empty(out)
    group = (group or DEFAULT_GROUP) if bits == 4 else None
    loaded = load_model(directory, step=step, ema=ema, rounded=False)
    check_finite(directory, loaded.params)
    axes, float32_bytes = loaded.model.axes, count_bytes(loaded.params)
    try:
        params = jax.jit(lambda p: quantize_params(axes, p, bits, group or DEFAULT_GROUP))(
            loaded.params
        )
    except ValueError as error:
        raise UserError(f"--group {group}: {error}") from None
    is_run = loaded.config is not None
    quantization = Quantization(
        bits, group, "run" if is_run else "hugging_face", loaded.step, loaded.model.config
    )
    with new_directory(out) as folder:
        write_quantized(folder, quantization, params, max_shard_bytes)
        for path in kept_files(directory, is_run=is_run):
            shutil.copyfile(path, folder / path.name)
    return QuantizedModel(
        loaded.step, loaded.model.parameter_count(), count_bytes(params), float32_bytes
    )


def kept_files(directory: Path, *, is_run: bool) -> list[Path]:
    """Return the files that lie beside the weights, those of a tokenizer and configs."""
    if is_run:
        return [directory / name for name in RUN_FILES if (directory / name).is_file()]
    return [
        path
        for path in sorted(directory.iterdir())
        if path.suffix in KEPT_SUFFIXES
        and path.is_file()
        and not path.name.endswith(".index.json")  # of the weights
    ]


def count_bytes(params: Tree) -> int:
    """Return the bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def check_finite(directory: Path, params: Tree) -> None:
    """Raise UserError, with the parameter, where a weight is no number."""
    for name, leaf in leaves_by_path(params).items():
        if not bool(jnp.isfinite(leaf).all()):
            raise UserError(f"{directory}: {name} holds NaN or infinity, which can't be rounded")
