"""The sections of the training itself.

`optimizer`, `parallel`, `precision`, `training`, `evaluation`, `checkpoint` and `logging`.
"""

from typing import Annotated, Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    Bounds,
    Count,
    NonEmpty,
    NonNegative,
    Positive,
    PositiveFloat,
    Share,
    ShareBelowOne,
    refuser,
    section,
)

Dtype = Literal["float32", "bfloat16", "float16"]
INT4_GROUP = 32  # inputs that share a scale in weights of 4 bits
LossScale = Annotated[float, Bounds(low=1.0)]
ShareBetween = Annotated[float, Bounds(low=0.0, high=1.0, above=True, below=True)]


@section("optimizer.groups")
class GroupConfig:
    """Parameters with a rate and a decay of their own.

    `parameters` is a role (embeddings, head, norms, biases, matrices) or a pattern of dotted names,
    such as "embedding.tokens", "blocks.mlp" and "blocks.*.query_*". The first group that names a
    parameter holds for it.
    """

    parameters: NonEmpty
    learning_rate_ratio: PositiveFloat = 1.0  # of the optimizer's learning rate
    # None: optimizer.weight_decay, but not for weight_decay_exclude
    weight_decay: NonNegative | None = None


# The kinds that read a field. All others refuse another value than the default.
READ_BY = {
    "momentum": ("adafactor", "muon", "sgd"),
    "nesterov": ("muon", "sgd"),
    "newton_schulz_steps": ("muon",),
    "rest_learning_rate": ("muon", "shampoo"),
    "first_moment": ("adamw", "adafactor", "lion", "muon", "sgd", "shampoo"),
    "second_moment": ("adamw", "muon", "shampoo"),
}


