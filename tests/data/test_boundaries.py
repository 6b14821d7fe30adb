"""Long texts are encoded in pieces whose ids are those of the whole text, for every tokenizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizer_files
from support.stores import data_config, read_texts
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.data import SpecialTokens, prepare, tokenizer
from jaxlm.data.boundaries import GPT2, WORD_PATTERNS
from jaxlm.data.trained_tokenizers import TRAINERS
from jaxlm.evaluation import texts as evaluation_texts

END = "<|endoftext|>"
# A space may not be a part of these words; a token that has one inside joins two words.
LETTERS = sorted({*"abcdefghijklmnopqrstuvwxyzABC0123456789.,!?'-\n\t<>/|[]", "é", "漢", "字", "₂"})
MERGES = ["th", "he", "in", "12", "▁t", "▁th", "▁▁", "▁▁▁▁", "Ġt", "Ġth", "ĠĠ", "in▁", "\n\n", "'s"]


def bpe(*more_tokens: str, **options) -> Tokenizer:
    """Return a BPE that joins MERGES, with bytes for unknown characters."""
    tokens = ["<unk>", END, "▁", "Ġ", " ", *LETTERS, *(f"<0x{byte:02X}>" for byte in range(256))]
    pairs = []
    for token in [*MERGES[:11], *MERGES[12:], *more_tokens]:
        # The longest known token that begins it, and the rest.
        cut = max(size for size in range(1, len(token)) if token[:size] in tokens)
        if token[cut:] not in tokens:
            tokens.append(token[cut:])
        pairs.append((token[:cut], token[cut:]))
        tokens.append(token)
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    options = {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True} | options
    return Tokenizer(models.BPE(vocabulary, pairs, **options))


def with_steps(inner, normalizer=None, pre_tokenizer=None, added=()):
    if normalizer is not None:
        inner.normalizer = normalizer
    if pre_tokenizer is not None:
        inner.pre_tokenizer = pre_tokenizer
    inner.add_special_tokens([END])
    inner.add_tokens(list(added))
    return inner


def word_piece():
    return tokenizer_files.bert()


def unigram(**metaspace):
    inner = tokenizer_files.t5()
    inner.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    return inner


def word_level():
    words = {"<unk>": 0, "the": 1, "12": 2, "a": 3}
    return Tokenizer(models.WordLevel(words, unk_token="<unk>"))


def trained(kind="bpe", *split):
    return TRAINERS[kind](tokenizer_files.LINES, 400, SpecialTokens(END), *split).inner


def split(pattern, behavior="isolated", invert=False):
    words = pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, bytes_])


def byte_level(pre_tokenizer, normalizer=None):
    return with_steps(tokenizer_files.byte_level((END,)), normalizer, pre_tokenizer)


def sequence(*steps):
    return normalizers.Sequence(list(steps))


PREPEND = sequence(normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"))
SENTENCE_PIECE = sequence(
    normalizers.Nmt(),
    normalizers.NFKC(),
    normalizers.Strip(left=False, right=True),
    normalizers.Replace(Regex(" {2,}"), "▁"),
)
ADDED = [AddedToken("<tag>", normalized=False), AddedToken("zz", normalized=True)]

KNOWN = {
    "trained BPE": trained,
    "trained BPE, bound": lambda: trained("bpe", "gpt4", 5),
    "trained BPE, white space": lambda: trained("bpe", "whitespace", 5),
    "trained BPE, bound alone": lambda: trained("bpe", "none", 3),
    "trained WordPiece": lambda: trained("wordpiece", "bert", 5),
    "trained Unigram": lambda: trained("unigram", "gpt2", 5),
    "GPT-2": tokenizer_files.gpt2,
    "RoBERTa": tokenizer_files.roberta,
    "BERT": word_piece,
    "T5": tokenizer_files.t5,
    "Llama": tokenizer_files.llama,
    "a space in front": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "GPT-2 and NFC": lambda: byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()
    ),
    "GPT-2 and NFKC, newlines as spaces": lambda: byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        sequence(normalizers.Nmt(), normalizers.NFKC(), normalizers.Lowercase()),
    ),
    **{
        f"pattern {number}": lambda pattern=pattern: byte_level(split(pattern))
        for number, pattern in enumerate(WORD_PATTERNS)
    },
    "GPT-2 inverted": lambda: byte_level(split(GPT2, "removed", invert=True)),
    "digits": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "digits by pattern": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
                pre_tokenizers.Punctuation(),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    ),
    "Unigram, SentencePiece": lambda: with_steps(unigram(prepend_scheme="always"), SENTENCE_PIECE),
    "Unigram, first": lambda: unigram(prepend_scheme="first"),
    "Unigram, never": lambda: unigram(prepend_scheme="never"),
    "Unigram, old T5": lambda: with_steps(
        tokenizer_files.t5(),
        None,
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "Llama 2": lambda: with_steps(bpe(), PREPEND),
    "Llama 2 and NFKC": lambda: with_steps(
        bpe(),
        sequence(normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")),
    ),
    "Mistral, first": lambda: with_steps(
        bpe(), None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "Mistral, always": lambda: with_steps(
        bpe(), None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    ),
    "Gemma": lambda: with_steps(
        bpe(), normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    "BPE of spaces": lambda: with_steps(bpe()),
    "BPE, split": lambda: with_steps(
        bpe("in▁t"), None, pre_tokenizers.Metaspace(prepend_scheme="first")
    ),
    "words": lambda: with_steps(word_level(), None, pre_tokenizers.Whitespace()),
    "words between spaces": lambda: with_steps(
        word_level(), None, pre_tokenizers.CharDelimiterSplit(" ")
    ),
    "words with spaces": lambda: with_steps(
        word_level(), None, pre_tokenizers.Split(" ", "merged_with_next")
    ),
    "added, GPT-2": lambda: with_steps(tokenizer_files.gpt2(), added=ADDED),
    "added, BERT": lambda: with_steps(tokenizer_files.bert(), added=ADDED),
    "added, Llama 2": lambda: with_steps(bpe(), PREPEND, added=ADDED),
    "added, Mistral": lambda: with_steps(
        bpe(), None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), added=ADDED
    ),
}
UNKNOWN = {
    "a token over two words": lambda: with_steps(bpe("in▁t"), PREPEND),
    "a token over two words, Metaspace": lambda: with_steps(
        bpe("in▁t"), None, pre_tokenizers.Metaspace(split=False)
    ),
    "trained BPE without words": lambda: trained("bpe", "none"),
    "trained Unigram without words": lambda: trained("unigram", "none", 5),
    "Unigram of whole texts": lambda: unigram(split=False),
    "a pattern": lambda: byte_level(split(r"\w+\s\w+|.")),
    "a pattern, merged": lambda: byte_level(split(GPT2, "merged_with_next")),
    "spaces after words": lambda: with_steps(
        word_level(), None, pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    "scripts": lambda: byte_level(
        pre_tokenizers.Sequence(
            [pre_tokenizers.UnicodeScripts(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    ),
    "fixed lengths": lambda: with_steps(word_level(), None, pre_tokenizers.FixedLength(5)),
    "a normalizer that strips": lambda: with_steps(tokenizer_files.gpt2(), normalizers.Strip()),
    "a normalizer that replaces letters": lambda: with_steps(
        tokenizer_files.gpt2(), normalizers.Replace("a", " ")
    ),
    "a normalizer with a pattern": lambda: with_steps(
        tokenizer_files.gpt2(), normalizers.Replace(Regex(r"\w \w"), "x")
    ),
    "an added token with a space": lambda: with_steps(
        tokenizer_files.gpt2(), added=[AddedToken("a b")]
    ),
    "an added token that takes spaces": lambda: with_steps(
        tokenizer_files.gpt2(), added=[AddedToken("ab", lstrip=True)]
    ),
    "an added token that is a word": lambda: with_steps(
        tokenizer_files.gpt2(), added=[AddedToken("ab", single_word=True)]
    ),
}


def load(make) -> tokenizer.Tokenizer:
    inner = make()
    end = next(name for name in (END, "</s>", "[SEP]") if inner.token_to_id(name) is not None)
    return tokenizer.Tokenizer(inner, SpecialTokens(end))


@pytest.fixture(scope="module", params=KNOWN)
def known(request) -> tokenizer.Tokenizer:
    return load(KNOWN[request.param])


WORDS = [
    "a",
    "the",
    "in",
    "t",
    "12",
    "0",
    "é",
    "e\u0301",
    "漢字",
    "כן",
    "ﷺ",
    "\ufe70",
    "ﬁ",
    "²",
    "Ⅷ",
]
SEPARATORS = [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\xa0", "\u3000", "\u2028", "\x1c", "\x85"]
MARKS = [
    ".",
    ", ",
    "'s",
    " 's",
    "'",
    "-",
    "_",
    "\uff0c",
    "\u3002",
    "\uff1a",
    "\u0301",
    "\u200d",
    "🙂",
]
NAMES = [END, "</s>", "<s>", "[SEP]", "<unk>", "<tag>", "zz", "ZZ", "▁", "Ġ", "<0x0A>", "\ufeff"]
TEXTS = st.lists(
    st.sampled_from(WORDS) | st.just(" ") | st.sampled_from(SEPARATORS + MARKS + NAMES), max_size=40
).map("".join)


def check_pieces(known, text):
    """Compare the ids, without the look at what is around a boundary: it holds by itself."""
    whole = known.encode(text).tolist()
    for piece_characters in (1, 4):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tokenizer, "PIECE_CHARACTERS", piece_characters)
            patched.setattr(tokenizer.Tokenizer, "is_confirmed", lambda *_: True)
            pieces = list(known.split_text(text))
        assert np.concatenate(known.encode_batch(pieces)).tolist() == whole


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_ids_of_the_pieces_are_those_of_the_text(known, data):
    check_pieces(known, data.draw(TEXTS | st.text(st.characters(exclude_categories=["Cs"]))))


def test_every_pair_of_neighbours_is_cut_rightly_or_not_at_all(known):
    for separator in [*SEPARATORS, *MARKS, *NAMES]:
        check_pieces(known, "".join(f"{word}{separator}{word}{separator}" for word in WORDS))


SENTENCE = "The river in 1984 and the stone of the birds went on "


def test_long_lines_are_cut(known):
    text = SENTENCE * 8000
    lengths = [len(piece) for piece in known.split_text(text)]
    assert len(lengths) == len(text) // (tokenizer.PIECE_CHARACTERS + 10) + 1
    assert max(lengths) < tokenizer.PIECE_CHARACTERS + 10
    assert len(text) - sum(lengths) in (0, len(lengths) - 1)  # a space between two pieces


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_tokenizer_of_which_too_little_is_known_cuts_nothing(name):
    unknown = load(UNKNOWN[name])
    text = SENTENCE * 3000
    assert unknown.boundary is None
    assert list(unknown.split_text(text)) == [text]


@pytest.mark.parametrize(
    "text", ["漢字" * 100 + "\uff0c", "\u6f22" * 9 + "\u3002", "line\n", "wort "]
)
def test_texts_without_spaces_are_cut_where_words_end_all_the_same(monkeypatch, text):
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 1000)
    for make in (tokenizer_files.gpt2, word_piece, KNOWN["pattern 2"]):
        pieces = list(load(make).split_text(text * 1000))
        assert max(map(len, pieces)) < 1000 + len(text) + 1


def test_a_cut_that_its_surroundings_refute_is_not_made(monkeypatch):
    gpt2 = load(tokenizer_files.gpt2)
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 10)
    monkeypatch.setattr(
        tokenizer.Tokenizer, "is_confirmed", lambda _, left, gap, right: right.startswith(" stone")
    )
    pieces = list(gpt2.split_text(SENTENCE * 5))
    assert len(pieces) == 6
    assert all(piece.startswith(" stone") for piece in pieces[1:])


@pytest.mark.parametrize("name", ["BERT", "Llama 2", "GPT-2"])
def test_a_stretch_without_boundaries_has_a_limit(monkeypatch, name):
    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(tokenizer, "MOST_CHARACTERS", 1000)
    limited = load(KNOWN[name])
    assert list(limited.split_text("x" * 1000)) == ["x" * 1000]
    message = (
        r"^1,\d\d\d characters in a row have no place .* at most 1,000 can be encoded at once: div"
    )
    for text in ("x" * 1001, "x" * 1001 + " the end", SENTENCE * 10 + "x" * 1001):
        with pytest.raises(UserError, match=message):
            list(limited.split_text(text))


def write_tokenizer(path, make):
    load(make).save(path)
    return config.TokenizerConfig(kind="file", path=str(path), end_of_text="</s>")


def test_a_text_too_long_for_a_tokenizer_names_the_document(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "MOST_CHARACTERS", 1000)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "dna.txt").write_text("ACGT" * 1000)
    data = data_config(tmp_path, tmp_path / "c", method="tail", share=0.5)
    file_config = write_tokenizer(tmp_path / "t.json", tokenizer_files.t5)
    with pytest.raises(UserError, match=r"^dna\.txt: 2,000 characters in a row"):
        prepare(data, file_config, 300, lambda _: None)


@pytest.mark.parametrize("make", [tokenizer_files.t5, tokenizer_files.llama])
def test_a_store_of_pieces_is_the_store_of_whole_texts(tmp_path, monkeypatch, make):
    (tmp_path / "c.txt").write_text("the river of stone " * 500)
    file_config = write_tokenizer(tmp_path / "t.json", make)
    stores = []
    for folder, piece_characters in (("whole", 1 << 20), ("pieces", 50)):
        monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", piece_characters)
        data = data_config(tmp_path / folder, tmp_path / "c.txt", method="tail", share=0.3)
        stores.append(prepare(data, file_config, 300, lambda _: None))
    whole, pieces = (store.manifest for store in stores)
    assert whole["splits"] == pieces["splits"]
    assert whole["validation"] == pieces["validation"]
    assert read_texts(stores[0], stores[0].train) == read_texts(stores[1], stores[1].train)


def test_an_evaluation_encodes_a_long_text_in_parts(monkeypatch):
    llama = load(tokenizer_files.llama)
    expected = llama.encode(SENTENCE * 100)
    most = []
    encode_batch = tokenizer.Tokenizer.encode_batch

    def record(self, batch):
        most.append(sum(map(len, batch)))
        return encode_batch(self, batch)

    monkeypatch.setattr(tokenizer, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(evaluation_texts, "TOKENIZER_CHARACTERS", 500)
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_batch", record)
    (found,) = [ids for _, ids in evaluation_texts.tokenize_texts([SENTENCE * 100], llama)]
    assert np.array_equal(found, expected)
    assert max(most) < 700
    assert np.array_equal(evaluation_texts.encode_text(SENTENCE * 100, llama), expected)
