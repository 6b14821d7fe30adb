"""Convert models.

python -m jaxlm.convert import HF_DIR RUN | export RUN OUT | quantize DIR OUT | extend DIR OUT
"""

import shlex
import sys
from collections.abc import Sequence

from jaxlm import config, runtime
from jaxlm.config import UserError
from jaxlm.config.fields import shorten, suggestion
from jaxlm.conversion.arguments import COMMANDS, build_convert_parser
from jaxlm.conversion.extend_command import run_extend_command
from jaxlm.directories import (
    check_is_not_quantized,
    check_model_directory,
    check_run_directory,
    is_adapter,
)


def check_command(argv: Sequence[str]) -> None:
    """Raise UserError, with the nearest command, unless the first word is one."""
    words = [word for word in argv if not word.startswith("-")]
    if words and words[0] not in COMMANDS:
        near = suggestion(words[0], COMMANDS)
        raise UserError(
            f"{shorten(words[0])} is no command{near}: write import HF_DIR RUN, export RUN OUT, "
            "quantize RUN|HF_DIR OUT, or extend RUN|HF_DIR OUT"
        )


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    check_command(argv)
    args = build_convert_parser().parse_args(argv)
    if args.command == "export":
        check_run_directory(args.run)
        check_is_not_quantized(args.run, "export the run itself, or quantize for jaxlm")
    elif args.command == "import" and is_adapter(args.directory):
        pass
    else:
        check_model_directory(args.directory)
        reason = "a run needs the weights that they were made of"
        if args.command == "quantize":
            reason = "to round them again loses more; take what they were made of"
        check_is_not_quantized(args.directory, reason)
    if args.command in ("export", "quantize") and args.bits != 4 and args.group is not None:
        raise UserError("--group is for --bits 4: at 8 bits all inputs of a channel share a scale")
    if args.command == "extend":
        return run_extend_command(args)
    if args.command == "export" and args.adapter and (args.bits or args.archive):
        option = "--bits" if args.bits else "--archive"
        raise UserError(f"{option} is for whole models, which --adapter doesn't write")
    runtime.configure(config.RuntimeConfig(platform="cpu"))
    from jaxlm import interop
    from jaxlm.conversion.adapters import export_adapter, import_adapter
    from jaxlm.conversion.export_run import export_run
    from jaxlm.conversion.import_model import import_model
    from jaxlm.conversion.quantize import quantize_model

    if args.command == "quantize":
        rounded = quantize_model(
            args.directory,
            args.out,
            bits=args.bits,
            group=args.group,
            step=args.step,
            ema=args.ema,
        )
        place = f" of step {rounded.step}" if rounded.step is not None else ""
        print(
            f"{args.out}: int{args.bits}{place}, {rounded.parameter_count:,} parameters in "
            f"{rounded.bytes:,} bytes, {rounded.bytes / rounded.float32_bytes:.3f} of float32's",
            flush=True,
        )
        return 0

    if args.command == "import":
        read = import_adapter if is_adapter(args.directory) else import_model
        imported = read(args.directory, args.run, args.edits)
        for note in imported.notes:
            print(f"note: {note}", flush=True)
        print_warnings(imported.warnings)
        objective = imported.config.objective.kind
        data = "PAIRS.jsonl" if objective == "pairs" else "TEXT"
        run_config = shlex.quote(str(args.run / "config.json"))
        print(
            f"{args.run}: {imported.model_type}, objective {objective}. Train it with\n"
            f"  python -m jaxlm.train --config {run_config} --data {data} training.steps=N",
            flush=True,
        )
        return 0

    if args.adapter:
        written = export_adapter(args.run, args.out, step=args.step, best=args.best, ema=args.ema)
        print(
            f"{args.out}: adapter of {written.model_type} of step {written.step}, "
            f"{written.parameter_count:,} parameters",
            flush=True,
        )
        return 0

    packing = None if args.bits is None else interop.Packing(args.bits, args.group)
    exported = export_run(
        args.run,
        args.out,
        step=args.step,
        best=args.best,
        ema=args.ema,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        archive=args.archive,
        packing=packing,
    )
    print_warnings(exported.warnings)
    print(
        f"{args.out}: {exported.model_type} of step {exported.step}, {args.dtype}, "
        f"{exported.parameter_count:,} parameters",
        flush=True,
    )
    return 0


def print_warnings(warnings: Sequence[str]) -> None:
    """Print what is wrong with a model on stderr."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    runtime.run(main)
