"""Scale a recipe to another width and another compute budget, by stated rules.

- Layers, MLP, key/value heads and embedding width go in proportion to the width; heads stay about
  as wide as the recipe's.
- The batch size goes with budget^0.327 (DeepSeek-AI 2024, arXiv 2401.02954, section 3.1), by
  powers of two.
- The rate of AdamW goes with width^-0.5 (Vaswani et al. 2017, arXiv 1706.03762, section 5.3) and
  with the root of the batch size (Malladi et al. 2022, arXiv 2205.10287). 1 / width, the rule of
  muP for hidden matrices, is too steep here: the embeddings, most of a small model, share the rate.
  Adafactor's rate is relative to the size of each tensor and stays. With model.parametrization=mup
  no rate goes with the width: each parameter has its own factor.
- Warm-up and other marks of the schedule keep their share of the steps. It ends with the last step,
  where the loss is evaluated.
"""

import math
from dataclasses import replace

from jaxlm.card.facts import sample_lengths
from jaxlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    UserError,
)
from jaxlm.data.schedule import BatchSchedule
from jaxlm.plan.observations import sample_flops

BATCH_EXPONENT = 0.327
SHARED_BATCHES = 8  # devices that a reduced batch can still be split over, if the recipe's can
LEAST_STEPS = 20  # fewer say nothing of a learning rate that rises and falls
LEAST_WARMUP = 10  # steps, or a tenth of all
SAVES, LOGGED_ROWS = 4, 50  # of a run

RULES = {
    "layers": "in proportion to the width",
    "heads": "as wide as the recipe's",
    "learning_rate": "adamw: in proportion to width^-0.5 (arXiv 1706.03762) and to batch_size^0.5 "
    "(arXiv 2205.10287), under muP to the second alone; adafactor, sgd: unchanged",
    "batch_size": f"in proportion to budget^{BATCH_EXPONENT} (arXiv 2401.02954), by powers of two",
    "warmup_steps": "the recipe's share of the steps",
    "schedule": "ends with the last step",
}


# The model


def scale_model(model: ModelConfig, width: int) -> ModelConfig:
    """Return the model at another width, its layers in proportion.

    Raises ConfigError where no such model can be built.
    """
    ratio = width / model.width
    changes: dict[str, int | None] = {"width": width}

    for name in ("layers", "encoder_layers"):
        changes[name] = scale_size(getattr(model, name), ratio, 1)
    for name in ("mlp_width", "encoder_mlp_width", "embedding_width"):
        changes[name] = scale_size(getattr(model, name), ratio, 8)
    for prefix in ("", "encoder_"):
        heads, kv_heads = getattr(model, f"{prefix}heads"), getattr(model, f"{prefix}kv_heads")
        if heads is None:
            continue
        new_heads = scale_heads(model, heads, width)
        changes[f"{prefix}heads"] = new_heads
        changes[f"{prefix}kv_heads"] = kv_heads and scale_kv_heads(new_heads, kv_heads / heads)
    return replace(model, **changes)  # type: ignore[arg-type]


def scale_width(config: Config, width: int) -> Config:
    """Return the recipe at another width, as deep as before and trained in the same way."""
    model = scale_model(config.model, width)
    depths = {name: getattr(config.model, name) for name in ("layers", "encoder_layers")}
    return replace(config, model=replace(model, **depths))


def scale_size(size: int | None, ratio: float, multiple: int) -> int | None:
    """Return a size times `ratio`, as the nearest multiple above 0; None stays None."""
    return size and multiple * max(1, round(size * ratio / multiple))


