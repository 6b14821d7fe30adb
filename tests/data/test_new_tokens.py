"""Tokens that are added to a tokenizer, and those that are proposed for the text of a domain."""

from functools import partial

import numpy as np
import pytest
from support import tokenizer_files
from tokenizers import Tokenizer

from jaxlm import data
from jaxlm.config import UserError
from jaxlm.data.new_tokens import NewToken, add_new_tokens
from jaxlm.data.token_proposals import measure_bytes_per_token, propose_tokens
from jaxlm.data.tokenizer import PIECE_CHARACTERS
from jaxlm.data.vocabulary import SpecialTokens

# Training is not repeatable where pieces are equally frequent: each is trained once.
TRAINED = {kind: tokenizer_files.MADE[kind]().to_str() for kind in ("gpt2", "bert", "t5", "llama")}
TOKENIZERS = {kind: partial(Tokenizer.from_str, text) for kind, text in TRAINED.items()}
END = {"gpt2": "<|endoftext|>", "bert": "[SEP]", "t5": "</s>", "llama": "</s>"}
DOMAIN = "A coroutine awaits. The coroutine, and coroutines, in the river. (coroutine) " * 3


def new(*contents, special=False):
    return [NewToken(content, f"t.txt:{n}", special) for n, content in enumerate(contents, 1)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_are_found_and_given_back(kind):
    """As tokens of their own, where the ids of all other text stay what they were."""
    inner, old = TOKENIZERS[kind](), TOKENIZERS[kind]()
    word = "coroutine" if kind == "bert" else " coroutine"
    pieces = add_new_tokens(inner, new(word))
    ((number, ids),) = pieces.items()
    assert number == old.get_vocab_size() and ids == old.encode(word, add_special_tokens=False).ids

    text = "the river of coroutine wisdom"
    encoded = inner.encode(text, add_special_tokens=False).ids
    assert encoded.count(number) == 1
    if kind != "llama":  # its normalizer puts a space before what follows a new token
        assert inner.decode(encoded) == old.decode(old.encode(text).ids)
    for line in tokenizer_files.LINES:
        assert inner.encode(line).ids == old.encode(line).ids


def test_an_uncased_tokenizer_finds_whole_words_in_any_case():
    inner = TOKENIZERS["bert"]()
    ((number, _),) = add_new_tokens(inner, new("CUDA")).items()
    ids = [inner.encode(text, add_special_tokens=False).ids for text in ("cuda", "Cuda", "CUDA")]
    assert ids == [[number]] * 3
    assert number not in inner.encode("barracudas cudas", add_special_tokens=False).ids
    with pytest.raises(UserError, match=r"t.txt:2: 'Cuda' would never be found"):
        add_new_tokens(TOKENIZERS["bert"](), new("CUDA", "Cuda"))


def test_special_tokens_have_the_pieces_of_plain_text():
    inner, old = TOKENIZERS["gpt2"](), TOKENIZERS["gpt2"]()
    ((number, ids),) = add_new_tokens(inner, new("<|im_start|>", special=True)).items()
    assert ids == old.encode("<|im_start|>").ids
    assert inner.get_added_tokens_decoder()[number].special


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_words_that_save_most_are_proposed(kind):
    """What a proposal says that it saves is what is saved."""
    inner, old = TOKENIZERS[kind](), TOKENIZERS[kind]()
    (best, *_) = proposed = propose_tokens(inner, [DOMAIN], 5)
    assert best.content.strip().startswith("coroutine")
    assert [p.saved for p in proposed] == sorted((p.saved for p in proposed), reverse=True)
    assert proposed == propose_tokens(TOKENIZERS[kind](), [DOMAIN], 5)
    add_new_tokens(inner, new(best.content))
    before, after = (len(t.encode(DOMAIN, add_special_tokens=False).ids) for t in (old, inner))
    if kind in ("gpt2", "bert"):  # others put a space before what follows a new token
        assert before - after == best.saved
    sizes = [measure_bytes_per_token(t, [DOMAIN]) for t in (old, inner)]
    assert sizes == [
        len(DOMAIN) / len(t.encode(DOMAIN, add_special_tokens=False).ids) for t in (old, inner)
    ]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_long_texts_are_cut_without_a_change_of_their_ids(kind):
    """Tokens with spaces among them don't make a text one piece."""
    inner = TOKENIZERS[kind]()
    add_new_tokens(inner, new(" coroutine", " best of"))
    tokenizer = data.Tokenizer(inner, SpecialTokens(END[kind]))
    text = ("the best of the coroutine, and wisdom of the river " * 4000)[: 2 * PIECE_CHARACTERS]
    pieces = list(tokenizer.split_text(text))
    assert len(pieces) > 1
    ids = np.concatenate(tokenizer.encode_batch(pieces))
    np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_the_tokens_of_a_saved_tokenizer_are_the_same(tmp_path):
    inner = TOKENIZERS["gpt2"]()
    add_new_tokens(inner, new(" coroutine", "qzx"))
    inner.save(str(tmp_path / "tokenizer.json"))
    read = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert read.encode(DOMAIN).ids == inner.encode(DOMAIN).ids
