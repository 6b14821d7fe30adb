"""Conversations with small models: what they read of the history, and where their answers end."""

import builtins
import io
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.trees import random_params

from jaxlm import config, generate, interop, models, runtime
from jaxlm.chat import Message, load_template
from jaxlm.chat.template import ChatTemplate
from jaxlm.config import UserError
from jaxlm.data.tokenizer import Tokenizer, build_byte_level
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.decoding import terminal
from jaxlm.decoding.constraints import StopTokens
from jaxlm.decoding.conversation import (
    Conversation,
    TrimmedWriter,
    find_stop,
    hold_conversation,
)
from jaxlm.decoding.engine import Engine
from jaxlm.decoding.generation import DecodingConfig
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.interop.write_tokenizer import write_tokenizer
from jaxlm.load_model import LoadedModel

pytest.importorskip("jinja2")

NAMES = ("<end>", "<pad>", "<|im_start|>", "<|im_end|>")
END, PAD, TURN_START, TURN_END = range(256, 260)
TOKENIZER = Tokenizer(build_byte_level(NAMES), SpecialTokens("<end>", pad="<pad>"))
MODEL = config.ModelConfig(vocabulary_size=260, layers=1, width=32, heads=4, context_length=128)
FRAME = TokenizerFrame("<end>", pad="<pad>", eos_ids=(END,), pad_id=PAD)
CHATML = load_template("chatml", tokens={"eos_token": "<end>"})
PLAIN = load_template("plain", tokens={"eos_token": "<end>"})
BARE = ChatTemplate(
    "bare", "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}", ()
)


def load(model_config=MODEL, frame=FRAME):
    model = models.build(model_config, config.PrecisionConfig(compute="float32"))
    params = jax.tree.map(jnp.asarray, random_params(model, 0, zero_padding=True))
    return LoadedModel(None, model, params, TOKENIZER, frame, config=None, step=None)


class ScriptedEngine:
    """Writes one answer after the other, a few tokens at a time, and notes what it has read."""

    def __init__(self, *answers):
        self.answers, self.read, self.limits = list(answers), [], []

    def generate(self, prompts, limits, sampling, *, sources, rows, seed, on_tokens):
        text = (sources or prompts)[0]
        self.read.append(TOKENIZER.show(text))
        self.limits.append(limits[0])
        answer = self.answers.pop(0)
        ids = np.array([[*answer.encode(), TURN_END]] if isinstance(answer, str) else [answer])
        for length in range(0, ids.shape[1] + 1, 3):
            if -1 in ids[0, :length]:
                raise KeyboardInterrupt
            if not on_tokens(ids, np.array([length]))[0]:
                return [ids[0, :length]]
        return [ids[0]]


def scripted(*answers, template=CHATML, system=None, **options):
    conversation = Conversation(load(), template, DecodingConfig(**options), system)
    vars(conversation.generator)["engine"] = ScriptedEngine(*answers)
    return conversation


def engine_of(conversation) -> Any:
    return conversation.generator.engine


def hold(conversation, *lines, forgiving=False):
    """Return what is written while the lines are answered."""
    pieces = []
    hold_conversation(conversation, iter(lines), pieces.append, forgiving=forgiving)
    return pieces


# --- where an answer ends ---


@pytest.mark.parametrize(
    ("template", "ids", "strings"),
    [
        (CHATML, (TURN_END,), ()),
        (PLAIN, (END,), ()),
        (load_template("llama3", tokens={}), (), ("<|eot_id|>",)),  # no token of this tokenizer
        (BARE, (), ("\nuser:",)),
    ],
)
def test_what_ends_an_answer(template, ids, strings):
    assert find_stop(template, TOKENIZER) == (ids, strings)


def test_an_answer_ends_at_the_mark_of_the_turn_or_the_end_of_text():
    conversation = scripted()
    assert conversation.generator.stop.ids == (END, TURN_END)
    conversation = scripted("Yes.\nuser: and then", template=BARE)
    assert "".join(hold(conversation, "Well?\n")) == "Yes.\n"
    assert conversation.messages[-1] == Message("assistant", "Yes.")


