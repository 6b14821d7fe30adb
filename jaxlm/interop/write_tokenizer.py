"""Write the tokenizer of a run as the fast tokenizers of `transformers` read it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from jaxlm.data.tokenizer import special_token_names
from jaxlm.interop.hf_config import format_document
from jaxlm.interop.kept_files import (
    CHAT_TEMPLATE_FILE,
    CHAT_TEMPLATE_FOLDER,
    EXTRA_TOKEN_KEYS,
    describe_added_tokens,
    named_templates,
    restore_flags,
)
from jaxlm.interop.token_names import SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE
from jaxlm.interop.tokenizer import (
    TOKENIZER_FILE,
    TokenizerFrame,
    tokens_around_text,
    widen_special_tokens,
)

ROLES = (
    "bos_token",
    "eos_token",
    "cls_token",
    "sep_token",
    "pad_token",
    "mask_token",
    "unk_token",
)
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # of a chat template, as a file
# Entries of an imported tokenizer_config.json that an export doesn't repeat: where files lie, code
# that comes with a checkpoint, and classes that would build another tokenizer than tokenizer.json.
UNWRITTEN_KEYS = (
    "auto_map",
    "backend",
    "from_slow",
    "init_inputs",
    "is_local",
    "local_files_only",
    "merges_file",
    "name_or_path",
    "processor_class",
    "special_tokens_map_file",
    "tokenizer_file",
    "vocab_file",
)


def write_tokenizer(
    directory: Path,
    text: str,
    frame: TokenizerFrame,
    context_length: int,
    token_types: bool = False,
    kept: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    words: bool = False,
) -> None:
    """Write tokenizer.json, the files about its special tokens, and its chat templates.

    `text` is the tokenizer.json of a run. If it puts nothing around a text, it gets the frame's
    tokens. `token_types`: the model has them as an input. `kept` is the tokenizer_config.json that
    the run was imported with, and `chat_template` takes the place of its template. `words`: the
    model labels words, each of which was encoded with a space before it. The fast tokenizers of
    `transformers` read these files.
    """
    inner = tokenizers.Tokenizer.from_str(prefix_spaces(text) if words else text)
    if kept is None:
        widen_special_tokens(inner, frame)
    else:
        restore_flags(inner, kept)
    if tokens_around_text(inner) == ((), ()) and (frame.before or frame.after or frame.between):
        inner.post_processor = frame_processor(inner, frame)  # type: ignore[assignment]
    names = kept_token_names(kept or {}) | token_names(inner, frame)
    names |= extra_tokens(inner, frame, kept, set(names.values()))

    inputs = ["input_ids", "token_type_ids"] if token_types else ["input_ids"]
    tokenizer_config = {
        "model_max_length": context_length,
        "model_input_names": [*inputs, "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{key: value for key, value in (kept or {}).items() if key not in UNWRITTEN_KEYS},
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
    }
    if kept is not None:
        tokenizer_config["added_tokens_decoder"] = describe_added_tokens(inner)
    write_templates(directory, tokenizer_config, chat_template)

    (directory / TOKENIZER_FILE).write_text(inner.to_str(pretty=True), encoding="utf-8")
    for file, values in ((TOKENIZER_CONFIG_FILE, tokenizer_config), (SPECIAL_TOKENS_FILE, names)):
        (directory / file).write_text(format_document(values), encoding="utf-8")


def prefix_spaces(text: str) -> str:
    """Return a tokenizer.json that puts a space before the first word of a text, too.

    It does so where spaces belong to the word after them, as in GPT-2. Without the space a word of
    a list of words would have other tokens than in training.
    """
    document = json.loads(text)
    splitter = document["pre_tokenizer"] or {}
    for step in splitter.get("pretokenizers", [splitter]):
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = True
    return json.dumps(document)


def write_templates(
    directory: Path, tokenizer_config: dict[str, Any], chat_template: str | None
) -> None:
    """Write chat templates as files, and into `tokenizer_config`, which older readers look at.

    `chat_template` takes the place of the template "default".
    """
    templates = named_templates(tokenizer_config)
    if chat_template is not None:
        templates["default"] = chat_template
        tokenizer_config["chat_template"] = chat_template
    if templates.keys() - {"default"}:
        tokenizer_config["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items()
        ]

    # A file hides the entry. So all templates are files, or none where a name is no file's.
    if not all(PLAIN_NAME.fullmatch(name) for name in templates):
        return
    for name, template in templates.items():
        path = directory / CHAT_TEMPLATE_FILE
        if name != "default":
            path = directory / CHAT_TEMPLATE_FOLDER / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8", newline="")


def kept_token_names(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of an imported tokenizer_config.json by keys such as "eos_token"."""
    names = {}
    for key in ROLES:
        value = kept.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if isinstance(name, str):
            names[key] = name
    return names


def extra_tokens(
    inner: tokenizers.Tokenizer,
    frame: TokenizerFrame,
    kept: Mapping[str, Any] | None,
    named: set[str],
) -> dict[str, Any]:
    """Return the special tokens without a role, under the key that `kept` has for them.

    `named` are those with a role. An imported tokenizer names its own.
    """
    sentinels = [f"<extra_id_{number}>" for number in range(frame.sentinels)]
    if kept is None:
        others = special_token_names(inner)
        names = [*sentinels, *(name for name in others if name not in named | set(sentinels))]
        return {EXTRA_TOKEN_KEYS[0]: names} if names else {}

    key = next((key for key in EXTRA_TOKEN_KEYS if kept.get(key)), EXTRA_TOKEN_KEYS[0])
    tokens = kept.get(key) or []
    if isinstance(tokens, dict):  # by names of their own
        return {key: tokens}

    known = {token.get("content") if isinstance(token, dict) else token for token in tokens}
    tokens = [*tokens, *(name for name in sentinels if name not in known)]
    return {key: tokens} if tokens else {}


def token_names(inner: tokenizers.Tokenizer, frame: TokenizerFrame) -> dict[str, str]:
    """Return the tokens' names by keys such as "eos_token".

    Models that fill masks have the tokens around a text under the keys of BERT too.
    """
    fills_masks = frame.mask is not None and frame.begin_of_text is not None
    model = json.loads(inner.to_str())["model"]
    unknown = model.get("unk_token")
    if unknown is None and model.get("unk_id") is not None:
        unknown = inner.id_to_token(model["unk_id"])

    values = {
        "bos_token": None if frame.bos_id is None else inner.id_to_token(frame.bos_id),
        "eos_token": frame.end_of_text,
        "cls_token": frame.begin_of_text if fills_masks else None,
        "sep_token": frame.end_of_text if fills_masks else None,
        "pad_token": frame.pad,
        "mask_token": frame.mask,
        "unk_token": unknown,
    }
    return {key: name for key, name in values.items() if name is not None}


def frame_processor(
    inner: tokenizers.Tokenizer, frame: TokenizerFrame
) -> processors.TemplateProcessing:
    """Return a processor that puts the frame's ids around a text.

    The second text of a pair is followed by `after` once more.
    """
    between = frame.after or frame.between
    before = [inner.id_to_token(number) for number in frame.before]
    after = [inner.id_to_token(number) for number in frame.after]
    special_tokens = [
        (inner.id_to_token(number), number) for number in {*frame.before, *frame.after, *between}
    ]

    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *map(inner.id_to_token, between), "$B", *after],
        special_tokens=special_tokens,
    )
