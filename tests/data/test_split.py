from dataclasses import replace

import pytest
from support.stores import build_store, data_config, read_texts, read_tokens, write_corpus

from jaxlm.config import ConfigError
from jaxlm.data import describe_store


def test_hash_split_does_not_move_when_documents_are_added(tmp_path):
    first, _ = build_store(data_config(tmp_path, write_corpus(tmp_path / "c", 60)))
    second, _ = build_store(data_config(tmp_path, write_corpus(tmp_path / "c", 90)))
    (before,) = read_texts(first, first.validation)
    (after,) = read_texts(second, second.validation)
    assert 3 < len(before) < 24  # Binomial(60, 0.2): 12 +- 3.1
    assert set(before) < set(after)
    assert not set(before) & set(read_texts(second, second.train)[0])


def test_hash_split_of_few_documents_names_tail(tmp_path):
    message = (
        r"^data\.validation\.method: 'hash' needs at least 20 documents, found 3; 'tail' holds out"
    )
    with pytest.raises(ConfigError, match=message):
        build_store(data_config(tmp_path, write_corpus(tmp_path / "c", 3)))
    assert not list(tmp_path.glob("stores/*"))


@pytest.mark.parametrize(
    ("method", "share", "message"),
    [
        (
            "hash",
            1e-9,
            "the validation split of 40 documents is empty with a share of 1e-09: raise the share "
            "or use data.validation.method=tail, which cuts documents",
        ),
        (
            "tail",
            0.9999999,
            "the train split of 40 documents is empty with a share of 1: lower the share",
        ),
    ],
)
def test_an_empty_split_names_the_share_and_what_helps(tmp_path, method, share, message):
    with pytest.raises(ConfigError) as error:
        build_store(data_config(tmp_path, write_corpus(tmp_path / "c"), method=method, share=share))
    assert str(error.value) == f"data.validation.share: {message}"


def test_source_without_text_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    data = data_config(tmp_path, write_corpus(tmp_path / "c"), tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match=r"^data\.sources\.1\.path: .*empty\.txt holds no text"):
        build_store(data)


def test_tail_split_of_one_file_is_its_first_bytes(tmp_path):
    content = ("plain text " * 90).encode()
    (tmp_path / "one.txt").write_bytes(content)
    store, _ = build_store(data_config(tmp_path, tmp_path / "one.txt", method="tail", share=0.1))
    end = store.tokenizer.end_of_text
    assert read_tokens(store.train[0]).tolist() == [*content[:891], end]
    assert read_tokens(store.validation[0]).tolist() == [*content[891:], end]


# Of 100 bytes the shares leave 50, 51 and 52, and a character has 4.
@pytest.mark.parametrize(("share", "kept"), [(0.5, 12), (0.49, 12), (0.48, 13)])
def test_tail_split_never_cuts_a_character(tmp_path, share, kept):
    (tmp_path / "one.txt").write_text("🙂" * 25)
    store, _ = build_store(data_config(tmp_path, tmp_path / "one.txt", method="tail", share=share))
    assert read_texts(store, store.train) == [["🙂" * kept]]
    assert read_texts(store, store.validation) == [["🙂" * (25 - kept)]]


def test_tail_split_is_taken_from_each_source(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 100)
    for number in range(4):
        (tmp_path / f"b{number}.txt").write_text(str(number) * 50)
    paths = tmp_path / "a.txt", tmp_path / "b*.txt"
    store, _ = build_store(data_config(tmp_path, *paths, method="tail", share=0.4))
    assert read_texts(store, store.train) == [["a" * 60], ["0" * 50, "1" * 50, "2" * 20]]
    assert read_texts(store, store.validation) == [["a" * 40], ["2" * 30, "3" * 50]]


@pytest.fixture
def with_validation_file(tmp_path):
    """The config of two files for training and v.txt for validation."""
    for name, text in (("a", "train"), ("b", "more"), ("v", "held out")):
        (tmp_path / f"{name}.txt").write_text(text)
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    return data_config(tmp_path, *paths, method="source", path=str(tmp_path / "v.txt"))


def test_validation_from_files_of_their_own(with_validation_file):
    store, _ = build_store(with_validation_file)
    assert read_texts(store, store.train) == [["train"], ["more"]]
    assert read_texts(store, store.validation) == [["held out"]]


def test_validation_files_decide_the_store(with_validation_file, tmp_path):
    build_store(with_validation_file)
    (tmp_path / "v.txt").write_text("changed")
    store, _ = build_store(with_validation_file)
    assert read_texts(store, store.validation) == [["changed"]]


def test_missing_validation_file_names_its_key(with_validation_file, tmp_path):
    (tmp_path / "v.txt").unlink()
    with pytest.raises(ConfigError, match=r"^data\.validation\.path: .*v\.txt: no such file"):
        build_store(with_validation_file)


FORMATS = [  # the training file, its format, the validation file, the validation's documents
    ("train.json", "jsonl", "valid.json", ["one", "two"]),
    ("train.jsonl", "auto", "valid.jsonl", ["one", "two"]),
    ("train.json", "jsonl", "valid.jsonl", ["one", "two"]),
    ("train.txt", "text", "valid.jsonl", ["one", "two"]),
    ("train.txt", "text", "valid.json", ['{"body": "one"}\n{"body": "two"}\n']),
]


@pytest.mark.parametrize(("train", "format", "validation", "documents"), FORMATS)
def test_validation_files_are_read_like_the_first_source(
    tmp_path, train, format, validation, documents
):
    for name in (train, validation):
        (tmp_path / name).write_text('{"body": "one"}\n{"body": "two"}\n')
    data = data_config(tmp_path, tmp_path / train, method="source", path=str(tmp_path / validation))
    data = replace(data, sources=(replace(data.sources[0], format=format, text_key="body"),))
    store, _ = build_store(data)
    assert read_texts(store, store.validation) == [documents]


def test_a_source_named_as_the_validation_files_has_a_row_of_its_own(with_validation_file):
    first, *others = with_validation_file.sources
    sources = (replace(first, name="validation"), *others)
    store, _ = build_store(replace(with_validation_file, sources=sources))
    rows = describe_store(store)["sources"]
    assert {name: row["kept"] for name, row in rows.items()} == {
        "validation": 1,
        "s1": 1,
        "validation files": 1,
    }
