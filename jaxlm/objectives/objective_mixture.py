"""Mix objectives of one family: each sample has one of them, drawn by weight."""

import numpy as np

from jaxlm import counter_rng
from jaxlm.config import ConfigError, ObjectiveConfig
from jaxlm.objectives import random_ops
from jaxlm.objectives.objective import BuildObjective, Objective, Vocabulary
from jaxlm.types import Array, Batch


def build(
    config: ObjectiveConfig,
    sequence_length: int,
    vocabulary: Vocabulary,
    build_part: BuildObjective,
) -> Objective:
    """Build the objective that takes part i of the mixture with probability weight i / sum.

    The part follows from the seed and the number of the sample. A window is as long as the longest
    of the parts, and each part reads its own first tokens of it. Windows are as far apart as those
    of the narrowest part, so that none leaves text out. Batches have the fields of all parts and
    the shapes of the longest, padded, with weights of 0 behind the targets.
    """
    parts = build_parts(config, sequence_length, vocabulary, build_part)
    weights = np.array([part.weight for part in config.mixed])
    thresholds = part_thresholds(weights)
    # Every kind fills the source that it is given, so none is padded here.
    source_length = parts[0].source_length
    assert all(part.source_length == source_length for part in parts)

    def make_batch(windows: np.ndarray, samples: np.ndarray, seed: int) -> Batch:
        bits = counter_rng.random_bits(seed, samples, counter_rng.OBJECTIVE_PART, 0)
        chosen = np.searchsorted(thresholds, random_ops.high_bits(bits), side="right")

        # A part without a sample makes one all the same: the fields and shapes of a batch are
        # those of all parts.
        rows, batches = [], []
        for number, part in enumerate(parts):
            part_rows = np.flatnonzero(chosen == number)
            rows.append(part_rows)
            made = part_rows if len(part_rows) else np.zeros(1, np.int64)
            text = np.ascontiguousarray(windows[made, : part.window])
            batches.append(part.make_batch(text, samples[made], seed))
        return join_batches(batches, rows, parts, vocabulary.pad)

    return Objective(
        window=max(part.window for part in parts),
        stride=min(part.stride for part in parts),
        length=max(part.length for part in parts),
        source_length=source_length,
        predictions=max(part.predictions for part in parts),
        make_batch=make_batch,
    )


def build_parts(
    config: ObjectiveConfig,
    sequence_length: int,
    vocabulary: Vocabulary,
    build_part: BuildObjective,
) -> list[Objective]:
    """Build the parts. The errors of a part that the config lists name it by its number."""
    parts = []
    for number, part in enumerate(config.mixed):
        try:
            parts.append(build_part(part, sequence_length, vocabulary))
        except ConfigError as error:
            if not config.parts or not error.path.startswith("objective."):
                raise
            key = error.path.replace("objective.", f"objective.parts.{number}.", 1)
            raise ConfigError(key, error.reason) from error
    return parts


def part_thresholds(weights: np.ndarray) -> np.ndarray:
    """Return the cumulative shares of all parts but the last, times 2**32; uint64 [n - 1].

    The number of thresholds at or below 32 random bits is the number of the part.
    """
    # Divided first, so that no sum of large weights overflows.
    shares = np.cumsum(weights / weights.max())
    return np.rint(shares[:-1] / shares[-1] * 2.0**32).astype(np.uint64)


def join_batches(
    batches: list[Batch], rows: list[np.ndarray], parts: list[Objective], pad: int | None
) -> Batch:
    """Return one batch with the first samples of each batch at its `rows`."""
    count = sum(map(len, rows))
    fields = {}
    for field in Batch._fields:
        arrays = [getattr(batch, field) for batch in batches]
        present = [array for array in arrays if array is not None]
        if not present:
            continue

        shape = (count, *np.max([array.shape[1:] for array in present], axis=0).astype(int))
        fill = (pad or 0) if field in ("tokens", "source") else 0
        joined = np.full(shape, fill, present[0].dtype)
        for array, part_rows, part in zip(arrays, rows, parts, strict=True):
            if array is None:
                joined[part_rows] = absent_values(field, part, shape[1:])
            else:
                joined[(part_rows, *map(slice, array.shape[1:]))] = array[: len(part_rows)]
        fields[field] = joined
    return Batch(**fields)


def absent_values(field: str, part: Objective, shape: tuple[int, ...]) -> Array:
    """Return what a field that a part does not make means for its samples; broadcasts to `shape`.

    A text of one segment, without a prefix that is read in both directions, whose positions count
    up and whose length is that of the part.
    """
    lengths = {"lengths": part.length, "source_lengths": part.source_length}
    if field in lengths:
        return lengths[field]
    return np.arange(*shape) if field in ("positions", "source_positions") else 0
