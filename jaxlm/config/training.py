"""The sections of the training itself.

`optimizer`, `parallel`, `precision`, `training`, `evaluation`, `checkpoint` and `logging`.
"""

from typing import Annotated, Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    Bounds,
    Count,
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


@section("optimizer")
class OptimizerConfig:
    """The optimizer and its learning-rate schedule.

    AdamW (arXiv 1711.05101) or Adafactor (arXiv 1804.04235), with clipping by the global norm.
    Adafactor's learning rate is relative to the size of each tensor; it reads no beta1, beta2 and
    epsilon.
    """

    kind: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: PositiveFloat = 3e-4  # the peak
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: Count = 100
    # Share of the peak at which the warmup starts. 1: constant until the warmup ends (T5)
    warmup_start_ratio: Share = 0.0
    decay_steps: Positive | None = None  # cosine, linear: step of the end. None: training.steps
    decay_share: Share = 0.2  # wsd: last share of the steps, over which the rate falls linearly
    final_learning_rate_ratio: Share = 0.1  # share of the peak at the end of the decay
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegative = 0.1
    # No decay for parameters that have one of these strings in a part of their path
    weight_decay_exclude: tuple[str, ...] = ("bias", "norm")
    gradient_clip: PositiveFloat | None = 1.0  # largest global norm. None: no clipping

    def __post_init__(self):
        if self.decay_steps is None:
            return

        refuse = refuser("optimizer")
        if self.schedule not in ("cosine", "linear"):
            reason = "is only used by the schedules 'cosine' and 'linear'"
            refuse("decay_steps", f"{reason}, got schedule={self.schedule!r}")
        if self.decay_steps <= self.warmup_steps:
            warmup = f"the warmup (warmup_steps={self.warmup_steps})"
            refuse("decay_steps", f"{self.decay_steps} is not after {warmup}")


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
    params: Literal["float32", "bfloat16"] = "float32"  # master weights; moments are float32
    # The format in which they are reduced over devices; microbatches are summed in float32.
    gradients: Literal["float32", "bfloat16"] = "float32"
    # Train with matrices as `jaxlm.convert quantize` rounds them: int4 in groups of 32
    weights: Literal["int8", "int4"] | None = None
    weights_start: ShareBelowOne = 0.75  # weights: share of the steps before the first rounded one


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
    """The checkpoints: the newest `keep`, and the best by eval/loss, stay on disk.

    One is always written at the end and on a signal.
    """

    every_steps: Count = 1000  # 0: only at the end and on a signal
    keep: Positive = 2


@section("logging")
class LoggingConfig:
    """How often metrics are shown and written, and where."""

    every_steps: Positive = 10
    tensorboard: bool = True
