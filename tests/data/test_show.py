"""A sample as the model sees it, token by token."""

import json

import numpy as np
import pytest
from support.stores import build_store, data_config, random_text, write_corpus

from jaxlm import objectives
from jaxlm.config import ObjectiveConfig, TokenizerConfig, UserError
from jaxlm.data import SpecialTokens, show
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.stream import open_stream
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.trained_tokenizers import train_bpe
from jaxlm.data.visible_text import display_width
from jaxlm.types import Batch

SPECIAL = SpecialTokens("<|endoftext|>", pad="<pad>", mask="<mask>", sentinels=3)


@pytest.fixture
def store(tmp_path):
    notes = [json.dumps({"text": f"note {number}"}) for number in range(30)]
    (tmp_path / "n.jsonl").write_text("\n".join(notes))
    paths = (write_corpus(tmp_path / "web"), tmp_path / "n.jsonl")
    return build_store(data_config(tmp_path, *paths))[0], data_config(tmp_path, *paths)


def names_of(store):
    return show.TokenNames(store.tokenizer)


def test_the_place_of_a_sample_is_where_its_tokens_are(store):
    store, data = store
    objective = objectives.build(ObjectiveConfig(), 100, store.tokenizer.vocabulary)
    stream = open_stream(store, data, objective, BatchSchedule(8), seed=1)
    for sample in (0, 5, 2000):
        source, start = stream.locate(np.array([sample]))[:, 0].tolist()
        place = show.locate_window(store, "train", source, start, objective.window)
        batch = stream[sample // 8]
        window = store.train[source].read_windows(np.array([place.start]), place.length)
        assert np.array_equal(window[0, :-1], batch.tokens[sample % 8])

        # The documents before the place are those whose ends lie before it.
        before = store.train[source].read_windows(np.zeros(1, np.int64), place.start)
        ends = np.count_nonzero(before == store.tokenizer.end_of_text)
        inside = np.count_nonzero(window[0, :-1] == store.tokenizer.end_of_text)
        assert place.documents == (ends, ends + inside)


def test_documents_of_a_store_are_counted_through_its_sources(store):
    store, _ = store
    first = store.manifest["splits"]["train"][0]["documents"]
    array, place = show.locate_document(store, "train", first + 2)
    assert (array, place.source, place.documents) == (1, "s1", (2, 2))
    ids = show.read_document(store, "train", array, place)["document"]
    assert store.tokenizer.decode(ids).startswith("note ") and ids[-1] == 256

    with pytest.raises(UserError, match="--sample: 999: the train split of"):
        show.locate_document(store, "train", 999)


def test_tokens_are_shown_as_they_are_and_terminals_obey_none():
    names = show.TokenNames(byte_tokenizer(SPECIAL))
    assert [names(number) for number in (97, 32, 10, 27, 0xC3, 256, 9999, -1)] == [
        *("a", "·", "\\n", "\\x1b", "<c3>", "<|endoftext|>", "<no token 9999>", "<no token -1>")
    ]
    tokenizer = train_bpe(["été · \ufffd the the"] * 9, 300, SPECIAL, splits_by="gpt2")
    shown = [show.TokenNames(tokenizer)(number) for number in tokenizer.encode(" the · \ufffd")]
    assert shown == ["·the", "·\\xb7", "·\ufffd"]


def test_each_side_has_its_targets_weights_and_masks():
    names = show.TokenNames(byte_tokenizer(SPECIAL))
    batch = Batch(
        tokens=np.array([[257, 97, 98, 257]]),
        segments=np.array([[0, 0, 1, 1]]),
        prefix_lengths=np.array([2]),
        source=np.array([[97, 257, 257, 257]]),
        source_lengths=np.array([1]),
        targets=np.array([[97, 98, 99, 0]]),
        weights=np.array([[1, 1, 0.5, 0]]),
    )
    sides = show.describe_batch(names, batch)
    assert sides["source"][0] == {"position": 0, "token": "a", "id": 97}
    assert [row.get("note") for row in sides["source"]] == [None, *["padding"] * 3]
    row = {"position": 2, "token": "b", "id": 98, "target": "c", "target_id": 99}
    assert sides["target"][2] == row | {"weight": 0.5, "segment": 1}
    text = show.format_side(sides["target"], as_table=False)
    assert text[1:] == [
        "predicted: 0-2 (3 of 4)",
        "targets:",
        "0  a│b│c│\\x00│",
        "segment 0: 0-1",
        "segment 1: 2-3",
        "prefix: 0-1",
        "weights: 0.5 to 1",
    ]


def test_a_masked_sample_marks_what_is_predicted():
    tokenizer = byte_tokenizer(SPECIAL)
    config = ObjectiveConfig(kind="masked", mask_share=1.0, random_share=0.0)
    objective = objectives.build(config, 20, tokenizer.vocabulary)
    window = tokenizer.encode("abcdefghijklmnopqrst")[None]
    batch = objective.make_batch(window, np.array([3]), 0)
    rows = show.describe_batch(show.TokenNames(tokenizer), batch)["tokens"]

    predicted = sorted(batch.predict[0].tolist())
    assert [row["position"] for row in rows if "target" in row] == predicted
    for position in predicted:
        assert rows[position]["target"] == "abcdefghijklmnopqrst"[position]
        assert f"«<mask>={rows[position]['target']}»" in show.format_side(rows, as_table=False)[0]


def test_lines_have_at_most_100_columns(tmp_path):
    text = "\n".join(json.dumps({"text": "日本" * 40 + random_text(n)}) for n in range(30))
    (tmp_path / "n.jsonl").write_text(text)
    data = data_config(tmp_path, tmp_path / "n.jsonl")
    store, _ = build_store(data, TokenizerConfig(kind="bpe"))
    array, place = show.locate_document(store, "train", 0)
    ids = show.read_document(store, "train", array, place)["document"]
    rows = show.describe_tokens(names_of(store), np.tile(ids, 3))
    rows[5] |= {"token": "x" * 300, "target": "日" * 200}
    for as_table in (True, False):
        widths = [display_width(line) for line in show.format_side(rows, as_table=as_table)]
        assert 60 < max(widths) <= 100

    padding = show.describe_tokens(names_of(store), np.array([97, 1, 1, 1, 1, 1]))
    assert show.format_table(padding)[-1].split() == ["…", "4", "more", "like", "it"]
