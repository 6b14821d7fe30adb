"""Two processes with four emulated devices each, over loopback, train what one with eight does."""

import hashlib
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.tree_util import tree_leaves_with_path
from support import multiprocess, tiny_run
from support.multiprocess import Peers, listening_addresses, local, losses
from support.slurm import require_cluster

pytestmark = pytest.mark.slow
campaign = [pytest.mark.campaign]

ENDLESS = ("training.steps=100000", "evaluation.every_steps=0", "checkpoint.every_steps=5")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    tiny_run.write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_alone(*edits: str, directory: str, devices: int = 8) -> None:
    """Train as one process. It is not this one, since jax here has a set number of devices."""
    arguments = [*multiprocess.command(*edits, directory=directory), "--devices", str(devices)]
    done = multiprocess.run(sys.executable, "-m", "jaxlm.train", *arguments)
    assert done.returncode == 0, done.stderr


def cells(*often: tuple[str, int]) -> list:
    """Return each family at ZeRO 0 and 3. Those not in `often` are left to campaigns."""
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
    train_alone(*edits, directory="runs/one")
    done = local(*edits, directory="runs/two")
    assert done.returncode == 0, done.stderr
    one, two = losses("runs/one"), losses("runs/two")
    assert two.keys() == one.keys() == set(range(1, 21))
    # Sums over devices are in another order: 2e-7 here. A wrong row anywhere gives above 1e-3.
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-5)
    assert tiny_run.rows("runs/two")["train/tokens"] == tiny_run.rows("runs/one")["train/tokens"]
    # Only process 0 records and shows.
    for line in ("on 2 processes", "step 20/20 100%", "--- sample 1 ---"):
        assert line in done.stdout
    assert "Gloo" not in done.stdout and done.stderr == ""
    assert "step 20/20" not in multiprocess.log("runs/two", 1)
    assert len(list(Path("runs/two/tensorboard").iterdir())) == 1


