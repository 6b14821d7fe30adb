"""One short run, checked against what its config says by functions of data, objectives and models.

Two sources of unequal weight, a BPE, a seed, and an evaluation of one batch: whatever does not
reach its place in the trainer changes a figure here.
"""

import contextlib
import io
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from jaxlm import checkpoint, config, data, models, objectives
from jaxlm.checkpoint import Checkpoints
from jaxlm.config import Config
from jaxlm.data.schedule import BatchSchedule
from jaxlm.data.shards import TokenArray
from jaxlm.data.stream import Stream
from jaxlm.throughput import Throughput
from jaxlm.types import Batch

STEPS, SEED, WEIGHTS = 4, 3, (3.0, 1.0)
EDITS = (
    f"training.steps={STEPS}",
    f"seed={SEED}",
    "model.dropout=0",
    "model.vocabulary_size=300",
    "tokenizer.kind=bpe",
    "evaluation.every_steps=0",
    "evaluation.steps=1",
    "checkpoint.every_steps=0",
)
SOURCES = """    data=DataConfig(
        sources=(
            SourceConfig(name="nature", path="text.txt", weight=3.0),
            SourceConfig(name="town", path="town.txt", weight=1.0),
        ),
"""


class FinishedRun(NamedTuple):
    """The run, and what was tried while its second step was under way."""

    config: Config
    store: data.Store
    model: models.Model
    rows: dict[str, list]
    folder: Path
    second_trainer: int  # the exit code of one that was started in the same directory
    second_error: str
    implicit_transfer: str  # the error of one within the loop


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("by_hand")
    write_texts(folder)
    attempts: list[Any] = []
    wait = Throughput.wait

    def wait_and_try(throughput, step, metrics):
        wait(throughput, step, metrics)
        if step == 2:
            with contextlib.redirect_stderr(io.StringIO()) as error:
                attempts.extend([tiny_run.run(*EDITS), error.getvalue()])
            with pytest.raises(Exception, match="isallowed") as transfer:
                jnp.sin(np.ones(3, np.float32))
            attempts.append(str(transfer.value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "wait", wait_and_try)
        patch.chdir(folder)
        assert tiny_run.run(*EDITS) == 0
        run_config, store_hash = checkpoint.read_run_config(Path("runs/tiny"))
        assert store_hash is not None
        store = data.open_store(folder / "stores" / store_hash)
        rows = tiny_run.rows()
    model = models.build(run_config.model, run_config.precision)
    return FinishedRun(run_config, store, model, rows, folder, *attempts)


def write_texts(folder: Path) -> None:
    """Write the recipe with two sources of different words."""
    tiny_run.write_recipe(folder)
    words = random.Random(1).choices(["street", "market", "church", "window", "a", "to"], k=4000)
    (folder / "town.txt").write_text(" ".join(words))
    head, _, rest = tiny_run.RECIPE.partition("    data=DataConfig(\n")
    _, _, tail = rest.partition("\n")
    (folder / "tiny.py").write_text(head + SOURCES + tail)


def build_stream(run: FinishedRun, weights=WEIGHTS, seed=SEED) -> Stream:
    vocabulary = run.store.tokenizer.vocabulary
    objective = objectives.build(config.ObjectiveConfig(kind="causal"), 32, vocabulary)
    names = ("nature", "town")
    return Stream(
        run.store.train,
        weights=weights,
        names=names,
        objective=objective,
        schedule=BatchSchedule(8),
        seed=seed,
    )


def losses_of(model: models.Model, params, windows: np.ndarray) -> np.ndarray:
    """Return the cross-entropy of every token but the first in float64, in nats: [B, L]."""
    tokens, targets = windows[:, :-1], windows[:, 1:, None]
    logits = np.asarray(jax.jit(model.apply)(params, Batch(tokens=tokens)), np.float64)
    maximum = logits.max(axis=-1, keepdims=True)
    log_sums = np.log(np.exp(logits - maximum).sum(axis=-1)) + maximum[..., 0]
    return log_sums - np.take_along_axis(logits, targets, axis=-1)[..., 0]


def test_seed_and_weights_reach_the_first_loss(finished):
    def first_loss(init=SEED, stream=SEED, weights=WEIGHTS):
        params = jax.jit(finished.model.init)(jax.random.key(init))
        windows = build_stream(finished, weights=weights, seed=stream).read_windows(np.arange(8))
        return losses_of(finished.model, params, windows).mean()

    loss = finished.rows["train/loss"][0][1]
    assert loss == pytest.approx(first_loss(), abs=1e-5)
    # What the equation can tell apart: each of these is at least 10 times the tolerance away.
    for other in (first_loss(init=0), first_loss(stream=0), first_loss(weights=(1.0, 1.0))):
        assert abs(loss - other) > 1e-4


def restore_params(run: FinishedRun):
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes
    )
    with Checkpoints(run.folder / "runs/tiny/checkpoints", keep=2) as checkpoints:
        return checkpoints.restore_params(STEPS, abstract)


