"""python -m jaxlm.train --config FILE [key=value ...]: prepares what is missing, trains, evaluates, saves, resumes.

jax is imported inside the functions, after `runtime.configure` has set what must be set before it.
"""

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlm import config, runtime
from jaxlm.config import Config, ConfigError
from jaxlm.throughput import Throughput

if TYPE_CHECKING:
    from jaxlm.checkpoint import Checkpoints
    from jaxlm.data import Store
    from jaxlm.data.schedule import BatchSchedule
    from jaxlm.data.stream import Stream
    from jaxlm.models import Model
    from jaxlm.monitor import Monitor, NullMonitor
    from jaxlm.sharding import Placement
    from jaxlm.state import TrainState
    from jaxlm.types import Batch

STOPPED = 75  # exit code: stopped by a signal, saved

EXAMPLE = """examples:
  python -m jaxlm.train --config configs/quickstart.py
  python -m jaxlm.train --config configs/quickstart.py model.layers=4 training.steps=200 --data 'books/*.txt'
  python -m jaxlm.train --config configs/quickstart.py --devices 8 parallel.zero=3 run_directory=runs/sharded
  launch/local.sh 2 --config configs/quickstart.py --devices 4 parallel.zero=3 run_directory=runs/sharded

The same command goes on where the run in run_directory stopped. jaxlm/config/schema.py lists the keys."""


def main(argv: Sequence[str]) -> int:
    parser = runtime.Parser(
        prog="python -m jaxlm.train",
        description="Pretrain a language model: prepare the data, train, evaluate, save, resume.",
        epilog=EXAMPLE,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a Python file with `config = Config(...)`, or a run's config.json",
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="train on this file, folder or glob instead of the config's sources",
    )
    parser.add_argument(
        "--devices", metavar="N", help="the same as runtime.devices=N: of each process"
    )
    parser.add_argument(
        "edits",
        nargs="*",
        metavar="key=value",
        help="changes to the config, such as model.layers=12",
    )
    args = parser.parse_intermixed_args(argv)
    edits = args.edits + ([f"runtime.devices={args.devices}"] if args.devices else [])
    settings = config.load(args.config, edits, args.data)
    cluster = runtime.detect(settings.runtime)
    runtime.configure(settings.runtime)
    with runtime.ProcessGroup(
        cluster, settings.runtime, Path(settings.run_directory or "runs/run")
    ) as group:
        return train(
            dataclasses.replace(settings, runtime=runtime.shared(settings.runtime)),
            group,
            again=command_line(argv),
        )


def command_line(argv: Sequence[str]) -> str:
    """The command of these arguments, without what makes it one process of several."""
    place = ("runtime.process=", "runtime.processes=", "runtime.coordinator=")
    return shlex.join(
        [
            "python",
            "-m",
            "jaxlm.train",
            *(argument for argument in argv if not argument.startswith(place)),
        ]
    )


class Run(NamedTuple):
    """The parts of a run that its config alone decides."""

    config: Config
    placement: "Placement"
    model: "Model"
    optimizer: Any  # optax.GradientTransformation
    in_flight: int  # steps that may run while the host prepares the next
    example: "Batch"  # of one sample, as the objective makes them


