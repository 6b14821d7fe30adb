"""Find the chat template of a name, a file, a run or a Hugging Face directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm import config
from jaxlm.chat.named_templates import NAMED_TEMPLATES
from jaxlm.chat.template import ChatTemplate
from jaxlm.config import ConfigError, TokenizerConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.directories import CONFIG_FILE
from jaxlm.files import expand_home, read_utf8, write_atomically

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
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
    name, source = find_source(spec, folder)
    if tokens is None:
        tokens = {} if folder is None else read_template_tokens(folder)
    if spec in NAMED_TEMPLATES and "eos_token" in source and not tokens.get("eos_token"):
        raise UserError(f"{name}: needs a token that ends texts (eos_token)")

    template = ChatTemplate(name, source, tuple(sorted(tokens.items())))
    template.check()
    return template


def load_config_template(tokenizer: TokenizerConfig, family: str = "decoder") -> ChatTemplate:
    """Return the chat template of a config: the one that it names, else that of its tokenizer.

    `family` is that of the model. Raises the errors of `load_template`.
    """
    folder = tokenizer_folder(tokenizer)
    if tokenizer.chat_template is None and folder is None:
        names = list_names([*NAMED_TEMPLATES])
        reason = f"is needed where there is no base: {names} or a file"
        raise ConfigError("tokenizer.chat_template", reason)
    files = {} if folder is None else read_token_files(folder)
    return load_template(tokenizer.chat_template, folder, config_tokens(tokenizer, family, files))


def find_source(spec: str | None, folder: Path | None = None) -> tuple[str, str]:
    """Return the name and the text of a template, as `load_template` finds it."""
    if spec is None:
        assert folder is not None, "a template without a name is that of a folder"
        return read_folder_template(folder)
    if spec in NAMED_TEMPLATES:
        return f"chat template {spec!r}", NAMED_TEMPLATES[spec]
    return spec, read_template_file(spec)


def has_template(folder: Path) -> bool:
    """Return whether a run or a Hugging Face directory has a chat template."""
    if (folder / TEMPLATE_FILE).exists():
        return True
    return bool(read_object(folder / TOKENIZER_CONFIG).get("chat_template"))


def keep_template(tokenizer: TokenizerConfig, run: Path) -> None:
    """Write chat_template.jinja into a run directory, where its config or its tokenizer has one.

    Raises UserError for a template that the config names and that can't be read, OSError where the
    file can't be written.
    """
    folder = tokenizer_folder(tokenizer)
    if tokenizer.chat_template is None and folder is None:
        return
    try:
        _, source = find_source(tokenizer.chat_template, folder)
    except UserError:
        if tokenizer.chat_template is not None:
            raise
        return  # most tokenizers have none, and most runs need none
    write_atomically(run / TEMPLATE_FILE, source)


def check_named_template(tokenizer: TokenizerConfig, run: Path) -> None:
    """Raise ConfigError if a config names a template that isn't there; a run has its own copy."""
    if tokenizer.chat_template is not None and not (run / TEMPLATE_FILE).exists():
        find_source(tokenizer.chat_template)


def tokenizer_folder(tokenizer: TokenizerConfig) -> Path | None:
    """Return the folder that a tokenizer was read from; None for one that is made here."""
    if tokenizer.path is None:
        return None
    path = expand_home(tokenizer.path)
    return path if path.is_dir() else path.parent


def read_template_file(spec: str) -> str:
    """Return the text of the file that a config names; ConfigError where it can't be read."""
    path, key = expand_home(spec), "tokenizer.chat_template"
    try:
        if not path.exists():
            near = suggestion(spec, NAMED_TEMPLATES)
            names = list_names([*NAMED_TEMPLATES])
            raise ConfigError(key, f"{spec}: there is no such file or template{near}; {names}")
    except OSError as error:
        raise ConfigError(key, f"{spec}: {error.strerror}") from error
    try:
        return read_text_file(path, spec)
    except UserError as error:
        raise ConfigError(key, str(error)) from error


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
    if "run_directory" not in read_object(folder / CONFIG_FILE):
        return tokens
    run_config = config.load(folder / CONFIG_FILE)
    return config_tokens(run_config.tokenizer, run_config.model.family, tokens)


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


def config_tokens(
    tokenizer: TokenizerConfig, family: str, files: Mapping[str, str]
) -> dict[str, str]:
    """Return the special tokens of a run's config by the keys that its export gives them.

    `files` has those that the files of its tokenizer name, if it was read from some.
    """
    begin = tokenizer.begin_of_text
    if begin is None and family == "decoder" and not files:
        begin = tokenizer.end_of_text  # GPT-2's ends a text and begins the next
    own = {} if begin is None else {"bos_token": begin}
    own["eos_token"] = tokenizer.end_of_text
    return {"pad_token": tokenizer.pad, **files, **own}
