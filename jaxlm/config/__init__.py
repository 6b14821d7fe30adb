"""The config of a run: its sections, how it is loaded, and the errors that name a wrong key.

`config.load("configs/quickstart.py", ["model.layers=2"])` returns a `Config`.
"""

from typing import Any

from jaxlm.config.adapter import AdapterConfig
from jaxlm.config.classifier import ClassifierConfig
from jaxlm.config.data import (
    CurationConfig,
    DataConfig,
    SourceConfig,
    TokenizerConfig,
    ValidationConfig,
)
from jaxlm.config.edits import all_keys, apply_edits
from jaxlm.config.errors import ConfigError, DivergedError, LostError, NoCheckpointError, UserError
from jaxlm.config.fields import suggestion
from jaxlm.config.load import load
from jaxlm.config.model import ModelConfig
from jaxlm.config.moved import find_moved
from jaxlm.config.objective import ObjectiveConfig
from jaxlm.config.plain_data import to_dict
from jaxlm.config.runtime import RuntimeConfig
from jaxlm.config.schema import Config
from jaxlm.config.training import (
    CheckpointConfig,
    EvaluationConfig,
    GroupConfig,
    LoggingConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainingConfig,
)

__all__ = [
    "AdapterConfig",
    "CheckpointConfig",
    "ClassifierConfig",
    "Config",
    "ConfigError",
    "CurationConfig",
    "DataConfig",
    "DivergedError",
    "EvaluationConfig",
    "GroupConfig",
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
    "apply_edits",
    "find_moved",
    "load",
    "to_dict",
]


def __getattr__(name: str) -> Any:
    """Raise the error for a name that this package does not have.

    A recipe of an older version imports `Model`, which is called `ModelConfig` now. A class name
    gives a ConfigError: from an AttributeError Python would make an ImportError without the hint.
    """
    if f"{name}Config" in __all__:
        raise ConfigError("", f"jaxlm.config.{name} is called {name}Config")
    if name[0].isupper():
        raise ConfigError("", f"jaxlm.config has no {name}{suggestion(name, __all__)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
