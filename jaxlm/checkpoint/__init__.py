"""Checkpoints of the training state, and the config.json that says which run they belong to."""

from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.checkpoint.run_config import (
    check_store,
    flatten_config,
    read_run_config,
    resume_config,
    write_run_config,
)

__all__ = [
    "Checkpoints",
    "check_store",
    "flatten_config",
    "read_run_config",
    "resume_config",
    "write_run_config",
]
