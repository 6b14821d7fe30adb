"""Evaluation: windows and sums against plain loops, published definitions and transformers."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny, tiny_run
from tokenizers.processors import TemplateProcessing

from jaxlm import config, convert, evaluate, load_model, objectives, runtime
from jaxlm.config import UserError
from jaxlm.data import Document
from jaxlm.data.documents import COMMAND_OPTIONS
from jaxlm.data.sources import read_documents as read_source
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import SpecialTokens
from jaxlm.evaluation import own_objective, score_model, texts
from jaxlm.evaluation.likelihood import LikelihoodScorer as LikelihoodScorer
from jaxlm.evaluation.likelihood import Request, padded_length, rolling_requests
from jaxlm.evaluation.pseudo_likelihood import HiddenTokens, frame_texts
from jaxlm.evaluation.report import (
    ScoreSums,
    SourceScores,
    compute_metrics,
    format_table,
    total_scores,
)
from jaxlm.evaluation.validation import EvaluationWindows
from jaxlm.evaluation.windows import SlidingWindows, tokens_of_windows
from jaxlm.interop.tokenizer import TokenizerFrame
from jaxlm.types import Batch

BYTES = byte_tokenizer(SpecialTokens("<|endoftext|>", "<s>", "<pad>", "<mask>", 20))
END, BEGIN, PAD, MASK = (
    BYTES.vocabulary._asdict()[role] for role in ("end_of_text", "begin_of_text", "pad", "mask")
)
SPECIAL = TokenizerFrame("<|endoftext|>", "<s>", "<pad>", "<mask>", 20)
STORY = [
    "It was the best of times, ",
    "it was the worst of times",
    "",
    "\N{SNOWMAN} it snowed.\n\nAll winter long.",
]


def story(*parts):
    return [Document(f"{number}", text) for number, text in enumerate(parts or STORY)]


class Held(list):
    """Documents in the place of a source, which the fixture below makes
    `score_model.read_documents` return."""

    name, format = "text", "auto"


def source(documents):
    return Held(documents)


@pytest.fixture(autouse=True)
def from_memory(monkeypatch, request):
    if "folder" not in request.fixturenames:
        for module in (score_model, own_objective):
            monkeypatch.setattr(module, "read_documents", lambda source: source)


def untrained(run_config, devices=1):
    """A run's model before its first step, as load_model returns it, with the bytes tokenizer."""
    model, where = load_model.place_model(run_config.model, run_config.precision, devices)
    params = jax.jit(model.init, out_shardings=where)(jax.random.key(0))
    return load_model.LoadedModel(Path("model"), model, params, BYTES, SPECIAL, run_config, None)


def asking(**values):
    asked = dict(
        sources=(),
        context=16,
        stride=None,
        batch_size=2,
        limit=None,
        seed=0,
        draws=1,
        per_document=False,
        pseudo_windows=16,
    )
    return score_model.EvaluationOptions(**(asked | values))


class Reference:
    """Log-probabilities by one pass over a whole text, padded to a length that is compiled once."""

    def __init__(self, model, params):
        self.apply, self.params = jax.jit(model.apply), params

    def __call__(self, ids):
        """float64 [n - 1]: of each id but the first."""
        inputs = np.zeros((1, 64), np.int32)
        inputs[0, : len(ids) - 1] = ids[:-1]
        logits = np.asarray(self.apply(self.params, Batch(tokens=inputs)))[0, : len(ids) - 1]
        return np.take_along_axis(log_softmax(logits), ids[1:, None], axis=1)[:, 0]


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# Texts


def test_documents_are_joined_between_begin_and_end():
    tokens = texts.read_texts(story("ab", "\N{SNOWMAN}"), BYTES, begin=[BEGIN], end=[END])
    assert tokens.ids.tolist() == [BEGIN, 97, 98, END, BEGIN, 0xE2, 0x98, 0x83, END]
    assert tokens.ends.tolist() == [4, 9]
    assert tokens.scored.tolist() == [False, True, True, True, False, True, True, True, True]
    assert tokens.size == (2, 5, 2)


def test_sizes_are_those_of_the_texts():
    tokens = texts.read_texts(story(), BYTES, end=[END])
    assert tokens.size.documents == len(STORY)
    assert tokens.size.bytes == len("".join(STORY).encode()) == len(tokens) - len(STORY)
    assert tokens.size.words == sum(len(text.split()) for text in STORY) == 18


