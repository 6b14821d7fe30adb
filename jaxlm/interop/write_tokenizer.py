"""Write the tokenizer of a run as the fast tokenizers of `transformers` read it."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from jaxlm.interop.tokenizer import (
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    TokenizerFrame,
    tokens_around_text,
)


def write_tokenizer(
    directory: Path,
    text: str,
    frame: TokenizerFrame,
    context_length: int,
    token_types: bool = False,
) -> None:
    """Write tokenizer.json and the files about its special tokens.

    `text` is the tokenizer.json of a run. If it puts nothing around a text, it gets the frame's
    tokens. `token_types`: the model has them as an input. The fast tokenizers of `transformers`
    read these files.
    """
    inner = tokenizers.Tokenizer.from_str(widen_mask(text, frame))
    if tokens_around_text(inner) == ((), ()) and (frame.before or frame.after):
        inner.post_processor = frame_processor(inner, frame)  # type: ignore[assignment]
    names: dict[str, Any] = {**token_names(inner, frame)}
    sentinels = [f"<extra_id_{number}>" for number in range(frame.sentinels)]
    if sentinels:
        names["additional_special_tokens"] = sentinels

    inputs = ["input_ids", "token_type_ids"] if token_types else ["input_ids"]
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "model_max_length": context_length,
        "model_input_names": [*inputs, "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }

    (directory / TOKENIZER_FILE).write_text(inner.to_str(pretty=True), encoding="utf-8")
    for file, values in ((TOKENIZER_CONFIG_FILE, tokenizer_config), (SPECIAL_TOKENS_FILE, names)):
        content = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        (directory / file).write_text(content, encoding="utf-8")


def token_names(inner: tokenizers.Tokenizer, frame: TokenizerFrame) -> dict[str, str]:
    """Return the tokens' names by keys such as "eos_token".

    Models that fill masks have the tokens around a text under the keys of BERT too.
    """
    fills_masks = frame.mask is not None and frame.begin_of_text is not None
    model = json.loads(inner.to_str())["model"]
    unknown = model.get("unk_token")
    if unknown is None and model.get("unk_id") is not None:
        unknown = inner.id_to_token(model["unk_id"])

    names = {
        "bos_token": None if frame.bos_id is None else inner.id_to_token(frame.bos_id),
        "eos_token": frame.end_of_text,
        "cls_token": frame.begin_of_text if fills_masks else None,
        "sep_token": frame.end_of_text if fills_masks else None,
        "pad_token": frame.pad,
        "mask_token": frame.mask,
        "unk_token": unknown,
    }
    return {key: name for key, name in names.items() if name is not None}


def widen_mask(text: str, frame: TokenizerFrame) -> str:
    """Return a tokenizer.json whose mask includes the space before it, as RoBERTa's does.

    Tokens of a byte-level BPE begin with the space before their word, so that in training a mask
    stands for both. Only tokenizers that jaxlm made are changed, and not those of bytes, which are
    masked one by one.
    """
    values = json.loads(text)
    splitter = values["pre_tokenizer"] or {}
    is_byte_level_bpe = splitter.get("type") == "ByteLevel" and splitter.get("use_regex")
    if values["post_processor"] is not None or not is_byte_level_bpe:
        return text

    for token in values["added_tokens"]:
        token["lstrip"] = token["lstrip"] or token["content"] == frame.mask
    return json.dumps(values, ensure_ascii=False)


def frame_processor(
    inner: tokenizers.Tokenizer, frame: TokenizerFrame
) -> processors.TemplateProcessing:
    """Return a processor that puts the frame's ids around a text.

    The second text of a pair is followed by `after` once more.
    """
    before = [inner.id_to_token(number) for number in frame.before]
    after = [inner.id_to_token(number) for number in frame.after]
    special_tokens = [
        (inner.id_to_token(number), number) for number in {*frame.before, *frame.after}
    ]

    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, "$B", *after],
        special_tokens=special_tokens,
    )
