"""Load a trained model with its tokenizer, from a run directory or a Hugging Face directory."""

import dataclasses
import shlex
from pathlib import Path
from typing import NamedTuple

import jax

from jaxlm import (
    checkpoint,
    config,
    data,
    interop,
    models,
    runtime,
    sharding,
)
from jaxlm.config import (
    Config,
    ModelConfig,
    PrecisionConfig,
    TokenizerConfig,
    UserError,
)
from jaxlm.config.mesh import check_tensor
from jaxlm.data.vocabulary import special_tokens
from jaxlm.directories import QUANTIZATION_FILE, check_directory, is_quantized, is_run
from jaxlm.interop.kept_files import read_kept, read_kept_generation
from jaxlm.interop.quantized_files import read_quantization, read_quantized
from jaxlm.interop.token_names import TOKENIZER_CONFIG_FILE
from jaxlm.interop.tokenizer import (
    TOKENIZER_FILE,
    TokenizerFrame,
    load_tokenizer_json,
    read_tokenizer,
    run_tokenizer_frame,
    widen_special_tokens,
)
from jaxlm.mesh_execution import build_execution
from jaxlm.precision import cast_for_gather
from jaxlm.quantization import DEFAULT_GROUP, quantize_params, round_params
from jaxlm.run_weights import Place, read_weights
from jaxlm.types import Tree, is_axes


class LoadedModel(NamedTuple):
    """A model for generation and evaluation."""

    path: Path
    model: models.Model
    params: Tree  # on the devices, matrices in the dtype of the computation
    tokenizer: data.Tokenizer
    special: TokenizerFrame
    config: Config | None  # None for a Hugging Face directory
    step: int | None  # of the checkpoint; None for a Hugging Face directory

    def require_tokens(self) -> None:
        """Raise UserError if the model gives labels in place of tokens."""
        if self.model.config.classifier.kind != "none":
            raise UserError(
                f"{self.path}: is a classifier, which gives labels in place of tokens: "
                f"python -m jaxlm.predict {shlex.quote(str(self.path))} --texts FILE"
            )

    def mask_filler(self) -> models.Model:
        """Return the model that fills masks: ELECTRA's generator, else the model itself.

        Raises UserError where ELECTRA was loaded without its generator.
        """
        if self.model.config.generator_share is None:
            return self.model
        if self.model.generator is None:
            raise UserError(
                f"{self.path}: has no folder generator with an ElectraForMaskedLM, so that nothing "
                "can be filled in or replaced; jaxlm.generate --embed gives vectors"
            )
        return self.model.generator


def load_model(
    path: str | Path,
    *,
    step: int | None = None,
    ema: bool = False,
    compute: str | None = "float32",
    devices: int = 1,
    rounded: bool = True,
    merged: bool = True,
) -> LoadedModel:
    """Return the model of a run, of a Hugging Face directory or of one of rounded weights.

    A run's newest checkpoint is taken unless `step` is given, and with `ema` the average of its
    weights. `compute` is the dtype of the computation; None is that of the training for a run and
    float32 for others. With several `devices` heads, MLP and vocabulary are split over them. A run
    that was trained with rounded weights has these, unless `rounded` is False. The adapters of a
    run are merged into its weights, unless `merged` is False.

    Raises UserError where the directory can't be read, NoCheckpointError where a run has no such
    checkpoint.
    """
    path = Path(path)
    check_directory(path)
    if is_run(path):
        options = {"ema": ema, "rounded": rounded, "merged": merged}
        return load_run_model(path, step, compute, devices, **options)
    if step is not None or ema:
        asked = "--ema: only a run has averages" if ema else f"step {step}: only a run has steps"
        raise UserError(f"{path}: {asked}, and this directory has no checkpoints")

    if is_quantized(path):
        return load_quantized_model(path, compute, devices)

    _, model_config = interop.read_config(path)
    model, shardings = place_model(model_config, inference_precision(compute or "float32"), devices)
    _, params = interop.load(path, shardings=shardings)
    tokenizer_config, special = read_tokenizer(path)
    return LoadedModel(
        path,
        model,
        cast_params(model, params, compute),
        load_run_tokenizer(tokenizer_config, special),
        special,
        config=None,
        step=None,
    )


def find_best_step(run: Path) -> int:
    """Return the step of a run's best checkpoint, by `checkpoint.best`.

    Raises NoCheckpointError if no checkpoint has the figure.
    """
    run_config, _ = checkpoint.read_run_config(run)
    with checkpoint.Checkpoints.of_run(run, run_config.checkpoint) as checkpoints:
        return checkpoints.require_best()


def load_run_model(
    path: Path,
    step: int | None,
    compute: str | None,
    devices: int,
    *,
    ema: bool,
    rounded: bool,
    merged: bool,
) -> LoadedModel:
    """Return the model of a run directory; the parameters are as in `load_model`."""
    run_config, _ = checkpoint.read_run_config(path)
    if ema and run_config.optimizer.ema_decay is None:
        reason = "the run keeps no average of its weights (optimizer.ema_decay)"
        raise UserError(f"{path}: --ema: {reason}")
    compute = compute or run_config.precision.compute
    precision = inference_precision(compute, run_config.precision.params)
    place = choose_place(run_config.model, precision, devices)
    params, step = read_weights(path, run_config, place, step=step, ema=ema, merged=merged)

    adapter = None if merged else run_config.adapter
    model = models.build(run_config.model, precision, place.execution, adapter)
    if rounded and run_config.precision.weights is not None:
        params = round_params(model.axes, params, run_config.precision.weights)

    tokenizer, special = read_run_tokenizer(path, run_config)
    return LoadedModel(
        path,
        model,
        cast_params(model, params, compute),
        tokenizer,
        special,
        run_config,
        step,
    )