# --- what the model reads ---


def test_the_history_is_read_again_with_each_message():
    conversation = scripted("  One ", "Two", "Three", system="Be kind.")
    assert "".join(hold(conversation, "a\n", "\n", " b \n", "/reset\n", "c")) == "One\nTwo\nThree\n"
    system = "<|im_start|>system\nBe kind.<|im_end|>\n"
    first = f"{system}<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert engine_of(conversation).read == [
        first,
        f"{first}One<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n",
        f"{system}<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    ]


def test_nothing_is_answered_behind_quit():
    conversation = scripted("One")
    assert hold(conversation, "a", "/quit", "b") == ["One", "\n"]


def test_special_tokens_of_the_template_are_tokens():
    ids = scripted().encode([Message("user", "a")])
    assert ids.tolist()[:2] == [TURN_START, ord("u")] and TURN_END in ids


def test_an_answer_is_written_while_it_comes():
    pieces = hold(scripted("one two three"), "a")
    assert "".join(pieces) == "one two three\n" and len(pieces) > 3


def test_white_space_around_an_answer_is_not_written():
    pieces = []
    writer = TrimmedWriter(pieces.append)
    for piece in (" ", "\n a", " ", "b ", "\n"):
        writer(piece)
    assert pieces == ["a", " b"]


def test_the_oldest_turns_are_left_out_where_the_context_is_full(capsys):
    conversation = scripted("One", "Two", "Three", "Four", system="S", max_new_tokens=8)
    hold(conversation, *("x" * 20 for _ in range(4)))
    read = engine_of(conversation).read
    assert [text.count("user") for text in read] == [1, 2, 2, 2]
    assert all(text.startswith("<|im_start|>system\nS<|im_end|>") for text in read)
    assert "Two" in read[2] and "One" not in read[2] and "Three" in read[3]
    assert engine_of(conversation).limits == [8] * 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "128 tokens (model.context_length): its oldest turns" in lines[0]


def test_a_message_that_does_not_fit_is_told(capsys):
    conversation = scripted("One", "Two")
    assert "".join(hold(conversation, "a", "x" * 99, "b", forgiving=True)) == "One\nTwo\n"
    line = capsys.readouterr().err
    assert line.startswith("error: the message takes 118 tokens") and "at most 96" in line
    assert "xx" not in engine_of(conversation).read[-1]
    with pytest.raises(UserError, match="the message takes 118 tokens"):
        hold(scripted("One"), "x" * 99)


def test_an_answer_ends_with_the_context():
    conversation = scripted("One")
    hold(conversation, "x" * 60)
    (limit,) = engine_of(conversation).limits
    assert limit == 128 - len(conversation.encode([Message("user", "x" * 60)]))


def test_ctrl_c_ends_the_answer_and_not_the_conversation():
    conversation = scripted([*b"One tw", *[-1] * 4], "Two")
    assert "".join(hold(conversation, "a", "b")) == "One tw\nTwo\n"
    assert "One tw<|im_end|>" in engine_of(conversation).read[1]


def test_a_system_message_that_the_template_refuses_is_told_at_once():
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x"
    with pytest.raises(UserError, match="refuses the conversation: no"):
        Conversation(load(), ChatTemplate("t", source, ()), DecodingConfig(), "S")


def test_an_encoder_decoder_reads_the_conversation_as_its_source():
    sizes = {"layers": 1, "width": 32, "heads": 4, "context_length": 128}
    model = config.ModelConfig(family="encoder_decoder", vocabulary_size=260, **sizes)
    loaded = load(model, FRAME._replace(decoder_start_id=PAD))
    conversation = Conversation(loaded, PLAIN, DecodingConfig(max_new_tokens=4))
    vars(conversation.generator)["engine"] = ScriptedEngine("One", "Two")
    hold(conversation, "a", "b")
    assert engine_of(conversation).read == [
        "User: a\nAssistant:<end>",
        "User: a\nAssistant: One<end>\nUser: b\nAssistant:<end>",
    ]


