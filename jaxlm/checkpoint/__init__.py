"""Checkpoints of the training state, and the record in config.json of what a run was."""

from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.checkpoint.run import check_store, flat, resumed, write

__all__ = ["Checkpoints", "check_store", "flat", "resumed", "write"]
