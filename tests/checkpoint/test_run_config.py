"""config.json of a run, and what may change when it is resumed."""

import dataclasses
import json

import pytest

from jaxlm.checkpoint import run_config
from jaxlm.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    SourceConfig,
    TrainingConfig,
    UserError,
    apply_edits,
)
from jaxlm.data.schedule import BatchSchedule


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "runs" / "a"
    path.mkdir(parents=True)
    return path


def config(*edits):
    base = Config(
        run_directory="runs/a",
        model=ModelConfig(layers=2),
        data=DataConfig(sources=(SourceConfig(name="a", path="a.txt"),)),
    )
    return apply_edits(base, edits)


def test_config_json_holds_sections_hash_and_versions(directory):
    run_config.write_run_config(directory, config("training.steps=5"), "0123abcd", {"jax": "1.2"})
    document = json.loads((directory / "config.json").read_text())
    assert document["training"]["steps"] == 5
    assert (document["store"], document["versions"]) == ({"hash": "0123abcd"}, {"jax": "1.2"})
    assert run_config.read_run_config(directory) == (config("training.steps=5"), "0123abcd")
    assert [path.name for path in directory.iterdir()] == ["config.json"]


def test_the_same_config_goes_on_without_notes(directory):
    run_config.write_run_config(directory, config(), "h", {})
    assert run_config.resume_config(directory, config(), 10) == (config(), [])


def test_a_run_of_an_earlier_version_goes_on_without_a_bound_of_words(directory):
    run_config.write_run_config(directory, config(), "h", {})
    path = directory / "config.json"
    document = json.loads(path.read_text())
    del document["tokenizer"]["longest_piece"], document["tokenizer"]["pre_tokenization"]
    path.write_text(json.dumps(document))

    unbounded = config("tokenizer.longest_piece=none")
    assert run_config.read_run_config(directory)[0] == unbounded
    assert run_config.resume_config(directory, config(), 10) == (unbounded, [])
    with pytest.raises(UserError, match=r"tokenizer\.longest_piece: none -> 99"):
        run_config.resume_config(directory, config("tokenizer.longest_piece=99"), 10)


def test_what_may_change_is_noted(directory):
    run_config.write_run_config(directory, config(), "h", {})
    edits = [
        "training.steps=2000",
        "optimizer.learning_rate=1e-3",
        "parallel.zero=1",
        "data.store=other",
        "data.prefetch_threads=2",
    ]
    effective, notes = run_config.resume_config(
        directory, config(*edits, "run_directory=/elsewhere/a"), 10
    )
    assert effective == config(*edits, "run_directory=/elsewhere/a")
    assert sorted(notes) == [
        "data.prefetch_threads: 1 -> 2",
        "data.store: stores -> other",
        "optimizer.learning_rate: 0.0003 -> 0.001",
        "parallel.zero: 0 -> 1",
        "training.steps: 1000 -> 2000",
    ]


@pytest.mark.parametrize(
    ("edit", "change"),
    [
        ("model.layers=4", "model.layers: 2 -> 4"),
        ("model.kv_heads=4", "model.kv_heads: none -> 4"),
        ("tokenizer.end_of_text=<eos>", "tokenizer.end_of_text: <|endoftext|> -> <eos>"),
        ("data.sources.0.name=b", "data.sources.0.name: a -> b"),
        ("data.sequence_length=512", "data.sequence_length: 1024 -> 512"),
        ("data.validation.share=0.1", "data.validation.share: 0.05 -> 0.1"),
        ("seed=1", "seed: 0 -> 1"),
        ("precision.params=bfloat16", "precision.params: float32 -> bfloat16"),
    ],
)
def test_another_run_is_refused(directory, edit, change):
    run_config.write_run_config(directory, config(), "h", {})
    with pytest.raises(UserError) as error:
        run_config.resume_config(directory, config(edit, "training.steps=7"), 10)
    assert (
        str(error.value) == f"{directory} holds a run that differs in {change}: "
        f"for a new run set run_directory={directory}-2"
    )


