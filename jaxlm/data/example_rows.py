"""Pack examples into rows: best-fit decreasing, computed when a stream is opened."""

from collections.abc import Sequence

import numpy as np

from jaxlm.data.example_array import ExampleArray
from jaxlm.data.packing import best_fit_decreasing
from jaxlm.objectives import Objective
from jaxlm.objectives.layout import ragged_range
from jaxlm.types import Batch


class ExampleRows:
    """The rows of a source of examples, by number. The same examples give the same rows."""

    def __init__(self, array: ExampleArray, objective: Objective):
        """Lay out the examples that the objective keeps."""
        self.array = array
        rows = best_fit_decreasing(array.sizes(objective), objective.length)
        self.examples = np.argsort(rows, kind="stable")  # of each row in turn
        self.firsts = np.concatenate([[0], np.cumsum(np.bincount(rows))])

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def describe(self) -> str:
        """Return the number of examples and of rows."""
        count = len(self.examples)
        return f"{count:,} examples in {len(self):,} rows, {count / len(self):,.1f} in each"

    def row_examples(self, row: int) -> np.ndarray:
        """Return the examples of a row, by number in the array; int64 [n]."""
        return self.examples[self.firsts[row] : self.firsts[row + 1]]


def make_rows(
    arrays: Sequence[ExampleRows], sources: np.ndarray, rows: np.ndarray, objective: Objective
) -> Batch:
    """Return the batch of row `rows[i]` of `arrays[sources[i]]`, both int64 [n]."""
    assert objective.examples is not None, "an objective of examples"
    assert objective.examples.pack is not None, "checked when the stream was opened"
    firsts = [arrays[source].firsts for source in sources]
    counts = np.array(
        [first[row + 1] - first[row] for first, row in zip(firsts, rows, strict=True)]
    )
    windows = np.empty((int(counts.sum()), objective.window), np.int32)
    places = np.cumsum(counts) - counts
    for source in np.unique(sources):
        samples = np.flatnonzero(sources == source)
        examples = [arrays[source].row_examples(row) for row in rows[samples]]
        columns = np.repeat(places[samples], counts[samples]) + ragged_range(counts[samples])
        windows[columns] = arrays[source].array.read_samples(np.concatenate(examples), objective)
    return objective.examples.pack(windows, np.repeat(np.arange(len(rows)), counts), len(rows))
