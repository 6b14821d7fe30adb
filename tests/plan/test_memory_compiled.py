"""Estimates of memory against the compiler's, for GPUs that are not there.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. The campaign compiles every recipe with each
policy of recomputation, and prints the table of docs/planning.md.
"""

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import lowered_step, recipe

from jaxlm import hardware
from jaxlm.plan.memory import estimate_memory

H100 = hardware.find_accelerator("h100")
TOLERANCE = 0.1  # of the peak: what the verdict may be wrong by
STATE_TOLERANCE = 0.001
GPUS_PER_MACHINE = 8

# The GPUs that each recipe is written for.
RECIPES = {
    "gpt2_124m": 8,
    "bert_base": 8,
    "roberta_base": 8,
    "electra_small": 1,
    "bloom_560m": 8,
    "llama_1b": 8,
    "llama2_7b": 64,
    "t5_base": 8,
    "bart_base": 8,
    "quickstart": 1,
    "quickstart_encoder": 1,
    "quickstart_encoder_decoder": 1,
    "nanogpt_shakespeare": 1,
}
POLICIES = ("none", "weights", "dots", "full")


def compare(name: str, gpus: int, *edits: str) -> tuple[float, float, str]:
    """Return the errors of the arguments and of the peak, as shares, and a line that shows both."""
    run_config = recipe(name, *edits)
    machines = max(1, gpus // GPUS_PER_MACHINE)
    lowered = lowered_step(run_config, gpus // machines, machines, attention="auto")
    compiled = lowered.compile().memory_analysis()
    estimate = estimate_memory(run_config, gpus, H100)

    arguments = estimate.parameters + estimate.optimizer + estimate.working["batch"]
    argument_error = arguments / compiled.argument_size_in_bytes - 1
    peak_error = estimate.total / compiled.peak_memory_in_bytes - 1
    peaks = f"{estimate.total / 1e9:.3f} | {compiled.peak_memory_in_bytes / 1e9:.3f}"
    line = f"| {name} {' '.join(edits)} | {gpus} | {peaks} | {peak_error:+.1%} |"
    return argument_error, peak_error, line


CASES = [
    ("quickstart", 1, "parallel.remat=none"),
    ("nanogpt_shakespeare", 1, "parallel.remat=full"),
    ("llama_1b", 8, "parallel.remat=full"),
    ("llama_1b", 8, "parallel.remat=none"),
    ("gpt2_124m", 8, "parallel.remat=full", "parallel.zero=2", "model.layers=4"),
    ("bert_base", 8, "parallel.remat=full", "model.layers=4"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_the_estimate_is_the_compilers_peak(case):
    argument_error, peak_error, line = compare(*case)
    assert abs(argument_error) < STATE_TOLERANCE and abs(peak_error) < TOLERANCE, line


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_state_is_the_compilers_arguments(zero):
    argument_error, _, line = compare(
        "gpt2_124m", 8, f"parallel.zero={zero}", "model.layers=2", "training.microbatches=4"
    )
    assert abs(argument_error) < STATE_TOLERANCE, line


@pytest.mark.campaign
def test_every_recipe_with_every_policy_and_stage(capsys):
    failures, lines = [], []
    for name, gpus in RECIPES.items():
        variants = [(gpus, (f"parallel.remat={policy}",)) for policy in POLICIES]
        variants += [(8, (f"parallel.zero={zero}",)) for zero in range(4)]
        for count, edits in variants:
            if recipe(name).training.batch_size % count:
                continue  # nanoGPT's 12 sequences
            argument_error, peak_error, line = compare(name, count, *edits)
            lines.append(line)
            if abs(argument_error) > STATE_TOLERANCE or abs(peak_error) > TOLERANCE:
                failures.append(line)
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert not failures, "\n".join(failures)
