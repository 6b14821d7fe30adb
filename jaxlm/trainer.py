"""The training run as a story: `train` reads from top to bottom, from the config to the model card.

A run is a pure function of its config: batches come from the step's number, the state from the
step before. So resuming is to load the newest checkpoint and to continue at its step.
"""

import dataclasses
import enum
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from jaxlm import card, checkpoint, data, decoding, flops, objectives, optim, runtime
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import Config, ConfigError, ModelConfig, UserError
from jaxlm.data.loader import LocalBatches, prefetch_batches
from jaxlm.data.stream import Stream
from jaxlm.evaluation.validation import Evaluator
from jaxlm.monitor import Monitor, NullMonitor
from jaxlm.run import Run, build_run, describe_run
from jaxlm.state import TrainState, abstract_state, create_state, state_from_params
from jaxlm.step import StepMetrics, train_step
from jaxlm.throughput import Throughput, fetch_metrics

STOPPED = 75  # exit code: stopped by a signal, saved


class Origin(enum.Enum):
    """The source of the state from which this process trains."""

    FRESH = "random weights"
    IMPORTED = "weights without an optimizer state, saved as step 0 by an import"
    RESUMED = "a whole state, saved after a step"


@dataclasses.dataclass(frozen=True)
class Start:
    """The point from which this process trains: the origin of its state, and the steps done."""

    origin: Origin
    step: int


def train(config: Config, group: runtime.ProcessGroup, resume_command: str) -> int:
    """Train to the end or to a stop signal, and return the exit code.

    `group` holds the lock of the run directory. `resume_command` is shown when the run is stopped.
    """
    directory = group.run_directory

    # Several processes prepare the data before anything else: they meet over it, and jax must not
    # have been used before they have met.
    store = None if group.is_single else prepare_together(config, group)

    with Checkpoints(directory / "checkpoints", config.checkpoint.keep) as checkpoints:
        # 1. The config of this run, and where it starts.
        # A directory with a checkpoint is continued. What the new config changes is printed, and
        # refused where it would make another run of it.
        start = find_start(checkpoints.latest())
        group.require_equal("step", {"the newest checkpoint": str(checkpoints.latest())})

        if start.origin is not Origin.FRESH:
            try:
                config, changes = checkpoint.resume_config(directory, config, start.step)
            except UserError:
                data.check_files(config.data)  # a missing file explains the difference better
                raise
            resumed = start.origin is Origin.RESUMED
            how = f"resumes after step {start.step}" if resumed else "starts from imported weights"
            log(f"{directory}: {how}", *changes)

        steps = config.training.steps
        if start.step >= steps:
            log(f"{start.step} of {steps} steps are done; for more set training.steps=N")
            return 0

        # 2. Mesh, model and optimizer.
        # They come before the data, which can take hours: a mistake in the config is reported now.
        run = build_run(config, start.step, group.hosts)
        log(*describe_run(run, group.hosts))

        # 3. Data: the store of tokens, and the stream of batches by step number.
        store = store or prepare_store(config)
        check_vocabulary(config.model, store)
        if start.origin is Origin.RESUMED:
            checkpoint.check_store(directory, config, store.hash)
        stream = build_stream(run, store)

        # 4. The state: fresh, imported or resumed.
        state = build_state(run, start, checkpoints)

        # 5. What is recorded.
        # Process 0 alone writes. From here on the directory is that of a run, whatever happens.
        if group.is_leader:
            checkpoint.write_run_config(directory, config, store.hash, runtime.versions())
            store.tokenizer.save(directory / "tokenizer.json")
            monitor = Monitor(directory, steps, start.step, config.logging.tensorboard)
            card_start = card.new_start(start.step, run.devices, len(group.hosts))
            record_save = partial(
                card.record_progress, directory, card_start, manifest=store.manifest
            )
        else:
            monitor = NullMonitor()
            record_save = ignore_save

        with monitor:
            if group.is_leader:
                config_json = (directory / "config.json").read_text()
                monitor.text(start.step, "config", f"```json\n{config_json}\n```")

            # 6. The steps, and what the model has learned in them.
            evaluator = Evaluator(
                config,
                run.model,
                run.placement,
                store,
                stream.objective,
                state.params,
                steps_in_flight=run.steps_in_flight,
                leads=group.is_leader,
            )
            state, stopped = run_steps(
                run, stream, state, start, checkpoints, evaluator, monitor, record_save, group
            )
            if stopped:
                monitor.line(f"resume with\n  {resume_command}")
                return STOPPED

            show_samples(run, store, evaluator, state, monitor)
            if group.is_leader:
                write_model_card(directory, run, monitor)
            return 0


