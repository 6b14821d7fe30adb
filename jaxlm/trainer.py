"""The training run as a story: `train` reads from top to bottom, from the config to the model card.

A run is a pure function of its config: batches come from the step's number, the state from the
step before. So resuming is to load the newest checkpoint and to continue at its step.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxlm import card, chat, checkpoint, data, decoding, objectives, optim, runtime
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import Config, ConfigError, ModelConfig, UserError
from jaxlm.data.rules import Predicate
from jaxlm.data.stream import Stream, open_stream, source_sizes
from jaxlm.evaluation.evaluator import Evaluator
from jaxlm.evaluation.label_evaluator import evaluator_type
from jaxlm.interop.kept_files import copy_kept_files
from jaxlm.monitor import Monitor, NullMonitor
from jaxlm.reference import use_reference
from jaxlm.run import Run, build_evaluation_params, build_run, check_memory, describe_run
from jaxlm.run_checks import check_trainable
from jaxlm.run_weights import BaseRecord, write_base_record
from jaxlm.start import Origin, Start, build_state, find_start
from jaxlm.state import TrainState
from jaxlm.training_loop import TrainingLoop, compiled_meanwhile, is_due


def train(
    config: Config, group: runtime.ProcessGroup, resume_command: str, predicate: Predicate | None
) -> int:
    """Train to the end or to a stop signal, and return the exit code.

    `group` holds the lock of the run directory. `resume_command` is shown when the run is stopped,
    the `predicate` chooses documents.
    """
    directory = group.run_directory
    check_trainable(config)

    # Several processes prepare the data before anything else: they meet over it, and jax must not
    # have been used before they have met.
    store = None if group.is_single else prepare_together(config, group, predicate)

    with (
        Checkpoints.of_run(directory, config.checkpoint) as checkpoints,
        contextlib.ExitStack() as background,
    ):
        # 1. The config of this run, and where it starts.
        # A directory with a checkpoint is continued. What the new config changes is printed, and
        # refused where it would make another run of it.
        start = find_start(checkpoints.latest(), config.base)
        group.require_equal("step", {"the newest checkpoint": str(checkpoints.latest())})

        saved_config = None
        if start.origin not in (Origin.FRESH, Origin.BASE):
            saved_config, config = continue_run(config, directory, start)

        # A run that was stopped in an evaluation continues there, even if all steps are done.
        steps = config.training.steps
        evaluate_first = needs_evaluation(config, start, checkpoints)
        if start.step >= steps and not evaluate_first:
            checkpoints.check_readable(start.step)
            log(f"{start.step} of {steps} steps are done; for more set training.steps=N")
            return 0

        # 2. Mesh, model and optimizer.
        # They come before the data, which can take hours: a mistake in the config is reported now.
        run = build_run(config, start.step, group.hosts)
        check_memory(run)
        log(*describe_run(run, group.hosts))

        # 3. Data: the store, while the step is compiled, and the stream of batches by step number.
        with compiled_meanwhile(run, start.step) as update:
            store = store or prepare_store(config, predicate)
        background.enter_context(build_meanwhile(store, config, group, predicate))
        check_vocabulary(config.model, store)
        if start.origin is Origin.RESUMED:
            check_resume(directory, config, store, start.step)
        stream = build_stream(run, store, saved_config, start.step)
        config = data.record_mixture(config, stream.mixture.schedule)
        run = run._replace(config=config)

        # 4. The state: fresh, of a base, imported or resumed.
        state, base_record = build_state(run, start, checkpoints, directory)
        if config.objective.kind == "preference":
            params = None if start.origin is Origin.RESUMED else state.params
            use_reference(run, store, stream.objective, group, params)

        # 5. What is recorded.
        # Process 0 alone writes. From here on the directory is that of a run, whatever happens.
        monitor, record_save = NullMonitor(), ignore_save
        if group.is_leader:
            monitor, record_save = open_records(run, store, start, group, base_record)

        with monitor:
            if group.is_leader:
                config_json = (directory / "config.json").read_text()
                monitor.text(start.step, "config", card.code(config_json, "json"))

            # 6. The steps, and what the model has learned in them.
            evaluator = evaluator_type(config)(
                config,
                run.model,
                run.placement,
                store,
                stream.objective,
                state.params,
                steps_in_flight=run.steps_in_flight,
                compiler_options=run.compiler_options,
            )
            for note in evaluator.notes():
                monitor.line(note)

            loop = TrainingLoop(
                run, stream, start.step, checkpoints, evaluator, monitor, record_save, group, update
            )
            state, stopped = loop(state, evaluate_first=evaluate_first)
            if stopped:
                monitor.line(f"resume with\n  {resume_command}")
                return runtime.STOPPED

            show_samples(run, store, evaluator, state, monitor)
            if group.is_leader:
                write_model_card(directory, run, monitor)
            return 0


def log(*lines: str) -> None:
    """Print lines that belong to no step."""
    for line in lines:
        print(line, flush=True)


def open_records(
    run: Run,
    store: data.Store,
    start: Start,
    group: runtime.ProcessGroup,
    base_record: BaseRecord | None,
) -> tuple[Monitor, Callable[[int, float], None]]:
    """Write what says which run this is, and return its records and what keeps its progress."""
    directory, config = group.run_directory, run.config
    checkpoint.write_run_config(directory, config, store.hash, runtime.versions())
    write_tokenizer(directory, config, store, start)
    write_base_record(directory, base_record)

    monitor = Monitor(directory, config.training.steps, start.step, config.logging.tensorboard)
    card_start = card.new_start(start.step, run.devices, len(group.hosts))
    return monitor, partial(record_progress, directory, card_start, store)


def ignore_save(step: int, seconds: float) -> None:
    """Record nothing, as processes other than 0 do."""


def record_progress(
    directory: Path, start: card.TrainingStart, store: data.Store, step: int, seconds: float
) -> None:
    """Record how far the run is, and the data that it has."""
    card.record_progress(directory, start, step, seconds, data.current_manifest(store))


def prepare_together(
    config: Config, group: runtime.ProcessGroup, predicate: Predicate | None
) -> data.Store:
    """Prepare the data in process 0, let all processes meet, and return the store.

    Raises UserError where another process is about to run another config, code or library.
    """
    if group.is_leader:
        folder = prepare_store(config, predicate).path
    else:
        folder = data.await_store(
            config.data,
            config.tokenizer,
            config.tokenizer_vocabulary_size,
            log,
            ready=group.leader_is_listening,
            seconds=config.runtime.preparation_timeout_seconds,
            needs=config.objective.needs,
            examples=data.example_spec(config),
            predicate=predicate,
            begun=begins_early(config),
        )
    group.initialize()

    # Processes that compute different programs would wait for each other for ever.
    facts = checkpoint.flatten_config(config)
    facts["the prepared data"] = folder.name
    facts["jaxlm's code"] = runtime.code_version()
    facts |= runtime.versions()
    group.require_equal("config", {key: str(value) for key, value in facts.items()})
    return data.open_begun(folder)


def continue_run(config: Config, directory: Path, start: Start) -> tuple[Config, Config]:
    """Return the saved config of a run and the one that holds from now on; log what differs.

    Raises UserError if `config` would make another run of it.
    """
    saved_config, _ = checkpoint.read_run_config(directory)
    try:
        config, changes = checkpoint.resume_config(directory, config, start.step)
    except UserError:
        data.check_files(config.data)  # a missing file explains the difference better
        raise

    rates: list[str] = []
    if start.step:
        rates = optim.describe_rates(rates_at_resume(saved_config, config, start.step))
    resumed = start.origin is Origin.RESUMED
    how = f"resumes after step {start.step}" if resumed else "starts from imported weights"
    log(f"{directory}: {how}", *changes, *rates)
    return saved_config, config


def needs_evaluation(config: Config, start: Start, checkpoints: Checkpoints) -> bool:
    """Return whether the evaluation after the step of a resumed run is still to be done."""
    if start.origin is not Origin.RESUMED or start.step > config.training.steps:
        return False
    is_last = start.step == config.training.steps
    due = is_last or is_due(start.step, config.evaluation.every_steps)
    return due and not checkpoints.is_rated(start.step)


def rates_at_resume(saved_config: Config, config: Config, step: int) -> optim.RatesAtResume:
    """Return the learning rates around `step`, where `config` takes the saved one's place."""
    before, after = (
        optim.learning_rate_schedule(each.optimizer, each.training.steps)
        for each in (saved_config, config)
    )
    return optim.rates_at_resume(before, after, step)


