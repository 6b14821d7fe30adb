import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm import config
from jaxlm.data.tokenizer import Tokenizer, byte_tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.vocabulary import BYTES, SpecialTokens, special_tokens

END = SpecialTokens("<|endoftext|>")
TEXTS = [
    "the cat sat on the mat. The cats, the hats! café naïve 1984 日本語, 20 (twenty) more?"
] * 20


def word_piece() -> Tokenizer:
    """Train a tokenizer like BERT's.

    It splits at spaces and punctuation, with "##" before a token that continues a word.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(
        TEXTS,
        tokenizers.trainers.WordPieceTrainer(
            vocab_size=90, special_tokens=special, show_progress=False
        ),
    )
    return Tokenizer(inner, SpecialTokens("[SEP]", "[CLS]", "[PAD]", "[MASK]"))


def sentence_piece() -> Tokenizer:
    """Return a tokenizer like Llama's.

    Spaces are "▁", and characters without a piece of their own fall back to bytes.
    """
    names = [
        "<unk>",
        "</s>",
        "<pad>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"acdehst.,1498é",
        "▁t",
    ]
    ids = {name: number for number, name in enumerate(names)}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=ids, merges=[("▁", "t")], byte_fallback=True, unk_token="<unk>")
    )
    prepare = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    inner.normalizer = tokenizers.normalizers.Sequence(prepare)
    steps = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    inner.decoder = tokenizers.decoders.Sequence(steps)
    inner.add_special_tokens(names[:3])
    return Tokenizer(inner, SpecialTokens("</s>", pad="<pad>"))


BPE, BYTE, WORD_PIECE, SENTENCE_PIECE = (
    train_bpe(TEXTS, 290, END),
    byte_tokenizer(END),
    word_piece(),
    sentence_piece(),
)


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the words of a text by the vocabulary's rule."""
    ids, rule = tokenizer.encode(text), tokenizer.vocabulary
    begins = 1 + np.flatnonzero(rule.first_class[ids[1:]] != rule.last_class[ids[:-1]])
    return [tokenizer.decode(part) for part in np.split(ids, begins)]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(
            ["the", "cats", "café", "日本語", "1984", "x2", "(a)", "...", "no!", "hat,mat"]
        ),
        min_size=1,
        max_size=12,
    )
)
def test_words_of_byte_level_tokens_are_gpt2s(parts):
    text = " ".join(parts)
    pattern = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    expected = [text[start:end].strip() for _, (start, end) in pattern.pre_tokenize_str(text)]
    for tokenizer in (BPE, BYTE):
        # A space that is a token of its own belongs to no word.
        assert [word.strip() for word in words(tokenizer, text) if word != " "] == expected


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(["the", "cats", "thematic", "1984", "(sat)", "cat,hat", "qqq", "more?"]),
        min_size=1,
        max_size=12,
    )
)
def test_words_of_word_pieces_are_the_librarys(parts):
    encoding = WORD_PIECE.inner.encode(" ".join(parts), add_special_tokens=False)
    ids, numbers, rule = np.array(encoding.ids), np.array(encoding.word_ids), WORD_PIECE.vocabulary
    joins = rule.first_class[ids[1:]] == rule.last_class[ids[:-1]]
    assert np.array_equal(joins, numbers[1:] == numbers[:-1])


def test_words_of_sentence_pieces():
    parts = words(SENTENCE_PIECE, "the cats, 1984 日本é. t")
    assert [word.strip() for word in parts if word != " "] == [
        "the",
        "cats",
        ",",
        "1984",
        "日本é",
        ".",
        "t",
    ]


def test_classes_of_single_tokens():
    def classes(tokenizer: Tokenizer, token: str) -> tuple[int, int, bool]:
        number, rule = tokenizer.inner.token_to_id(token), tokenizer.vocabulary
        ends_sentence = bool(rule.ends_sentence[number])
        return int(rule.first_class[number]), int(rule.last_class[number]), ends_sentence

    letter, digit, other, begins, ends = 0, 1, 2, -1, -2
    assert classes(BPE, "c") == (letter, letter, False)
    assert classes(BPE, "9") == (digit, digit, False)
    assert classes(BPE, "(") == (other, other, False)
    assert classes(BPE, ".") == (other, other, True)
    assert classes(BPE, "Ġ") == (begins, ends, False)
    assert classes(BPE, "Ġthe") == (begins, letter, False)
    assert classes(BPE, "Ã") == (letter, letter, False)  # the byte 0xC3, the first of é
    assert classes(SENTENCE_PIECE, "<0x0A>") == (begins, ends, False)
    assert classes(SENTENCE_PIECE, "<0x3F>") == (other, other, True)  # a question mark
    assert classes(SENTENCE_PIECE, "▁t") == (begins, letter, False)
    assert classes(WORD_PIECE, "!") == (begins, letter, True)