# --- the command ---


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Return a Hugging Face directory of a small decoder with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "decoder"
    loaded = load()
    ids = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": PAD}
    interop.save(folder, MODEL, loaded.params, tokens=ids)
    inner = TOKENIZER.inner.to_str()
    write_tokenizer(folder, inner, FRAME, 128, chat_template=CHATML.source)
    return folder


def call(monkeypatch, *arguments, stdin=b""):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return runtime.command(generate.main, [str(argument) for argument in arguments])


def test_the_command_answers_what_is_piped(directory, monkeypatch, capsys):
    options = ["--max-new-tokens", "6", "--min-new-tokens", "6", "--system", "S"]
    assert call(monkeypatch, directory, "--chat", *options, stdin="hällo\nSo?\n".encode()) == 0
    output = capsys.readouterr()
    assert output.err == ""

    # The same by hand: the engine, on the ids of the rendered texts.
    loaded = load()
    stop = StopTokens((END, TURN_END), pad_id=PAD, min_new_tokens=6)
    engine = Engine(loaded.model, loaded.params, stop)
    talk, expected = [Message("system", "S"), Message("user", "hällo")], ""
    for question in ("So?", None):
        text = CHATML.render(talk, generation_prompt=True).text
        inner = build_byte_level(NAMES)
        prompt = np.array(inner.encode(text).ids, np.int32)
        (ids,) = engine.generate([prompt], [6])
        answer = TOKENIZER.decode(ids).strip()
        expected += f"{answer}\n"
        talk += [Message("assistant", answer), Message("user", question or "")]
    assert output.out == expected and expected.strip()


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        (["--prompt", "a"], b"", "--prompt does not go with --chat"),
        (["--json", "a.json"], b"", "--json does not go with --chat"),
        (["--embed"], b"", "--embed does not go with --chat"),
        (["--samples", "2"], b"", "--samples is not used with --chat"),
        (["--beams", "2"], b"", "--beams is not used with --chat"),
        (["--system", "\udcff"], b"", "--system: holds bytes that are not UTF-8"),
        ([], b"a\n\xff\n", "stdin:2: not UTF-8 (byte 0)"),
        ([], b"x" * 200, "the message takes"),
    ],
)
def test_what_does_not_go_with_a_conversation_is_told(
    arguments, stdin, reason, directory, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    options = ["--chat", "--max-new-tokens", "1", *arguments]
    assert call(monkeypatch, directory, *options, stdin=stdin) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and reason in line and line.count("\n") == 1


def test_a_model_without_a_template_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert call(monkeypatch, tmp_path, "--chat") == 2
    line = capsys.readouterr().err
    assert line == (
        f"error: {tmp_path}: has no chat template (chat_template.jinja, or chat_template in "
        "tokenizer_config.json)\n"
    )


def test_system_is_an_option_of_conversations(directory, monkeypatch, capsys):
    assert call(monkeypatch, directory, "--prompt", "a", "--system", "S") == 2
    assert "--system is not used with" in capsys.readouterr().err


# --- the terminal ---


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_lines_of_a_terminal_end_with_it_or_with_ctrl_c(end, monkeypatch, capsys):
    lines = iter(["a", "\udcff", "b"])

    def read(prompt):
        assert prompt == "> "
        for line in lines:
            return line
        raise end

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert list(terminal.read_lines()) == ["a", "b"]
    output = capsys.readouterr()
    assert output.out == "\n" and output.err.startswith("error: the line holds bytes")


def test_piped_lines_lose_a_byte_order_mark(monkeypatch):
    content = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\nb"))
    monkeypatch.setattr(sys, "stdin", content)
    assert list(terminal.read_lines()) == ["a\n", "b"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a" * 20)))
    monkeypatch.setattr(terminal, "MOST_LINE_BYTES", 10)
    with pytest.raises(UserError, match="stdin:1: is longer"):
        list(terminal.read_lines())
