"""Judge and mend one document after the other by the rules that a config switches on."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.config import ConfigError, CurationConfig, DataConfig, SourceConfig, UserError
from jaxlm.config.fields import list_names, suggestion
from jaxlm.data.documents import Document, SourceKeys
from jaxlm.data.fingerprints import fingerprint_source, hash_file
from jaxlm.data.listing import list_files
from jaxlm.data.readers.streams import MissingLibraryError
from jaxlm.data.rules import c4, gopher, repetition
from jaxlm.data.rules.addresses import remove_addresses
from jaxlm.data.rules.classifier import load_classifier
from jaxlm.data.rules.contamination import EvaluationNgrams
from jaxlm.data.rules.language import build_identifier, list_languages
from jaxlm.data.rules.normalization import build_repair, normalize
from jaxlm.data.rules.predicate import Predicate
from jaxlm.data.sources import read_documents
from jaxlm.files import expand_home

EMPTY, LANGUAGE, QUALITY = "empty", "language", "quality"
CONTAMINATED, PREDICATE = "contaminated", "predicate"
# Why a document is dropped, in the order of the steps.
REASONS = (
    EMPTY,
    LANGUAGE,
    *c4.C4_REASONS,
    *gopher.GOPHER_REASONS,
    *repetition.REPETITION_REASONS,
    QUALITY,
    CONTAMINATED,
    PREDICATE,
)
SECTION = "data.curation"
# Raise the version of a rule when it keeps, drops or changes another text than before. Stores that
# use it then get another name, and are built anew. Version 1 does not stand in the name: stores
# from before there were versions keep theirs.
VERSIONS = {
    "repair_unicode": 1,
    "normalization": 1,
    "languages": 1,
    "c4": 1,
    "gopher_quality": 1,
    "gopher_repetition": 1,
    "classifier": 1,  # how it scores; the weights are told by their hash
    "evaluation_text": 1,  # how n-grams are cut and compared
    "remove_addresses": 1,
}
REPAIR_PURPOSE, LANGUAGES_PURPOSE = "mending text", "identifying languages"
EVALUATION_KEYS = SourceKeys(f"{SECTION}.evaluation_text", None)


class DocumentRules:
    """The rules of a config for the documents of one source.

    They hold no state between documents, so each process builds its own. Building them reads the
    evaluation text and the models. Raises UserError; `check_rules` finds most of that beforehand.
    """

    def __init__(
        self, curation: CurationConfig, source: SourceConfig, predicate: Predicate | None = None
    ):
        self.predicate = predicate
        self.changes: list[Callable[[str], str]] = []
        if curation.repair_unicode:
            self.changes.append(build_repair(REPAIR_PURPOSE))
        if curation.normalization is not None:
            self.changes.append(functools.partial(normalize, form=curation.normalization))

        self.languages, self.identify = source.languages, None
        if source.languages:
            self.identify = build_identifier(LANGUAGES_PURPOSE)
        self.rules, self.removes_addresses = curation.rules, curation.remove_addresses

        self.threshold, self.classifier = curation.classifier_threshold, None
        if curation.classifier is not None:
            self.classifier = load_classifier(expand_home(curation.classifier))
        self.evaluation = None
        if curation.evaluation_text is not None:
            self.evaluation = read_evaluation(curation.evaluation_text)

    @property
    def is_active(self) -> bool:
        """Whether any rule is switched on."""
        steps = (self.identify, self.classifier, self.evaluation, self.predicate)
        is_judging = bool(self.rules) or any(step is not None for step in steps)
        return is_judging or bool(self.changes) or self.removes_addresses

    def __call__(self, document: Document) -> tuple[Document, str]:
        """Return a document, perhaps with changed text, and why it is dropped, or "".

        All texts of a record are changed; they are judged as one text, joined by newlines.
        """
        for change in self.changes:
            document = change_texts(document, change)
        if not any(document.texts):
            return document, EMPTY
        if self.identify is not None and self.identify(join_texts(document)) not in self.languages:
            return document, LANGUAGE

        for rule in self.rules:
            document, reason = apply_rule(document, rule)
            if reason:
                return document, reason

        text = join_texts(document)
        if self.classifier is not None and self.classifier.score(text) < self.threshold:
            return document, QUALITY
        if self.evaluation is not None and self.evaluation.share_with(text):
            return document, CONTAMINATED
        if self.predicate is not None and not self.predicate.keeps(document):
            return document, PREDICATE

        if self.removes_addresses:
            document = change_texts(document, remove_addresses)
        return document, ""


def apply_rule(document: Document, rule: str) -> tuple[Document, str]:
    """Return a document, without the lines that C4 removes, and why the rule drops it, or ""."""
    text = join_texts(document)
    if rule == "c4":
        if reason := c4.judge_page(text):
            return document, reason
        cleaned = [c4.clean_lines(part) for part in document.texts]
        document = with_texts(document, [part for part, _ in cleaned])
        sentences = sum(count for _, count in cleaned)
        return document, "" if sentences >= c4.SENTENCES else "c4_too_few_sentences"

    lines = [line for line in map(str.strip, text.splitlines()) if line]
    judge = gopher.judge_quality if rule == "gopher_quality" else repetition.judge_repetition
    return document, judge(text, text.split(), lines)


def join_texts(document: Document) -> str:
    """Return the text of a document that is judged."""
    return "\n".join(document.texts)


def change_texts(document: Document, change: Callable[[str], str]) -> Document:
    """Return a document with a change of each of its texts."""
    return with_texts(document, [change(text) for text in document.texts])


def with_texts(document: Document, texts: list[str]) -> Document:
    """Return a document with other texts."""
    return document._replace(text=texts[0], more=tuple(texts[1:]))


def read_evaluation(path: str) -> EvaluationNgrams:
    """Return the n-grams of the evaluation text, read once per process while it is the same."""
    source = evaluation_source(path)
    files = list_files(source, EVALUATION_KEYS)
    states = [(file, file.stat()) for file in files if isinstance(file, Path)]  # none is elsewhere
    return read_evaluation_files(
        path, tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in states)
    )


@functools.lru_cache(maxsize=1)
def read_evaluation_files(path: str, states: tuple[tuple[str, int, int], ...]) -> EvaluationNgrams:
    """Return the n-grams of the evaluation text; `states` are those of its files.

    Raises ConfigError for a file that can't be read.
    """
    del states
    try:
        return EvaluationNgrams(read_documents(evaluation_source(path), EVALUATION_KEYS))
    except UserError as error:
        # A hint at the options of a source would mislead: the evaluation text has none.
        reason = str(error).partition("; --")[0].removeprefix(f"{EVALUATION_KEYS.path}: ")
        raise ConfigError(EVALUATION_KEYS.path, reason) from error


def evaluation_source(path: str) -> SourceConfig:
    """Return the evaluation text as a source."""
    return SourceConfig(name="evaluation", path=path)


def check_rules(data: DataConfig) -> None:
    """Raise ConfigError at the key of a rule that can't be applied, before anything is read."""
    curation = data.curation
    if curation.repair_unicode:
        key = f"{SECTION}.repair_unicode"
        check_library(key, lambda: build_repair(REPAIR_PURPOSE))
    for number, source in enumerate(data.sources):
        if source.languages:
            check_languages(source.languages, f"data.sources.{number}.languages")

    if curation.classifier is not None:
        try:
            load_classifier(expand_home(curation.classifier))
        except UserError as error:
            raise ConfigError(f"{SECTION}.classifier", str(error)) from error
    if curation.evaluation_text is not None:
        list_files(evaluation_source(curation.evaluation_text), EVALUATION_KEYS)


