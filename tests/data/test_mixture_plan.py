"""The weights of a run: from sizes, in stages, and after a resume."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_arrays import write_numbered

from jaxlm import config, data, objectives
from jaxlm.config import Config, ConfigError, DataConfig, SourceConfig, TrainingConfig
from jaxlm.data import SourceSize
from jaxlm.data.mixture import MixtureStages
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.data.stream import Stream

LENGTH = 100  # tokens of a sample here


def sized(tokens: dict[str, int]) -> list[SourceSize]:
    return [SourceSize(name, count, count // LENGTH) for name, count in tokens.items()]


def run_of(*sources: dict, steps: int = 1000, batch: int = 100, **mixture) -> Config:
    """Return a config of sources a, b, ... with these fields."""
    return Config(
        data=DataConfig(
            sources=tuple(
                SourceConfig(name=chr(97 + number), path="x", **fields)
                for number, fields in enumerate(sources)
            ),
            **mixture,
        ),
        training=TrainingConfig(steps=steps, batch_size=batch),
    )


def batches_of(run: Config) -> BatchSchedule:
    return BatchSchedule(run.training.batch_size, run.training.batch_schedule)


def counts_of(run: Config, mixture: MixtureSchedule) -> list[int]:
    batches = batches_of(run)
    return MixtureStages(mixture, batches).count_samples(batches.first_sample(run.training.steps))


def rows_of(run: Config, sizes: list[SourceSize]) -> list[dict]:
    mixture = data.plan_mixture(run, sizes)
    return data.describe_mixture(sizes, mixture, batches_of(run), run.training.steps)


# GPT-3, arXiv 2005.14165, table 2.2: tokens and weights of the sources, epochs over 300B tokens
GPT3 = {
    "Common Crawl": (410e9, 60, 0.44),
    "WebText2": (19e9, 22, 2.9),
    "Books1": (12e9, 8, 1.9),
    "Books2": (55e9, 8, 0.43),
    "Wikipedia": (3e9, 3, 3.4),
}


# Rows that don't follow from the tokens and the weights of the table itself: 22% of 300B tokens are
# 3.5 epochs of 19B, 3% are 3 of 3B.
INCONSISTENT = ("WebText2", "Wikipedia")


class FakeArray:
    """As many tokens as one likes, of which none is there."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def start_count(self, objective) -> int:
        return self.tokens - objective.window + 1


def test_the_epochs_of_gpt3_follow_from_its_weights():
    """Within the two digits of the table, whose weights add up to 101%."""
    objective = config.ObjectiveConfig()
    vocabulary = objectives.Vocabulary(50257, 50256, special=np.arange(50257) >= 50256)
    causal = objectives.build(objective, 2048, vocabulary)
    weights = [weight for _, weight, _ in GPT3.values()]
    arrays = [FakeArray(int(tokens)) for tokens, _, _ in GPT3.values()]
    batches = BatchSchedule(1536)
    stream = Stream(
        arrays,  # type: ignore[arg-type]
        weights=weights,
        names=list(GPT3),
        objective=causal,
        schedule=batches,
        seed=0,
    )
    sizes = [
        SourceSize(name, array.tokens, stream.epoch_samples(number))
        for number, (name, array) in enumerate(zip(GPT3, arrays, strict=True))
    ]
    steps = round(300e9 / (1536 * 2048))
    rows = data.describe_mixture(sizes, stream.mixture.schedule, batches, steps)
    for row, (tokens, weight, epochs) in zip(rows, GPT3.values(), strict=True):
        exact = 300e9 * weight / sum(weights) / tokens
        assert row["epochs"] == pytest.approx(exact, rel=0.005), row["source"]
        if row["source"] not in INCONSISTENT:
            assert row["epochs"] == pytest.approx(epochs, rel=0.05), row["source"]
    assert sum(row["tokens_read"] for row in rows) == pytest.approx(300e9, rel=1e-5)


def test_the_table_has_a_line_for_each_source():
    sizes = sized({"a": 1_000_000, "b": 10_000_000})
    run = run_of({"weight": 3.0}, {}, mixture_schedule=((500, (0.0, 1.0)),))
    rows = rows_of(run, sizes)
    assert json.loads(json.dumps(rows)) == rows
    assert data.format_mixture(rows).splitlines() == [
        "source      tokens    share  from step 1  from step 501  tokens read  epochs",
        "a        1,000,000   37.50%       75.00%          0.00%    3,750,000    3.75",
        "b       10,000,000   62.50%       25.00%        100.00%    6,250,000    0.62",
        "all     11,000,000  100.00%                               10,000,000    0.91",
    ]


