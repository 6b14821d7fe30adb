import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import ConfigError
from jaxlm.data import tokenizer

END = "<|endoftext|>"
TEXTS = ["def f(x):\n    return x + 1\n\n", "the cat sat on the mat. the cat's hat\n", "naïve café — 日本語 🙂\n"] * 30


@pytest.fixture(scope="module")
def bpe() -> tokenizer.Tokenizer:
    return tokenizer.train_bpe(iter(TEXTS), 300, END)


BYTES = tokenizer.byte_tokenizer(END)


@settings(deadline=None)
@given(st.text())
def test_byte_ids_are_the_bytes_and_equal_the_librarys(text):
    ids = BYTES.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode()) == BYTES.inner.encode(text, add_special_tokens=False).ids
    assert BYTES.decode(ids) == text


@settings(deadline=None)
@given(st.lists(st.integers(0, 256)))
def test_bytes_decode_as_the_library_does_even_where_they_are_no_text(ids):
    assert BYTES.decode(np.array(ids, np.int32)) == BYTES.inner.decode(ids)


@settings(deadline=None)
@given(st.lists(st.sampled_from([-5, 0, 65, 195, 169, 255, 256, 300, 399, 400, 10**6])))
def test_decode_never_fails_and_marks_ids_outside_the_vocabulary(ids):
    known = [i for i in ids if 0 <= i <= 256]
    text = BYTES.decode(ids)
    assert text.count("\ufffd") >= len(ids) - len(known)
    if all(i < 128 for i in known):
        assert text == "".join("\ufffd" if i not in known else chr(i) for i in ids)


def test_decode_of_bpe_marks_ids_outside_the_vocabulary(bpe):
    ids = bpe.encode("the cat").tolist()
    assert bpe.decode([*ids, bpe.size, -1, bpe.end_of_text, *ids]) == "the cat\ufffd\ufffdthe cat"
    assert bpe.decode(np.zeros(0)) == ""


@settings(deadline=None)
@given(st.text())
def test_bpe_round_trip_of_any_text(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


def test_special_token_in_a_document_is_plain_text(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    for tok in (BYTES, bpe, tokenizer.load_tokenizer(tmp_path / "tokenizer.json", END)):
        text = f"a{END}b"
        for ids in (tok.encode(text), tok.encode_batch([text])[0]):
            assert tok.end_of_text not in ids
            assert tok.decode(ids) == text


def test_bpe_has_all_bytes_and_the_asked_size(bpe):
    assert (bpe.size, bpe.end_of_text) == (300, 0)
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(bpe.inner.get_vocab())
    assert len(bpe.encode("the cat sat on the mat")) < 10
    assert tokenizer.train_bpe(["aa"], 5000, END).size == 258  # one merge is all there is


def test_training_is_deterministic_across_processes(bpe):
    script = f"from jaxlm.data.tokenizer import train_bpe; print(train_bpe({TEXTS!r}, 300, {END!r}).hash)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert found == bpe.hash


def test_saved_tokenizers_load_equal(bpe, tmp_path):
    for tok in (BYTES, bpe):
        tok.save(tmp_path / "tokenizer.json")
        loaded = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", END)
        assert (loaded.hash, loaded.size, loaded.end_of_text, loaded.is_bytes) == (tok.hash, tok.size, tok.end_of_text, tok.is_bytes)
    assert BYTES.is_bytes
    assert not bpe.is_bytes


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["word", " ", "\n", "\n\n", "\r\n", "\t", "é", "'s", "\x1c", "\x85", "\u2028", "12"]), max_size=60))
def test_long_texts_are_cut_only_where_tokens_end(bpe, parts):
    text, whole = "".join(parts), tokenizer.PIECE_CHARACTERS
    try:
        tokenizer.PIECE_CHARACTERS = 3
        pieces = list(bpe.pieces(text))
    finally:
        tokenizer.PIECE_CHARACTERS = whole
    assert "".join(pieces) == text
    assert np.concatenate(bpe.encode_batch(pieces)).tolist() == bpe.encode(text).tolist()


def test_long_texts_are_cut(bpe):
    text = "some words\nand more\n" * 20_000
    for tok in (bpe, BYTES):
        pieces = list(tok.pieces(text))
        assert len(pieces) == len(text) // (tokenizer.PIECE_CHARACTERS + 20) + 1
        assert "".join(pieces) == text


def test_batches_keep_their_order(bpe):
    texts = [*TEXTS[:3], "", "x\ny\n" * 50_000, "z"]
    assert [bpe.decode(ids) for ids in bpe.encode_batch(texts)] == texts


def word_level(path, *special):
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 7, "[UNK]": 1}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(special))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(path))
    return path


def test_any_tokenizer_file_is_read_without_truncation_or_padding(tmp_path):
    tok = tokenizer.load_tokenizer(word_level(tmp_path / "t.json", "[SEP]"), "[SEP]")
    assert tok.encode("a b a c").tolist() == [0, 7, 0, 1]
    assert tok.size == 8  # ids may have holes: one more than the largest
    assert tok.decode([0, 7, 5, 8]).endswith("\ufffd")


def test_unusable_tokenizer_files_name_the_key(tmp_path):
    path = word_level(tmp_path / "t.json", "<|end_of_text|>", "[PAD]")
    with pytest.raises(
        ConfigError, match=r"^tokenizer\.end_of_text: .*t\.json has no token '<\|endoftext\|>' \(did you mean '<\|end_of_text"
    ):
        tokenizer.load_tokenizer(path, END)
    with pytest.raises(ConfigError, match=r"\(its special tokens: '<\|end_of_text\|>', '\[PAD\]'\)"):
        tokenizer.load_tokenizer(path, "zzz")
    path.write_text('{"version": 1}')
    with pytest.raises(ConfigError, match=r"^tokenizer\.path: .*t\.json: not a tokenizer\.json"):
        tokenizer.load_tokenizer(path, END)
    with pytest.raises(ConfigError, match=r"^tokenizer\.path: .*none\.json: No such file"):
        tokenizer.load_tokenizer(tmp_path / "none.json", END)
