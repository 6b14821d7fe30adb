"""Each rule drops what its paper says, and a config that can't be applied is found beforehand."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labelled_documents import (
    C4,
    FIVE,
    LANGUAGE,
    LANGUAGES,
    QUALITY,
    REPETITION,
    all_documents,
    words,
)
from support.stores import BYTES, data_config, write_corpus

from jaxlm.config import ConfigError, CurationConfig, SourceConfig
from jaxlm.data import Document, identify_store
from jaxlm.data.readers import streams
from jaxlm.data.rules import REASONS, DocumentRules, check_rules, describe_rules, train_classifier
from jaxlm.data.rules.language import load_model
from jaxlm.data.rules.repetition import repeated_ngrams, share_of_characters, top_places

SOURCE = SourceConfig(name="s", path="x")
DOCUMENTS = all_documents()


def rules_of(**curation):
    return DocumentRules(CurationConfig(**curation), SOURCE)


def test_there_are_200_labelled_documents_for_all_reasons_of_the_papers():
    assert len(DOCUMENTS) >= 200
    labels = {label for document in DOCUMENTS for label in document.verdicts.values()}
    by_other_means = {"", "empty", "quality", "contaminated", "predicate"}
    assert labels | by_other_means == {"", *REASONS}


@pytest.mark.parametrize("rule", [C4, QUALITY, REPETITION, LANGUAGE])
def test_a_rule_drops_what_its_paper_says(rule):
    if rule == LANGUAGE:
        pytest.importorskip("py3langid")
        rules = DocumentRules(CurationConfig(), replace(SOURCE, languages=("en",)))
    else:
        rules = rules_of(rules=(rule,))

    wrong = []
    for number, labelled in enumerate(DOCUMENTS):
        if rule not in labelled.verdicts:
            continue
        document, reason = rules(Document("d", labelled.text))
        if reason != labelled.verdicts[rule]:
            wrong.append((number, labelled.kind, labelled.verdicts[rule], reason))
        expected = labelled.text if labelled.kept_text is None else labelled.kept_text
        if not reason and rule == C4 and labelled.kind == "page":
            assert document.text == expected
        elif rule != C4:
            assert document.text == labelled.text
    assert wrong == []


def plain_shares(text: list[str], length: int) -> tuple[float, float]:
    """Return the shares of the top n-gram and of duplicates, as the paper words them."""
    ngrams = [tuple(text[n : n + length]) for n in range(len(text) - length + 1)]
    counts = Counter(ngrams)
    shares = []
    for is_counted in (
        lambda n: counts[ngrams[n]] == max(counts.values()) > 1,
        lambda n: ngrams[n] in ngrams[:n],
    ):
        covered = {n + k for n in range(len(ngrams)) if is_counted(n) for k in range(length)}
        shares.append(len(covered) / len(text))
    return shares[0], shares[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_repeated_ngrams_are_those_of_a_plain_count(text):
    lengths = dict.fromkeys(range(2, 11), (0.0, 0.0))
    sizes = np.ones(len(text), int)
    for length, ngrams in repeated_ngrams(text):
        later = ngrams.places[ngrams.places != ngrams.first[ngrams.groups]]
        top = top_places(ngrams, sizes, length)
        # Of several that are equally frequent the longest counts; here all are equally long.
        assert share_of_characters(top, sizes, length) <= plain_shares(text, length)[0]
        lengths[length] = (1.0, share_of_characters(later, sizes, length))
    for length, (is_any, duplicates) in lengths.items():
        expected_top, expected = plain_shares(text, length)
        assert duplicates == expected and bool(is_any) == bool(expected_top)


def test_rules_hold_in_the_order_in_which_they_are_named():
    text = "\n".join(["Home Page", *FIVE])  # 24 words; C4 takes the first line
    assert rules_of(rules=(C4, QUALITY))(Document("d", text)) == (
        Document("d", "\n".join(FIVE)),
        "gopher_word_count",
    )
    assert rules_of(rules=(QUALITY, C4))(Document("d", text))[0].text == text
    with pytest.raises(ConfigError, match=r"data\.curation\.rules: names a rule twice"):
        CurationConfig(rules=(C4, C4))


def test_pairs_are_judged_as_one_text_and_both_texts_are_changed():
    pair = Document("p", "\n".join(["Menu", *FIVE[:3]]), ("\n".join([*FIVE[3:], "Imprint"]),))
    kept, reason = rules_of(rules=(C4,))(pair)
    assert (kept, reason) == (Document("p", "\n".join(FIVE[:3]), ("\n".join(FIVE[3:]),)), "")
    pair = Document("p", "a\x00 b@example.org", ("c@example.org",))
    mask = "|||EMAIL_ADDRESS|||"
    rules = rules_of(remove_addresses=True, normalization="NFC")
    assert rules(pair) == (Document("p", f"a {mask}", (mask,)), "")


def test_rules_are_active_where_anything_is_switched_on():
    assert not rules_of().is_active
    assert not rules_of(exact_duplicates=True, near_duplicates=0.5).is_active
    assert rules_of(rules=(C4,)).is_active and rules_of(remove_addresses=True).is_active
    assert rules_of()(Document("d", "{ lorem ipsum")) == (Document("d", "{ lorem ipsum"), "")


# What is checked beforehand, and the name of a store


@pytest.fixture
def data(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "a.txt").write_text(" ".join(words(30)))
    texts = [" ".join(words(30, start=30 * number)) for number in range(40)]
    train_classifier(texts[:20], texts[20:]).save(tmp_path / "c.safetensors")
    return data_config(tmp_path, write_corpus(tmp_path / "corpus"))


def curated(data, **curation):
    return replace(data, curation=CurationConfig(**curation))


def test_what_is_missing_is_found_before_anything_is_read(data, tmp_path, monkeypatch):
    path = str(tmp_path / "c.safetensors")
    check_rules(curated(data, classifier=path, evaluation_text=str(tmp_path / "evaluation")))
    (tmp_path / "text").write_text("no classifier")
    for curation, message in (
        ({"classifier": "none"}, "data.curation.classifier: none: No such file"),
        ({"classifier": str(tmp_path / "text")}, "is no safetensors file"),
        ({"evaluation_text": "none"}, "data.curation.evaluation_text: none: no such file"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_rules(curated(data, **curation))
        assert message in str(caught.value) and "\n" not in str(caught.value)

    load_model.cache_clear()
    find = streams.importlib.import_module
    monkeypatch.setattr(streams.importlib, "import_module", lambda name: find(f"no_{name}"))
    english = replace(data, sources=(replace(data.sources[0], languages=("en",)),))
    for key, missing in (
        ("data.curation.repair_unicode", curated(data, repair_unicode=True)),
        ("data.sources.0.languages", english),
    ):
        with pytest.raises(ConfigError) as caught:
            check_rules(missing)
        assert str(caught.value).startswith(f"{key}: ")
        assert str(caught.value).endswith('pip install "jaxlm[data]"')


def test_languages_must_be_known(data):
    pytest.importorskip("py3langid")
    sources = (replace(data.sources[0], languages=("en", "english")),)
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.languages: 'english' is no ISO"):
        check_rules(replace(data, sources=sources))
    check_rules(replace(data, sources=(replace(data.sources[0], languages=tuple(LANGUAGES)),)))


def test_only_the_rules_that_are_switched_on_name_the_store(data, tmp_path):
    def identity(data):
        return identify_store(data, BYTES, 300, ())

    assert describe_rules(data) == {} and "curation" not in identity(data).inputs
    duplicates = identity(curated(data, exact_duplicates=True))
    assert duplicates.inputs["curation"] == {"exact_duplicates": True, "near_duplicates": None}
    assert "rules" not in duplicates.inputs

    classifier, evaluation = tmp_path / "c.safetensors", tmp_path / "evaluation"
    changes = (
        {"rules": (C4,)},
        {"rules": (QUALITY, C4)},
        {"normalization": "NFC"},
        {"remove_addresses": True},
        {"classifier": str(classifier)},
        {"classifier": str(classifier), "classifier_threshold": 0.25},
        {"evaluation_text": str(evaluation)},
    )
    names = {identity(curated(data, **change)).folder.name for change in changes}
    german = replace(data, sources=(replace(data.sources[0], languages=("de",)),))
    names |= {identity(german).folder.name, identity(data).folder.name}
    assert len(names) == len(changes) + 2

    # Paths don't count, contents do.
    used = {"classifier": str(classifier), "evaluation_text": str(evaluation)}
    before = describe_rules(curated(data, **used))
    moved = {key: f"{path}2" for key, path in used.items()}
    for key, path in used.items():
        (tmp_path / path).rename(moved[key])
    assert describe_rules(curated(data, **moved)) == before
    (tmp_path / "evaluation2" / "a.txt").write_text("other")
    after = describe_rules(curated(data, **moved))
    assert {key for key in before if before[key] != after[key]} == {"evaluation_text"}
