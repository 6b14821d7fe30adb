"""States come back bit for bit on any devices; what can't be restored says so in one line."""

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.checkpoint import Checkpoints
from jaxlm.config import NoCheckpointError, UserError

# After a failed save or restore Orbax's tasks lose their exceptions, which were raised here too.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(1e-3, 100), mask={"w": True, "b": False}),
)


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StateDataclass:
    step: Any
    params: Any
    optimizer: Any


def make(kind=State, seed=0, width=32):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "w": jax.random.normal(keys[0], (width, width)),
        "b": jax.random.normal(keys[1], (width,), jnp.bfloat16),
    }
    optimizer = OPTIMIZER.init(params)
    noise = jax.tree.map(
        lambda x: x + jnp.asarray(0.5, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x + 3,
        optimizer,
    )
    return kind(jnp.int32(7), params, noise)


def sharded(state, count):
    """`state` with the first axis of every matrix split over `count` devices."""
    mesh = jax.make_mesh(
        (count,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )
    matrix, other = (NamedSharding(mesh, spec) for spec in (PartitionSpec("fsdp"), PartitionSpec()))
    return jax.tree.map(lambda x: jax.device_put(x, matrix if x.ndim > 1 else other), state)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(tree):
    return [
        (np.asarray(leaf).dtype, np.asarray(leaf).shape, np.asarray(leaf).tobytes())
        for leaf in jax.tree.leaves(tree)
    ]


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield made
    made.close()


@pytest.mark.parametrize("kind", [State, StateDataclass])
def test_a_state_comes_back_bit_for_bit(checkpoints, kind):
    state = make(kind)
    checkpoints.save(7, state, {"eval/loss": np.float32(2.5)})
    checkpoints.wait()
    restored = checkpoints.restore(7, abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 4), (2, 1), (1, 2)])
def test_the_number_of_devices_may_change(checkpoints, before, after):
    if len(jax.devices()) < max(before, after):
        pytest.skip("needs more devices")
    state = sharded(make(), before)
    checkpoints.save(1, state)
    checkpoints.wait()
    wanted = abstract(sharded(make(), after))
    restored = checkpoints.restore(1, wanted)
    assert bits(restored) == bits(state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, wanted
    )