@pytest.mark.parametrize("most", range(1, 60, 7))
def test_a_limit_cuts_the_text_behind_a_character(most):
    tokens = texts.read_texts(
        story("one \N{SNOWMAN} two", "three \N{SNOWMAN} four"), BYTES, end=[END], most_tokens=most
    )
    text = BYTES.decode(tokens.ids)
    assert len(tokens) <= most and "\ufffd" not in text
    assert "one \N{SNOWMAN} twothree \N{SNOWMAN} four".startswith(text)
    assert len(tokens) >= min(most - 2, 12 + 15)  # at most the rest of a character is missing
    assert tokens.size.bytes == len(text.encode())


def test_no_more_documents_are_read_than_are_needed():
    def endless():
        while True:
            yield Document("again", "x" * 100)

    assert len(texts.read_texts(endless(), BYTES, most_tokens=1000)) == 1000
    assert texts.read_texts(endless(), BYTES, most_documents=3).size == (3, 300, 3)


def test_pairs_end_with_the_end_of_text_also_where_they_are_cut():
    documents = [Document("a", "question", ("answer",)), Document("b", "q", ("a",))]
    pairs = texts.read_pairs(documents, BYTES, None)
    objective = objectives.build(
        config.ObjectiveConfig(kind="pairs", target_length=3), 5, BYTES.vocabulary
    )
    rows = pairs.read_samples(np.arange(2), objective)
    assert rows.tolist() == [
        [*b"ques", END, *b"an", END],
        [*b"q", END, PAD, PAD, PAD, *b"a", END, PAD],
    ]
    assert pairs.token_count == 9 + 7 + 2 + 2 and pairs.size == (2, 16, 4)


def test_pairs_of_one_token_are_no_causal_windows():
    """Both have windows one token longer than their stride."""
    documents = [Document(name, name, (name,)) for name in "abc"]
    objective = objectives.build(
        config.ObjectiveConfig(kind="pairs", target_length=1), 1, BYTES.vocabulary
    )
    pairs = texts.read_pairs(documents, BYTES, None)
    (batch,) = EvaluationWindows([pairs], objective, 4, 1, 0)
    assert np.asarray(batch.weights).tolist() == [[1], [1], [1], [0]]


# Sliding windows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_token_but_the_first_is_a_target_once(lengths, context, stride, rows, per_document):
    stride = min(stride, context)
    ids = np.arange(sum(lengths), dtype=np.int32)  # each token says where it stands
    tokens = texts.TokenizedTexts(
        ids, np.cumsum(lengths), np.ones(len(ids), bool), texts.TextSize()
    )
    windows = SlidingWindows(tokens, context, stride, rows, per_document)
    batches = [windows[index] for index in range(len(windows))]
    assert all(batch.tokens.shape == (rows, context) for batch in batches)
    starts = np.concatenate([[0], tokens.ends[:-1]]) if per_document else np.zeros(1, int)
    found = {}
    for batch in batches:
        for inputs, targets, weights in zip(
            batch.tokens, batch.targets, batch.weights, strict=True
        ):
            for column in np.flatnonzero(weights):
                assert targets[column] == inputs[column] + 1 and targets[column] not in found
                found[targets[column]] = inputs[0]
    assert set(found) == set(ids.tolist()) - set(starts.tolist())
    for target, first in found.items():
        start = starts[starts < target].max()
        assert (
            start <= first
            and min(target - start, context - stride + 1) <= target - first <= context
        )


def test_a_smaller_stride_gives_a_limit_as_many_windows():
    ids = np.arange(500, dtype=np.int32)
    for count in (1, 2, 7):
        most = tokens_of_windows(count, 32, 8)
        tokens = texts.TokenizedTexts(
            ids[:most], np.array([most]), np.ones(most, bool), texts.TextSize()
        )
        assert SlidingWindows(tokens, 32, 8, 4, False).windows == count


