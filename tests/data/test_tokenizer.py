import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import ConfigError
from jaxlm.data import tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import SpecialTokens

END = "<|endoftext|>"
PLAIN = SpecialTokens(END)
ALL = SpecialTokens(END, "<s>", "<pad>", "<mask>", 3)
TEXTS = [
    "def f(x):\n    return x + 1\n\n",
    "the cat sat on the mat. the cat's hat\n",
    "naïve café — 日本語 🙂\n",
] * 30


@pytest.fixture(scope="module")
def bpe() -> tokenizer.Tokenizer:
    return train_bpe(iter(TEXTS), 300, PLAIN)


BYTES = tokenizer.byte_tokenizer(PLAIN)


@settings(deadline=None)
@given(st.text())
def test_byte_ids_are_the_bytes_and_equal_the_librarys(text):
    ids = BYTES.encode(text)
    assert ids.dtype == np.int32
    assert (
        ids.tolist()
        == list(text.encode())
        == BYTES.inner.encode(text, add_special_tokens=False).ids
    )
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
    for tok in (BYTES, bpe, tokenizer.load_tokenizer(tmp_path / "tokenizer.json", PLAIN)):
        text = f"a{END}b"
        for ids in (tok.encode(text), tok.encode_batch([text])[0]):
            assert tok.end_of_text not in ids
            assert tok.decode(ids) == text


def test_a_special_token_that_a_run_has_no_use_for_is_plain_text_too(bpe, tmp_path):
    inner = tokenizers.Tokenizer.from_str(bpe.inner.to_str())
    inner.add_special_tokens(["<|im_end|>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    tok = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", PLAIN)
    ids = tok.encode("a<|im_end|>b")
    assert inner.token_to_id("<|im_end|>") not in ids and tok.decode(ids) == "a<|im_end|>b"


def test_bpe_has_all_bytes_and_the_requested_size(bpe):
    assert (bpe.size, bpe.end_of_text) == (300, 0)
    assert set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) <= set(bpe.inner.get_vocab())
    assert len(bpe.encode("the cat sat on the mat")) < 10
    assert train_bpe(["aa"], 5000, PLAIN).size == 258  # one merge is all there is


def test_training_is_deterministic_across_processes(bpe):
    script = (
        "from jaxlm.data.trained_tokenizers import *; "
        f"print(train_bpe({TEXTS!r}, 300, SpecialTokens({END!r})).hash)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == bpe.hash


def test_saved_tokenizers_load_equal(bpe, tmp_path):
    for tok in (BYTES, bpe):
        tok.save(tmp_path / "tokenizer.json")
        loaded = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", PLAIN)
        assert (loaded.hash, loaded.size, loaded.end_of_text, loaded.is_bytes) == (
            tok.hash,
            tok.size,
            tok.end_of_text,
            tok.is_bytes,
        )
    assert BYTES.is_bytes
    assert not bpe.is_bytes


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(
            ["word", " ", "\n", "\n\n", "\r\n", "\t", "é", "'s", "\x1c", "\x85", "\u2028", "12"]
        ),
        max_size=60,
    )
)
def test_long_texts_are_split_only_where_tokens_end(bpe, parts):
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer, "PIECE_CHARACTERS", 3)
        pieces = list(bpe.split_text(text))
    assert "".join(pieces) == text
    assert np.concatenate(bpe.encode_batch(pieces)).tolist() == bpe.encode(text).tolist()


def test_long_texts_are_split(bpe):
    text = "some words\nand more\n" * 20_000
    for tok in (bpe, BYTES):
        pieces = list(tok.split_text(text))
        assert len(pieces) == len(text) // (tokenizer.PIECE_CHARACTERS + 20) + 1
        assert "".join(pieces) == text


def test_batches_keep_their_order(bpe):
    texts = [*TEXTS[:3], "", "x\ny\n" * 50_000, "z"]
    assert [bpe.decode(ids) for ids in bpe.encode_batch(texts)] == texts


def word_level(path, *special):
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 7, "[UNK]": 1}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(special))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(path))
    return path


def test_any_tokenizer_file_is_read_without_truncation_or_padding(tmp_path):
    tok = tokenizer.load_tokenizer(word_level(tmp_path / "t.json", "[SEP]"), SpecialTokens("[SEP]"))
    assert tok.encode("a b a c").tolist() == [0, 7, 0, 1]
    assert tok.size == 8  # ids may have holes: one more than the largest
    assert tok.decode([0, 7, 5, 8]).endswith("\ufffd")


