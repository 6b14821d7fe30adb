"""The estimate of a dry run, compared with the preparation of the whole."""

import bz2
import gzip
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import BYTES, WORDS, build_store, data_config

from jaxlm.config import CurationConfig, TokenizerConfig
from jaxlm.data import describe_store, dry_run, file_samples


def write_lines(seed, count):
    rng = random.Random(seed)
    lines = [
        json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(10, 60))) + f" {number}"})
        for number in range(count)
    ]
    return "\n".join(lines).encode() + b"\n"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two sources, one of them compressed, in files of which a small sample is a part."""
    monkeypatch.setattr(file_samples, "PART_BYTES", 1 << 12)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "plain").mkdir()
    for number in range(8):
        (tmp_path / "plain" / f"{number}.jsonl").write_bytes(write_lines(number, 150))
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.jsonl.gz").write_bytes(gzip.compress(write_lines(8, 900)))
    (tmp_path / "packed" / "b.jsonl").write_bytes(write_lines(9, 300))
    return data_config(tmp_path, tmp_path / "plain", tmp_path / "packed")


def estimate(data, megabytes, tokenizer=BYTES):
    return dry_run.estimate_preparation(data, tokenizer, 300, (), megabytes)


def test_a_sample_predicts_the_whole_and_leaves_nothing(data, tmp_path):
    expected = describe_store(build_store(data)[0])["sources"]
    before = sorted(tmp_path.rglob("*"))
    found = estimate(data, 0.11)
    assert sorted(tmp_path.rglob("*")) == before

    for name, source in found["sources"].items():
        assert source["sample_bytes"] < 0.5 * source["file_bytes"]
        for key in ("documents", "kept", "bytes", "tokens"):
            # The standard error of some 400 texts of 10 to 60 words is 2%.
            assert source[key] == pytest.approx(expected[name][key], rel=0.06), (name, key)
        assert source["dropped"] == {}
    total = found["total"]
    assert total["store_bytes"] == total["tokens"] * 2 + total["kept"] * 8
    assert total["seconds"] > found["sample_seconds"]


def test_a_sample_of_everything_is_exact(data):
    curation = CurationConfig(exact_duplicates=True)
    data = replace(data, sources=data.sources[:1], curation=curation)
    text = write_lines(0, 150) + b"not JSON\n"
    path = Path(data.sources[0].path) / "8.jsonl"
    path.write_bytes(text)
    expected = describe_store(build_store(replace(data, on_error="skip"))[0])["sources"]

    found = estimate(data, 100, TokenizerConfig(kind="bpe", training_megabytes=0.01))
    assert path.exists()
    for name, source in found["sources"].items():
        for key in ("documents", "kept", "bytes", "dropped"):
            assert source[key] == expected[name][key], (name, key)
    assert found["sources"]["s0"]["dropped"] == {"exact_duplicate": 150, "unreadable": 1}

    text = dry_run.format_estimate(found)
    assert "duplicates are compared within the sample alone" in text
    assert "data.on_error=skip leaves them out" in text and "--sample-megabytes" not in text


def test_a_compressed_part_counts_the_blocks_that_can_be_read(tmp_path):
    text = write_lines(0, 9000)
    path, part = tmp_path / "a.bz2", tmp_path / "part"
    path.write_bytes(bz2.compress(text, 1))
    block = path.stat().st_size / len(text) * 100_000  # bytes of a block of 100 kB of text

    # At least a block, and of those that are cut nothing. Positions are known to 8 kB.
    for limit in (1000, int(2.9 * block)):
        counted = file_samples.write_compressed_part(path, part, "bzip2", limit)
        read = len(bz2.BZ2Decompressor().decompress(part.read_bytes()))
        expected = read / len(text) * path.stat().st_size
        assert expected > 0 and expected - 500 <= counted <= expected + (1 << 13)


def test_files_are_spread_evenly_and_limits_are_kept(data):
    assert file_samples.choose_files([10] * 100, 50, spread=True) == [10, 30, 50, 70, 90]
    assert file_samples.choose_files([10] * 100, 50, spread=False) == [0, 1, 2, 3, 4]
    assert file_samples.choose_files([10] * 3, 1e9, spread=True) == [0, 1, 2]

    first = replace(data.sources[0], documents=40)
    found = estimate(replace(data, sources=(first,)), 0.02)
    assert found["sources"]["s0"]["documents"] == 40