def test_sums_over_windows_are_those_of_a_plain_loop():
    """Also: texts of unequal length, a batch that is not full, several devices."""
    documents = story("It was the best of times, it was the worst of times. " * 3, "x", "It was.")
    whole = untrained(tiny.CONFIG)
    reference = Reference(whole.model, whole.params)
    for devices, per_document in ((1, False), (2, True)):
        model = untrained(tiny.CONFIG, devices)
        asked = asking(context=24, stride=10, batch_size=3, per_document=per_document)
        row = score_model.score_decoder(
            model, asked, score_model.ModelScorer(model), source(documents)
        )
        ids = [np.array([END, *BYTES.encode(document.text)]) for document in documents]
        if not per_document:
            ids = [np.array([token for of in ids for token in [*of[1:].tolist(), END]])]
        nats = count = 0
        for of in ids:
            done = 0
            for start in range(0, len(of), 10):
                part = of[start : start + 25]
                new = start + len(part) - 1 - done  # targets up to here that no window before had
                nats -= reference(part)[-new:].sum() if new else 0
                count, done = count + new, done + new
                if start + 25 >= len(of):
                    break
        assert row.sums.targets == count == sum(len(of) - 1 for of in ids)
        assert row.sums.nats == pytest.approx(nats, rel=1e-6)


# Hidden tokens


def test_a_pseudo_log_likelihood_hides_each_token_in_turn():
    model = untrained(tiny.ENCODER)
    apply = jax.jit(model.model.apply)
    asked = asking(context=12, batch_size=4)
    found = score_model.score_hidden_tokens(
        model, asked, score_model.ModelScorer(model), source(story("It was the best", " of times"))
    )
    text = [*b"It was the best", END, *b" of times", END]
    nats = count = 0
    for start in (0, 10, 20):
        piece = np.array([BEGIN, *text[start : start + 10], END], np.int32)
        for place in range(1, len(piece) - 1):
            if piece[place] < 256:
                hidden = piece.copy()
                hidden[place] = MASK
                nats -= log_softmax(
                    np.asarray(apply(model.params, Batch(tokens=hidden[None])))[0, place]
                )[piece[place]]
                count += 1
    assert count == 24 and found.targets == count
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_pieces_of_documents_are_framed_and_padded():
    tokens = texts.read_texts(story("abcd", "e"), BYTES)
    rows = frame_texts(tokens, 5, BYTES.vocabulary, per_document=True)
    assert rows.rows.tolist() == [
        [BEGIN, 97, 98, 99, END],
        [BEGIN, 100, END, PAD, PAD],
        [BEGIN, 101, END, PAD, PAD],
    ]
    assert rows.lengths.tolist() == [5, 3, 3] and rows.hidden.tolist() == [
        [0, 1],
        [0, 2],
        [0, 3],
        [1, 1],
        [2, 1],
    ]
    batches = HiddenTokens(rows, MASK, 4)
    assert batches[1].tokens[0].tolist() == [BEGIN, MASK, END, PAD, PAD] and batches[1].targets[
        0
    ].tolist() == [101]
    assert batches[1].weights.ravel().tolist() == [1, 0, 0, 0] and len(batches) == 2
    without_begin = byte_tokenizer(
        SpecialTokens("<|endoftext|>", None, "<pad>", "<mask>")
    ).vocabulary
    assert frame_texts(tokens, 5, without_begin, per_document=False).rows.tolist() == [
        [97, 98, 99, 100, 101]
    ]


@pytest.mark.parametrize("run_config", [tiny.CONFIG, tiny.ENCODER], ids=["decoder", "encoder"])
def test_scores_that_are_not_finite_are_no_figures(run_config):
    model = untrained(run_config)
    broken = model._replace(params=jax.tree.map(lambda x: x * np.nan, model.params))
    options = asking(context=12, sources=(source(story()),))
    with pytest.raises(config.DivergedError, match="scores are not finite"):
        score_model.score_sources(broken, options, score_model.ModelScorer(broken))


# Log-likelihoods


def test_likelihoods_of_continuations_are_those_of_whole_texts():
    model = untrained(tiny.CONFIG)
    random = np.random.default_rng(0)
    requests = [
        Request(random.integers(0, 300, before).tolist(), random.integers(0, 300, behind).tolist())
        for before, behind in ((1, 1), (5, 3), (1, 20), (30, 2), (40, 9), (17, 17))
    ]
    # Of one request the continuation is what the model would write.
    context = requests[1].context
    reference = Reference(model.model, model.params)
    likeliest = max(range(300), key=lambda token: reference(np.array([*context, token]))[-1])
    requests.append(Request(context, [likeliest]))
    found = LikelihoodScorer(model.model, model.params, context=32, batch_size=4)(requests)
    for (before, behind), answer in zip(requests, found, strict=True):
        ids = np.array([*before, *behind])[-33:]
        assert answer.nats == pytest.approx(reference(ids)[-len(behind) :].sum(), rel=1e-5)
    assert [answer.greedy for answer in found] == [False] * 6 + [True]
    with pytest.raises(ValueError, match="33 tokens, but only 32"):
        LikelihoodScorer(model.model, model.params, context=32, batch_size=4)(
            [Request([1], [2] * 33)]
        )


