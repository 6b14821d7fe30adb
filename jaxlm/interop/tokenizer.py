"""The tokenizer of a Hugging Face directory: tokenizer.json, and what the files beside it say about special tokens; both ways."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from jaxlm import config
from jaxlm.config import UserError
from jaxlm.config.objective import TRAINED_BY
from jaxlm.interop import generation_config, hf_config
from jaxlm.interop.hf_config import HFConfig, shown

FILE, CONFIG, MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
OTHER_FILES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)

# What their files call the tokens of a role; the first that is there holds. BERT's are cls and sep, and those of models that have
# both kinds are the same tokens.
NAMES = {
    "end_of_text": ("sep_token", "eos_token"),
    "begin_of_text": ("cls_token", "bos_token"),
    "pad": ("pad_token",),
    "mask": ("mask_token",),
}

# Names of checkpoints whose files leave them to the class, as far as tokenizer.json has them.
BERT = {"sep_token": "[SEP]", "cls_token": "[CLS]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
ROBERTA = {"sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
DEFAULTS = {
    "bert": BERT,
    "distilbert": BERT,
    "modernbert": BERT,
    "roberta": ROBERTA,
    "bart": ROBERTA,
    "gpt2": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
    "gpt_neox": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
    "bloom": {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"},
    "llama": {"eos_token": "</s>", "bos_token": "<s>"},
    "t5": {"eos_token": "</s>", "pad_token": "<pad>"},
}


class TokenizerFrame(NamedTuple):
    """Special tokens by their roles, the first five as jaxlm.data.vocabulary.SpecialTokens has them; and the ids for generation."""

    end_of_text: str  # ends every document
    begin_of_text: str | None = None  # another token than end_of_text
    pad: str | None = None
    mask: str | None = None
    sentinels: int = 0  # how many of <extra_id_0>, <extra_id_1>, ...
    eos_ids: tuple[int, ...] = ()  # each ends a generation; the first is that of end_of_text
    bos_id: int | None = None  # may be that of end_of_text (GPT-2)
    pad_id: int | None = None
    decoder_start_id: int | None = None  # what the decoder of an encoder-decoder reads first
    forced_bos_id: int | None = None  # the first token that is generated
    forced_eos_id: int | None = None  # the last one where a generation reaches its limit
    before: tuple[
        int, ...
    ] = ()  # what belongs before a text that the model reads (Llama, BERT) ...
    after: tuple[int, ...] = ()  # ... and after it (BERT, T5)


def read(directory: Path | str) -> tuple[config.TokenizerConfig, TokenizerFrame]:
    """The tokenizer's settings (kind "file") and its special tokens; UserError, with the file, where they can't be used."""
    directory = Path(directory)
    about = hf_config.read(directory)
    path = directory / FILE
    inner = load(path)
    named = names(directory) or {
        key: name
        for key, name in default_names(about).items()
        if inner.token_to_id(name) is not None
    }
    for key, name in named.items():
        if inner.token_to_id(name) is None:
            raise UserError(
                f"{path}: has no token {name!r}, which the files beside it name as {key}"
            )
    generated = generation_config.read(directory, about)
    roles = {
        role: next((named[key] for key in keys if key in named), None)
        for role, keys in NAMES.items()
    }
    end = roles["end_of_text"] or next(
        (name for number in generated.eos_ids if (name := inner.id_to_token(number))), None
    )
    if end is None:
        raise UserError(
            f"{directory / CONFIG}: eos_token: nothing says which token ends a text; name it there"
        )
    begin = roles["begin_of_text"] if roles["begin_of_text"] != end else None
    special = TokenizerFrame(
        end,
        begin,
        roles["pad"],
        roles["mask"],
        count_sentinels(inner),
        **ids(inner, named, generated, end),
    )
    before, after = frame(inner)
    return file_settings(path, special), special._replace(before=before, after=after)


def file_settings(path: Path, special: TokenizerFrame) -> config.TokenizerConfig:
    """The settings of a run that uses this tokenizer.json. A token that it lacks keeps its default name."""
    made = config.TokenizerConfig(
        kind="file",
        path=str(path),
        end_of_text=special.end_of_text,
        begin_of_text=special.begin_of_text,
    )
    return replace(
        made,
        pad=special.pad or made.pad,
        mask=special.mask or made.mask,
        sentinels=special.sentinels or made.sentinels,
    )


def of_run(
    tokenizer: config.TokenizerConfig,
    objective: config.ObjectiveConfig,
    inner: tokenizers.Tokenizer,
) -> TokenizerFrame:
    """The special tokens of a run whose tokenizer.json is `inner`; what belongs around a text is what its samples have there."""
    end, begin = tokenizer.end_of_text, tokenizer.begin_of_text
    known = inner.get_vocab(with_added_tokens=True)
    pad, mask = (name if name in known else None for name in (tokenizer.pad, tokenizer.mask))
    number = {
        role: known[name]
        for role, name in zip(NAMES, (end, begin, pad, mask), strict=True)
        if name is not None
    }
    writes = TRAINED_BY[objective.kind] == "encoder_decoder"
    before, after = frame(inner)
    if not before and not after:
        before, after = sample_frame(objective.kind, number)
    return TokenizerFrame(
        *(end, begin, pad, mask, min(tokenizer.sentinels, count_sentinels(inner))),
        eos_ids=(number["end_of_text"],),
        bos_id=number.get(
            "begin_of_text",
            number["end_of_text"] if TRAINED_BY[objective.kind] == "decoder" else None,
        ),
        pad_id=number.get("pad"),
        decoder_start_id=number.get(objective.start) if writes else None,
        before=before,
        after=after,
    )


def sample_frame(kind: str, number: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after the text that a model reads, as the objectives lay it out; `number` has the ids of the roles."""
    if kind in ("masked", "infilling") and "begin_of_text" in number:
        return (number["begin_of_text"],), (number["end_of_text"],)
    return (), ((number["end_of_text"],) if kind in ("span", "pairs") else ())


