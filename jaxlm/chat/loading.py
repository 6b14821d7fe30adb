"""Find the chat template of a name, a file, a run or a Hugging Face directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm import config
from jaxlm.chat.named_templates import NAMED_TEMPLATES
from jaxlm.chat.template import ChatTemplate
from jaxlm.config import TokenizerConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.directories import CONFIG_FILE, is_run
from jaxlm.files import expand_home, read_utf8, write_atomically

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
TOKENIZER_JSON = "tokenizer.json"
MOST_BYTES = 10 << 20  # real ones have a few thousand
TOKEN_KEYS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def load_template(
    spec: str | None, folder: Path | str | None = None, tokens: Mapping[str, str] | None = None
) -> ChatTemplate:
    """Return a chat template: a named one, that of a file, or (None) that of a folder.

    The folder is a run or a Hugging Face directory: its chat_template.jinja, else "chat_template"
    of its tokenizer_config.json. `tokens` are its special tokens by keys such as "eos_token"; None:
    as the folder has them. UserError where there is no template, or none that can be read.
    """
    folder = None if folder is None else Path(folder)
    if tokens is None:
        tokens = {} if folder is None else read_template_tokens(folder)
    if spec is None:
        if folder is None:
            raise UserError("tokenizer.chat_template: names no template, and there is no base")
        name, source = read_folder_template(folder)
    elif spec in NAMED_TEMPLATES:
        name, source = f"chat template {spec!r}", NAMED_TEMPLATES[spec]
        if "eos_token" in source and not tokens.get("eos_token"):
            raise UserError(f"{name}: needs a token that ends texts (eos_token)")
    else:
        name, source = spec, read_template_file(spec)

    template = ChatTemplate(name, source, tuple(sorted(tokens.items())))
    template.check()
    return template


def has_template(folder: Path) -> bool:
    """Return whether a run or a Hugging Face directory has a chat template."""
    if (folder / TEMPLATE_FILE).exists():
        return True
    return bool(read_object(folder / TOKENIZER_CONFIG).get("chat_template"))


def write_template(run: Path, template: ChatTemplate) -> None:
    """Write chat_template.jinja into a run directory."""
    write_atomically(run / TEMPLATE_FILE, template.source)


def read_template_file(spec: str) -> str:
    """Return the text of the file that a config names; UserError where it can't be read."""
    path = expand_home(spec)
    key = "tokenizer.chat_template"
    try:
        if not path.exists():
            near = suggestion(spec, NAMED_TEMPLATES)
            names = list_names([*NAMED_TEMPLATES])
            raise UserError(f"{key}: {spec}: there is no such file or template: {names}{near}")
    except OSError as error:
        raise UserError(f"{key}: {spec}: {error.strerror}") from error
    return read_text_file(path, f"{key}: {spec}")


def read_folder_template(folder: Path) -> tuple[str, str]:
    """Return the name and the text of the template that a folder has."""
    path = folder / TEMPLATE_FILE
    if path.exists():
        return str(path), read_text_file(path, str(path))

    path = folder / TOKENIZER_CONFIG
    value = read_object(path).get("chat_template")
    name = f"{path}: chat_template"
    if value is None:
        raise UserError(
            f"{folder}: has no chat template ({TEMPLATE_FILE}, or chat_template in "
            f"{TOKENIZER_CONFIG})"
        )
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        if "default" not in named:
            names = list_names([str(name) for name in named])
            raise UserError(f"{name}: has no template 'default', only {names}")
        value = named["default"]
    if not isinstance(value, str):
        raise UserError(f"{name}: must be a string, got {type(value).__name__}")
    return name, value


def read_text_file(path: Path, place: str) -> str:
    """Return the text of a small file; errors begin with `place`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{place}: is larger than {MOST_BYTES >> 20} MiB")
        return read_utf8(path)
    except OSError as error:
        raise UserError(f"{place}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: is not UTF-8 (byte {error.start})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file; {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        values = json.loads(read_text_file(path, str(path)))
    except RecursionError as error:
        raise UserError(f"{path}: not JSON: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")
    return values


# --- special tokens ---


def read_template_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens of a run or a Hugging Face directory by keys like "eos_token"."""
    tokens = read_token_files(folder)
    if not is_run(folder):
        return tokens
    run_config = config.load(folder / CONFIG_FILE)
    vocabulary = read_added_tokens(folder / TOKENIZER_JSON)
    return tokens | config_tokens(run_config.tokenizer, run_config.model.family, vocabulary)


def read_token_files(folder: Path) -> dict[str, str]:
    """Return the special tokens that the files beside a tokenizer.json name.

    Tokens of a model's own ("extra_special_tokens" with names) are among them.
    """
    tokens: dict[str, str] = {}
    for file in (SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG):
        values = read_object(folder / file)
        extra = values.get("extra_special_tokens")
        named = {key: values.get(key) for key in TOKEN_KEYS}
        for key, value in (named | (extra if isinstance(extra, dict) else {})).items():
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str):
                tokens[key] = name
    return tokens


def read_added_tokens(path: Path) -> set[str]:
    """Return the names of the added tokens of a tokenizer.json."""
    added = read_object(path).get("added_tokens")
    tokens = added if isinstance(added, list) else []
    return {str(token.get("content")) for token in tokens if isinstance(token, dict)}


def config_tokens(tokenizer: TokenizerConfig, family: str, vocabulary: set[str]) -> dict[str, str]:
    """Return the special tokens of a run's config by the keys that its export gives them.

    `vocabulary` has the names of the special tokens that there are.
    """
    begin = tokenizer.begin_of_text
    if begin is None and family == "decoder":
        begin = tokenizer.end_of_text
    tokens = {
        "bos_token": begin,
        "eos_token": tokenizer.end_of_text,
        "pad_token": tokenizer.pad if tokenizer.pad in vocabulary else None,
        "mask_token": tokenizer.mask if tokenizer.mask in vocabulary else None,
    }
    return {key: name for key, name in tokens.items() if name is not None}
