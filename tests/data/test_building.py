import contextlib
import filecmp
import gzip
import json
import lzma
import os
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
from support.stores import (
    all_texts,
    build_store,
    data_config,
    random_text,
    read_texts,
    read_tokens,
    write_corpus,
)

from jaxlm import config, files
from jaxlm.data import building, fingerprints, open_store
from jaxlm.data.building import (
    assembly,
    encoding,
    extraction,
    extracts,
    judging,
    manifest,
    units,
    workers,
)
from jaxlm.data.vocabulary import SpecialTokens


def test_store_holds_every_document_once_and_ends_each(tmp_path):
    store, lines = build_store(data_config(tmp_path, write_corpus(tmp_path / "c")))
    (train,), (validation,) = read_texts(store, store.train), read_texts(store, store.validation)
    assert sorted(train + validation) == sorted(random_text(number) for number in range(40))
    assert train == sorted(train, key=lambda document: int(document.split()[-1]))
    end = store.tokenizer.end_of_text
    assert read_tokens(store.train[0])[-1] == read_tokens(store.validation[0])[-1] == end

    assert lines == [
        f"store {store.path}: train {len(store.train[0]):,} tokens in {len(train)} documents, "
        f"validation {len(store.validation[0]):,} tokens, {store.validation_bytes:,} bytes"
    ]


def test_manifest_counts_documents_bytes_and_tokens(tmp_path):
    store, _ = build_store(data_config(tmp_path, write_corpus(tmp_path / "c")))
    (train,) = read_texts(store, store.train)
    (entry,) = store.manifest["splits"]["train"]
    assert (entry["documents"], entry["bytes"]) == (len(train), len("".join(train).encode()))
    assert entry["tokens"] == len(store.train[0]) == entry["bytes"] + entry["documents"]

    lengths = [len(document.encode()) + 1 for document in train]
    offsets = np.fromfile(store.path / entry["offsets"], "<i8")
    assert offsets.tolist() == np.cumsum([0, *lengths]).tolist()


def test_manifest_is_plain_json_with_checksums(tmp_path):
    data = data_config(tmp_path, write_corpus(tmp_path / "c"))
    store, _ = build_store(data, shard_tokens=1500)
    manifest = json.loads((store.path / "manifest.json").read_text())
    for entry in manifest["splits"]["train"] + manifest["splits"]["validation"]:
        for shard in entry["shards"]:
            assert shard["crc32"] == zlib.crc32((store.path / shard["file"]).read_bytes())
    assert manifest["tokenizer"] == {"hash": store.tokenizer.hash, "size": 257, "end_of_text": 256}


def test_validation_text_is_measured_as_the_compressors_do(tmp_path, monkeypatch):
    store, _ = build_store(data_config(tmp_path, write_corpus(tmp_path / "c")))
    text = "".join(read_texts(store, store.validation)[0]).encode()
    assert store.validation_bytes == len(text)
    assert store.gzip_bytes == len(gzip.compress(text, 9))
    assert store.xz_bytes == len(lzma.compress(text, preset=9))

    monkeypatch.setattr(manifest, "COMPRESSED_BYTES", len(text) - 1)
    store, _ = build_store(data_config(tmp_path / "other", tmp_path / "c"))
    assert (store.validation_bytes, store.gzip_bytes, store.xz_bytes) == (len(text), None, None)


def test_bpe_is_trained_on_the_training_split_only(tmp_path):
    folder = write_corpus(tmp_path / "c", 1)
    (folder / "z.txt").write_text("x" * 50 + "qzjqzjqzj " * 300)
    data = data_config(tmp_path, folder, method="tail", share=0.9)
    store, lines = build_store(data, config.TokenizerConfig(kind="bpe"))
    size = store.tokenizer.size
    assert lines[0].startswith(f"tokenizer: byte-level BPE, {size} ids, trained on 0.0 MB in ")
    assert not any("qz" in token for token in store.tokenizer.inner.get_vocab())
    assert "".join(all_texts(store)) == random_text(0) + (folder / "z.txt").read_text()


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_large_vocabularies_take_32_bits(tmp_path, largest, dtype):
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": largest, "?": 1}, unk_token="?")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|endoftext|>"])
    inner.save(str(tmp_path / "t.json"))
    (tmp_path / "c.txt").write_text("a b c " * 100)

    tokenizer = config.TokenizerConfig(kind="file", path=str(tmp_path / "t.json"))
    data = data_config(tmp_path, tmp_path / "c.txt", method="tail", share=0.5)
    store, _ = build_store(data, tokenizer)
    assert store.manifest["dtype"] == dtype
    assert read_tokens(store.train[0])[:3].tolist() == [0, largest, 1]


