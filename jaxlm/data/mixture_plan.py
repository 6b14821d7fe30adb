"""Find the weights of a run's sources, and describe the mixture before training.

Weights follow from the sizes of the sources where `tokens`, `max_epochs`, a temperature or a cap
are set: how many samples the run shall read of each source, divided by all. A resumed run counts
what it has read, so that the whole run meets what is asked for, and keeps the samples before.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlm.columns import align_columns
from jaxlm.config import Config, ConfigError, DataConfig
from jaxlm.data.mixture import MixtureStages
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule

# Samples by which the count of a source may miss what is asked for: this share of them, and one for
# each source. The shares of a stage have no smaller error.
ERROR = 1e-3
ALL_TOKENS_ERROR = 0.01  # by which the tokens of all sources may differ from those of the run
DIGITS = 9  # of the weights that are found


class SourceSize(NamedTuple):
    """The training split of a source."""

    name: str
    tokens: int
    samples: int  # of an epoch
    examples: int | None = None  # of a source of examples, which may share rows. None: samples


def plan_mixture(
    config: Config,
    sizes: Sequence[SourceSize],
    saved: Config | None = None,
    step: int = 0,
) -> MixtureSchedule:
    """Return the weights at each step of a run, resumed after `step` if it has a `saved` config.

    Before `step` they are those of `saved`. Raises ConfigError where the sources can't give the
    samples that are asked for, or where an edited weight would have no effect.
    """
    data, batches = config.data, batch_schedule(config)
    asked = MixtureSchedule(data.weights, data.mixture_schedule)
    total = batches.first_sample(config.training.steps)
    if saved is None or not step:
        if data.mixes_by_size and not asked.begins_with_change:
            counts = divide_samples(data, sizes, total, [0] * len(sizes))
            asked = asked._replace(changes=((0, shares_of(counts)),))
        return asked

    earlier = MixtureSchedule(saved.data.weights, saved.data.mixture_schedule)
    is_recorded = asked.changes == earlier.changes  # the saved config.json goes on
    if not data.mixes_by_size or (asked.changes and not is_recorded):
        if is_recorded:
            check_weights(asked, earlier, step)
        return earlier.merged(asked, step)

    # Read what is left so that the whole run has what is asked for. The schedule of the run stays
    # if it does so already, however its samples divide up.
    mixture = MixtureStages(earlier, batches)
    seen = mixture.count_samples(batches.first_sample(step))
    counts = divide_samples(data, sizes, total - sum(seen), seen)
    wanted = [start + count for start, count in zip(seen, counts, strict=True)]
    if all(
        abs(count - planned) <= ERROR * count + len(sizes)
        for count, planned in zip(wanted, mixture.count_samples(total), strict=True)
    ):
        return earlier
    return earlier.merged(earlier._replace(changes=((step, shares_of(counts)),)), step)


def batch_schedule(config: Config) -> BatchSchedule:
    """Return the batch sizes of a config, by step."""
    return BatchSchedule(config.training.batch_size, config.training.batch_schedule)


def check_weights(asked: MixtureSchedule, earlier: MixtureSchedule, step: int) -> None:
    """Refuse weights of the sources that differ where the recorded schedule has the say."""
    if not any(start <= step for start, _ in asked.changes):
        return
    for number, (weight, old) in enumerate(zip(asked.weights, earlier.weights, strict=True)):
        if weight != old:
            reason = f"{old:g} -> {weight:g} has no effect after step {step}"
            advice = "data.mixture_schedule sets the weights there: change it instead"
            raise ConfigError(f"data.sources.{number}.weight", f"{reason}: {advice}")


def record_mixture(config: Config, mixture: MixtureSchedule) -> Config:
    """Return the config that gives the mixture, whatever the sizes of the sources.

    `tokens`, `max_epochs`, the temperature and the cap stay beside a schedule that begins at step
    0. A run that began with weights keeps these, and what it was asked for since is in the
    schedule.
    """
    changed: dict[str, Any] = {"mixture_schedule": mixture.changes}
    if not mixture.begins_with_change:
        changed |= {"mixture_temperature": None, "mixture_cap": None}
        changed["sources"] = tuple(
            dataclasses.replace(source, weight=weight, tokens=None, max_epochs=None)
            for source, weight in zip(config.data.sources, mixture.weights, strict=True)
        )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changed))


# The samples of each source


def divide_samples(
    data: DataConfig, sizes: Sequence[SourceSize], samples: int, seen: Sequence[int]
) -> list[float]:
    """Return how many of the next `samples` each source shall give, after `seen` of them.

    Sources with `tokens` get these, the others divide the rest by weight or size, up to
    `max_epochs`. Raises ConfigError where that is too much or too little.
    """
    slack = ERROR * samples + len(sizes)
    counts = [0.0] * len(sizes)
    for number, (source, size) in enumerate(zip(data.sources, sizes, strict=True)):
        if source.tokens is not None:
            wanted = source.tokens * size.samples / size.tokens
            if seen[number] - wanted > slack:
                read = f"{round(seen[number] * size.tokens / size.samples):,}"
                reason = f"{source.tokens:,} is less than the {read} that the run has read"
                raise ConfigError(f"data.sources.{number}.tokens", reason)
            counts[number] = max(wanted - seen[number], 0.0)

    others = [number for number, source in enumerate(data.sources) if source.tokens is None]
    rest = samples - sum(counts)
    first = next((number for number in range(len(sizes)) if number not in others), 0)
    asked = f"the sources with tokens have {sum(counts):,.0f} samples to give"
    steps = f"the steps to come read {samples:,}"
    if rest < -(slack if others else ALL_TOKENS_ERROR * samples + len(sizes)):
        reason = f"{asked}, but {steps}: lower it, or raise training.steps"
        raise ConfigError(f"data.sources.{first}.tokens", reason)
    if not others:
        if rest > ALL_TOKENS_ERROR * samples + len(sizes):
            reason = f"{asked}, but {steps}: leave out the tokens of a source, which gets the rest"
            raise ConfigError(f"data.sources.{first}.tokens", reason)
        return counts

    weights = [base_weight(data, sizes, number) for number in others]
    rooms = [room_of(data, sizes, number, seen) for number in others]
    shared = fill_up(weights, rooms, max(rest, 0.0))
    if rest - sum(shared) > slack:
        capped = next(number for number in others if data.sources[number].max_epochs is not None)
        reason = (
            f"the sources have {sum(rooms):,.0f} samples left, but {steps}: raise it, or lower "
            "training.steps"
        )
        raise ConfigError(f"data.sources.{capped}.max_epochs", reason)

    for number, count in zip(others, shared, strict=True):
        counts[number] = count
    return counts


def base_weight(data: DataConfig, sizes: Sequence[SourceSize], number: int) -> float:
    """Return the weight of a source before the bounds: its own, or one that follows from its size.

    The size is that in tokens, or min(examples, data.mixture_cap), as T5 (arXiv 1910.10683, section
    3.5.2) and FLAN (2109.01652) mix tasks; the weight is size^(1 / temperature). Where examples
    share rows, it is divided by the examples of a row. Sizes are relative to the largest, so that
    no power is too large for a float.
    """
    cap, temperature = data.mixture_cap, data.mixture_temperature or 1.0
    if cap is None and data.mixture_temperature is None:
        return data.sources[number].weight
    counts = [size.tokens if cap is None else min(count_examples(size), cap) for size in sizes]
    weight = (counts[number] / max(counts)) ** (1 / temperature)
    if cap is None:
        return weight
    return weight * sizes[number].samples / count_examples(sizes[number])


def count_examples(size: SourceSize) -> int:
    """Return the examples of a source; of running text, each sample is one."""
    return size.samples if size.examples is None else size.examples


def room_of(
    data: DataConfig, sizes: Sequence[SourceSize], number: int, seen: Sequence[int]
) -> float:
    """Return how many more samples a source may give."""
    most = data.sources[number].max_epochs
    return math.inf if most is None else max(most * sizes[number].samples - seen[number], 0.0)


def fill_up(weights: Sequence[float], rooms: Sequence[float], samples: float) -> list[float]:
    """Divide `samples` in proportion to weights, none beyond its room.

    What exceeds a room goes to the others in proportion. The sum is less than `samples` where all
    rooms are full.
    """
    counts, full = [0.0] * len(weights), set[int]()
    while True:
        rest = samples - sum(counts[number] for number in full)
        open_weight = sum(weight for i, weight in enumerate(weights) if i not in full)
        if open_weight <= 0:
            return counts

        for number, weight in enumerate(weights):
            if number not in full:
                counts[number] = rest * weight / open_weight
        exceeding = [i for i, room in enumerate(rooms) if i not in full and counts[i] > room]
        if not exceeding:
            return counts
        for number in exceeding:
            counts[number] = rooms[number]
        full.update(exceeding)


def shares_of(counts: Sequence[float]) -> tuple[float, ...]:
    """Return counts as parts of their sum. A source of a zero count gets none."""
    total = sum(counts)
    return tuple(round(count / total, DIGITS) for count in counts)


# The table before training


def describe_mixture(
    sizes: Sequence[SourceSize], mixture: MixtureSchedule, batches: BatchSchedule, steps: int
) -> list[dict[str, Any]]:
    """Return what a run of `steps` reads of each source, as JSON data.

    Each row has `source`, `tokens` of its training split, `share` of the samples, `samples`,
    `tokens_read` and `epochs` over the whole run. `stages` has (first step, share) of each change.
    """
    stages = MixtureStages(mixture, batches)
    total = batches.first_sample(steps)
    starts = [0, *(step for step, _ in mixture.changes if 0 < step < steps), steps]
    totals = [stages.count_samples(batches.first_sample(step)) for step in starts]

    rows = []
    for number, size in enumerate(sizes):
        samples = totals[-1][number]
        shares = []
        for first, last in zip(range(len(starts) - 1), range(1, len(starts)), strict=True):
            stage = batches.first_sample(starts[last]) - batches.first_sample(starts[first])
            shares.append([starts[first], (totals[last][number] - totals[first][number]) / stage])
        epochs = samples / size.samples
        rows.append(
            {
                "source": size.name,
                "tokens": size.tokens,
                "share": samples / total,
                "samples": samples,
                "tokens_read": round(epochs * size.tokens),
                "epochs": epochs,
                "stages": shares,
            }
        )
    return rows


def format_mixture(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of a mixture: a line for each source, and one for all."""
    steps = [step for step, _ in rows[0]["stages"]] if len(rows[0]["stages"]) > 1 else []
    lines = [["source", "tokens", "share", *(f"from step {step + 1}" for step in steps)]]
    lines[0] += ["tokens read", "epochs"]
    for row in rows:
        shares = [f"{share:.2%}" for _, share in row["stages"]] if steps else []
        line = [row["source"], f"{row['tokens']:,}", f"{row['share']:.2%}", *shares]
        lines.append([*line, f"{row['tokens_read']:,}", f"{row['epochs']:.2f}"])

    if len(rows) > 1:
        tokens, read = (sum(row[key] for row in rows) for key in ("tokens", "tokens_read"))
        empty = [""] * len(steps)
        lines.append(["all", f"{tokens:,}", "100.00%", *empty, f"{read:,}", f"{read / tokens:.2f}"])
    return align_columns(lines)


def describe_change(
    names: Sequence[str], saved: DataConfig, after: MixtureSchedule, step: int
) -> list[str]:
    """Return lines on what a resume after `step` changes in the mixture; [] if nothing."""
    before = MixtureSchedule(saved.weights, saved.mixture_schedule)
    if before == after:
        return []

    old, new = before.at(step), after.at(step)
    parts = [
        f"{name} {weight / sum(old):.2%} -> {other / sum(new):.2%}"
        for name, weight, other in zip(names, old, new, strict=True)
    ]
    lists = [[[start, list(weights)] for start, weights in m.changes] for m in (before, after)]
    schedule = f"data.mixture_schedule: {lists[0]} -> {lists[1]}"
    return [schedule, f"mixture from step {step + 1}: {', '.join(parts)}"]
