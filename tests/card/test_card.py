"""The model card says what the run was and keeps what authors write; foreign text does no harm."""

import json
import math
import re
import socket
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from support import tiny

from jaxlm import card, checkpoint, config, data, markdown, objectives
from jaxlm.card import facts as card_facts
from jaxlm.card import loss_plot, readme
from jaxlm.card.model_sections import TASKS, similar_model
from jaxlm.config import UserError
from jaxlm.data.mixture import Mixture
from jaxlm.data.stream import Stream
from jaxlm.data.tokenizer import byte_tokenizer
from jaxlm.data.vocabulary import special_tokens

TEXT = "the tree by the river and the stone under the cloud. " * 400


class Device:
    device_kind = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a card needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def build_config(folder, names=("books", "forum"), **changes) -> config.Config:
    for number in range(len(names)):
        (folder / f"{number}.txt").write_text(TEXT * (number + 1))
    sources = tuple(
        config.SourceConfig(name=name, path=str(folder / f"{n}.txt"), weight=3.0 if n == 0 else 1.0)
        for n, name in enumerate(names)
    )
    return config.Config(
        run_directory="runs/lark",
        model=config.ModelConfig(
            vocabulary_size=300, layers=2, width=32, heads=4, context_length=32
        ),
        tokenizer=config.TokenizerConfig(kind="bytes"),
        data=config.DataConfig(
            sources=sources,
            sequence_length=32,
            store=str(folder / "stores"),
            validation=config.ValidationConfig(method="tail", share=0.1),
        ),
        training=config.TrainingConfig(steps=40, batch_size=8, batch_schedule=((10, 16),)),
        **changes,
    )


ROWS = [
    {"step": 10, "train/loss": 5.0, "train/tokens_per_second": 900.0},
    {"step": 10, "eval/loss": 4.5, "eval/perplexity": math.exp(4.5), "eval/bits_per_byte": 6.5},
    {"step": 20, "train/loss": 3.0, "train/tokens_per_second": 1100.0, "train/mfu": 0.25},
    {"step": 20, "eval/loss": 2.5, "eval/perplexity": math.exp(2.5), "eval/bits_per_byte": 3.6},
    {"step": 40, "train/loss": 2.0, "train/tokens_per_second": 1000.0},
    {"step": 40, "eval/loss": 2.75, "eval/perplexity": math.exp(2.75), "eval/bits_per_byte": 3.97},
]


def a_run(folder, run_config, rows=tuple(ROWS), recorded=True):
    """A run directory as the trainer leaves it, and the store."""
    run = folder / "runs" / "lark"
    run.mkdir(parents=True)
    store = data.prepare(
        run_config.data,
        run_config.tokenizer,
        run_config.tokenizer_vocabulary_size,
        print,
        needs=run_config.objective.needs,
    )
    checkpoint.write_run_config(run, run_config, store.hash, {"python": "3.11.7", "jax": "0.10.2"})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if recorded:
        first = card.new_start(0, [Device()] * 4, 2)
        card.record_progress(run, first, 5, 100.0, store.manifest)
        card.record_progress(run, first, 10, 1800.0, store.manifest)
        card.record_progress(
            run,
            first._replace(began="2026-11-21T12:00:00Z", first_step=10),
            40,
            3600.0,
            store.manifest,
        )
    return run, store


@pytest.fixture
def made(tmp_path):
    run_config = build_config(tmp_path)
    run, store = a_run(tmp_path, run_config)
    return run, run_config, store