# Stages

schedules = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.7, 1000.0]), min_size=3, max_size=3).filter(any),
    ),
    max_size=4,
    unique_by=lambda change: change[0],
)


@settings(deadline=None, max_examples=25)
@given(schedules, st.integers(0, 700))
def test_stages_equal_counting(changes, first):
    schedule = MixtureSchedule(
        (2.0, 1.0, 1.0), tuple((step, tuple(weights)) for step, weights in sorted(changes))
    )
    stages = MixtureStages(schedule, BatchSchedule(7, ((5, 12),)))
    sources, numbers = stages(np.arange(first + 300))
    seen = [0, 0, 0]
    for source, number in zip(sources.tolist(), numbers.tolist(), strict=True):
        assert number == seen[source]  # no source starts anew
        seen[source] += 1
    assert stages.count_samples(first + 300) == seen
    window = stages(np.arange(first, first + 300))
    assert np.array_equal(window, (sources[first:], numbers[first:]))
    far = 10**30
    assert sum(stages.count_samples(far)) == far


@settings(deadline=None, max_examples=60)
@given(schedules, schedules, st.integers(0, 45))
def test_merged_weights_are_those_before_the_step_and_the_others_after(changes, others, step):
    one, other = (
        MixtureSchedule((2.0, 1.0, 1.0), tuple((at, tuple(w)) for at, w in sorted(stages)))
        for stages in (changes, others)
    )
    merged = one.merged(other, step)
    steps = [at for at, _ in merged.changes]
    assert steps == sorted(set(steps))
    for at in range(60):
        expected = np.array((one if at < step else other).at(at))
        found = np.array(merged.at(at))
        assert found / found.sum() == pytest.approx(expected / expected.sum())
    assert one.merged(one, step) == one


def test_shares_over_1000_batches_are_those_of_the_weights():
    weights = (0.6, 0.22, 0.08, 0.07, 0.03)
    schedule = MixtureSchedule((1.0,) * 5, ((1000, weights),))
    batches = BatchSchedule(32)
    stages = MixtureStages(schedule, batches)
    sources, _ = stages(np.arange(batches.first_sample(1000), batches.first_sample(2000)))
    shares = np.bincount(sources, minlength=5) / len(sources)
    assert shares == pytest.approx(weights, rel=0.005)


def test_a_source_of_weight_0_is_not_read_before_its_stage(tmp_path):
    arrays = [
        write_numbered(tmp_path / "a", 901),
        write_numbered(tmp_path / "b", 501, first=5000),
    ]
    vocabulary = objectives.Vocabulary(9000, 8999, special=np.arange(9000) >= 8999)
    causal = objectives.build(config.ObjectiveConfig(), 10, vocabulary)
    parts = {"names": ["a", "b"], "objective": causal, "schedule": BatchSchedule(50), "seed": 1}
    plain = Stream(arrays, weights=[1.0, 1.0], **parts)
    stream = Stream(arrays, weights=[1.0, 0.0], **parts)
    stream.set_mixture(MixtureSchedule((1.0, 0.0), ((3, (0.0, 1.0)),)))
    tokens = [np.asarray(stream[step].tokens)[:, 0] for step in range(5)]
    assert np.concatenate(tokens[:3]).max() < 5000 <= np.concatenate(tokens[3:]).min()

    # Each source is read in the order that it has in any mixture.
    both = np.concatenate([np.asarray(plain[step].tokens)[:, 0] for step in range(4)])
    assert np.array_equal(tokens[3], both[both >= 5000][:50])


# Weights from sizes


@pytest.mark.parametrize(
    ("temperature", "expected"),
    # size^(1/T): the square roots of 16 : 4 : 1 at T = 2, sizes at 1, equal shares far above
    [(1.0, (16, 4, 1)), (2.0, (4, 2, 1)), (1e9, (1, 1, 1))],
)
def test_a_temperature_flattens_the_sizes(temperature, expected):
    sizes = sized({"a": 16_000_000, "b": 4_000_000, "c": 1_000_000})
    rows = rows_of(run_of({}, {}, {}, mixture_temperature=temperature), sizes)
    assert [row["share"] for row in rows] == pytest.approx(
        np.array(expected) / sum(expected), rel=2e-3
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    # T5's r = min(examples, cap)^(1/T), arXiv 1910.10683, section 3.5.2
    [
        ({"mixture_cap": 3000}, (3000, 3000, 200)),
        ({"mixture_cap": 10_000_000}, (160_000, 40_000, 200)),
        ({"mixture_cap": 1}, (1, 1, 1)),
        ({"mixture_cap": 3200, "mixture_temperature": 2.0}, (4, 4, 1)),
    ],
)
def test_a_cap_bounds_the_examples_of_large_tasks(fields, expected):
    sizes = sized({"a": 16_000_000, "b": 4_000_000, "c": 20_000})
    rows = rows_of(run_of({}, {}, {}, **fields), sizes)
    assert [row["share"] for row in rows] == pytest.approx(
        np.array(expected) / sum(expected), rel=2e-3
    )


