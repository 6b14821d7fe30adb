"""Time the step of a small decoder in one precision: a process of `runtime/cpu_choice.py`.

python -m jaxlm.benchmark.cpu_step '["bfloat16", 2]'
"""

import json
import statistics
import sys
from dataclasses import replace

from jaxlm import config, runtime
from jaxlm.runtime.cpu_choice import CpuChoice

STEPS, WARM_UP = 6, 2

# Wide enough for the products to decide, and a second or two of training in all.
SMALL = config.Config(
    model=config.ModelConfig(
        vocabulary_size=1024, layers=2, width=256, heads=4, context_length=256
    ),
    tokenizer=config.TokenizerConfig(kind="bytes"),
    data=config.DataConfig(sequence_length=256),
    training=config.TrainingConfig(batch_size=8),
)


def main() -> None:
    """Print the median seconds of a step."""
    compute, devices = CpuChoice(*json.loads(sys.argv[1]))
    small = replace(
        SMALL,
        precision=config.PrecisionConfig(compute=compute),  # type: ignore[arg-type]
        runtime=config.RuntimeConfig(platform="cpu", devices=devices),
    )
    runtime.configure(small.runtime, trains=True)

    from jaxlm.benchmark import measure
    from jaxlm.benchmark.start_up import StartUp

    program = measure.start(small, None, StartUp())
    steps = measure.run_steps(program, program.state, WARM_UP + STEPS)
    print(statistics.median(steps.seconds[WARM_UP:]))


if __name__ == "__main__":
    main()
