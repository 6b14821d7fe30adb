"""The config: schema, loading and errors. `config.load("configs/quickstart.py", ["model.layers=2"])`."""

from jaxlm.config.errors import ConfigError, DivergedError, LostError, NoCheckpointError, UserError
from jaxlm.config.load import all_keys, edited, load, to_dict
from jaxlm.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    RuntimeConfig,
    SourceConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DivergedError",
    "EvaluationConfig",
    "LoggingConfig",
    "LostError",
    "ModelConfig",
    "NoCheckpointError",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RuntimeConfig",
    "SourceConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "UserError",
    "ValidationConfig",
    "all_keys",
    "edited",
    "load",
    "to_dict",
]