def test_special_tokens_that_the_objective_needs_are_in_the_store(tmp_path):
    data = data_config(tmp_path, write_corpus(tmp_path / "c"))
    tokenizer = config.TokenizerConfig(kind="bytes", begin_of_text="<s>", sentinels=2)
    store, _ = build_store(data, tokenizer, needs=("pad", "sentinels"))
    expected = SpecialTokens("<|endoftext|>", "<s>", "<pad>", None, 2)
    assert store.tokenizer.special == open_store(store.path).tokenizer.special == expected
    assert store.tokenizer.size == 261
    assert sorted(all_texts(store)) == sorted(random_text(number) for number in range(40))


def test_progress_of_long_tokenisation_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)
    (tmp_path / "c.txt").write_text("x" * 3_000_000)
    build_store(data_config(tmp_path, tmp_path / "c.txt", method="tail", share=0.5))
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("read 3 of 3 MB")
    shown = [line for line in shown if line.startswith("tokenised")]
    assert shown[0] == "tokenised 1 of 3 MB"
    assert shown[-1].startswith("tokenised 3 of 3 MB eta 0:00")


def test_only_the_files_of_one_source_are_open_while_a_store_is_built(tmp_path, monkeypatch):
    texts = write_corpus(tmp_path / "c", 30)
    data = data_config(tmp_path, *sorted(texts.iterdir()), method="tail", share=0.5)
    opened, most = set(), []

    class Writer(encoding.TokenWriter):
        def add(self, ids):
            super().add(ids)
            opened.add(self.stem)
            most.append(len(opened))

        def close(self):
            opened.discard(self.stem)
            return super().close()

    monkeypatch.setattr(encoding, "TokenWriter", Writer)
    monkeypatch.setattr(assembly, "TokenWriter", Writer)
    store, _ = build_store(data)
    assert max(most) <= 2  # of both splits
    assert len(all_texts(store)) == 60


def test_a_source_without_validation_text_has_files_all_the_same(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 10)
    (tmp_path / "v.txt").write_text("held out")
    data = data_config(tmp_path, tmp_path / "a.txt", method="source", path=str(tmp_path / "v.txt"))
    store, _ = build_store(data)
    entries = store.manifest["splits"]["train"] + store.manifest["splits"]["validation"]
    assert all((store.path / entry["offsets"]).exists() for entry in entries)


# Units of work


@pytest.fixture
def small_units(monkeypatch):
    """Divide files into parts of 4 kB, and have even little work done by workers."""
    monkeypatch.setattr(fingerprints, "LINE_COUNT_BYTES", 1 << 12)
    monkeypatch.setattr(units, "UNIT_BYTES", 1 << 12)
    monkeypatch.setattr(fingerprints, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(workers, "FEWEST_BYTES", 0)


@pytest.fixture
def large_file(tmp_path):
    """Write JSON lines whose parts of 4 kB begin in, before and after lines; some are longer."""
    lines = [json.dumps({"text": random_text(number)}) for number in range(60)]
    lines[20] = json.dumps({"text": "long " * 3000})
    (tmp_path / "big.jsonl").write_text("\ufeff" + "\n".join(lines))
    return tmp_path / "big.jsonl"


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False)[1:] == ([], [])


@pytest.mark.parametrize("method", ["hash", "tail"])
def test_parts_of_a_large_file_give_the_store_of_the_whole(
    tmp_path, large_file, small_units, monkeypatch, method
):
    data = data_config(tmp_path / "a", large_file, method=method, share=0.3)
    curated = replace(data, curation=config.CurationConfig(near_duplicates=0.5))
    divided, _ = build_store(curated, config.TokenizerConfig(kind="bpe"), workers=2)

    monkeypatch.undo()
    whole, _ = build_store(
        replace(curated, store=str(tmp_path / "b")), config.TokenizerConfig(kind="bpe")
    )
    assert divided.hash == whole.hash and same_files(divided.path, whole.path)
    assert len(all_texts(whole)) == 60 + (method == "tail")


