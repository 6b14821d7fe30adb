"""Which tokens of a Hugging Face directory are special: the names in its files and of its class."""

from pathlib import Path
from typing import Any

from jaxlm.config import UserError
from jaxlm.interop.hf_config import format_json, read_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

# The keys under which files name the token of a role; the first one that a file has counts. BERT's
# are cls and sep; models that have both kinds use the same tokens for both.
ROLE_KEYS = {
    "end_of_text": ("sep_token", "eos_token"),
    "begin_of_text": ("cls_token", "bos_token"),
    "pad": ("pad_token",),
    "mask": ("mask_token",),
}

# Names that checkpoints leave to the class of the tokenizer. Those that tokenizer.json has count.
BERT_TOKENS = {
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
ROBERTA_TOKENS = {
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
LLAMA_TOKENS = {"eos_token": "</s>", "bos_token": "<s>"}
CLASS_TOKENS = {
    "bert": BERT_TOKENS,
    "distilbert": BERT_TOKENS,
    "modernbert": BERT_TOKENS,
    "roberta": ROBERTA_TOKENS,
    "bart": ROBERTA_TOKENS,
    "gpt2": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
    "gpt_neox": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
    "bloom": {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"},
    "opt": {"eos_token": "</s>", "bos_token": "</s>", "pad_token": "<pad>"},
    "llama": LLAMA_TOKENS,
    "mistral": LLAMA_TOKENS,
    "t5": {"eos_token": "</s>", "pad_token": "<pad>"},
}


def read_token_names(directory: Path) -> dict[str, str]:
    """Return the tokens' names by keys such as "eos_token"; tokenizer_config.json comes first."""
    keys = [key for keys in ROLE_KEYS.values() for key in keys]
    names: dict[str, str] = {}
    for file in (TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE):
        path = directory / file
        values = read_json_object(path)
        for key in keys:
            if values.get(key) is not None:
                name = parse_token_name(path, key, values[key])
                names.setdefault(key, name)
    return names


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the values of a JSON file; {} where there is no such file."""
    values = read_json(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object")
    return values


def parse_token_name(path: Path, key: str, value: Any) -> str:
    """Return a token's name, which may stand in an object with the token's properties."""
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise UserError(f"{path}: {key}: must be a token's text, got {format_json(value)}")
    return name
