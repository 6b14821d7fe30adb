"""The log-probabilities of a reference: computed once, before the first step, and stored.

An objective of preferences compares the model with what it was before (DPO, arXiv 2305.18290). The
pairs of a store are scored by the weights that the run starts from. The file belongs to the run.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from jaxlm.config import UserError
from jaxlm.data import Store
from jaxlm.data.example_array import ExampleArray
from jaxlm.data.loader import LocalBatches
from jaxlm.evaluation.validation import evaluation_batch_size
from jaxlm.losses import tile_length
from jaxlm.mesh_execution import on_each_device
from jaxlm.objectives import Objective
from jaxlm.preference import answer_log_probabilities
from jaxlm.progress import Progress
from jaxlm.run import Run
from jaxlm.runtime import ProcessGroup
from jaxlm.sharding import BATCH
from jaxlm.types import Array, Batch, Tree

REFERENCE_FILE = "reference.safetensors"


class Pairs:
    """All pairs of an array in order, in batches of `batch_size`; the last one repeats a pair."""

    def __init__(self, array: ExampleArray, objective: Objective, batch_size: int):
        self.array, self.objective, self.batch_size = array, objective, batch_size

    def __len__(self) -> int:
        return -(-self.array.start_count(self.objective) // self.batch_size)

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`."""
        return self.batch_size

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """Return the rows from `start` up to `stop` of batch `index`."""
        numbers = index * self.batch_size + np.arange(start, stop)
        numbers = np.minimum(numbers, self.array.start_count(self.objective) - 1)
        return self.objective.make_batch(
            self.array.read_samples(numbers, self.objective), numbers, 0
        )


def use_reference(
    run: Run,
    store: Store,
    objective: Objective,
    group: ProcessGroup,
    params: Tree | None,
) -> None:
    """Give the pairs of a store the log-probabilities of the run's reference.

    With `params` these are computed by them, and the leading process writes the file. Without, as
    for a run that is resumed, they are read. Raises UserError where the file is not that of these
    pairs, or can't be written.
    """
    arrays = {
        f"{split}.{number}": array
        for split, parts in (("train", store.train), ("validation", store.validation))
        for number, array in enumerate(parts)
        if isinstance(array, ExampleArray)
    }
    path = group.run_directory / REFERENCE_FILE
    if params is None:
        sizes = {name: array.start_count(objective) for name, array in arrays.items()}
        values = read_reference(path, sizes)
    else:
        values = score_all(run, list(arrays.items()), objective, params)
        if group.is_leader:
            try:
                save_file(values, path)
            except OSError as error:
                raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error

    for name, array in arrays.items():
        array.reference = values[name]


def read_reference(path: Path, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the stored values, float32 [pairs, 2] of each array.

    Raises UserError if the file is missing or damaged, or has other arrays.
    """
    try:
        values = load_file(path)
    except FileNotFoundError:
        reason = "is missing, and the loss is relative to it: put it back"
        raise UserError(f"{path}: {reason}, or choose another run_directory") from None
    except Exception as error:  # SafetensorError is no class of a module
        raise UserError(f"{path}: damaged: {error}") from error
    shapes = {name: value.shape for name, value in values.items()}
    if shapes != {name: (size, 2) for name, size in sizes.items()}:
        raise UserError(f"{path}: is not that of these pairs: choose another run_directory")
    return values


def build_scorer(run: Run, params: Tree) -> Callable[[Tree, Batch], Array]:
    """Build the jitted function from parameters and a batch to log-probabilities [B, 2].

    Only the shapes of `params` are read.
    """
    model, placement = run.model, run.placement

    def device_answers(params: Tree, batch: Batch) -> Array:
        rows, positions = batch.targets.shape  # type: ignore[union-attr]
        tile = tile_length(
            rows=rows,
            positions=positions,
            vocabulary_size=model.config.vocabulary_size,
            requested=run.config.training.loss_tile,
            tile_bytes=run.tile_bytes,
        )
        return answer_log_probabilities(model, params, batch, None, tile)

    return jax.jit(
        on_each_device(placement, device_answers, params, out=P(BATCH)),
        in_shardings=(placement.tree("parameters", params), placement.batch()),
        out_shardings=placement.replicated(),
        compiler_options=run.compiler_options,
    )


def score_all(
    run: Run, arrays: Sequence[tuple[str, ExampleArray]], objective: Objective, params: Tree
) -> dict[str, np.ndarray]:
    """Return the log-probabilities of the answers of all pairs, float32 [pairs, 2] by name."""
    score, placement = build_scorer(run, params), run.placement
    batch_size = evaluation_batch_size(run.config)
    batch_size += -batch_size % placement.batch_shards

    progress = Progress(sum(array.start_count(objective) for _, array in arrays))
    done, values = 0, {}
    for name, array in arrays:
        batches = LocalBatches(Pairs(array, objective, batch_size), placement.rows)
        parts = []
        for index in range(len(batches)):
            # Sync: two numbers of each pair, before the first step.
            parts.append(jax.device_get(score(params, placement.put(batches[index]))))
            done = min(done + batch_size, progress.total)
            progress.update(done, f"reference: {done:,} of {progress.total:,} pairs")
        values[name] = np.concatenate(parts)[: array.start_count(objective)]
    progress.close()
    return values
