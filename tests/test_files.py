"""Files are written whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxlm import files


def test_a_file_gets_its_new_content(tmp_path):
    path = tmp_path / "config.json"
    files.write_atomically(path, "ä")
    assert path.read_bytes() == "ä".encode()

    files.write_atomically(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_content(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")

    with pytest.raises(ValueError, match="half-way"), files.atomic_writer(path) as file:
        file.write(b"new")
        raise ValueError("half-way")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_end(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")

    with path.open() as reader, files.atomic_writer(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        assert reader.read() == "old"

    # The name now stands for another file: the old one was not written to.
    assert path.read_text() == "new"


def test_an_open_file_keeps_what_it_had(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    with path.open() as reader:
        files.write_atomically(path, "new")
        assert reader.read() == "old"


@pytest.mark.parametrize("text", ["half \ud800", None])
def test_a_result_that_cannot_be_written_leaves_no_file(tmp_path, text):
    path = tmp_path / "results.json"
    with pytest.raises((UnicodeEncodeError, AttributeError)):
        files.write_output(path, text)
    assert list(tmp_path.iterdir()) == []


def test_results_go_into_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        files.write_output(pipe, "a vector")
        assert read.result() == "a vector"
    assert pipe.is_fifo()
