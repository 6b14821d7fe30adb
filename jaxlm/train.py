"""python -m jaxlm.train --config FILE [key=value ...]: train a language model, or resume a run.

This is the command alone; `trainer.py` does the work. It is imported once the platform is set up,
since environment variables and options must be set before jax is loaded.
"""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxlm import config, cooldown, data, hardware, runtime
from jaxlm.directories import CONFIG_FILE, check_is_not_quantized, is_run

EXAMPLE = """examples:
  python -m jaxlm.train --config configs/quickstart.py
  python -m jaxlm.train --config configs/quickstart.py training.steps=200 --data 'books/*.txt'
  python -m jaxlm.train --config configs/quickstart.py --devices 8 parallel.zero=3 \\
      run_directory=runs/sharded
  launch/local.sh 2 --config configs/quickstart.py --devices 4 parallel.zero=3
  python -m jaxlm.train --config configs/llama2_7b.py --rehearse h100:64
  python -m jaxlm.train --config runs/long/config.json --cooldown 8000

The same command resumes the run in run_directory where it stopped.
jaxlm/config/schema.py lists the keys."""


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    args = build_train_parser().parse_intermixed_args(argv)
    edits = [*args.edits, *([f"runtime.devices={args.devices}"] if args.devices else [])]
    if args.cooldown is not None:
        edits.append("optimizer.schedule=wsd")
    run_config = config.load(args.config, edits, args.data)
    if args.rehearse is not None:
        from jaxlm.plan import compile_command

        return compile_command.rehearse(run_config, hardware.parse_cluster(args.rehearse))
    if not any(edit.startswith("run_directory=") for edit in edits):
        run_config = adopt_folder(run_config, Path(args.config))

    cooled_run = None
    if args.cooldown is not None:
        run_config, cooled_run = cooldown.plan_cooldown(run_config, args.cooldown, edits)

    cluster = runtime.detect_cluster(run_config.runtime)
    directory = Path(run_config.run_directory or "runs/run")
    for folder in (Path(args.config).parent, directory):
        check_is_not_quantized(folder, "train the run that they were made of")
    run_config = check_config(run_config, cluster, is_new=not is_run(directory))
    runtime.configure(run_config.runtime, trains=True)

    with runtime.ProcessGroup(cluster, run_config.runtime, directory) as group:
        from jaxlm import trainer
        from jaxlm.data.rules import load_predicate

        if args.cooldown is not None and group.is_leader:
            assert cooled_run is not None
            cooldown.copy_run(cooled_run, args.cooldown, directory)

        # Where this process stands in its run is no part of the config, which all processes share.
        run_config = dataclasses.replace(
            run_config, runtime=runtime.without_process_fields(run_config.runtime)
        )
        predicate = None if args.keep is None else load_predicate(args.keep)
        with runtime.memory_errors(runtime.memory_advice(args.config, edits)):
            return trainer.train(run_config, group, resume_command(argv), predicate)


def check_config(
    run_config: config.Config, cluster: runtime.Cluster, *, is_new: bool
) -> config.Config:
    """Return the config with the precision and devices that suit this CPU, if it asks for them.

    Raises ConfigError for what can be known before jax is imported: a new run that can't be
    trained, and its missing data. A run with checkpoints may be done, and compares its config with
    the saved one first.
    """
    from jaxlm import run_checks

    run_checks.check_trainable(run_config)
    if is_new:
        run_checks.check_sample(run_config)
    if cluster.processes == 1:  # of several only the first one reads the data
        if is_new:
            data.check_files(run_config.data)
        run_config = runtime.settle_cpu(run_config)

    devices = runtime.count_devices(run_config.runtime, cluster.processes)
    if is_new and devices is not None:
        run_checks.check_mesh(run_config, devices, first_step=0)
    return run_config


def adopt_folder(run_config: config.Config, path: Path) -> config.Config:
    """Return the config of the run in whose folder the config.json at `path` lies.

    A run may have been moved: its own config.json means the folder that it is in, and paths of
    texts that are not found from here are looked up beside that folder, as from where the run was
    started. Any other config is returned as it is.
    """
    folder, saved = path.parent, Path(run_config.run_directory or "runs/run")
    if path.name != CONFIG_FILE or not is_run(folder):
        return run_config

    run_config = config.find_moved(run_config, folder)
    if saved.resolve() != folder.resolve():
        print(f"{path}: the run was saved as {saved}; its folder is now {folder}", flush=True)
        run_config = dataclasses.replace(run_config, run_directory=str(folder))
    return run_config


def build_train_parser() -> runtime.Parser:
    """Return the parser of the command's arguments."""
    parser = runtime.Parser(
        prog="python -m jaxlm.train",
        description="Pretrain a language model: prepare the data, train, evaluate, save, resume.",
        epilog=EXAMPLE,
    )

    runtime.add_config_arguments(parser, data_use="train on", example="model.layers=12")
    runtime.add_keep_argument(parser)
    parser.add_argument(
        "--devices", metavar="N", help="the same as runtime.devices=N: of each process"
    )
    parser.add_argument(
        "--cooldown",
        metavar="STEP",
        type=int,
        help="copy the run up to this checkpoint, and let the learning rate fall from there on",
    )
    parser.add_argument(
        "--rehearse",
        metavar="GPUS",
        help="compile the step for GPUs that are not there, such as h100:64, and train nothing",
    )
    return parser


def resume_command(argv: Sequence[str]) -> str:
    """Return the command of these arguments, without those that make it one process of several."""
    process_keys = ("runtime.process=", "runtime.processes=", "runtime.coordinator=")
    arguments = [argument for argument in argv if not argument.startswith(process_keys)]
    return shlex.join(["python", "-m", "jaxlm.train", *arguments])


if __name__ == "__main__":
    runtime.run(main)
