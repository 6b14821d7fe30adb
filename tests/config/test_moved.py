"""Relative paths of a run are found from the folder in which it was started."""

import pytest

from jaxlm import config, train
from jaxlm.config import Config
from jaxlm.config.moved import find_path, find_paths


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Return the folder of a project; the working directory is another one."""
    project, here = tmp_path / "project", tmp_path / "here"
    for path in (project / "texts", project / "stores", project / "runs/a/checkpoints", here):
        path.mkdir(parents=True)
    for name in ("texts/1.txt", "valid.txt", "tokenizer.json"):
        (project / name).touch()
    monkeypatch.chdir(here)
    return project


@pytest.mark.parametrize(
    "path", ["texts", "texts/1.txt", "texts/*.txt", "**/1.txt", "nowhere.txt", "/texts", None]
)
def test_a_path_is_taken_from_there_only_if_it_is_not_here(folders, path):
    found = find_path(path, folders)
    is_there = path not in ("nowhere.txt", "/texts", None)
    assert found == (str(folders / path) if is_there else path)
    if path == "texts/1.txt":
        (folders.parent / "here/texts").mkdir()
        (folders.parent / "here/texts/1.txt").touch()
        assert find_path(path, folders) == path


def made(folders) -> Config:
    """Return a config of every kind of path, as a run in runs/a."""
    edits = [
        "run_directory=runs/a",
        "data.sources.0.path=texts/*.txt",
        "data.sources.0.format=auto",
        "data.validation.method=source",
        "data.validation.path=valid.txt",
        "tokenizer.kind=file",
        "tokenizer.path=tokenizer.json",
    ]
    return config.apply_edits(Config(), edits)


def test_every_path_of_a_config_is_looked_up(folders):
    moved = find_paths(made(folders), folders)
    assert moved.data.sources[0].path == str(folders / "texts/*.txt")
    assert moved.data.validation.path == str(folders / "valid.txt")
    assert moved.data.store == str(folders / "stores")
    assert moved.tokenizer.path == str(folders / "tokenizer.json")


def test_a_runs_own_config_means_its_folder(folders, capsys):
    saved = made(folders)
    path = folders / "runs/a/config.json"
    adopted = train.adopt_folder(saved, path)
    assert adopted.run_directory == str(folders / "runs/a")
    assert adopted.data.store == str(folders / "stores")
    expected = f"{path}: the run was saved as runs/a; its folder is now {folders}/runs/a\n"
    assert capsys.readouterr().out == expected

    # In its place, and where it is no run's, nothing changes.
    (folders / "runs/copy").mkdir()
    assert train.adopt_folder(saved, folders / "runs/copy/config.json") == saved
    assert train.adopt_folder(saved, folders / "runs/a/other.json") == saved


def test_a_run_in_its_place_stays_as_it_is(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    saved = made(folders)
    assert train.adopt_folder(saved, folders / "runs/a/config.json") == saved
    assert capsys.readouterr().out == ""