def count_sentinels(inner: tokenizers.Tokenizer) -> int:
    return next(
        number for number in itertools.count() if inner.token_to_id(f"<extra_id_{number}>") is None
    )


def load(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json."""
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = [name for name in OTHER_FILES if (path.parent / name).exists()]
        beside = f"{' and '.join(others)} alone can't be read; " if others else ""
        how = "the fast tokenizers of transformers write it: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        raise UserError(f"{path}: there is no such file: {beside}{how}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"{path}: is not a tokenizer.json: {' '.join(str(error).split())}"
        ) from error


def names(directory: Path) -> dict[str, str]:
    """'eos_token', 'cls_token', ... -> the token's name; of two files that say it the first holds."""
    found: dict[str, str] = {}
    for file in (CONFIG, MAP):
        path = directory / file
        values = hf_config.read_json(path) if path.exists() else {}
        if not isinstance(values, dict):
            raise UserError(f"{path}: must be a JSON object")
        known = {
            key: values[key]
            for keys in NAMES.values()
            for key in keys
            if values.get(key) is not None
        }
        found = {key: name_of(path, key, value) for key, value in known.items()} | found
    return found


def name_of(path: Path, key: str, value: Any) -> str:
    """A token's name, which may stand in an object with the token's properties."""
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise UserError(f"{path}: {key}: must be a token's text, got {shown(value)}")
    return name


def default_names(about: HFConfig) -> dict[str, str]:
    return DEFAULTS.get(str(about.get("model_type")), {})


def ids(
    inner: tokenizers.Tokenizer,
    named: dict[str, str],
    generated: generation_config.GenerationConfig,
    end: str,
) -> dict[str, Any]:
    """The fields of `Special` that are ids. The tokens' names hold for what has one; an id that no token has is none.

    config.json may keep ids of its class that have nothing to do with the tokenizer, so that the end of text counts in any case.
    """

    def known(number: int | None) -> int | None:
        return None if number is None or inner.id_to_token(number) is None else number

    def called(number: int | None, *keys: str) -> int | None:
        return next((inner.token_to_id(named[key]) for key in keys if key in named), known(number))

    ends = [
        token for token in (inner.token_to_id(end), *generated.eos_ids) if known(token) is not None
    ]
    return {
        "eos_ids": tuple(dict.fromkeys(ends)),
        "bos_id": called(generated.bos_id, "bos_token", "cls_token"),
        "pad_id": called(generated.pad_id, "pad_token"),
        "decoder_start_id": known(generated.decoder_start_id),
        "forced_bos_id": known(generated.forced_bos_id),
        "forced_eos_id": known(generated.forced_eos_id),
    }


def frame(inner: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after a text."""
    text = "a"
    whole, plain = (inner.encode(text, add_special_tokens=special).ids for special in (True, False))
    places = range(len(whole) - len(plain) + 1)
    start = next((place for place in places if whole[place : place + len(plain)] == plain), 0)
    return tuple(whole[:start]), tuple(whole[start + len(plain) :])


def write(
    directory: Path,
    text: str,
    special: TokenizerFrame,
    context_length: int,
    token_types: bool = False,
) -> None:
    """tokenizer.json from its `text`, and the files that say what its tokens are for, as the fast tokenizers of transformers read them.

    The text's own way to frame a text is kept; if it has none, it becomes that of `special`. `token_types`: the model has them.
    """
    inner = tokenizers.Tokenizer.from_str(with_wide_mask(text, special))
    if frame(inner) == ((), ()) and (special.before or special.after):
        inner.post_processor = template(inner, special)  # type: ignore[assignment]
    roles = role_names(inner, special)
    extra = [f"<extra_id_{number}>" for number in range(special.sentinels)]
    listed = {"additional_special_tokens": extra} if extra else {}
    inputs = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if token_types
        else ["input_ids", "attention_mask"]
    )
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        **listed,
        "model_max_length": context_length,
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
    }
    (directory / FILE).write_text(inner.to_str(pretty=True), encoding="utf-8")
    for file, values in ((CONFIG, about), (MAP, {**roles, **listed})):
        (directory / file).write_text(
            json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def role_names(inner: tokenizers.Tokenizer, special: TokenizerFrame) -> dict[str, str]:
    """'eos_token', 'cls_token', ... -> the token's name. Models that fill masks have the frame of a text under both names."""
    framed = special.mask is not None and special.begin_of_text is not None
    model = json.loads(inner.to_str())["model"]
    unknown = model.get("unk_token")
    if unknown is None and model.get("unk_id") is not None:
        unknown = inner.id_to_token(model["unk_id"])
    found = {
        "bos_token": None if special.bos_id is None else inner.id_to_token(special.bos_id),
        "eos_token": special.end_of_text,
        "cls_token": special.begin_of_text if framed else None,
        "sep_token": special.end_of_text if framed else None,
        "pad_token": special.pad,
        "mask_token": special.mask,
        "unk_token": unknown,
    }
    return {key: name for key, name in found.items() if name is not None}


def with_wide_mask(text: str, special: TokenizerFrame) -> str:
    """A tokenizer.json made here, with a mask that takes the space before it along, as RoBERTa's does.

    Its tokens begin with the space before their word, so a mask stands for both. Bytes are masked one by one, and a tokenizer made
    elsewhere has said what it wants.
    """
    parts = json.loads(text)
    splitter = parts["pre_tokenizer"] or {}
    if (
        parts["post_processor"] is not None
        or splitter.get("type") != "ByteLevel"
        or not splitter.get("use_regex")
    ):
        return text
    for token in parts["added_tokens"]:
        token["lstrip"] = token["lstrip"] or token["content"] == special.mask
    return json.dumps(parts, ensure_ascii=False)


def template(inner: tokenizers.Tokenizer, special: TokenizerFrame) -> processors.TemplateProcessing:
    """Puts `before` and `after` around a text, and `after` again behind the second text of a pair."""
    before, after = (
        [inner.id_to_token(number) for number in numbers]
        for numbers in (special.before, special.after)
    )
    known = [(inner.id_to_token(number), number) for number in {*special.before, *special.after}]
    return processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, "$B", *after],
        special_tokens=known,
    )
