"""Duplicates are found, dropped and counted; the first of each is kept."""

import random
from dataclasses import replace

import numpy as np
import pytest
from support.stores import all_texts, build_store, data_config

from jaxlm import config
from jaxlm.data import describe_store, near_duplicates
from jaxlm.data.rules import load_predicate


def words(seed: int, count: int = 150) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def changed(seed: int, share: float, count: int = 150) -> str:
    """Return the text of a seed with a share of its words replaced."""
    rng, text = random.Random(f"{seed} {share}"), words(seed, count)
    for place in rng.sample(range(count), max(1, round(share * count))):
        text[place] = f"new{rng.random()}"
    return " ".join(text)


@pytest.fixture
def data(tmp_path):
    """Two sources of 60 documents. In the second are copies and changed copies of the first's."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for number in range(60):
        (tmp_path / "one" / f"{number:02}.txt").write_text(" ".join(words(number)))
        text = " ".join(words(100 + number))
        if number < 10:
            text = " ".join(words(number))
        elif number < 20:
            text = changed(number, 0.02)
        (tmp_path / "two" / f"{number:02}.txt").write_text(text)
    return data_config(tmp_path, tmp_path / "one", tmp_path / "two")


def curated(data, **rules):
    return replace(data, curation=config.CurationConfig(**rules))


def test_duplicates_within_and_across_sources_are_dropped_and_counted(data):
    everything, _ = build_store(data)
    exact, lines = build_store(curated(data, exact_duplicates=True))
    both, _ = build_store(curated(data, near_duplicates=0.5))
    assert len({everything.hash, exact.hash, both.hash}) == 3
    assert any(line.startswith("curation: 10 of 120 documents are dup") for line in lines)

    assert len(all_texts(everything)) == 120
    assert len(all_texts(exact)) == len(set(all_texts(exact))) == 110
    assert len(all_texts(both)) == 100
    assert {" ".join(words(number)) for number in range(60)} <= set(all_texts(both))

    sources = describe_store(both)["sources"]
    assert sources["s0"]["dropped"] == {}
    assert sources["s1"]["dropped"] == {"exact_duplicate": 10, "near_duplicate": 10}
    assert (sources["s1"]["documents"], sources["s1"]["kept"]) == (60, 40)
    assert not list(both.path.glob("signatures*"))


@pytest.mark.parametrize("method", ["tail", "source"])
def test_the_other_splits_see_what_is_kept(data, tmp_path, method):
    path = str(tmp_path / "one") if method == "source" else None
    share = 0.25 if method == "tail" else 0.05
    validation = config.ValidationConfig(method=method, share=share, path=path)
    store, _ = build_store(replace(curated(data, near_duplicates=0.5), validation=validation))
    count = len(all_texts(store))
    # Validation files are not judged: here they are those of a source once more.
    assert count == 160 if method == "source" else 100 <= count <= 102


def test_pairs_are_duplicates_where_both_texts_are(tmp_path):
    numbers = [*range(19), *range(19)]
    lines = [f'{{"source": "a", "target": "{number}"}}' for number in numbers]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    source = config.SourceConfig(name="p", path=str(tmp_path / "p.jsonl"), format="pairs")
    validation = config.ValidationConfig(method="source", path=source.path)
    data = config.DataConfig(
        sources=(source,), validation=validation, store=str(tmp_path / "stores")
    )
    store, _ = build_store(curated(data, exact_duplicates=True), needs=("pad",))
    assert [len(array) for array in (*store.train, *store.validation)] == [19, 38]


def similarity(one: str, other: str) -> float:
    first, second = (set(near_duplicates.hash_shingles(text).tolist()) for text in (one, other))
    return len(first & second) / len(first | second)


def sign(texts: list[str]) -> np.ndarray:
    table = np.zeros((near_duplicates.MINIMA, len(texts)), np.uint32)
    for number, text in enumerate(texts):
        table[:, number] = near_duplicates.sign_text(text)
    return table


def test_signatures_agree_as_often_as_shingles_are_shared():
    for share in (0.0, 0.02, 0.05, 0.2, 1.0):
        texts = [(" ".join(words(seed)), changed(seed, share)) for seed in range(40)]
        expected = np.mean([similarity(one, other) for one, other in texts])
        found = np.mean(
            [
                np.mean(near_duplicates.sign_text(one) == near_duplicates.sign_text(other))
                for one, other in texts
            ]
        )
        # 40 signatures of 128 minima: a standard error of 0.007 at most.
        assert abs(found - expected) < 0.03


def test_near_duplicates_are_found_as_often_as_stated():
    """At 5% of the words the similarity is 0.63, which is compared with a probability of 0.996."""
    assert near_duplicates.find_probability(0.63) > 0.99
    count = 300
    texts = [" ".join(words(seed)) for seed in range(count)]
    texts += [changed(seed, 0.05) for seed in range(100)]
    texts += [changed(seed, 0.02) for seed in range(100, 200)]
    is_near = near_duplicates.find_near_duplicates([sign(texts)], 0.5)
    assert not is_near[:count].any()
    assert is_near[count : count + 100].mean() >= 0.95
    assert is_near[count + 100 :].all()


def test_units_of_signatures_make_no_difference():
    table = sign([" ".join(words(seed % 7, 12)) for seed in range(23)])
    for bounds in ([], [4, 8, 8, 20], [0, 22]):
        parts = np.split(table, bounds, axis=1)
        is_near = near_duplicates.find_near_duplicates(parts, 0.9)
        assert is_near.tolist() == [False] * 7 + [True] * 16


def test_a_chain_of_similar_documents_keeps_its_first():
    texts = [" ".join(words(1)), changed(1, 0.03)]
    for _ in range(4):
        rng, parts = random.Random(len(texts)), texts[-1].split()
        for place in rng.sample(range(150), 4):
            parts[place] = f"more{rng.random()}"
        texts.append(" ".join(parts))
    is_near = near_duplicates.find_near_duplicates([sign(texts[::-1])], 0.6)
    assert similarity(texts[0], texts[-1]) < 0.6
    assert is_near.tolist() == [False] + [True] * (len(texts) - 1)

    assert near_duplicates.find_near_duplicates([sign([])], 0.6).shape == (0,)


def test_texts_of_few_words_are_one_shingle():
    assert similarity("a b", "A  b\n") == 1 and similarity("a b", "a c") == 0
    assert len(near_duplicates.hash_shingles("")) == len(near_duplicates.hash_shingles("a")) == 1


def test_rules_drop_documents_and_are_counted_beside_duplicates(data, tmp_path):
    (tmp_path / "keep.py").write_text("def keeps(text):\n    return 'w1 ' not in text\n")
    predicate = load_predicate(f"{tmp_path}/keep.py:keeps")
    (tmp_path / "one" / "00.txt").write_text("w1 " * 200)
    (tmp_path / "one" / "01.txt").write_text("mail me@example.org " + " ".join(words(1)))
    rules = curated(data, exact_duplicates=True, remove_addresses=True)
    store, _ = build_store(rules, predicate=predicate, workers=1)
    without, _ = build_store(rules)
    assert store.hash != without.hash

    texts = all_texts(store)
    assert not any("w1 " in text or "me@example.org" in text for text in texts)
    curation = store.manifest["curation"]["sources"]
    dropped = curation["s0"]["dropped"]["predicate"]
    assert curation["s0"]["read"]["documents"] == 60
    assert dropped == {"documents": 1, "bytes": 600}
    assert curation["s0"]["samples"]["predicate"][0] == {"name": "00.txt", "text": "w1 " * 100}
    assert len(curation["s1"]["samples"]["exact_duplicate"]) == 3
