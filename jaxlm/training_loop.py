"""The steps of a run: after each, log, save and evaluate when that is due, until the end."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import flops, optim, runtime
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import DivergedError
from jaxlm.data.loader import LocalBatches, prefetch_batches
from jaxlm.data.stream import Stream
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.monitor import Monitor, NullMonitor
from jaxlm.run import (
    Run,
    Update,
    abstract_arguments,
    build_averaged_params,
    build_evaluation_params,
    build_update,
)
from jaxlm.run_weights import saved_part
from jaxlm.runtime import PeerStop, ProcessGroup, StopSignal
from jaxlm.state import TrainState
from jaxlm.step import StepMetrics
from jaxlm.throughput import Throughput, fetch_metrics, metrics_row
from jaxlm.types import Array, Tree

# Saves of a better model that are not due otherwise: all of them where they take less than this,
# else as many as fit into this share of the time.
BEST_SECONDS, BEST_SHARE = 60.0, 0.05

# The tokens that a store has while it is built: none for the next step, enough for it, or all.
NONE, ENOUGH, ALL = "none", "enough", "all"
WAIT_SECONDS = 0.5  # between two looks at it


@contextlib.contextmanager
def compiled_meanwhile(run: Run, first_step: int) -> Iterator[Update]:
    """Yield the jitted step of a run, and compile it in a thread while the block runs.

    `first_step` steps are done. jax keeps the program: the first call finds it. What goes wrong in
    the thread shows in that call, which compiles again.
    """
    update = build_update(run)

    def compile_step() -> None:
        with contextlib.suppress(Exception):
            arguments = abstract_arguments(run, run.schedule.size(first_step))
            update.lower(*arguments).compile()  # type: ignore[attr-defined]

    # No daemon: Python would end while XLA is compiling, and XLA would abort.
    thread = threading.Thread(target=compile_step, name="compile the step")
    thread.start()
    yield update
    thread.join()  # not after an error, which is shown at once


class TrainingLoop:
    """The loop over the steps after `first_step`, and what is due after each.

    `record_save` is called with the step and the seconds of each checkpoint.
    """

    def __init__(
        self,
        run: Run,
        stream: Stream,
        first_step: int,
        checkpoints: Checkpoints,
        evaluator: Evaluator,
        monitor: Monitor | NullMonitor,
        record_save: Callable[[int, float], None],
        group: ProcessGroup,
        update: Update,
    ):
        self.update = update
        self.run, self.stream, self.first_step = run, stream, first_step
        self.checkpoints, self.evaluator, self.monitor = checkpoints, evaluator, monitor
        self.record_save, self.group = record_save, group

        self.config, self.steps = run.config, run.config.training.steps
        self.learning_rate = jax.jit(
            optim.learning_rate_schedule(self.config.optimizer, self.steps)
        )
        self.parameter_norm = jax.jit(parameter_norm, out_shardings=run.placement.replicated())
        self.evaluation_params = build_evaluation_params(run)
        self.averaged_params = build_averaged_params(run)
        self.lowest_cost = checkpoints.lowest_cost()
        self.best_saves = 0  # of a better model at steps without a checkpoint of their own
        self.throughput = build_throughput(run, stream)
        # Whether the store is built meanwhile.
        self.is_growing = group.share("growing", str(stream.is_growing)) == "True"

    def __call__(self, state: TrainState, *, evaluate_first: bool) -> tuple[TrainState, bool]:
        """Run the steps; return the last state, and whether a signal stopped the run.

        With `evaluate_first` the evaluation of `first_step` is done before: a run that was stopped
        in it continues there.
        """
        placement, every = self.run.placement, self.config.evaluation.every_steps
        config = self.config

        # Threads prepare the batches ahead of the steps, each process its own rows of them.
        process_batches = prefetch_batches(
            LocalBatches(self.stream, placement.rows),
            self.first_step,
            self.steps,
            threads=config.data.prefetch_threads,
            buffer=config.data.prefetch_batches,
        )

        # Within the loop every transfer between host and device is explicit (device_put,
        # device_get); an implicit one, which would stall the device unseen, is an error.
        with self.group.stop_signal() as stop, jax.transfer_guard("disallow"):
            if evaluate_first and not self.evaluate(self.first_step, state, stop):
                return self.stop(self.first_step, state, stop)

            metrics, saves = None, True  # of the step before
            for step in range(self.first_step + 1, self.steps + 1):
                if not self.await_tokens(step, stop):
                    if not saves:
                        assert metrics is not None, "the state before the first step is saved"
                        self.check(step - 1, state.params, metrics)
                        self.save(step - 1, state, {})
                    return self.stop(step - 1, state, stop)

                batch = next(process_batches)
                state, metrics = self.update(state, placement.put(batch))
                self.throughput.wait(step, metrics)

                last = step == self.steps
                stopping = stop.reached() and not last
                if is_due(step, config.logging.every_steps) or last:
                    self.log(step, metrics)

                # A save does not wait for the evaluation, which may take long.
                saves = is_due(step, config.checkpoint.every_steps) or stopping or last
                evaluates = (is_due(step, every) or last) and not stopping
                if saves:
                    self.check(step, state.params, metrics)
                    self.save(step, state, {}, evaluated=not evaluates)
                unsaved = None if saves else metrics
                if evaluates and not self.evaluate(step, state, stop, unsaved):
                    stopping = True
                    if not saves:
                        self.check(step, state.params, metrics)
                        self.save(step, state, {})

                if stopping:
                    return self.stop(step, state, stop)

            self.checkpoints.wait()

        first, tokens_read = self.first_step, self.throughput.tokens_read
        tokens = tokens_read(self.steps) - tokens_read(first)
        seconds = self.throughput.elapsed()
        self.monitor.line(
            f"trained {self.steps - first} steps, {tokens:,} tokens in {seconds:.1f} s"
        )
        return state, False

    def await_tokens(self, step: int, stop: StopSignal | PeerStop) -> bool:
        """Wait until the tokens of `step` are there; return False if a signal stopped that.

        They are, unless the store is built meanwhile. All processes go by what the leading one
        finds, so that they stop together.
        """
        waits = 0
        while self.is_growing:
            topic, found = f"tokens/{step}/{waits}", find_tokens(self.stream, step - 1)
            found = self.group.share(topic, found)
            self.is_growing = found != ALL
            if found == ALL:
                self.monitor.line(f"step {step}: the store has all its tokens")
            if found != NONE:
                break
            if stop.reached():
                return False
            if not waits:
                self.monitor.line(f"step {step} waits for its tokens: the store is being built")
            waits += 1
            time.sleep(WAIT_SECONDS)
        return True

    def stop(
        self, step: int, state: TrainState, stop: StopSignal | PeerStop
    ) -> tuple[TrainState, bool]:
        """Wait for the checkpoint of the last step and return the end of a stopped run."""
        self.checkpoints.wait()
        saved = "saved" if self.checkpoints.latest() == step else "nothing to save yet"
        self.monitor.line(f"stopped by {stop.requested} after step {step} of {self.steps}; {saved}")
        return state, True

    def log(self, step: int, metrics: StepMetrics) -> None:
        """Record and show a step.

        A row holds the loss of its own step alone, not a mean since the last row, so that a resumed
        run writes the rows of an unbroken one.
        """
        host_metrics = fetch_metrics(step, metrics)
        row = metrics_row(step, host_metrics, self.learning_rate, self.throughput)
        self.monitor.scalars(step, row)
        self.monitor.progress(step, row)
        runtime.limit_kept_memory(self.run.config.runtime)

    def check(self, step: int, params: Tree, metrics: StepMetrics) -> None:
        """Raise DivergedError unless the state after `step` is worth saving.

        Its metrics are finite, and so are the norm of the updated parameters and a loss that they
        compute. A poisoned state must not take the place of a sound one.
        """
        with self.throughput.paused(metrics):
            fetch_metrics(step, metrics)
            # Sync: one scalar, at saves alone.
            require_finite(
                "norm of the parameters", jax.device_get(self.parameter_norm(params)), step
            )
            require_finite("validation loss", self.evaluator.probe(params), step)

    def save(
        self, step: int, state: TrainState, scores: dict[str, float], *, evaluated: bool = True
    ) -> None:
        """Start to save the state. Unless it is `evaluated`, its evaluation has to follow."""
        # Sync: Orbax copies the state to the host by implicit transfers before it returns.
        with self.throughput.paused(state), jax.transfer_guard("allow"):
            self.checkpoints.save(step, saved_part(self.config, state), scores, evaluated=evaluated)
            self.record_save(step, self.throughput.elapsed())

    def evaluate(
        self,
        step: int,
        state: TrainState,
        stop: StopSignal | PeerStop,
        unsaved: StepMetrics | None = None,
    ) -> bool:
        """Evaluate the model and keep it if it is the best; return False if a signal stopped that.

        `unsaved` are the metrics of a step that is not saved yet. Raises DivergedError if the loss
        is not finite, once the checkpoint of the step is removed.
        """
        with self.throughput.paused(state):
            scores = self.score(state, stop)
        if scores is None:
            return False

        self.monitor.scalars(step, scores)
        self.monitor.line(f"step {step}: validation {self.evaluator.describe(scores)}")
        if not math.isfinite(scores.get("eval/loss", 0.0)):
            with jax.transfer_guard("allow"):
                self.checkpoints.discard(step)
            require_finite("validation loss", scores["eval/loss"], step)

        if not self.evaluator.is_ranked(scores):
            scores = {tag: value for tag, value in scores.items() if tag != "eval/loss"}
        cost = self.checkpoints.cost(scores)

        if unsaved is None:
            # Training does not wait until a large checkpoint is on the disk.
            is_on_disk = self.group.share(f"rate/{step}", str(not self.checkpoints.is_saving()))
            with self.throughput.paused(state):
                self.checkpoints.rate(step, scores, now=is_on_disk == "True")
        elif not cost < self.lowest_cost or not self.affords_best(step):
            return True
        else:
            self.check(step, state.params, unsaved)
            self.save(step, state, scores)
            self.best_saves += 1
        self.lowest_cost = min(self.lowest_cost, cost)
        return True

    def score(self, state: TrainState, stop: StopSignal | PeerStop) -> dict[str, float] | None:
        """Return the figures of the weights, and eval/ema_loss if a run averages them.

        Returns None if a signal stopped the evaluation.
        """
        scores = self.evaluator.evaluate(self.evaluation_params(state), stop.reached)
        if scores is None or self.averaged_params is None:
            return scores

        averaged = self.evaluator.evaluate(self.averaged_params(state), stop.reached)
        if averaged is None:
            return None
        if "eval/loss" in averaged:
            scores["eval/ema_loss"] = averaged["eval/loss"]
        return scores

    def affords_best(self, step: int) -> bool:
        """Return whether there is time to save a better model; the same in all processes."""
        seconds = self.checkpoints.save_seconds()
        allowed = best_saves_allowed(seconds, self.throughput.elapsed())
        fits = self.group.share(f"best/{step}", str(self.best_saves < allowed)) == "True"
        if not fits:
            figure = "lowest loss"
            if self.checkpoints.ranked_by != "eval/loss":
                figure = f"highest {self.checkpoints.ranked_by}"
            self.monitor.line(
                f"step {step}: the {figure} so far, but not saved: at {seconds:.0f} s each such "
                f"checkpoints would take more than {BEST_SHARE:.0%} of the time "
                "(checkpoint.every_steps sets the steps that are saved)"
            )
        return fits


def find_tokens(stream: Stream, step: int) -> str:
    """Return which tokens are there: NONE for the batch of `step`, ENOUGH, or ALL of the store."""
    if not stream.is_growing:
        return ALL
    return ENOUGH if stream.is_ready(step) else NONE


def parameter_norm(params: Tree) -> Array:
    """Return the global norm in float32: infinite also where the squares overflow."""
    leaves = jax.tree.leaves(params)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves))


def require_finite(name: str, value: float, step: int) -> None:
    """Raise DivergedError if a value of the state after `step` is not finite."""
    if not np.isfinite(value):
        raise DivergedError(
            f"training: the {name} is {value} after step {step}; checkpoints before it are kept"
        )


def best_saves_allowed(seconds: float, elapsed: float) -> float:
    """Return how many saves of a better model the time allows, at `seconds` each."""
    return max(BEST_SECONDS, BEST_SHARE * elapsed) / max(seconds, 1e-3)


def is_due(step: int, every: int) -> bool:
    """Return whether `step` is due; `every` is the interval in steps (0: never)."""
    return every > 0 and step % every == 0


def build_throughput(run: Run, stream: Stream) -> Throughput:
    """Return the measure of speed, which starts now."""
    objective = stream.objective
    flops_per_sample = flops.training_flops(
        run.config.model, objective.length, objective.source_length, objective.predictions
    )
    return Throughput(
        run.devices,
        flops_per_token=flops_per_sample / objective.tokens,
        tokens_read=lambda steps: stream.schedule.first_sample(steps) * objective.tokens,
        steps_in_flight=run.steps_in_flight,
    )
