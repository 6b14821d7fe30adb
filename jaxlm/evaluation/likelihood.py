"""Log-likelihoods of continuations: short requests of unequal length, in batches of few shapes."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.decoding.engine import check_finite
from jaxlm.losses import TILE_BYTES, token_losses
from jaxlm.models import Model
from jaxlm.types import Array, Batch, Tree

SHORTEST = 16  # length that batches are padded to at least


class Request(NamedTuple):
    """A continuation whose likelihood after `context` is asked for; neither is empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Likelihood(NamedTuple):
    """The likelihood of a continuation."""

    nats: float  # its log-probability
    greedy: bool  # each of its tokens was the likeliest


class LikelihoodScorer:
    """Scores requests with a decoder, `batch_size` at a time.

    Of a request that is longer than `context` the last tokens are read.
    """

    def __init__(self, model: Model, params: Tree, context: int, batch_size: int):
        self.params, self.context, self.batch_size = params, context, batch_size
        self.step = jax.jit(lambda params, batch: target_losses(model, params, batch))

    def __call__(
        self, requests: Sequence[Request], progress: Callable[[int], None] = lambda done: None
    ) -> list[Likelihood]:
        """Return the likelihoods in the order of the requests.

        Raises ValueError for a continuation longer than the context, DivergedError where the
        model's scores are not finite.
        """
        likelihoods: list[Likelihood] = [Likelihood(0.0, True)] * len(requests)
        # By length, the longest first: little is padded, and what does not fit the memory fails at
        # once.
        order = sorted(range(len(requests)), key=lambda n: -self.length(requests[n]))
        for first in range(0, len(order), self.batch_size):
            numbers = order[first : first + self.batch_size]
            batch = self.batch([requests[n] for n in numbers])
            losses, best = jax.device_get(self.step(self.params, batch))
            scored = batch.weights > 0  # type: ignore[operator]
            for n, loss, hit, weight in zip(numbers, losses, best, scored, strict=False):
                nats = -float(loss[weight].sum(dtype=np.float64))
                check_finite(math.isfinite(nats))
                likelihoods[n] = Likelihood(nats, bool(hit[weight].all()))
            progress(first + len(numbers))

        return likelihoods

    def length(self, request: Request) -> int:
        """Return the number of tokens that are read."""
        return min(len(request.context) + len(request.continuation) - 1, self.context)

    def batch(self, requests: Sequence[Request]) -> Batch:
        """Return the requests as [batch_size, ...], padded to one of few lengths.

        The last token of a request is a target only.
        """
        width = padded_length(max(map(self.length, requests)), self.context)
        targets = padded_length(
            max(len(request.continuation) for request in requests), self.context
        )
        rows = Batch(
            tokens=np.zeros((self.batch_size, width), np.int32),
            predict=np.zeros((self.batch_size, targets), np.int32),
            targets=np.zeros((self.batch_size, targets), np.int32),
            weights=np.zeros((self.batch_size, targets), np.float32),
        )

        for n, request in enumerate(requests):
            length, count = self.length(request), len(request.continuation)
            if count > length:
                raise ValueError(
                    f"a continuation has {count} tokens, but only {length} are read at once"
                )
            ids = np.concatenate([request.context, request.continuation])[-length - 1 :]
            rows.tokens[n, :length] = ids[:-1]
            rows.predict[n, :count] = np.arange(length - count, length)  # type: ignore[index]
            rows.targets[n, :count] = ids[-count:]  # type: ignore[index]
            rows.weights[n, :count] = 1  # type: ignore[index]
        return rows


def padded_length(length: int, most: int) -> int:
    """Round up to 16, 24, 32, 48, 64, ..., but not above `most`: each new shape is compiled."""
    sizes = (
        size
        for power in range(SHORTEST.bit_length() - 1, 64)
        for size in (1 << power, 3 << power - 1)
    )
    return min(next(size for size in sizes if size >= length), most)


def target_losses(model: Model, params: Tree, batch: Batch) -> tuple[Array, Array]:
    """Return the negative log-likelihood of each target and whether it scores highest, [B, M]."""
    x_BMD, head = model.features(params, batch), model.head_weights(params)
    rows, count = x_BMD.shape[:2]
    tile = max(1, min(count, TILE_BYTES // (4 * rows * model.config.vocabulary_size)))
    starts = list(range(0, count, tile))

    def one(start: int) -> tuple[Array, Array]:
        part = slice(start, start + tile)
        scores = model.scores(head, x_BMD[:, part])
        targets = batch.targets[:, part]  # type: ignore[index]
        return token_losses(scores, targets)[0], jnp.argmax(scores, axis=-1) == targets

    losses, best = zip(*map(one, starts), strict=True)
    return jnp.concatenate(losses, axis=1), jnp.concatenate(best, axis=1)


def rolling_requests(ids: Sequence[int], prefix: Sequence[int], context: int) -> Iterator[Request]:
    """Yield requests in which each of `ids` is in a continuation once.

    They are windows of `context` tokens, the first after `prefix`. Windows don't overlap, but the
    last reaches back as far as it can.
    """
    first = max(context - len(prefix) + 1, 1)  # targets of the first window
    if ids:
        yield Request(prefix, ids[:first])
    for start in range(first, len(ids), context):
        end = min(start + context, len(ids))
        before = [*prefix, *ids][end - context - 1 + len(prefix) : start + len(prefix)]
        yield Request(before, ids[start:end])
