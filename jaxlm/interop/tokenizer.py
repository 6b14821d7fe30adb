"""Read the tokenizer of a Hugging Face directory, or of a run, and its special tokens.

tokenizer.json is the tokenizer, or files of another format are; the files beside it say which of
its tokens are special.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from jaxlm.config import ObjectiveConfig, TokenizerConfig, UserError
from jaxlm.interop.generation_config import (
    GenerationConfig,
    TokenRules,
    read_generation_config,
)
from jaxlm.interop.hf_config import read_hf_config
from jaxlm.interop.other_tokenizers import TOKENIZER_FILE, read_other_files
from jaxlm.interop.token_names import (
    CLASS_TOKENS,
    ROLE_KEYS,
    TOKENIZER_CONFIG_FILE,
    read_token_names,
)


class TokenizerFrame(NamedTuple):
    """Special tokens by their roles, and the ids that generation needs.

    The first five fields are those of jaxlm.data.vocabulary.SpecialTokens.
    """

    end_of_text: str  # ends every document
    begin_of_text: str | None = None  # another token than end_of_text
    pad: str | None = None
    mask: str | None = None
    sentinels: int = 0  # number of tokens <extra_id_0>, <extra_id_1>, ...
    eos_ids: tuple[int, ...] = ()  # each ends a generation; the first is that of end_of_text
    bos_id: int | None = None  # may be that of end_of_text (GPT-2)
    pad_id: int | None = None
    decoder_start_id: int | None = None  # the first input of an encoder-decoder's decoder
    forced_bos_id: int | None = None  # the first token that is generated
    forced_eos_id: int | None = None  # the last one where a generation reaches its limit
    before: tuple[int, ...] = ()  # ids before a text that the model reads (Llama, BERT)
    after: tuple[int, ...] = ()  # ids after it (BERT, T5)
    between: tuple[int, ...] = ()  # ids between two texts, where nothing stands after one
    rules: TokenRules = TokenRules()  # tokens that a generation must not have
    notes: tuple[str, ...] = ()  # what the files ask of a generation that it does not follow


# --- reading ---


def read_tokenizer(directory: Path | str) -> tuple[TokenizerConfig, TokenizerFrame]:
    """Return the tokenizer's config (kind "file") and its special tokens.

    UserError, with the file, where they can't be used.
    """
    directory = Path(directory)
    hf_config = read_hf_config(directory)
    path = directory / TOKENIZER_FILE
    inner = load_tokenizer_json(path)

    # Names that files give must exist; names that only the class has are a guess.
    names = read_token_names(directory)
    for key, name in names.items():
        if inner.token_to_id(name) is None:
            raise UserError(
                f"{path}: has no token {name!r}, which the files beside it name as {key}"
            )
    # Beside a tokenizer.json the files name all roles or none.
    if not names or not path.exists():
        class_names = CLASS_TOKENS.get(str(hf_config.get("model_type")), {})
        known = {k: name for k, name in class_names.items() if inner.token_to_id(name) is not None}
        names = known | names
    roles = {
        role: next((names[key] for key in keys if key in names), None)
        for role, keys in ROLE_KEYS.items()
    }

    generation = read_generation_config(directory, hf_config)
    end_of_text = roles["end_of_text"] or first_token(inner, generation.eos_ids)
    if end_of_text is None:
        raise UserError(
            f"{directory / TOKENIZER_CONFIG_FILE}: eos_token: no file says which token ends a "
            "text; name it there"
        )
    begin_of_text = roles["begin_of_text"]
    before, after = tokens_around_text(inner)
    frame = TokenizerFrame(
        end_of_text,
        begin_of_text if begin_of_text != end_of_text else None,
        roles["pad"],
        roles["mask"],
        count_sentinels(inner),
        before=before,
        after=after,
        **special_token_ids(inner, names, generation, end_of_text),
    )
    return build_tokenizer_config(path, frame), frame


def load_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    """Return a tokenizer.json, or what stands for it in its folder, as `read_other_files` says.

    UserError where it is broken, or missing without such files.
    """
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return read_other_files(path.parent)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not a tokenizer.json: {reason}") from error


def first_token(inner: tokenizers.Tokenizer, ids: tuple[int, ...]) -> str | None:
    """Return the name of the first id that the tokenizer has."""
    for number in ids:
        name = inner.id_to_token(number)
        if name:
            return name
    return None


def special_token_ids(
    inner: tokenizers.Tokenizer,
    names: dict[str, str],
    generation: GenerationConfig,
    end_of_text: str,
) -> dict[str, Any]:
    """Return the fields of TokenizerFrame that generation needs.

    A token's name counts more than an id of a config, and ids that the tokenizer doesn't have are
    left out: config.json may keep ids of its class that have nothing to do with the tokenizer. For
    the same reason the end of text always ends a generation.
    """

    def existing(number: int | None) -> int | None:
        return None if number is None or inner.id_to_token(number) is None else number

    def named(number: int | None, *keys: str) -> int | None:
        for key in keys:
            if key in names:
                return inner.token_to_id(names[key])
        return existing(number)

    ends = [inner.token_to_id(end_of_text), *generation.eos_ids]
    eos_ids = dict.fromkeys(number for number in ends if existing(number) is not None)
    return {
        "eos_ids": tuple(eos_ids),
        "bos_id": named(generation.bos_id, "bos_token", "cls_token"),
        "pad_id": named(generation.pad_id, "pad_token"),
        "decoder_start_id": existing(generation.decoder_start_id),
        "forced_bos_id": existing(generation.forced_bos_id),
        "forced_eos_id": existing(generation.forced_eos_id),
        "rules": generation.rules,
        "notes": tuple(generation.warnings),
    }


def tokens_around_text(inner: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the tokenizer puts before and after a text."""
    framed = inner.encode("a", add_special_tokens=True).ids
    plain = inner.encode("a", add_special_tokens=False).ids

    start = 0
    for place in range(len(framed) - len(plain) + 1):
        if framed[place : place + len(plain)] == plain:
            start = place
            break
    return tuple(framed[:start]), tuple(framed[start + len(plain) :])


