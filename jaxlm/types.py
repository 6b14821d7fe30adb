"""The batch that every room passes on, and the legend of axis letters.

Arrays carry their axes as a suffix (`x_BLD`, `q_BLHK`):

    B  sequences in the batch              H  query heads
    L  positions (queries)                 G  key/value heads
    S  positions (keys, values, source)    R  query heads per key/value head
    D  width of the model                  K  width of a head
    F  width inside the MLP                V  vocabulary (padded where a comment says so)
    N  layers                              M  predicted positions of a sequence
"""

from typing import Any, NamedTuple, Protocol

Array = Any  # numpy or jax array
Tree = Any  # nested dict of arrays, shapes or shardings
Axes = tuple[str | None, ...]  # logical names of an array's dimensions


def is_axes(x: Any) -> bool:
    """Return True for a leaf of a tree of logical axes."""
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


class Batch(NamedTuple):
    """The samples of one step. `targets[b, i]` is what `logits[b, i]` predicts.

    `Batch(tokens=...)` alone is valid. Encoder-decoders read the fields of the source in their
    encoder and the other fields in their decoder. Where `predict` is given, only those positions
    reach the head, and `targets` and `weights` are [B, M].
    """

    tokens: Array  # int32 [B, L]
    lengths: Array | None = None  # int32 [B]: positions from there on are padding
    segments: Array | None = None  # int32 [B, L]: a position sees only its own segment
    positions: Array | None = None  # int32 [B, L]; None: 0, 1, 2, ...
    token_types: Array | None = None  # int32 [B, L]; None: all 0
    # int32 [B]: positions before it see each other in both directions
    prefix_lengths: Array | None = None
    source: Array | None = None  # int32 [B, S]
    source_lengths: Array | None = None  # int32 [B]
    source_segments: Array | None = None  # int32 [B, S]
    source_positions: Array | None = None  # int32 [B, S]
    predict: Array | None = None  # int32 [B, M]: positions whose features reach the head
    targets: Array | None = None  # int32 [B, L]
    weights: Array | None = None  # float32 [B, L]: 1 where the target counts, else 0
    # float32 [B, 2]: pairs of answers: the log-probability of each by the reference, in nats
    reference: Array | None = None


class Batches(Protocol):
    """Batches by number: training batches by step, evaluation batches from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...