def check_languages(languages: tuple[str, ...], key: str) -> None:
    """Raise ConfigError at `key` for a language that can't be identified."""
    known: list[str] = []
    check_library(key, lambda: known.extend(list_languages(LANGUAGES_PURPOSE)))
    for language in languages:
        if language not in known:
            hint = suggestion(language, known) or f" (known: {list_names(known)})"
            raise ConfigError(key, f"{language!r} is no ISO 639-1 code of a known language{hint}")


def check_library(key: str, load: Callable[[], object]) -> None:
    """Raise ConfigError at `key` if `load` misses a library."""
    try:
        load()
    except MissingLibraryError as error:
        raise ConfigError(key, str(error)) from error


def describe_rules(data: DataConfig, predicate: Predicate | None = None) -> dict[str, Any]:
    """Return what decides the verdicts of the rules, as JSON data; {} where none is switched on.

    Contents of files count, their paths do not.
    """
    curation, default = data.curation, CurationConfig()
    cache = expand_home(data.store) / "fingerprints.json"
    description: dict[str, Any] = {}
    for name in ("repair_unicode", "normalization", "rules", "remove_addresses"):
        if getattr(curation, name) != getattr(default, name):
            description[name] = getattr(curation, name)
    if any(source.languages for source in data.sources):
        description["languages"] = [sorted(source.languages) for source in data.sources]

    if curation.classifier is not None:
        path = expand_home(curation.classifier)
        description["classifier"] = hash_classifier(path)
        description["classifier_threshold"] = curation.classifier_threshold
    if curation.evaluation_text is not None:
        source = evaluation_source(curation.evaluation_text)
        description["evaluation_text"] = fingerprint_source(source, cache, EVALUATION_KEYS).hash
    if predicate is not None:
        description["predicate"] = predicate.hash

    used = (*description, *curation.rules)
    if versions := raised_versions(VERSIONS, used):
        description["versions"] = versions
    return description


def raised_versions(versions: Mapping[str, int], used: Iterable[str]) -> dict[str, int]:
    """Return the versions above 1 of what is used, for the name of a store."""
    return {name: versions[name] for name in used if versions.get(name, 1) > 1}


def hash_classifier(path: Path) -> str:
    """Return the SHA-256 of a classifier's file. Raises ConfigError."""
    try:
        return hash_file(path, known={}, new={}).hash
    except OSError as error:
        raise ConfigError(f"{SECTION}.classifier", f"{path}: {error.strerror}") from error
