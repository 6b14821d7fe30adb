"""Files of tokens, each written here by the layout that its framework publishes."""

import filecmp
import json
import pickle
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from support import tokenizer_files
from support.stores import build_store, data_config, random_text, read_tokens
from tokenizers import Tokenizer

from jaxlm import config
from jaxlm.config import ConfigError, UserError
from jaxlm.data import building, describe_store, dry_run, file_samples, preparation, show
from jaxlm.data.building import token_units, units, workers
from jaxlm.data.building.stages import Part
from jaxlm.data.documents import FilePart
from jaxlm.data.readers import token_documents, token_files
from jaxlm.data.rules import load_predicate

TEXTS = [random_text(number, 5 + number % 7) for number in range(40)]
INNER = tokenizer_files.gpt2()
END = INNER.token_to_id("<|endoftext|>")
SIZE = INNER.get_vocab_size()
IDS = [INNER.encode(text, add_special_tokens=False).ids for text in TEXTS]
# Each character of ASCII as a token of its own, as no encoder would give it.
SPELLED = [[INNER.token_to_id(letter) for letter in f"letters{number}"] for number in range(30)]


@pytest.fixture
def tokenizer(tmp_path):
    INNER.save(str(tmp_path / "tokenizer.json"))
    return config.TokenizerConfig(kind="file", path=str(tmp_path / "tokenizer.json"))


# Layouts


def ended(documents):
    return [token for ids in documents for token in [*ids, END]]


def write_nanogpt(path, documents):
    """Write what data/openwebtext/prepare.py does: the end of text is appended."""
    np.array(ended(documents), np.uint16).tofile(path)


def write_llmc(path, documents, magic=20240520, version=1, dtype=np.uint16):
    """Write what dev/data/data_common.py does, and fineweb.py: the end of text comes first."""
    tokens = np.array([token for ids in documents for token in [END, *ids]], dtype)
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(tokens)
    path.write_bytes(header.tobytes() + tokens.tobytes())


def write_megatron(path, documents, dtype=np.int32, code=4, sentences=1, ends=True):
    """Write what IndexedDatasetBuilder does; preprocess_data appends the end, if it is told to."""
    tokens, lengths, bounds = [], [], [0]
    for ids in documents:
        ids = [*ids, END] if ends else ids
        parts = [part for part in np.array_split(ids, sentences) if len(part)]
        tokens += ids
        lengths += [len(part) for part in parts]
        bounds.append(len(lengths))
    np.array(tokens, dtype).tofile(path)
    pointers = np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
        + np.array(lengths, np.int32).tobytes()
        + pointers.astype(np.int64).tobytes()
        + np.array(bounds, np.int64).tobytes()
    )


def write_olmo(path, documents, dtype=np.uint16):
    """Write what OLMo's guide to data loading does: a memory map that is called .npy."""
    tokens = ended(documents)
    array = np.memmap(path, mode="w+", dtype=dtype, shape=(len(tokens),))
    array[:] = tokens
    array.flush()


def write_numpy(path, documents, dtype="<i8"):
    np.save(path, np.array(ended(documents), dtype))


LAYOUTS = {
    "nanogpt": ("a.bin", write_nanogpt, {}, "raw tokens, uint16"),
    "llm.c": ("a.bin", write_llmc, {}, "llm.c tokens, uint16"),
    "llm.c 3": (
        "a.bin",
        write_llmc,
        {"magic": 20240801, "version": 7, "dtype": np.uint32},
        "llm.c tokens, uint32",
    ),
    "megatron": ("a_text_document.bin", write_megatron, {}, "Megatron tokens, int32"),
    "sentences": (
        "a_text_sentence.bin",
        write_megatron,
        {"dtype": np.uint16, "code": 8, "sentences": 3, "ends": False},
        "Megatron tokens, uint16",
    ),
    "olmo": ("a.npy", write_olmo, {}, "raw tokens, uint16"),
    "wide": ("a.npy", write_olmo, {"dtype": np.uint32}, "raw tokens, uint32"),
    "numpy": ("a.npy", write_numpy, {}, "NumPy tokens, int64"),
    "big-endian": ("a.npy", write_numpy, {"dtype": ">u4"}, "NumPy tokens, uint32"),
}


def write(folder, layout, documents=IDS):
    name, write_file, options, _ = LAYOUTS[layout]
    folder.mkdir(exist_ok=True)
    write_file(folder / name, documents, **options)
    return folder / name


