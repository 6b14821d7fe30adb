"""The largest microbatch that fits on a GPU, and what to change where a config does not fit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from jaxlm.config import Config, ConfigError
from jaxlm.config.mesh import mesh_sizes
from jaxlm.hardware import Accelerator, usable_memory
from jaxlm.plan.memory import MemoryEstimate, estimate_memory
from jaxlm.run_checks import check_mesh, check_sample

# Estimates that the search for the largest microbatch may take.
MOST_TRIES = 8
MOST_ROWS = 4096

# Policies of recomputation, from the cheapest to the one that keeps least.
REMAT = ("none", "weights", "dots", "full")


class Change(NamedTuple):
    """A change of a config, and the bytes that it leads to."""

    edits: tuple[str, ...]  # as they are written on the command line
    why: str  # what it costs
    total: int
    fits: bool


class Microbatch(NamedTuple):
    """Samples of a GPU that are computed together."""

    rows: int
    total: int  # bytes


def rows_per_gpu(config: Config, gpus: int) -> int:
    """Return the samples of a microbatch on each GPU."""
    sizes = mesh_sizes(config.parallel, gpus)
    shards = sizes["data"] * sizes["fsdp"]
    return config.training.batch_size // (shards * config.training.microbatches)


def with_rows(config: Config, gpus: int, rows: int) -> Config:
    """Return the config with so many samples of a microbatch on each GPU, in a larger batch."""
    sizes = mesh_sizes(config.parallel, gpus)
    shards = sizes["data"] * sizes["fsdp"]
    training = replace(
        config.training,
        batch_size=rows * shards * config.training.microbatches,
        batch_schedule=(),
    )
    return replace(
        config, training=training, evaluation=replace(config.evaluation, batch_size=None)
    )


def largest_microbatch(
    config: Config, gpus: int, accelerator: Accelerator, known: MemoryEstimate
) -> Microbatch | None:
    """Return the largest microbatch that fits, None where not even one sample does.

    `known` is the estimate for the config as it is. The bytes grow almost evenly with the samples,
    so that a few estimates find the limit; the number is exact by these estimates unless it is the
    last of MOST_TRIES.
    """
    limit = usable_memory(accelerator)
    totals = {rows_per_gpu(config, gpus): known.total}
    below, above = 0, MOST_ROWS + 1
    for _ in range(MOST_TRIES):
        fitting = [rows for rows, total in totals.items() if total <= limit]
        below = max(fitting, default=0)
        above = min((rows for rows in totals if rows > below), default=MOST_ROWS + 1)
        if above - below <= 1:
            break

        guess = guess_rows(totals, limit)
        rows = min(max(guess, below + 1), above - 1)
        totals[rows] = estimate_memory(with_rows(config, gpus, rows), gpus, accelerator).total

    fitting = [rows for rows, total in totals.items() if total <= limit]
    return Microbatch(max(fitting), totals[max(fitting)]) if fitting else None


def guess_rows(totals: dict[int, int], limit: int) -> int:
    """Return the samples at which the bytes would reach the limit, on a line through two totals.

    Those are the two nearest to the limit. With one total alone it is twice or half of its samples.
    """
    nearest = sorted(totals, key=lambda rows: abs(totals[rows] - limit))[:2]
    if len(nearest) == 1:
        rows = nearest[0]
        return 2 * rows if totals[rows] <= limit else max(1, rows // 2)
    first, second = sorted(nearest)
    slope = (totals[second] - totals[first]) / (second - first)
    return first + int((limit - totals[first]) / slope) if slope > 0 else 2 * second


# What to change


def suggest_changes(
    config: Config, gpus: int, accelerator: Accelerator, known: MemoryEstimate
) -> list[Change]:
    """Return the changes of a config that does not fit, from the cheapest on.

    Of each kind it is the smallest change that fits, or the largest if none does. If no single
    change fits, several together follow.
    """
    limit = usable_memory(accelerator)
    kinds = list(kinds_of_changes(config, gpus))
    apply_edit = {edit: apply for steps, _ in kinds for edit, apply in steps}

    def measure(edits: tuple[str, ...], why: str) -> Change | None:
        edited = config
        try:
            for edit in edits:
                edited = apply_edit[edit](edited)
            check_mesh(edited, gpus, 0)
            check_sample(edited)
            total = estimate_memory(edited, gpus, accelerator).total
        except (ConfigError, ValueError):
            return None
        return Change(edits, why, total, total <= limit)

    changes: list[Change] = []
    for steps, why in kinds:
        found = None
        for edit, _ in steps:
            found = measure((edit,), why) or found
            if found is not None and found.fits:
                break
        if found is not None and found.total < known.total:
            changes.append(found)

    if len(changes) > 1 and not any(change.fits for change in changes):
        together = combine(changes, measure)
        changes += [together] if len(together.edits) > 1 else []
    return changes


def combine(
    changes: list[Change], measure: Callable[[tuple[str, ...], str], Change | None]
) -> Change:
    """Return several of the changes together: the best one, and all that lower it further."""
    best, *others = sorted(changes, key=lambda change: change.total)
    for change in others:
        together = measure(best.edits + change.edits, "several of them together")
        if together is not None and together.total < best.total:
            best = together
    return best


Steps = list[tuple[str, Callable[[Config], Config]]]


def kinds_of_changes(config: Config, gpus: int) -> Iterator[tuple[Steps, str]]:
    """Yield the steps of each kind of change, from the smallest on, and what it costs."""
    training, parallel = config.training, config.parallel

    def edit(section: str, name: str, value: int | str) -> tuple[str, Callable[[Config], Config]]:
        def apply(config: Config) -> Config:
            changed = replace(getattr(config, section), **{name: value})
            return replace(config, **{section: changed})

        return f"{section}.{name}={value}", apply

    rows = rows_per_gpu(config, gpus)
    divisors = [n for n in range(2, rows + 1) if rows % n == 0]
    smaller = [edit("training", "microbatches", training.microbatches * n) for n in divisors]
    yield halves(smaller), "smaller products, which keep a GPU less busy"

    later = REMAT[REMAT.index(parallel.remat) + 1 :]
    policies = [edit("parallel", "remat", policy) for policy in later]
    yield policies, "blocks are computed again in the backward pass"

    if gpus > 1:
        stages = [edit("parallel", "zero", stage) for stage in range(parallel.zero + 1, 4)]
        yield stages, "stage 3 sends half as much again between GPUs"

        sizes = [parallel.tensor * n for n in (2, 4, 8) if parallel.tensor * n <= gpus]
        shards = [edit("parallel", "tensor", size) for size in sizes]
        yield shards, "activations travel in every layer"

    length = config.data.sequence_length
    shorter = [edit("data", "sequence_length", length // n) for n in (2, 4) if length // n >= 64]
    yield shorter, "the model sees less text at a time"


def halves(steps: Steps) -> Steps:
    """Return at most four of the steps: the first, the last, and some between them."""
    if len(steps) <= 4:
        return steps
    last = len(steps) - 1
    return [steps[round(last * n / 3)] for n in range(4)]
