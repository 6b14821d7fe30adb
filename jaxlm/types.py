"""What travels between the rooms: the batch, and the legend of axis letters.

Arrays carry their axes as a suffix (`x_BLD`, `q_BLHK`):

    B  sequences in the batch           H  query heads        V  vocabulary (padded where a comment says so)
    L  positions (queries)              G  key/value heads    F  width inside the MLP
    S  positions (keys, values, source) R  query heads per G  N  layers
    D  width of the model          K  width of a head        M  predicted positions of a sequence
"""

from typing import Any, NamedTuple, Protocol

Array = Any  # numpy or jax array
Tree = Any  # nested dict of arrays, shapes or shardings
Axes = tuple[str | None, ...]  # logical names of an array's dimensions


def is_axes(x: Any) -> bool:
    """True for a leaf of a tree of logical axes."""
    return isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)


class Batch(NamedTuple):
    """One step's samples; `Batch(tokens=...)` alone is valid. `targets[b, i]` is what `logits[b, i]` predicts.

    Encoder-decoders read `source` and its kin; `tokens` and the others are then what their decoder reads. Where `predict` is
    given only those positions reach the head, and `targets` and `weights` are [B, M].
    """

    tokens: Array  # int32 [B, L]
    lengths: Array | None = None  # int32 [B]: positions from there on are padding
    segments: Array | None = None  # int32 [B, L]: a position sees only its own segment
    positions: Array | None = None  # int32 [B, L]; None: 0, 1, 2, ...
    token_types: Array | None = None  # int32 [B, L]; None: all 0
    prefix_lengths: Array | None = (
        None  # int32 [B]: positions before it see each other in both directions
    )
    source: Array | None = None  # int32 [B, S]
    source_lengths: Array | None = None  # int32 [B]
    source_segments: Array | None = None  # int32 [B, S]
    source_positions: Array | None = None  # int32 [B, S]
    predict: Array | None = None  # int32 [B, M]: positions whose features reach the head
    targets: Array | None = None  # int32 [B, L]
    weights: Array | None = None  # float32 [B, L]: 1 where the target counts, else 0


class Batches(Protocol):
    """Batches by number: of a training stream by step, of an evaluation from 0 on."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...