def write_tokenizer(directory: Path, config: Config, store: data.Store, start: Start) -> None:
    """Write tokenizer.json, and in a new run its chat template and what its base keeps.

    Raises UserError if a file can't be written.
    """
    path = directory / "tokenizer.json"
    try:
        store.tokenizer.save(path)
        if start.origin is Origin.BASE and config.base is not None:
            copy_kept_files(Path(config.base), directory)
        if start.origin is not Origin.RESUMED:
            chat.keep_template(config.tokenizer, directory)
    except OSError as error:
        raise UserError(f"run_directory: can't write {path}: {error.strerror}") from error


def prepare_store(config: Config, predicate: Predicate | None) -> data.Store:
    """Return the token store of the run, built if it is not there yet.

    A run that begins early gets one that is still to be completed.
    """
    prepare = data.begin if begins_early(config) else data.prepare
    if config.data.shuffle_block is not None and (reason := data.whole_store_reason(config.data)):
        log(f"data.shuffle_block: the whole store comes first, since {reason}")
    return prepare(
        config.data,
        config.tokenizer,
        config.tokenizer_vocabulary_size,
        log,
        needs=config.objective.needs,
        examples=data.example_spec(config),
        predicate=predicate,
    )


def begins_early(config: Config) -> bool:
    """Return whether a run begins before its store is complete."""
    return config.data.shuffle_block is not None and data.whole_store_reason(config.data) is None


