"""Special tokens in prompts, against what the tokenizers themselves make of such a text."""

import pytest
import tokenizers
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding import prompts

CORPUS = ["It was the best of times, it was the worst of times. a b x end"] * 20
TEXTS = [
    "It was the <mask> of times, it was <mask>.",
    "<mask>",
    "a <mask><mask> b",
    "end <mask>",
    " <mask> x",
    "no end",
]
SPECIAL = ["<pad>", "<end>", "<unk>"]


def added(*names, lstrip):
    for name in names:
        yield AddedToken(name, lstrip=lstrip, special=True, normalized=False)


def words(lstrip):
    """A tokenizer like RoBERTa's (whose mask takes the space before it), or GPT-2's with a mask."""
    inner = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = byte_level  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    inner.add_special_tokens(list(added("<mask>", lstrip=lstrip)))
    return inner


def word_pieces():
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=100, special_tokens=[*SPECIAL, "<mask>"])
    )
    return inner


def sentence_pieces():
    """A tokenizer like T5's."""
    inner = tokenizers.Tokenizer(models.Unigram())
    split = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    inner.pre_tokenizer = pre_tokenizers.Sequence(split)  # type: ignore[assignment,arg-type]
    inner.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=[*SPECIAL, "<mask>"], unk_token="<unk>"
        ),
    )
    return inner


def ours(inner):
    return Tokenizer(
        tokenizers.Tokenizer.from_str(inner.to_str()), SpecialTokens("<end>", mask="<mask>")
    )


def first_words():
    """A tokenizer like T5's without `legacy`: only the first word of a text gets a space."""
    vocabulary = {"<unk>": 0, "\u2581It": 1, "It": 2, "<end>": 3, "\u2581was": 4, "was": 5}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    first = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.pre_tokenizer = first  # type: ignore[assignment]
    inner.add_special_tokens(list(added("<mask>", lstrip=False)))
    return inner


@pytest.mark.parametrize(
    "make",
    [
        lambda: words(lstrip=True),
        lambda: words(lstrip=False),
        word_pieces,
        sentence_pieces,
        first_words,
    ],
    ids=["wide mask", "narrow mask", "pieces", "sentence", "first"],
)
@pytest.mark.parametrize("text", [*TEXTS, "It<mask>was<mask> It"])
def test_names_become_the_tokens_that_the_tokenizer_sees_there(make, text):
    inner = make()
    tokenizer = ours(inner)
    found = prompts.encode_with_special(tokenizer, text, {"<mask>": inner.token_to_id("<mask>")})
    assert found.tolist() == inner.encode(text, add_special_tokens=False).ids
    assert tokenizer.inner.encode_special_tokens  # documents are read as plain text again


@pytest.mark.parametrize("lstrip", [True, False])
@pytest.mark.parametrize("name", ["<end>", "<unk>"])  # one that documents end with, and another
def test_names_of_other_special_tokens_are_plain_text(name, lstrip):
    inner = words(lstrip)
    found = prompts.encode_with_special(
        ours(inner), f"a <mask>{name} b", {"<mask>": inner.token_to_id("<mask>")}
    )
    pieces = ours(inner).encode("a" if lstrip else "a "), ours(inner).encode(f"{name} b")
    assert found.tolist() == [*pieces[0], inner.token_to_id("<mask>"), *pieces[1]]
    assert inner.token_to_id(name) not in found