def log(*lines: str) -> None:
    """Print lines that belong to no step."""
    for line in lines:
        print(line, flush=True)


def ignore_save(step: int, seconds: float) -> None:
    """Record nothing, as processes other than 0 do."""


def prepare_together(config: Config, group: runtime.ProcessGroup) -> data.Store:
    """Prepare the data in process 0, let all processes meet, and return the store.

    Raises UserError where another process is about to run another config, code or library.
    """
    if group.is_leader:
        folder = prepare_store(config).path
    else:
        folder = data.await_store(
            config.data,
            config.tokenizer,
            config.tokenizer_vocabulary_size,
            log,
            ready=group.leader_is_listening,
            seconds=config.runtime.preparation_timeout_seconds,
            needs=config.objective.needs,
        )
    group.initialize()

    # Processes that compute different programs would wait for each other for ever.
    facts = checkpoint.flatten_config(config)
    facts["the prepared data"] = folder.name
    facts["jaxlm's code"] = runtime.code_version()
    facts |= runtime.versions()
    group.require_equal("config", {key: str(value) for key, value in facts.items()})
    return data.open_store(folder)


def find_start(newest: int | None) -> Start:
    """Return where a run starts whose newest checkpoint is of step `newest` (None: it has none)."""
    if newest is None:
        return Start(Origin.FRESH, 0)
    return Start(Origin.RESUMED if newest else Origin.IMPORTED, newest)


def prepare_store(config: Config) -> data.Store:
    """Return the token store of the run, built if it is not there yet."""
    return data.prepare(
        config.data,
        config.tokenizer,
        config.tokenizer_vocabulary_size,
        log,
        needs=config.objective.needs,
    )


def check_vocabulary(model: ModelConfig, store: data.Store) -> None:
    """Raise ConfigError if the tokenizer has ids that the model lacks."""
    if store.tokenizer.size > model.vocabulary_size:
        raise ConfigError(
            "model.vocabulary_size",
            f"{model.vocabulary_size} is below the {store.tokenizer.size} ids of the tokenizer",
        )


def build_stream(run: Run, store: data.Store) -> Stream:
    """Return the training data by step: the sources of `store`, mixed by their weights."""
    config = run.config
    vocabulary = store.tokenizer.vocabulary
    objective = objectives.build(config.objective, config.data.sequence_length, vocabulary)
    weights = [source.weight for source in config.data.sources]
    names = [source.name for source in config.data.sources]
    stream = Stream(
        store.train,
        weights=weights,
        names=names,
        objective=objective,
        schedule=run.schedule,
        seed=config.seed,
    )
    if not stream.has_targets():
        hint = "whole words must fit into objective.noise_share of data.sequence_length"
        log(f"warning: objective: nothing is predicted in the first samples; {hint}")
    return stream


def build_state(run: Run, start: Start, checkpoints: Checkpoints) -> TrainState:
    """Return the state before the first step, each shard on its own device."""
    parts = run.model, run.optimizer, run.placement

    if start.origin is Origin.FRESH:
        return create_state(*parts, run.config.seed)
    if start.origin is Origin.RESUMED:
        return checkpoints.restore(start.step, abstract_state(*parts))

    # An import saves weights alone: the optimizer starts anew.
    params = checkpoints.restore_params(start.step, abstract_state(*parts).params)
    return state_from_params(*parts, params)