def build_meanwhile(
    store: data.Store, config: Config, group: runtime.ProcessGroup, predicate: Predicate | None
) -> contextlib.AbstractContextManager[None]:
    """Complete the store while the run trains on what is there."""
    size, needs = config.tokenizer_vocabulary_size, config.objective.needs
    arguments = (config.data, config.tokenizer, size, needs, predicate)
    return data.built_meanwhile(store, is_leader=group.is_leader, arguments=arguments)


def check_resume(directory: Path, config: Config, store: data.Store, step: int) -> None:
    """Raise UserError unless a run can go on after `step` with this config and this store.

    A learning rate that has decayed may not rise again unasked.
    """
    check_store(directory, config, store)
    saved_config, _ = checkpoint.read_run_config(directory)
    rates = rates_at_resume(saved_config, config, step)
    optim.check_restart(saved_config.optimizer, config.optimizer, rates)


def check_store(directory: Path, config: Config, store: data.Store) -> None:
    """Raise UserError unless the store is the one that a resumed run was trained on.

    One that was built anew may have another tokenizer under the same name: the training of Unigram
    adds up in any order.
    """
    checkpoint.check_store(directory, config, store.hash)
    path = directory / "tokenizer.json"
    if path.exists() and data.load_tokenizer(path, store.tokenizer.special).hash != (
        store.tokenizer.hash
    ):
        raise UserError(
            f"{path}: is not the tokenizer of {store.path}, which was built anew: "
            "put back the store of the run, or choose another run_directory"
        )


def check_vocabulary(model: ModelConfig, store: data.Store) -> None:
    """Raise ConfigError if the tokenizer has ids that the model lacks."""
    if store.tokenizer.size > model.vocabulary_size:
        raise ConfigError(
            "model.vocabulary_size",
            f"{model.vocabulary_size} is below the {store.tokenizer.size} ids of the tokenizer",
        )


def build_stream(run: Run, store: data.Store, saved: Config | None = None, step: int = 0) -> Stream:
    """Return the training data by step: the sources of `store`, in the mixture of the run.

    `saved` is the config of a run that is resumed after `step`.
    """
    config = run.config
    vocabulary = store.tokenizer.vocabulary
    objective = objectives.build(
        config.objective, config.data.sequence_length, vocabulary, config.model
    )
    stream = open_stream(store, config.data, objective, run.schedule, config.seed, log)
    sizes = source_sizes(stream, store, config.data)
    if len(sizes) > 1 and store.construction is not None:
        log("tokens and epochs are estimated from the first texts: the store is being built")
    mixture = data.plan_mixture(config, sizes, saved, step)
    stream.set_mixture(mixture)
    if len(sizes) > 1:
        log(
            data.format_mixture(
                data.describe_mixture(sizes, mixture, run.schedule, config.training.steps)
            )
        )
    if saved is not None and step:
        log(*data.describe_change([size.name for size in sizes], saved.data, mixture, step))

    if not stream.is_ready(step):
        log("the store is being built: the next step waits for its tokens")
    if not stream.has_targets():
        hint = "whole words must fit into objective.noise_share of data.sequence_length"
        log(f"warning: objective: nothing is predicted in the first samples; {hint}")
    return stream


def show_samples(
    run: Run,
    store: data.Store,
    evaluator: Evaluator,
    state: TrainState,
    monitor: Monitor | NullMonitor,
) -> None:
    """Print what the model writes, or how it fills what is hidden in the first evaluation texts."""
    config = run.config
    if not config.evaluation.samples or config.model.is_classifier:
        return
    params = build_evaluation_params(run)(state)
    if run.model.rounding is not None:
        params = run.model.rounding.params(run.model.axes, params)

    samples = decoding.samples(
        run.model,
        params,
        store.tokenizer,
        config.evaluation,
        config.data.sequence_length,
        evaluator.windows,  # type: ignore[arg-type]  # read by index alone
        config.seed,
    )
    for number, text in enumerate(samples, 1):
        monitor.line(f"--- sample {number} ---\n{text}")
        monitor.text(config.training.steps, f"sample/{number}", card.code(text, "text"))


def write_model_card(directory: Path, run: Run, monitor: Monitor | NullMonitor) -> None:
    """Write the model card. A card of the user's that can't be replaced must not fail the run."""
    try:
        facts = card.gather_facts(directory, run.config, run.model.parameter_count())
        monitor.line(f"model card: {card.write_card(directory, facts)}")
    except UserError as error:
        monitor.line(f"warning: no model card: {error}")
