"""python -m jaxlm.prepare on examples: one line and exit code 2, or a loss that is counted."""

import json

import pytest
from support.marks import quick_and_slow

from jaxlm import prepare, runtime

CONFIG = """
from jaxlm.config import (
    ClassifierConfig, Config, DataConfig, ModelConfig, ObjectiveConfig, SourceConfig,
    TokenizerConfig, ValidationConfig
)

def build(kind, format, classifier=ClassifierConfig(), template=None):
    family = "encoder" if kind == "classify" else "decoder"
    return Config(
        model=ModelConfig(family=family, vocabulary_size=300, layers=1, width=16, heads=2,
                          context_length=64, classifier=classifier),
        objective=ObjectiveConfig(kind=kind),
        tokenizer=TokenizerConfig(kind="bytes", chat_template=template),
        data=DataConfig(
            sources=(SourceConfig(name="web", path="web.jsonl", format=format),),
            sequence_length=32,
            validation=ValidationConfig(method="source", path="held-out.jsonl"),
        ),
    )

LABELS = ("ham", "spam")
SEQUENCE = ClassifierConfig(kind="sequence", labels=LABELS)
CONFIGS = {
    "labels": build("classify", "labelled", SEQUENCE),
    "many": build("classify", "labelled", ClassifierConfig(
        kind="sequence", labels=LABELS, problem="multi_label")),
    "numbers": build("classify", "labelled", ClassifierConfig(
        kind="sequence", labels=("score",), problem="regression")),
    "tokens": build("classify", "labelled", ClassifierConfig(kind="token", labels=("O", "NAME"))),
    "chat": build("instruction", "messages", template="chatml"),
    "refusing": build("instruction", "messages", template="refusing.jinja"),
    "silent": build("instruction", "messages", template="silent.jinja"),
    "pairs": build("preference", "preferences"),
    "chats": build("preference", "preferences", template="plain"),
}
"""
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
GOOD = {
    "labels": [{"text": "a", "label": "ham"}, {"text": "b", "pair": "c", "label": "spam"}],
    "many": [{"text": "a", "label": ["ham"]}, {"text": "b", "label": ["spam", "ham"]}],
    "numbers": [{"text": "a", "label": 0.1}, {"text": "b", "label": "-3"}],
    "tokens": [{"tokens": ["Bo", "x"], "label": ["NAME", "O"]}],
    "chat": [{"messages": TURNS}, {"prompt": "p", "response": "r"}],
    "pairs": [{"prompt": "p", "chosen": "c", "rejected": "r"}],
    "chats": [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"chosen": TURNS, "rejected": TURNS},
    ],
}
GOOD |= {name: [{"messages": TURNS}] for name in ("refusing", "silent")}
TEMPLATES = {
    "refusing": "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "silent": "{% for m in messages %}{{ m.content }}{% if m.content == 'Hello' %}"
    "{% generation %}x{% endgeneration %}{% endif %}{% endfor %}",
}
WRONG_TURNS = [TURNS[1], TURNS[0]]
EMPTY = [TURNS[0], {"role": "assistant", "content": " "}]


def line(value: object) -> bytes:
    return json.dumps(value).encode()


