"""Read examples from a store as the rows of a table.

The documents of a source of examples are the parts of the first example, those of the second and so
on. Numbers among the parts are documents as texts are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from jaxlm.data.shards import TokenArray, read_offsets
from jaxlm.objectives import Objective
from jaxlm.objectives.objective import ExampleLayout


class ExampleParts(Protocol):
    """The parts of examples: of a store, or in memory."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """Return the length of each part of each example, int64 [examples, parts]."""
        ...

    def read(self, example: int) -> list[np.ndarray]:
        """Return the parts of an example, int32 [n] each."""
        ...


class StoredParts:
    """The parts of the examples in a store. Where they begin is mapped into memory."""

    def __init__(self, tokens: TokenArray, offsets: Path, examples: int, parts: int):
        self.tokens, self.parts = tokens, parts
        self.offsets = read_offsets(offsets, count=parts * examples + 1, tokens=len(tokens))

    def __len__(self) -> int:
        return len(self.offsets) // self.parts

    def lengths(self) -> np.ndarray:
        """Return the length of each part without its end_of_text, int64 [examples, parts]."""
        return np.diff(self.offsets).reshape(-1, self.parts) - 1

    def read(self, example: int) -> list[np.ndarray]:
        """Return the parts of an example, int32 [n] each."""
        first = example * self.parts
        begin, *ends = self.offsets[first : first + self.parts + 1].tolist()
        tokens = np.empty(ends[-1] - begin, self.tokens.dtype)
        self.tokens.read_into(tokens.view(np.uint8).data, begin)
        parts = np.split(tokens.astype(np.int32), np.array(ends[:-1]) - begin)
        return [part[:-1] for part in parts]


class ListedParts:
    """The parts of examples in memory."""

    def __init__(self, examples: Sequence[Sequence[np.ndarray]]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def lengths(self) -> np.ndarray:
        """Return the length of each part, int64 [examples, parts]."""
        return np.array([[len(part) for part in parts] for parts in self.examples], np.int64)

    def read(self, example: int) -> list[np.ndarray]:
        """Return the parts of an example, int32 [n] each."""
        return list(self.examples[example])


class ExampleArray:
    """The examples of a source, by number."""

    def __init__(self, parts: ExampleParts):
        self.parts = parts
        # Pairs of answers: log-probabilities by a reference, float32 [starts, 2]
        self.reference: np.ndarray | None = None
        self.measured: tuple[ExampleLayout, np.ndarray, np.ndarray, int] | None = None

    def __len__(self) -> int:
        return len(self.parts)

    def start_count(self, objective: Objective) -> int:
        """Return the number of examples that the objective keeps: a sample starts at each."""
        return len(self.measure(objective)[0])

    def sizes(self, objective: Objective) -> np.ndarray:
        """Return the positions of each example that the objective keeps, int64 [n]."""
        return self.measure(objective)[1]

    def measure(self, objective: Objective) -> tuple[np.ndarray, np.ndarray, int]:
        """Return which examples an objective keeps, int64 [n], their sizes, and how many are cut.

        It is computed once for an objective.
        """
        layout = objective.examples
        assert layout is not None, "an objective of examples"
        if self.measured is None or self.measured[0] is not layout:
            sizes, is_cut = layout.measure(self.parts.lengths())
            kept = np.flatnonzero(sizes)
            cut = int(np.count_nonzero(is_cut[kept]))
            self.measured = layout, kept, sizes[kept], cut
        return self.measured[1:]

    def describe(self, objective: Objective) -> str:
        """Return how many examples are cut and left out; "" for none."""
        kept, _, cut = self.measure(objective)
        left_out = len(self) - len(kept)
        found = []
        if cut:
            found.append(f"{cut:,} cut to data.sequence_length")
        if left_out:
            found.append(f"{left_out:,} left out, since nothing of them fits or is to be learned")
        return f"{len(self):,} examples, of which {' and '.join(found)}" if found else ""

    def read_samples(self, starts: np.ndarray, objective: Objective) -> np.ndarray:
        """Return the examples `starts` (int64 [n]) of those that are kept; int32 [n, window]."""
        layout = objective.examples
        assert layout is not None, "an objective of examples"
        numbers = self.measure(objective)[0][starts]
        rows = np.zeros((len(starts), objective.window), np.int32)
        for row, number in zip(rows, numbers.tolist(), strict=True):
            layout.fill(row, self.parts.read(number))
        if self.reference is not None:
            rows[:, -2:] = self.reference[starts].view(np.int32)
        return rows
