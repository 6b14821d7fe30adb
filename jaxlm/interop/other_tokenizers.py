"""Read the tokenizer of a Hugging Face directory that has no tokenizer.json.

The files are those of `jaxlm.data.tokenizer_files`. They hold the vocabulary alone: what the class
of `transformers` adds to it (special tokens, those around a text) follows from the model's type and
from the files of the directory that say what differs from the class.
"""

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import tokenizers
from tokenizers import AddedToken, normalizers, processors

from jaxlm.config import UserError
from jaxlm.data.tokenizer_files import read_tokenizer_file
from jaxlm.interop.hf_config import HFConfig, read_hf_config
from jaxlm.interop.token_names import (
    CLASS_TOKENS,
    TOKENIZER_CONFIG_FILE,
    read_json_object,
    read_token_names,
)

TOKENIZER_FILE = "tokenizer.json"
ADDED_TOKENS_FILE = "added_tokens.json"
EXTRA_IDS = 100  # sentinels of T5, which its SentencePiece model lacks
MOST_EXTRA_IDS = 10_000


class TokenizerClass(NamedTuple):
    """Describe what a class of `transformers` makes of a vocabulary."""

    files: tuple[str, ...]  # which it reads, the first of them alone is named to our reader
    before: str | None = None  # key of the token before a text
    after: str | None = None  # key of the token after it
    adds_begin: bool | None = None  # default of add_bos_token; None: there is no such switch
    adds_end: bool | None = None  # default of add_eos_token


