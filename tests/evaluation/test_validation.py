import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.token_arrays import batches_equal, write_numbered

from jaxlm import config, data, objectives
from jaxlm.config import ConfigError
from jaxlm.data.loader import LocalBatches
from jaxlm.evaluation import validation
from jaxlm.evaluation.validation import (
    EvaluationWindows,
    count_bytes,
    evaluation_batch_size,
    most_samples,
    token_bytes,
    unigram_entropy,
)
from jaxlm.objectives import Objective, Vocabulary
from jaxlm.types import Batch

VOCABULARY = Vocabulary(5000, 4999, special=np.arange(5000) >= 4999)


def build(kind: str, length: int) -> Objective:
    objective = config.ObjectiveConfig(kind=kind)  # type: ignore[arg-type]
    return objectives.build(objective, length, VOCABULARY)


def hiding(window: int) -> Objective:
    """Return an objective whose batches show the tokens, sample numbers and seed it was given.

    Every second token is a target.
    """

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        weights = np.tile(np.arange(window) % 2, (len(windows), 1)).astype(np.float32)
        return Batch(
            tokens=windows,
            targets=windows,
            weights=weights,
            lengths=samples,
            segments=np.full(windows.shape, seed),
        )

    return Objective(
        window=window,
        stride=window,
        length=window,
        source_length=0,
        predictions=window,
        make_batch=make_batch,
    )


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(
    ("counts", "length", "batch_size"),
    [((101,), 10, 4), ((95, 1, 2, 43), 10, 4), ((11,), 10, 1), ((5,), 10, 3)],
)
def test_causal_evaluation_targets_every_token_but_the_first_once(
    tmp_path, counts, length, batch_size, draws
):
    arrays = [
        write_numbered(tmp_path / str(i), count, first=1000 * i) for i, count in enumerate(counts)
    ]
    windows = EvaluationWindows(arrays, build("causal", length), batch_size, draws, 0)
    found = list(windows)
    assert len(found) == len(windows)
    for batch in found:
        assert all(
            np.asarray(value).shape == (batch_size, length)
            for value in (batch.tokens, batch.targets, batch.weights)
        )
        assert np.asarray(batch.weights).dtype == np.float32
        counted = np.asarray(batch.weights) == 1
        assert np.array_equal(np.asarray(batch.targets)[counted], batch.tokens[counted] + 1)
    targets = np.concatenate(
        [np.asarray(batch.targets)[np.asarray(batch.weights) == 1] for batch in found]
    )
    expected = [1000 * i + np.arange(1, count) for i, count in enumerate(counts)]
    assert np.array_equal(targets, np.concatenate(expected))
    assert sum(np.asarray(batch.weights).any(axis=1).sum() for batch in found) == sum(
        -(-(count - 1) // length) for count in counts
    )


def test_the_last_causal_window_is_padded_with_zeros(tmp_path):
    (batch,) = EvaluationWindows(
        [write_numbered(tmp_path, 5, first=7)], build("causal", 6), 1, 1, 0
    )
    assert batch.tokens.tolist() == [[7, 8, 9, 10, 11, 0]]
    assert np.asarray(batch.targets).tolist() == [[8, 9, 10, 11, 0, 0]]
    assert np.asarray(batch.weights).tolist() == [[1, 1, 1, 1, 0, 0]]


def test_evaluation_windows_are_a_list(tmp_path):
    windows = EvaluationWindows([write_numbered(tmp_path, 101)], build("causal", 10), 4, 1, 0)
    assert len(windows) == 3
    assert batches_equal(windows[2], windows[2])
    for index in (3, -1):
        with pytest.raises(IndexError):
            windows[index]
    assert len(EvaluationWindows([], build("causal", 10), 4, 1, 0)) == 0


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_hidden_text_is_evaluated_in_whole_windows_with_samples_of_their_own(tmp_path, batch_size):
    arrays = [
        write_numbered(tmp_path / "a", 29),
        write_numbered(tmp_path / "b", 9, first=100),
        write_numbered(tmp_path / "c", 30, first=200),
    ]
    windows = EvaluationWindows(arrays, hiding(10), batch_size, 3, 11)
    rows = [
        row
        for batch in windows
        for row in zip(batch.tokens, *map(np.asarray, (batch.lengths, batch.weights)), strict=True)
    ]
    counted = [(tokens[0], number) for tokens, number, weights in rows if weights.any()]
    starts = [
        0,
        10,
        200,
        210,
        220,
    ]  # 9 tokens of the first array and all of the second are left out
    assert counted == [
        (start, 5 * draw + place) for draw in range(3) for place, start in enumerate(starts)
    ]
    assert all(np.array_equal(tokens, tokens[0] + np.arange(10)) for tokens, _, _ in rows)
    assert len(rows) == batch_size * -(-15 // batch_size)
    assert all((np.asarray(batch.segments) == 11).all() for batch in windows)


def test_hidden_text_is_evaluated_the_same_whatever_the_batch(tmp_path):
    array = write_numbered(tmp_path, 205)
    pairs = [
        list(EvaluationWindows([array], build("prefix", 10), size, 2, 5)) for size in (3, 7, 7)
    ]
    weights = [
        np.concatenate([np.asarray(batch.weights) for batch in batches])[:40] for batches in pairs
    ]
    assert all(np.array_equal(weights[0], other) for other in weights[1:])
    assert not np.array_equal(weights[0][:20], weights[0][20:])  # the second draw
    other_seed = EvaluationWindows([array], build("prefix", 10), 40, 2, 6)[0]
    assert not np.array_equal(weights[0], np.asarray(other_seed.weights))


def test_a_prefix_of_random_length_counts_as_hidden(tmp_path):
    windows = EvaluationWindows([write_numbered(tmp_path, 29)], build("prefix", 10), 6, 3, 0)
    assert (windows.draws, len(windows)) == (3, 1)
    assert windows[0].tokens[:, 0].tolist() == [0, 10, 0, 10, 0, 10]


def test_hidden_text_needs_a_whole_window(tmp_path):
    arrays = [write_numbered(tmp_path / "a", 9), write_numbered(tmp_path / "b", 4)]
    with pytest.raises(
        ConfigError,
        match=r"^data\.sequence_length: a window takes 10 tokens, "
        r"but the validation split has at most 9",
    ):
        EvaluationWindows(arrays, hiding(10), 4, 1, 0)


class Listed(list):
    """Batches of given targets and weights."""

    def __init__(self, *batches: tuple[list, list]):
        super().__init__(
            Batch(
                tokens=np.zeros(1), targets=np.array(t, np.int32), weights=np.array(w, np.float32)
            )
            for t, w in batches
        )


def test_unigram_entropy_of_known_distributions():
    uniform = Listed(([[7, 3], [900, 11]], [[1, 1], [1, 1]]))
    entropy, count = unigram_entropy(uniform, None)
    assert count == 4
    assert entropy == pytest.approx(np.log(4), rel=1e-12)  # float64 sums of a few terms
    # Of 23 equal targets the difference of the logarithms is 4e-16, and of 6 it is below 0.
    for same in (6, 23):
        assert unigram_entropy(Listed(([[5] * same], [[1] * same])), None) == (0.0, same)
    assert unigram_entropy(Listed(([[5]], [[0]])), None) == (0.0, 0)


def test_unigram_entropy_counts_the_targets_that_are_evaluated():
    random = np.random.default_rng(0)
    parts = [
        (random.integers(0, size, (4, 25)), random.integers(0, 2, (4, 25))) for size in (5, 300, 40)
    ]
    batches = Listed(*[(targets.tolist(), weights.tolist()) for targets, weights in parts])
    for steps in (1, 2, None, 9):
        counted = Counter(
            token for targets, weights in parts[:steps] for token in targets[weights > 0].tolist()
        )
        total = counted.total()
        entropy, count = unigram_entropy(batches, steps)
        assert count == total
        assert entropy == pytest.approx(
            -sum(n / total * np.log(n / total) for n in counted.values()), rel=1e-12
        )


@pytest.mark.parametrize("count", [43, 47, 60])
def test_rows_of_processes_are_slices_of_the_batch(tmp_path, count):
    """Also of the last one, which is filled up."""
    windows = EvaluationWindows([write_numbered(tmp_path, count)], build("causal", 5), 8, 1, 0)
    shares = [
        LocalBatches(windows, lambda size, p=p: (size * p // 4, size * (p + 1) // 4))
        for p in range(4)
    ]
    for index, whole in enumerate(windows):
        parts = [share[index] for share in shares]
        joined = Batch(
            *(None if a[0] is None else np.concatenate(a) for a in zip(*parts, strict=True))
        )
        assert batches_equal(joined, whole)
    assert {len(share) for share in shares} == {len(windows)}


def read_numbers(windows: EvaluationWindows) -> list[int]:
    """Return the sample numbers of the rows that count, in order, of a `hiding` objective."""
    return [
        int(number)
        for batch in windows
        for number, weights in zip(
            np.asarray(batch.lengths), np.asarray(batch.weights), strict=True
        )
        if weights.any()
    ]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("most", [1, 2, 5, 11, 20, 1000, 10**12])
def test_a_bound_draws_samples_evenly(tmp_path, most, draws):
    """Those in the middle of equal parts of all samples; all of them where there are not more."""
    arrays = [write_numbered(tmp_path / str(i), 10 * n) for i, n in enumerate((3, 8, 1))]
    numbers = read_numbers(EvaluationWindows(arrays, hiding(10), 4, draws, 0, most))
    total = 12 * draws
    count = min(most, total)
    assert numbers == [int((i + 0.5) * total / count) for i in range(count)]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("most", [None, 1, 7, 30])
def test_the_samples_of_the_sources_are_those_of_all(tmp_path, most, draws):
    arrays = [write_numbered(tmp_path / str(i), 10 * n) for i, n in enumerate((3, 8, 0, 1))]
    windows = EvaluationWindows(arrays, hiding(10), 4, draws, 0, most)
    parts = [read_numbers(part) for part in windows.by_source()]
    assert sorted(number for part in parts for number in part) == sorted(read_numbers(windows))
    ends = np.cumsum([3, 8, 0, 1])
    for source, numbers in enumerate(parts):
        found = np.searchsorted(ends, np.array(numbers, int) % 12, side="right")
        assert (found == source).all()


@pytest.mark.parametrize("batch_size", [8, 9, 12])
def test_the_bound_is_one_of_samples_whatever_the_devices_need(tmp_path, batch_size):
    """A batch size that was rounded up for the devices reads the same windows."""
    array = write_numbered(tmp_path, 400)
    windows = EvaluationWindows([array], hiding(10), batch_size, 1, 0, most=16)
    assert read_numbers(windows) == read_numbers(
        EvaluationWindows([array], hiding(10), 8, 1, 0, most=16)
    )


def with_documents(folder: Path, **tokenizer) -> data.Store:
    """Return a store of 40 documents with characters of up to four bytes, half held out."""
    texts = [f"{'aé€𐍈'[i % 4]} tree {i} " * (i % 5 + 1) for i in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    return data.prepare(
        config.DataConfig(
            sources=(config.SourceConfig(name="texts", path=str(folder / "texts.jsonl")),),
            validation=config.ValidationConfig(method="hash", share=0.5),
            store=str(folder / "stores"),
        ),
        config.TokenizerConfig(**tokenizer),
        300,
        report=lambda line: None,
    )


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_the_windows_have_the_bytes_of_their_targets(tmp_path, kind):
    """Also where a window cuts a character; all windows together have those of the split."""
    store = with_documents(tmp_path, kind=kind)
    sizes = token_bytes(store.tokenizer)
    assert sizes is not None and sizes[store.tokenizer.end_of_text] == 0

    def windows(most: int | None) -> EvaluationWindows:
        return EvaluationWindows(store.validation, build("causal", 7), 4, 1, 0, most)

    whole = windows(None)
    assert whole.text_bytes(sizes) == count_bytes(store, whole) == store.validation_bytes

    part = windows(9)
    targets = np.concatenate([batch.targets[batch.weights > 0] for batch in part])
    vocabulary = {token: text for text, token in store.tokenizer.inner.get_vocab().items()}
    by_hand = sum(
        len(vocabulary[token]) for token in targets.tolist() if token != store.tokenizer.end_of_text
    )
    assert count_bytes(store, part) == by_hand < store.validation_bytes
    if kind == "bytes":
        assert by_hand == (targets < 256).sum()


def test_bytes_of_other_tokens_are_those_of_their_source(tmp_path, monkeypatch):
    store = with_documents(tmp_path, kind="bpe")
    monkeypatch.setattr(validation, "token_bytes", lambda tokenizer: None)
    windows = EvaluationWindows(store.validation, build("causal", 7), 4, 1, 0, most=9)
    targets = sum((np.asarray(batch.weights) > 0).sum() for batch in windows)
    share = store.validation_bytes / store.manifest["validation"]["tokens"]
    assert count_bytes(store, windows) == round(targets * share)


def bounded(*edits: str, tokens: int = 1024) -> int:
    objective = build("causal", tokens)
    run_config = config.apply_edits(config.Config(), ["model.context_length=4096", *edits])
    most = most_samples(run_config, objective)
    assert most is not None
    return most


def test_an_evaluation_takes_a_microbatch_at_a_time():
    edits = ["training.batch_size=48", "training.microbatches=4"]
    run_config = config.apply_edits(config.Config(), edits)
    assert evaluation_batch_size(run_config) == 12
    asked = config.apply_edits(run_config, ["evaluation.batch_size=5"])
    assert evaluation_batch_size(asked) == 5


def test_an_evaluation_takes_a_bounded_share_of_the_time():
    """A step costs three evaluations of its samples: 5% of 500 steps of 32 are 2,400 samples."""
    assert bounded() == 2400
    assert bounded("training.batch_size=320", "training.microbatches=10") == 24_000
    assert bounded("evaluation.every_steps=0", "training.steps=2000") == 9600
    assert bounded("evaluation.steps=3") == 96


def test_small_validation_splits_are_read_whole():
    """A million tokens are always allowed; those of the quickstarts are 0.5 million or fewer."""
    assert bounded("training.batch_size=1", tokens=1024) == 1024
    assert bounded("training.batch_size=1", tokens=64) == 16_384