def evaluated_windows(run: FinishedRun) -> list[tuple[int, np.ndarray]]:
    """Return (source, tokens) of the 8 windows that one batch scores, cut by hand.

    Windows of 33 tokens, 32 apart, the last of a source shorter; from the middle of each of 8 equal
    parts of all windows.
    """
    windows = []
    for source, array in enumerate(run.store.validation):
        assert isinstance(array, TokenArray)
        (tokens,) = array.read_windows(np.zeros(1, np.int64), len(array))
        windows += [(source, tokens[at : at + 33]) for at in range(0, len(tokens) - 1, 32)]
    assert len(windows) > 16
    return [windows[(2 * number + 1) * len(windows) // 16] for number in range(8)]


def test_an_evaluation_of_one_batch_is_drawn_evenly_over_the_sources(finished):
    windows = evaluated_windows(finished)
    assert {source for source, _ in windows} == {0, 1}
    params = restore_params(finished)
    sums = {0: [], 1: []}
    for source, tokens in windows:
        sums[source] += losses_of(finished.model, params, tokens[None]).ravel().tolist()

    ((step, loss),) = finished.rows["eval/loss"]
    assert step == STEPS
    assert loss == pytest.approx(np.mean(sums[0] + sums[1]), abs=1e-5)
    assert finished.rows["eval/loss/nature"][0][1] == pytest.approx(np.mean(sums[0]), abs=1e-5)
    assert finished.rows["eval/loss/town"][0][1] == pytest.approx(np.mean(sums[1]), abs=1e-5)
    assert abs(np.mean(sums[0]) - np.mean(sums[1])) > 1e-3


def test_bits_per_byte_count_the_bytes_of_the_evaluated_windows(finished):
    """In bytes of their text; its tokens are fewer, since a BPE joins letters."""
    texts = [
        finished.store.tokenizer.decode(tokens[1:]) for _, tokens in evaluated_windows(finished)
    ]
    size = sum(len(text.encode()) for text in texts)
    targets = sum(len(tokens) - 1 for _, tokens in evaluated_windows(finished))
    assert targets < 0.7 * size

    loss = finished.rows["eval/loss"][0][1]
    bits = finished.rows["eval/bits_per_byte"][0][1]
    assert bits == pytest.approx(loss / np.log(2) * targets / size, rel=1e-12)


def test_a_row_has_the_learning_rate_of_its_own_step(finished):
    """A warmup of 4 steps to 1e-2: step 1 is taken at a quarter of it, step 4 at the peak."""
    rates = [rate for _, rate in finished.rows["train/learning_rate"]]
    assert rates == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])


def test_a_second_trainer_is_refused_while_the_first_runs(finished):
    assert finished.second_trainer == 2
    reason = f"another process (pid {os.getpid()}) trains in runs/tiny"
    assert finished.second_error.startswith(f"error: {reason}")


def test_transfers_in_the_loop_are_explicit(finished):
    assert "isallowed host-to-device transfer" in finished.implicit_transfer