def test_buffers_may_be_donated_while_they_are_saved(checkpoints):
    state = make(width=2048)  # 50 MB: writing goes on after save returns
    expected = bits(state)
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 1, state), donate_argnums=0)
    jax.block_until_ready(update(state))
    assert state.params["w"].is_deleted()  # this platform does reuse donated buffers
    state = make(width=2048)
    wanted = abstract(state)
    checkpoints.save(1, state)
    for _ in range(3):
        state = update(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    assert bits(checkpoints.restore(1, wanted)) == expected


def test_the_newest_and_the_best_stay(checkpoints):
    state = make()
    losses = {1: 3.0, 2: 2.0, 3: None, 4: 2.5, 5: float("nan"), 6: None}
    for step, loss in losses.items():
        checkpoints.save(step, state, None if loss is None else {"eval/loss": loss})
    checkpoints.wait()
    for reopened in (checkpoints, Checkpoints(checkpoints.directory, keep=2)):
        assert (reopened.steps(), reopened.latest(), reopened.best(), reopened.lowest_cost()) == (
            [2, 5, 6],
            6,
            2,
            2.0,
        )
        assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["2", "5", "6"]
    reopened.save(7, state, {"eval/loss": 1.0})  # the old best, known from disk, makes room
    reopened.close()
    assert (reopened.steps(), reopened.best()) == ([6, 7], 7)


def test_the_best_by_another_figure_is_the_highest(tmp_path):
    folder, state = tmp_path / "checkpoints", make()
    figures = {1: (0.5, 1.0), 2: (0.9, 3.0), 3: (0.7, 2.0), 4: (None, 0.5)}  # accuracy, loss
    with Checkpoints(folder, keep=1, best="eval/accuracy") as kept:
        for step, (accuracy, loss) in figures.items():
            accuracies = {} if accuracy is None else {"eval/accuracy": accuracy}
            kept.save(step, state, {"eval/loss": loss} | accuracies)
    reopened = Checkpoints(folder, keep=1, best="eval/accuracy")
    assert (reopened.steps(), reopened.best(), reopened.lowest_cost()) == ([2, 4], 2, -0.9)
    # All figures are on the disk: a resumed run may rank them by another one.
    assert Checkpoints(folder, keep=1).best() == 4
    with pytest.raises(NoCheckpointError, match="--best: no checkpoint has an eval/matthews"):
        Checkpoints(folder, keep=1, best="eval/matthews").require_best()


def test_without_a_loss_there_is_no_best(checkpoints):
    assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (None, None, [])
    assert checkpoints.lowest_cost() == float("inf")
    checkpoints.save(1, make(), {"train/loss": 1.0})
    checkpoints.wait()
    assert (checkpoints.latest(), checkpoints.best()) == (1, None)


def test_a_loss_that_is_no_number_is_never_the_best(checkpoints):
    for step, loss in ((1, float("nan")), (2, 2.5)):
        checkpoints.save(step, make(), {"eval/loss": loss})
    checkpoints.wait()
    for reopened in (checkpoints, Checkpoints(checkpoints.directory, keep=2)):
        assert (reopened.best(), reopened.lowest_cost()) == (2, 2.5)


def test_a_step_is_saved_once(checkpoints):
    checkpoints.save(1, make(seed=0))
    checkpoints.save(1, make(seed=1))
    checkpoints.wait()
    assert bits(checkpoints.restore(1, abstract(make()))) == bits(make(seed=0))


def test_steps_after_the_restored_one_are_saved_again(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, make(seed=step))
    checkpoints.wait()
    resumed = Checkpoints(checkpoints.directory, keep=5)
    with pytest.raises(UserError, match="step 1 can't follow step 3"):
        resumed.save(1, make())
    resumed.restore(2, abstract(make()))
    assert resumed.steps() == [2, 3]  # reading alone removes nothing
    resumed.save(3, make(seed=30))
    resumed.close()
    assert resumed.steps() == [2, 3]
    assert bits(resumed.restore(3, abstract(make()))) == bits(make(seed=30))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda p: {**p, "w": p["w"].astype(jnp.bfloat16)},
            "params/w: float32 [32, 32] -> bfloat16 [32, 32]",
        ),
        (lambda p: {**p, "w": p["w"][:16]}, "params/w: float32 [32, 32] -> float32 [16, 32]"),
        (lambda p: {**p, "extra": p["w"]}, "params/extra: absent -> float32 [32, 32]"),
        (lambda p: {"w": p["w"]}, "params/b: bfloat16 [32] -> absent"),
    ],
)
def test_another_state_is_refused_by_parameter(checkpoints, change, expected):
    state = make()
    checkpoints.save(4, state)
    checkpoints.wait()
    with pytest.raises(UserError) as error:
        checkpoints.restore(4, abstract(state._replace(params=change(state.params))))
    assert str(error.value) == f"{checkpoints.directory}/4 holds another state: {expected}"