def test_unusable_tokenizer_files_name_the_key(tmp_path):
    path = word_level(tmp_path / "t.json", "<|end_of_text|>", "[PAD]")
    with pytest.raises(
        ConfigError,
        match=r"^tokenizer\.end_of_text: .*t\.json has no token '<\|endoftext\|>' "
        r"\(did you mean '<\|end_of_text",
    ):
        tokenizer.load_tokenizer(path, PLAIN)
    with pytest.raises(
        ConfigError, match=r"\(its special tokens: '<\|end_of_text\|>', '\[PAD\]'\)"
    ):
        tokenizer.load_tokenizer(path, SpecialTokens("zzz"))
    path.write_text('{"version": 1}')
    with pytest.raises(ConfigError, match=r"^tokenizer\.path: .*t\.json: not a tokenizer\.json"):
        tokenizer.load_tokenizer(path, PLAIN)
    with pytest.raises(ConfigError, match=r"^tokenizer\.path: .*none\.json: No such file"):
        tokenizer.load_tokenizer(tmp_path / "none.json", PLAIN)


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
def test_a_tokenizer_that_would_never_end_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(ConfigError, match=rf"^tokenizer\.path: {path}: is no regular file$"):
        tokenizer.load_tokenizer(Path(path), PLAIN)


def test_a_tokenizer_file_may_have_a_byte_order_mark(bpe, tmp_path):
    bpe.save(tmp_path / "tokenizer.json")
    content = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert tokenizer.load_tokenizer(tmp_path / "tokenizer.json", PLAIN).hash == bpe.hash


def test_a_long_list_of_special_tokens_is_shortened(tmp_path):
    path = word_level(tmp_path / "t.json", *[f"[{number}]" for number in range(300)])
    with pytest.raises(ConfigError, match=r"'\[19\]' and 280 more\)$"):
        tokenizer.load_tokenizer(path, SpecialTokens("zzz"))


def test_special_tokens_of_a_trained_bpe_come_first_and_sentinels_last():
    tok = train_bpe(iter(TEXTS), 300, ALL)
    ids = tok.inner.get_vocab(with_added_tokens=True)
    assert [ids[name] for name in (END, "<pad>", "<s>", "<mask>")] == [0, 1, 2, 3]
    assert [ids[f"<extra_id_{number}>"] for number in range(3)] == [299, 298, 297]
    assert tok.size == len(ids) == 300
    assert sorted(
        ids[character] for character in tokenizers.pre_tokenizers.ByteLevel.alphabet()
    ) == list(range(4, 260))
    merges = train_bpe(iter(TEXTS), 294, PLAIN).inner.get_vocab()
    assert {token: number + 3 for token, number in merges.items() if number > 256} == {
        t: n for t, n in ids.items() if 259 < n < 297
    }
    some = train_bpe(["aa"], 5000, SpecialTokens(END, pad="<pad>", sentinels=2))
    assert some.size == 261  # one merge is all there is
    assert some.inner.id_to_token(260) == "<extra_id_0>"


def test_special_tokens_of_bytes_follow_them():
    tok = tokenizer.byte_tokenizer(ALL)
    names = [END, "<pad>", "<s>", "<mask>", "<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert [tok.inner.id_to_token(256 + place) for place in range(7)] == names
    assert (tok.size, tok.end_of_text, tok.is_bytes) == (263, 256, True)


def test_tokenizers_without_further_special_tokens_are_fixed_for_ever(bpe):
    """The names of stores depend on these hashes."""
    assert (
        tokenizer.byte_tokenizer(SpecialTokens("<eos>")).hash
        == "626c39a6e13ff1b5aac3ee31be21d0676862f5d9e0cd4609b871f35bbb852ccc"
    )
    assert bpe.hash == "756895ccd8796fc78a61cd31e217105ef95114fab63cc7aec4ddf66ea72f9004"


@pytest.fixture(scope="module", params=["bytes", "bpe", "file"])
def full(request, tmp_path_factory) -> tokenizer.Tokenizer:
    """Return a tokenizer with all special tokens."""
    if request.param == "bytes":
        return tokenizer.byte_tokenizer(ALL)
    trained = train_bpe(iter(TEXTS), 300, ALL)
    if request.param == "bpe":
        return trained
    path = tmp_path_factory.mktemp("saved") / "tokenizer.json"
    trained.save(path)
    return tokenizer.load_tokenizer(path, ALL)


def test_special_tokens_in_a_document_are_plain_text(full):
    text = f"a{END}<s><pad> <mask>b<extra_id_0><extra_id_2>"
    for ids in (full.encode(text), full.encode_batch([text])[0]):
        assert not full.vocabulary.special[ids].any()
        assert full.decode(ids) == text


def test_special_tokens_are_shown_by_name_and_skipped_in_decoding(full):
    words = full.vocabulary
    ids = [
        words.begin_of_text,
        *full.encode("the cat"),
        words.mask,
        words.sentinels[1],
        *full.encode("é"),
        words.pad,
        words.end_of_text,
    ]
    assert full.show(ids) == f"<s>the cat<mask><extra_id_1>é<pad>{END}"
    assert full.show([ids[0], full.size, -1]) == "<s>\ufffd\ufffd"
    assert full.decode(ids) == "the caté"
    assert full.show([]) == ""


def test_saved_tokenizers_keep_their_special_tokens(full, tmp_path):
    full.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", ALL)
    assert (loaded.hash, loaded.size, loaded.special, loaded.is_bytes) == (
        full.hash,
        full.size,
        ALL,
        full.is_bytes,
    )
    fewer = tokenizer.load_tokenizer(tmp_path / "tokenizer.json", PLAIN)  # for another objective
    assert (fewer.size, fewer.is_bytes) == (full.size, full.is_bytes)
    assert fewer.decode([full.vocabulary.mask]) == ""


def unigram(path, *special):
    """Write a tokenizer like T5's: the special tokens are pieces of the model as well."""
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁a", -2.0),
        *((letter, -3.0) for letter in "ab</s>."),
    ]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 2))
    inner.normalizer = tokenizers.normalizers.NFKC()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.add_special_tokens(["<pad>", "</s>", "<unk>", *special])
    inner.save(str(path))
    return path