@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 20))
def test_rolling_windows_stay_in_the_context_behind_several_tokens(count, before, context):
    prefix = list(range(-min(before, context), 0))
    windows = list(rolling_requests(list(range(count)), prefix, context))
    assert [token for window in windows for token in window.continuation] == list(range(count))
    for window in windows:
        assert window.context and len(window.context) + len(window.continuation) <= context + 1
        assert [*window.context, *window.continuation] == list(
            range(window.context[0], window.continuation[-1] + 1)
        )
    assert not windows or list(windows[0].context) == prefix


@given(st.integers(0, 100), st.integers(1, 20))
def test_rolling_windows_score_each_token_once(count, context):
    windows = list(rolling_requests(list(range(count)), [-1], context))
    assert [token for window in windows for token in window.continuation] == list(range(count))
    for window in windows:
        assert len(window.context) + len(window.continuation) <= context + 1
        assert [*window.context, *window.continuation] == list(
            range(window.context[0], window.continuation[-1] + 1)
        )
    assert all(len(w.context) + len(w.continuation) == context + 1 for w in windows[1:])


def test_lengths_are_rounded_to_few():
    assert [padded_length(n, 1000) for n in (1, 16, 17, 25, 33, 49, 700, 999)] == [
        16,
        16,
        24,
        32,
        48,
        64,
        768,
        1000,
    ]


# Figures


def test_figures_follow_from_the_sums():
    rows = [
        SourceScores("a", 1, 30, 100, 20, ScoreSums(10, 20.0, 5)),
        SourceScores("b", 2, 70, 300, 30, ScoreSums(30, 60.0, 9)),
    ]
    found = compute_metrics(total_scores(rows), "causal")
    assert (
        found["documents"],
        found["tokens"],
        found["bytes"],
        found["words"],
        found["targets"],
    ) == (3, 100, 400, 50, 40)
    assert found["loss"] == 2 and found["perplexity"] == math.exp(2)
    assert (
        found["bits_per_byte"] == 80 / math.log(2) / 400
        and found["bits_per_word"] == 80 / math.log(2) / 50
    )
    masked = compute_metrics(rows[0]._replace(pseudo=ScoreSums(4, 2.0, 1)), "masked")
    assert (
        masked["masked_accuracy"] == 0.5
        and masked["pseudo_perplexity"] == math.exp(0.5)
        and "bits_per_byte" not in masked
    )
    nothing = compute_metrics(SourceScores("c", 0, 0, 0, 0, ScoreSums(3, math.nan, 0)), "causal")
    assert nothing["loss"] is None and nothing["bits_per_byte"] is None
    assert (
        compute_metrics(SourceScores("d", 0, 1, 1, 1, ScoreSums(1, 1e3, 0)), "causal")["perplexity"]
        is None
    )


def test_the_table_is_aligned():
    rows = [
        compute_metrics(SourceScores(name, 1, 5, n, None, ScoreSums(n, 2.0 * n, 0)), "span")
        for name, n in (("a", 10), ("longer", 12345))
    ]
    assert format_table(rows) == (
        "source  documents  tokens   bytes  targets    loss  perplexity\n"
        "a               1       5      10       10  2.0000      7.3891\n"
        "longer          1       5  12,345   12,345  2.0000      7.3891"
    )


# The command


EDITS = tiny_run.FAMILIES | {
    "encoder": (
        *tiny_run.FAMILIES["encoder"],
        "tokenizer.begin_of_text=<s>",
        "model.vocabulary_size=260",
    ),
    "pairs": (),
}
PAIRS_RECIPE = {  # lines of the recipe, and what a run of pairs has instead
    'SourceConfig(name="text", path="text.txt")': (
        'SourceConfig(name="text", path="pairs.jsonl", format="pairs")'
    ),
    'method="tail", share=0.1': 'method="hash", share=0.3',
    "model=ModelConfig(\n        vocabulary_size=257": (
        'objective=ObjectiveConfig(kind="pairs"),\n'
        '    model=ModelConfig(\n        family="encoder_decoder", vocabulary_size=258'
    ),
}
PAIRS = [{"source": f"{number} birds", "target": f"the {number} birds"} for number in range(40)]