def token_config(folder, *paths, **validation):
    """Return `data_config` with sources of tokens."""
    data = data_config(folder, *paths, **validation)
    return replace(data, sources=tuple(replace(each, format="tokens") for each in data.sources))


def read_documents(store, split):
    """Return the ids of the documents of each source in a split, with the end of each."""
    documents = []
    for array in getattr(store, split):
        tokens, offsets = read_tokens(array), array.read_offsets()
        assert (tokens[offsets[1:] - 1] == store.tokenizer.end_of_text).all()
        documents.append([ids.tolist() for ids in np.split(tokens, offsets[1:-1])])
    return documents


def same_tokens(one, other):
    """Return whether two stores have the same shards and offsets."""
    names = sorted(path.name for path in one.path.iterdir() if path.suffix in (".bin", ".offsets"))
    return filecmp.cmpfiles(one.path, other.path, names, shallow=False)[1:] == ([], [])


# Stores


@pytest.fixture(scope="module")
def text_store(tmp_path_factory):
    """The store of the same documents as JSON lines."""
    folder = tmp_path_factory.mktemp("text")
    INNER.save(str(folder / "tokenizer.json"))
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    tokenizer = config.TokenizerConfig(kind="file", path=str(folder / "tokenizer.json"))
    return build_store(data_config(folder, folder / "c.jsonl"), tokenizer)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_store_of_its_text(tmp_path, tokenizer, text_store, layout):
    path = write(tmp_path / "tokens", layout)
    store, lines = build_store(token_config(tmp_path, path.parent), tokenizer)
    assert same_tokens(store, text_store)
    assert store.manifest["splits"] == text_store.manifest["splits"]
    assert store.manifest["fertility"] == text_store.manifest["fertility"]
    assert lines[0] == f"source s0: {path.name}: {LAYOUTS[layout][-1]}, by content"


def test_ids_are_never_decoded_and_encoded_again(tmp_path, tokenizer):
    write_nanogpt(tmp_path / "t.bin", SPELLED)
    store, _ = build_store(token_config(tmp_path, tmp_path / "t.bin"), tokenizer)
    found = read_documents(store, "train")[0] + read_documents(store, "validation")[0]
    assert sorted(found) == sorted([*ids, END] for ids in SPELLED)
    assert INNER.encode("letters1", add_special_tokens=False).ids != SPELLED[1]


def test_validation_files_and_other_sources_go_together(tmp_path, tokenizer):
    """nanoGPT's folder holds both splits, and what made them."""
    write_nanogpt(tmp_path / "train.bin", SPELLED)
    write_llmc(tmp_path / "val.bin", IDS[:5])
    (tmp_path / "notes.jsonl").write_text(json.dumps({"text": "a note"}))
    data = token_config(
        tmp_path, tmp_path / "train.bin", method="source", path=str(tmp_path / "val.bin")
    )
    sources = (
        replace(data.sources[0], documents=7),
        config.SourceConfig(name="notes", path=str(tmp_path / "notes.jsonl")),
    )
    store, _ = build_store(replace(data, sources=sources), tokenizer)
    first, notes = read_documents(store, "train")
    assert first == [[*ids, END] for ids in SPELLED[:7]]
    assert notes == [[*INNER.encode("a note", add_special_tokens=False).ids, END]]
    assert read_documents(store, "validation") == [[[*ids, END] for ids in IDS[:5]]]
    assert store.validation_bytes == len("".join(TEXTS[:5]).encode())


