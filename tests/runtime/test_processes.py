"""Two processes with four emulated devices each, over loopback: the same run as one process with eight, whatever happens to them."""

import hashlib
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.tree_util import tree_leaves_with_path as tree_leaves
from support import multiprocess, tiny_run
from support.multiprocess import Peers, listening, local, losses
from launch.test_launch import cluster  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow
campaign = [pytest.mark.campaign]

ENDLESS = ("training.steps=100000", "evaluation.every_steps=0", "checkpoint.every_steps=5")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def alone(*edits: str, directory: str, devices: int = 8) -> None:
    """The run as one process, which is not this one: jax here has a set number of devices."""
    arguments = [
        sys.executable,
        "-m",
        "jaxlm.train",
        *multiprocess.command(*edits, directory=directory),
        "--devices",
        str(devices),
    ]
    done = subprocess.run(
        arguments,
        env=multiprocess.environment(),
        capture_output=True,
        text=True,
        timeout=multiprocess.LIMIT,
    )
    assert done.returncode == 0, done.stderr


def cells(*often: tuple[str, int]) -> list:
    """Each family at ZeRO 0 and 3; those that are not named are left to campaigns, for their time."""
    pairs = [(family, zero) for family in tiny_run.FAMILIES for zero in (0, 3)]
    return [pytest.param(*pair, marks=[] if pair in often else campaign) for pair in pairs]


@pytest.mark.parametrize(("family", "zero"), cells(("decoder", 0), ("encoder", 3)))
def test_local_sh_trains_what_one_process_does(folder, family, zero):
    edits = (
        *tiny_run.FAMILIES[family],
        f"parallel.zero={zero}",
        "training.steps=20",
        "evaluation.samples=1",
        "evaluation.sample_tokens=4",
    )
    alone(*edits, directory="runs/one")
    done = local(*edits, directory="runs/two")
    assert done.returncode == 0, done.stderr
    one, two = losses("runs/one"), losses("runs/two")
    assert two.keys() == one.keys() == set(range(1, 21))
    # Sums over devices in another order: 2e-7 here. Another row anywhere is above 1e-3.
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-5)
    assert tiny_run.rows("runs/two")["train/tokens"] == tiny_run.rows("runs/one")["train/tokens"]
    # Process 0 alone records and shows.
    assert (
        "on 2 processes" in done.stdout
        and "step 20/20 100%" in done.stdout
        and "--- sample 1 ---" in done.stdout
    )
    assert "Gloo" not in done.stdout and done.stderr == ""
    assert "step 20/20" not in multiprocess.log("runs/two", 1)
    assert len(list(Path("runs/two/tensorboard").iterdir())) == 1


@pytest.mark.parametrize(("family", "zero"), cells(("encoder_decoder", 0)))
def test_slurm_trains_what_one_process_does(folder, cluster, family, zero):  # noqa: F811
    edits = (*tiny_run.FAMILIES[family], f"parallel.zero={zero}", "training.steps=20")
    alone(*edits, directory="runs/one")
    options = [
        "--wait",
        "--ntasks=2",
        "--output=job.log",
        str(multiprocess.ROOT / "launch/slurm.sh"),
    ]
    job = [
        "sbatch",
        *options,
        *multiprocess.command(*edits, directory="runs/two"),
        "--devices",
        "4",
    ]
    done = subprocess.run(
        job,
        env=multiprocess.environment(),
        capture_output=True,
        text=True,
        timeout=multiprocess.LIMIT,
    )
    said = Path("job.log").read_text()
    assert done.returncode == 0, said
    assert "on 2 processes" in said and "step 20/20 100%" in said
    one, two = losses("runs/one"), losses("runs/two")
    assert two.keys() == one.keys() == set(range(1, 21))
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-5)  # as under local.sh
    assert tiny_run.rows("runs/two")["train/tokens"] == tiny_run.rows("runs/one")["train/tokens"]


