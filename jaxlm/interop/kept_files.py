"""Keep what a run has no setting for of the Hugging Face directory that it was imported from.

A run has two more files beside its tokenizer.json, in the form of Hugging Face and with a section
"jaxlm" that has their version. generation_config.json has the rules of generation.
tokenizer_config.json has the chat templates, padding side and so on, and the flags of added tokens.
The chat template that counts is in chat_template.jinja. Templates are text here: `chat/` alone
renders them.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from jaxlm.config import UserError
from jaxlm.files import write_atomically
from jaxlm.interop.generation_config import (
    GENERATION_CONFIG_FILE,
    OPTION_DEFAULTS,
    RULE_KEYS,
    TOKEN_ID_KEYS,
    UNSUPPORTED_KEYS,
    GenerationConfig,
    read_generation_config,
)
from jaxlm.interop.hf_config import (
    MAX_CONFIG_BYTES,
    HFConfig,
    format_document,
    format_json,
    read_json,
)
from jaxlm.interop.token_names import (
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    read_json_object,
)

VERSION_KEY, VERSION = "jaxlm", 1
CHAT_TEMPLATE_FILE, CHAT_TEMPLATE_FOLDER = "chat_template.jinja", "additional_chat_templates"
EXTRA_TOKEN_KEYS = ("additional_special_tokens", "extra_special_tokens")
# Entries beside ids that old files keep in config.json. `transformers` follows those where there is
# no generation_config.json.
CONFIG_JSON_KEYS = (
    *OPTION_DEFAULTS,
    *RULE_KEYS,
    *UNSUPPORTED_KEYS,
    "max_length",
    "max_new_tokens",
    "num_return_sequences",
    "remove_invalid_values",
    "renormalize_logits",
)
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


# --- at import ---


def keep_files(
    directory: Path, run: Path, hf_config: HFConfig, inner: tokenizers.Tokenizer
) -> None:
    """Write the two files of `run` from those of `directory`, and its chat template.

    `hf_config` is its config.json, and `inner` its tokenizer.json.
    """
    values = {
        GENERATION_CONFIG_FILE: collect_generation_values(directory, hf_config),
        TOKENIZER_CONFIG_FILE: collect_tokenizer_values(directory, inner),
    }
    for file, content in values.items():
        document = {**content, VERSION_KEY: {"version": VERSION}}
        write_atomically(run / file, format_document(document))

    template = named_templates(values[TOKENIZER_CONFIG_FILE]).get("default")
    if template is not None:
        write_atomically(run / CHAT_TEMPLATE_FILE, template)


def collect_generation_values(directory: Path, hf_config: HFConfig) -> dict[str, Any]:
    """Return the entries of generation, whichever file has them, with the ids that hold."""
    generation = read_generation_config(directory, hf_config)
    ids = (
        generation.bos_id,
        generation.pad_id,
        generation.decoder_start_id,
        generation.forced_bos_id,
        generation.forced_eos_id,
    )
    path = directory / GENERATION_CONFIG_FILE
    if path.exists():
        values = read_json_object(path)
    else:
        values = {key: hf_config.get(key) for key in CONFIG_JSON_KEYS if key in hf_config}
    values |= {"eos_token_id": list(generation.eos_ids) or None}
    return values | dict(zip(TOKEN_ID_KEYS, ids, strict=True))


def collect_tokenizer_values(directory: Path, inner: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return tokenizer_config.json with the chat templates and tokens of the files beside it."""
    values = read_json_object(directory / TOKENIZER_CONFIG_FILE)
    names = read_json_object(directory / SPECIAL_TOKENS_FILE)
    for key in EXTRA_TOKEN_KEYS:
        if names.get(key) and not any(values.get(other) for other in EXTRA_TOKEN_KEYS):
            values[key] = names[key]

    templates = read_chat_templates(directory)
    if templates:
        values["chat_template"] = templates.get("default")
    if templates.keys() - {"default"}:
        values["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items()
        ]
    return values | {"added_tokens_decoder": describe_added_tokens(inner)}


