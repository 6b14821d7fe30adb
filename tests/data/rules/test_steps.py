"""Unicode, addresses, evaluation text, the classifier and the user's function."""

import copy
from pathlib import Path

import numpy as np
import pytest
from support.labelled_documents import PROSE, words

from jaxlm import prepare
from jaxlm.config import CurationConfig, SourceConfig, UserError
from jaxlm.data import Document
from jaxlm.data.rules import DocumentRules, load_classifier, load_predicate, train_classifier
from jaxlm.data.rules.addresses import EMAIL, IP, remove_addresses
from jaxlm.data.rules.normalization import normalize

SOURCE = SourceConfig(name="s", path="x")
ROOT = Path(__file__).parent.parent.parent.parent


def verdict(text, predicate=None, **curation):
    return DocumentRules(CurationConfig(**curation), SOURCE, predicate)(Document("d", text))


# Unicode


def test_text_is_normalised_and_control_characters_go():
    assert (
        normalize("e\u0301\ufb01", "NFC") == "é\ufb01"
        and normalize("e\u0301\ufb01", "NFKC") == "éfi"
    )
    assert normalize("\ufeffa\x00b\tc\r\nd\re\x1b\x7f\x85f\n", "NFC") == "ab\tc\nd\nef\n"
    assert verdict("\x00\x01", normalization="NFC") == (Document("d", ""), "empty")


def test_wrong_decodings_are_repaired_and_nothing_else():
    pytest.importorskip("ftfy")
    for original in ("café — “naïve", "Größe: 5 µm", "日本語", "x &amp; y ﬁ", "a\tb\n"):
        assert verdict(original, repair_unicode=True)[0].text == original
    for original in ("café — “naïve", "Größe: 5 µm"):
        garbled = original.encode().decode("cp1252")
        assert verdict(garbled, repair_unicode=True)[0].text == original
    assert verdict("a\x00b\r\n", repair_unicode=True)[0].text == "ab\n"


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to joe.smith+x@mail.example.co.uk.", f"Write to {EMAIL}."),
        ("<a_b-c@x-y.org>, ...d@e.de", f"<{EMAIL}>, ...{EMAIL}"),
        ("a@b, @name, x @ y.com, logo@2x.png", None),
        ("ping 8.8.8.8, then 8.8.4.4.", f"ping {IP}, then {IP}."),
        ("http://8.8.8.8:80/x 8.8.8.8/24", f"http://{IP}:80/x {IP}/24"),
        ("999.1.1.1 256.8.8.8 08.8.8.8", None),
        ("192.168.1.1 10.0.0.1 127.0.0.1 192.0.2.1 0.0.0.0", None),
        ("1.2.3 1.3.6.1.4.1 8.8.8.8.8 v8.8.8.8", None),
        ("Version 8.8.8.8, section 4.1.2.3, ver. 8.8.4.4, Firefox/8.8.8.8", None),
        ("at 2001:4860:4860::8888: up", f"at {IP}: up"),
        ("[2606:4700:0:0:0:0:0:1111]", f"[{IP}]"),
        ("2001:db8::1 fe80::1 ::1 12:30:45 2021:10:11 std::beef", None),
    ],
)
def test_valid_public_addresses_are_replaced(text, expected):
    assert remove_addresses(text) == (text if expected is None else expected)


# The user's function


def test_a_predicate_drops_documents_and_can_be_loaded_again(tmp_path):
    (tmp_path / "limits.py").write_text("LEAST = 3\n")
    path = tmp_path / "keep.py"
    path.write_text("import limits\ndef long(text): return len(text.split()) >= limits.LEAST\n")
    predicate = load_predicate(f"{path}:long")
    assert verdict("one two", predicate)[1] == "predicate" and verdict("1 2 3", predicate)[1] == ""
    again = copy.copy(predicate)  # as a worker process gets it
    assert again.function is not predicate.function and again.hash == predicate.hash

    path.write_text(path.read_text() + "def other(text): return True\n")
    hashes = {
        predicate.hash,
        *(load_predicate(f"{path}:{name}").hash for name in ("long", "other")),
    }
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("", None, "none.py: no such file"),
        ("def keep(text): return True", "kep", "defines no function 'kep' (did you mean 'keep'?)"),
        ("keep = 3", "keep", "'keep' is no function, got int"),
        ("keep = 1 / 0", "keep", "k.py:1: ZeroDivisionError"),
        ("def keep(", "keep", "k.py:1: syntax error"),
        ("def keep(text): return None", "keep", "d: must return True or False, got NoneType"),
        ("def keep(text):\n    return text[99]", "keep", "k.py:2: d: IndexError: string index"),
    ],
)
def test_a_wrong_predicate_is_one_line(tmp_path, code, name, message):
    (tmp_path / "k.py").write_text(code)
    spec = f"{tmp_path}/k.py:{name}" if name else f"{tmp_path}/none.py:keep"
    with pytest.raises(UserError) as caught:
        verdict("text", load_predicate(spec))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_predicate_needs_a_file_and_a_function():
    for spec in ("keep.py", ":keep", "keep.py:"):
        with pytest.raises(UserError, match=r"must be FILE\.py:FUNCTION"):
            load_predicate(spec)


