"""Set jax up to plan for GPUs on a machine that may have others. Importing it imports no jax."""

import dataclasses
import os

from jaxlm import runtime
from jaxlm.config import RuntimeConfig


def leave_gpus_alone(config: RuntimeConfig) -> None:
    """Set jax up to use the CPU: on a GPU of this machine it would take most of the memory."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    here = dataclasses.replace(config, platform="cpu", devices=None, compilation_cache=None)
    runtime.configure(here)
