"""Eight emulated CPU devices, set up before anything uses jax; and the runs that tests share."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from support import tiny_run

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


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
