"""Read examples from records: texts with labels, conversations, prompts with two answers.

An example is its texts, which are tokenised, and its facts, which are not: JSON that the first pass
keeps beside the texts. The second pass turns both into the parts that a store has of an example:

labelled      text, second text, numbers: 1 where there is a second text, then the ids of the labels
              (regression: each target as the two halves of its float32)
              of tokens: text, nothing, a number for each token: 1 + the id of its label; 0: none
messages      ids before the last turn of the assistant, of that turn, after it; numbers: runs of
              tokens before it that don't count and that do, in turn
preferences   prompt, chosen answer, rejected answer
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxlm.chat import FIELD_NAMES, ChatTemplate, has_template, load_config_template
from jaxlm.config import Config, SourceConfig, TokenizerConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.conversations import encode_chat, read_chat, read_preference
from jaxlm.data.documents import Columns, Document
from jaxlm.data.example_record import ExampleRecord
from jaxlm.data.tokenizer import Tokenizer, check_length
from jaxlm.files import expand_home


class ExampleSpec(NamedTuple):
    """The fields of a config that turn a record into an example, beside its source."""

    labels: tuple[str, ...] = ()
    problem: str = "single_label"
    of_tokens: bool = False  # labels of tokens, not of texts
    template: ChatTemplate | None = None  # of conversations

    def describe(self) -> dict[str, Any]:
        """Return what decides the examples, as JSON data, for the name of a store."""
        if not self.labels:
            return {"template": self.template and self.template.hash}
        return {"labels": list(self.labels), "problem": self.problem, "of_tokens": self.of_tokens}


def example_spec(config: Config) -> ExampleSpec | None:
    """Return how the records of a run become examples; None where they don't.

    Raises UserError for a chat template that is missing or can't be read.
    """
    kind, classifier = config.objective.kind, config.model.classifier
    if kind == "preference" and not names_template(config.tokenizer):
        return ExampleSpec()
    if kind in ("instruction", "preference"):
        return ExampleSpec(template=load_config_template(config.tokenizer, config.model.family))
    if kind != "classify":
        return None
    return ExampleSpec(classifier.labels, classifier.problem, classifier.kind == "token")


def names_template(tokenizer: TokenizerConfig) -> bool:
    """Return whether a config, or the folder of its tokenizer, has a chat template."""
    if tokenizer.chat_template is not None:
        return True
    if tokenizer.path is None:
        return False
    path = expand_home(tokenizer.path)
    return has_template(path if path.is_dir() else path.parent)


# Keys


def example_columns(source: SourceConfig, spec: ExampleSpec | None) -> Columns:
    """Return the keys that the examples of a source are read from.

    Conversations have one of several forms, each with keys of its own.
    """
    if source.format != "labelled":
        mapped = dict(source.keys)
        names = FIELD_NAMES if source.format == "messages" else ("prompt", "chosen", "rejected")
        return Columns((), tuple(mapped.get(name, name) for name in names))
    text = "tokens" if spec is not None and spec.of_tokens else "text"
    required = [text, "label"]
    mapped = dict(source.keys)
    if "pair" in mapped:
        required.append("pair")
    optional = () if "pair" in mapped or text == "tokens" else ("pair",)
    return Columns(tuple(mapped.get(name, name) for name in required), optional)


def read_example(
    number: str, record: ExampleRecord, source: SourceConfig, spec: ExampleSpec | None
) -> Document:
    """Return the example of a record. Raises UserError naming file, line and key."""
    if spec is None:
        raise UserError(f"{record.place}: format {source.format!r} is read for training alone")
    if source.format == "labelled":
        return read_labelled(number, record, spec)
    if source.format == "preferences":
        return read_preference(number, record, spec.template)
    assert spec.template is not None, "conversations have a template"
    return read_chat(number, record, spec.template)


# Texts with labels


def read_labelled(number: str, record: ExampleRecord, spec: ExampleSpec) -> Document:
    """Return a text with labels. Raises UserError naming file, line and key."""
    if spec.of_tokens:
        return read_words(number, record, spec)

    text = record.text("text")
    second = record.text("pair") if record.has("pair") else None
    facts: dict[str, Any] = {"pair": second is not None}
    if spec.problem == "regression":
        facts["targets"] = read_targets(record, len(spec.labels))
    elif spec.problem == "multi_label":
        names = split_names(record.get("label"), spec.labels, separator=",")
        if not isinstance(names, list):
            raise record.wrong("label", f"must be a list, got {type(names).__name__}")
        facts["labels"] = sorted({label_id(record, name, spec.labels) for name in names})
    else:
        facts["labels"] = [label_id(record, record.get("label"), spec.labels)]
    return Document(number, text, (second or "",), facts=json.dumps(facts))


def label_id(record: ExampleRecord, name: Any, labels: Sequence[str]) -> int:
    """Return the number of a label. Numbers and truth values go by their spelling in JSON."""
    if isinstance(name, bool | int):
        name = json.dumps(name)
    if not isinstance(name, str):
        raise record.wrong("label", f"must be the name of a label, got {type(name).__name__}")
    if name not in labels:
        known = f"model.classifier.labels has {list_names(list(labels))}"
        hint = suggestion(name, labels)
        raise record.wrong("label", f"unknown label {name[:80]!r}{hint}; {known}")
    return labels.index(name)


def split_names(value: Any, labels: Sequence[str], separator: str | None) -> Any:
    """Return the names in a string, as tables have them: divided by commas, or white space."""
    if not isinstance(value, str):
        return value
    if value in labels:
        return [value]
    return [name.strip() for name in value.split(separator) if name.strip()]


def read_targets(record: ExampleRecord, count: int) -> list[float]:
    """Return the targets of a regression as they are, in float32, one for each label."""
    value = record.get("label")
    values = value if isinstance(value, list) else [value]
    if len(values) != count:
        numbers = f"{count} number{'s' * (count != 1)}"
        raise record.wrong("label", f"must be {numbers}, one for each label, got {len(values)}")

    targets = []
    for each in values:
        try:
            number = None if isinstance(each, bool) else float(each)
        except (TypeError, ValueError, OverflowError):
            number = None
        with np.errstate(over="ignore"):
            if number is None or not np.isfinite(np.float32(number)):
                shown = repr(each) if isinstance(each, str | int | float) else type(each).__name__
                raise record.wrong("label", f"must be a finite number, got {shown[:40]}")
        targets.append(number)
    return targets


def read_words(number: str, record: ExampleRecord, spec: ExampleSpec) -> Document:
    """Return the words of a text, each with a label or null, which does not count."""
    words, names = record.get("tokens"), record.get("label")
    words = words.split() if isinstance(words, str) else words
    names = split_names(names, (), separator=None)
    for name, values in (("tokens", words), ("label", names)):
        if not isinstance(values, list):
            raise record.wrong(name, f"must be a list, got {type(values).__name__}")
    for word in words:
        if not isinstance(word, str):
            raise record.wrong("tokens", f"must be strings, got {type(word).__name__}")
        record.checked("tokens", word)

    if len(words) != len(names):
        reason = f"{len(names):,} labels for {len(words):,} tokens"
        raise record.wrong("label", f"must be one label for each token, got {reason}")
    ids = [-1 if name is None else label_id(record, name, spec.labels) for name in names]
    if words and not any(number >= 0 for number in ids):
        raise record.wrong("label", "no token has a label that counts")
    facts = {"words": [len(word) for word in words], "labels": ids}
    return Document(number, " ".join(words), ("",), facts=json.dumps(facts))


# The second pass


class TextFacts(Protocol):
    """An example that is not tokenised: a `Document`, or what the first pass left of it."""

    @property
    def name(self) -> str: ...

    @property
    def texts(self) -> tuple[str, ...]: ...

    @property
    def facts(self) -> str | None: ...


def encode_examples(examples: Sequence[TextFacts], tokenizer: Tokenizer) -> list[list[np.ndarray]]:
    """Return the parts of each example: arrays of ids, and of numbers below 2^16.

    Raises UserError, naming the example, where a text is too long for the tokenizer.
    """
    facts = [json.loads(example.facts or "{}") for example in examples]
    apart = ("words", "spans", "chat")  # encoded in ways of their own
    plain = [number for number, each in enumerate(facts) if not each.keys() & {*apart}]
    encoded = encode_texts([examples[number] for number in plain], tokenizer)

    parts: list[list[np.ndarray]] = [[] for _ in examples]
    for number, arrays in zip(plain, encoded, strict=True):
        each = facts[number]
        parts[number] = arrays
        if "targets" in each:
            halves = np.array(each["targets"], "<f4").view("<u2")
            parts[number].append(np.concatenate([[each["pair"]], halves]).astype(np.int32))
        elif "labels" in each:
            parts[number].append(np.array([each["pair"], *each["labels"]], np.int32))
        elif "end" in each:
            end = np.array([tokenizer.end_of_text], np.int32)
            parts[number][1:] = [np.concatenate([answer, end]) for answer in parts[number][1:]]

    for number, each in enumerate(facts):
        texts = examples[number].texts
        if "spans" in each or "chat" in each:
            check_text_length(examples[number])
        if "spans" in each:
            parts[number] = encode_chat(texts[0], each["spans"], tokenizer)
        elif "chat" in each:
            encoding = tokenizer.with_special_tokens.encode_batch(texts, add_special_tokens=False)
            parts[number] = [np.array(text.ids, np.int32) for text in encoding]

    of_words = [number for number, each in enumerate(facts) if "words" in each]
    words = [split_words(examples[number].texts[0], facts[number]["words"]) for number in of_words]
    for number, (ids, places) in zip(of_words, encode_words(words, tokenizer), strict=True):
        parts[number] = [ids, ids[:0], label_tokens(places, facts[number]["labels"])]
    return parts


def check_text_length(example: TextFacts) -> None:
    """Raise UserError for texts that can't be encoded at once."""
    try:
        check_length(max(map(len, example.texts)))
    except UserError as error:
        raise UserError(f"{example.name}: {error}") from error


