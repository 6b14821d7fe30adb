"""Templates are found by name, in files, in runs and in Hugging Face directories."""

import dataclasses
import json

import pytest

from jaxlm.chat import Message, check_named_template, keep_template, load_template
from jaxlm.chat.loading import load_config_template
from jaxlm.config import Config, ConfigError, TokenizerConfig, UserError, to_dict

pytest.importorskip("jinja2")

TALK = [Message("user", "a"), Message("assistant", "b")]
SHORT = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
EOS = {"eos_token": "</s>"}


def write_json(path, values):
    path.write_text(json.dumps(values), encoding="utf-8")


def text(template):
    return template.render(TALK).text


def test_named_templates_are_the_published_formats():
    """Alpaca: prompts of github.com/tatsu-lab/stanford_alpaca, train.py."""
    alpaca = load_template("alpaca", tokens=EOS)
    assert text(alpaca) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\na\n\n### Response:b</s>"
    )
    with_input = [Message("user", "a\n\nc", instruction="a", input="c"), TALK[1]]
    assert alpaca.render(with_input).text == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\na\n\n### Input:\nc\n\n### Response:b</s>"
    )
    assert alpaca.render([Message("system", "s"), *TALK]).text == (
        "s\n\n### Instruction:\na\n\n### Response:b</s>"
    )
    assert text(load_template("plain", tokens=EOS)) == "User: a\nAssistant: b</s>"
    chatml = load_template("chatml").render(TALK[:1], generation_prompt=True).text
    assert chatml == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(UserError, match="'plain': needs a token that ends texts"):
        load_template("plain", tokens={})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": SHORT}}, "ab"),
        ({"tokenizer_config.json": {"chat_template": SHORT, **EOS}}, "a</s>b</s>"),
        (
            {
                "tokenizer_config.json": {"chat_template": SHORT},
                "special_tokens_map.json": {"eos_token": {"content": "<e>", "lstrip": False}},
            },
            "a<e>b<e>",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "no"},
                        {"name": "default", "template": SHORT},
                    ]
                }
            },
            "ab",
        ),
        ({"tokenizer_config.json": {"chat_template": "no"}, "chat_template.jinja": "y"}, "y"),
    ],
)
def test_the_template_of_a_hugging_face_directory(files, expected, tmp_path):
    for name, content in files.items():
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            write_json(tmp_path / name, content)
    assert text(load_template(None, tmp_path)) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "has no chat template"),
        ({}, "has no chat template"),
        ({"chat_template": 3}, "chat_template: must be a string, got int"),
        ({"chat_template": [{"name": "x", "template": "y"}]}, "no template 'default', only 'x'"),
        ({"chat_template": "{% if %}"}, "chat_template:1: Expected an expression"),
        ([], "must be a JSON object"),
        ("{", "not JSON"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_directory_without_a_template_is_told(content, reason, tmp_path):
    path = tmp_path / "tokenizer_config.json"
    if content is not None:
        is_data = isinstance(content, (dict, list))
        data = json.dumps(content) if is_data else content
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(UserError, match=reason) as caught:
        load_template(None, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_that_a_config_names_must_be_there(tmp_path):
    for spec, reason in (
        ("chatlm", "there is no such file or template (did you mean 'chatml'?)"),
        ("no/such.jinja", "there is no such file or template"),
        (str(tmp_path), "can't be read: Is a directory"),
        ("a" * 5000, "File name too long"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_named_template(TokenizerConfig(chat_template=spec), tmp_path)
        assert caught.value.path == "tokenizer.chat_template" and reason in caught.value.reason
    check_named_template(TokenizerConfig(chat_template="plain"), tmp_path)
    check_named_template(TokenizerConfig(), tmp_path)
    with pytest.raises(ConfigError, match="is needed where there is no base"):
        load_config_template(TokenizerConfig())


def test_a_run_keeps_the_template_of_its_config_or_its_base(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    run.mkdir()
    tokenizer = TokenizerConfig(kind="file", path=str(base / "tokenizer.json"))
    keep_template(tokenizer, run)
    assert not (run / "chat_template.jinja").exists()

    (base / "chat_template.jinja").write_text("of the base")
    keep_template(tokenizer, run)
    assert (run / "chat_template.jinja").read_text() == "of the base"
    own = tmp_path / "own.jinja"
    own.write_bytes(b"mine\r\n")
    keep_template(dataclasses.replace(tokenizer, chat_template=str(own)), run)
    assert (run / "chat_template.jinja").read_bytes() == b"mine\r\n"
    own.unlink()  # a run that is resumed has its copy
    check_named_template(dataclasses.replace(tokenizer, chat_template=str(own)), run)


@pytest.mark.parametrize(
    ("family", "begin", "expected"),
    [
        ("decoder", None, "<end>|<end>"),
        ("decoder", "<begin>", "<begin>|<end>"),
        ("encoder_decoder", None, "|<end>"),
    ],
)
def test_special_tokens_of_a_run_are_those_of_its_config(family, begin, expected, tmp_path):
    config = Config(tokenizer=TokenizerConfig(end_of_text="<end>", begin_of_text=begin))
    document = to_dict(config)
    document["model"]["family"] = family
    document["objective"]["kind"] = "causal" if family == "decoder" else "span"
    document["run_directory"] = str(tmp_path)
    write_json(tmp_path / "config.json", document)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}|{{ eos_token }}")
    assert text(load_template(None, tmp_path)) == expected


def test_the_hash_tells_templates_and_tokens_apart(tmp_path):
    one, other = (load_template("chatml", tokens=tokens) for tokens in (EOS, {}))
    assert one.hash != other.hash and one.hash == load_template("chatml", tokens=EOS).hash
    assert one.hash != load_template("plain", tokens=EOS).hash
