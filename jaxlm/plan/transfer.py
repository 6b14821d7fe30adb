"""Train a recipe at several widths and learning rates, to see whether the best rate is the same.

The runs of a width share one compiled step, and all runs read the same batches: their losses differ
by width and rate alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm import data, trainer
from jaxlm.config import Config
from jaxlm.run import Run, build_run, build_update, check_memory
from jaxlm.state import create_state
from jaxlm.types import Batch, Tree

LAST_SHARE = 0.2  # of the steps, whose mean loss is that of a run


class RateState(NamedTuple):
    """The state of `scale_by_state`: a float32 number."""

    factor: jax.Array


class WidthLosses(NamedTuple):
    """The losses of a recipe at one width, one for each rate; inf for a run that diverged."""

    parametrization: str
    width: int
    parameters: int
    rates: tuple[float, ...]
    losses: tuple[float, ...]  # nats per target, over the last steps

    @property
    def best(self) -> int:
        """Return the place of the best rate."""
        return int(np.argmin(self.losses))


def list_rates(middle: float, count: int) -> list[float]:
    """Return so many learning rates around one, each twice the one before."""
    return [middle * 2.0 ** (place - count // 2) for place in range(count)]


def train_rates(
    config: Config, store: data.Store, rates: Sequence[float], report: Callable[[str], None]
) -> WidthLosses:
    """Train a config with each of the rates in turn, and return their losses.

    `report` gets a line for each run. Nothing is written.
    """
    run = build_run(config, first_step=0)
    check_memory(run)
    trainer.check_vocabulary(config.model, store)
    stream = trainer.build_stream(run, store)
    run = run._replace(optimizer=optax.chain(run.optimizer, scale_by_state()))
    update = build_update(run)

    def batch_at(step: int) -> Batch:
        return run.placement.put(stream[step])

    losses = []
    for rate in rates:
        state = create_state(run.model, run.optimizer, run.placement, config.seed)
        factor = jnp.float32(rate / config.optimizer.learning_rate)
        state = state._replace(optimizer=set_rate(state.optimizer, factor))
        history = train_once(run, update, state, batch_at)
        losses.append(final_loss(history))
        report(
            f"{config.model.parametrization}, width {config.model.width}, rate {rate:.3g}: "
            f"loss {losses[-1]:.4f}"
        )

    return WidthLosses(
        parametrization=config.model.parametrization,
        width=config.model.width,
        parameters=run.model.parameter_count(),
        rates=tuple(rates),
        losses=tuple(losses),
    )


def train_once(
    run: Run, update: Callable, state: Any, batch_at: Callable[[int], Batch]
) -> list[float]:
    """Return the loss of each step, up to the first one that is not finite."""
    history: list[float] = []
    for step in range(run.config.training.steps):
        state, metrics = update(state, batch_at(step))
        history.append(float(metrics.loss))
        if not math.isfinite(history[-1]):
            break
    return history


def final_loss(history: Sequence[float]) -> float:
    """Return the mean loss of the last steps; inf where the last one is not finite."""
    if not math.isfinite(history[-1]):
        return math.inf
    return float(np.mean(history[-max(1, round(LAST_SHARE * len(history))) :]))


def scale_by_state() -> optax.GradientTransformation:
    """Multiply updates by a number in the state, so that one program serves all rates."""

    def init(params: Tree) -> RateState:
        del params
        return RateState(jnp.ones((), jnp.float32))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, RateState]:
        del params
        return jax.tree.map(lambda u: (u * state.factor).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)


def set_rate(optimizer_state: Tree, factor: jax.Array) -> Tree:
    """Return the state of an optimizer, chained with `scale_by_state`, with this factor."""
    *others, _ = optimizer_state
    return (*others, RateState(factor))


def describe_transfer(results: Sequence[WidthLosses]) -> dict[str, Any]:
    """Return the results as JSON data; a loss is null where the run diverged."""
    return {
        "runs": [
            {
                "parametrization": result.parametrization,
                "width": result.width,
                "parameters": result.parameters,
                "rates": list(result.rates),
                "losses": [loss if math.isfinite(loss) else None for loss in result.losses],
                "best_rate": result.rates[result.best],
            }
            for result in results
        ]
    }


def format_transfer(results: Sequence[WidthLosses]) -> list[list[str]]:
    """Return a table: a row for each width, a column for each rate, the best loss marked."""
    rows = [["", "width", "parameters", *(f"{rate:.2g}" for rate in results[0].rates)]]
    for result in results:
        cells = [
            ("diverged" if not math.isfinite(loss) else f"{loss:.4f}")
            + ("*" if place == result.best else "")
            for place, loss in enumerate(result.losses)
        ]
        head = [result.parametrization, str(result.width), f"{result.parameters:,}"]
        rows.append([*head, *cells])
    return rows