@pytest.fixture(scope="module")
def stocked(tmp_path_factory):
    """A folder with texts and finished runs in runs/, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("stocked")
    tiny_run.write_recipe(folder)
    text = (folder / "text.txt").read_bytes()
    (folder / "tail.txt").write_bytes(text[int(len(text) * 0.9) :])  # what the runs hold out
    (folder / "empty.txt").write_text("")
    (folder / "more.jsonl").write_text(
        "".join(json.dumps({"body": f"the bird of stone number {n}"}) + "\n" for n in range(9))
    )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    recipe = (folder / "tiny.py").read_text()
    for old, new in PAIRS_RECIPE.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    (folder / "tiny_pairs.py").write_text(recipe)
    return folder


@pytest.fixture
def folder(stocked, monkeypatch):
    monkeypatch.chdir(stocked)
    return stocked


def run_of(folder, kind):
    """A finished run's directory."""
    directory = f"runs/{kind}"
    if not Path(directory).exists():
        edits = (*EDITS[kind], "evaluation.draws=2", "evaluation.batch_size=3")
        recipe = "tiny_pairs.py" if kind == "pairs" else "tiny.py"
        assert tiny_run.run(*edits, directory=directory, recipe=recipe) == 0
    return directory


def command(*argv):
    return runtime.command(evaluate.main, argv)


def scored(*argv):
    """The figures of a command that worked."""
    assert command(*argv, "--json", "figures.json") == 0
    return json.loads(Path("figures.json").read_text())


@pytest.mark.parametrize(
    "kind",
    [
        "decoder",
        "encoder",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("encoder_decoder", "pairs")),
    ],
)
def test_a_run_on_its_own_split_has_the_loss_of_its_last_evaluation(folder, capsys, kind):
    run = run_of(folder, kind)
    capsys.readouterr()
    found, rows = scored(run), tiny_run.rows(run)
    out, err = capsys.readouterr()
    assert found["step"] == 12 and found["total"]["loss"] == rows["eval/loss"][-1][1]
    assert found["total"]["perplexity"] == rows["eval/perplexity"][-1][1]
    assert f"{found['total']['loss']:.4f}" in out.splitlines()[-1] and not err
    if kind == "decoder":
        assert found["total"]["bits_per_byte"] == pytest.approx(
            rows["eval/bits_per_byte"][-1][1], rel=1e-12
        )
        assert scored(run, "--step", "8")["step"] == 8
    if kind == "encoder":
        assert found["total"]["masked_accuracy"] == pytest.approx(
            rows["eval/masked_accuracy"][-1][1], rel=1e-12
        )


@pytest.mark.slow
def test_runs_compare_on_the_split_that_one_of_them_held_out(folder, capsys, tmp_path):
    """Its text, whatever the tokenizer of the other: bytes, and bytes with words among them."""
    run, extended = run_of(folder, "decoder"), str(tmp_path / "extended")
    (tmp_path / "tokens.txt").write_text(" river\n stone\n")
    options = ("--tokens", str(tmp_path / "tokens.txt"))
    assert runtime.command(convert.main, ["extend", run, extended, *options]) == 0
    own = scored(run)["total"]
    document = scored(run, "--against", extended, "--batch-size", "3")
    (change,) = document["changes"]
    before, after = (model["sources"][0] for model in document["models"])
    assert change["value"] == pytest.approx(own["bits_per_byte"], rel=1e-6)
    assert before["bytes"] == after["bytes"] == own["bytes"]
    assert before["targets"] < after["targets"] and change["domain"] == "text"
    capsys.readouterr()
    assert command(extended, "--against", run) == 2
    assert "has no validation split yet" in capsys.readouterr().err
    assert command(run_of(folder, "encoder"), "--against", run, "--data", "tail.txt") == 2
    assert "its objective is causal" in capsys.readouterr().err