@section("optimizer")
class OptimizerConfig:
    """The optimizer and its learning-rate schedule, with clipping by the global norm.

    adamw, lion, sgd and schedule_free treat each number by itself. muon and shampoo treat the
    matrices of the blocks as matrices, and leave all other parameters to AdamW. Adafactor's
    learning rate is relative to the size of each tensor. docs/optimizers.md says which to choose,
    and which fields each reads.
    """

    kind: Literal["adamw", "adafactor", "lion", "muon", "schedule_free", "sgd", "shampoo"] = "adamw"
    learning_rate: PositiveFloat = 3e-4  # the peak
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: Count = 100
    # Share of the peak at which the warmup starts. 1: constant until the warmup ends (T5)
    warmup_start_ratio: Share = 0.0
    decay_steps: Positive | None = None  # cosine, linear: step of the end. None: training.steps
    decay_share: Share = 0.2  # wsd: last share of the steps, over which the rate falls
    # wsd: how it falls there, by the share t of the decay that is done (arXiv 2405.18392)
    cooldown_shape: Literal["linear", "1-sqrt", "cosine", "1-square"] = "linear"
    final_learning_rate_ratio: Share = 0.1  # share of the peak at the end of the decay
    # Let more training.steps raise the rate of cosine or linear again, which is refused otherwise
    allow_restart: bool = False
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.95
    epsilon: PositiveFloat = 1e-8
    momentum: ShareBelowOne | None = None  # None: muon 0.95, sgd 0.9, adafactor without
    nesterov: bool | None = None  # None: muon with it, sgd without
    newton_schulz_steps: Positive | None = None  # muon. None: 5
    # muon, shampoo: peak for embeddings, head, norms and biases. None: learning_rate
    rest_learning_rate: PositiveFloat | None = None
    # How averages of gradients, and of their squares, are kept. bfloat16 squares are rounded at
    # random, so that small changes are not lost
    first_moment: Literal["float32", "bfloat16"] = "float32"
    second_moment: Literal["float32", "bfloat16"] = "float32"
    weight_decay: NonNegative = 0.1
    # No decay for parameters that have one of these strings in a part of their path
    weight_decay_exclude: tuple[str, ...] = ("bias", "norm")
    gradient_clip: PositiveFloat | None = 1.0  # largest global norm. None: no clipping
    groups: tuple[GroupConfig, ...] = ()
    # The rate falls by this factor from each layer to the one below it, for fine-tuning
    layer_decay: Annotated[float, Bounds(low=0.0, high=1.0, above=True)] = 1.0
    # Names and patterns of parameters that stay as they are, as in groups
    frozen: tuple[NonEmpty, ...] = ()
    # Keep an average of the weights that moves by 1 - ema_decay a step. None: no average
    ema_decay: ShareBelowOne | None = None

    def __post_init__(self):
        refuse = refuser("optimizer")
        for name, kinds in READ_BY.items():
            if getattr(self, name) not in (None, "float32") and self.kind not in kinds:
                names = " or ".join(map(repr, kinds))
                refuse(name, f"is only used with kind={names}, got {self.kind!r}")
        if self.kind == "adafactor" and self.first_moment != "float32" and not self.momentum:
            refuse("first_moment", "'adafactor' has no first moment without momentum")
        if self.kind == "schedule_free" and not self.beta1:
            refuse("beta1", "must be above 0 with kind='schedule_free'")
        if self.kind == "schedule_free" and self.ema_decay is not None:
            refuse("ema_decay", "'schedule_free' evaluates an average of its own")
        if self.cooldown_shape != "linear" and self.schedule != "wsd":
            reason = "is only used by the schedule 'wsd'"
            refuse("cooldown_shape", f"{reason}, got schedule={self.schedule!r}")
        if self.decay_steps is None:
            return

        if self.schedule not in ("cosine", "linear"):
            reason = "is only used by the schedules 'cosine' and 'linear'"
            refuse("decay_steps", f"{reason}, got schedule={self.schedule!r}")
        if self.decay_steps <= self.warmup_steps:
            warmup = f"the warmup (warmup_steps={self.warmup_steps})"
            refuse("decay_steps", f"{self.decay_steps} is not after {warmup}")

    def cooldown_start(self, steps: int) -> int:
        """Return the first step (from 0) of the decay of schedule 'wsd', in a run of `steps`.

        The decay takes the last share of the steps, but never a part of the warmup: the rate would
        jump.
        """
        warmup = min(self.warmup_steps, steps)
        return max(warmup, steps - max(1, round(steps * self.decay_share)))


@section("parallel")
class ParallelConfig:
    """The mesh of devices and what is sharded over it.

    One of data, fsdp and tensor may be -1: the devices that the others leave.
    """

    # Sharded over fsdp: 1 the optimizer state, 2 and the gradients, 3 and the parameters
    zero: Literal[0, 1, 2, 3] = 0
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    # auto: scanned under ZeRO-3 on several devices, else unrolled
    blocks: Literal["auto", "unrolled", "scanned"] = "auto"
    # What the backward pass computes again instead of keeping it in memory. Under ZeRO 3 and in
    # scanned blocks none, like weights, keeps products and attention and gathers weights again
    remat: Literal["none", "dots", "weights", "full"] = "none"

    def __post_init__(self):
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            if size < 1 and size != -1:
                reason = f"must be at least 1, or -1 for the rest, got {size}"
                raise ConfigError(f"parallel.{name}", reason)
        if list(sizes.values()).count(-1) > 1:
            raise ConfigError("parallel", "only one of data, fsdp and tensor can be -1 (the rest)")


