"""Whatever the JSON files of a Hugging Face directory hold, it is read or refused in one line."""

import json

import pytest
from support.conversions import MADE, hf_directory

from jaxlm import interop
from jaxlm.config import UserError
from jaxlm.interop import kept_files
from jaxlm.interop.hf_config import read_hf_config
from jaxlm.interop.tokenizer import load_tokenizer_json, read_tokenizer

VALUES = (None, "", -1, 0, True, 2**27, 10**30, float("inf"), [[1]], {"a": 1})
TEXTS = (
    b"",
    b"[]",
    b"null",
    b"{",
    b"\0",
    b"\xff\xfe{}",
    b'{"a": 1, "a": 2}',
    b"[" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
)
GENERATION = {
    "eos_token_id": 0,
    "bos_token_id": 0,
    "decoder_start_token_id": 0,
    "forced_bos_token_id": 1,
    "bad_words_ids": [[1]],
    "suppress_tokens": [1],
    "begin_suppress_tokens": [1],
    "no_repeat_ngram_size": 2,
    "temperature": 0.5,
    "stop_strings": ["x"],
    "sequence_bias": [[[1], 0.5]],
}
ABOUT_TOKENS = {
    "chat_template": "x",
    "additional_special_tokens": ["<s>"],
    "extra_special_tokens": ["<s>"],
    "added_tokens_decoder": {"0": {"content": "x"}},
}
EXTRA_KEYS = {  # beside those that an export writes
    "config.json": (
        "architectures",
        "auto_map",
        "head_dim",
        "jaxlm",
        "layer_types",
        "quantization_config",
        "rope_parameters",
        "rope_scaling",
        "sliding_window",
        "use_sliding_window",
    )
}


def read(directory) -> None:
    """Read all that an import reads but the weights."""
    interop.read_config(directory)
    read_tokenizer(directory)
    kept_files.collect_generation_values(directory, read_hf_config(directory))
    inner = load_tokenizer_json(directory / "tokenizer.json")
    kept_files.collect_tokenizer_values(directory, inner)


def assert_read_or_refused(directory, about) -> None:
    try:
        read(directory)
    except UserError as error:
        assert str(directory) in str(error), about
        assert len(str(error).splitlines()) == 1, about
    except Exception as error:
        raise AssertionError(f"{about}: {error!r}") from error


@pytest.fixture
def directory(tmp_path):
    """Return a function: name -> a directory with all files that an import reads."""

    def make(name):
        made = hf_directory(tmp_path / name, name)
        (made / "generation_config.json").write_text(json.dumps(GENERATION))
        path = made / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | ABOUT_TOKENS))
        read(made)
        return made

    return make


@pytest.mark.parametrize("name", [name for name in MADE if name != "roberta"])  # as bert
def test_hostile_values_in_config_json(name, directory):
    check_values(directory(name), "config.json")


FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


@pytest.mark.parametrize("file", FILES)
def test_hostile_values_beside_config_json(file, directory):
    check_values(directory("bart"), file)


def check_values(directory, file) -> None:
    """Put each value at each key of a file, and leave each key out."""
    path = directory / file
    values = json.loads(path.read_text())
    for key in (*values, *EXTRA_KEYS.get(file, ())):
        for value in VALUES:
            path.write_text(json.dumps(values | {key: value}))
            assert_read_or_refused(directory, (key, value))
        path.write_text(json.dumps({name: values[name] for name in values if name != key}))
        assert_read_or_refused(directory, ("without", key))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", *FILES])
def test_files_that_are_no_json_objects_are_refused(file, directory):
    made = directory("bart")
    for text in TEXTS:
        (made / file).write_bytes(text)
        with pytest.raises(UserError, match=file) as caught:
            read(made)
        assert len(str(caught.value).splitlines()) == 1


def test_hostile_values_in_tokenizer_json(directory):
    made = directory("bart")
    path = made / "tokenizer.json"
    values = json.loads(path.read_text())
    model, token = values["model"], values["added_tokens"][0]
    documents = [values | {key: value} for key in values for value in VALUES]
    documents += [
        values | {"model": model | {key: value}} for key in model for value in VALUES[::2]
    ]
    documents += [
        values | {"added_tokens": [token | {key: value}]} for key in token for value in VALUES
    ]
    for document in documents:
        path.write_text(json.dumps(document))
        assert_read_or_refused(made, {key: repr(document[key])[:80] for key in document})
