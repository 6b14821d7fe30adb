import pytest
from support.stores import build_store, data_config, read_texts, read_tokens, write_corpus

from jaxlm.config import ConfigError


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
    assert not [path for path in (tmp_path / "stores").iterdir() if path.is_dir()]


def test_empty_split_names_the_share(tmp_path):
    message = r"^data\.validation: the validation split is empty: 40 documents, share 1e-09"
    with pytest.raises(ConfigError, match=message):
        build_store(data_config(tmp_path, write_corpus(tmp_path / "c"), share=1e-9))


def test_source_without_text_is_named(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    data = data_config(tmp_path, write_corpus(tmp_path / "c"), tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match=r"^data\.sources: .*empty\.txt holds no text"):
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
