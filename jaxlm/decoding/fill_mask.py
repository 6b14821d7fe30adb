"""Fill masks with an encoder: the likeliest tokens for each hidden position of a text."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from jaxlm.decoding.engine import bucket_size, check_finite, pad_rows, text_bucket
from jaxlm.models import Model
from jaxlm.sharding import replicated_sharding
from jaxlm.types import Array, Batch, Tree


class MaskCandidates(NamedTuple):
    """The likeliest tokens at one position, best first."""

    position: int
    ids: np.ndarray  # int32 [top]
    probabilities: np.ndarray  # float32 [top]


class MaskFiller:
    """An encoder that says which tokens are likely at hidden positions.

    `params` may be split over the devices of several processes, which all make the same calls.
    """

    def __init__(self, model: Model, params: Tree, *, top: int, batch_size: int):
        """Prepare for batches of `batch_size` texts, with `top` candidates for each position."""
        self.model, self.params, self.batch_size = model, params, batch_size
        self._rank = jax.jit(
            partial(rank_tokens, model, min(top, model.config.vocabulary_size)),
            out_shardings=replicated_sharding(params),
        )

    def __call__(
        self, rows: Sequence[np.ndarray], positions: Sequence[np.ndarray]
    ) -> list[list[MaskCandidates]]:
        """Return the candidates at the `positions` of each row of token ids, in their order.

        DivergedError where the model's scores are not finite.
        """
        tokens, lengths = pad_texts(self.model, rows, self.batch_size)
        no_positions = [np.zeros(0, np.int32)] * (self.batch_size - len(rows))
        width = bucket_size(max(map(len, positions)))
        predict, _ = pad_rows([*positions, *no_positions], width)

        batch = Batch(tokens=tokens, lengths=lengths, predict=predict)
        probabilities, ids = map(np.asarray, self._rank(self.params, batch))
        check_finite(np.isfinite(probabilities[: len(rows)]).all())
        return [
            [
                MaskCandidates(int(position), ids[row, number], probabilities[row, number])
                for number, position in enumerate(row_positions)
            ]
            for row, row_positions in enumerate(positions)
        ]


def pad_texts(
    model: Model, rows: Sequence[np.ndarray], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens [batch_size, L], lengths [batch_size]); missing rows have one token."""
    missing = [np.zeros(1, np.int32)] * (batch_size - len(rows))
    return pad_rows([*rows, *missing], text_bucket(model.config, max(map(len, rows))))


def rank_tokens(model: Model, top: int, params: Tree, batch: Batch) -> tuple[Array, Array]:
    """Return (probabilities, ids), [B, M, top], of the likeliest tokens at `batch.predict`."""
    return jax.lax.top_k(jax.nn.softmax(model.apply(params, batch), axis=-1), top)