def cell(text: str, name: str) -> list[str]:
    """The cells behind `name` in the row of a table that begins with it."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [part.strip() for part in line.replace("\\|", "&#124;").strip("|").split("|")][1:]


# --- what it says ---


def test_the_metadata_is_read_back(made):
    run, run_config, store = made
    path = card.write_card(run, card.gather_facts(run, run_config, 12345))
    found = metadata_load(path)
    assert (
        found["library_name"] == "jaxlm"
        and found["pipeline_tag"] == "text-generation"
        and "jax" in found["tags"]
    )
    assert (
        not {"license", "language", "datasets", "base_model"} & found.keys()
    )  # nothing is claimed that nobody said
    name, results = model_index_to_eval_results(found["model-index"])
    assert name == "lark"
    assert {result.metric_type: result.metric_value for result in results} == {
        "loss": 2.75,
        "perplexity": pytest.approx(math.exp(2.75), rel=1e-6),
        "bits_per_byte": 3.97,
    }
    assert {(r.dataset_name, r.dataset_split, r.dataset_revision) for r in results} == {
        ("books, forum (held out)", "validation", f"store-{store.hash}")
    }
    (index,) = found["model-index"]
    (result,) = index["results"]
    assert (
        result["task"] == {"type": "text-generation"}
        and {"type", "name"} <= result["dataset"].keys()
    )
    assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    assert "\n# Model Card for lark\n" in ModelCard.load(path).text


ODD_NAMES = ["1e5", "null", "on", "~", "[a]", "a: b", "#x", "'q'", "@x", "-", "2026-11-26", "ß"]


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
@pytest.mark.parametrize("exported", ["", "bert"])
def test_a_card_loads_without_a_warning(made, caplog, recwarn, family, exported):
    """Whatever the run is called, by the reader of the hub."""
    run, run_config, _ = made
    facts = card.gather_facts(run, run_config, 12345, exported=exported)
    classifier = config.ClassifierConfig()
    model = SimpleNamespace(family=family, generator_share=None, classifier=classifier)
    facts = facts._replace(
        config=SimpleNamespace(model=model, data=run_config.data, objective=run_config.objective)
    )
    for name in ODD_NAMES:
        metadata = readme.generate_metadata(facts._replace(name=name))
        (run / "README.md").write_text(f"---\n{metadata.to_yaml()}\n---\n# {name}\n")
        loaded: Any = ModelCard.load(run / "README.md").data
        assert loaded.pipeline_tag == TASKS[family]
        assert loaded.model_name in (name, f"model-{name}")
        assert loaded.eval_results and len(loaded.eval_results) == 3
    assert caplog.records == [] and len(recwarn) == 0


def test_flops_are_the_closed_form(made):
    run, run_config, _ = made
    facts = card.gather_facts(run, run_config, 12345)
    layers, width, length, vocabulary = 2, 32, 32, 300
    products = (
        layers * (12 * width**2 * length + 2 * length**2 * width) + length * width * vocabulary
    )
    samples = 10 * 8 + 30 * 16
    assert facts.compute == 6 * products * samples
    assert (
        f"({6 * products * samples:,})" in cell(readme.PARTS["speed"](facts), "compute, FLOPs")[0]
    )
    assert facts.compute / markdown.PETAFLOP_DAYS == pytest.approx(facts.compute / 8.64e19)
    assert cell(readme.PARTS["hyperparameters"](facts), "tokens seen by the model") == [
        f"{samples * 32:,}"
    ]


def test_the_ramp_of_the_batch_size_is_told_up_to_the_step(made):
    run, run_config, _ = made
    text = readme.PARTS["hyperparameters"](card.gather_facts(run, run_config, 1))
    assert cell(text, "batch") == [
        "8 sequences, 256 tokens; from step 10 on 16 sequences, 512 tokens"
    ]
    text = readme.PARTS["hyperparameters"](card.gather_facts(run, run_config, 1, step=10))
    assert cell(text, "batch") == ["8 sequences, 256 tokens"]


def test_tokens_of_each_source(made):
    run, run_config, store = made
    facts = card.gather_facts(run, run_config, 12345)
    objective = objectives.build(run_config.objective, 32, store.tokenizer.vocabulary)
    stream = Stream(
        store.train,
        weights=(3.0, 1.0),
        names=("books", "forum"),
        objective=objective,
        schedule=facts.schedule,
        seed=0,
    )
    counts = np.bincount(stream.locate_block(0)[0][: 10 * 8 + 30 * 16], minlength=2)
    books, forum = facts.sources
    assert [books.samples, forum.samples] == counts.tolist() and books.share == 0.75
    for source, array, text in zip(facts.sources, store.train, (TEXT, TEXT * 2), strict=True):
        assert source.tokens == len(array) and source.documents == 1
        assert source.bytes == int(len(text) * 0.9) and source.epochs == source.samples * 32 / len(
            array
        )
    row = cell(readme.PARTS["data"](facts), "books")
    assert row == [
        "auto",
        "75%",
        "1",
        f"{books.tokens:,}",
        f"{books.bytes:,}",
        f"{books.samples * 32:,}",
        f"{books.epochs:.3g}",
    ]


def test_samples_of_sources_at_any_size():
    mixture = Mixture([0.7, 0.2, 0.1])
    for samples in (0, 1, 4095, 4096, 10_000):
        chosen = mixture(np.arange(samples))[0]
        assert (
            card_facts.samples_by_source(mixture, samples)
            == np.bincount(chosen, minlength=3).tolist()
        )
    assert sum(card_facts.samples_by_source(mixture, 10**15 + 7)) == 10**15 + 7


@pytest.mark.parametrize(
    "kind",
    [
        "causal",
        "prefix",
        "fill_in_the_middle",
        "masked",
        "framed",
        "span",
        "infilling",
        "pairs",
        "mixture_of_denoisers",
    ],
)
def test_lengths_are_those_of_the_real_vocabulary(kind):
    name = "masked" if kind == "framed" else kind
    base = tiny.FAMILIES[config.objective.TRAINED_BY[name][0]]
    begin = "<s>" if kind in ("framed", "infilling") else None
    source = config.SourceConfig(
        name="text", path="text.txt", format="pairs" if kind == "pairs" else "text"
    )
    run_config = replace(
        base,
        model=replace(base.model, vocabulary_size=400),
        objective=config.ObjectiveConfig(kind=name, target_length=24 if kind == "pairs" else None),
        tokenizer=config.TokenizerConfig(kind="bytes", sentinels=20, begin_of_text=begin),
        data=config.DataConfig(sources=(source,), sequence_length=32),
    )
    special = special_tokens(run_config.tokenizer, run_config.objective.needs)
    real = objectives.build(run_config.objective, 32, byte_tokenizer(special).vocabulary)
    functions = {"make_batch": None, "packed": None}
    assert card_facts.sample_lengths(run_config)._replace(**functions) == real._replace(**functions)


def test_results_and_yardsticks(made):
    run, run_config, store = made
    facts = card.gather_facts(run, run_config, 12345)
    text = readme.PARTS["results"](facts)
    assert "step 40 (last)" in text and "step 20 (lowest loss)" in text
    assert cell(text, "loss, nats per target") == ["2.75", "2.5"]
    assert (
        cell(text, "xz -9, bits per byte of the validation text")
        == [markdown.number(8 * store.xz_bytes / store.validation_bytes, 5)] * 2
    )
    assert cell(readme.PARTS["speed"](facts), "tokens per second, median") == ["1,000"]
    assert cell(readme.PARTS["speed"](facts), "MFU, median") == ["25%"]


def test_starts_are_recorded_and_counted(made):
    run, run_config, _ = made
    document = json.loads((run / "training.json").read_text())
    assert [(entry["first_step"], entry["step"]) for entry in document["starts"]] == [
        (0, 10),
        (10, 40),
    ]
    text = readme.PARTS["hardware"](card.gather_facts(run, run_config, 1))
    assert (
        "4 x NVIDIA H100 80GB HBM3" in text
        and "In all 6 device hours" in text
        and "not on record" not in text
    )
    earlier = readme.PARTS["hardware"](card.gather_facts(run, run_config, 1, step=25))
    assert "11-25" in earlier and "In all 4 device hours" in earlier  # half of the second start
    (run / "training.json").write_text("{")
    assert card.gather_facts(run, run_config, 1).starts == ()


@pytest.mark.parametrize(
    ("ran", "missing"),
    [
        ([(0, 20), (10, 15), (20, 40)], 0),
        ([(0, 20), (5, 10), (12, 40)], 0),
        ([(0, 5), (10, 40)], 5),
        ([(30, 40)], 30),
    ],
)
def test_steps_of_no_known_time_are_told(made, ran, missing):
    run, run_config, _ = made
    start = card.new_start(0, [Device()], 1)
    facts = card.gather_facts(run, run_config, 1)._replace(
        starts=tuple(start._replace(first_step=a, step=b, seconds=60.0) for a, b in ran)
    )
    text = readme.PARTS["hardware"](facts)
    assert (
        (f"Of {missing} steps the time is not on record" in text)
        == bool(missing)
        == ("not on record" in text)
    )


def test_a_card_of_an_earlier_step(made):
    run, run_config, _ = made
    facts = card.gather_facts(run, run_config, 1, step=20)
    assert (
        facts.samples(20) == 10 * 8 + 10 * 16
        and facts.evaluated_steps == [10, 20]
        and max(facts.curves["train/loss"]) == 20
    )
    _, results = model_index_to_eval_results(
        metadata_load(card.write_card(run, facts))["model-index"]
    )
    assert {r.metric_type: r.metric_value for r in results}["loss"] == 2.5


def test_without_a_record_the_store_is_asked_and_without_a_store_the_card_says_so(tmp_path):
    run_config = build_config(tmp_path)
    run, store = a_run(tmp_path, run_config, recorded=False)
    assert card.gather_facts(run, run_config, 1).sources[0].tokens == len(store.train[0])
    (store.path / "manifest.json").unlink()
    facts = card.gather_facts(run, run_config, 1)
    assert cell(readme.PARTS["data"](facts), "books")[2:5] == ["unknown"] * 3
    assert "not on record" in readme.PARTS["hardware"](facts)
    card.write_card(run, facts)


def test_documents_that_were_dropped_are_counted(tmp_path):
    run_config = build_config(tmp_path)
    run, store = a_run(tmp_path, run_config, recorded=False)
    assert "dropped" not in readme.PARTS["data"](card.gather_facts(run, run_config, 1))
    dropped = {
        "books": {"unreadable": 2, "near_duplicate": 1000},
        "news": {"near_duplicate": 500},
    }
    manifest = store.manifest | {"dropped": dropped}
    card.record_progress(run, card.new_start(0, [Device()], 1), 1, 1.0, manifest)
    text = readme.PARTS["data"](card.gather_facts(run, run_config, 1))
    assert text.endswith(" Documents that were dropped before: 2 unreadable, 1,500 near duplicate.")


def test_a_store_that_was_built_under_other_names(tmp_path):
    """Runs share a store; the names in its manifest are those of the run that built it."""
    a_run(tmp_path, build_config(tmp_path))
    run_config = build_config(tmp_path, names=("novels", "threads"))
    other = tmp_path / "other"
    other.mkdir()
    run, store = a_run(other, run_config)
    assert store.manifest["splits"]["train"][0]["source"] == "books"
    assert (
        "novels" in readme.PARTS["data"](card.gather_facts(run, run_config, 1))
        and "books" not in (card.write_card(run, card.gather_facts(run, run_config, 1))).read_text()
    )


def test_an_imported_model(tmp_path):
    run = tmp_path / "gpt"
    run.mkdir()
    run_config = replace(tiny.CONFIG, run_directory=None)
    checkpoint.write_run_config(run, run_config, None, {"jax": "0.10.2"})
    card.record_import(run, "llama")
    path = card.write_card(run, card.gather_facts(run, run_config, 1_234_567))
    text = path.read_text()
    assert "1.23 million parameters" in text and "No training is on record here" in text
    assert "python_stdlib" not in text  # the config's default source, which nobody trained on
    assert not (run / "loss.svg").exists() and "model-index" not in metadata_load(path)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 3, "train/loss": 2.0}) + "\n")
    assert (
        "imported from another model (llama)"
        in card.write_card(run, card.gather_facts(run, run_config, 1_234_567)).read_text()
    )


def test_files_with_a_byte_order_mark_tell_the_same(tmp_path):
    run_config = replace(tiny.CONFIG, run_directory=None)
    checkpoint.write_run_config(tmp_path, run_config, "a" * 16, {"jax": "0.10.2"})
    card.record_import(tmp_path, "llama")
    facts = card.gather_facts(tmp_path, run_config, 1)
    assert facts.imported == "llama" and facts.versions == {"jax": "0.10.2"}
    for name in ("config.json", "training.json"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert card.gather_facts(tmp_path, run_config, 1) == facts


@pytest.mark.parametrize(
    ("family", "task", "words"),
    [
        ("decoder", "text-generation", 'pipeline("text-generation"'),
        ("encoder", "fill-mask", "tokenizer.mask_token"),
        ("encoder_decoder", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ],
)
def test_an_exported_directory_takes_the_edits_of_the_run_along(tmp_path, family, task, words):
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    run_config = tiny.FAMILIES[family]
    checkpoint.write_run_config(run, run_config, "a" * 16, {})
    (run / "metrics.jsonl").write_text(
        json.dumps({"step": 3, "eval/loss": 2.0, "eval/masked_accuracy": 0.5}) + "\n"
    )
    path = card.write_card(run, card.gather_facts(run, run_config, 1))
    assert "python -m jaxlm.generate" in path.read_text()
    path.write_text(
        path.read_text().replace("---\n", "---\nlicense: mit\n", 1) + "\nSigned, the authors.\n"
    )
    found = card.write_card(out, card.gather_facts(run, run_config, 1, exported="somebert"))
    text, meta = found.read_text(), metadata_load(found)
    assert found == out / "README.md" and (out / "loss.svg").exists()
    assert (
        meta["license"] == "mit"
        and meta["library_name"] == "transformers"
        and meta["pipeline_tag"] == task
    )
    assert (
        "somebert" in meta["tags"]
        and "Signed, the authors." in text
        and words in text
        and "jaxlm.generate" not in text
    )
    (snippet,) = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    compile(snippet, "snippet", "exec")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("1e5", "model-1e5"),
        ("2024", "model-2024"),
        ("lr_1e3", "lr_1e3"),
        ("yes", "yes"),
        ("~", "~"),
    ],
)
def test_names_stay_texts_in_yaml(made, name, shown):
    run, run_config, _ = made
    path = card.write_card(run, card.gather_facts(run, run_config, 1)._replace(name=name))
    assert metadata_load(path)["model-index"][0]["name"] == shown


def test_settings_that_differ_make_the_run_again(made):
    run, run_config, _ = made
    edits = (
        readme.PARTS["reproducing"](card.gather_facts(run, run_config, 1))
        .split("```")[1]
        .splitlines()[1:]
    )
    (sources,) = [
        json.loads(edit.partition("=")[2]) for edit in edits if edit.startswith("data.sources=")
    ]
    assert sources == [{"name": "books", "weight": 3.0}, {"name": "forum"}]
    for number, source in enumerate(sources):
        source["path"] = run_config.data.sources[number].path
    edits = [
        f"data.sources={json.dumps(sources)}" if edit.startswith("data.sources=") else edit
        for edit in edits
    ]
    again = config.apply_edits(
        config.Config(data=config.DataConfig(store=run_config.data.store)),
        [*edits, "run_directory=runs/lark"],
    )
    assert again == run_config


@pytest.mark.parametrize(
    ("recipe", "kin"),
    [
        ("gpt2_124m", "GPT-2"),
        ("llama2_7b", "Llama"),
        ("bloom_560m", "BLOOM"),
        ("bert_base", "BERT"),
        ("roberta_base", "RoBERTa"),
        ("t5_base", "T5 v1.1"),
        ("bart_base", "BART"),
        ("quickstart", ""),
    ],
)
def test_the_shapes_of_the_recipes_are_known(recipe, kin):
    run_config = config.load(Path(__file__).parents[2] / "configs" / f"{recipe}.py")
    assert similar_model(run_config.model) == kin


# --- what authors write ---


def test_what_authors_wrote_stays(made):
    run, run_config, _ = made
    path = card.write_card(run, card.gather_facts(run, run_config, 1, step=20))
    text = path.read_text()
    text = text.replace(
        "**Developed by:** **To be filled in by the authors:** names, organisation",
        "**Developed by:** Ada",
    )
    text = text.replace("## Citation", "## Citation of ours").replace(
        "Model Card for lark", "Lark, a model"
    )
    text = text.replace("\ntags:\n", "\nlicense: mit\nlanguage:\n- en\n- de\ntags:\n- poetry\n")
    path.write_text(text)
    again = card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()
    meta = metadata_load(path)
    assert (
        "**Developed by:** Ada" in again
        and "## Citation of ours" in again
        and "# Lark, a model" in again
    )
    assert (
        meta["license"] == "mit"
        and meta["language"] == ["en", "de"]
        and {"poetry", "jaxlm"} <= set(meta["tags"])
    )
    assert "step 40 (last)" in again and "step 20 (last)" not in again  # the rest is renewed
    assert card.write_card(run, card.gather_facts(run, run_config, 1)).read_text() == again


def test_a_generated_part_that_was_changed_or_removed_is_the_authors(made):
    run, run_config, _ = made
    path = card.write_card(run, card.gather_facts(run, run_config, 1, step=20))
    text = path.read_text()
    begin, end = text.index("<!-- jaxlm:begin software"), text.index("<!-- jaxlm:end software -->")
    text = text[:begin] + text[end + len("<!-- jaxlm:end software -->") :]
    text = text.replace("| steps | 20 of 40 |", "| steps | 20 of 40 (a trial) |")
    table = next(line for line in text.splitlines() if line.startswith("| loss, nats"))
    text = text.replace(table, table.replace("|", " | "))  # as an editor aligns tables
    path.write_text(text)
    again = card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()
    assert (
        "(a trial)" in again and "jaxlm:begin software" not in again and "step 40 (last)" in again
    )
    # Emptied, it is generated again.
    begin = again.index("-->", again.index("<!-- jaxlm:begin hyperparameters")) + 4
    end = again.index("<!-- jaxlm:end hyperparameters")
    path.write_text(again[:begin] + again[end:])
    assert (
        "| steps | 40 of 40 |"
        in card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()
    )


def test_a_readme_of_the_authors_own_stays_whole(made):
    run, run_config, _ = made
    own = "# My notes\n\n---\n\nDon't lose them.\r\n"
    (run / "README.md").write_text(own)
    text = card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()
    assert "# My notes\n\n---\n\nDon't lose them." in text and "# Model Card for lark" in text
    assert card.write_card(run, card.gather_facts(run, run_config, 1)).read_text() == text


def test_evaluations_of_others_stay_beside_ours(made):
    run, run_config, _ = made
    path = card.write_card(run, card.gather_facts(run, run_config, 1, step=20))
    meta = metadata_load(path)
    theirs = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "ai2_arc", "name": "ARC"},
        "metrics": [{"type": "accuracy", "value": 0.25}],
    }
    meta["model-index"][0]["results"].append(theirs)
    path.write_text(f"---\n{yaml.dump(meta)}---\n{ModelCard.load(path).text}")
    _, results = model_index_to_eval_results(
        metadata_load(card.write_card(run, card.gather_facts(run, run_config, 1)))["model-index"]
    )
    assert [r.metric_value for r in results if r.dataset_type == "ai2_arc"] == [0.25]
    assert [r.metric_value for r in results if r.metric_type == "loss"] == [2.75]


@pytest.mark.parametrize("block", ["a: [", "- a list", "1: 2", "model-index: [{}]"])
def test_broken_metadata_is_named_and_the_card_left_alone(made, block):
    run, run_config, _ = made
    text = f"---\n{block}\n---\n# Mine\n"
    (run / "README.md").write_text(text)
    with pytest.raises(UserError, match=r"README\.md: the metadata") as error:
        card.write_card(run, card.gather_facts(run, run_config, 1))
    assert "\n" not in str(error.value) and (run / "README.md").read_text() == text


def test_what_cannot_be_written_is_named(made, tmp_path):
    run, run_config, store = made
    with pytest.raises(UserError, match=r"README\.md: can't be written"):
        card.write_card(
            tmp_path / "nowhere", card.gather_facts(run, run_config, 1)._replace(curves={})
        )
    with pytest.raises(UserError, match=r"training\.json: can't be written"):
        card.record_progress(
            tmp_path / "nowhere", card.new_start(0, [Device()], 1), 1, 1.0, store.manifest
        )


# --- odd runs ---


@pytest.mark.parametrize(
    ("rows", "step", "losses"),
    [
        ("", 40, 0),
        ('{"step": 7, "train/loss": 3.5}\n', 40, 1),
        (
            '{"step": 7, "train/loss": null}\n'
            '{"step": 8, "eval/loss": NaN, "train/loss": Infinity}\n',
            40,
            0,
        ),
        ('{"step": 7, "train/loss": 3.5}\n{"step": 8, "train/lo', 40, 1),
        (
            '[1]\n7\n{}\n{"step": "x", "train/loss": 1}\n'
            '{"step": true, "train/loss": 1}\n\xff\n{"step": 5, "train/loss": "2"}\n',
            40,
            0,
        ),
        (
            '{"step": 5, "train/loss": 9.0}\n{"step": 6, "train/loss": 8.0}\n'
            '{"step": 5, "train/loss": 4.0}\n',
            40,
            2,
        ),
    ],
    ids=["none", "one", "null", "cut", "damaged", "resumed"],
)
def test_odd_metrics(made, rows, step, losses):
    run, run_config, _ = made
    (run / "metrics.jsonl").write_bytes(rows.encode("latin-1"))
    facts = card.gather_facts(run, run_config, 1)
    assert facts.step == step and len(facts.curves.get("train/loss", {})) == losses
    if losses == 2:
        assert facts.curves["train/loss"] == {5: 4.0, 6: 8.0}
    path = card.write_card(run, facts)
    text = path.read_text()
    assert (
        "No evaluation is on record." in text
        and "model-index" not in metadata_load(path)
        and not re.search(r"\bnan\b", text.lower())
    )
    assert (run / "loss.svg").exists() == bool(losses) == ("](loss.svg)" in text)


HOSTILE = [
    "a|b",
    "key: value",
    "---",
    "`code`` ```",
    "x\n---\nlicense: mit\n---\ny",
    "<script>alert(1)</script>",
    "<!-- jaxlm:end data -->",
    "[link](javascript:alert) ![i](x) *b* _i_ ~~s~~ #h {{data}}",
    "'\"\\ &amp; %x \u202egnp.exe",
    "| --- |",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path, name):
    run_config = build_config(tmp_path, names=(name, "plain"))
    run, _ = a_run(tmp_path, run_config)
    path = card.write_card(run, card.gather_facts(run, run_config, 1))
    text, meta = path.read_text(), metadata_load(path)
    shown = " ".join("".join(" " if c in "\n\u202e" else c for c in name).split())
    assert (
        meta["model-index"][0]["results"][0]["dataset"]["name"] == f"{shown}, plain (held out)"
        and "license" not in meta
    )
    part = text[text.index("<!-- jaxlm:begin data") : text.rindex("<!-- jaxlm:end data -->")]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and {line.replace("\\|", "").count("|") for line in rows} == {
        9
    }  # heads, rule, two sources, validation
    assert "<script" not in part and "](" not in part and "`" not in part.replace("\\`", "")
    # As a browser would show it.
    commonmark = pytest.importorskip("markdown_it", reason="rendering needs markdown-it-py")
    html = commonmark.MarkdownIt("commonmark").enable("table").render(part)
    cells = [
        element.text
        for element in ET.fromstring(
            f"<x>{html[html.index('<table') : html.index('</table>') + 8]}</x>"
        ).iter("td")
    ]
    assert shown in cells


def test_hostile_names_do_not_keep_a_card_from_being_renewed(tmp_path):
    run_config = build_config(tmp_path, names=HOSTILE)
    run, _ = a_run(tmp_path, run_config)
    card.write_card(run, card.gather_facts(run, run_config, 1, step=20))
    path = card.write_card(run, card.gather_facts(run, run_config, 1))
    assert "Up to step 40" in path.read_text() and "Up to step 20" not in path.read_text()
    assert path.read_text() == readme_of_a_new_run(run, run_config)


def readme_of_a_new_run(run, run_config) -> str:
    (run / "README.md").unlink()
    return card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()


def test_no_path_of_the_machine_is_told(tmp_path):
    run_config = replace(build_config(tmp_path), run_directory=str(tmp_path / "runs" / "lark"))
    run, _ = a_run(tmp_path, run_config)
    assert (
        str(tmp_path) not in card.write_card(run, card.gather_facts(run, run_config, 1)).read_text()
    )


# --- the picture ---


def points(svg: str, name: str) -> list[tuple[float, float]]:
    (group,) = [
        g for g in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}g") if g.get("id") == name
    ]
    line = group.find("{http://www.w3.org/2000/svg}polyline")
    assert line is not None
    return [
        (float(x), float(y))
        for x, y in (pair.split(",") for pair in line.get("points", "").split())
    ]


def test_the_picture_has_both_curves(made):
    run, run_config, _ = made
    card.write_card(run, card.gather_facts(run, run_config, 1))
    svg = (run / "loss.svg").read_text()
    train, validation = points(svg, "train"), points(svg, "validation")
    assert len(train) == len(validation) == 3
    assert [x for x, _ in train] == [x for x, _ in validation]  # the same steps
    assert [y for _, y in train] == sorted(
        y for _, y in train
    )  # a falling loss, downwards in the picture
    ratio = (train[1][0] - train[0][0]) / (train[2][0] - train[0][0])
    assert ratio == pytest.approx(
        math.log(240 / 80) / math.log(560 / 80), abs=1e-3
    )  # samples at steps 10, 20, 40
    labels = [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {
        "training",
        "validation",
        "Loss, nats per target",
        "tokens (logarithmic)",
        "3",
        "5k",
    } <= set(labels)
    inside = [
        (x, y)
        for x, y in train + validation
        if not (0 < x < loss_plot.WIDTH and 0 < y < loss_plot.HEIGHT)
    ]
    assert inside == []


def test_pictures_of_odd_losses():
    assert (
        loss_plot.draw_loss_curves([], [], "tokens")
        == ""
        == loss_plot.draw_loss_curves([(1, math.nan)], [(0, 1.0)], "tokens")
    )
    one = loss_plot.draw_loss_curves([], [(5, 1.0)], "tokens")
    assert len(points(one, "validation")) == 1 and 'id="train"' not in one
    flat = loss_plot.draw_loss_curves([(1, 2.0), (2, 2.0)], [], "tokens")
    assert len(points(flat, "train")) == 2
    spike = loss_plot.draw_loss_curves(
        [(n, 1e300 if n == 50 else 5 / n) for n in range(1, 101)], [], "tokens"
    )
    heights = [y for _, y in points(spike, "train")]
    assert (
        -loss_plot.HEIGHT <= min(heights) < 0 and sorted(heights)[5] > 40
    )  # the spike leaves the picture, the others don't
    long = loss_plot.draw_loss_curves([(n, 5 / n) for n in range(1, 50_000)], [], "tokens")
    assert len(points(long, "train")) < 700 and "nan" not in long
