"""A trained model with its tokenizer, ready to be used: from a run directory or from a Hugging Face directory."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax

from jaxlm import checkpoint, config, data, interop, models, runtime, sharding
from jaxlm.config import Config, NoCheckpointError, UserError
from jaxlm.interop import tokenizer as special_tokens
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.precision import cast_for_gather
from jaxlm.types import Tree, is_axes


class LoadedModel(NamedTuple):
    """What generation and evaluation need."""

    path: Path
    model: models.Model
    params: Tree  # on the devices, matrices in the dtype of the computation
    tokenizer: data.Tokenizer
    special: TokenizerFrame
    config: Config | None  # of a run
    step: int | None  # of a run: the checkpoint's


def is_run(path: Path) -> bool:
    """Whether a directory holds a run, or at least what is left of one."""
    return (path / "checkpoints").is_dir()


def load_model(
    path: str | Path, *, step: int | None = None, compute: str | None = "float32", devices: int = 1
) -> LoadedModel:
    """The model of a run (of its newest checkpoint unless a `step` is given) or of a Hugging Face directory.

    `compute` None is as the run was trained, float32 for the others. With several `devices` heads, MLP and vocabulary are split over
    them. UserError where the directory can't be read, NoCheckpointError where a run has no such checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: there is no such directory")
    if is_run(path):
        return load_run(path, step, compute, devices)
    if step is not None:
        raise UserError(
            f"{path}: step {step}: only a run has steps, and this directory has no checkpoints"
        )
    _, model_config = interop.read_config(path)
    model, where = placed(model_config, precision(compute or "float32"), devices)
    _, params = interop.load(path, shardings=where)
    settings, special = special_tokens.read(path)
    return LoadedModel(
        path,
        model,
        computed(model, params, compute),
        tokenizer(settings, special),
        special,
        None,
        None,
    )


def load_run(path: Path, step: int | None, compute: str | None, devices: int) -> LoadedModel:
    settings = config.load(path / "config.json")
    dtype = compute or settings.precision.compute
    model, where = placed(settings.model, precision(dtype, settings.precision.params), devices)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        where,
    )
    with checkpoint.Checkpoints(path / "checkpoints", settings.checkpoint.keep) as saved:
        step = saved.latest() if step is None else step
        if step is None:
            raise NoCheckpointError(f"{path / 'checkpoints'}: there is no checkpoint")
        params = saved.restore_params(step, abstract)
    file = path / special_tokens.FILE
    made = dataclasses.replace(
        settings.tokenizer, kind="file", path=str(file), vocabulary_size=None
    )
    special = special_tokens.of_run(
        settings.tokenizer, settings.objective, special_tokens.load(file)
    )
    return LoadedModel(
        path,
        model,
        computed(model, params, dtype),
        tokenizer(made, special),
        special,
        settings,
        step,
    )


def precision(compute: str, params: str = "float32") -> config.PrecisionConfig:
    """That of inference: weights are used in the dtype of the computation."""
    weights = "float32" if compute == "float32" else "bfloat16"
    return config.PrecisionConfig(compute=compute, params=params, gradients=weights)  # type: ignore[arg-type]


def placed(
    model_config: config.ModelConfig, precision: config.PrecisionConfig, devices: int
) -> tuple[models.Model, Tree]:
    """The model, split over so many devices, and where each of its parameters goes."""
    found = runtime.select_devices(config.RuntimeConfig(devices=devices))[:devices]
    parallel = config.ParallelConfig(data=1, fsdp=1, tensor=devices)
    mesh = sharding.make_mesh(parallel, found)
    sharding.check_mesh(mesh, model_config, [], 1, config.EvaluationConfig())
    model = models.build(
        model_config, precision, sharding.build_execution(mesh, parallel, precision, "auto")
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, sharding.Placement(mesh, model.axes, parallel.zero).tree("parameters", shapes)


def computed(model: models.Model, params: Tree, compute: str | None) -> Tree:
    """The weights in the dtype of the computation, once instead of at every use."""
    if compute in (None, "float32"):
        return params
    policy = precision(compute)
    return jax.tree.map(
        lambda names, weight: cast_for_gather(names, weight, policy),
        model.axes,
        params,
        is_leaf=is_axes,
    )


def tokenizer(settings: config.TokenizerConfig, special: TokenizerFrame) -> data.Tokenizer:
    """Of a tokenizer.json, with the special tokens that it has."""
    roles = data.SpecialTokens(
        special.end_of_text, special.begin_of_text, special.pad, special.mask, special.sentinels
    )
    assert settings.path is not None
    return data.load_tokenizer(Path(settings.path), roles)