GPT2_FILES = ("vocab.json", "merges.txt")
ROBERTA = TokenizerClass(GPT2_FILES, before="cls_token", after="sep_token")
BERT = TokenizerClass(("vocab.txt",), before="cls_token", after="sep_token")
LLAMA = TokenizerClass(
    ("tokenizer.model",),
    before="bos_token",
    after="eos_token",
    adds_begin=True,
    adds_end=False,
)
CLASSES = {
    "gpt2": TokenizerClass(GPT2_FILES, before="bos_token", adds_begin=False),
    "opt": TokenizerClass(GPT2_FILES, before="bos_token", adds_begin=True),
    "roberta": ROBERTA,
    "bart": ROBERTA,
    "bert": BERT,
    "distilbert": BERT,
    "t5": TokenizerClass(("spiece.model",), after="eos_token"),
    "llama": LLAMA,
    "mistral": LLAMA,
}
OTHER_FILES = (
    *("vocab.json", "merges.txt", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm", "tokenizer.model"),
)


def read_other_files(directory: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of a directory without tokenizer.json, with the ids of `transformers`.

    UserError where the model's type has none that is known, or its files are missing or broken.
    """
    hf_config = read_hf_config(directory)
    model_type = str(hf_config.get("model_type"))
    known = CLASSES.get(model_type)
    if known is None or not all((directory / name).exists() for name in known.files):
        refuse_files(directory, model_type)

    path = directory / known.files[0]
    try:
        inner = read_tokenizer_file(path)
    except OSError as error:
        raise UserError(f"{error.filename or path}: can't be read: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not a tokenizer that can be read: {reason}") from error

    values = HFConfig(
        directory / TOKENIZER_CONFIG_FILE, read_json_object(directory / TOKENIZER_CONFIG_FILE)
    )
    added = add_tokens(directory, inner, values, model_type)
    names = CLASS_TOKENS.get(model_type, {}) | read_token_names(directory)
    mark_names(inner, names, added, model_type)
    set_options(inner, values, model_type)
    frame_texts(inner, names, values, known)
    return inner


def refuse_files(directory: Path, model_type: str) -> NoReturn:
    """Raise UserError: there is no tokenizer.json, and what is there can't stand for it."""
    others = [name for name in OTHER_FILES if (directory / name).exists()]
    beside = f"{' and '.join(others)} alone can't be read for {model_type!r}; " if others else ""
    raise UserError(
        f"{directory / TOKENIZER_FILE}: there is no such file: {beside}the fast tokenizers of "
        "transformers write it: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


# Special tokens


def add_tokens(
    directory: Path, inner: tokenizers.Tokenizer, values: HFConfig, model_type: str
) -> set[str]:
    """Add the tokens that the files beside the vocabulary list by id, and T5's sentinels.

    Return the names of those whose flags the files say.
    """
    tokens = read_added_tokens(directory, values)
    for number in sorted(tokens):
        token, source = tokens[number]
        size = inner.get_vocab_size(with_added_tokens=True)
        if number > size:
            raise UserError(f"{source}: {token.content!r} has the id {number}, but {size} is next")
        if token.special:
            inner.add_special_tokens([token])
        else:
            inner.add_tokens([token])
        if inner.token_to_id(token.content) != number:
            has = inner.token_to_id(token.content)
            raise UserError(f"{source}: {token.content!r} has the id {number}, but here {has}")

    if model_type == "t5" and inner.token_to_id("<extra_id_0>") is None:
        count = values.scalar("extra_ids", EXTRA_IDS)
        if not 0 <= count <= MOST_EXTRA_IDS:
            values.refuse("extra_ids", f"must be from 0 to {MOST_EXTRA_IDS:,}, got {count}")
        sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]
        inner.add_special_tokens([special_token(name) for name in sentinels])
    return {token.content for token, source in tokens.values() if source == values.path}


def read_added_tokens(directory: Path, values: HFConfig) -> dict[int, tuple[AddedToken, Path]]:
    """Return the tokens that are added to the vocabulary, and the file of each, by id.

    tokenizer_config.json of newer versions has them with their flags, added_tokens.json of older
    ones by name.
    """
    tokens: dict[int, tuple[AddedToken, Path]] = {}
    path = directory / ADDED_TOKENS_FILE
    for name, number in read_json_object(path).items():
        if not isinstance(number, int):
            raise UserError(f"{path}: {name}: must be an id")
        tokens[number] = AddedToken(name, special=False, normalized=True), path

    described = values.get("added_tokens_decoder")
    for key, flags in described.items() if isinstance(described, dict) else ():
        if not (
            key.isdigit() and isinstance(flags, dict) and isinstance(flags.get("content"), str)
        ):
            raise UserError(
                f"{values.path}: added_tokens_decoder: {key}: must be a token by its id"
            )
        options = {
            name: bool(flags.get(name, False))
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        tokens[int(key)] = AddedToken(flags["content"], **options), values.path
    return tokens


def mark_names(
    inner: tokenizers.Tokenizer, names: dict[str, str], described: set[str], model_type: str
) -> None:
    """Mark the tokens that have a role as special, unless the files say how they are.

    RoBERTa's mask takes the space before it along.
    """
    for key, name in names.items():
        is_wide = key == "mask_token" and model_type in ("roberta", "bart")
        if inner.token_to_id(name) is not None and name not in described:
            inner.add_special_tokens([special_token(name, lstrip=is_wide)])


def special_token(name: str, lstrip: bool = False) -> AddedToken:
    """Return a special token as the library wants it."""
    return AddedToken(name, lstrip=lstrip, special=True, normalized=False)


# What the class does beside its vocabulary


def set_options(inner: tokenizers.Tokenizer, values: HFConfig, model_type: str) -> None:
    """Follow the switches of tokenizer_config.json that change ids.

    Without a word on capitals BERT's class ignores them, whatever its vocabulary has.
    """
    if model_type in ("bert", "distilbert"):
        options: dict[str, Any] = {}
        for key, option in (
            ("do_lower_case", "lowercase"),
            ("strip_accents", "strip_accents"),
            ("tokenize_chinese_chars", "handle_chinese_chars"),
        ):
            if values.get(key) is not None:
                options[option] = values.scalar(key, None, bool)
        inner.normalizer = normalizers.BertNormalizer(**options)  # type: ignore[assignment]
    if CLASSES[model_type].files == GPT2_FILES:
        splitter: Any = inner.pre_tokenizer
        splitter.add_prefix_space = values.scalar("add_prefix_space", False, bool)


def frame_texts(
    inner: tokenizers.Tokenizer, names: dict[str, str], values: HFConfig, known: TokenizerClass
) -> None:
    """Put the tokens of the class around a text."""
    switches = {"before": ("add_bos_token", known.adds_begin)}
    switches["after"] = ("add_eos_token", known.adds_end)
    around = {}
    for place, key in (("before", known.before), ("after", known.after)):
        switch, default = switches[place]
        is_on = default is None or values.scalar(switch, default, bool)
        name = names.get(key) if key and is_on else None
        if name is not None and inner.token_to_id(name) is not None:
            around[place] = name
    if not around:
        return

    before, after = around.get("before"), around.get("after")

    def template(text: str, number: int) -> str:
        parts = (before, text, after)
        return " ".join(f"{part}:{number}" for part in parts if part is not None)

    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=template("$A", 0),
        pair=f"{template('$A', 0)} {template('$B', 1)}",
        special_tokens=[(name, inner.token_to_id(name)) for name in set(around.values())],
    )