RESTORE = """
import hashlib, sys
from pathlib import Path
from jaxlm import config, runtime, state
from jaxlm.run import build_run
from jaxlm.checkpoint import Checkpoints
directory, step, *edits = sys.argv[1:]
settings = config.load("tiny.py", edits)
cluster = runtime.detect(settings.runtime)
runtime.configure(settings.runtime)
with runtime.Group(cluster, settings.runtime, Path("runs/restored")) as group:
    group.meet()
    import jax
    from jax.experimental.multihost_utils import process_allgather
    run = build_run(settings, 0, group.hosts)
    with Checkpoints(Path(directory) / "checkpoints", 2) as saved:
        found = saved.restore(int(step), state.abstract(run.model, run.optimizer, run.placement))
    assert len(jax.tree.leaves(found)[0].sharding.device_set) == settings.runtime.devices * cluster.processes
    if not group.alone:
        found = process_allgather(found, tiled=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(found)):
        print(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.dtype, hashlib.sha256(leaf.tobytes()).hexdigest())
"""


def restored(directory: str, step: int, *edits: str, count: int, devices: int) -> set[str]:
    """Path, dtype and hash of every array that `count` processes restore from a checkpoint."""
    place = [
        f"runtime.coordinator=127.0.0.1:{multiprocess.free_port()}",
        f"runtime.processes={count}",
        f"runtime.devices={devices}",
    ]
    arguments = [sys.executable, "-c", RESTORE, directory, str(step), *edits, *place]
    running = [
        subprocess.Popen(
            [*arguments, f"runtime.process={process}"],
            env=multiprocess.environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    outputs = [process.communicate(timeout=multiprocess.LIMIT)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    return set(outputs[0].splitlines())


def hashes(directory: str, step: int) -> set[str]:
    """The same of what lies on the disk, read without the trainer and on no devices."""
    path, reader = (
        (Path(directory) / "checkpoints" / str(step) / "state").absolute(),
        ocp.PyTreeCheckpointer(),
    )
    whole = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    tree = reader.restore(path, restore_args=whole)
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
        for path, leaf in tree_leaves(tree)
    ]
    return {
        f"{path} {leaf.dtype} {hashlib.sha256(leaf.tobytes()).hexdigest()}" for path, leaf in leaves
    }


def test_a_run_moves_between_processes_and_devices(folder):
    """2 x 4 -> 1 x 8 -> 1 x 2 -> 2 x 4: each restores the bits that the one before it saved, and the losses go on."""
    # A rate that doesn't depend on training.steps, by which the parts are ended.
    edits = ("parallel.zero=3", "optimizer.schedule=constant", "evaluation.every_steps=0")
    alone(*edits, "training.steps=16", directory="runs/whole")
    for stop, count, devices in ((4, 2, 4), (8, 1, 8), (12, 1, 2), (16, 2, 4)):
        if stop > 4:
            assert restored("runs/moved", stop - 4, *edits, count=count, devices=devices) == hashes(
                "runs/moved", stop - 4
            )
        part = (*edits, f"training.steps={stop}")
        if count == 1:
            alone(*part, directory="runs/moved", devices=devices)
        else:
            assert Peers(*part, directory="runs/moved", devices=devices).codes() == [0, 0]
    found, whole = losses("runs/moved"), losses("runs/whole")
    assert found.keys() == whole.keys() == set(range(1, 17))
    # Sums over devices in another order, whose rounding 16 steps of AdamW carry on: 1e-6 here.
    np.testing.assert_allclose([*found.values()], [*whole.values()], rtol=1e-4)


PLACEMENT = """
import sys
import jax
import numpy as np
jax.config.update("jax_num_cpu_devices", 4)
process, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, coordinator_bind_address=f"127.0.0.1:{port}")
from jax.experimental.multihost_utils import process_allgather
from jaxlm import config, runtime, sharding
from jaxlm.types import Batch
whole = Batch(tokens=np.arange(48).reshape(16, 3), lengths=np.arange(16))
for sizes in (dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=1, tensor=8)):
    mesh = sharding.make_mesh(config.ParallelConfig(**sizes), runtime.devices(config.RuntimeConfig(), ("a", "b")))
    placement = sharding.Placement(mesh, {}, 0)
    start, stop = placement.rows(16)
    made = placement.put(jax.tree.map(lambda a: a[start:stop], whole))
    assert made.tokens.sharding == placement.batch()
    found = jax.tree.map(lambda a: process_allgather(a, tiled=True), made)
    assert np.array_equal(found.tokens, whole.tokens) and np.array_equal(found.lengths, whole.lengths)
    print(start, stop, file=sys.stderr, flush=True)  # on stdout gloo's lines may come in between
"""


def test_each_process_puts_its_own_rows_in_their_place(folder):
    port = str(multiprocess.free_port())
    arguments = [
        [sys.executable, "-c", textwrap.dedent(PLACEMENT), str(process), port] for process in (0, 1)
    ]
    ends = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    running = [subprocess.Popen(a, env=multiprocess.environment(), **ends) for a in arguments]
    rows = []
    for process in running:
        _, said = process.communicate(timeout=multiprocess.LIMIT)
        assert process.returncode == 0, said
        rows.append([line for line in said.splitlines() if line[:1].isdigit()])
    # Each half, but where the tensor axis spans both processes.
    assert rows == [["0 8", "0 8", "0 16"], ["8 16", "8 16", "0 16"]]


def test_two_runs_are_the_same_to_the_bit(folder):
    edits = ("parallel.zero=3", "parallel.data=2")
    for directory in ("runs/a", "runs/b"):
        assert Peers(*edits, directory=directory).codes() == [0, 0]
    assert tiny_run.rows("runs/a") == tiny_run.rows("runs/b")
    assert hashes("runs/a", 12) == hashes("runs/b", 12)


INTERRUPTIONS = [
    pytest.param(*case, marks=campaign if n > 1 else [])
    for n, case in enumerate(multiprocess.random_steps(10, 6, 30))
]


@pytest.mark.parametrize(("process", "step"), INTERRUPTIONS)
def test_sigterm_to_either_saves_both_at_the_same_step(folder, process, step):
    running = Peers(*ENDLESS, directory="runs/tiny")
    running.wait_for_step(step)
    running.send(process, "SIGTERM")
    (code, out, err), (other, *_) = running.finish()
    assert (code, other) == (75, 75), err
    stopped = max(losses("runs/tiny"))
    assert f"stopped by SIGTERM after step {stopped} of" in out
    assert f"stopped by SIGTERM after step {stopped} of" in multiprocess.log("runs/tiny", 1)
    assert multiprocess.saved_steps("runs/tiny")[-1] == stopped >= step
    assert "runtime.process" not in out
    # Nothing is lost: the next start goes on with the next step.
    assert Peers(f"training.steps={stopped + 1}", directory="runs/tiny").codes() == [0, 0]
    assert max(losses("runs/tiny")) == stopped + 1


LOSSES = [
    pytest.param(*case, marks=campaign if n > 1 else [])
    for n, case in enumerate(multiprocess.random_steps(10, 6, 20))
]


@pytest.mark.parametrize(("process", "step"), LOSSES)
def test_when_one_is_killed_the_other_ends_and_a_restart_goes_on(folder, process, step):
    running = Peers(*ENDLESS, directory="runs/tiny")
    running.wait_for_step(step)
    running.send(process, "SIGKILL")
    killed = time.monotonic()
    found = running.finish()
    assert time.monotonic() - killed < 20  # with a heartbeat of 10
    code, _, err = found[1 - process]
    # 134: of the loss of process 0 jax may hear first, and aborts.
    assert code == 5 or (code, process) == (-6, 0), err
    assert code != 5 or (f"error: process {process} (" in err and "is gone" in err)
    saved = multiprocess.saved_steps("runs/tiny")[-1]
    resumed = Peers(f"training.steps={saved + 2}", directory="runs/tiny")
    (code, out, err), (other, *_) = resumed.finish()
    assert (code, other) == (0, 0), err
    assert f"resumes after step {saved}" in out
    assert max(losses("runs/tiny")) == saved + 2


def test_nothing_but_loopback_listens(folder):
    running = Peers(*ENDLESS, directory="runs/tiny")
    running.wait_for_step(2)
    addresses = listening([process.pid for process in running.processes])
    running.send(0, "SIGTERM")
    assert running.codes() == [75, 75]
    assert len(addresses) >= 3  # the coordinator, and the collectives of each
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses) <= loopback


@pytest.mark.parametrize(
    ("edits", "field"),
    [
        (("training.steps=13",), "training.steps: 12 -> 13"),
        (("data.sources.0.path=other.txt",), "data.sources.0.path: text.txt -> other.txt"),
        (("data.store=elsewhere",), "data.store: stores -> elsewhere"),
    ],
)
def test_processes_that_differ_are_told_where(folder, edits, field):
    (folder / "other.txt").write_text((folder / "text.txt").read_text() + " more")
    found = Peers(directory="runs/tiny", told={1: edits}).finish()
    assert [code for code, *_ in found] == [2, 2]
    for _, _, err in found:
        assert (
            err.endswith(f"differs from process 0 in {field}\n")
            and "error: process 1 (" in err
            and err.count("\n") == 1
        )


def test_text_that_differs_is_noticed(folder):
    """The same config, but on one machine the file has other text."""
    (folder / "there").mkdir()
    (folder / "there" / "text.txt").write_text((folder / "text.txt").read_text() + " more")
    port = multiprocess.free_port()
    arguments = [
        *(
            "--config",
            str(folder / "tiny.py"),
            f"run_directory={folder}/run",
            f"data.store={folder}/stores",
            "--devices",
            "4",
        ),
        *(f"runtime.coordinator=127.0.0.1:{port}", "runtime.processes=2"),
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxlm.train", *arguments, f"runtime.process={process}"],
            cwd=place,
            env=multiprocess.environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for process, place in enumerate((folder, folder / "there"))
    ]
    for process in running:
        _, err = process.communicate(timeout=multiprocess.LIMIT)
        assert process.returncode == 2
        assert "differs from process 0 in the prepared data: " in err


def test_a_mistake_in_one_process_ends_the_other(folder):
    """What only process 1 runs into, after they have met."""
    program = """
    import sys
    from jaxlm import runtime, train, trainer
    def fail(*_): raise KeyError("of process 1")
    trainer.check_vocabulary = fail
    runtime.run(train.main)
    """
    port = multiprocess.free_port()
    edits = [
        *multiprocess.command(directory="runs/tiny"),
        f"runtime.coordinator=127.0.0.1:{port}",
        "runtime.processes=2",
    ]
    first = [sys.executable, "-m", "jaxlm.train", *edits, "runtime.process=0"]
    second = [sys.executable, "-c", textwrap.dedent(program), *edits, "runtime.process=1"]
    running = [
        subprocess.Popen(a, env=multiprocess.environment(), stderr=subprocess.PIPE, text=True)
        for a in (first, second)
    ]
    began = time.monotonic()
    errors = [process.communicate(timeout=multiprocess.LIMIT)[1] for process in running]
    assert [process.returncode for process in running] == [5, 1]
    assert "error: process 1 (" in errors[0] and "failed: KeyError: 'of process 1'" in errors[0]
    assert "Traceback" in errors[1]
    assert time.monotonic() - began < 40


@pytest.mark.parametrize(
    ("edits", "code", "said"),
    [
        (
            ("parallel.zero=3", "parallel.tensor=8", "model.heads=8"),
            2,
            "parallel.zero: stage 3 splits the state over parallel.fsdp",
        ),
        (
            (
                "optimizer.learning_rate=1e30",
                "optimizer.gradient_clip=none",
                "optimizer.warmup_steps=0",
            ),
            4,
            "training: the loss is ",
        ),
    ],
)
def test_what_fails_in_all_ends_each_with_its_own_code(folder, edits, code, said):
    found = Peers(*edits, directory="runs/tiny").finish()
    assert [code for code, *_ in found] == [code, code]
    assert all(said in err and "Traceback" not in err for _, _, err in found)