# Config, the third line of the file, and what the error says behind "web.jsonl:3: ".
HOSTILE = {
    "no text": ("labels", line({"label": "ham"}), "no key 'text' (it has 'label')"),
    "no label": ("labels", line({"text": "a"}), "no key 'label' (it has 'text')"),
    "null label": ("labels", line({"text": "a", "label": None}), "'label': is null"),
    "unknown label": (
        "labels",
        line({"text": "a", "label": "spma"}),
        "'label': unknown label 'spma' (did you mean 'spam'?); model.classifier.labels has",
    ),
    "number for a label": ("labels", line({"text": "a", "label": 7}), "unknown label '7'"),
    "list for a label": (
        "labels",
        line({"text": "a", "label": ["ham"]}),
        "'label': must be the name of a label, got list",
    ),
    "number for a text": ("labels", line({"text": 7, "label": "ham"}), "'text': must be a string"),
    "number for a second text": (
        "labels",
        line({"text": "a", "pair": 7, "label": "ham"}),
        "'pair'",
    ),
    "half a surrogate": ("labels", b'{"text": "\\ud800", "label": "ham"}', "'text': half a surr"),
    "not UTF-8": ("labels", b'{"text": "\xff", "label": "ham"}', "not UTF-8 at byte"),
    "not JSON": ("labels", b'{"text": "a", "label"', "not JSON"),
    "string for labels": (
        "many",
        line({"text": "a", "label": "eggs, ham"}),
        "unknown label 'eggs'",
    ),
    "object for labels": ("many", line({"text": "a", "label": {}}), "'label': must be a list"),
    "not a number": (
        "numbers",
        line({"text": "a", "label": "high"}),
        "'label': must be a finite number, got 'high'",
    ),
    "too large for float32": ("numbers", b'{"text": "a", "label": 1e39}', "got 1e+39"),
    "not finite": ("numbers", b'{"text": "a", "label": NaN}', "must be a finite number, got nan"),
    "two numbers": (
        "numbers",
        line({"text": "a", "label": [1, 2]}),
        "'label': must be 1 number, one for each label, got 2",
    ),
    "a label too few": (
        "tokens",
        line({"tokens": ["a", "b"], "label": ["O"]}),
        "'label': must be one label for each token, got 1 labels for 2 tokens",
    ),
    "number for a token": (
        "tokens",
        line({"tokens": [1], "label": ["O"]}),
        "'tokens': must be",
    ),
    "number for tokens": (
        "tokens",
        line({"tokens": 1, "label": ["O"]}),
        "'tokens': must be a l",
    ),
    "no token counts": (
        "tokens",
        line({"tokens": ["a"], "label": [None]}),
        "'label': no token has a label that counts",
    ),
    "no messages": ("chat", line({"text": "a"}), "messages: there is no such key"),
    "wrong order": (
        "chat",
        line({"messages": WRONG_TURNS}),
        "messages.0.role: first must come",
    ),
    "empty response": ("chat", line({"messages": EMPTY}), "messages.1.content: the response is"),
    "number for a content": (
        "chat",
        line({"prompt": 1, "response": "r"}),
        "prompt: must be a string, got int",
    ),
    "template error": (
        "refusing",
        line({"messages": TURNS * 2}),
        "refusing.jinja:1: refuses the conversation: too long",
    ),
    "all tokens masked": (
        "silent",
        line({"prompt": "p", "response": "r"}),
        "all tokens are masked: silent.jinja marks nothing that the assistant says",
    ),
    "no rejected answer": ("pairs", line({"prompt": "p", "chosen": "c"}), "no key 'rejected'"),
    "empty answer": (
        "pairs",
        line({"prompt": "p", "chosen": "", "rejected": "r"}),
        "'chosen': the response is empty",
    ),
    "number for an answer": (
        "chats",
        line({"prompt": "p", "chosen": 3, "rejected": "r"}),
        "'chosen': must be a string or a list of messages, got int",
    ),
    "messages without a template": (
        "pairs",
        line({"prompt": "p", "chosen": TURNS, "rejected": "r"}),
        "'chosen': messages need a chat template: set tokenizer.chat_template",
    ),
    "another prompt": (
        "chats",
        line({"chosen": TURNS, "rejected": [{"role": "user", "content": "Bye"}, TURNS[1]]}),
        "'rejected': follows another prompt than the chosen answer",
    ),
}

