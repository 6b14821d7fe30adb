"""Skip the tests marked `gpu` unless jax sees a CUDA device, and keep the figures they measure.

`bash .ci/gpu` runs them. It sets JAX_PLATFORMS=cuda,cpu, so that tests/conftest.py does not choose
the CPU.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest


def cuda_device() -> tuple[Any, str]:
    """Return the first CUDA device (a jax.Device), or None and the reason why there is none."""
    try:
        return jax.devices("cuda")[0], ""
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = " ".join(str(error).split())
        return None, f"no CUDA device (JAX_PLATFORMS={platforms}: {reason}): run bash .ci/gpu"


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The first CUDA device; tests that ask for it are skipped where there is none."""
    device, reason = cuda_device()
    if device is None:
        pytest.skip(reason)
    return device


@pytest.fixture
def record(request) -> Callable[..., None]:
    """Append a line of figures to the file named by JAXLM_GPU_RESULTS, even if the test fails."""

    def write(**figures) -> None:
        line = json.dumps({"test": request.node.name, **figures})
        print(line)
        if path := os.environ.get("JAXLM_GPU_RESULTS"):
            with Path(path).open("a") as file:
                file.write(line + "\n")

    return write
