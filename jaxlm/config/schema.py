"""The config of a run: its sections, and the checks between them. Imports no jax.

Each section is a frozen dataclass with units in the names or beside them:

    model.py       model
    classifier.py  model.classifier
    adapter.py     adapter
    objective.py   objective
    data.py        tokenizer, data, data.sources, data.validation
    training.py    optimizer, parallel, precision, training, evaluation, checkpoint, logging
    runtime.py     runtime

`None` means "derived"; the property that derives it stands below the fields. Fields that contradict
each other are refused when a section is built, with the path of the key to change.
"""

from typing import Annotated

from jaxlm.config.adapter import AdapterConfig
from jaxlm.config.data import DataConfig, TokenizerConfig
from jaxlm.config.errors import ConfigError
from jaxlm.config.fields import Bounds, FilePath, section
from jaxlm.config.model import ModelConfig
from jaxlm.config.objective import SOURCE_FORMATS, TRAINED_BY, ObjectiveConfig
from jaxlm.config.runtime import RuntimeConfig
from jaxlm.config.training import (
    CheckpointConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
)

Seed = Annotated[int, Bounds(low=0, high=2**32 - 1)]  # the range that jax.random.key tells apart

# What a tokenizer that is made here has at least beside the special tokens: ids, and which.
SMALLEST = {
    "bytes": (256, "the 256 bytes"),
    "bpe": (256, "the 256 bytes"),
    "wordpiece": (191, "the unknown token and the characters of ASCII"),
    "unigram": (352, "the 256 bytes, the unknown token and the characters of ASCII"),
}