def count_sentinels(inner: tokenizers.Tokenizer) -> int:
    """Return how many of <extra_id_0>, <extra_id_1>, ... the tokenizer has without a gap."""
    for number in itertools.count():
        if inner.token_to_id(f"<extra_id_{number}>") is None:
            return number
    raise AssertionError("itertools.count has no end")


def check_tokens(
    path: Path, inner: tokenizers.Tokenizer, objective_kind: str, required: Mapping[str, str]
) -> None:
    """Raise UserError if several of the tokens that an objective needs are missing; it names all.

    `required` has them by their keys in `TokenizerConfig`. Where one alone is missing, the error
    comes with a suggestion when the tokenizer is loaded.
    """
    missing = {key: name for key, name in required.items() if inner.token_to_id(name) is None}
    if len(missing) < 2:
        return
    names = " and ".join(repr(name) for name in missing.values())
    edits = " ".join(dict.fromkeys(f"tokenizer.{key.partition('.')[0]}=NAME" for key in missing))
    raise UserError(
        f"{path}: has no {names}, which objective.kind={objective_kind!r} needs; if it has other "
        f"names for them, add {edits}"
    )


def build_tokenizer_config(path: Path, frame: TokenizerFrame) -> TokenizerConfig:
    """Return the config of a run that uses this tokenizer.json.

    A token that it lacks keeps its default name.
    """
    config = TokenizerConfig(
        kind="file",
        path=str(path),
        end_of_text=frame.end_of_text,
        begin_of_text=frame.begin_of_text,
    )
    return replace(
        config,
        pad=frame.pad or config.pad,
        mask=frame.mask or config.mask,
        sentinels=frame.sentinels or config.sentinels,
    )


# --- the tokenizer of a run ---


def run_tokenizer_frame(
    config: TokenizerConfig,
    objective: ObjectiveConfig,
    inner: tokenizers.Tokenizer,
    generation: GenerationConfig | None = None,
    family: str | None = None,
) -> TokenizerFrame:
    """Return the special tokens of a run whose tokenizer.json is `inner`.

    `family` is that of the model; None: the first that the objective trains. What stands around a
    text is what the samples of its objective have there. `generation` is what an imported run
    keeps: more ends of a generation, tokens that are forced.
    """
    vocabulary = inner.get_vocab(with_added_tokens=True)
    names = {
        "end_of_text": config.end_of_text,
        "begin_of_text": config.begin_of_text,
        "pad": config.pad if config.pad in vocabulary else None,
        "mask": config.mask if config.mask in vocabulary else None,
    }
    ids = {role: vocabulary[name] for role, name in names.items() if name is not None}

    family = family or objective.families[0]
    default_bos_id = ids["end_of_text"] if family == "decoder" else None
    before, after = tokens_around_text(inner)
    if not before and not after:
        before, after = objective_frame(objective.mixed[0].kind, ids, family)
    separates = objective.kind == "classify" and family == "decoder"
    frame = TokenizerFrame(
        **names,
        sentinels=min(config.sentinels, count_sentinels(inner)),
        eos_ids=(ids["end_of_text"],),
        bos_id=ids.get("begin_of_text", default_bos_id),
        pad_id=ids.get("pad"),
        decoder_start_id=ids.get(objective.start) if family == "encoder_decoder" else None,
        before=before,
        after=after,
        between=(ids["end_of_text"],) if separates and not after else (),
    )
    if generation is None:
        return frame

    # The decoder starts as it was trained to, whatever the imported model started with.
    kept = special_token_ids(inner, {}, generation, config.end_of_text)
    kept["bos_id"] = ids.get("begin_of_text", kept["bos_id"])
    kept["pad_id"] = ids.get("pad", kept["pad_id"])
    kept["decoder_start_id"] = frame.decoder_start_id
    return frame._replace(**kept)


def widen_special_tokens(inner: tokenizers.Tokenizer, frame: TokenizerFrame) -> None:
    """Let mask and sentinels take the space before them along, as RoBERTa's mask does.

    Tokens of a byte-level BPE begin with the space before their word, so that in training a mask
    or a sentinel stands for both. Bytes are hidden one by one, and other tokenizers keep the space
    apart. Tokenizers that were not made here have a post-processor, and say themselves what their
    tokens take along.
    """
    splitter: Any = inner.pre_tokenizer
    starts_words_with_space = type(splitter).__name__ == "ByteLevel" and splitter.use_regex
    if not starts_words_with_space or inner.post_processor is not None:
        return

    names = {frame.mask, *(f"<extra_id_{number}>" for number in range(frame.sentinels))}
    tokens = [
        token for token in inner.get_added_tokens_decoder().values() if token.content in names
    ]
    for token in tokens:
        wide = AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=True,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=token.special,
        )
        inner.add_special_tokens([wide])


def objective_frame(
    objective_kind: str, ids: Mapping[str, int], family: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that an objective puts before and after the text that a model reads.

    `ids` has the ids of the roles, and `family` is that of the model.
    """
    if objective_kind == "classify":
        begin = (ids["begin_of_text"],) if "begin_of_text" in ids else ()
        return begin, () if family == "decoder" else (ids["end_of_text"],)
    if objective_kind in ("masked", "replaced_tokens", "infilling") and "begin_of_text" in ids:
        return (ids["begin_of_text"],), (ids["end_of_text"],)
    return (), ((ids["end_of_text"],) if objective_kind in ("span", "pairs") else ())
