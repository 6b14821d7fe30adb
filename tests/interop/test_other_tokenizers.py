"""Directories without tokenizer.json have the ids of the classes of `transformers`."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from support.tokenizer_files import LINES, put

from jaxlm.config import UserError
from jaxlm.interop.tokenizer import load_tokenizer_json, read_tokenizer

# Version 5 of transformers forgets that RoBERTa's mask takes a space along, unless a file says so.
WIDE_MASK = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "normalized": False}
# Type -> class of transformers, tokenizer_config.json.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("gpt2", "GPT2Tokenizer", {}),
    "gpt2 with options": (
        "gpt2",
        "GPT2Tokenizer",
        {"add_prefix_space": True, "add_bos_token": True, "pad_token": "[PAD]"},
    ),
    "roberta": ("roberta", "RobertaTokenizer", {"mask_token": WIDE_MASK}),
    "bart": ("bart", "BartTokenizer", {"mask_token": WIDE_MASK, "sep_token": "</s>"}),
    "bert": ("bert", "BertTokenizer", {}),
    "bert with capitals": ("bert", "BertTokenizer", {"do_lower_case": False}),
    "bert with accents": ("distilbert", "BertTokenizer", {"strip_accents": False}),
    "t5": ("t5", "T5Tokenizer", {"extra_ids": 7}),
    "llama": ("llama", "LlamaTokenizer", {"add_bos_token": True}),
    "llama without begin": (
        "mistral",
        "LlamaTokenizer",
        {"add_bos_token": False, "add_eos_token": True},
    ),
}
MODEL_OPTIONS = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "model_type": "unigram"},
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


def write_vocabulary(directory: Path, model_type: str) -> None:
    """Write the files that hold the vocabulary of a type."""
    if model_type in ("bert", "distilbert"):
        inner = tokenizers.BertWordPieceTokenizer(lowercase=False, strip_accents=False)
        inner.train_from_iterator([*LINES, *map(str.lower, LINES)], 400, show_progress=False)
        inner.save_model(str(directory))
    elif model_type in ("gpt2", "roberta", "bart"):
        inner = tokenizers.ByteLevelBPETokenizer()
        own = ["<|endoftext|>"] if model_type == "gpt2" else ["<s>", "<pad>", "</s>", "<unk>"]
        own += [] if model_type == "gpt2" else ["<mask>"]
        inner.train_from_iterator(LINES, 400, show_progress=False, special_tokens=own)
        inner.save_model(str(directory))
    else:
        sentencepiece = pytest.importorskip("sentencepiece")
        name = "spiece.model" if model_type == "t5" else "tokenizer.model"
        with (directory / name).open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter([line.replace("\n", " ") for line in LINES if line.strip()]),
                model_writer=file,
                vocab_size=360 if model_type != "t5" else 120,
                hard_vocab_limit=False,
                minloglevel=2,
                **MODEL_OPTIONS["t5" if model_type == "t5" else "llama"],
            )


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(case, tmp_path):
    transformers = pytest.importorskip("transformers")
    model_type, name, values = CASES[case]
    write_vocabulary(tmp_path, model_type)
    put(tmp_path, "config.json", {"model_type": model_type})
    put(tmp_path, "tokenizer_config.json", values)
    if "pad_token" in values:
        size = len(json.loads((tmp_path / "vocab.json").read_text()))
        put(tmp_path, "added_tokens.json", {"[PAD]": size})

    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    inner = load_tokenizer_json(tmp_path / "tokenizer.json")
    for text in [*LINES, "a <mask> b", "Über ``Größe''", "<pad></s> x"]:
        expected = theirs(text).input_ids
        assert inner.encode(text, add_special_tokens=True).ids == expected, text
    assert inner.get_vocab_size(with_added_tokens=True) == len(theirs)

    _, frame = read_tokenizer(tmp_path)
    eos = theirs.sep_token_id if frame.end_of_text == theirs.sep_token else theirs.eos_token_id
    assert frame.eos_ids == (eos,) and frame.pad_id == theirs.pad_token_id
    if model_type == "t5":
        assert frame.sentinels == 7
        assert inner.token_to_id("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>")
    if frame.mask is not None:
        assert inner.token_to_id(frame.mask) == theirs.mask_token_id


@pytest.mark.parametrize(
    ("model_type", "files", "message"),
    [
        ("bert", {"vocab.txt": "a\nb\n"}, "vocab.txt: .*no \\[UNK\\]"),
        ("gpt2", {"vocab.json": "[]", "merges.txt": ""}, "vocab.json: .*not the vocabulary"),
        ("t5", {"spiece.model": "no model"}, "spiece.model: .*not a SentencePiece model"),
        ("bert", {"added_tokens.json": '{"x": 99}'}, "added_tokens.json: 'x' has the id 99, but 6"),
        ("bert", {"added_tokens.json": '{"x": 1}'}, "added_tokens.json: 'x' has the id 1, but"),
        ("bert", {"added_tokens.json": '{"x": "1"}'}, "added_tokens.json: x: must be an id"),
        (
            "bert",
            {"tokenizer_config.json": '{"added_tokens_decoder": {"0": {}}}'},
            "tokenizer_config.json: added_tokens_decoder: 0: must be a token by its id",
        ),
        ("bert", {"tokenizer_config.json": '{"do_lower_case": 1}'}, "do_lower_case: must be"),
    ],
)
def test_mistakes_name_the_file(model_type, files, message, tmp_path):
    put(tmp_path, "config.json", {"model_type": model_type})
    if model_type == "bert" and "vocab.txt" not in files:
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
