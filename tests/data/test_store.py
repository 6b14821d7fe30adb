import dataclasses
import gzip
import json
import lzma
import multiprocessing
import random
import shutil
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from jaxlm import config
from jaxlm.config import ConfigError, LostError, UserError
from jaxlm.data import Store, await_store, open_store, prepare, store
from jaxlm.data.shards import TokenArray
from jaxlm.data.tokenizer import train_bpe
from jaxlm.data.vocabulary import SpecialTokens

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "été", "日本", "and"]
BYTES = config.TokenizerConfig(kind="bytes")


def text(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}\n"


def corpus(folder: Path, count: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(text(number))
    return folder


def data(folder: Path, *paths: Path, **validation: Any) -> config.DataConfig:
    sources = tuple(
        config.SourceConfig(name=f"s{number}", path=str(path)) for number, path in enumerate(paths)
    )
    method = config.ValidationConfig(**{"share": 0.2, **validation})
    return config.DataConfig(sources=sources, store=str(folder / "stores"), validation=method)


def built(
    of: config.DataConfig, tokenizer: config.TokenizerConfig = BYTES, **options: Any
) -> tuple[Store, list[str]]:
    lines: list[str] = []
    return prepare(of, tokenizer, 300, lines.append, **options), lines


def tokens(array: Any) -> np.ndarray:
    return array.windows(np.zeros(1, np.int64), len(array))[0]


def texts(made: Store, arrays: tuple[Any, ...]) -> list[list[str]]:
    """The documents of each array."""
    parts = [
        np.split(tokens(array), np.flatnonzero(tokens(array) == made.tokenizer.end_of_text) + 1)
        for array in arrays
    ]
    return [[made.tokenizer.decode(part) for part in of if len(part)] for of in parts]


def test_store_holds_every_document_once_and_ends_each(tmp_path):
    made, lines = built(data(tmp_path, corpus(tmp_path / "c")))
    (train,), (held_out,) = texts(made, made.train), texts(made, made.validation)
    assert sorted(train + held_out) == sorted(text(number) for number in range(40))
    assert train == sorted(train, key=lambda document: int(document.split()[-1]))
    assert tokens(made.train[0])[-1] == tokens(made.validation[0])[-1] == made.tokenizer.end_of_text
    counts = made.manifest["splits"]["train"][0]
    assert (counts["documents"], counts["bytes"]) == (len(train), len("".join(train).encode()))
    assert counts["tokens"] == len(made.train[0]) == counts["bytes"] + counts["documents"]
    offsets = np.fromfile(made.path / counts["offsets"], "<i8")
    assert (
        offsets.tolist()
        == np.cumsum([0] + [len(document.encode()) + 1 for document in train]).tolist()
    )
    assert lines == [
        f"store {made.path}: train {len(made.train[0]):,} tokens in {len(train)} documents, "
        f"validation {len(made.validation[0]):,} tokens, {made.validation_bytes:,} bytes"
    ]


def test_validation_text_is_measured_as_the_compressors_do(tmp_path, monkeypatch):
    made, _ = built(data(tmp_path, corpus(tmp_path / "c")))
    held_out = "".join(texts(made, made.validation)[0]).encode()
    assert made.validation_bytes == len(held_out)
    assert made.gzip_bytes == len(gzip.compress(held_out, 9))
    assert made.xz_bytes == len(lzma.compress(held_out, preset=9))
    monkeypatch.setattr(store, "COMPRESSED_BYTES", len(held_out) - 1)
    made, _ = built(data(tmp_path / "other", tmp_path / "c"))
    assert (made.validation_bytes, made.gzip_bytes, made.xz_bytes) == (len(held_out), None, None)


def test_bpe_is_trained_on_the_training_split_only(tmp_path):
    folder = corpus(tmp_path / "c", 1)
    (folder / "z.txt").write_text("x" * 50 + "qzjqzjqzj " * 300)
    made, lines = built(
        data(tmp_path, folder, method="tail", share=0.9), config.TokenizerConfig(kind="bpe")
    )
    assert lines[0].startswith(
        f"tokenizer: byte-level BPE, {made.tokenizer.size} ids, trained on 0.0 MB in "
    )
    assert not any("qz" in token for token in made.tokenizer.inner.get_vocab())
    assert (
        "".join(texts(made, made.train)[0] + texts(made, made.validation)[0])
        == text(0) + (folder / "z.txt").read_text()
    )


def test_training_text_is_spread_over_the_corpus():
    pieces = list(store.spread(iter([f"{number:04}" for number in range(1000)]), 4000, 400))
    assert len(pieces) == 100
    assert np.diff([int(piece) for piece in pieces]).tolist() == [10] * 99
    assert list(store.spread(iter(["ab", "c" * 100_000]), 100_002, 100_002)) == [
        "ab",
        "c" * 65536,
        "c" * 34464,
    ]


def test_store_is_reused_until_something_that_decides_tokens_changes(tmp_path):
    folder = corpus(tmp_path / "c")
    base = data(tmp_path, folder)
    first, _ = built(base)
    written = (first.path / "manifest.json").stat().st_mtime_ns
    heavier = tuple(
        dataclasses.replace(source, weight=3.0, name="renamed") for source in base.sources
    )
    for same in (
        base,
        dataclasses.replace(base, sequence_length=7, prefetch_batches=9, sources=heavier),
    ):
        assert built(same)[0].hash == first.hash
    assert (first.path / "manifest.json").stat().st_mtime_ns == written
    hashes = [
        first.hash,
        built(base, config.TokenizerConfig(kind="bytes", end_of_text="<eos>"))[0].hash,
    ]
    hashes.append(built(base, config.TokenizerConfig(kind="bpe"))[0].hash)
    hashes.append(built(data(tmp_path, folder, share=0.3))[0].hash)
    (folder / "007.txt").write_text("another text")
    changed, _ = built(base)
    assert len({*hashes, changed.hash}) == 5
    assert "another text" in [
        document for part in texts(changed, changed.train + changed.validation) for document in part
    ]
    moved = folder.rename(tmp_path / "moved")
    assert built(data(tmp_path, moved))[0].hash == changed.hash


def test_shards_are_read_as_one_array(tmp_path):
    base = data(tmp_path, corpus(tmp_path / "c"))
    whole, _ = built(base)
    shutil.rmtree(whole.path)
    made, _ = built(base, shard_tokens=1000)
    (entry,) = made.manifest["splits"]["train"]
    assert [shard["tokens"] for shard in entry["shards"]][:-1] == [1000] * (
        len(entry["shards"]) - 1
    )
    assert len(entry["shards"]) > 5
    flat = np.concatenate(
        [np.fromfile(made.path / shard["file"], "<u2") for shard in entry["shards"]]
    )
    (array,) = made.train
    assert isinstance(array, TokenArray)
    assert len(flat) == len(array) == entry["tokens"]
    starts = np.random.default_rng(0).integers(0, len(flat) - 2500, 50)
    for length in (1, 7, 1000, 2500):
        windows = array.windows(starts, length)
        assert windows.dtype == np.int32
        assert np.array_equal(windows, flat[starts[:, None] + np.arange(length)])
    assert array.windows(np.zeros(0, np.int64), 5).shape == (0, 5)
    for bad in (-1, len(flat) - 4):
        with pytest.raises(IndexError):
            array.windows(np.array([bad]), 5)


def test_large_vocabularies_take_32_bits(tmp_path):
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 70_000, "?": 1}, unk_token="?")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "t.json"))
    (tmp_path / "c.txt").write_text("a b c " * 100)
    settings = config.TokenizerConfig(kind="file", path=str(tmp_path / "t.json"))
    made, _ = built(data(tmp_path, tmp_path / "c.txt", method="tail", share=0.5), settings)
    assert made.manifest["dtype"] == "uint32"
    assert tokens(made.train[0])[:3].tolist() == [0, 70_000, 1]