def test_special_tokens_that_the_model_knows_as_words_are_plain_text_too(tmp_path):
    tok = tokenizer.load_tokenizer(unigram(tmp_path / "t.json"), SpecialTokens("</s>", pad="<pad>"))
    # The library alone reads the special token.
    assert "</s>" in tok.inner.encode("ab</s>", add_special_tokens=False).tokens
    for text in ("ab</s>", "</s></s>", "a </s> b", "<pad>"):
        assert not {tok.end_of_text, tok.vocabulary.pad} & set(tok.encode(text).tolist())
    assert "".join(tok.decode(tok.encode("ab</s>b")).split()) == "ab</s>b"
    assert tok.encode("ab").tolist() == tok.inner.encode("ab", add_special_tokens=False).ids
    assert tok.end_of_text not in tok.encode("b\uff1c/s\uff1eb")  # NFKC makes "</s>" of it


def test_sentinels_of_a_file_are_those_that_it_has(tmp_path):
    path = unigram(tmp_path / "t.json", *[f"<extra_id_{number}>" for number in (5, 2, 1, 0)])
    tok = tokenizer.load_tokenizer(path, SpecialTokens("</s>", pad="<pad>", sentinels=100))
    assert [tok.inner.id_to_token(number) for number in tok.vocabulary.sentinels.tolist()] == [
        "<extra_id_0>",
        "<extra_id_1>",
        "<extra_id_2>",
    ]
    assert tokenizer.load_tokenizer(path, SpecialTokens("</s>", sentinels=2)).special.sentinels == 2


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (
            SpecialTokens("</s>", "[CLS]"),
            r"tokenizer\.begin_of_text: .*t\.json has no token '\[CLS\]' "
            r"\(its special tokens: '<pad>', '</s>'",
        ),
        (
            SpecialTokens("</s>", pad="<pat>"),
            r"tokenizer\.pad: .*t\.json has no token '<pat>' \(did you mean '<pad>'\?\)",
        ),
        (SpecialTokens("</s>", mask="<mask>"), r"tokenizer\.mask: .*t\.json has no token '<mask>'"),
        (
            SpecialTokens("</s>", sentinels=100),
            r"tokenizer\.sentinels: .*t\.json has no token '<extra_id_0>'",
        ),
    ],
)
def test_special_tokens_that_a_file_lacks_name_the_key(tmp_path, special, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        tokenizer.load_tokenizer(unigram(tmp_path / "t.json"), special)


def test_special_tokens_of_a_file_keep_their_flags(tmp_path):
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "<mask>": 1, "</s>": 2}, unk_token="a")
    )
    inner.add_special_tokens(
        ["</s>", tokenizers.AddedToken("<mask>", lstrip=True, special=True, normalized=False)]
    )
    inner.save(str(tmp_path / "t.json"))
    tok = tokenizer.load_tokenizer(tmp_path / "t.json", SpecialTokens("</s>", mask="<mask>"))
    assert tok.inner.get_added_tokens_decoder()[1].lstrip
