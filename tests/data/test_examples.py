"""Examples in a store: what is read of records, and the batches that they become."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import tokenizer_files

from jaxlm import config, data, objectives
from jaxlm.config import ClassifierConfig, ConfigError
from jaxlm.data.example_array import ExampleArray, ListedParts
from jaxlm.data.examples import encode_words
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.stream import Stream, open_stream
from jaxlm.data.tokenizer import load_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.evaluation.validation import EvaluationWindows

END = 256
TEXT = ClassifierConfig(kind="sequence", labels=("no", "yes"))
REGRESSION = ClassifierConfig(kind="sequence", labels=("a", "b"), problem="regression")
SEVERAL = ClassifierConfig(kind="sequence", labels=("x", "y", "z"), problem="multi_label")
TOKENS = ClassifierConfig(kind="token", labels=("O", "NAME"))


def classify_config(folder: Path, path: Path, classifier: ClassifierConfig, **fields: Any):
    """Return a config of a source of labelled texts, half of which are held out."""
    keys = fields.pop("keys", ())
    source = config.SourceConfig(name="s", path=str(path), format="labelled", keys=keys)
    return config.Config(
        model=config.ModelConfig(family="encoder", vocabulary_size=300, classifier=classifier),
        objective=config.ObjectiveConfig(kind="classify", **fields.pop("objective", {})),
        tokenizer=config.TokenizerConfig(kind="bytes"),
        data=config.DataConfig(
            sources=(source,),
            store=str(folder / "stores"),
            sequence_length=fields.pop("length", 16),
            validation=config.ValidationConfig(share=0.3),
            **fields,
        ),
    )


def prepare(run: config.Config, lines: list[str] | None = None) -> data.Store:
    return data.prepare(
        run.data,
        run.tokenizer,
        run.tokenizer_vocabulary_size,
        (lambda line: None) if lines is None else lines.append,
        needs=run.objective.needs,
        workers=1,
        examples=data.example_spec(run),
    )


def build_objective(run: config.Config, store: data.Store) -> objectives.Objective:
    length, vocabulary = run.data.sequence_length, store.tokenizer.vocabulary
    return objectives.build(run.objective, length, vocabulary, run.model)


def build_stream(run: config.Config, store: data.Store, log=lambda line: None) -> Stream:
    objective = build_objective(run, store)
    return open_stream(store, run.data, objective, BatchSchedule(8, ()), run.seed, log)


def read_all(run: config.Config, store: data.Store) -> dict[str, list]:
    """Return the targets of all examples of both splits, by text."""
    objective, found = build_objective(run, store), {}
    for array in (*store.train, *store.validation):
        rows = array.read_samples(np.arange(array.start_count(objective)), objective)
        batch = objective.make_batch(rows, np.arange(len(rows)), 0)
        for tokens, length, targets in zip(batch.tokens, batch.lengths, batch.targets, strict=True):
            found[store.tokenizer.show(tokens[:length])] = targets.tolist()
    return found


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


# Formats


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(["verdict,body", *(f'{label},"{text}"' for text, label in rows)]))
    return path


def write_headerless(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(f"{label}\t{text}\t" for text, label in rows))
    return path


def write_gzip(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"body": text, "verdict": label, "pair": None}) for text, label in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def write_parquet(path: Path, rows: list[tuple[str, str]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts, labels = zip(*rows, strict=True)
    parquet.write_table(arrow.table({"body": texts, "verdict": labels, "x": texts}), path)
    return path


NAMED = (("text", "body"), ("label", "verdict"))


@pytest.mark.parametrize(
    ("name", "write", "keys"),
    [
        ("a.csv", write_csv, NAMED),
        ("a.tsv", write_headerless, (("text", "2"), ("label", "1"))),
        ("SMSSpamCollection", write_headerless, (("text", "2"), ("label", "1"))),
        ("a.jsonl.gz", write_gzip, NAMED),
        ("a.parquet", write_parquet, NAMED),
    ],
)
def test_labels_are_read_from_every_format_of_files(tmp_path, name, write, keys):
    rows = [(f"text {number}", "yes" if number % 3 else "no") for number in range(40)]
    run = classify_config(tmp_path, write(tmp_path / name, rows), TEXT, keys=keys)
    store = prepare(run)
    expected = {f"{text}<|endoftext|>": [int(label == "yes")] for text, label in rows}
    assert read_all(run, store) == expected
    counts = store.manifest["labels"]
    assert counts["train"]["no"] + counts["validation"]["no"] == 14


def test_a_column_with_the_name_of_a_number_has_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,0\n" + "\n".join(f"no,{number}\nyes,{number}!" for number in range(20)))
    run = classify_config(tmp_path, path, TEXT, keys=(("text", "0"), ("label", "1")))
    assert len(read_all(run, prepare(run))) == 40


# Targets


def test_targets_of_a_regression_are_float32_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 2)) * 10.0 ** rng.integers(-40, 38, (40, 2))
    values[0] = 0.1, -0.0
    records = [{"text": f"{i}", "label": pair.tolist()} for i, pair in enumerate(values)]
    run = classify_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), REGRESSION)
    found = read_all(run, prepare(run))
    for number, pair in enumerate(values.astype(np.float32)):
        (read,) = np.array(found[f"{number}<|endoftext|>"], np.float32)
        assert read.view(np.uint32).tolist() == pair.view(np.uint32).tolist()


def test_several_labels_are_zeros_and_ones(tmp_path):
    records = [{"text": f"{i}", "label": ["z", "x"] if i % 2 else "y,z"} for i in range(40)]
    records[4]["label"] = []
    run = classify_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), SEVERAL)
    found = read_all(run, prepare(run))
    assert found["3<|endoftext|>"] == [[1, 0, 1]]
    assert found["2<|endoftext|>"] == [[0, 1, 1]]
    assert found["4<|endoftext|>"] == [[0, 0, 0]]


def test_class_weights_are_the_weights_of_the_targets(tmp_path):
    records = [{"text": f"{i}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    run = classify_config(tmp_path, path, TEXT, objective={"class_weights": (0.5, 3.0)})
    batch = build_stream(run, prepare(run))[0]
    assert {*zip(batch.targets[:, 0].tolist(), batch.weights[:, 0].tolist(), strict=True)} == {
        (0, 0.5),
        (1, 3.0),
    }
    wrong = classify_config(tmp_path, path, TEXT, objective={"class_weights": (0.5,)})
    with pytest.raises(ConfigError, match="1 weights for 2 labels"):
        build_stream(wrong, prepare(wrong))


def test_the_first_token_of_each_word_has_its_label(tmp_path):
    records = [{"tokens": ["Bo", "saw", f"{i}"], "label": ["NAME", "O", None]} for i in range(40)]
    run = classify_config(tmp_path, write_jsonl(tmp_path / "a.jsonl", records), TOKENS)
    store = prepare(run)
    batch = build_stream(run, store)[0]
    text = store.tokenizer.show(batch.tokens[0][: batch.lengths[0]])
    assert text.startswith(" Bo saw ")
    assert np.flatnonzero(batch.weights[0]).tolist() == [0, 3]  # of " Bo" and " saw"
    assert batch.targets[0, [0, 3]].tolist() == [1, 0]
    assert store.manifest["labels"]["train"]["O"] == store.manifest["labels"]["train"]["NAME"]


@pytest.mark.parametrize("build", [tokenizer_files.bert, tokenizer_files.roberta])
def test_words_are_encoded_as_the_library_does(tmp_path, build):
    inner = build()
    inner.save(str(tmp_path / "tokenizer.json"))
    end = "[SEP]" if build is tokenizer_files.bert else "</s>"
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", SpecialTokens(end))
    words = ["Größe", "wisdom", "don't", "x"]
    ((ids, places),) = encode_words([words], tokenizer)
    spaced = words if build is tokenizer_files.bert else [f" {word}" for word in words]
    parts = [inner.encode(word, add_special_tokens=False).ids for word in spaced]
    assert ids.tolist() == [number for part in parts for number in part]
    assert places.tolist() == [place for place, part in enumerate(parts) for _ in part]


# Streams


def long_records(count: int) -> list[dict]:
    return [
        {"text": "a" * (number % 30) + f" {number}", "label": "yes" if number % 2 else "no"}
        for number in range(count)
    ]


def test_examples_are_cut_or_dropped_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", long_records(60))
    cut, dropped = (
        classify_config(tmp_path, path, TEXT, objective={"too_long": what})
        for what in ("cut", "drop")
    )
    store, lines = prepare(cut), []
    texts = [f"{record['text']}." for record in long_records(60)]
    longer = sum(len(text) > 16 for text in texts)
    cut_stream, kept_stream = build_stream(cut, store, lines.append), None
    kept_stream = build_stream(dropped, store, lines.append)

    train, held_out = (len(arrays[0]) for arrays in (store.train, store.validation))
    assert train + held_out == 60
    assert cut_stream.epoch_samples(0) == train
    windows = EvaluationWindows(store.validation, build_objective(dropped, store), 4, 1, 0)
    assert kept_stream.epoch_samples(0) + windows.windows == 60 - longer
    left_out = train - kept_stream.epoch_samples(0)
    assert lines[0].endswith(f"of which {left_out} cut to data.sequence_length")
    assert f"of which {left_out} left out" in lines[1]
    assert max(cut_stream[0].lengths) == 16


def test_nothing_that_fits_is_one_line(tmp_path):
    records = [{"text": f"{i:040}", "label": "yes" if i % 2 else "no"} for i in range(40)]
    path = write_jsonl(tmp_path / "a.jsonl", records)
    run = classify_config(tmp_path, path, TEXT, objective={"too_long": "drop"})
    with pytest.raises(ConfigError, match=r"data\.sequence_length: no example of the training"):
        build_stream(run, prepare(run))


def test_a_batch_follows_from_its_step_alone(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", long_records(60))
    run = classify_config(tmp_path, path, TEXT)
    store = prepare(run)
    first, again = build_stream(run, store), build_stream(run, store)
    batches = [first[step] for step in range(12)]
    for step in (11, 3, 7):
        for ours, theirs in zip(again[step], batches[step], strict=True):
            assert ours is theirs is None or np.array_equal(ours, theirs)
    assert np.array_equal(again.rows(5, 2, 4).tokens, batches[5].tokens[2:4])
    # An epoch has each example once.
    count = first.epoch_samples(0)
    tokens = np.concatenate([batch.tokens for batch in batches])[:count]
    assert len({row.tobytes() for row in tokens}) == len(
        {
            array.tobytes()
            for array in store.train[0].read_samples(np.arange(count), first.objective)[:, 1:17]
        }
    )


def test_validation_has_each_example_once(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", long_records(60))
    run = classify_config(tmp_path, path, TEXT)
    store = prepare(run)
    windows = EvaluationWindows(store.validation, build_objective(run, store), 4, 1, 0)
    assert windows.is_whole
    assert sum(batch.weights.sum() for batch in windows) == len(store.validation[0])


def test_a_store_is_named_by_keys_and_labels(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [r | {"x": "y"} for r in long_records(60)])
    runs = [
        classify_config(tmp_path, path, TEXT),
        classify_config(tmp_path, path, TEXT, keys=(("pair", "x"),)),
        classify_config(tmp_path, path, ClassifierConfig(kind="sequence", labels=("yes", "no"))),
    ]
    assert len({prepare(run).hash for run in runs}) == 3


def test_examples_in_memory_are_read_as_those_of_a_store(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", long_records(60))
    run = classify_config(tmp_path, path, TEXT)
    store = prepare(run)
    objective, stored = build_objective(run, store), store.train[0]
    listed = ExampleArray(ListedParts([stored.parts.read(i) for i in range(len(stored))]))
    starts = np.array([5, 0, 3])
    rows = [array.read_samples(starts, objective) for array in (stored, listed)]
    assert np.array_equal(*rows)
    assert stored.describe(objective) == listed.describe(objective) != ""
