"""Every objective reads the same samples on any number of processes, and after a resume."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.texts import END, FIRST_ORDINARY, SIZE, VOCABULARY, build_objective
from support.token_arrays import UINT32, batches_equal

from jaxlm import objectives
from jaxlm.config import ObjectiveConfig
from jaxlm.data.loader import LocalBatches, prefetch_batches
from jaxlm.data.pairs import PairArray
from jaxlm.data.samples import SampleArray
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.data.shards import TokenArray, TokenWriter
from jaxlm.data.stream import Stream
from jaxlm.objectives import Objective
from jaxlm.types import Batch

LENGTH, STEPS = 64, 9
# Both the batch and the mixture change on the way, the second between two resumes.
BATCHES = BatchSchedule(8, ((3, 12),))
MIXTURE = MixtureSchedule((3.0, 1.0), ((4, (1.0, 5.0)), (7, (0.0, 1.0))))

OPTIONS = {
    "fill_in_the_middle": {"fim_rate": 0.7},
    "infilling": {"shuffle_sentences": True},
    "mixture": {
        "parts": (
            ObjectiveConfig(kind="span", weight=2.0),
            ObjectiveConfig(kind="span", denoiser="X", noise_share=0.5),
            ObjectiveConfig(kind="infilling", decoder_start="pad"),
        )
    },
}


def build(kind: str) -> Objective:
    return build_objective(kind, LENGTH, **OPTIONS.get(kind, {}))


CASES = [
    (kind, sequences)
    for kind in (*objectives.BUILDERS, "mixture_of_denoisers", "mixture")
    for sequences in ("windows", "packed", "documents")
    if sequences == "windows" or build(kind).packed is not None
]


def open_source(folder: Path, kind: str, seed: int, documents: int) -> SampleArray:
    """Open the random documents of a source, written if they are not there."""
    lengths = np.random.default_rng(seed).integers(3, 90, documents)
    paths = [folder / f"{seed}-00000.bin"]
    if not paths[0].exists():
        writer = TokenWriter(folder, str(seed), UINT32, shard_tokens=1 << 20)
        for number, length in enumerate(lengths):
            rng = np.random.default_rng([seed, number])
            writer.add(rng.integers(FIRST_ORDINARY, SIZE, length - 1))
            writer.end_document(END)
        writer.close()

    offsets = folder / f"{seed}.offsets"
    total = int(lengths.sum())
    tokens = TokenArray(paths, [total], UINT32, offsets=offsets, documents=documents)
    return PairArray(tokens, offsets, documents // 2, VOCABULARY) if kind == "pairs" else tokens


def open_stream(folder: Path, kind: str, sequences: str) -> Stream:
    """Open the stream as another process does, with nothing in its memory yet."""
    stream = Stream(
        [open_source(folder, kind, seed=1, documents=60), open_source(folder, kind, 2, 34)],
        weights=MIXTURE.weights,
        names=["a", "b"],
        objective=build(kind),
        schedule=BATCHES,
        seed=5,
        sequences=sequences,
    )
    stream.set_mixture(MIXTURE)
    return stream


def join(parts: tuple[Batch, ...]) -> Batch:
    """Return the global batch of the rows of all processes."""
    return Batch(
        *(None if field[0] is None else np.concatenate(field) for field in zip(*parts, strict=True))
    )


@pytest.mark.parametrize(("kind", "sequences"), CASES)
def test_processes_and_resumes_read_the_batches_of_one_process(tmp_path, kind, sequences):
    one = open_stream(tmp_path, kind, sequences)
    expected = [one[step] for step in range(STEPS)]
    assert [len(batch.targets) for batch in expected[2:4]] == [8, 12]
    assert not any(itertools.starmap(batches_equal, itertools.pairwise(expected)))

    for processes, first_step in ((1, 5), (2, 0), (4, 6)):
        loaded = []
        for process in range(processes):
            local = LocalBatches(
                open_stream(tmp_path, kind, sequences),
                lambda size, number=process, count=processes: (
                    size * number // count,
                    size * (number + 1) // count,
                ),
            )
            loaded.append(prefetch_batches(local, first_step, STEPS, threads=2, buffer=2))
        joined = map(join, zip(*loaded, strict=True))
        assert all(map(batches_equal, joined, expected[first_step:])), (processes, first_step)