def test_a_run_on_other_texts(folder, capsys):
    run = run_of(folder, "decoder")
    # The held-out tail as a file of its own: the same windows as the run's own split.
    own, same = scored(run)["total"], scored(run, "--data", "tail.txt")["total"]
    assert (
        same["loss"] == pytest.approx(own["loss"], rel=1e-6) and same["targets"] == own["targets"]
    )
    assert same["bytes"] == own["bytes"] and same["words"] == len(
        (folder / "tail.txt").read_text().split()
    )
    assert same["bits_per_word"] == pytest.approx(
        same["loss"] * same["targets"] / math.log(2) / same["words"]
    )
    capsys.readouterr()
    found = scored(
        run,
        "--data",
        "tail=tail.txt",
        "--data",
        "more=mor*.jsonl",
        "--text-key",
        "body",
        "--stride",
        "8",
        "--devices",
        "2",
    )
    assert [row["source"] for row in found["sources"]] == ["tail", "more"] and found["stride"] == 8
    assert found["total"]["targets"] == sum(row["targets"] for row in found["sources"])
    assert found["sources"][0]["loss"] != same["loss"]
    assert found["sources"][1]["documents"] == 9
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "source",
        "tail",
        "more",
        "total",
    ]
    limited = scored(run, "--data", "tail.txt", "--limit", "3")["total"]
    assert limited["targets"] == 3 * 32 and limited["tokens"] == limited["bytes"] == 3 * 32 + 1
    alone = scored(
        run, "--data", "more.jsonl", "--text-key", "body", "--per-document", "--limit", "4"
    )["total"]
    assert alone["documents"] == 4 and alone["targets"] == alone["bytes"] == 4 * len(
        "the bird of stone number 0"
    )


def test_an_encoder_run_on_other_texts(folder, capsys):
    run = run_of(folder, "encoder")
    capsys.readouterr()
    found = scored(
        run, "--data", "text.txt", "--limit", "4", "--pseudo-windows", "2", "--draws", "3"
    )["total"]
    out = capsys.readouterr().out
    assert "text.txt: 60 forward passes of 32 tokens for the pseudo-perplexity of 2 windows" in out
    assert (
        found["tokens"] == 4 * 30
        and found["targets"] == 3 * 4 * 4
        and found["pseudo_targets"] == 60
    )
    assert 0 <= found["masked_accuracy"] <= 1 and found["pseudo_perplexity"] == math.exp(
        found["pseudo_loss"]
    )
    again = scored(
        run,
        "--data",
        "text.txt",
        "--limit",
        "4",
        "--pseudo-windows",
        "0",
        "--draws",
        "3",
        "--seed",
        "1",
    )["total"]
    assert again["loss"] != found["loss"] and "pseudo_loss" not in again


@pytest.mark.slow
def test_an_encoder_decoder_run_on_other_texts(folder, finished_run):
    run = str(finished_run("encoder_decoder") / "runs/tiny")
    found = scored(run, "--data", "text.txt", "--limit", "5")
    objective = objectives.build(config.ObjectiveConfig(kind="span"), 32, BYTES.vocabulary)
    assert found["objective"] == "span" and found["total"]["targets"] == 5 * objective.length


@pytest.mark.slow
def test_a_run_of_pairs_on_other_pairs(folder):
    found = scored(run_of(folder, "pairs"), "--data", "pairs.jsonl", "--limit", "7")
    assert found["objective"] == "pairs" and found["total"]["documents"] == 7
    assert found["total"]["targets"] == sum(len(pair["target"]) + 1 for pair in PAIRS[:7])


MISTAKES = [
    (["RUN", "--data", "no.txt"], "--data: no.txt: no such file"),
    (
        ["RUN", "--data", "more.jsonl", "--text-key", "text"],
        "more.jsonl:1: no key 'text' (it has 'body'); --text-key names",
    ),
    (["RUN", "--data", "empty.txt"], "--data empty.txt: 0 tokens are too few"),
    (
        ["RUN", "--data", "text.txt", "--data", "text.txt"],
        "--data: 'text.txt' stands for two sources",
    ),
    (["RUN", "--data", ""], "--data: needs a file"),
    (
        ["RUN", "--data", "text.txt", "--context", "64"],
        "--context 64: runs/decoder has positions for 32 tokens",
    ),
    (
        ["RUN", "--data", "text.txt", "--context", "16", "--stride", "17"],
        "--stride 17: would leave out tokens",
    ),
    (
        ["RUN", "--data", "text.txt", "--batch-size", "0"],
        "argument --batch-size: must be a whole number of at least 1",
    ),
    (["RUN", "--stride", "4"], "--stride: is only used with --data"),
    (["RUN", "--json", "no/figures.json"], "--json: no: no such folder"),
    (["RUN", "--compute", "int8"], "argument --compute: invalid choice: 'int8'"),
    (
        ["RUN", "--data", "text.txt", "--pseudo-windows", "4"],
        "--pseudo-windows: is for encoders; runs/decoder: decoder",
    ),
    (["no-run"], "no-run: there is no such directory"),
    ([], "the following arguments are required: RUN|HF_DIR"),
]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("encoder", "no mask: nothing can be hidden$"),
        (
            "encoder_decoder",
            "no mask and no sentinels: .*; jaxlm.convert import makes .* for pairs$",
        ),
    ],
)
def test_a_model_in_which_nothing_can_be_hidden_is_told_what_it_lacks(family, reason):
    model: Any = SimpleNamespace(config=SimpleNamespace(family=family, generator_share=None))
    frame = TokenizerFrame("</s>", pad="<pad>")
    tokenizer = byte_tokenizer(SpecialTokens("</s>", pad="<pad>"))
    loaded = load_model.LoadedModel(Path("marian"), model, {}, tokenizer, frame, None, None)
    with pytest.raises(UserError, match=f"^marian: its tokenizer has {reason}"):
        own_objective.choose_objective(loaded)


