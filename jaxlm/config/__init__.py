"""The config: schema, loading and errors. `config.load("configs/quickstart.py", ["model.layers=2"])`."""

from jaxlm.config.errors import ConfigError, DivergedError, LostError, NoCheckpointError, UserError
from jaxlm.config.load import all_keys, edited, load, to_dict
from jaxlm.config.schema import (
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Logging,
    Model,
    Objective,
    Optimizer,
    Parallel,
    Precision,
    Runtime,
    Source,
    Tokenizer,
    Training,
    Validation,
)

__all__ = [
    "Checkpoint",
    "Config",
    "ConfigError",
    "Data",
    "DivergedError",
    "Evaluation",
    "Logging",
    "LostError",
    "Model",
    "NoCheckpointError",
    "Objective",
    "Optimizer",
    "Parallel",
    "Precision",
    "Runtime",
    "Source",
    "Tokenizer",
    "Training",
    "UserError",
    "Validation",
    "all_keys",
    "edited",
    "load",
    "to_dict",
]