def train(settings: Config, group: runtime.ProcessGroup, again: str) -> int:
    """Trains to the end or to a signal and returns the exit code. `again` is the command that goes on, for the message."""
    from jaxlm import card, checkpoint, data, monitor, state

    directory = group.run_directory
    store = None if group.alone else meet(settings, group)
    with checkpoint.Checkpoints(directory / "checkpoints", settings.checkpoint.keep) as saved:
        # A mistake in the config is said before hours of data preparation.
        newest = saved.latest()
        first_step = newest or 0
        group.agree("step", {"the newest checkpoint": str(newest)})
        if newest is not None:
            settings, changes = checkpoint.resume_config(directory, settings, first_step)
            log(
                f"{directory}: "
                + (
                    f"goes on after step {first_step}"
                    if first_step
                    else "begins with the weights that it has"
                ),
                *changes,
            )
        if first_step >= settings.training.steps:
            log(
                f"{first_step} of {settings.training.steps} steps are done; for more: training.steps=N"
            )
            return 0
        run = assemble(settings, first_step, group.hosts)
        announce(run, group.hosts)
        store = store or data.prepare(*store_arguments(settings), needs=settings.objective.needs)
        check_vocabulary(settings.model, store)
        stream = make_stream(settings, store)
        if first_step:
            checkpoint.check_store(directory, settings, store.hash)
            start = saved.restore(
                first_step, state.abstract_state(run.model, run.optimizer, run.placement)
            )
        elif newest == 0:
            weights = saved.restore_params(
                0, state.abstract_state(run.model, run.optimizer, run.placement).params
            )
            start = state.state_from_params(run.model, run.optimizer, run.placement, weights)
        else:
            start = state.create_state(run.model, run.optimizer, run.placement, settings.seed)
        if not group.leads:
            return loop(
                run,
                store,
                stream,
                start,
                first_step,
                saved,
                monitor.NullMonitor(),
                lambda *_: None,
                group,
            )
        checkpoint.write_run_config(directory, settings, store.hash, runtime.versions())
        store.tokenizer.save(directory / "tokenizer.json")
        with monitor.Monitor(
            directory, settings.training.steps, first_step, settings.logging.tensorboard
        ) as watch:
            watch.text(
                first_step, "config", f"```json\n{(directory / 'config.json').read_text()}\n```"
            )
            began = card.new_start(first_step, list(run.placement.mesh.devices.flat), len(group.hosts))
            note = partial(card.record_progress, directory, began, manifest=store.manifest)
            code = loop(run, store, stream, start, first_step, saved, watch, note, group)
            if code == STOPPED:
                watch.line(f"go on with\n  {again}")
            else:
                write_card(directory, settings, run, watch)
            return code


def meet(settings: Config, group: runtime.ProcessGroup) -> "Store":
    """Brings the processes of a run together: process 0 prepares the data, all meet, and all must be about to run the same."""
    from jaxlm import checkpoint, data

    what, needs = store_arguments(settings), settings.objective.needs
    if group.leads:
        folder = data.prepare(*what, needs=needs).path
    else:
        folder = data.await_store(
            *what,
            ready=group.answers,
            seconds=settings.runtime.preparation_timeout_seconds,
            needs=needs,
        )
    group.meet()
    facts = checkpoint.flat(config.to_dict(settings))
    facts |= {
        "the prepared data": folder.name,
        "jaxlm's code": runtime.code_version(),
    } | runtime.versions()
    group.agree("config", {key: str(value) for key, value in facts.items()})
    return data.open_store(folder)


def store_arguments(settings: Config) -> tuple:
    """What decides the token store, and where its making is told."""
    return settings.data, settings.tokenizer, settings.tokenizer_vocabulary_size, log