def load_quantized_model(path: Path, compute: str | None, devices: int) -> LoadedModel:
    """Return a model whose matrices stay rounded in memory, as in `load_model`."""
    quantization = read_quantization(path)
    run_config = None
    if quantization.source == "run":
        run_config, _ = checkpoint.read_run_config(path)
    if compute is None:
        compute = run_config.precision.compute if run_config else "float32"

    precision = inference_precision(compute)
    place = choose_place(quantization.model, precision, devices)
    model = models.build(quantization.model, precision, place.execution)
    group = quantization.group or DEFAULT_GROUP
    try:
        shapes = jax.eval_shape(
            lambda key: quantize_params(model.axes, model.init(key), quantization.bits, group),
            jax.random.key(0),
        )
    except ValueError as error:
        raise UserError(f"{path / QUANTIZATION_FILE}: group: {error}") from None
    shardings = sharding.Placement(place.mesh, model.axes, zero=0).tree("parameters", shapes)
    params = read_quantized(path, shapes, shardings)

    if run_config is None:
        tokenizer_config, special = read_tokenizer(path)
        tokenizer = load_run_tokenizer(tokenizer_config, special)
    else:
        tokenizer, special = read_run_tokenizer(path, run_config)
    return LoadedModel(
        path,
        model,
        cast_params(model, params, compute),
        tokenizer,
        special,
        run_config,
        quantization.step,
    )


def read_run_tokenizer(path: Path, run_config: Config) -> tuple[data.Tokenizer, TokenizerFrame]:
    """Return the tokenizer of a run directory and its special tokens."""
    file = path / TOKENIZER_FILE
    special = run_tokenizer_frame(
        run_config.tokenizer,
        run_config.objective,
        load_tokenizer_json(file),
        read_kept_generation(path),
        run_config.model.family,
    )
    tokenizer_config = dataclasses.replace(
        run_config.tokenizer, kind="file", path=str(file), vocabulary_size=None
    )
    tokenizer = load_run_tokenizer(tokenizer_config, special)
    if read_kept(path / TOKENIZER_CONFIG_FILE) is None:
        widen_special_tokens(tokenizer.inner, special)
    return tokenizer, special


def inference_precision(compute: str, params: str = "float32") -> PrecisionConfig:
    """Return the precision of inference: weights are used in the dtype of the computation."""
    weights = "float32" if compute == "float32" else "bfloat16"
    return PrecisionConfig(
        compute=compute,  # type: ignore[arg-type]
        params=params,  # type: ignore[arg-type]
        gradients=weights,  # type: ignore[arg-type]
    )


def place_model(
    model_config: ModelConfig, precision: PrecisionConfig, devices: int
) -> tuple[models.Model, Tree]:
    """Return the model, split over `devices` devices, and the sharding of each parameter."""
    place = choose_place(model_config, precision, devices)
    model = models.build(model_config, precision, place.execution)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, sharding.Placement(place.mesh, model.axes, zero=0).tree("parameters", shapes)


def choose_place(model_config: ModelConfig, precision: PrecisionConfig, devices: int) -> Place:
    """Return a mesh over which heads, MLP and vocabulary are split, and how a model runs on it."""
    mesh_devices = runtime.select_devices(config.RuntimeConfig(devices=devices))[:devices]
    parallel = config.ParallelConfig(data=1, fsdp=1, tensor=devices)
    mesh = sharding.make_mesh(parallel, mesh_devices)
    check_tensor(devices, model_config)

    execution = build_execution(
        mesh,
        parallel,
        precision,
        "auto",
        width=model_config.width,
        token_width=model_config.token_width,
    )
    return Place(mesh, 0, execution, precision)


def cast_params(model: models.Model, params: Tree, compute: str | None) -> Tree:
    """Return the weights in the dtype of the computation: cast once, not at every use."""
    if compute in (None, "float32"):
        return params
    precision = inference_precision(compute)
    return jax.tree.map(
        lambda axes, weight: cast_for_gather(axes, weight, precision),
        model.axes,
        params,
        is_leaf=is_axes,
    )


def load_run_tokenizer(
    tokenizer_config: TokenizerConfig, special: TokenizerFrame
) -> data.Tokenizer:
    """Return the tokenizer.json of a config of kind "file", with its special tokens."""
    roles = data.SpecialTokens(
        special.end_of_text, special.begin_of_text, special.pad, special.mask, special.sentinels
    )
    assert tokenizer_config.path is not None
    path = Path(tokenizer_config.path)
    tokenizer = data.wrap_tokenizer(load_tokenizer_json(path), roles, path)

    # Whatever the model was trained for, its tokenizer may have the tokens of such a task.
    task_tokens: dict[str, str] = {}
    for need in ("fim", "denoisers"):
        names = special_tokens(tokenizer_config, (need,)).task_tokens
        if all(tokenizer.inner.token_to_id(name) is not None for name in names.values()):
            task_tokens |= names
    return data.Tokenizer(tokenizer.inner, tokenizer.special._replace(**task_tokens))
