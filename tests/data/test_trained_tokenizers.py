"""Tokenizers that are trained here keep every text, and others encode as they do."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tokenizer_files import LINES
from tokenizers import BertWordPieceTokenizer

from jaxlm.config import ObjectiveConfig, TokenizerConfig
from jaxlm.config.data import SPLIT_BY
from jaxlm.data.tokenizer import Tokenizer, measure_fertility
from jaxlm.data.trained_tokenizers import TRAINERS, train_unigram, train_word_piece
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.interop import tokenizer as hf_tokenizer
from jaxlm.interop.write_tokenizer import write_tokenizer

ALL = SpecialTokens("</s>", "<s>", "<pad>", "<mask>", 3)
TEXTS = [*LINES, "The end, in 1984: naïve cafés of 日本語 🙂 and 12345 birds.\n\n\tx = y\n"] * 20
BOUND = 12


def train(kind: str, splits_by: str | None = None) -> Tokenizer:
    return TRAINERS[kind](iter(TEXTS), 500, ALL, splits_by or SPLIT_BY[kind][0], BOUND)


@pytest.fixture(scope="module", params=SPLIT_BY)
def of_kind(request) -> tuple[str, Tokenizer]:
    return request.param, train(request.param)


LOSSLESS = [(kind, name) for kind in ("bpe", "unigram") for name in SPLIT_BY[kind]]


@pytest.fixture(scope="module", params=LOSSLESS, ids="-".join)
def lossless(request) -> Tokenizer:
    return train(*request.param)


# What a tokenizer writes itself, and what it might read as its own.
MARKS = [
    "▁",
    "Ġ",
    "\ufdd0",
    "\ufdd01",
    "<unk>",
    "<0x41>",
    *ALL.names,
    "##a",
    " ",
    "  ",
    "\n",
    "the",
]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(MARKS) | st.text(max_size=20)).map("".join))
def test_every_text_is_read_back(lossless, text):
    ids = lossless.encode(text)
    assert lossless.decode(ids) == text
    assert not lossless.vocabulary.special[ids].any()


def test_special_tokens_come_first_and_sentinels_last(of_kind):
    kind, tok = of_kind
    unknown = {"bpe": [], "wordpiece": ["[UNK]"], "unigram": ["<unk>"]}[kind]
    first = [*ALL.named.values(), *unknown]
    names = [tok.inner.id_to_token(number) for number in range(tok.size)]
    assert names[: len(first)] == first
    assert names[-3:] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert len(first) + 3 < tok.size <= 500
    special = np.flatnonzero(tok.vocabulary.special).tolist()
    assert special == [*range(len(first)), *range(tok.size - 3, tok.size)]


def test_no_word_is_longer_than_the_bound(of_kind):
    kind, tok = of_kind
    assert tok.inner.pre_tokenizer is not None
    for text in ("x" * 100, "🙂" * 100, "日本語" * 40):
        words = tok.inner.pre_tokenizer.pre_tokenize_str(text)
        assert max(end - start for _, (start, end) in words) <= BOUND
    assert len(tok.encode("the" * 4000)) >= 1000
    if kind == "wordpiece":  # BERT takes a word of more than 100 characters for an unknown one
        assert "[UNK]" not in tok.inner.encode("the" * 4000).tokens


def test_long_stretches_do_not_hold_unigram_up():
    """All of this text would take a quarter of a minute, and few words do."""
    letters = "".join(map("ACGT".__getitem__, np.random.default_rng(0).integers(4, size=500_000)))
    tok = train_unigram([letters], 2000, ALL, "gpt2", 256)
    assert tok.decode(tok.encode(letters[:9999])) == letters[:9999]


MANY = "".join(map(chr, range(0x4E00, 0x5A00)))  # more characters than ids


@pytest.mark.parametrize("kind", SPLIT_BY)
@pytest.mark.parametrize("texts", [[], [""], ["a"], [MANY, "the river " * 9]])
def test_texts_with_too_little_or_too_much_still_give_a_tokenizer(kind, texts):
    tok = TRAINERS[kind](texts, 400, ALL, SPLIT_BY[kind][0], BOUND)
    assert tok.size <= 400 and tok.inner.get_vocab_size() == tok.size
    if kind != "wordpiece":
        assert tok.decode(tok.encode("the 漢🙂")) == "the 漢🙂"


def test_gpt4_takes_three_digits_at_once():
    digits = TRAINERS["bpe"](["1234567 1234567"] * 9, 400, ALL, "gpt4", None)
    assert digits.inner.encode("1234567").tokens == ["123", "456", "7"]


def test_word_piece_is_the_same_in_every_process():
    script = (
        "from jaxlm.data.trained_tokenizers import *; "
        f"print(train_word_piece({LINES * 9!r}, 300, SpecialTokens('</s>')).hash)"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    ours = train_word_piece(LINES * 9, 300, SpecialTokens("</s>"))
    assert child.stdout.strip() == ours.hash


def test_word_piece_encodes_as_bert_does():
    names = SpecialTokens("[SEP]", "[CLS]", "[PAD]", "[MASK]")
    tok = train_word_piece(TEXTS, 400, names)
    model = json.loads(tok.inner.to_str())["model"]
    reference = BertWordPieceTokenizer(model["vocab"], lowercase=False)
    for text in (*TEXTS[:20], "Unknown: ω, the-end's birds… 3.14 日x本\u0301 " + "a" * 99):
        expected = reference.encode(text, add_special_tokens=False).ids
        assert tok.encode(text).tolist() == expected
    assert "[UNK]" in tok.inner.encode("ω").tokens


def test_unigram_encodes_as_sentencepiece_does():
    sentencepiece = pytest.importorskip("sentencepiece")
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    tok = train_unigram(TEXTS, 700, SpecialTokens("</s>"), "whitespace")
    proto = pb2.ModelProto()
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id = 1
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    for number, (piece, score) in enumerate(json.loads(tok.inner.to_str())["model"]["vocab"]):
        kind = {0: 3, 1: 2}.get(number, 6 if piece.startswith("<0x") else 1)
        proto.pieces.add(piece=piece, score=score, type=kind)
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    for text in (*TEXTS[:20], "  ω <0x41> the  river.\n🙃"):
        assert tok.encode(text).tolist() == reference.encode(text)


@pytest.mark.parametrize("kind", SPLIT_BY)
def test_exported_tokenizers_give_the_same_ids_in_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = TokenizerConfig(kind=kind, begin_of_text="<s>", end_of_text="</s>", sentinels=3)
    tok = TRAINERS[kind](TEXTS, 500, SpecialTokens("</s>", "<s>", "<pad>", "<mask>"))
    frame = hf_tokenizer.run_tokenizer_frame(made, ObjectiveConfig(kind="masked"), tok.inner)
    write_tokenizer(tmp_path, tok.inner.to_str(), frame, 64)

    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in (TEXTS[-1], "the river▁ 🙃 went\n"):
        ids = tok.encode(text).tolist()
        framed = [tok.vocabulary.begin_of_text, *ids, tok.end_of_text]
        assert loaded(text)["input_ids"] == framed
        assert loaded.decode(framed, skip_special_tokens=True) == tok.decode(ids)
    unknown = {"bpe": None, "wordpiece": "[UNK]", "unigram": "<unk>"}[kind]
    assert loaded.unk_token == unknown


def test_fertility_is_bytes_of_a_token_and_tokens_of_a_word():
    tok = train("bpe")
    texts = ["the birds", "é\n"]
    tokens = sum(len(tok.encode(text)) for text in texts)
    assert measure_fertility(tok, texts) == (12 / tokens, tokens / 3)
    assert measure_fertility(tok, []) == (0, 0)

    def endless():
        while True:
            yield "the birds " * 10_000

    assert measure_fertility(tok, endless()).tokens_per_word > 0
