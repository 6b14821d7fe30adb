"""Time and memory of packed rows, with a synthetic store of a million documents.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/data/packing_speed.py [DOCUMENTS]

Prints for each objective the seconds from opening the source to the first batch, without and with
the file of the packing, the memory that this took, and the tokens per second of further batches.
"""

import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.texts import END, FIRST_ORDINARY, SIZE, build_objective

from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.stream import Stream

LENGTH, ROWS, BATCHES = 1024, 64, 30
UINT16 = np.dtype("<u2")


def write_documents(folder: Path, count: int) -> int:
    """Write documents of log-normal lengths, 190 tokens in the mean, and return their tokens."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(np.exp(rng.normal(4.8, 1.0, count)).astype(int) + 2, 5000)
    ends = np.cumsum(lengths)
    tokens = rng.integers(FIRST_ORDINARY, SIZE, int(ends[-1]), dtype=UINT16)
    tokens[ends - 1] = END
    tokens.tofile(folder / "train-0-00000.bin")
    np.concatenate([[0], ends]).astype("<i8").tofile(folder / "train-0.offsets")
    return len(tokens)


def open_stream(folder: Path, tokens: int, documents: int, kind: str) -> Stream:
    """Return the stream of packed rows of the documents."""
    array = TokenArray(
        [folder / "train-0-00000.bin"],
        [tokens],
        UINT16,
        offsets=folder / "train-0.offsets",
        documents=documents,
    )
    return Stream(
        [array],
        weights=[1.0],
        names=["text"],
        objective=build_objective(kind, LENGTH),
        schedule=BatchSchedule(ROWS),
        seed=0,
        sequences="packed",
    )


def main() -> None:
    documents = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = write_documents(folder, documents)
        for kind in ("causal", "masked", "span", "infilling"):
            for file in folder.glob("*packing*"):
                file.unlink()
            seconds = []
            for _ in range(2):
                start = time.perf_counter()
                stream = open_stream(folder, tokens, documents, kind)
                batch = stream[0]
                seconds.append(time.perf_counter() - start)

            start = time.perf_counter()
            for step in range(1, BATCHES + 1):
                batch = stream[step]
            speed = BATCHES * ROWS * LENGTH / (time.perf_counter() - start)

            tracemalloc.start()
            stream = open_stream(folder, tokens, documents, kind)
            allocated, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            print(
                f"{kind}: first batch after {seconds[0]:.2f} s, {seconds[1]:.2f} s with the file; "
                f"{allocated / documents:.3f} bytes per document; "
                f"{speed / 1e6:.1f}M tokens/s; {np.mean(batch.segments > 0):.2%} of a batch is text"
            )


if __name__ == "__main__":
    main()
