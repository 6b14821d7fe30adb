"""Read conversations, and prompts with two answers, as the text that a chat template makes of them.

The spans of a text are what the assistant says in it, in characters.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.chat import (
    ChatTemplate,
    Message,
    Rendered,
    TemplateRefusal,
    read_conversation,
    read_messages,
    token_mask,
)
from jaxlm.config import UserError
from jaxlm.data.documents import Document
from jaxlm.data.example_record import ExampleRecord
from jaxlm.data.tokenizer import Tokenizer

LARGEST_RUN = (1 << 16) - 1  # number in a store of uint16


def read_chat(number: str, record: ExampleRecord, template: ChatTemplate) -> Document:
    """Return a conversation as text, with its spans. Raises UserError naming file, line and key."""
    messages = read_conversation(record.fields, record.mapped, record.place)
    rendered = render(template, messages, record.place)
    return Document(number, rendered.text, facts=json.dumps({"spans": rendered.spans}))


def render(template: ChatTemplate, messages: Sequence[Message], place: str) -> Rendered:
    """Return a conversation as text. Raises UserError where nothing of it is to be learned."""
    try:
        rendered = template.render(messages)
    except TemplateRefusal as error:
        raise UserError(f"{place}: {error}") from error
    except UserError as error:
        raise UserError(f"{place}: chat template: {error}") from error
    if not any(start < end for start, end in rendered.spans):
        reason = f"{template.name} marks nothing that the assistant says"
        raise UserError(f"{place}: all tokens are masked: {reason}")
    return rendered


def read_preference(number: str, record: ExampleRecord, template: ChatTemplate | None) -> Document:
    """Return a prompt and two answers. Raises UserError naming file, line and key.

    Each is a string or a list of messages. Answers that are whole conversations need no prompt.
    Without a template they must be strings.
    """
    prompt = record.get("prompt") if record.has("prompt") else None
    answers = {name: record.get(name) for name in ("chosen", "rejected")}
    if template is None:
        texts = [record.text("prompt"), *(read_answer(record, name) for name in answers)]
        return Document(number, texts[0], (texts[1], texts[2]), facts=json.dumps({"end": True}))

    texts = []
    for name, answer in answers.items():
        messages = join_messages(record, name, prompt, answer)
        rendered = render(template, messages, f"{record.place}: {record.key(name)}")
        start, end = rendered.spans[-1]
        texts.append((rendered.text[:start], rendered.text[start:end]))
    (before, chosen), (other, rejected) = texts
    if before != other:
        raise record.wrong("rejected", "follows another prompt than the chosen answer")
    return Document(number, before, (chosen, rejected), facts=json.dumps({"chat": True}))


def read_answer(record: ExampleRecord, name: str) -> str:
    """Return an answer that is a string with text."""
    if isinstance(record.get(name), list):
        reason = "messages need a chat template: set tokenizer.chat_template"
        raise record.wrong(name, reason)
    text = record.text(name)
    if not text.strip():
        raise record.wrong(name, "the response is empty")
    return text


def join_messages(record: ExampleRecord, name: str, prompt: Any, answer: Any) -> list[Message]:
    """Return the conversation of a prompt and one of its answers."""
    roles = {key: record.mapped[key] for key in ("role", "content") if key in record.mapped}
    if isinstance(answer, str):
        read_answer(record, name)
        answer = [{record.key("role"): "assistant", record.key("content"): answer}]
    if not isinstance(answer, list):
        kind = type(answer).__name__
        raise record.wrong(name, f"must be a string or a list of messages, got {kind}")

    first = answer[0].get(record.key("role")) if answer and isinstance(answer[0], dict) else None
    if first in ("assistant", "gpt", "model"):
        if prompt is None:
            record.get("prompt")  # which is missing
        if isinstance(prompt, str):
            record.text("prompt")
            prompt = [{record.key("role"): "user", record.key("content"): prompt}]
        if not isinstance(prompt, list):
            kind = type(prompt).__name__
            raise record.wrong("prompt", f"must be a string or a list of messages, got {kind}")
        answer = [*prompt, *answer]
    place = f"{record.place}: {record.key(name)}"
    messages = read_messages(answer, roles, place)
    if messages[-1].role != "assistant":
        reason = f"must end with a message of the assistant, ends with the {messages[-1].role}"
        raise record.wrong(name, reason)
    return messages


# The second pass


def encode_chat(
    text: str, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> list[np.ndarray]:
    """Return the parts of a conversation; special tokens are read from its text.

    These are the ids before the last turn of the assistant, of that turn, and after it, and the
    runs of tokens before it that don't count and that do, in turn.
    """
    encoding = tokenizer.with_special_tokens.encode(text, add_special_tokens=False)
    ids = np.array(encoding.ids, np.int32)
    counts = np.array(token_mask(encoding.offsets, spans), bool)
    last = np.array(token_mask(encoding.offsets, spans[-1:]), bool)
    places = np.flatnonzero(last)
    start, end = (places[0], places[-1] + 1) if len(places) else (len(ids), len(ids))
    return [ids[:start], ids[start:end], ids[end:], measure_runs(counts[:start])]


def measure_runs(counts: np.ndarray) -> np.ndarray:
    """Return the lengths of runs of tokens that don't count and that do, in turn; int32."""
    changes = np.flatnonzero(np.diff(counts.astype(np.int8), prepend=0)).tolist()
    runs: list[int] = []
    for length in np.diff([0, *changes, len(counts)]).tolist():
        while length > LARGEST_RUN:
            runs += [LARGEST_RUN, 0]
            length -= LARGEST_RUN
        runs.append(length)
    return np.array(runs, np.int32)
