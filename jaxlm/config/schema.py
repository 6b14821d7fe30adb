"""Every setting of a run, by section: frozen dataclasses with units in the names, checked when built. Imports no jax.

`None` means "derived", and the property that derives it stands beside the fields. Fields that contradict each other are refused
here, with the path of the key to change.
"""

from typing import Annotated, Literal

from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import Bounds, Count, Filled, Positive, PositiveFloat, Rate, Share, ShareBelowOne, refuser, section

Dtype = Literal["float32", "bfloat16", "float16"]
Seed = Annotated[int, Bounds(low=0, high=2**32 - 1)]  # what jax.random.key tells apart

BYTES_VOCABULARY = 257  # 256 bytes and the end of text


@section("model")
class Model:
    """The network's shape. Everything here changes the parameters or the function that they compute."""

    family: Literal["decoder"] = "decoder"
    vocabulary_size: Positive = 50257  # logical size; the table is padded to a multiple of 128 in memory
    layers: Positive = 12
    width: Positive = 768
    heads: Positive = 12
    kv_heads: Positive | None = None  # None: as many as heads; 1: multi-query attention
    head_width: Positive | None = None  # None: width / heads
    mlp_width: Positive | None = None  # None: 4 * width
    context_length: Positive = 1024  # positions that the model is built for; rows of a learned position table

    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_epsilon: PositiveFloat = 1e-5
    norm_placement: Literal["pre", "post"] = "pre"  # before or after the sublayer
    embedding_norm: bool = False  # a norm right after the embeddings (BLOOM)

    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "none"] = "learned"
    rotary_theta: PositiveFloat = 10000.0
    rotary_scaling: Literal["none", "linear", "llama3"] = "none"
    rotary_scaling_factor: PositiveFloat = 1.0
    rotary_low_frequency_factor: PositiveFloat = 1.0  # llama3 scaling
    rotary_high_frequency_factor: PositiveFloat = 4.0  # llama3 scaling
    rotary_original_length: Positive = 8192  # llama3 scaling: the context length before scaling

    activation: Literal["gelu", "gelu_tanh", "relu", "relu_squared", "silu"] = "gelu_tanh"
    gated: bool = False  # act(gate(x)) * up(x): SwiGLU, GEGLU, ...

    attention_bias: bool = True  # on the query, key and value projections
    attention_output_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True  # LayerNorm only: RMSNorm has none
    head_bias: bool = False

    query_key_norm: bool = False  # RMSNorm over each head of q and k
    attention_softcap: PositiveFloat | None = None  # scores become cap * tanh(scores / cap)
    logit_softcap: PositiveFloat | None = None
    sliding_window: Positive | None = None  # a query sees itself and the window - 1 tokens before it
    tied_head: bool = True  # the head is the token embedding, transposed

    dropout: ShareBelowOne = 0.0  # on the embeddings and on each sublayer's output
    attention_dropout: ShareBelowOne = 0.0  # on the attention weights; keeps cuDNN attention from being used

    initializer: Literal["gpt2", "normal", "fan_in"] = "gpt2"  # jaxlm/nn/initializers.py has the table
    initializer_std: PositiveFloat = 0.02  # gpt2 and normal

    @property
    def key_value_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def width_per_head(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def hidden_width(self) -> int:
        return self.mlp_width or 4 * self.width

    def __post_init__(self):
        refuse = refuser("model")
        if self.head_width is None and self.width % self.heads:
            refuse("width", f"{self.width} is not a multiple of heads ({self.heads}); set head_width to choose it freely")
        if self.heads % self.key_value_heads:
            refuse("kv_heads", f"{self.kv_heads} does not divide heads ({self.heads})")
        if self.positions == "rotary" and self.width_per_head % 2:
            refuse("head_width", f"rotary positions need an even head width, got {self.width_per_head}")
        if self.positions == "sinusoidal" and self.width % 2:
            refuse("width", f"sinusoidal positions need an even width, got {self.width}")
        if self.rotary_scaling != "none" and self.positions != "rotary":
            refuse("rotary_scaling", f"{self.rotary_scaling!r} needs positions='rotary', got {self.positions!r}")
        if self.rotary_high_frequency_factor <= self.rotary_low_frequency_factor:
            refuse("rotary_high_frequency_factor", "must be above rotary_low_frequency_factor")


@section("objective")
class Objective:
    """What is predicted from what."""

    kind: Literal["causal"] = "causal"


@section("tokenizer")
class Tokenizer:
    """`bytes` has 256 ids and the end of text; `bpe` is byte-level BPE trained on the training split; `file` is any tokenizer.json."""

    kind: Literal["bytes", "bpe", "file"] = "bpe"
    path: Filled | None = None  # kind "file"
    vocabulary_size: Positive | None = None  # kind "bpe"; None: model.vocabulary_size
    end_of_text: Filled = "<|endoftext|>"  # the token that ends every document
    training_megabytes: PositiveFloat = 256.0  # kind "bpe": at most this much of the training text is read

    def __post_init__(self):
        refuse = refuser("tokenizer")
        if self.kind == "file" and self.path is None:
            refuse("path", "tokenizer.kind='file' needs the path of a tokenizer.json")
        if self.kind != "file" and self.path is not None:
            refuse("path", f"is only read with tokenizer.kind='file', got kind={self.kind!r}")
        if self.vocabulary_size is not None and self.kind != "bpe":
            refuse("vocabulary_size", f"is only used with tokenizer.kind='bpe', got kind={self.kind!r}")
        if self.vocabulary_size is not None and self.vocabulary_size < BYTES_VOCABULARY:
            reason = f"byte-level BPE needs at least {BYTES_VOCABULARY} (256 bytes and the end of text), got {self.vocabulary_size}"
            refuse("vocabulary_size", reason)


@section("data.sources")
class Source:
    """One corpus. `path` is a file, a folder or a glob; `auto` goes by the file's ending (.jsonl, .ndjson: JSON lines; else text)."""

    name: Filled
    path: Filled | None = None
    format: Literal["auto", "text", "jsonl", "python_stdlib"] = "auto"
    text_key: str = "text"  # JSON lines: the key that holds the document
    weight: PositiveFloat = 1.0  # share of the samples, relative to the other sources

    def __post_init__(self):
        if (self.path is None) != (self.format == "python_stdlib"):
            wants = f"needs a path (format {self.format!r})" if self.path is None else f"takes no path (format {self.format!r})"
            raise ConfigError("data.sources.path", f"source {self.name!r} {wants}")


@section("data.validation")
class Validation:
    """What is held out: a share of the documents by hash, the last share of each source, or files of their own."""

    method: Literal["hash", "tail", "source"] = "hash"
    share: Share = 0.05  # hash: of the documents; tail: of each source's bytes
    path: Filled | None = None  # method "source": a file, a folder or a glob

    def __post_init__(self):
        if (self.method == "source") != (self.path is not None):
            reason = "needs the path of the validation files" if self.path is None else "does not read a path"
            raise ConfigError("data.validation.path", f"data.validation.method={self.method!r} {reason}")
        if self.method != "source" and not 0 < self.share < 1:
            raise ConfigError("data.validation.share", f"must be between 0 and 1, got {self.share}")


@section("data")
class Data:
    """Where the text comes from and how it becomes samples."""

    sources: tuple[Source, ...] = (Source(name="python_stdlib", format="python_stdlib"),)
    sequence_length: Positive = 1024  # tokens per sample
    store: Filled = "stores"  # folder of the tokenised corpora, shared by runs
    validation: Validation = Validation()
    prefetch_batches: Positive = 4
    prefetch_threads: Positive = 1

    def __post_init__(self):
        names = [source.name for source in self.sources]
        if not names:
            raise ConfigError("data.sources", "needs at least one source")
        if len(set(names)) < len(names):
            raise ConfigError("data.sources", f"two sources have the same name: {', '.join(names)}")


@section("optimizer")
class Optimizer:
    """AdamW (arXiv 1711.05101) with global-norm clipping and a learning-rate schedule."""

    learning_rate: PositiveFloat = 3e-4  # the peak
    schedule: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"] = "cosine"
    warmup_steps: Count = 100
    decay_steps: Positive | None = None  # step at which cosine and linear end; None: training.steps
    decay_share: Share = 0.2  # wsd: last share of the steps, over which the rate falls linearly
    final_learning_rate_ratio: Share = 0.1  # of the peak, where the decay ends
    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.95
    epsilon: PositiveFloat = 1e-8
    weight_decay: Rate = 0.1
    weight_decay_exclude: tuple[str, ...] = ("bias", "norm")  # parameters whose path has a part that contains one of these
    gradient_clip: PositiveFloat | None = 1.0  # global norm

    def __post_init__(self):
        refuse = refuser("optimizer")
        if self.decay_steps is not None and self.schedule not in ("cosine", "linear"):
            refuse("decay_steps", f"is only used by the schedules 'cosine' and 'linear', got schedule={self.schedule!r}")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            refuse("decay_steps", f"{self.decay_steps} is not after the warmup (warmup_steps={self.warmup_steps})")


@section("parallel")
class Parallel:
    """The mesh and what is spread over it. One of data, fsdp, tensor may be -1: the devices that the others leave."""

    zero: Literal[0, 1, 2, 3] = 0  # sharded over fsdp: 1 optimizer state, 2 and gradients, 3 and parameters
    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    blocks: Literal["auto", "unrolled", "scanned"] = "auto"  # auto: scanned under ZeRO-3 on several devices
    remat: Literal["none", "dots", "weights", "full"] = "none"  # what the backward pass computes again

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise ConfigError(f"parallel.{name}", f"must be at least 1, or -1 for the rest, got {getattr(self, name)}")
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise ConfigError("parallel", "only one of data, fsdp and tensor can be -1 (the rest)")


@section("precision")
class Precision:
    """Number formats. Softmax, norms and loss statistics are always float32."""

    compute: Dtype = "bfloat16"  # activations and matrix products
    params: Literal["float32", "bfloat16"] = "float32"  # master weights and optimizer state
    gradients: Literal["float32", "bfloat16"] = "float32"  # as reduced over devices; accumulated in float32


@section("training")
class Training:
    """How long, how much at a time."""

    steps: Positive = 1000
    batch_size: Positive = 32  # sequences per optimizer step, over all devices and microbatches
    batch_schedule: tuple[tuple[Positive, Positive], ...] = ()  # (from step, sequences): the batch size changes there
    microbatches: Positive = 1  # gradient accumulation: parts of the batch that are computed one after another
    z_loss: Rate = 0.0  # weight of the mean squared log-sum-exp (PaLM, arXiv 2204.02311: 1e-4)
    loss_tile: Positive | None = None  # positions of each sequence per tile of logits; None: by size

    def __post_init__(self):
        steps = [step for step, _ in self.batch_schedule]
        if steps != sorted(set(steps)):
            raise ConfigError("training.batch_schedule", "steps must increase")
        # Only the last size: a resumed run may have changed the microbatches together with the batch size.
        last = self.batch_schedule[-1][1] if self.batch_schedule else self.batch_size
        if last % self.microbatches:
            raise ConfigError("training.microbatches", f"{self.microbatches} does not divide the batch size {last}")


@section("evaluation")
class Evaluation:
    """On the validation split, on the same windows each time."""

    every_steps: Count = 500  # 0: only at the end
    steps: Positive | None = None  # batches; None: the whole split
    batch_size: Positive | None = None  # sequences; None: training.batch_size
    samples: Count = 2  # texts written after training (also into TensorBoard)
    sample_tokens: Positive = 200
    sample_temperature: Rate = 0.8  # 0: always the likeliest token
    sample_prompt: str = ""  # "": from the start of a document


@section("checkpoint")
class Checkpoint:
    """The newest `keep` and the best by eval/loss stay on disk. One is always written at the end and on a signal."""

    every_steps: Count = 1000  # 0: only at the end and on a signal
    keep: Positive = 2


@section("logging")
class Logging:
    """What is shown and written, how often."""

    every_steps: Positive = 10
    tensorboard: bool = True


@section("runtime")
class Runtime:
    """Process and platform; nothing here changes the maths."""

    platform: Literal["cpu", "cuda"] | None = None  # None: what jax finds
    devices: Positive | None = None  # emulated CPU devices; on GPUs: how many to use. None: all
    attention: Literal["auto", "xla", "cudnn"] = "auto"  # auto: cuDNN's flash kernel where it supports the case
    deterministic: bool = False  # GPU: the same bits each time, slower; CPU is deterministic anyway
    compilation_cache: Filled | None = None  # folder of compiled programs; None: none kept


@section("")
class Config:
    """A run: the one argument of everything that follows."""

    run_directory: Filled | None = None  # None: runs/ and the config file's name
    seed: Seed = 0
    model: Model = Model()
    objective: Objective = Objective()
    tokenizer: Tokenizer = Tokenizer()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    parallel: Parallel = Parallel()
    precision: Precision = Precision()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    logging: Logging = Logging()
    runtime: Runtime = Runtime()

    @property
    def tokenizer_vocabulary_size(self) -> int:
        """Size of a tokenizer that is trained for this run."""
        return self.tokenizer.vocabulary_size or self.model.vocabulary_size

    def __post_init__(self):
        model, data = self.model, self.data
        if model.positions == "learned" and data.sequence_length > model.context_length:
            reason = f"{data.sequence_length} exceeds model.context_length ({model.context_length}), the rows of the learned position table"
            raise ConfigError("data.sequence_length", reason)
        if self.tokenizer.kind in ("bytes", "bpe") and model.vocabulary_size < BYTES_VOCABULARY:
            reason = f"{model.vocabulary_size} is below the {BYTES_VOCABULARY} ids of the 256 bytes and the end of text"
            raise ConfigError("model.vocabulary_size", f"{reason} (tokenizer.kind={self.tokenizer.kind!r})")
        if self.tokenizer_vocabulary_size > model.vocabulary_size:
            reason = f"{self.tokenizer_vocabulary_size} exceeds model.vocabulary_size ({model.vocabulary_size})"
            raise ConfigError("tokenizer.vocabulary_size", reason)
        if self.runtime.attention == "cudnn" and self.precision.compute == "float32":
            raise ConfigError("runtime.attention", "'cudnn' needs precision.compute='bfloat16' or 'float16'")