def test_hash_split_does_not_move_when_documents_are_added(tmp_path):
    first, _ = built(data(tmp_path, corpus(tmp_path / "c", 60)))
    second, _ = built(data(tmp_path, corpus(tmp_path / "c", 90)))
    (before,), (after,) = texts(first, first.validation), texts(second, second.validation)
    assert 3 < len(before) < 24  # Binomial(60, 0.2): 12 +- 3.1
    assert set(before) < set(after)
    assert not set(before) & set(texts(second, second.train)[0])


def test_hash_split_of_few_documents_names_tail(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^data\.validation\.method: 'hash' needs at least 20 documents, found 3; 'tail' holds",
    ):
        built(data(tmp_path, corpus(tmp_path / "c", 3)))
    with pytest.raises(
        ConfigError,
        match=r"^data\.validation: the validation split is empty: 40 documents, share 1e-09",
    ):
        built(data(tmp_path, corpus(tmp_path / "d"), share=1e-9))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ConfigError, match=r"^data\.sources: .*holds no text"):
        built(data(tmp_path, tmp_path / "empty.txt"))
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


def test_tail_split_of_one_file_is_its_first_bytes(tmp_path):
    content = ("plain text " * 90).encode()
    (tmp_path / "one.txt").write_bytes(content)
    made, _ = built(data(tmp_path, tmp_path / "one.txt", method="tail", share=0.1))
    end = made.tokenizer.end_of_text
    assert tokens(made.train[0]).tolist() == [*content[:891], end]
    assert tokens(made.validation[0]).tolist() == [*content[891:], end]


