"""Refuse configs that can't be trained: what needs no text and no device. Imports no jax.

The commands call these before jax is imported, and `run.build_run` with the devices that are there.
"""

from pathlib import Path

from jaxlm import objectives
from jaxlm.chat import check_named_template
from jaxlm.config import Config, ConfigError, ModelConfig
from jaxlm.config.mesh import check_batches, check_tensor, check_widths, mesh_sizes
from jaxlm.config.training import INT4_GROUP
from jaxlm.data.schedule import BatchSchedule
from jaxlm.evaluation.label_scores import figure_names
from jaxlm.types import Batch

# Platforms whose devices multiply in float16: XLA does so on every CPU and GPU.
CUDA = ("cuda", "gpu")
HALF_PRECISION = ("cpu", *CUDA, "rocm")

# Compute capability of the oldest GPUs that multiply in float8 (cuBLAS 12 guide, cublasLtMatmul).
OLDEST_FLOAT8 = 8.9


def check_trainable(config: Config) -> None:
    """Raise ConfigError for what can be loaded but not trained."""
    if config.objective.kind == "replaced_tokens" and not config.model.generator_share:
        reason = "0: the model has no generator, without which it is only the base of a classifier"
        raise ConfigError("model.generator_share", reason)
    if config.precision.weights == "int4":
        check_groups(config.model)
    if config.parallel.tensor > 0:
        check_tensor(config.parallel.tensor, config.model)
    check_best(config)
    if config.run_directory is not None:
        check_named_template(config.tokenizer, Path(config.run_directory))


def check_best(config: Config) -> None:
    """Raise ConfigError if checkpoints are ranked by a figure that the evaluation hasn't."""
    best, classifier = config.checkpoint.best, config.model.classifier
    whose, names = f"objective.kind={config.objective.kind!r}", ["eval/loss"]
    if classifier.kind != "none":
        whose = f"model.classifier.kind={classifier.kind!r} with problem={classifier.problem!r}"
        # Of the squared error less is better: it is the loss.
        names += [f"eval/{name}" for name in figure_names(classifier) if name != "mse"]
    if best in names:
        return

    if best == "eval/entity_f1" and classifier.kind == "token":
        reason = "'eval/entity_f1' needs model.classifier.labels such as B-PER, I-PER and O"
    else:
        reason = f"{best!r} is no figure of {whose}, which has {', '.join(map(repr, names))}"
    raise ConfigError("checkpoint.best", reason)


def check_groups(model: ModelConfig) -> None:
    """Raise ConfigError if the groups of int4 weights don't divide the inputs of a matrix."""
    stacks = [model]
    if model.family == "encoder_decoder":
        stacks.append(model.encoder)
    if model.generator is not None:
        stacks.append(model.generator)

    for stack in stacks:
        sizes = {
            "width": stack.width,
            "width of the tokens": stack.token_width,
            "width of all heads": stack.heads * stack.width_per_head,
            "width of the MLP": stack.hidden_width,
        }
        for name, size in sizes.items():
            if size % INT4_GROUP:
                raise ConfigError(
                    "precision.weights",
                    f"'int4' rounds in groups of {INT4_GROUP} inputs, which do not divide the "
                    f"{name}, {size}; use 'int8'",
                )


def check_sample(config: Config) -> Batch:
    """Return the batch of one sample of meaningless text, as the objective makes it.

    Raises ConfigError if there is no such sample, or if it is longer than the table of learned
    positions.
    """
    example = objectives.example(
        config.objective,
        config.data.sequence_length,
        config.tokenizer.sentinels,
        config.data.sequences,
        config.model,
    )

    model = config.model
    if model.positions != "learned":
        return example
    # Two answers stand side by side: the positions of each begin at 0.
    answers = 2 if config.objective.kind == "preference" else 1
    for name, tokens in (("source", example.source), ("target", example.tokens)):
        if tokens is not None and tokens.shape[1] // answers > model.context_length:
            raise ConfigError(
                "model.context_length",
                f"{model.context_length} rows of learned positions, but a {name} of "
                f"objective.kind={config.objective.kind!r} has {tokens.shape[1] // answers} tokens",
            )
    return example


def check_mesh(config: Config, device_count: int, first_step: int) -> None:
    """Raise ConfigError if so many devices don't fit the config, from `first_step` on."""
    sizes = mesh_sizes(config.parallel, device_count)
    schedule = BatchSchedule(config.training.batch_size, config.training.batch_schedule)

    check_tensor(sizes["tensor"], config.model)
    batch_sizes = schedule.sizes(first_step)
    check_batches(sizes, batch_sizes, config.training.microbatches, config.evaluation)
    check_widths(sizes, config.model, config.parallel.zero)


def check_formats(config: Config, platform: str, compute_capability: float) -> None:
    """Raise ConfigError for number formats in which such devices do not multiply.

    The compute capability is that of CUDA devices.
    """
    precision = config.precision
    if precision.compute == "float16" and platform not in HALF_PRECISION:
        reason = f"devices of the platform {platform!r} have no products in 'float16'"
        raise ConfigError("precision.compute", f"{reason}: use 'bfloat16' or 'float32'")

    if precision.matmul is None or platform == "cpu":  # which emulates float8
        return
    if platform not in CUDA or compute_capability < OLDEST_FLOAT8:
        device = f"a GPU of {compute_capability}" if platform in CUDA else f"platform {platform!r}"
        needed = f"CUDA devices of compute capability {OLDEST_FLOAT8} or newer (Ada, Hopper)"
        reason = f"{precision.matmul!r} needs {needed}, got {device}; leave it out"
        raise ConfigError("precision.matmul", reason)
