"""Tokenizers in other formats have the ids of the libraries that they come from."""

import base64
import json
import random

import pytest
import tokenizers

from jaxlm.config import ConfigError
from jaxlm.data import load_tokenizer, tokenizer_files
from jaxlm.data.sentencepiece_file import read_sentencepiece
from jaxlm.data.tokenizer_files import GPT2, GPT4, read_tokenizer_file
from jaxlm.data.vocabulary import SpecialTokens

WORDS = ["the", "cat's", "sat", "on", "a", "MAT", "naïve", "Été", "日本", "2024", "don't", "😀"]
ODD = ["", " ", "  two  spaces ", "a\tb\n", "\ufb01 \u2460", "x" * 150, "a\u00a0b", "``x''"]
ODD.append("[CLS] <s> </s>")


def lines(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(1, 12))) for _ in range(count)]


TEXTS = [*lines(200, seed=1), *ODD]


def ids(inner: tokenizers.Tokenizer) -> list[list[int]]:
    inner.encode_special_tokens = True
    return [inner.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.fixture
def byte_level(tmp_path):
    inner = tokenizers.ByteLevelBPETokenizer()
    inner.train_from_iterator(lines(500), 400, special_tokens=["<|endoftext|>"])
    inner.save_model(str(tmp_path))
    return inner


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges_are_those_of_gpt2(tmp_path, byte_level, names):
    for old, new in zip(("vocab.json", "merges.txt"), names, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    expected = [byte_level.encode(text).ids for text in TEXTS]
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        assert ids(read_tokenizer_file(path)) == expected

    loaded = load_tokenizer(tmp_path, SpecialTokens("<|endoftext|>"))
    assert loaded.encode("<|endoftext|>").tolist() != [0] and loaded.end_of_text == 0


def test_the_ids_of_gpt2_and_bert_are_those_of_transformers(tmp_path, byte_level):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    expected = [theirs(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert ids(read_tokenizer_file(tmp_path)) == expected

    for name, lowercase in (("cased", False), ("uncased", True)):
        folder = tmp_path / name
        folder.mkdir()
        inner = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
        inner.train_from_iterator(lines(500), 300)
        inner.save_model(str(folder))
        theirs = transformers.BertTokenizer.from_pretrained(folder, do_lower_case=lowercase)
        plain = [text for text in TEXTS if "[CLS]" not in text]
        ours = read_tokenizer_file(folder)
        assert [ours.encode(text, add_special_tokens=False).ids for text in plain] == [
            theirs(text, add_special_tokens=False).input_ids for text in plain
        ]
        special = SpecialTokens("[SEP]", "[CLS]", "[PAD]", "[MASK]")
        assert load_tokenizer(folder / "vocab.txt", special).encode("[MASK]").size > 1


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("unigram", {}),
        ("unigram", {"byte_fallback": True, "normalization_rule_name": "identity"}),
        ("unigram", {"add_dummy_prefix": False, "remove_extra_whitespaces": False}),
        ("unigram", {"user_defined_symbols": ["<sep>"], "normalization_rule_name": "nfkc_cf"}),
        ("bpe", {}),
        ("bpe", {"byte_fallback": True, "normalization_rule_name": "identity"}),
    ],
)
def test_sentencepiece_models_have_the_ids_of_sentencepiece(tmp_path, kind, options):
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path / "a.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines(500)),
            model_writer=file,
            vocab_size=330 if "byte_fallback" in options else 80,
            model_type=kind,
            hard_vocab_limit=False,
            minloglevel=2,
            **options,
        )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = load_tokenizer(path, SpecialTokens("</s>"))
    texts = [*(text for text in TEXTS if "<s>" not in text), "a <sep>b<sep> c"]
    assert [ours.encode(text).tolist() for text in texts] == [theirs.encode(text) for text in texts]
    assert ours.end_of_text == theirs.eos_id()
    for text in lines(20, seed=2):
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))

    # Long texts are cut into pieces with the same ids.
    long = " ".join(lines(4000, seed=3))
    pieces = list(ours.split_text(long))
    assert len(pieces) > 1 or not options.get("add_dummy_prefix", True)
    joined = [number for piece in pieces for number in ours.encode(piece).tolist()]
    assert joined == ours.encode(long).tolist()


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x80" * 20,
        b"\x0a\x7f",
        field(1, b"\x0b"),
        field(1, field(1, b"\xff")),
        field(1, b"\x15\x00"),
        field(2, b""),
        field(1, field(1, b"a")) + field(2, b"\x18\x03"),  # a model of words
        b"not a model",
    ],
)
def test_damaged_models_are_refused_in_one_line(tmp_path, data):
    (tmp_path / "a.model").write_bytes(data)
    with pytest.raises(ConfigError, match=r"^tokenizer\.path: .*a\.model: not a tok") as error:
        load_tokenizer(tmp_path / "a.model", SpecialTokens("</s>"))
    assert "\n" not in str(error.value)


def test_unread_fields_of_a_model_are_passed_over(tmp_path):
    piece = field(1, b"a") + varint(2 << 3 | 5) + b"\0\0\x80\xbf"
    extra = varint(9 << 3) + varint(300) + varint(8 << 3 | 1) + bytes(8) + field(200, b"x")
    (tmp_path / "a.model").write_bytes(extra + field(1, piece) + extra)
    assert read_sentencepiece(tmp_path / "a.model").pieces == [("a", -1.0, 1)]


@pytest.mark.parametrize("pattern", [GPT2, GPT4])
def test_tiktoken_files_have_the_ids_of_tiktoken(tmp_path, byte_level, monkeypatch, pattern):
    tiktoken = pytest.importorskip("tiktoken")
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    characters = {character: byte for byte, character in tokenizer_files.CHARACTERS.items()}
    tokens = [bytes(map(characters.__getitem__, token)) for token in list(vocabulary)[1:]]
    tokens.append(b"zzzzz")  # a token that no merge leads to
    ranks = {token: rank for rank, token in enumerate(tokens)}
    special = {"<|end|>": len(ranks) + 3}
    monkeypatch.setitem(tokenizer_files.TIKTOKEN, len(ranks), (pattern, special))

    rows = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    theirs = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )
    for name in ("a.tiktoken", "tokenizer.model"):
        (tmp_path / name).write_text("".join(rows))
        ours = load_tokenizer(tmp_path / name, SpecialTokens("<|end|>"))
        texts = [*TEXTS, "zzzzz", "<|end|>", " zzzzz\r\n\r\n  x"]
        assert [ours.encode(text).tolist() for text in texts] == [
            theirs.encode(text, disallowed_special=()) for text in texts
        ]
        assert ours.end_of_text == special["<|end|>"] and ours.size == special["<|end|>"] + 1

    (tmp_path / "a.tiktoken").write_text("".join(rows[:-1]))
    with pytest.raises(ConfigError, match=r"a\.tiktoken: .* has [0-9]+ ranks, of which neither"):
        load_tokenizer(tmp_path / "a.tiktoken", SpecialTokens("<|end|>"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", "[]", "merges.txt: No such file"),
        ("vocab.txt", "a\nb\n", "has no \\[UNK\\]"),
        ("other.bin", "text", "not a tokenizer that can be read"),
        ("tokenizer.json", "{}", "not a tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused_in_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=reason) as error:
        load_tokenizer(tmp_path / name, SpecialTokens("</s>"))
    assert "\n" not in str(error.value)