def scale_heads(model: ModelConfig, heads: int, width: int) -> int:
    """Return the number of heads with which they are nearest to the recipe's width.

    Where model.head_width sets that, their number is in proportion. Else it divides the width, and
    a head has an even number of channels. ELECTRA's generator has a whole share of them.
    """
    wanted = heads * width / model.width
    whole = 1
    if model.generator_share:
        whole = round(1 / model.generator_share)
    if model.head_width is not None:
        return whole * max(1, round(wanted / whole))

    fitting = [n for n in range(whole, width // 2 + 1, whole) if width % (2 * n) == 0]
    if not fitting:
        raise ConfigError("model.width", f"{width} can't be split into heads of even width")
    return min(fitting, key=lambda n: abs(math.log(n / wanted)))


def scale_kv_heads(heads: int, share: float) -> int:
    """Return the number of key/value heads nearest to this share of the heads that divides them."""
    fitting = [n for n in range(1, heads + 1) if heads % n == 0]
    return min(fitting, key=lambda n: abs(math.log(n / (share * heads))))


# The training


def scale_run(config: Config, width: int, flops: float, *, evaluation_tokens: int) -> Config:
    """Return the recipe at another width, trained with `flops` (up to half a step).

    The evaluation at the end reads about `evaluation_tokens` tokens, the same in all runs of a
    recipe. Raises UserError where the budget is too small for this width.
    """
    model = scale_model(config.model, width)
    batch_size = scale_batch_size(config, flops)
    scaled = replace(config, model=model)
    per_step = batch_size * sample_flops(scaled)
    steps = round(flops / per_step)
    if steps < LEAST_STEPS:
        raise UserError(
            f"a budget of {flops:.3g} FLOPs is {steps} steps of {per_step:.3g} at width {width}, "
            f"fewer than {LEAST_STEPS}: raise it, or lower the width or training.batch_size"
        )

    share = steps / config.training.steps
    training = scale_training(config.training, batch_size, steps)
    return replace(
        scaled,
        training=training,
        optimizer=scale_optimizer(config, training, width),
        data=scale_data(config, share, steps * batch_size),
        evaluation=replace(
            config.evaluation,
            every_steps=0,
            samples=0,
            **evaluation_batches(config, evaluation_tokens),
        ),
        checkpoint=replace(config.checkpoint, every_steps=math.ceil(steps / SAVES), keep=1),
        logging=replace(
            config.logging,
            every_steps=max(1, min(config.logging.every_steps, steps // LOGGED_ROWS)),
        ),
    )


def recipe_flops(config: Config) -> int:
    """Return the training FLOPs of a recipe as it stands."""
    training = config.training
    schedule = BatchSchedule(training.batch_size, training.batch_schedule)
    return schedule.first_sample(training.steps) * sample_flops(config)


def last_batch_size(training: TrainingConfig) -> int:
    """Return the batch size at the end of a ramp, which a ladder has from its first step on."""
    return training.batch_schedule[-1][1] if training.batch_schedule else training.batch_size


def scale_batch_size(config: Config, flops: float) -> int:
    """Return the recipe's batch size times a power of two, for a budget of `flops`.

    It can be split over as many devices as before: those of runtime.devices or, where it takes all
    that there are, up to 8.
    """
    batch_size = last_batch_size(config.training)
    wanted = BATCH_EXPONENT * math.log2(flops / recipe_flops(config))
    if wanted >= 0:
        return batch_size * 2 ** round(wanted)

    divisor = config.runtime.devices or math.gcd(batch_size, SHARED_BATCHES)
    if config.runtime.measure_cpu and config.runtime.devices is None:
        divisor = math.gcd(batch_size, 2)  # it may choose two emulated devices
    for _ in range(round(-wanted)):
        if batch_size % 2 or (batch_size // 2) % divisor:
            break
        batch_size //= 2
    return batch_size


def scale_training(training: TrainingConfig, batch_size: int, steps: int) -> TrainingConfig:
    """Return the training with this batch size and no more rows in a microbatch than before."""
    before = last_batch_size(training)
    rows = before // training.microbatches
    microbatches = max(1, batch_size // rows) if batch_size % rows == 0 else 1
    return replace(
        training,
        steps=steps,
        batch_size=batch_size,
        batch_schedule=(),
        microbatches=microbatches,
    )


def scale_optimizer(config: Config, training: TrainingConfig, width: int) -> OptimizerConfig:
    """Return the optimizer with the learning rate for a width and the `training` of a run."""
    optimizer, steps = config.optimizer, training.steps
    share = steps / config.training.steps
    rate = optimizer.learning_rate
    rest = optimizer.rest_learning_rate
    if optimizer.kind not in ("adafactor", "sgd"):  # updates of the size of Adam's
        ratio = training.batch_size / last_batch_size(config.training)
        if config.model.parametrization == "standard":
            ratio = ratio * config.model.width / width
        rate *= math.sqrt(ratio)
        rest = rest and rest * math.sqrt(ratio)

    warmup = optimizer.warmup_steps and max(
        round(share * optimizer.warmup_steps), min(LEAST_WARMUP, steps // 10)
    )
    decay = optimizer.decay_steps
    if decay is not None:
        decay = min(steps, max(round(share * decay), warmup + 1))
    return replace(
        optimizer,
        learning_rate=rate,
        rest_learning_rate=rest,
        warmup_steps=warmup,
        decay_steps=decay,
    )


def scale_data(config: Config, share: float, samples: int) -> DataConfig:
    """Return the data with what counts steps or tokens of the whole run in proportion."""
    data = config.data
    schedule = {round(share * step): weights for step, weights in data.mixture_schedule}

    training = config.training
    before = BatchSchedule(training.batch_size, training.batch_schedule)
    tokens_share = samples / before.first_sample(training.steps)
    sources = tuple(
        replace(source, tokens=source.tokens and max(1, round(tokens_share * source.tokens)))
        for source in data.sources
    )
    return replace(data, mixture_schedule=tuple(schedule.items()), sources=sources)


def evaluation_batches(config: Config, tokens: int) -> dict[str, int]:
    """Return batch_size and steps of an evaluation of about `tokens` tokens.

    evaluation.steps of the recipe, if it is set, counts instead. They follow from the recipe alone,
    so that all runs of a ladder score the same windows.
    """
    training, evaluation = config.training, config.evaluation
    rows = evaluation.batch_size or last_batch_size(training) // training.microbatches
    samples = tokens / sample_lengths(config).tokens
    if evaluation.steps is not None:
        samples = evaluation.steps * (evaluation.batch_size or training.batch_size)
    return {"batch_size": rows, "steps": math.ceil(samples / rows)}


def describe_changes(config: Config) -> dict[str, object]:
    """Return the scaled values of a run by their keys, for a table or a file."""
    model, training = config.model, config.training
    return {
        "width": model.width,
        "layers": model.layers,
        "heads": model.heads,
        "batch_size": training.batch_size,
        "steps": training.steps,
        "warmup_steps": config.optimizer.warmup_steps,
        "learning_rate": config.optimizer.learning_rate,
    }
