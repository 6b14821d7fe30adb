"""The step that bench records on a GPU, compiled for one that is not there.

Needs the CUDA plugin of jax (extra `cuda`), no GPU. Run with: pytest -m "aot and not campaign"
"""

import re
from collections import Counter

import pytest

pytestmark = pytest.mark.aot
pytest.importorskip("jax_cuda13_plugin", reason="needs the extra `cuda`")

from support.gpu_programs import lowered_step, recipe

from jaxlm.benchmark.parts import OTHER, assign_parts
from jaxlm.benchmark.profile import RECORDING_OPTIONS


@pytest.fixture(scope="module")
def lowered():
    """The step of one layer on one GPU, with a loss in tiles."""
    edits = ("model.layers=1", "training.batch_size=8", "training.microbatches=1")
    return lowered_step(recipe("gpt2_124m", *edits, "parallel.zero=0", "training.loss_tile=512"), 1)


def compile_and_dump(lowered, folder, options):
    """Return the program's text, and the names that its launches have in a trace."""
    dump = {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
    text = lowered.compile(compiler_options={**options, **dump}).as_text()
    (launches,) = folder.glob("*.jit_step.thunk_metadata.txt")
    return text, re.findall(r'profile_annotation: "(.*)"', launches.read_text())


def test_a_trace_names_the_instruction_of_each_kernel(lowered, tmp_path):
    text, names = compile_and_dump(lowered, tmp_path / "recorded", RECORDING_OPTIONS)
    operations = assign_parts(text)
    # Slices of a tile that are copied aside stand in an asynchronous instruction.
    unknown = {name for name in names if name not in operations}
    assert all("dynamic" in name for name in unknown) and len(unknown) <= 2, unknown
    parts = Counter(operations[name].part for name in names if name in operations)
    assert all(parts[part] >= 5 for part in ("attention", "mlp", "head_and_loss", "optimizer"))
    assert parts[OTHER] < 0.2 * parts.total()

    # The timed step has the same instructions, but a trace of it would not name them.
    timed, names = compile_and_dump(lowered, tmp_path / "timed", {})
    assert timed == text
    assert any(name.startswith("command_buffer") for name in names)