# The evaluation text


@pytest.fixture
def evaluation(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    long = " ".join(words(40)).replace(" ", ", ", 9).title()
    short, shortest = " ".join(words(9, start=100)), " ".join(words(7, start=200))
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in (long, short, shortest)))
    return str(path)


@pytest.mark.parametrize(
    ("shared", "is_dropped"),
    [
        (words(40), True),
        (words(13), True),
        (words(13, start=27), True),
        (words(12), False),
        ([*words(12, start=14), "x", *words(12)], False),
        ([f"“{word.upper()}!”" for word in words(13)], True),
        (["- - ".join(words(13))], True),
        (words(9, start=100), True),  # the whole of a short document
        (words(8, start=100), False),
        (words(7, start=200), False),  # too short to tell
    ],
)
def test_documents_that_share_13_words_with_the_evaluation_text_are_dropped(
    evaluation, shared, is_dropped
):
    text = " ".join([*words(50, start=300), *shared, *words(50, start=400)])
    expected = "contaminated" if is_dropped else ""
    assert verdict(text, evaluation_text=evaluation)[1] == expected


def test_hashes_find_the_documents_that_a_set_of_ngrams_finds(tmp_path):
    random = np.random.default_rng(5)
    texts = [" ".join(map(str, random.integers(0, 2, 40))) for _ in range(300)]
    (tmp_path / "e.txt").write_text(texts[0])

    def ngrams(text):
        plain = text.split()
        return {tuple(plain[n : n + 13]) for n in range(28)}

    rules = DocumentRules(CurationConfig(evaluation_text=str(tmp_path / "e.txt")), SOURCE)
    found = [bool(rules(Document("d", text))[1]) for text in texts]
    assert found == [bool(ngrams(text) & ngrams(texts[0])) for text in texts]
    assert 10 < sum(found) < 290


def test_an_evaluation_text_that_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_text('{"question": "why"}\n')
    with pytest.raises(UserError) as caught:
        verdict("text", evaluation_text=str(path))
    reason = f"{path}:1: no key 'text' (it has 'question')"
    assert str(caught.value) == f"data.curation.evaluation_text: {reason}"


# The classifier


def pieces(paths, size=1500):
    texts = [path.read_text() for path in sorted(paths)]
    return [text[n : n + size] for text in texts for n in range(0, len(text) - size, size)]


def test_a_classifier_tells_held_out_documents_apart(tmp_path, capsys):
    """Pages and programs of this project; the same documents give the same bits."""
    for name, texts in (
        ("good", pieces((ROOT / "docs").glob("*.md"))),
        ("bad", pieces((ROOT / "jaxlm" / "data").glob("*.py"))),
    ):
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts[:60]):
            (tmp_path / name / f"{number}.txt").write_text(text)
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        assert (
            prepare.main(["classifier", str(tmp_path / "good"), str(tmp_path / "bad"), str(path)])
            == 0
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "good and 60 bad documents; of" in capsys.readouterr().out

    classifier = load_classifier(paths[0])
    assert classifier.report["accuracy"] >= 0.9
    assert classifier.score(PROSE[0]) > 0.5 > classifier.score("def f(x):\n    return x[0] + 1\n")
    code = (ROOT / "jaxlm" / "monitor.py").read_text()
    assert verdict(code, classifier=str(paths[0]))[1] == "quality"
    assert verdict(code, classifier=str(paths[0]), classifier_threshold=0.0)[1] == ""
    for text in ("", "word", "x" * 10_000):
        assert 0 <= classifier.score(text) <= 1


def test_what_is_no_classifier_is_one_line(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(UserError, match="at least 20 good and bad documents, got 20 good and 3"):
        train_classifier(["a"] * 20, ["b"] * 3)
    trained = train_classifier(["a"] * 20, ["b"] * 20)
    wrong = replace_weights(trained, np.full_like(trained.weights, np.nan))
    wrong.save(tmp_path / "nan")
    replace_weights(trained, trained.weights[:7]).save(tmp_path / "short")
    save_file({"weights": np.ones(3)}, tmp_path / "other")
    for name, message in (("nan", "not finite"), ("short", "shape"), ("other", "no quality")):
        with pytest.raises(UserError, match=message):
            load_classifier(tmp_path / name)


def replace_weights(classifier, weights):
    return classifier._replace(weights=weights)