def encode_texts(examples: Sequence[TextFacts], tokenizer: Tokenizer) -> Iterator[list[np.ndarray]]:
    """Yield the ids of the texts of each example; long ones are encoded in pieces."""
    pieces, counts = [], []
    for example in examples:
        for text in example.texts:
            before = len(pieces)
            try:
                pieces += tokenizer.split_text(text)
            except UserError as error:
                raise UserError(f"{example.name}: {error}") from error
            counts.append(len(pieces) - before)

    encoded = iter(tokenizer.encode_batch(pieces))
    texts = (np.concatenate([*islice(encoded, count)]) for count in counts)
    for example in examples:
        yield list(islice(texts, len(example.texts)))


def split_words(text: str, lengths: Sequence[int]) -> list[str]:
    """Return the words of these lengths that a space joined to a text."""
    words, start = [], 0
    for length in lengths:
        words.append(text[start : start + length])
        start += length + 1
    return words


def encode_words(
    texts: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the ids of the words of each text, and the word of each token; int32 [n] each.

    As `transformers` does with `is_split_into_words` (and `add_prefix_space`, where tokens begin
    with the space before their word).
    """
    prefix = " " if tokenizer.spells_spaces else ""
    batch = tokenizer.inner.encode_batch(
        [[prefix + word for word in words] for words in texts],
        is_pretokenized=True,
        add_special_tokens=False,
    )
    encoded = []
    for encoding in batch:
        ids, places = np.array(encoding.ids, np.int32), np.array(encoding.word_ids, np.int32)
        # Words that the model itself takes for special tokens (`Tokenizer.encode_reserved`).
        is_text = ~tokenizer.reserved[ids]
        encoded.append((ids[is_text], places[is_text]))
    return encoded


def label_tokens(places: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Return a number for each token: 1 + the label at the first token of a word, else 0."""
    is_first = np.diff(places, prepend=-1) != 0
    return np.where(is_first, np.array([*labels, 0], np.int32)[places] + 1, 0).astype(np.int32)
