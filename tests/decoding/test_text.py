"""Streamed text: whole characters, stop strings, and the same text in whatever pieces."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding.text import TextStream

BYTES = byte_tokenizer(SpecialTokens("<end>"))
STORY = "Käse für 3 € 😀 — 日本語, e\u0301; then the END of it."


def pieces_tokenizer():
    """A tokenizer like Llama's: a space belongs to the token after it, the first is dropped."""
    vocabulary = {
        "<s>": 0,
        "▁": 1,
        "▁a": 2,
        "▁cat": 3,
        "s": 4,
        "<0xE2>": 5,
        "<0x82>": 6,
        "<0xAC>": 7,
        "▁the": 8,
    }
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]  # type: ignore[list-item]
    )
    inner.add_special_tokens(["<s>"])
    return inner


def parts(ids, sizes):
    """`ids` cut into pieces of these sizes, over and over."""
    start, number = 0, 0
    while start < len(ids):
        size = sizes[number % len(sizes)]
        yield ids[start : start + size]
        start, number = start + size, number + 1


@pytest.mark.parametrize("sizes", [[1], [2], [3, 1], [5], [1000]])
def test_only_whole_characters_come(sizes):
    text, shown = TextStream(BYTES.decode, BYTES.encode("Once ").tolist()), []
    for part in parts(BYTES.encode(STORY), sizes):
        shown.append(text.add(part))
    shown.append(text.add([], last=True))
    assert "".join(shown) == text.text == STORY
    assert not any("\ufffd" in new for new in shown)


def test_what_is_no_character_is_shown_in_the_end():
    text = TextStream(BYTES.decode, [])
    assert [text.add([0xE2]), text.add([0x82]), text.add([0x41]), text.add([0xE2])] == [
        "",
        "",
        "\ufffdA",
        "",
    ]
    assert text.add([], last=True) == "\ufffd" and text.text == "\ufffdA\ufffd"


def test_spaces_between_prompt_and_continuation_stay():
    decode = pieces_tokenizer().decode
    text = TextStream(decode, [0, 8])  # "the"
    assert [text.add([number]) for number in (3, 4, 1, 5, 6, 7, 2)] == [
        " cat",
        "s",
        " ",
        "",
        "",
        "€",
        " a",
    ]
    # At the beginning of a text there is none.
    assert TextStream(decode, [0]).add([3, 4]) == "cats"


@pytest.mark.parametrize("sizes", [[1], [4], [1000]])
def test_text_ends_before_a_stop_string(sizes):
    text, shown = TextStream(BYTES.decode, [], ["END", "never"]), ""
    for part in parts(BYTES.encode(STORY), sizes):
        shown += text.add(part)
    shown += text.add([], last=True)
    before = STORY[: STORY.index("END")]
    assert shown == text.text == before and text.stopped
    assert (
        text.tokens == len(before.encode()) + 3
    )  # the last token is the one that completes the stop string


def test_nothing_of_a_stop_string_is_shown_early():
    text = TextStream(BYTES.decode, [], ["abcd", "bcx"])
    assert [text.add(BYTES.encode(new)) for new in ("1a", "b", "c", "c")] == ["1", "", "", "abcc"]
    assert [text.add(BYTES.encode(new)) for new in ("ab", "c")] == ["", ""]
    assert text.add(BYTES.encode("x")) == "a" and text.stopped
    assert text.add(BYTES.encode("more"), last=True) == "" and text.text == "1abcca"


def test_the_beginning_of_a_stop_string_at_the_end_is_text():
    text = TextStream(BYTES.decode, [], ["abcd"])
    assert text.add(BYTES.encode("1abc")) == "1" and text.add([], last=True) == "abc"


def test_random_bytes_come_out_the_same_in_any_pieces():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ids = rng.choice([0x41, 0x20, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xFF], 40)
        texts = []
        for sizes in ([1], [7, 2], [1000]):
            text = TextStream(BYTES.decode, [])
            for part in parts(ids, sizes):
                text.add(part)
            text.add([], last=True)
            texts.append(text.text)
        assert texts[0] == texts[1] == texts[2] == BYTES.decode(ids)