@pytest.mark.parametrize(("family", "zero"), cells(("encoder_decoder", 0)))
def test_slurm_trains_what_one_process_does(folder, family, zero):
    require_cluster()
    edits = (*tiny_run.FAMILIES[family], f"parallel.zero={zero}", "training.steps=20")
    train_alone(*edits, directory="runs/one")
    script = str(multiprocess.ROOT / "launch/slurm.sh")
    arguments = [*multiprocess.command(*edits, directory="runs/two"), "--devices", "4"]
    sbatch = ["sbatch", "--wait", "--ntasks=2", "--output=job.log"]
    done = multiprocess.run(*sbatch, script, *arguments)
    output = Path("job.log").read_text()
    assert done.returncode == 0, output
    assert "on 2 processes" in output and "step 20/20 100%" in output
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
cfg = config.load("tiny.py", edits)
cluster = runtime.detect_cluster(cfg.runtime)
runtime.configure(cfg.runtime)
with runtime.ProcessGroup(cluster, cfg.runtime, Path("runs/restored")) as group:
    group.initialize()
    import jax
    from jax.experimental.multihost_utils import process_allgather

    run = build_run(cfg, 0, group.hosts)
    shapes = state.abstract_state(run.model, run.optimizer, run.placement)
    with Checkpoints(Path(directory) / "checkpoints", 2) as checkpoints:
        restored = checkpoints.restore(int(step), shapes)
    devices = jax.tree.leaves(restored)[0].sharding.device_set
    assert len(devices) == cfg.runtime.devices * cluster.processes

    if not group.is_single:
        restored = process_allgather(restored, tiled=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(restored)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        print(name, leaf.dtype, hashlib.sha256(leaf.tobytes()).hexdigest())
"""


def restored(directory: str, step: int, *edits: str, count: int, devices: int) -> set[str]:
    """Return path, dtype and hash of every array that `count` processes restore."""
    shared = [
        *edits,
        f"runtime.coordinator=127.0.0.1:{multiprocess.free_port()}",
        f"runtime.processes={count}",
        f"runtime.devices={devices}",
    ]
    processes = [
        multiprocess.start(
            "-c", RESTORE, directory, str(step), *shared, f"runtime.process={number}"
        )
        for number in range(count)
    ]
    ends = multiprocess.finish(processes)
    assert [code for code, *_ in ends] == [0] * count, ends
    return set(ends[0][1].splitlines())


def hashes(directory: str, step: int) -> set[str]:
    """Return the same of a checkpoint on the disk, read without the trainer and on no devices."""
    path = (Path(directory) / "checkpoints" / str(step) / "state").absolute()
    reader = ocp.PyTreeCheckpointer()
    metadata = reader.metadata(path).item_metadata
    assert metadata is not None
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)

    lines = set()
    for keys, leaf in tree_leaves_with_path(reader.restore(path, restore_args=as_numpy)):
        name, array = jax.tree_util.keystr(keys, simple=True, separator="/"), np.asarray(leaf)
        lines.add(f"{name} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}")
    return lines


def test_a_run_moves_between_processes_and_devices(folder):
    """2 x 4 -> 1 x 8 -> 1 x 2 -> 2 x 4 devices.

    Each part restores the bits that the one before it saved, and the losses go on.
    """
    # The parts end by training.steps, so the learning rate must not depend on it.
    edits = ("parallel.zero=3", "optimizer.schedule=constant", "evaluation.every_steps=0")
    train_alone(*edits, "training.steps=16", directory="runs/unbroken")
    for stop, count, devices in ((4, 2, 4), (8, 1, 8), (12, 1, 2), (16, 2, 4)):
        if stop > 4:
            arrays = restored("runs/moved", stop - 4, *edits, count=count, devices=devices)
            assert arrays == hashes("runs/moved", stop - 4)
        part = (*edits, f"training.steps={stop}")
        if count == 1:
            train_alone(*part, directory="runs/moved", devices=devices)
        else:
            assert Peers(*part, directory="runs/moved", devices=devices).codes() == [0, 0]
    moved, unbroken = losses("runs/moved"), losses("runs/unbroken")
    assert moved.keys() == unbroken.keys() == set(range(1, 17))
    # Sums over devices are in another order, and 16 steps of AdamW keep the rounding: 1e-6 here.
    np.testing.assert_allclose([*moved.values()], [*unbroken.values()], rtol=1e-4)


PLACEMENT = """
import sys
import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 4)
number, address = int(sys.argv[1]), f"127.0.0.1:{sys.argv[2]}"
jax.distributed.initialize(address, 2, number, coordinator_bind_address=address)

from jax.experimental.multihost_utils import process_allgather
from jaxlm import config, runtime, sharding
from jaxlm.types import Batch

batch = Batch(tokens=np.arange(48).reshape(16, 3), lengths=np.arange(16))
devices = runtime.select_devices(config.RuntimeConfig(), ("a", "b"))
meshes = dict(data=2, fsdp=4), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=1, tensor=8)
for sizes in meshes:
    mesh = sharding.make_mesh(config.ParallelConfig(**sizes), devices)
    placement = sharding.Placement(mesh, {}, 0)
    start, stop = placement.rows(16)
    placed = placement.put(jax.tree.map(lambda array: array[start:stop], batch))
    assert placed.tokens.sharding == placement.batch()
    gathered = jax.tree.map(lambda array: process_allgather(array, tiled=True), placed)
    assert np.array_equal(gathered.tokens, batch.tokens)
    assert np.array_equal(gathered.lengths, batch.lengths)
    print(start, stop, file=sys.stderr, flush=True)  # on stdout gloo's lines may be in between
