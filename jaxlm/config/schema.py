"""Every setting of a run, by section: frozen dataclasses with units in the names, checked when built. Imports no jax.

`None` means "derived", and the property that derives it stands beside the fields. Fields that contradict each other are refused
here, with the path of the key to change.
"""

import re
from typing import Annotated, Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import (
    Bounds,
    Count,
    Filled,
    Positive,
    PositiveFloat,
    Rate,
    Share,
    ShareBelowOne,
    refuser,
    section,
)
from jaxlm.config.model import Family, ModelConfig

Dtype = Literal["float32", "bfloat16", "float16"]
Seed = Annotated[int, Bounds(low=0, high=2**32 - 1)]  # what jax.random.key tells apart

ObjectiveKind = Literal["causal", "prefix", "masked", "span", "infilling", "pairs"]

BYTES_VOCABULARY = 257  # 256 bytes and the end of text

# The families that an objective trains.
TRAINED_BY: dict[str, Family] = {
    "causal": "decoder",
    "prefix": "decoder",
    "masked": "encoder",
    "span": "encoder_decoder",
    "infilling": "encoder_decoder",
    "pairs": "encoder_decoder",
}


@section("objective")
class ObjectiveConfig:
    """What is predicted from what.

    causal      decoders: the next token
    prefix      decoders: the next token after a prefix of random length that sees itself in both directions (T5's prefix LM)
    masked      encoders: tokens that were hidden (BERT)
    span        encoder-decoders: spans that were cut out (T5)
    infilling   encoder-decoders: the text before spans of it were hidden and its sentences shuffled (BART)
    pairs       encoder-decoders: a target from its source, from sources of format "pairs"
    """

    kind: ObjectiveKind = "causal"
    noise_share: Share | None = (
        None  # masked, span, infilling: of the tokens. None: 0.15, infilling 0.3
    )
    mask_share: Share = 0.8  # masked: of the chosen tokens, hidden behind the mask token ...
    random_share: Share = 0.1  # ... and replaced by any other; the rest stay as they are
    whole_words: bool = False  # masked: all tokens of a word or none
    mean_span: PositiveFloat = (
        3.0  # span: tokens of a span on average; infilling: the mean of its Poisson distribution
    )
    shuffle_sentences: bool = True  # infilling
    target_length: Positive | None = (
        None  # pairs: tokens of a target at most; None: data.sequence_length
    )
    decoder_start: Literal["pad", "end_of_text"] | None = (
        None  # first input of the decoder. None: pad (T5); infilling end_of_text (BART)
    )

    @property
    def noise(self) -> float:
        return self.noise_share or (0.3 if self.kind == "infilling" else 0.15)

    @property
    def start(self) -> str:
        return self.decoder_start or ("end_of_text" if self.kind == "infilling" else "pad")

    @property
    def needs(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have, beside the end of text."""
        return {
            "masked": ("pad", "mask"),
            "span": ("pad", "sentinels"),
            "infilling": ("pad", "mask"),
            "pairs": ("pad",),
        }.get(self.kind, ())

    def __post_init__(self):
        refuse = refuser("objective")
        if self.noise_share is not None and not 0 < self.noise_share < 1:
            refuse("noise_share", f"must be between 0 and 1, got {self.noise_share}")
        if self.mask_share + self.random_share > 1:
            refuse(
                "random_share",
                f"{self.random_share} and mask_share ({self.mask_share}) are more than all",
            )
        if self.kind == "span" and self.mean_span < 1:
            refuse("mean_span", f"a span has at least one token, got {self.mean_span}")
        if self.target_length is not None and self.kind != "pairs":
            refuse("target_length", f"is only used with kind='pairs', got {self.kind!r}")


@section("tokenizer")
class TokenizerConfig:
    """`bytes` has 256 ids and the end of text; `bpe` is byte-level BPE trained on the training split; `file` is any tokenizer.json."""

    kind: Literal["bytes", "bpe", "file"] = "bpe"
    path: Filled | None = None  # kind "file"
    vocabulary_size: Positive | None = None  # kind "bpe"; None: model.vocabulary_size
    end_of_text: Filled = "<|endoftext|>"  # the token that ends every document
    begin_of_text: Filled | None = (
        None  # masked, infilling: samples begin with it and end with end_of_text (BERT, RoBERTa, BART)
    )
    pad: Filled = "<pad>"  # where the objective needs it
    mask: Filled = "<mask>"  # where the objective needs it
    sentinels: Positive = 100  # span: how many tokens <extra_id_0>, <extra_id_1>, ...
    training_megabytes: PositiveFloat = (
        256.0  # kind "bpe": at most this much of the training text is read
    )

    def special_count(self, needs: tuple[str, ...]) -> int:
        """How many special tokens beside the end of text a tokenizer made here has, for an objective that `needs` these."""
        return sum(self.sentinels if need == "sentinels" else 1 for need in needs) + (
            self.begin_of_text is not None
        )

    def __post_init__(self):
        refuse = refuser("tokenizer")
        if self.kind == "file" and self.path is None:
            refuse("path", "tokenizer.kind='file' needs the path of a tokenizer.json")
        if self.kind != "file" and self.path is not None:
            refuse("path", f"is only read with tokenizer.kind='file', got kind={self.kind!r}")
        if self.mask in (self.end_of_text, self.begin_of_text, self.pad):
            refuse("mask", f"{self.mask!r} is another special token too")
        if self.vocabulary_size is not None and self.kind != "bpe":
            refuse(
                "vocabulary_size", f"is only used with tokenizer.kind='bpe', got kind={self.kind!r}"
            )


@section("data.sources")
class SourceConfig:
    """One corpus. `path` is a file, a folder or a glob; `auto` goes by the file's ending (.jsonl, .ndjson: JSON lines; else text)."""

    name: Filled
    path: Filled | None = None
    format: Literal["auto", "text", "jsonl", "pairs", "python_stdlib"] = "auto"
    text_key: str = "text"  # JSON lines: the key that holds the document
    source_key: str = "source"  # pairs, JSON lines: the keys of what is read ...
    target_key: str = "target"  # ... and of what is to be written
    weight: PositiveFloat = 1.0  # share of the samples, relative to the other sources

    def __post_init__(self):
        if (self.path is None) != (self.format == "python_stdlib"):
            wants = (
                f"needs a path (format {self.format!r})"
                if self.path is None
                else f"takes no path (format {self.format!r})"
            )
            raise ConfigError("data.sources.path", f"source {self.name!r} {wants}")


@section("data.validation")
class ValidationConfig:
    """What is held out: a share of the documents by hash, the last share of each source, or files of their own."""

    method: Literal["hash", "tail", "source"] = "hash"
    share: Share = 0.05  # hash: of the documents; tail: of each source's bytes
    path: Filled | None = None  # method "source": a file, a folder or a glob

    def __post_init__(self):
        if (self.method == "source") != (self.path is not None):
            reason = (
                "needs the path of the validation files"
                if self.path is None
                else "does not read a path"
            )
            raise ConfigError(
                "data.validation.path", f"data.validation.method={self.method!r} {reason}"
            )
        if self.method != "source" and not 0 < self.share < 1:
            raise ConfigError("data.validation.share", f"must be between 0 and 1, got {self.share}")


@section("data")
class DataConfig:
    """Where the text comes from and how it becomes samples."""

    sources: tuple[SourceConfig, ...] = (
        SourceConfig(name="python_stdlib", format="python_stdlib"),
    )
    sequence_length: Positive = 1024  # tokens per sample
    store: Filled = "stores"  # folder of the tokenised corpora, shared by runs
    validation: ValidationConfig = ValidationConfig()
    prefetch_batches: Positive = 4
    prefetch_threads: Positive = 1

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names:
            raise ConfigError("data.sources", "needs at least one source")
        if len(set(names)) < len(names):
            raise ConfigError("data.sources", f"two sources have the same name: {', '.join(names)}")


@section("optimizer")
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) or Adafactor (arXiv 1804.04235) with global-norm clipping and a learning-rate schedule."""

    kind: Literal["adamw", "adafactor"] = (
        "adamw"  # adafactor: rates are relative to each tensor's size; no beta1, beta2, epsilon
    )
    learning_rate: PositiveFloat = 3e-4  # the peak
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: Count = 100
    warmup_start_ratio: Share = (
        0.0  # of the peak, where the warmup begins; 1: constant until it ends (T5)
    )
    decay_steps: Positive | None = None  # step at which cosine and linear end; None: training.steps
    decay_share: Share = 0.2  # wsd: last share of the steps, over which the rate falls linearly
    final_learning_rate_ratio: Share = 0.1  # of the peak, where the decay ends
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: Rate = 0.1
    weight_decay_exclude: tuple[str, ...] = (
        "bias",
        "norm",
    )  # parameters whose path has a part that contains one of these
    gradient_clip: PositiveFloat | None = 1.0  # global norm

    def __post_init__(self):
        refuse = refuser("optimizer")
        if self.decay_steps is not None and self.schedule not in ("cosine", "linear"):
            refuse(
                "decay_steps",
                f"is only used by the schedules 'cosine' and 'linear', got schedule={self.schedule!r}",
            )
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            refuse(
                "decay_steps",
                f"{self.decay_steps} is not after the warmup (warmup_steps={self.warmup_steps})",
            )


@section("parallel")
class ParallelConfig:
    """The mesh and what is spread over it. One of data, fsdp, tensor may be -1: the devices that the others leave."""

    zero: Literal[0, 1, 2, 3] = (
        0  # sharded over fsdp: 1 optimizer state, 2 and gradients, 3 and parameters
    )
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    blocks: Literal["auto", "unrolled", "scanned"] = (
        "auto"  # auto: scanned under ZeRO-3 on several devices
    )
    remat: Literal["none", "dots", "weights", "full"] = (
        "none"  # what the backward pass computes again
    )

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ConfigError(
                    f"parallel.{name}",
                    f"must be at least 1, or -1 for the rest, got {getattr(self, name)}",
                )
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise ConfigError("parallel", "only one of data, fsdp and tensor can be -1 (the rest)")


@section("precision")
class PrecisionConfig:
    """Number formats. Softmax, norms and loss statistics are always float32."""

    compute: Dtype = "bfloat16"  # activations and matrix products
    params: Literal["float32", "bfloat16"] = "float32"  # master weights and optimizer state
    gradients: Literal["float32", "bfloat16"] = (
        "float32"  # as reduced over devices; accumulated in float32
    )


@section("training")
class TrainingConfig:
    """How long, how much at a time."""

    steps: Positive = 1000
    batch_size: Positive = 32  # sequences per optimizer step, over all devices and microbatches
    batch_schedule: tuple[
        tuple[Positive, Positive], ...
    ] = ()  # (from step, sequences): the batch size changes there
    microbatches: Positive = (
        1  # gradient accumulation: parts of the batch that are computed one after another
    )
    z_loss: Rate = 0.0  # weight of the mean squared log-sum-exp (PaLM, arXiv 2204.02311: 1e-4)
    loss_tile: Positive | None = (
        None  # positions of each sequence per tile of logits; None: by size
    )

    def __post_init__(self):
        steps = [step for step, _ in self.batch_schedule]
        if steps != sorted(set(steps)):
            raise ConfigError("training.batch_schedule", "steps must increase")
        # Only the last size: a resumed run may have changed the microbatches together with the batch size.
        last = self.batch_schedule[-1][1] if self.batch_schedule else self.batch_size
        if last % self.microbatches:
            raise ConfigError(
                "training.microbatches",
                f"{self.microbatches} does not divide the batch size {last}",
            )


@section("evaluation")
class EvaluationConfig:
    """On the validation split, on the same windows each time."""

    every_steps: Count = 500  # 0: only at the end
    steps: Positive | None = None  # batches; None: the whole split
    batch_size: Positive | None = None  # sequences; None: training.batch_size
    draws: Positive = 1  # visits of the split, each with masks of its own (all but causal, pairs)
    samples: Count = 2  # texts written after training (also into TensorBoard)
    sample_tokens: Positive = 200
    sample_temperature: Rate = 0.8  # 0: always the likeliest token
    sample_prompt: str = ""  # "": from the start of a document


@section("checkpoint")
class CheckpointConfig:
    """The newest `keep` and the best by eval/loss stay on disk. One is always written at the end and on a signal."""

    every_steps: Count = 1000  # 0: only at the end and on a signal
    keep: Positive = 2


@section("logging")
class LoggingConfig:
    """What is shown and written, how often."""

    every_steps: Positive = 10
    tensorboard: bool = True


@section("runtime")
class RuntimeConfig:
    """Process and platform; nothing here changes the maths."""

    platform: Literal["cpu", "cuda"] | None = None  # None: what jax finds
    devices: Positive | None = (
        None  # of each process: emulated CPU devices; on GPUs: how many to use. None: all
    )
    attention: Literal["auto", "xla", "cudnn"] = (
        "auto"  # auto: cuDNN's flash kernel where it supports the case
    )
    deterministic: bool = False  # GPU: the same bits each time, slower; CPU is deterministic anyway
    compilation_cache: Filled | None = None  # folder of compiled programs; None: none kept
    processes: Positive | None = (
        None  # of the run; None: as SLURM, Open MPI or Kubernetes say, else 1
    )
    process: Count | None = None  # which of them this one is, from 0; None: as they say
    coordinator: Filled | None = (
        None  # HOST:PORT where process 0 waits for the others; None: as they say
    )
    coordinator_bind: Filled | None = (
        None  # address on which it listens; None: that of the coordinator's host
    )
    initialization_timeout_seconds: Positive = 300  # within which all processes must have come
    preparation_timeout_seconds: Positive = (
        3600  # how long the others wait until process 0 has prepared the data
    )
    heartbeat_timeout_seconds: Positive = 100  # a process that was silent for so long is lost

    def __post_init__(self):
        refuse = refuser("runtime")
        if (
            self.process is not None
            and self.processes is not None
            and self.process >= self.processes
        ):
            refuse(
                "process", f"must be below runtime.processes ({self.processes}), got {self.process}"
            )
        if self.coordinator is not None and not re.fullmatch(
            r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):\d{1,5}", self.coordinator
        ):
            refuse("coordinator", f"must be HOST:PORT, got {self.coordinator!r}")


@section("")
class Config:
    """A run: the one argument of everything that follows."""

    run_directory: Filled | None = None  # None: runs/ and the config file's name
    seed: Seed = 0
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def tokenizer_vocabulary_size(self) -> int:
        """Size of a tokenizer that is trained for this run."""
        return self.tokenizer.vocabulary_size or self.model.vocabulary_size

    def __post_init__(self):
        model, data = self.model, self.data
        if model.positions == "learned" and data.sequence_length > model.context_length:
            reason = f"{data.sequence_length} exceeds model.context_length ({model.context_length}), the rows of the learned position table"
            raise ConfigError("data.sequence_length", reason)
        smallest = BYTES_VOCABULARY + self.tokenizer.special_count(self.objective.needs)
        if self.tokenizer.kind in ("bytes", "bpe") and self.tokenizer_vocabulary_size < smallest:
            key = "model" if self.tokenizer.vocabulary_size is None else "tokenizer"
            special = (
                f", the end of text and {smallest - BYTES_VOCABULARY} special tokens"
                if smallest > BYTES_VOCABULARY
                else " and the end of text"
            )
            reason = f"{self.tokenizer_vocabulary_size} is below the {smallest} ids of the 256 bytes{special}"
            raise ConfigError(
                f"{key}.vocabulary_size", f"{reason} (tokenizer.kind={self.tokenizer.kind!r})"
            )
        if self.tokenizer_vocabulary_size > model.vocabulary_size:
            reason = f"{self.tokenizer_vocabulary_size} exceeds model.vocabulary_size ({model.vocabulary_size})"
            raise ConfigError("tokenizer.vocabulary_size", reason)
        self.check_objective()
        if self.runtime.attention == "cudnn" and self.precision.compute == "float32":
            raise ConfigError(
                "runtime.attention", "'cudnn' needs precision.compute='bfloat16' or 'float16'"
            )

    def check_objective(self):
        """Family, objective and the format of the sources go together."""
        kind, family = self.objective.kind, TRAINED_BY[self.objective.kind]
        if family != self.model.family:
            fitting = ", ".join(
                repr(name) for name, of in TRAINED_BY.items() if of == self.model.family
            )
            raise ConfigError(
                "objective.kind",
                f"{kind!r} trains model.family={family!r}, got {self.model.family!r} (it takes {fitting})",
            )
        for number, source in enumerate(self.data.sources):
            if (source.format == "pairs") != (kind == "pairs"):
                reason = f"{source.format!r} does not go with objective.kind={kind!r}: 'pairs' needs 'pairs'"
                raise ConfigError(f"data.sources.{number}.format", reason)
        if kind == "pairs" and self.data.validation.method == "tail":
            raise ConfigError(
                "data.validation.method",
                "'tail' would cut pairs in two; 'hash' and 'source' keep them whole",
            )
        length = self.objective.target_length
        if (
            self.model.positions == "learned"
            and length is not None
            and length > self.model.context_length
        ):
            reason = f"{length} exceeds model.context_length ({self.model.context_length}), the rows of the learned position table"
            raise ConfigError("objective.target_length", reason)