def test_lines_in_parts_have_their_numbers(tmp_path, large_file, small_units):
    lines = large_file.read_text().splitlines()
    lines[47] = "not JSON"
    large_file.write_text("\n".join(lines))
    for count in (1, 2):
        with pytest.raises(config.UserError, match=r"big\.jsonl:48: not JSON"):
            build_store(data_config(tmp_path, large_file), workers=count)


@pytest.mark.parametrize("step", [0, 13, 15, 33])
def test_a_preparation_that_was_killed_ends_in_the_same_store(
    tmp_path, large_file, small_units, monkeypatch, step
):
    """It is killed before one of its files gets its name; what is done is not done again."""
    data = replace(
        data_config(tmp_path / "a", large_file, write_corpus(tmp_path / "c")),
        curation=config.CurationConfig(exact_duplicates=True),
    )
    unbroken, _ = build_store(replace(data, store=str(tmp_path / "b")), workers=1)
    written = []

    def write_until_killed(path, content):
        if len(written) == step:
            raise KeyboardInterrupt
        written.append(path.name)
        files.write_atomically(path, content)

    with monkeypatch.context() as patch:
        for module in (extraction, encoding, judging, building):
            patch.setattr(module, "write_atomically", write_until_killed)
        with contextlib.suppress(KeyboardInterrupt):
            build_store(data, workers=1)
        killed, written[:], step = list(written), [], -1
        again, _ = build_store(data, workers=1)

    assert same_files(again.path, unbroken.path)
    done_twice = set(killed) & set(written)
    assert not any(name.endswith(".json") for name in done_twice)


def test_an_error_of_a_worker_is_that_of_its_job(small_units):
    with workers.Pool(2) as pool:
        assert pool.run([(divmod, (7, number)) for number in (2, 3, 4)], 1, "divided") == [
            (3, 1),
            (2, 1),
            (1, 3),
        ]
        with pytest.raises(ZeroDivisionError):
            pool.run([(divmod, (7, number)) for number in (1, 0)], 1, "divided")


def test_a_worker_that_is_killed_costs_nothing_that_is_done(
    tmp_path, large_file, small_units, monkeypatch
):
    data = data_config(tmp_path, large_file)
    with monkeypatch.context() as patch, pytest.raises(config.UserError, match="was killed, per"):
        patch.setattr(building, "encode_unit", end_process)
        build_store(data, workers=2)
    (unfinished,) = (tmp_path / "stores").glob("*.building")
    assert len(list(unfinished.glob("extract-*.json"))) > 2
    assert len(all_texts(build_store(data)[0])) == 60


def end_process(*arguments):
    os._exit(1)


def test_a_damaged_part_is_noticed(tmp_path, large_file, small_units, monkeypatch):
    data = data_config(tmp_path, large_file)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(building, "assemble", interrupt)
        build_store(data, workers=1)
    (part,) = (tmp_path / "stores").glob("*.building/part-000001-train-00000.bin")
    content = bytearray(part.read_bytes())
    content[7] ^= 1
    part.write_bytes(content)
    with pytest.raises(
        config.UserError, match=r"part-000001-train-00000\.bin: damaged on the disk"
    ):
        build_store(data, workers=1)


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_documents_are_found_behind_blocks_that_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(extracts, "BLOCK_BYTES", 50)
    writer = extracts.ExtractWriter(tmp_path, "0")
    for number in range(20):
        writer.add(f"name {number}", [f"text {number}".encode()])
    writer.close()

    sizes = extracts.read_sizes(tmp_path, "0", strings=1)
    wanted = np.isin(np.arange(20), [7, 8, 19])
    assert list(extracts.read_extract(tmp_path, "0", sizes, wanted)) == [
        (number, [f"name {number}", f"text {number}"]) for number in (7, 8, 19)
    ]


# A script as users write it: without `if __name__ == "__main__"`.
SCRIPT = """
import os, sys, time
from jaxlm.data.building import workers

print("started", flush=True)
workers.FEWEST_BYTES = 0
with workers.Pool(2) as pool:
    pids = pool.run([(os.getpid, ()), (os.getpid, ())], 1, "named")
    print(*pids, flush=True)
    pool.run([(time.sleep, (600,)), (time.sleep, (600,))], 1, "waited")
"""


def test_workers_do_not_run_the_script_and_end_with_its_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as script:
        assert script.stdout is not None
        lines = [script.stdout.readline() for _ in range(2)]
        script.kill()
        # The pipe ends once the workers, which have it as well, are gone.
        rest, _ = script.communicate(timeout=60)
    assert (lines[0], rest) == ("started\n", "")