def test_rules_judge_the_decoded_text(tmp_path, tokenizer):
    """A copy that was spelled in other tokens is a copy; the first one is kept."""
    copy = INNER.encode("letters3", add_special_tokens=False).ids
    write_nanogpt(tmp_path / "t.bin", [*SPELLED, copy])
    (tmp_path / "keep.py").write_text("def keep(text): return not text.endswith('7')")
    data = token_config(tmp_path, tmp_path / "t.bin")
    data = replace(data, curation=config.CurationConfig(exact_duplicates=True))
    predicate = load_predicate(f"{tmp_path}/keep.py:keep")
    store, _ = build_store(data, tokenizer, predicate=predicate, workers=1)
    assert store.manifest["dropped"] == {"s0": {"exact_duplicate": 1, "predicate": 3}}
    found = read_documents(store, "train")[0] + read_documents(store, "validation")[0]
    kept = [ids for number, ids in enumerate(SPELLED) if number not in (7, 17, 27)]
    assert sorted(found) == sorted([*ids, END] for ids in kept)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_document_belongs_to_the_part_in_which_it_begins(tmp_path, monkeypatch, layout):
    path = write(tmp_path / "tokens", layout, [*IDS[:6], IDS[6] * 9, [], *SPELLED[:6]])
    file = token_files.open_token_file(path, SIZE)
    whole = documents_of_part(file, FilePart(path))
    expected = [*IDS[:6], IDS[6] * 9, *SPELLED[:6]]
    assert [ids for _, ids in whole] == expected

    monkeypatch.setattr(token_documents, "BLOCK_TOKENS", 7)
    size = path.stat().st_size
    for part_bytes in (2, 10, 96, 1000):
        starts = range(0, size, part_bytes)
        parts = [FilePart(path, start, start + part_bytes) for start in starts]
        assert [found for part in parts for found in documents_of_part(file, part)] == whole


def documents_of_part(file, part):
    documents = token_documents.read_token_documents(file, part, END)
    return [(document.first, document.ids.tolist()) for document in documents]


@pytest.mark.parametrize(("layout", "method"), [("nanogpt", "hash"), ("llm.c", "tail")])
def test_parts_of_a_file_give_the_store_of_the_whole(
    tmp_path, tokenizer, monkeypatch, layout, method
):
    """With two processes, killed between the passes; or begun, and completed later."""
    documents = [*IDS, IDS[0] * 50, [], *SPELLED]
    path = write(tmp_path / "tokens", layout, documents)
    data = token_config(tmp_path / "a", path, method=method, share=0.3)
    whole, _ = build_store(data, tokenizer, workers=1)

    monkeypatch.setattr(units, "UNIT_BYTES", 1 << 10)
    monkeypatch.setattr(token_documents, "BLOCK_TOKENS", 37)
    data = replace(data, store=str(tmp_path / "b"))
    if method == "tail":
        preparation.begin(data, tokenizer, 300, print)
    else:
        monkeypatch.setattr(workers, "FEWEST_BYTES", 0)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(building, "encode_units", interrupt)
            build_store(data, tokenizer, workers=2)
    (unfinished,) = (tmp_path / "b").glob("*.building")
    assert len(list(unfinished.glob("extract-*.ids"))) > 3
    divided, _ = build_store(data, tokenizer, workers=2)
    assert divided.manifest == whole.manifest and same_tokens(divided, whole)


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_file_without_ends_of_text_is_one_document(tmp_path, tokenizer, monkeypatch):
    """nanoGPT's shakespeare: the tail is cut before a token, and before a character."""
    ids = [token for document in IDS for token in document]
    path = tmp_path / "train.bin"
    np.array(ids, np.uint16).tofile(path)
    with pytest.raises(ConfigError, match="needs at least 20 documents, found 1"):
        build_store(token_config(tmp_path, path), tokenizer)

    monkeypatch.setattr(token_units, "DECODED_TOKENS", 64)
    store, lines = build_store(token_config(tmp_path, path, method="tail"), tokenizer)
    assert lines[1] == (
        "source s0: train.bin: no end of text in it, so it is one document, by content"
    )
    ((train,),) = read_documents(store, "train")
    ((held_out,),) = read_documents(store, "validation")
    assert train[:-1] + held_out[:-1] == ids
    text = "".join(TEXTS)
    assert INNER.decode(train) + INNER.decode(held_out) == text
    assert store.validation_bytes == len(INNER.decode(held_out).encode())
    assert store.validation_bytes == pytest.approx(0.2 * len(text.encode()), abs=16)

    monkeypatch.setattr(token_documents, "LONGEST_DOCUMENT", 100)
    monkeypatch.setattr(token_documents, "BLOCK_TOKENS", 30)
    again, _ = build_store(token_config(tmp_path / "again", path, method="tail"), tokenizer)
    documents = read_documents(again, "train")[0] + read_documents(again, "validation")[0]
    assert [len(document) for document in documents[:3]] == [101] * 3
    assert [token for document in documents for token in document[:-1]] == ids


# Mistakes