@section("")
class Config:
    """A run. Everything that follows is a function of it."""

    run_directory: FilePath | None = None  # None: runs/ and the name of the config file
    # The run directory whose model, tokenizer and weights the run starts from. A recipe may set
    # the model's dropout, initial values and classifier beside it. None: random weights
    base: FilePath | None = None
    seed: Seed = 0
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = AdapterConfig()
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
        """Return the size of a tokenizer that is trained for this run."""
        return self.tokenizer.vocabulary_size or self.model.vocabulary_size

    @property
    def awaits_base(self) -> bool:
        """Return whether model and tokenizer are still to be taken from the base (`base.py`)."""
        return self.base is not None and self.tokenizer.path is None

    def __post_init__(self):
        if self.awaits_base:
            return
        self.check_positions()
        self.check_vocabulary()
        self.check_objective()
        self.check_adapter()

        if self.optimizer.kind == "schedule_free" and self.precision.params != "float32":
            reason = "the average of 'schedule_free' needs 'float32'"
            raise ConfigError("precision.params", f"{reason}, got {self.precision.params!r}")
        if self.runtime.attention == "cudnn" and self.precision.compute == "float32":
            reason = "'cudnn' needs precision.compute='bfloat16' or 'float16'"
            raise ConfigError("runtime.attention", reason)

    def check_adapter(self) -> None:
        """Refuse adapters of matrices that the model lacks, and what does not go with them."""
        adapter, model = self.adapter, self.model
        if not adapter.rank:
            return

        if "gate" in adapter.targets and not model.gated:
            raise ConfigError("adapter.targets", "'gate' needs model.gated=true")
        if "qkv" in adapter.targets and model.family == "encoder_decoder":
            reason = "'qkv' has one input, and cross attention has two: use 'query', 'key', 'value'"
            raise ConfigError("adapter.targets", reason)
        if self.precision.weights is not None:
            reason = "rounds weights that are trained, and those beside adapters are frozen"
            remedy = "adapter.base='int8' keeps them rounded"
            raise ConfigError("precision.weights", f"{reason}: {remedy}")
        if self.precision.matmul is not None and adapter.base == "int8":
            reason = f"{self.precision.matmul!r} does not go with adapter.base='int8'"
            raise ConfigError("precision.matmul", reason)
        if model.parametrization != "standard":
            reason = f"{model.parametrization!r} has no learning rates for adapters"
            raise ConfigError("model.parametrization", f"{reason}: set adapter.rank=0")
        if self.optimizer.kind in ("muon", "shampoo"):
            reason = f"{self.optimizer.kind!r} is for whole matrices, not for those of adapters"
            raise ConfigError("optimizer.kind", f"{reason}: use 'adamw'")

    def check_positions(self) -> None:
        """Refuse samples that are longer than the table of learned positions."""
        if self.model.positions != "learned":
            return

        rows = self.model.context_length
        for key, length in (
            ("data.sequence_length", self.data.sequence_length),
            ("objective.target_length", self.objective.target_length),
        ):
            if length is not None and length > rows:
                limit = f"model.context_length ({rows}), the rows of the learned position table"
                raise ConfigError(key, f"{length} exceeds {limit}")

    def check_vocabulary(self) -> None:
        """Refuse a vocabulary that is too small for the tokenizer."""
        size, kind = self.tokenizer_vocabulary_size, self.tokenizer.kind
        special_count = self.tokenizer.special_count(self.objective.needs)
        base, named = SMALLEST.get(kind, (0, ""))
        smallest = base + 1 + special_count

        if kind != "file" and size < smallest:
            section_name = "model" if self.tokenizer.vocabulary_size is None else "tokenizer"
            ids = f"{named} and the end of text"
            if special_count:
                ids = f"{named}, the end of text and {special_count} special tokens"
            reason = f"{size} is below the {smallest} ids of {ids} (tokenizer.kind={kind!r})"
            raise ConfigError(f"{section_name}.vocabulary_size", reason)

        if size > self.model.vocabulary_size:
            reason = f"{size} exceeds model.vocabulary_size ({self.model.vocabulary_size})"
            raise ConfigError("tokenizer.vocabulary_size", reason)

    def check_objective(self) -> None:
        """Refuse a family, an objective and formats of sources that do not go together."""
        kind, family = self.objective.kind, self.model.family
        if family not in self.objective.families:
            fitting = [repr(name) for name, families in TRAINED_BY.items() if family in families]
            trained = " and ".join(map(repr, self.objective.families))
            reason = f"{kind!r} trains model.family={trained}, got {family!r}"
            raise ConfigError("objective.kind", f"{reason} (it takes {', '.join(fitting)})")

        share = self.model.generator_share
        if kind == "replaced_tokens" and share is None:
            reason = f"objective.kind={kind!r} needs a generator: 0.25 or 0.33333, got {share}"
            raise ConfigError("model.generator_share", reason)
        if kind not in ("replaced_tokens", "classify") and share is not None:
            reason = f"{kind!r} trains no generator (model.generator_share): use 'replaced_tokens'"
            raise ConfigError("objective.kind", reason)

        if (kind == "classify") != (self.model.classifier.kind != "none"):
            reason = "'classify' needs one of 'sequence' and 'token'"
            if kind != "classify":
                reason = f"objective.kind={kind!r} predicts tokens, which needs 'none'"
            got = f"got {self.model.classifier.kind!r}"
            raise ConfigError("model.classifier.kind", f"{reason}, {got}")

        problem = self.model.classifier.problem
        if problem != "single_label" and self.training.z_loss:
            reason = f"is for cross-entropy, got model.classifier.problem={problem!r}"
            raise ConfigError("training.z_loss", reason)

        if self.objective.weight != 1:
            raise ConfigError("objective.weight", "is only used in objective.parts")

        for number, source in enumerate(self.data.sources):
            needed = SOURCE_FORMATS.get(kind)
            if source.format != needed and (needed or source.format in SOURCE_FORMATS.values()):
                reason = f"{source.format!r} does not go with objective.kind={kind!r}"
                needs = {name: each for each, name in SOURCE_FORMATS.items()}
                remedy = f"{kind!r} needs {needed!r}"
                if not needed:
                    remedy = f"{source.format!r} needs {needs[source.format]!r}"
                key = f"data.sources.{number}.format"
                raise ConfigError(key, f"{reason}: {remedy}")

            if source.format == "tokens" and self.tokenizer.kind != "file":
                reason = "'tokens' are the ids of a tokenizer that is there: "
                reason += f"it needs tokenizer.kind='file', got {self.tokenizer.kind!r}"
                raise ConfigError(f"data.sources.{number}.format", reason)

        if kind in SOURCE_FORMATS and self.data.validation.method == "tail":
            what = "pairs" if kind == "pairs" else "examples"
            reason = f"'tail' would cut {what} in two; 'hash' and 'source' keep them whole"
            raise ConfigError("data.validation.method", reason)