def test_a_cap_counts_the_examples_of_rows():
    """Both sources give as many examples, of which ten of the first share a row."""
    sizes = [SourceSize("a", 50_000, 500, 5000), SourceSize("b", 500_000, 5000, 5000)]
    first, second = rows_of(run_of({}, {}, mixture_cap=2000), sizes)
    assert first["samples"] * 10 == pytest.approx(second["samples"], rel=2e-3)


def test_a_resumed_run_keeps_the_mixture_of_its_cap():
    sizes = sized({"a": 4_000_000, "b": 1_000_000})
    run = run_of({}, {}, mixture_cap=20_000)
    mixture = data.plan_mixture(run, sizes)
    saved = data.record_mixture(run, mixture)
    assert saved.data.mixture_cap == 20_000 and saved.data.mixture_schedule
    assert data.plan_mixture(saved, sizes, saved, 500) == mixture
    # Another cap from step 500 on: 2 to 1 until then, and equal parts of the rest.
    edited = dataclasses.replace(saved, data=dataclasses.replace(run.data, mixture_cap=10_000))
    counts = counts_of(edited, data.plan_mixture(edited, sizes, saved, 500))
    assert counts == pytest.approx([50_000 * 2 / 3 + 25_000, 50_000 / 3 + 25_000], rel=2e-3)


def test_a_large_and_a_small_language_in_the_proportion_of_xlm_r():
    """Shares go by size^0.3 (arXiv 1911.02116)."""
    sizes = sized({"a": 55_608_000_000, "b": 275_000_000})
    rows = rows_of(run_of({}, {}, mixture_temperature=1 / 0.3, batch=10_000), sizes)
    ratio = rows[1]["share"] / rows[0]["share"]
    assert ratio == pytest.approx((275 / 55_608) ** 0.3, rel=3e-3)


def test_tokens_are_those_of_the_whole_run():
    sizes = sized({"a": 3_000_000, "b": 8_000_000, "c": 50_000})
    run = run_of({"tokens": 250_000}, {"weight": 3.0}, {"weight": 1.0})
    rows = rows_of(run, sizes)
    read = [row["tokens_read"] for row in rows]
    assert read == pytest.approx([250_000, 0.75 * 9_750_000, 0.25 * 9_750_000], rel=2e-3)


def test_what_exceeds_the_epochs_goes_to_the_others_in_proportion():
    sizes = sized({"a": 100_000, "b": 90_000_000, "c": 90_000_000})
    run = run_of({"weight": 2.0, "max_epochs": 4.0}, {"weight": 1.0}, {"weight": 3.0})
    rows = rows_of(run, sizes)
    assert rows[0]["epochs"] == pytest.approx(4, rel=2e-3)
    assert rows[2]["tokens_read"] / rows[1]["tokens_read"] == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize(
    ("sources", "steps", "message"),
    [
        (
            [{"tokens": 11_000_000}, {}],
            1000,
            "data.sources.0.tokens: the sources with tokens have 110,000 samples to give, but the "
            "steps to come read 100,000: lower it, or raise training.steps",
        ),
        (
            [{"tokens": 1_000_000}, {"tokens": 2_000_000}],
            1000,
            "data.sources.0.tokens: the sources with tokens have 30,000 samples to give, but the "
            "steps to come read 100,000: leave out the tokens of a source, which gets the rest",
        ),
        (
            [{"max_epochs": 1.0}, {"max_epochs": 2.0}],
            1000,
            "data.sources.0.max_epochs: the sources have 30,000 samples left, but the steps to "
            "come read 100,000: raise it, or lower training.steps",
        ),
    ],
)
def test_too_much_or_too_little_is_one_line(sources, steps, message):
    with pytest.raises(ConfigError) as error:
        data.plan_mixture(run_of(*sources, steps=steps), sized({"a": 1_000_000, "b": 1_000_000}))
    assert str(error.value) == message


# Resumes

SIZES = sized({"a": 1_000_000, "b": 5_000_000})


