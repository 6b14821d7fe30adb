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
    inner.add_special_tokens([AddedToken("<mask>", lstrip=lstrip, special=True, normalized=False)])
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


@pytest.mark.parametrize(
    "make",
    [lambda: words(lstrip=True), word_pieces, sentence_pieces],
    ids=["words", "pieces", "sentence"],
)
@pytest.mark.parametrize("text", TEXTS)
def test_names_become_the_tokens_that_the_tokenizer_sees_there(make, text):
    inner = make()
    found = prompts.encode_with_special(ours(inner), text, {"<mask>": inner.token_to_id("<mask>")})
    assert found.tolist() == inner.encode(text, add_special_tokens=False).ids


def test_a_mask_stands_for_the_space_that_its_tokens_begin_with():
    """So it did in training, where a mask replaced a whole token."""
    narrow, wide = words(lstrip=False), words(lstrip=True)
    for text in TEXTS:
        found = prompts.encode_with_special(
            ours(narrow), text, {"<mask>": narrow.token_to_id("<mask>")}
        )
        assert found.tolist() == wide.encode(text, add_special_tokens=False).ids
