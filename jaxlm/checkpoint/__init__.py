"""Checkpoints of the training state, and the record in config.json of what a run was."""

from jaxlm.checkpoint.manager import Checkpoints
from jaxlm.checkpoint.run import check_store, flat, resume_config, write_run_config

__all__ = ["Checkpoints", "check_store", "flat", "resume_config", "write_run_config"]