def test_tail_split_never_cuts_a_character(tmp_path):
    (tmp_path / "one.txt").write_text("🙂" * 25)
    for share, kept in ((0.5, 12), (0.49, 12), (0.48, 13)):  # of 100 bytes: 50, 51, 52
        made, _ = built(data(tmp_path, tmp_path / "one.txt", method="tail", share=share))
        assert texts(made, made.train + made.validation) == [["🙂" * kept], ["🙂" * (25 - kept)]]


def test_tail_split_is_taken_from_each_source(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 100)
    for number in range(4):
        (tmp_path / f"b{number}.txt").write_text(str(number) * 50)
    made, _ = built(
        data(tmp_path, tmp_path / "a.txt", tmp_path / "b*.txt", method="tail", share=0.4)
    )
    assert texts(made, made.train) == [["a" * 60], ["0" * 50, "1" * 50, "2" * 20]]
    assert texts(made, made.validation) == [["a" * 40], ["2" * 30, "3" * 50]]


def test_validation_from_files_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text("train")
    (tmp_path / "b.txt").write_text("more")
    (tmp_path / "v.txt").write_text("held out")
    base = data(
        tmp_path,
        tmp_path / "a.txt",
        tmp_path / "b.txt",
        method="source",
        path=str(tmp_path / "v.txt"),
    )
    made, _ = built(base)
    assert (texts(made, made.train), texts(made, made.validation)) == (
        [["train"], ["more"]],
        [["held out"]],
    )
    (tmp_path / "v.txt").write_text("changed")
    assert texts(built(base)[0], built(base)[0].validation) == [["changed"]]
    (tmp_path / "v.txt").unlink()
    with pytest.raises(ConfigError, match=r"^data\.validation\.path: .*v\.txt: no such file"):
        built(base)


def test_interrupted_build_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    base = data(tmp_path, corpus(tmp_path / "c"))
    with monkeypatch.context() as patched:
        patched.setattr(store, "validation_summary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            built(base)
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]
    made, _ = built(base)
    shutil.rmtree(made.path)
    killed = made.path.with_name(f".{made.hash}.building")  # what a killed process leaves
    killed.mkdir()
    (killed / "train-0-00099.bin").write_bytes(b"old")
    again, _ = built(base)
    assert not killed.exists()
    assert not (again.path / "train-0-00099.bin").exists()


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_shard_is_named(tmp_path, damage):
    base = data(tmp_path, corpus(tmp_path / "c"))
    shard = built(base)[0].path / "train-0-00000.bin"
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(
        UserError,
        match=r"train-0-00000\.bin: (No such file|has [\d,]+ bytes instead of).*; delete the folder .* built again$",
    ):
        built(base)


def test_shard_cut_short_while_in_use_is_named(tmp_path):
    made, _ = built(data(tmp_path, corpus(tmp_path / "c")))
    with (made.path / "train-0-00000.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        UserError, match=r"train-0-00000\.bin: ends at byte 100, before its last token"
    ):
        tokens(made.train[0])


OTHER_TOKENIZER = train_bpe(["abab"], 300, SpecialTokens(BYTES.end_of_text)).inner.to_str()


@pytest.mark.parametrize(
    ("name", "broken"),
    [("manifest.json", "{"), ("tokenizer.json", "{"), ("tokenizer.json", OTHER_TOKENIZER)],
)
def test_damaged_description_is_named(tmp_path, name, broken):
    base = data(tmp_path, corpus(tmp_path / "c"))
    (built(base)[0].path / name).write_text(broken)
    with pytest.raises(UserError, match=f"{name}: .*delete the folder"):
        built(base)


def test_unwritable_store_names_the_key(tmp_path):
    (tmp_path / "stores").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"^data\.store: .*stores"):
        built(data(tmp_path, corpus(tmp_path / "c")))


def report_of_child(base: config.DataConfig, barrier: Any, queue: Any) -> None:
    barrier.wait()
    made, _ = built(base, config.TokenizerConfig(kind="bpe"))
    queue.put((made.path / "manifest.json").stat().st_ino)