QUICK = (
    "no label",
    "unknown label",
    "wrong order",
    "empty response",
    "template error",
    "all tokens masked",
    "no rejected answer",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source in TEMPLATES.items():
        (tmp_path / f"{name}.jinja").write_text(source)
    return tmp_path


def write_files(folder, name: str, third: bytes) -> None:
    good = [line(record) for record in GOOD[name]]
    (folder / "c.py").write_text(f"{CONFIG}\nconfig = CONFIGS[{name!r}]\n")
    (folder / "held-out.jsonl").write_bytes(b"\n".join(good))
    (folder / "web.jsonl").write_bytes(b"\n".join([good[0], good[-1], third, good[0]]))


def run(mode: str, *more: str) -> int:
    arguments = ["--config", "c.py", f"data.on_error={mode}", "--json", "report.json", *more]
    return runtime.command(prepare.main, [*arguments, "--workers", "1"])


@pytest.mark.parametrize(
    ("case",), quick_and_slow([(case,) for case in QUICK], [(case,) for case in HOSTILE])
)
def test_a_wrong_example_is_one_line_or_counted(folder, capfd, case):
    name, third, reason = HOSTILE[case]
    write_files(folder, name, third)

    assert run("fail") == 2
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1, printed
    assert "web.jsonl:3" in printed
    assert reason in printed

    assert run("skip") == 0
    source = json.loads((folder / "report.json").read_text())["sources"]["web"]
    assert (source["kept"], source["dropped"]) == (3, {"unreadable": 1})
    assert reason[:60] in source["samples"]["unreadable"][0]["text"]


def test_a_label_without_a_training_example_is_told(folder, capfd):
    write_files(folder, "labels", line({"text": "c", "label": "ham"}))
    web = (folder / "web.jsonl").read_text().replace("spam", "ham")
    (folder / "web.jsonl").write_text(web)
    assert run("fail") == 2
    reason = "model.classifier.labels: no example of the training split has 'spam'"
    assert capfd.readouterr().err == f"error: {reason}\n"
    assert run("skip") == 0
    assert f"warning: {reason}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name",), quick_and_slow([("labels",)], [("labels",), ("chat",), ("pairs",), ("tokens",)])
)
def test_a_megabyte_and_control_characters_are_text(folder, name):
    text = "\0a\x1b" * 350_000
    record = {
        "labels": {"text": text, "label": "ham"},
        "tokens": {"tokens": [text, "x"], "label": ["O", "NAME"]},
        "chat": {"prompt": text, "response": "r"},
        "pairs": {"prompt": text, "chosen": "c", "rejected": "r"},
    }[name]
    write_files(folder, name, line(record))
    assert run("fail") == 0
    source = json.loads((folder / "report.json").read_text())["sources"]["web"]
    assert (source["kept"], source["dropped"]) == (4, {})
    assert source["bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("name", "third", "shown"),
    [
        ("labels", {"text": "c", "label": "spam"}, "spam"),
        ("tokens", {"tokens": ["c"], "label": ["NAME"]}, "NAME"),
        ("numbers", {"text": "c", "label": 0.5}, "score 0.1"),
        ("chat", {"prompt": "p", "response": "r"}, "weight"),
        ("pairs", {"prompt": "p", "chosen": "c", "rejected": "r"}, "segment"),
    ],
)
def test_samples_of_examples_are_shown(folder, capfd, name, third, shown):
    write_files(folder, name, line(third))
    samples = []
    for number in range(4):
        arguments = ["show", "--config", "c.py", "--sample", str(number), "data.sequence_length=60"]
        assert runtime.command(prepare.main, arguments) == 0
        samples.append(capfd.readouterr().out)
    assert "source web, train: example" in samples[0]
    assert shown in "".join(samples)

    (store,) = (folder / "stores").glob("[!.]*[!k]")
    validation = ["show", str(store), "--sample", "0", "--split", "validation"]
    assert runtime.command(prepare.main, validation) == 0
    assert "source validation, validation: example 0" in capfd.readouterr().out


def test_a_packed_row_shows_its_examples(folder, capfd):
    write_files(folder, "chat", line({"prompt": "p", "response": "r"}))
    arguments = ["show", "--config", "c.py", "data.sequences=packed", "data.sequence_length=300"]
    assert runtime.command(prepare.main, [*arguments, "--sample", "0"]) == 2
    capfd.readouterr()
    arguments += ["model.context_length=300", "--sample", "0"]
    assert runtime.command(prepare.main, arguments) == 0
    printed = capfd.readouterr().out
    assert "source web, train: examples " in printed
    assert "segment 3:" in printed