def test_mistakes_take_one_line(folder, capsys):
    run = run_of(folder, "decoder")
    for argv, message in MISTAKES:
        capsys.readouterr()
        assert command(*(run if argument == "RUN" else argument for argument in argv)) == 2, argv
        said = capsys.readouterr().err
        assert said.startswith(f"error: {message}") and said.count("\n") == 1, said


def test_a_store_that_is_gone_is_built_again_of_the_same_text(
    folder, tmp_path, monkeypatch, capsys
):
    run = run_of(folder, "decoder")
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "copy"))
    own = scored(run)["total"]
    shutil.rmtree("stores")
    assert scored(run)["total"] == own
    Path("text.txt").unlink()
    assert scored(run)["total"] == own  # the store is there again
    shutil.rmtree("stores")
    Path("text.txt").write_text("another text " * 2000)
    capsys.readouterr()
    assert command(run) == 2
    assert (
        "runs/decoder: its text is not what it was trained on (prepared data: "
        in capsys.readouterr().err
    )


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--help"])
    assert (
        ended.value.code == 0 and "python -m jaxlm.evaluate gpt2/ --data" in capsys.readouterr().out
    )


# Against transformers


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """(folder of a tiny random GPT-2 with a tokenizer of bytes, the model)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = transformers.GPT2Config(
        vocab_size=257,
        n_positions=48,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=256,
        eos_token_id=256,
    )
    model = transformers.GPT2LMHeadModel(sizes).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    byte_tokenizer(SpecialTokens("<|endoftext|>")).save(folder / "tokenizer.json")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder, model


@pytest.mark.parametrize(("context", "stride"), [(48, 48), (47, 12), (20, 20)])
def test_the_loss_is_that_of_transformers_over_the_same_windows(gpt2, folder, context, stride):
    import torch

    path, model = gpt2
    ids = torch.tensor([[*(folder / "text.txt").read_bytes()[:500], 256]])
    (folder / "short.txt").write_bytes((folder / "text.txt").read_bytes()[:500])
    nats, count, done = 0.0, 0, 0
    for start in range(0, ids.shape[1], stride):
        end = min(start + context + 1, ids.shape[1])
        labels = ids[:, start + 1 : end].clone()
        labels[:, : done - start] = -100  # targets of the windows before
        with torch.no_grad():
            logits = model(ids[:, start : end - 1]).logits
        nats += torch.nn.functional.cross_entropy(
            logits[0].double(), labels[0], reduction="sum"
        ).item()
        count, done = count + int((labels != -100).sum()), end - 1
        if end == ids.shape[1]:
            break
    asked = (
        []
        if (context, stride) == (48, 48)
        else ["--context", str(context), "--stride", str(stride)]
    )
    found = scored(str(path), "--data", "short.txt", *asked)
    assert found["total"]["targets"] == count == 500
    # float32 in both: sums in another order.
    assert found["total"]["loss"] == pytest.approx(nats / count, rel=1e-5)
    if context + 1 <= 48:
        assert nats / count == pytest.approx(
            of_the_guide(model, ids, context + 1, stride), rel=1e-6
        )


def of_the_guide(model, ids, max_length, stride):
    """Nats per target by the loop of transformers' guide to perplexity, summed over targets."""
    import torch

    nats, count, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        inputs = ids[:, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        targets = int((labels[:, 1:] != -100).sum())
        nats, count = nats + float(loss) * targets, count + targets
        previous_end = end
        if end == ids.shape[1]:
            break
    return nats / count


def test_what_a_tokenizer_puts_before_a_text_is_read_but_is_no_target(gpt2, folder, tmp_path):
    import torch

    path, model = gpt2
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    inner = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    inner.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    bodies = [json.loads(line)["body"] for line in Path("more.jsonl").read_text().splitlines()][:2]
    with torch.no_grad():
        text = torch.tensor([[256, *bodies[0].encode(), 256]])
        first = model(text, labels=text).loss.item() * (text.shape[1] - 1)
    joined = [
        "--data",
        "more.jsonl",
        "--text-key",
        "body",
        "--context",
        "27",
    ]  # as long as a document
    found = scored(str(tmp_path), *joined, "--limit", "1")["total"]
    assert found["tokens"] == 28 and found["targets"] == 27
    assert found["loss"] * 27 == pytest.approx(first, rel=1e-5)
    found = scored(str(tmp_path), *joined, "--limit", "2")["total"]
    assert (
        found["tokens"] == 55 and found["targets"] == 27 + 26
    )  # not what the second document begins with
    alone = scored(str(tmp_path), *joined, "--per-document", "--limit", "2")["total"]
    assert alone["targets"] == alone["bytes"] == sum(map(len, bodies))


def test_the_pseudo_perplexity_is_that_of_transformers_with_each_token_hidden(folder, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {
        "sep_token": "[SEP]",
        "cls_token": "[CLS]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    }
    inner = byte_tokenizer(SpecialTokens(*names.values()))
    inner.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    sizes = dict(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(**sizes, max_position_embeddings=40, initializer_range=0.2)
    ).eval()
    model.save_pretrained(tmp_path)
    nats, count, ids = 0.0, 0, inner.vocabulary
    for number in range(2):
        text = f"the bird of stone number {number}".encode()
        for piece in (text[:22], text[22:]):
            for place in range(len(piece)):
                hidden = torch.tensor([[ids.begin_of_text, *piece, ids.end_of_text]])
                hidden[0, place + 1] = ids.mask
                with torch.no_grad():
                    nats -= (
                        model(hidden)
                        .logits[0, place + 1]
                        .double()
                        .log_softmax(-1)[piece[place]]
                        .item()
                    )
                count += 1
    asked = [
        "--data",
        "more.jsonl",
        "--text-key",
        "body",
        "--context",
        "24",
        "--per-document",
        "--limit",
        "2",
    ]
    found = scored(str(tmp_path), *asked)["total"]
    assert found["pseudo_targets"] == count == 2 * 26
    assert found["pseudo_loss"] == pytest.approx(nats / count, rel=1e-5)


def test_a_file_may_be_called_like_a_name_and_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1.jsonl").write_text("{}")
    (source,) = evaluate.parse_sources(["x=1.jsonl"], "text", "auto")
    assert (source.name, source.path) == ("x=1.jsonl", "x=1.jsonl")
    (source,) = evaluate.parse_sources(["y=x=1.jsonl"], "text", "auto")
    assert (source.name, source.path) == ("y", "x=1.jsonl")
    (source,) = evaluate.parse_sources(["\udcff.txt"], "text", "auto")
    assert (source.name, source.path) == ("?.txt", "\udcff.txt")
    (source,) = evaluate.parse_sources(["x=2.jsonl"], "text", "jsonl")
    assert (source.name, source.path, source.format) == ("x", "2.jsonl", "jsonl")


@pytest.mark.parametrize(
    ("data", "text_key", "message"),
    [
        ("\ud800", "text", r"--data .: path must be Unicode text, got '\\ud800'"),
        ("a.jsonl", "\udcff", r"--data a\.jsonl: text_key must be Unicode text"),
    ],
)
def test_sources_that_are_no_text_are_refused(data, text_key, message):
    with pytest.raises(UserError, match=message):
        evaluate.parse_sources([data], text_key, "auto")


def test_texts_of_another_format_are_refused_with_the_option_that_reads_them(tmp_path):
    (tmp_path / "d.json").write_text('{"body": "one"}\n')
    (source,) = evaluate.parse_sources([str(tmp_path / "d.json")], "text", "auto")
    with pytest.raises(UserError, match=r"without the key 'text' .* or set --format text to read"):
        list(read_source(source, COMMAND_OPTIONS))