@pytest.mark.parametrize(
    "tokenizer",
    [BPE, BYTE, WORD_PIECE, SENTENCE_PIECE],
    ids=["bpe", "bytes", "wordpiece", "sentencepiece"],
)
def test_special_tokens_have_no_text_and_join_nothing(tokenizer):
    rule = tokenizer.vocabulary
    names = {token.content for token in tokenizer.inner.get_added_tokens_decoder().values()}
    special = {tokenizer.inner.id_to_token(number) for number in np.flatnonzero(rule.special)}
    assert special == names
    assert (rule.first_class[rule.special] == -1).all()
    assert (rule.last_class[rule.special] == -2).all()
    assert rule.last_class.max() <= 2 and -1 not in rule.last_class and -2 not in rule.first_class
    assert not rule.ends_sentence[rule.special].any()

    for table, dtype in (
        (rule.special, bool),
        (rule.first_class, np.int8),
        (rule.last_class, np.int8),
        (rule.ends_sentence, bool),
    ):
        assert table.dtype == dtype and len(table) == rule.size == tokenizer.size
    assert tokenizer.vocabulary is rule  # computed once


def test_roles_are_ids():
    rule = train_bpe(TEXTS, 290, SpecialTokens("</s>", "<s>", "<pad>", "<mask>", 4)).vocabulary
    assert (rule.end_of_text, rule.pad, rule.begin_of_text, rule.mask) == (0, 1, 2, 3)
    assert (rule.sentinels.tolist(), rule.sentinels.dtype) == ([289, 288, 287, 286], np.int32)
    assert np.flatnonzero(rule.special).tolist() == [0, 1, 2, 3, 286, 287, 288, 289]
    assert (BPE.vocabulary.pad, BPE.vocabulary.mask, len(BPE.vocabulary.sentinels)) == (
        None,
        None,
        0,
    )


def test_ids_that_no_token_has_are_no_text():
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "b": 4, "?": 2, "</s>": 5, "c d": 6}, unk_token="?")
    )
    inner.add_special_tokens(["</s>"])
    inner.add_tokens(["c d"])
    rule = Tokenizer(inner, SpecialTokens("</s>")).vocabulary
    assert rule.special.tolist() == [False, True, False, True, False, True, False]
    assert rule.first_class.tolist() == [-1, -1, -1, -1, -1, -1, 0]


def test_bytes_are_spelled_as_the_library_does():
    assert sorted(BYTES) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert all(
        tokenizers.decoders.ByteLevel().decode([name]) == chr(byte)
        for name, byte in BYTES.items()
        if byte < 128
    )


def test_special_tokens_follow_what_the_objective_needs():
    tokenizer = config.TokenizerConfig(
        begin_of_text="[CLS]", end_of_text="[SEP]", mask="[MASK]", sentinels=7
    )
    assert special_tokens(tokenizer, ()) == SpecialTokens("[SEP]", "[CLS]")
    assert special_tokens(tokenizer, ("pad", "mask")) == SpecialTokens(
        "[SEP]", "[CLS]", "<pad>", "[MASK]"
    )
    assert special_tokens(tokenizer, ("pad", "sentinels")) == SpecialTokens(
        "[SEP]", "[CLS]", "<pad>", None, 7
    )
    assert special_tokens(config.TokenizerConfig(), ()).keywords == {"end_of_text": "<|endoftext|>"}
    for needs in ((), ("pad", "sentinels")):
        special = special_tokens(tokenizer, needs)
        assert SpecialTokens(**special.keywords) == special
        assert len(special.names) == 1 + tokenizer.special_count(needs)