def resumed(run: Config, saved: Config, step: int) -> Config:
    """Return the config that a resume after `step` records, as JSON gives it back."""
    mixture = data.plan_mixture(run, SIZES, saved, step)
    document = json.loads(json.dumps(config.to_dict(data.record_mixture(run, mixture))))
    kept = MixtureSchedule(saved.data.weights, saved.data.mixture_schedule)
    samples = np.arange(batches_of(run).first_sample(step))
    assert np.array_equal(
        MixtureStages(mixture, batches_of(run))(samples),
        MixtureStages(kept, batches_of(saved))(samples),
    )
    return config.apply_edits(Config(), [f"data={json.dumps(document['data'])}"])


def with_steps(run: Config, steps: int) -> Config:
    return dataclasses.replace(run, training=dataclasses.replace(run.training, steps=steps))


def test_changed_weights_are_appended_and_the_next_resume_keeps_them():
    saved, edited = run_of({}, {}), run_of({"weight": 3.0}, {})
    for step in (300, 700):
        saved = dataclasses.replace(edited, data=resumed(edited, saved, step).data)
        assert saved.data.weights == (1.0, 1.0)
        assert saved.data.mixture_schedule == ((300, (3.0, 1.0)),)
    back = resumed(run_of({}, {}), saved, 800)
    assert back.data.mixture_schedule == ((300, (3.0, 1.0)), (800, (1.0, 1.0)))


def test_a_change_is_shown_old_to_new():
    saved, edited = run_of({}, {}), run_of({"weight": 3.0}, {})
    mixture = data.plan_mixture(edited, SIZES, saved, 300)
    assert data.describe_change(["a", "b"], saved.data, mixture, 300) == [
        "data.mixture_schedule: [] -> [[300, [3.0, 1.0]]]",
        "mixture from step 301: a 50.00% -> 75.00%, b 50.00% -> 25.00%",
    ]
    same = data.plan_mixture(saved, SIZES, saved, 300)
    assert data.describe_change(["a", "b"], saved.data, same, 300) == []


def test_an_annealing_is_kept_or_moved():
    saved = run_of({}, {"weight": 0.0}, mixture_schedule=((800, (0.0, 1.0)),))
    assert resumed(saved, saved, 500).data.mixture_schedule == ((800, (0.0, 1.0)),)
    later = dataclasses.replace(saved.data, mixture_schedule=((900, (0.0, 1.0)),))
    moved = resumed(dataclasses.replace(saved, data=later), saved, 500)
    assert moved.data.mixture_schedule == ((900, (0.0, 1.0)),)


def test_a_weight_without_effect_is_refused():
    saved = run_of({}, {}, mixture_schedule=((300, (3.0, 1.0)),))
    edited = run_of({"weight": 2.0}, {}, mixture_schedule=((300, (3.0, 1.0)),))
    with pytest.raises(ConfigError, match=r"^data\.sources\.0\.weight: 1 -> 2 has no effect after"):
        data.plan_mixture(edited, SIZES, saved, 500)


@pytest.mark.parametrize("fields", [{"tokens": 500_000}, {"weight": 9.0, "max_epochs": 0.5}])
@pytest.mark.parametrize("recorded", [False, True])
def test_more_steps_keep_the_tokens_of_the_whole_run(fields, recorded):
    """Either the config of the start goes on or the recorded one, whose schedule says all."""
    start = run_of(fields, {})
    saved = dataclasses.replace(
        start, data=data.record_mixture(start, data.plan_mixture(start, SIZES)).data
    )
    assert saved.data.mixture_schedule[0][0] == 0
    again = saved if recorded else start
    assert resumed(again, saved, 990).data == saved.data  # nothing has changed

    longer = with_steps(again, 2000)
    for step in (600, 1700, 1999):
        saved = dataclasses.replace(longer, data=resumed(longer, saved, step).data)
        longer = dataclasses.replace(longer, data=saved.data) if recorded else longer
        assert [step for step, _ in saved.data.mixture_schedule] == [0, 600]
    mixture = MixtureSchedule(saved.data.weights, saved.data.mixture_schedule)
    assert counts_of(longer, mixture)[0] == pytest.approx(5000, rel=2e-3)


def test_a_temperature_at_resume_is_recorded_as_weights():
    saved, edited = run_of({"weight": 3.0}, {}), run_of({}, {}, mixture_temperature=1.0)
    for step in (200, 500):
        saved = dataclasses.replace(edited, data=resumed(edited, saved, step).data)
        assert saved.data.weights == (3.0, 1.0) and saved.data.mixture_temperature is None
        ((start, weights),) = saved.data.mixture_schedule
        assert start == 200 and weights == pytest.approx((1 / 6, 5 / 6), rel=2e-3)