def read_chat_templates(directory: Path) -> dict[str, str]:
    """Return the templates that have files of their own, by name.

    `transformers` reads these, if there are any, instead of the one in tokenizer_config.json.
    """
    files = {"default": directory / CHAT_TEMPLATE_FILE}
    folder = directory / CHAT_TEMPLATE_FOLDER
    if folder.is_dir():
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            raise UserError(f"{folder}: can't be read: {error.strerror}") from error
        files |= {path.stem: path for path in paths if path.suffix == ".jinja"}
    return {name: read_template(path) for name, path in files.items() if path.exists()}


def read_template(path: Path) -> str:
    """Return the text of a chat template; UserError where it can't be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: is larger than {MAX_CONFIG_BYTES >> 20} MiB")
        return content.decode()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 (byte {error.start})") from error


def named_templates(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates of a tokenizer_config.json by name; a single one is "default"."""
    value = tokenizer_config.get("chat_template")
    items = value if isinstance(value, list) else [{"name": "default", "template": value}]
    templates = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        template = item.get("template") if isinstance(item, dict) else None
        if isinstance(name, str) and isinstance(template, str):
            templates[name] = template
    return templates


def describe_added_tokens(inner: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the added tokens by id, with their flags, as tokenizer_config.json has them."""
    return {
        str(number): {"content": token.content}
        | {flag: getattr(token, flag) for flag in TOKEN_FLAGS}
        for number, token in sorted(inner.get_added_tokens_decoder().items())
    }


def keep_new_tokens(run: Path, names: Sequence[str]) -> None:
    """Add special tokens to the tokenizer_config.json that a run keeps, if it keeps one."""
    path = run / TOKENIZER_CONFIG_FILE
    values = read_kept(path)
    if values is None or not names:
        return

    key = next((key for key in EXTRA_TOKEN_KEYS if values.get(key)), EXTRA_TOKEN_KEYS[0])
    tokens = values.get(key) or []
    # Some name their tokens: {"image_token": "<image>"}.
    if isinstance(tokens, dict):
        values[key] = tokens | {name: name for name in names}
    else:
        values[key] = [*tokens, *names]
    document = {**values, VERSION_KEY: {"version": VERSION}}
    write_atomically(path, format_document(document))


# --- of a run ---


def copy_kept_files(base: Path, run: Path) -> None:
    """Copy what the run `base` keeps into a run that starts from it, if that is not there yet.

    Raises OSError.
    """
    for file in (GENERATION_CONFIG_FILE, TOKENIZER_CONFIG_FILE, CHAT_TEMPLATE_FILE):
        if (base / file).is_file() and not (run / file).exists():
            shutil.copyfile(base / file, run / file)


def read_kept(path: Path) -> dict[str, Any] | None:
    """Return the values of a file that a run keeps, without its version; None without the file.

    UserError where the file is broken, or of a newer version.
    """
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")

    section = values.pop(VERSION_KEY, {})
    version = section.get("version", VERSION) if isinstance(section, dict) else section
    if version != VERSION:
        raise UserError(
            f"{path}: {VERSION_KEY}.version: {format_json(version)} is unknown, only {VERSION} is "
            "read; a newer jaxlm wrote this run"
        )
    return values


def read_kept_generation(run: Path) -> GenerationConfig | None:
    """Return the rules of generation that a run keeps; None where it keeps none."""
    if read_kept(run / GENERATION_CONFIG_FILE) is None:
        return None
    return read_generation_config(run, HFConfig(run / "config.json", {}))


def restore_flags(inner: tokenizers.Tokenizer, kept: Mapping[str, Any]) -> None:
    """Give the added tokens of `inner` the flags that they had in the imported tokenizer.json.

    Training takes some from the end of text, which is never read from a document.
    """
    tokens = inner.get_added_tokens_decoder()
    described = kept.get("added_tokens_decoder")
    for number, values in described.items() if isinstance(described, dict) else ():
        token = tokens.get(int(number)) if number.isdigit() else None
        if token is None or not isinstance(values, dict) or values.get("content") != token.content:
            continue

        flags = {flag: bool(values.get(flag, getattr(token, flag))) for flag in TOKEN_FLAGS}
        restored = AddedToken(token.content, **flags)
        if flags["special"]:
            inner.add_special_tokens([restored])
        else:
            inner.add_tokens([restored])
