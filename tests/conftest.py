"""Set jax up for the tests, before anything uses it: eight emulated CPU devices, quick compiles.

Nearly all the time of the tests is XLA's: programs compile without its optimizations, into a cache
that the processes of one session share. `JAXLM_TEST_OPTIMIZE=1` turns the optimizations on, as
`.ci/run` does for the tests of the trainer. The finished runs that tests share are made here, too.
"""

import faulthandler
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from support import tiny_run

COMPILATION_CACHE = "JAX_COMPILATION_CACHE_DIR"
QUICK_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def set_environment() -> None:
    """Set what jax reads when it is imported; workers and child processes inherit it."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if os.environ.get("JAXLM_TEST_OPTIMIZE") != "1":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        if version("jaxlib").startswith("0.10."):
            # Two thirds of the time. Later versions no longer know these flags.
            flags = (os.environ.get("XLA_FLAGS", ""), *QUICK_FLAGS)
            os.environ["XLA_FLAGS"] = " ".join(flags).strip()

    if COMPILATION_CACHE not in os.environ:
        os.environ[COMPILATION_CACHE] = tempfile.mkdtemp(prefix="jaxlm-tests-")
        os.environ["JAXLM_TEST_CACHE_OWNER"] = str(os.getpid())
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


set_environment()

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the workers of `-n auto`: one per core, but each takes up to 3 GB."""
    del config
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let campaigns take as long as they need: faulthandler_timeout is for all others."""
    if item.get_closest_marker("campaign"):
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's compilation cache, in the process that made it."""
    del config
    if os.environ.get("JAXLM_TEST_CACHE_OWNER") == str(os.getpid()):
        shutil.rmtree(os.environ[COMPILATION_CACHE], ignore_errors=True)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Iterator[Callable[[str], Path]]:
    """Return a function: family -> the folder of its finished tiny run.

    The folder has the recipe (tiny.py), its text and token store, the run in runs/tiny, and what
    the command printed in output.txt. It is made once per session; whoever wants to change
    something in it takes `copied_run`.
    """
    folders: dict[str, Path] = {}
    digests: dict[str, str] = {}

    def folder_of(family: str) -> Path:
        if family not in folders:
            folder = tmp_path_factory.mktemp(f"finished_{family}")
            tiny_run.finish(folder, family)
            folders[family], digests[family] = folder, tiny_run.digest(folder)
        return folders[family]

    yield folder_of
    for family, folder in folders.items():
        assert tiny_run.digest(folder) == digests[family], f"a test changed {folder}"


@pytest.fixture
def copied_run(finished_run, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Return a function: family -> a copy of its finished run, which is the working directory."""

    def copy(family: str) -> Path:
        shutil.copytree(finished_run(family), tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return copy