"""


def test_each_process_puts_its_own_rows_in_their_place():
    port = str(multiprocess.free_port())
    processes = [multiprocess.start("-c", PLACEMENT, str(number), port) for number in range(2)]
    rows = []
    for code, _, err in multiprocess.finish(processes):
        assert code == 0, err
        rows.append([line for line in err.splitlines() if line[:1].isdigit()])
    # Each process has a half, except where the tensor axis spans both.
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
    code, _, err = running.finish()[1 - process]
    # 134: jax may notice the loss of process 0 first, and aborts.
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
    addresses = listening_addresses([process.pid for process in running.processes])
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
def test_processes_that_differ_are_told_the_key(folder, edits, field):
    (folder / "other.txt").write_text((folder / "text.txt").read_text() + " more")
    for code, _, err in Peers(directory="runs/tiny", extra={1: edits}).finish():
        assert code == 2
        assert "error: process 1 (" in err and err.count("\n") == 1
        assert err.endswith(f"differs from process 0 in {field}\n")


def test_text_that_differs_is_noticed(folder):
    """The config is the same, but on one machine the file has other text."""
    other = folder / "other"
    other.mkdir()
    (other / "text.txt").write_text((folder / "text.txt").read_text() + " more")
    shared = [
        *("--config", str(folder / "tiny.py"), "--devices", "4"),
        *(f"run_directory={folder}/run", f"data.store={folder}/stores"),
        f"runtime.coordinator=127.0.0.1:{multiprocess.free_port()}",
        "runtime.processes=2",
    ]
    processes = [
        multiprocess.start("-m", "jaxlm.train", *shared, f"runtime.process={number}", folder=place)
        for number, place in enumerate((folder, other))
    ]
    for code, _, err in multiprocess.finish(processes):
        assert code == 2
        assert "differs from process 0 in the prepared data: " in err


FAIL = """
from jaxlm import runtime, train, trainer

def fail(*_):
    raise KeyError("of process 1")

trainer.check_vocabulary = fail
runtime.run(train.main)
"""


def test_a_mistake_in_one_process_ends_the_other(folder):
    """Only process 1 makes it, after they have connected."""
    shared = [
        *multiprocess.command(directory="runs/tiny"),
        f"runtime.coordinator=127.0.0.1:{multiprocess.free_port()}",
        "runtime.processes=2",
    ]
    processes = [
        multiprocess.start("-m", "jaxlm.train", *shared, "runtime.process=0"),
        multiprocess.start("-c", FAIL, *shared, "runtime.process=1"),
    ]
    (first, _, first_error), (second, _, second_error) = multiprocess.finish(processes)
    assert (first, second) == (5, 1)
    assert "error: process 1 (" in first_error
    assert "failed: KeyError: 'of process 1'" in first_error
    assert "Traceback" in second_error


@pytest.mark.parametrize(
    ("edits", "code", "message"),
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
def test_an_error_that_all_share_ends_each_with_its_code(folder, edits, code, message):
    for end, _, err in Peers(*edits, directory="runs/tiny").finish():
        assert end == code
        assert message in err and "Traceback" not in err


def test_run_directories_that_are_not_shared_end_all_processes(folder):
    """The same relative path in two folders, as on two machines without a common file system."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        tiny_run.write_recipe(folder / name)
    shared = [
        *multiprocess.command("training.steps=2", directory="runs/a"),
        f"data.store={folder}/stores",
        "runtime.devices=1",
        "runtime.processes=2",
        f"runtime.coordinator=127.0.0.1:{multiprocess.free_port()}",
    ]
    processes = [
        multiprocess.start("-m", "jaxlm.train", *shared, f"runtime.process={number}", folder=place)
        for number, place in enumerate((folder / "one", folder / "two"))
    ]
    for code, _, error in multiprocess.finish(processes):
        assert code == 2
        assert f"run_directory: {folder}/two/runs/a of process 1 (" in error
        assert "Traceback" not in error


def test_a_signal_stops_all_processes_in_an_evaluation(folder):
    """SIGTERM to process 1 while both evaluate for long; the run goes on from there."""
    edits = ("training.steps=4", "checkpoint.every_steps=0", "evaluation.batch_size=8")
    long = ("data.validation.share=0.9", "data.sequence_length=16", "evaluation.every_steps=2")
    peers = Peers(*edits, *long, directory="runs/a", devices=1)
    peers.wait_for_step(2)
    peers.send(1, "SIGTERM")
    ends = peers.finish()
    assert [code for code, *_ in ends] == [75, 75], ends
    assert multiprocess.saved_steps("runs/a")[-1] in (2, 3, 4)

    peers = Peers(*edits, *long, directory="runs/a", devices=1)
    assert peers.codes() == [0, 0]
    assert [step for step, _ in tiny_run.rows("runs/a")["eval/loss"]] == [2, 4]