def test_two_processes_build_one_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    base = data(tmp_path, corpus(tmp_path / "c", 200))
    children = [
        context.Process(target=report_of_child, args=(base, barrier, queue)) for _ in range(2)
    ]
    for child in children:
        child.start()
    manifests = {queue.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(manifests) == 1
    assert [child.exitcode for child in children] == [0, 0]


def test_waiting_for_another_build_is_said(tmp_path):
    base = data(tmp_path, corpus(tmp_path / "c"))
    made, _ = built(base)
    folder, lines = made.path, []
    spare = folder.rename(tmp_path / "spare")

    def finish_other(line: str) -> None:
        lines.append(line)
        if "another process" in line:
            spare.rename(folder)
            other.close()

    other = folder.with_name(f".{folder.name}.lock").open("w")
    store.fcntl.flock(other, store.fcntl.LOCK_EX)
    assert prepare(base, BYTES, 300, finish_other).hash == made.hash
    assert "another process builds it, waiting" in lines[0]


def test_manifest_is_plain_json_with_checksums(tmp_path):
    made, _ = built(data(tmp_path, corpus(tmp_path / "c")), shard_tokens=1500)
    manifest = json.loads((made.path / "manifest.json").read_text())
    for entry in manifest["splits"]["train"] + manifest["splits"]["validation"]:
        for shard in entry["shards"]:
            assert shard["crc32"] == zlib.crc32((made.path / shard["file"]).read_bytes())
    assert manifest["tokenizer"] == {"hash": made.tokenizer.hash, "size": 257, "end_of_text": 256}


def test_special_tokens_that_the_objective_needs_are_in_the_store(tmp_path):
    base, settings = (
        data(tmp_path, corpus(tmp_path / "c")),
        config.TokenizerConfig(kind="bytes", begin_of_text="<s>", sentinels=2),
    )
    made, _ = built(base, settings, needs=("pad", "sentinels"))
    expected = SpecialTokens("<|endoftext|>", "<s>", "<pad>", None, 2)
    assert made.tokenizer.special == store.open_store(made.path).tokenizer.special == expected
    assert made.tokenizer.size == 261
    assert sorted(texts(made, made.train)[0] + texts(made, made.validation)[0]) == sorted(
        text(number) for number in range(40)
    )
    others = [
        ({}, ("pad",)),
        ({"sentinels": 3}, ("pad", "sentinels")),
        ({"pad": "[PAD]"}, ("pad", "sentinels")),
        ({}, ()),
    ]
    hashes = [
        built(base, dataclasses.replace(settings, **change), needs=needs)[0].hash
        for change, needs in others
    ]
    assert len({made.hash, *hashes}) == 5
    unused = dataclasses.replace(settings, mask="[MASK]")
    assert built(base, unused, needs=("pad", "sentinels"))[0].hash == made.hash


def test_stores_without_further_special_tokens_are_found_for_ever(tmp_path):
    """Also those that were built when there were none: their manifests say no more of the tokenizer than this."""
    made, _ = built(data(tmp_path, corpus(tmp_path / "c")))
    assert made.hash == "5aa945c6efd345af"
    assert made.manifest["inputs"]["tokenizer"] == {"kind": "bytes", "end_of_text": "<|endoftext|>"}
    assert made.manifest["inputs"]["sources"][0].keys() == {"fingerprint", "format", "text_key"}
    assert made.tokenizer.special == SpecialTokens("<|endoftext|>")


def test_the_store_of_another_process_is_awaited(tmp_path):
    of, lines = data(tmp_path, corpus(tmp_path / "c")), []
    later = threading.Timer(0.5, prepare, [of, BYTES, 300, lambda _: None])
    later.start()
    folder = await_store(of, BYTES, 300, lines.append, lambda: False, 30)
    later.join()
    assert open_store(folder).hash == built(of)[0].hash
    assert len(lines) == 1 and f"{folder}: waiting up to 30 s" in lines[0]
    assert (
        await_store(of, BYTES, 300, lines.append, lambda: False, 0) == folder and len(lines) == 1
    )  # it is there


def test_the_wait_for_a_store_ends(tmp_path):
    of = data(tmp_path, corpus(tmp_path / "c"))
    began = time.monotonic()
    with pytest.raises(
        LostError,
        match=r"^data\.store: process 0 has not prepared .* within 1 s \(runtime\.preparation_timeout_seconds\)",
    ):
        await_store(of, BYTES, 300, lambda _: None, lambda: False, 1)
    assert time.monotonic() - began < 10
    # Process 0 has prepared something, but not this: what differs shows when they compare.
    folder = await_store(of, BYTES, 300, lambda _: None, lambda: True, 60)
    with pytest.raises(ConfigError, match=r"^data\.store: there is no .* here"):
        open_store(folder)