@section("precision")
class PrecisionConfig:
    """Number formats. Softmax, norms and loss statistics are always float32."""

    compute: Dtype = "bfloat16"  # activations and matrix products
    # Products of activations and the weights of the blocks' attention and MLPs. None: as compute.
    # float8: e4m3, and e5m2 for gradients, with a scale for each tensor (Hopper and newer; CPUs
    # emulate it)
    matmul: Literal["float8"] | None = None
    params: Literal["float32", "bfloat16"] = "float32"  # master weights; moments are float32
    # The format in which they are reduced over devices; microbatches are summed in float32.
    gradients: Literal["float32", "bfloat16"] = "float32"
    # compute=float16: the loss is multiplied by a scale, so that small gradients don't become 0.
    # The scale doubles after so many steps in a row with finite gradients; a step with others is
    # skipped, and multiplies the scale by the backoff (torch.amp.GradScaler)
    loss_scale_start: LossScale = 65536.0
    loss_scale_growth_interval: Positive = 2000  # steps
    loss_scale_backoff: ShareBetween = 0.5
    # Train with matrices as `jaxlm.convert quantize` rounds them: int4 in groups of 32
    weights: Literal["int8", "int4"] | None = None
    weights_start: ShareBelowOne = 0.85  # weights: share of the steps before the first rounded one

    def __post_init__(self):
        if self.matmul == "float8" and self.compute == "float16":
            reason = "'float8' has values that float16 can't hold: use precision.compute='bfloat16'"
            raise ConfigError("precision.matmul", reason)


@section("training")
class TrainingConfig:
    """The number of optimizer steps and the size of each."""

    steps: Positive = 1000
    batch_size: Positive = 32  # sequences per optimizer step, over all devices and microbatches
    # (step, sequences): the batch size from that step on
    batch_schedule: tuple[tuple[Positive, Positive], ...] = ()
    microbatches: Positive = 1  # gradient accumulation: parts of a batch, computed in turn
    z_loss: NonNegative = 0.0  # weight of the mean squared log-sum-exp (PaLM, 2204.02311: 1e-4)
    # replaced_tokens: weight of the detection beside the loss of the generator (ELECTRA's lambda)
    detection_weight: NonNegative = 50.0
    loss_tile: Positive | None = None  # positions of a sequence per tile of logits. None: by size

    def __post_init__(self):
        steps = [step for step, _ in self.batch_schedule]
        if steps != sorted(set(steps)):
            raise ConfigError("training.batch_schedule", "steps must increase")

        # Only the last size must be divisible: a resumed run may have changed the microbatches
        # together with the batch size.
        last = self.batch_schedule[-1][1] if self.batch_schedule else self.batch_size
        if last % self.microbatches:
            reason = f"{self.microbatches} does not divide the batch size {last}"
            raise ConfigError("training.microbatches", reason)


@section("evaluation")
class EvaluationConfig:
    """The evaluation on the validation split, on the same windows each time, and text samples."""

    every_steps: Count = 500  # 0: only at the end
    # Batches, drawn evenly over the split. None: all, or what 5% of the time of the steps allow
    steps: Positive | None = None
    batch_size: Positive | None = None  # sequences at a time. None: those of a microbatch
    # Visits of the split, each with random masks of its own. Not used by causal and pairs
    draws: Positive = 1
    samples: Annotated[int, Bounds(low=0, high=2**16)] = (
        2  # generated after training; also in TensorBoard
    )
    sample_tokens: Positive = 200  # tokens per sample
    sample_temperature: NonNegative = 0.8  # 0: always the likeliest token
    sample_prompt: str = ""  # "": from the start of a document


@section("checkpoint")
class CheckpointConfig:
    """The checkpoints: the newest `keep`, and the best by one figure, stay on disk.

    One is always written at the end and on a signal.
    """

    every_steps: Count = 1000  # 0: only at the end and on a signal
    keep: Positive = 2
    # The figure of the evaluation by which a checkpoint is the best: eval/loss, the lowest one, or
    # of a classifier the highest eval/accuracy, eval/macro_f1, eval/micro_f1, eval/matthews,
    # eval/spearman, eval/pearson or eval/entity_f1
    best: Literal[
        "eval/loss",
        "eval/accuracy",
        "eval/macro_f1",
        "eval/micro_f1",
        "eval/matthews",
        "eval/spearman",
        "eval/pearson",
        "eval/entity_f1",
    ] = "eval/loss"


@section("logging")
class LoggingConfig:
    """How often metrics are shown and written, and where."""

    every_steps: Positive = 10
    tensorboard: bool = True
