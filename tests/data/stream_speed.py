"""Tokens per second of the stream on one core, for every objective and layout of samples.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/data/stream_speed.py [DOCUMENTS]

Two sources of synthetic documents, 190 tokens in the mean, are mixed with a schedule that changes
their weights. A batch has 64 samples of 1,024 tokens; of five rounds of 15 batches the best counts.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from packing_speed import LENGTH, ROWS, UINT16, write_documents
from support.texts import VOCABULARY, build_objective

from jaxlm import objectives
from jaxlm.config import ObjectiveConfig
from jaxlm.data.pairs import PairArray
from jaxlm.data.schedule import BatchSchedule, MixtureSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.stream import Stream
from jaxlm.objectives import Objective

ROUNDS, BATCHES = 5, 15
MIXTURE = MixtureSchedule((3.0, 1.0), ((20, (1.0, 2.0)),))
PARTS = (
    ObjectiveConfig(kind="span", weight=2.0),
    ObjectiveConfig(kind="span", denoiser="X", noise_share=0.15, mean_span=32.0),
    ObjectiveConfig(kind="infilling", decoder_start="pad"),
)
# UL2's mixture takes 255 sentinels for 1,024 tokens.
VOCABULARY_OF_MANY = VOCABULARY._replace(sentinels=np.arange(4, 304, dtype=np.int32))


def build(kind: str) -> Objective:
    options = {"parts": PARTS} if kind == "mixture" else {}
    return build_objective(kind, LENGTH, VOCABULARY_OF_MANY, **options)


def open_stream(
    folder: Path, tokens: int, documents: int, objective: Objective, sequences: str, is_pairs: bool
) -> Stream:
    """Return the stream of two sources with the same documents."""
    offsets = folder / "train-0.offsets"
    text = TokenArray(
        [folder / "train-0-00000.bin"], [tokens], UINT16, offsets=offsets, documents=documents
    )
    array = PairArray(text, offsets, documents // 2, VOCABULARY) if is_pairs else text
    stream = Stream(
        [array, array],
        weights=MIXTURE.weights,
        names=["a", "b"],
        objective=objective,
        schedule=BatchSchedule(ROWS),
        seed=0,
        sequences=sequences,
    )
    stream.set_mixture(MIXTURE)
    return stream


def measure(stream: Stream) -> float:
    """Return the tokens per second: those of `data.sequence_length` in each sample."""
    stream.make_batch(np.arange(ROWS))
    seconds = []
    for first in range(0, ROUNDS * BATCHES, BATCHES):
        start = time.perf_counter()
        for step in range(first, first + BATCHES):
            stream[step]
        seconds.append(time.perf_counter() - start)
    return BATCHES * ROWS * LENGTH / min(seconds)


def main() -> None:
    documents = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = write_documents(folder, documents)
        for kind in (*objectives.BUILDERS, "mixture_of_denoisers", "mixture"):
            objective = build(kind)
            for sequences in ("windows", "packed", "documents"):
                if sequences == "windows" or objective.packed is not None:
                    stream = open_stream(
                        folder, tokens, documents, objective, sequences, kind == "pairs"
                    )
                    print(f"{kind:20}  {sequences:9}  {measure(stream) / 1e6:5.1f}M tokens/s")


if __name__ == "__main__":
    main()