def test_an_id_that_the_tokenizer_lacks_is_named(tmp_path, tokenizer):
    path = tmp_path / "t.bin"
    write_nanogpt(path, [*IDS, [1, 2, SIZE], *SPELLED])
    place = len(ended(IDS)) + 2
    with pytest.raises(UserError, match=rf"t\.bin: token {place:,} is {SIZE}, and .* {SIZE} ids"):
        build_store(token_config(tmp_path, path), tokenizer)

    data = replace(token_config(tmp_path, path), on_error="skip")
    store, lines = build_store(data, tokenizer)
    assert f"skipped 1 that can't be read (data.on_error=skip), the first: {path}" in lines[1]
    found = read_documents(store, "train")[0] + read_documents(store, "validation")[0]
    assert sorted(found) == sorted([*ids, END] for ids in IDS + SPELLED)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def spoil_lengths(path):
    """Give the first document a length that its place does not have."""
    index = bytearray(path.with_suffix(".idx").read_bytes())
    index[34] += 1
    path.with_suffix(".idx").write_bytes(index)


FAULTS = {
    "version": ("llm.c", lambda path: write_llmc(path, IDS, version=2), "is version 2 of llm.c's"),
    "evaluation": ("llm.c", lambda path: write_llmc(path, IDS, magic=20240522), "an evaluation of"),
    "short": ("llm.c", lambda path: cut(path, -2), "where its header says .* uint16 tokens"),
    "header": ("llm.c", lambda path: cut(path, 1000), "ends inside the header of llm.c"),
    "odd": ("nanogpt", lambda path: cut(path, -1), "bytes, which are no whole uint16 tokens"),
    "text": ("nanogpt", lambda path: path.write_text("It is.\n" * 20), "is text: name the files"),
    "zip": ("nanogpt", lambda path: path.write_bytes(b"PK\3\4" * 9), "a zip file, not tokens"),
    "no index": (
        "megatron",
        lambda path: path.with_suffix(".idx").unlink(),
        "has no .idx beside it",
    ),
    "cut index": ("megatron", lambda path: cut(path.with_suffix(".idx"), -8), "it was cut"),
    "wrong index": (
        "megatron",
        lambda path: path.with_suffix(".idx").write_bytes(b"TNTIDX\0\0"),
        "is no index of Megatron",
    ),
    "floats": (
        "megatron",
        lambda path: write_megatron(path, IDS, np.float32, 7),
        "its type 7 is none of integers",
    ),
    "wrong lengths": ("megatron", spoil_lengths, "the .idx is damaged at document 1$"),
    "cut ids": ("megatron", lambda path: cut(path, -4), "where a_text_document.idx says .* int32"),
    "matrix": ("numpy", lambda path: np.save(path, np.ones((4, 4), int)), r"an array \[4, 4\]"),
    "fractions": ("numpy", lambda path: np.save(path, np.ones(4)), "of float64, not integers"),
    "cut header": ("numpy", lambda path: cut(path, 30), "damaged .npy"),
    "cut array": ("numpy", lambda path: cut(path, -8), "where its header says .* int64"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_not_whole_is_one_line(tmp_path, tokenizer, fault):
    layout, spoil, reason = FAULTS[fault]
    path = write(tmp_path / "tokens", layout)
    spoil(path)
    with pytest.raises(UserError, match=reason) as caught:
        build_store(token_config(tmp_path, path), tokenizer)
    assert str(caught.value).startswith(str(path.parent)) and "\n" not in str(caught.value)


class Trap:
    """An object whose unpickling would be noticed."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickles_are_refused(tmp_path, tokenizer):
    path = tmp_path / "t.npy"
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    assert b"unpickled" in path.read_bytes()
    with pytest.raises(UserError, match="holds pickled objects, which are not read"):
        build_store(token_config(tmp_path, path), tokenizer)


def test_a_folder_gives_its_files_of_tokens_and_a_glob_what_it_names(tmp_path, tokenizer):
    folder = tmp_path / "tokens"
    write(folder, "megatron")
    (folder / "prepare.py").write_text("import numpy")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))
    whole, _ = build_store(token_config(tmp_path, folder), tokenizer)
    (folder / "prepare.py").unlink()
    (folder / "meta.pkl").unlink()
    chosen, _ = build_store(token_config(tmp_path, folder / "*"), tokenizer)
    assert chosen.hash == whole.hash

    # The index says where documents end, so the store has another name with another one.
    write_megatron(folder / "a_text_document.bin", IDS, sentences=2)
    again, _ = build_store(token_config(tmp_path, folder), tokenizer)
    assert again.hash != whole.hash and same_tokens(again, whole)

    shutil.copy(folder / "a_text_document.idx", folder / "b_text_document.idx")
    with pytest.raises(ConfigError, match=r"b_text_document\.idx: the \.bin beside it is missing"):
        build_store(token_config(tmp_path, folder), tokenizer)
    with pytest.raises(UserError, match="is the index of a Megatron file: name the"):
        build_store(token_config(tmp_path, folder / "b_text_document.idx"), tokenizer)


@pytest.mark.parametrize(
    ("curation", "key"),
    [
        ({"repair_unicode": True}, "repair_unicode"),
        ({"normalization": "NFC"}, "normalization"),
        ({"rules": ("gopher_quality", "c4")}, "rules"),
        ({"remove_addresses": True}, "remove_addresses"),
    ],
)
def test_rules_that_change_the_text_are_refused(tmp_path, curation, key):
    data = token_config(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=rf"^data\.curation\.{key}: .*source 's0'"):
        replace(data, curation=config.CurationConfig(**curation))


# Text


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_text_is_decoded_as_the_library_does(monkeypatch, family):
    inner: Tokenizer = getattr(tokenizer_files, family)()
    decoder = token_units.TokenDecoder(inner)
    assert (decoder.table is not None) == (family == "gpt2")
    ids = np.array(inner.encode("\n".join(tokenizer_files.LINES * 2)).ids)
    expected = inner.decode(ids.tolist())
    assert decoder.decode(ids) == expected
    monkeypatch.setattr(token_units, "DECODED_TOKENS", 16)
    assert decoder.decode(ids) == expected

    for byte in range(0, len(expected.encode()), 41):
        token, place = decoder.find_cut(ids, byte)
        assert byte - 16 < place <= byte
        assert decoder.decode(ids[:token]) == expected.encode()[:place].decode()

    monkeypatch.undo()
    noise = np.random.default_rng(0).permutation(inner.get_vocab_size())
    assert decoder.decode(noise) == inner.decode(noise.tolist())


# Commands


@pytest.mark.parametrize("layout", ["nanogpt", "llm.c", "sentences", "wide", "big-endian"])
def test_a_dry_run_reads_the_first_tokens(tmp_path, tokenizer, monkeypatch, layout):
    monkeypatch.setattr(file_samples, "PART_BYTES", 1 << 10)
    path = write(tmp_path / "tokens", layout, IDS * 5)
    data = token_config(tmp_path, path)
    whole = describe_store(build_store(data, tokenizer)[0])["sources"]["s0"]
    megabytes = path.stat().st_size / 2e6
    found = dry_run.estimate_preparation(data, tokenizer, 300, (), megabytes)["sources"]["s0"]
    assert found["sample_bytes"] < 0.6 * found["file_bytes"]
    for key in ("documents", "bytes", "tokens"):
        assert found[key] == pytest.approx(whole[key], rel=0.1)


def test_machines_share_the_work(tmp_path, tokenizer, text_store):
    data = token_config(tmp_path, write(tmp_path / "tokens", "megatron"))
    for stage in ("files", "read", "tokenizer", "tokens"):
        preparation.prepare_stage(data, tokenizer, 300, print, stage=stage, part=Part(), workers=1)
    store, lines = build_store(data, tokenizer)
    assert "goes on with what an earlier preparation left" in lines[0]
    assert same_tokens(store, text_store)


def test_documents_of_tokens_are_shown(tmp_path, tokenizer):
    write_nanogpt(tmp_path / "t.bin", SPELLED)
    store, _ = build_store(token_config(tmp_path, tmp_path / "t.bin"), tokenizer)
    array, place = show.locate_document(store, "train", 0)
    (ids,) = show.read_document(store, "train", array, place).values()
    rows = show.describe_tokens(show.TokenNames(store.tokenizer), ids)
    assert "".join(row["token"] for row in rows[:7]) == "letters"


def test_tokens_at_a_url_are_those_of_a_file(tmp_path, tokenizer, text_store):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    path = write(tmp_path / "tokens", "megatron")
    for file in (path, path.with_suffix(".idx")):
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    data = token_config(tmp_path, path)
    source = replace(data.sources[0], path="memory://bucket")
    store, _ = build_store(replace(data, sources=(source,)), tokenizer)
    memory.store.clear()
    assert same_tokens(store, text_store)