def run_steps(
    run: Run,
    stream: Stream,
    state: TrainState,
    start: Start,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    monitor: Monitor | NullMonitor,
    record_save: Callable[[int, float], None],
    group: runtime.ProcessGroup,
) -> tuple[TrainState, bool]:
    """Run the steps after `start`; after each, do what is due.

    Returns the last state, and whether a signal stopped the run before its last step.
    `record_save` is called with the step and the seconds of each checkpoint.
    """
    config, steps = run.config, run.config.training.steps
    update = train_step(run.model, run.optimizer, config.training, run.placement, config.seed)
    learning_rate = jax.jit(optim.learning_rate_schedule(config.optimizer, steps))
    throughput = build_throughput(run, stream)
    best_loss = checkpoints.best_loss()

    # Threads prepare the batches ahead of the steps, each process its own rows of them.
    process_batches = prefetch_batches(
        LocalBatches(stream, run.placement.rows),
        start.step,
        steps,
        threads=config.data.prefetch_threads,
        buffer=config.data.prefetch_batches,
    )

    # Within the loop every transfer between host and device is explicit (device_put,
    # device_get); an implicit one, which would stall the device unseen, is an error.
    with group.stop_signal() as stop, jax.transfer_guard("disallow"):
        for step, batch in enumerate(process_batches, start.step + 1):
            state, metrics = update(state, run.placement.put(batch))
            throughput.wait(step, metrics)

            last = step == steps
            stopping = stop.reached(step) and not last
            scores: dict[str, float] = {}

            # Log. A row holds the loss of its own step alone, not a mean since the last row, so
            # that a resumed run writes the rows of an unbroken one.
            if is_due(step, config.logging.every_steps) or last:
                row = metrics_row(step, fetch_metrics(step, metrics), learning_rate, throughput)
                monitor.scalars(step, row)
                monitor.progress(step, row)

            # Evaluate, always at the end, too.
            if (is_due(step, config.evaluation.every_steps) or last) and not stopping:
                with throughput.paused(metrics):
                    scores = evaluator.evaluate(state.params)
                monitor.scalars(step, scores)
                monitor.line(f"step {step}: validation {evaluator.describe(scores)}")

            # Save when it is due, and whenever the model is the best so far. A diverged state must
            # not take the place of a sound one, so the loss is checked first.
            best = bool(scores) and scores["eval/loss"] < best_loss
            if is_due(step, config.checkpoint.every_steps) or best or stopping or last:
                with throughput.paused(metrics):
                    fetch_metrics(step, metrics)
                    save(checkpoints, step, state, scores)
                    record_save(step, throughput.elapsed())
                best_loss = min(best_loss, scores.get("eval/loss", best_loss))

            if stopping:
                checkpoints.wait()
                monitor.line(f"stopped by {stop.requested} after step {step} of {steps}; saved")
                return state, True

        checkpoints.wait()

    tokens = throughput.tokens_read(steps) - throughput.tokens_read(start.step)
    seconds = throughput.elapsed()
    monitor.line(f"trained {steps - start.step} steps, {tokens:,} tokens in {seconds:.1f} s")
    return state, False


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


def metrics_row(
    step: int,
    metrics: StepMetrics,
    learning_rate: Callable[[jax.Array], jax.Array],
    throughput: Throughput,
) -> dict[str, float]:
    """Return the values to log for `step`, by tag. `metrics` are on the host."""
    # Sync: the schedule runs on the device, on the optimizer's count, which starts from 0.
    rate = jax.device_get(learning_rate(jax.device_put(np.int32(step - 1))))

    return {
        "train/loss": float(metrics.loss),
        "train/learning_rate": float(rate),
        "train/grad_norm": float(metrics.grad_norm),
        "train/param_norm": float(metrics.param_norm),
        "train/tokens": throughput.tokens_read(step),
        **throughput.report(step),
    }


def save(checkpoints: Checkpoints, step: int, state: TrainState, scores: dict[str, float]) -> None:
    """Start to save the state."""
    # Sync: Orbax copies the state to the host by implicit transfers before it returns.
    with jax.transfer_guard("allow"):
        checkpoints.save(step, state, scores)


def show_samples(
    run: Run,
    store: data.Store,
    evaluator: Evaluator,
    state: TrainState,
    monitor: Monitor | NullMonitor,
) -> None:
    """Print what the model writes, or how it fills what is hidden in the first evaluation texts."""
    config = run.config
    if not config.evaluation.samples:
        return

    samples = decoding.samples(
        run.model,
        state.params,
        store.tokenizer,
        config.evaluation,
        config.data.sequence_length,
        evaluator.windows,  # type: ignore[arg-type]  # read by index alone
        config.seed,
    )
    for number, text in enumerate(samples, 1):
        monitor.line(f"--- sample {number} ---\n{text}")
        monitor.text(config.training.steps, f"sample/{number}", f"```\n{text}\n```")


def write_model_card(directory: Path, run: Run, monitor: Monitor | NullMonitor) -> None:
    """Write the model card. A card of the user's that can't be replaced must not fail the run."""
    try:
        facts = card.gather_facts(directory, run.config, run.model.parameter_count())
        monitor.line(f"model card: {card.write_card(directory, facts)}")
    except UserError as error:
        monitor.line(f"warning: no model card: {error}")