def test_every_change_is_listed_and_the_proposed_name_is_free(directory):
    directory.with_name("a-2").mkdir()
    run_config.write_run_config(directory, config(), "h", {})
    with pytest.raises(UserError) as error:
        run_config.resume_config(directory, config("model.layers=4", "seed=1"), 10)
    assert "seed: 0 -> 1; model.layers: 2 -> 4: " in str(error.value)
    assert str(error.value).endswith(f"run_directory={directory}-3")


def test_another_token_store_is_refused(directory):
    run_config.write_run_config(directory, config(), "aaa", {})
    moved = config("data.sources.0.path=b.txt")
    assert run_config.resume_config(directory, moved, 10)[1] == [
        "data.sources.0.path: a.txt -> b.txt"
    ]
    run_config.check_store(directory, moved, "aaa")  # the same text elsewhere
    with pytest.raises(UserError) as error:
        run_config.check_store(directory, moved, "bbb")
    changes = "data.sources.0.path: a.txt -> b.txt; prepared data: aaa -> bbb"
    assert (
        str(error.value) == f"{directory} holds a run that differs in {changes}: "
        f"for a new run set run_directory={directory}-2"
    )


def test_another_source_is_refused(directory):
    run_config.write_run_config(directory, config(), "h", {})
    two = dataclasses.replace(
        config(),
        data=DataConfig(
            sources=(SourceConfig(name="a", path="a.txt"), SourceConfig(name="b", path="b.txt"))
        ),
    )
    with pytest.raises(UserError, match=r"data\.sources\.1\.name: none -> b; "):
        run_config.resume_config(directory, two, 10)


def test_a_changed_batch_size_holds_from_the_resumed_step_on(directory):
    asked = config("training.batch_size=64")
    run_config.write_run_config(directory, config(), "h", {})
    for step in (500, 900):  # the second resume, with the same edit, changes nothing more
        effective, notes = run_config.resume_config(directory, asked, step)
        run_config.write_run_config(directory, effective, "h", {})
        assert effective.training == TrainingConfig(batch_size=32, batch_schedule=((500, 64),))
        assert notes == (["training.batch_schedule: [] -> [[500, 64]]"] if step == 500 else [])


def test_a_batch_changed_again_counts_the_samples_that_were_seen(directory):
    run_config.write_run_config(
        directory, config("training.batch_schedule=[[100, 48], [700, 96]]"), "h", {}
    )
    effective, _ = run_config.resume_config(
        directory, config("training.batch_size=16", "training.batch_schedule=[[800, 24]]"), 500
    )
    assert effective.training.batch_schedule == ((100, 48), (500, 16), (800, 24))
    samples = BatchSchedule(
        effective.training.batch_size, effective.training.batch_schedule
    ).first_sample(810)
    assert samples == 100 * 32 + 400 * 48 + 300 * 16 + 10 * 24


@pytest.mark.parametrize(
    "text",
    ["", '{"model": ', "[]", '{"model": {"layer": 2}}', '{"seed": 0}', '{"store": 1}', "\x80"],
)
def test_a_damaged_config_is_one_line_that_names_it(directory, text):
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        run_config.resume_config(directory, config(), 10)
    assert str(error.value).startswith(f"{directory}/config.json:") and "\n" not in str(error.value)


def test_a_missing_config_is_not_taken_for_another_file(directory):
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").unlink(missing_ok=True)
    (directory / "tokenizer.json").touch()
    with pytest.raises(ConfigError) as error:
        run_config.resume_config(directory, config(), 10)
    assert str(error.value) == (
        f"{directory}/config.json: is missing, and it says which run the checkpoints belong to: "
        "put it back, or choose another run_directory"
    )


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"^run_directory: can't write .*/file/config\.json: Not a directory"
    ):
        run_config.write_run_config(tmp_path / "file", config(), "h", {})


def test_the_mixture_may_change_and_is_left_to_its_plan(directory):
    run_config.write_run_config(directory, config(), "h", {})
    edits = (
        "data.sources.0.weight=2",
        "data.mixture_schedule=[[5, [3.0]]]",
    )
    for edited in (config(*edits), config("data.mixture_temperature=2")):
        assert run_config.resume_config(directory, edited, 10) == (edited, [])