def test_many_differences_are_counted(checkpoints):
    checkpoints.save(4, make(width=32))
    checkpoints.wait()
    with pytest.raises(UserError, match=r"holds another state: ([^;]*; ){2}[^;]* and 3 more$"):
        checkpoints.restore(4, abstract(make(width=16)))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: half(folder / "state" / "_METADATA"),
        lambda folder: (folder / "state" / "_METADATA").unlink(),
        lambda folder: half(folder / "state" / "manifest.ocdbt"),
        lambda folder: shutil.rmtree(folder / "state" / "ocdbt.process_0" / "d"),
        lambda folder: shutil.rmtree(folder / "state"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_others_live(checkpoints, damage):
    state = make()
    for step in (1, 2):
        checkpoints.save(step, state, {"eval/loss": 1.0})
    checkpoints.wait()
    damage(checkpoints.directory / "2")
    reopened = Checkpoints(checkpoints.directory, keep=2)
    with pytest.raises(NoCheckpointError) as error:
        reopened.restore(2, abstract(state))
    message = str(error.value)
    assert message.startswith(f"{checkpoints.directory}/2: can't be read: ")
    assert message.endswith("; move this folder away to continue from step 1")
    assert "\n" not in message and "AttributeError" not in message
    assert bits(reopened.restore(1, abstract(state))) == bits(state)
    reopened.save(2, make(seed=2))  # trained again from step 1: the damaged one is replaced
    reopened.wait()
    assert bits(reopened.restore(2, abstract(state))) == bits(make(seed=2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("state", "state is missing"), ("state/_METADATA", "state/_METADATA is missing")],
)
def test_what_is_missing_of_the_only_checkpoint_is_named(checkpoints, name, reason):
    checkpoints.save(1, make())
    checkpoints.wait()
    (checkpoints.directory / "1" / name).rename(checkpoints.directory / "away")
    with pytest.raises(NoCheckpointError) as error:
        Checkpoints(checkpoints.directory, keep=2).check_readable(1)
    expected = f"{checkpoints.directory}/1: can't be read: {reason}; there is no earlier checkpoint"
    assert str(error.value) == expected


@pytest.mark.parametrize("inner", ["", "state", "state/d"])
def test_an_empty_folder_is_no_checkpoint(checkpoints, inner):
    checkpoints.save(1, make())
    checkpoints.wait()
    for step in (3, 99):
        (checkpoints.directory / str(step) / inner).mkdir(parents=True)
    reopened = Checkpoints(checkpoints.directory, keep=2)
    assert (reopened.steps(), reopened.latest()) == ([1], 1)
    assert (checkpoints.directory / "99").is_dir()  # reading alone removes nothing
    reopened.restore(1, abstract(make()))
    reopened.save(3, make(seed=3))
    reopened.close()
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1", "3"]
    assert bits(reopened.restore(3, abstract(make()))) == bits(make(seed=3))


def test_a_step_is_rated_after_it_was_saved(checkpoints):
    """Ranked as if it had been saved with its scores, also when the directory is opened again."""
    for step, loss in ((1, 3.0), (2, 4.0), (3, 2.0), (4, 5.0)):
        checkpoints.save(step, make(), evaluated=False)
        assert not checkpoints.is_rated(step)
        checkpoints.rate(step, {"eval/loss": loss})
    for reopened in (checkpoints, Checkpoints(checkpoints.directory, keep=2)):
        assert (reopened.steps(), reopened.best(), reopened.lowest_cost()) == ([3, 4], 3, 2.0)
        assert reopened.is_rated(4)


def test_a_rating_may_wait_for_the_save(checkpoints):
    checkpoints.save(1, make(), {"eval/loss": 3.0})
    checkpoints.save(2, make(), evaluated=False)
    checkpoints.rate(2, {"eval/loss": 2.0}, now=False)
    assert checkpoints.best() == 2 and not checkpoints.is_rated(2)
    checkpoints.save(3, make())  # it waits for the save before
    checkpoints.save(4, make(), evaluated=False)
    checkpoints.rate(4, {"eval/loss": 4.0}, now=False)
    checkpoints.close()
    reopened = Checkpoints(checkpoints.directory, keep=2)
    assert (reopened.steps(), reopened.best()) == ([2, 3, 4], 2)


def test_a_discarded_step_takes_no_place_from_those_before(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(1, make(seed=1))
        checkpoints.save(2, make(seed=2), evaluated=False)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        checkpoints.discard(2)
        checkpoints.discard(2)
        assert checkpoints.steps() == [1]
        checkpoints.save(3, make(seed=3))
    assert Checkpoints(tmp_path / "checkpoints", keep=1).steps() == [3]


def test_a_damaged_record_of_losses_hides_no_checkpoint(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, make(), {"eval/loss": float(step)})
    checkpoints.wait()
    half(checkpoints.directory / "1" / "scores" / "metadata")
    reopened = Checkpoints(checkpoints.directory, keep=2)
    assert (reopened.steps(), reopened.best()) == ([1, 2], 2)
    assert bits(reopened.restore(1, abstract(make()))) == bits(make())


def test_a_step_that_is_not_there_lists_those_that_are(checkpoints):
    checkpoints.save(5, make())
    checkpoints.wait()
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of step 6 \(there are: 5\)"):
        checkpoints.restore(6, abstract(make()))


def test_a_directory_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"/file/checkpoints: can't keep checkpoints here: Not a directory"
    ):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


def test_a_full_disk_is_an_error_of_the_next_wait(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, make(width=256))
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(
            UserError, match=rf"^{checkpoints.directory}: can't save a checkpoint: "
        ) as error:
            checkpoints.save(2, make(seed=2, width=256))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    checkpoints.close()
    reopened = Checkpoints(checkpoints.directory, keep=1)
    assert reopened.steps() == [1]  # not removed for the sake of one that failed
    reopened.save(2, make())  # and what is left of that one is
    reopened.close()
    assert [path.name for path in reopened.directory.iterdir()] == ["2"]


@pytest.mark.parametrize("own_error", [None, KeyError("another")])
def test_a_failed_save_hides_no_other_error(tmp_path, monkeypatch, own_error):
    """Orbax raises the error of a save again when it is closed."""
    expected = KeyError if own_error else UserError
    with pytest.raises(expected) as error:  # noqa: SIM117
        with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:

            def fail():
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
            if own_error:
                raise own_error
    assert own_error or "can't save a checkpoint: No space left on device" in str(error.value)


SETUP = """
import sys, pathlib, jax, jax.numpy as jnp
from jaxlm import runtime
from jaxlm.checkpoint import Checkpoints
"""


def child(program, *arguments):
    """Start a training process that runs alone."""
    command = [sys.executable, "-c", SETUP + textwrap.dedent(program), *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


NO_FOLDER = "shutil.rmtree(directory); directory.touch()"
FULL_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, -1))"