def log(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


def assemble(settings: Config, first_step: int, hosts: Sequence[str] = ()) -> Run:
    """Mesh, model and optimizer; ConfigError where they don't fit each other, or the batches from `first_step` on.

    `hosts` are the hosts of the processes.
    """
    from jaxlm import models, objectives, optim, sharding

    example = objectives.example(
        settings.objective, settings.data.sequence_length, settings.tokenizer.sentinels
    )
    devices = runtime.devices(settings.runtime, hosts)
    mesh = sharding.make_mesh(settings.parallel, devices)
    sharding.check_mesh(
        mesh,
        settings.model,
        batch_schedule(settings).sizes(first_step),
        settings.training.microbatches,
        settings.evaluation,
    )
    execution = sharding.build_execution(
        mesh, settings.parallel, settings.precision, settings.runtime.attention
    )
    model = models.build(settings.model, settings.precision, execution)
    placement = sharding.Placement(mesh, model.axes, settings.parallel.zero)
    optimizer = optim.build_optimizer(settings.optimizer, settings.training.steps, model.axes)
    # On CPUs the host's work and the step's share the cores, and emulated devices wait for each other with a deadline that steps
    # that pile up would miss.
    in_flight = 0 if devices[0].platform == "cpu" else 1
    return Run(settings, placement, model, optimizer, in_flight, example)


def announce(run: Run, hosts: Sequence[str]) -> None:
    """Says what is about to run: size, mesh, bytes, kernels, and what may surprise."""
    from jaxlm import sharding, state

    settings, mesh = run.config, run.placement.mesh
    axes = sharding.describe_mesh(mesh, hosts)
    log(
        f"{runtime.describe_devices(list(mesh.devices.flat))}: {axes}, ZeRO {settings.parallel.zero}, {settings.precision.compute}"
    )
    log(f"model: {settings.model.family}, {run.model.parameter_count():,} parameters")
    shapes, where = (
        state.state_shapes(run.model, run.optimizer),
        state.state_shardings(run.model, run.optimizer, run.placement),
    )
    sizes = [
        sharding.bytes_per_device(s, w)
        for s, w in ((shapes.params, where.params), (shapes.optimizer, where.optimizer))
    ]
    log(f"bytes per device: parameters {sizes[0]:,}, optimizer state {sizes[1]:,}")
    execution = sharding.build_execution(
        mesh, settings.parallel, settings.precision, settings.runtime.attention
    )
    try:
        kernels = run.model.kernels(run.example)
    except ValueError as error:
        raise ConfigError("runtime.attention", str(error)) from error
    for name, (kernel, why) in kernels.items():
        log(f"{name}: {kernel} ({why})")
    log(f"blocks {execution.blocks}, remat {execution.remat}")
    if settings.optimizer.warmup_steps > settings.training.steps:
        log(
            f"warning: optimizer.warmup_steps={settings.optimizer.warmup_steps} is cut to training.steps={settings.training.steps}"
        )
    whole = (
        sharding.replicated(shapes.params, run.placement.tree("optimizer", shapes.params))
        if settings.parallel.zero
        else []
    )
    if whole:
        log(
            f"warning: more than 1% of the bytes are not split over parallel.fsdp: {', '.join(whole)}"
        )


def check_vocabulary(model: config.ModelConfig, store: "Store") -> None:
    if store.tokenizer.size > model.vocabulary_size:
        raise ConfigError(
            "model.vocabulary_size",
            f"{model.vocabulary_size} is below the {store.tokenizer.size} ids of the tokenizer",
        )


def loop(
    run: Run,
    store: "Store",
    stream: "Stream",
    state: "TrainState",
    first_step: int,
    saved: "Checkpoints",
    watch: "Monitor | NullMonitor",
    note: Callable[[int, float], None],
    group: runtime.ProcessGroup,
) -> int:
    """The steps from `first_step` on: each a step, then what is due after it. `note` is told the step and seconds of each save."""
    from jaxlm import step
    from jaxlm.data.loader import Share, batches

    settings, steps = run.config, run.config.training.steps
    train_step = step.train_step(
        run.model, run.optimizer, settings.training, run.placement, settings.seed
    )
    evaluate = Evaluation(run, store, stream, state.params, group.leads)
    clock = Throughput(
        settings,
        list(run.placement.mesh.devices.flat),
        stream.objective,
        stream.schedule.first_sample,
        run.in_flight,
    )
    best = saved.best_loss()
    share = Share(stream, run.placement.rows)
    ahead = batches(
        share, first_step, steps, settings.data.prefetch_threads, settings.data.prefetch_batches
    )

    with group.stop_signal() as stop:
        for done, batch in enumerate(ahead, first_step + 1):
            state, metrics = train_step(state, run.placement.put(batch))
            clock.tick(done, metrics)
            scores: dict[str, float] = {}
            last = done == steps
            stopping = stop.reached(done) and not last

            # The row of a step holds that step's own loss, so that a resumed run writes the rows that an unbroken one would.
            if due(done, settings.logging.every_steps) or last:
                values = clock.read(done, metrics)
                watch.scalars(done, values)
                watch.progress(done, values)

            # The same windows each time; always at the end.
            if (due(done, settings.evaluation.every_steps) or last) and not stopping:
                with clock.paused(metrics):
                    scores = evaluate(state.params)
                watch.scalars(done, scores)
                watch.line(f"step {done}: validation " + evaluate.describe(scores))

            # The newest, and the best whenever there is a better one.
            better = bool(scores) and scores["eval/loss"] < best
            if due(done, settings.checkpoint.every_steps) or better or stopping or last:
                with clock.paused(metrics):
                    clock.read(done, metrics)
                    saved.save(done, state, scores)
                    note(done, clock.wall())
                best = min(best, scores.get("eval/loss", best))
            if stopping:
                saved.wait()
                watch.line(f"stopped by {stop.requested} after step {done} of {steps}; saved")
                return STOPPED
        saved.wait()
    watch.line(
        f"trained {steps - first_step} steps, {clock.tokens(steps) - clock.tokens(first_step):,} tokens in {clock.wall():.1f} s"
    )
    show_samples(run, store, evaluate.windows, state.params, watch)
    return 0


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def batch_schedule(settings: Config) -> "BatchSchedule":
    from jaxlm.data.schedule import BatchSchedule

    return BatchSchedule(settings.training.batch_size, settings.training.batch_schedule)


def make_stream(settings: Config, store: "Store") -> "Stream":
    from jaxlm import objectives
    from jaxlm.data.stream import Stream

    weights, names = zip(
        *((source.weight, source.name) for source in settings.data.sources), strict=True
    )
    objective = objectives.build(
        settings.objective, settings.data.sequence_length, store.tokenizer.vocabulary
    )
    return Stream(store.train, weights, names, objective, batch_schedule(settings), settings.seed)


class Evaluation:
    """The validation split, scored on the same windows each time."""

    def __init__(self, run: Run, store: "Store", stream: "Stream", params: Any, leads: bool):
        from jaxlm import step
        from jaxlm.data.loader import Share
        from jaxlm.evaluation.validation import EvaluationWindows

        settings = run.config
        size = settings.evaluation.batch_size or settings.training.batch_size
        size += -size % (
            run.placement.mesh.shape["data"] * run.placement.mesh.shape["fsdp"]
        )  # a past batch size may not divide
        self.windows = EvaluationWindows(
            store.validation, stream.objective, size, settings.evaluation.draws, settings.seed
        )
        self.share = Share(self.windows, run.placement.rows)
        self.step = step.eval_step(run.model, settings.training, run.placement, params)
        self.run, self.store, self.leads = run, store, leads

    @cached_property
    def unigram_entropy(self) -> float:
        """Nats per target that their frequencies alone would give: the yardstick where there are no bytes to count."""
        from jaxlm.evaluation.validation import unigram_entropy

        return unigram_entropy(self.windows, self.run.config.evaluation.steps)[0]

    def __call__(self, params: Any) -> dict[str, float]:
        """eval/loss, eval/perplexity and what else the objective is judged by."""
        from jaxlm.evaluation import scoring

        kind, batches = self.run.config.objective.kind, self.run.config.evaluation.steps
        score = scoring.evaluate(
            self.step, params, self.share, batches, self.run.placement.put, self.run.in_flight
        )
        values = {"eval/loss": score.loss, "eval/perplexity": score.perplexity}
        if kind == "causal":
            targets = sum(len(array) - 1 for array in self.store.validation)
            return values | {
                "eval/bits_per_byte": scoring.bits_per_byte(
                    score.loss, targets, self.store.validation_bytes
                )
            }
        if kind == "masked":
            values["eval/masked_accuracy"] = score.accuracy
        if not self.leads:  # the entropy takes all rows, and only process 0 shows it
            return values
        return values | {
            "eval/unigram_entropy": self.unigram_entropy,
            "eval/targets": score.targets,
        }

    def describe(self, scores: dict[str, float]) -> str:
        text = f"loss {scores['eval/loss']:.4f}"
        if "eval/masked_accuracy" in scores:
            text += f", {scores['eval/masked_accuracy']:.1%} right"
        if "eval/unigram_entropy" in scores:
            entropy, targets = scores["eval/unigram_entropy"], int(scores["eval/targets"])
            return f"{text} (unigram entropy of the {targets:,} targets {entropy:.4f}: {scores['eval/loss'] / entropy:.3f} of it)"
        if "eval/bits_per_byte" not in scores:
            return text
        sizes = {"gzip -9": self.store.gzip_bytes, "xz -9": self.store.xz_bytes}
        packed = [
            f"{name} {8 * size / self.store.validation_bytes:.4f}"
            for name, size in sizes.items()
            if size
        ]
        return f"{text}, {scores['eval/bits_per_byte']:.4f} bits per byte" + (
            f" ({', '.join(packed)})" if packed else ""
        )


def write_card(directory: Path, settings: Config, run: Run, watch: "Monitor | NullMonitor") -> None:
    """The model card; what is wrong with an old one that it can't replace is no reason to fail."""
    from jaxlm import card

    try:
        path = card.write_card(directory, card.gather_facts(directory, settings, run.model.parameter_count()))
        watch.line(f"model card: {path}")
    except config.UserError as error:
        watch.line(f"warning: no model card: {error}")


def show_samples(
    run: Run, store: "Store", windows: Any, params: Any, watch: "Monitor | NullMonitor"
) -> None:
    """Prints what the model writes, or how it fills what was hidden in the first texts of the evaluation."""
    from jaxlm import decoding

    settings = run.config
    if not settings.evaluation.samples:
        return
    texts = decoding.samples(
        run.model,
        params,
        store.tokenizer,
        settings.evaluation,
        settings.data.sequence_length,
        windows,
        settings.seed,
    )
    for number, text in enumerate(texts, 1):
        watch.line(f"--- sample {number} ---\n{text}")
        watch.text(settings.training.steps, f"sample/{number}", f"```\n{text}\n```")


if __name__ == "__main__":
    runtime.run(main)