@pytest.mark.parametrize(
    ("break_it", "reason"), [(NO_FOLDER, "Not a directory"), (FULL_DISK, "File too large")]
)
def test_a_command_whose_save_fails_prints_one_line_and_ends(tmp_path, break_it, reason):
    program = f"""
    import resource, shutil
    from jaxlm.config import RuntimeConfig
    def main(argv):
        runtime.configure(RuntimeConfig(platform="cpu"))
        directory = pathlib.Path(argv[0])
        checkpoints = Checkpoints(directory, keep=1)
        {break_it}
        weights = jax.random.normal(jax.random.key(0), (256, 256))
        checkpoints.save(1, {{"w": weights, "b": jnp.ones(8)}})
        checkpoints.close()
    runtime.run(main)
    """
    process = child(program, tmp_path / "checkpoints")
    # Without the forced exit it would wait for Orbax's threads for ever.
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith(
        f"error: {tmp_path}/checkpoints: can't save a checkpoint: "
    ) and errors.endswith(f"{reason}\n")
    assert errors.count("\n") == 1


def test_a_killed_save_leaves_the_newest_finished_one(tmp_path):
    """The process is killed as soon as its sixth save has begun; 4 MB take longer than that."""
    program = """
    import os, signal
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=3)
    for step in range(1, 7):
        checkpoints.save(step, {"w": jnp.full((1024, 1024), step, jnp.float32)})
    os.kill(os.getpid(), signal.SIGKILL)
    """
    process = child(program, tmp_path / "checkpoints")
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    newest = checkpoints.steps()[-1]
    assert newest >= 5  # the sixth save began, so the fifth had ended
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=one_device)}
    assert bool((checkpoints.restore(newest, wanted)["w"] == newest).all())
    checkpoints.save(newest + 1, make())
    checkpoints.close()
    assert all(path.name.isdigit() for path in checkpoints.directory.iterdir())  # no remains
