"""Which process of which run: from the config and from what schedulers tell. And what goes wrong before the processes have met."""

import socket
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import pytest
from support import multiprocess

from jaxlm import runtime
from jaxlm.config import ConfigError, LostError, RuntimeConfig
from jaxlm.runtime import cluster, distributed, platform, process_group
from jaxlm.runtime.cluster import Cluster, detect

# What `srun` set for one of 12 tasks on two nodes of eight GPUs (SLURM 22.05), as far as it matters.
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "8,4",
    "SLURM_PROCID": "9",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "CUDA_VISIBLE_DEVICES": "0,1",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"}


def test_one_process_by_itself():
    assert detect(RuntimeConfig(), {}) == Cluster()
    # In a batch script or the shell of salloc the job's variables are set, but there is no step.
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert detect(RuntimeConfig(), job) == Cluster()
    assert (
        detect(
            RuntimeConfig(),
            SLURM
            | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"},
        )
        == Cluster()
    )
    assert detect(RuntimeConfig(processes=1), SLURM) == Cluster()


def test_slurm_tells_a_task_its_place():
    found = detect(RuntimeConfig(), SLURM)
    assert found._replace(coordinator="") == Cluster(
        12, 9, "", (2, 3), "SLURM"
    )  # two of eight GPUs for each of four tasks
    host, port = found.address
    assert host == "gpu07" and 61440 <= port < 65536
    assert (
        detect(RuntimeConfig(), SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"}).coordinator
        == found.coordinator
    )
    # Another step of the same job, at the same time, has another port.
    assert detect(RuntimeConfig(), SLURM | {"SLURM_STEP_ID": "1"}).coordinator != found.coordinator
    # One task for each GPU; where SLURM binds them, each sees but its own.
    assert detect(
        RuntimeConfig(), SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}
    ).gpus == (5,)
    assert detect(RuntimeConfig(), SLURM | {"CUDA_VISIBLE_DEVICES": "0"}).gpus is None
    # On one machine nothing leaves it.
    assert detect(RuntimeConfig(), SLURM | {"SLURM_STEP_NUM_NODES": "1"}).address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("node[001-015],b", "node001"),
        ("n[7,9-12]", "n7"),
        ("r1-n[03]-ib,x", "r1-n03-ib"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert cluster.first_host(nodes) == first


def test_tasks_per_node_are_written_out():
    assert cluster.tasks_per_node("8(x2),4") == [8, 8, 4]
    assert cluster.tasks_per_node("2") == [2]


def test_open_mpi_tells_a_process_its_place():
    found = detect(RuntimeConfig(), OPEN_MPI)
    assert (found.processes, found.process, found.gpus, found.address[0]) == (
        4,
        3,
        (1,),
        "10.96.0.1",
    )
    six = detect(
        RuntimeConfig(),
        OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "7.0;tcp6://[fe80::b9b,2620::1]:43370"},
    )
    assert six.address[0] == "fe80::b9b" and six.coordinator.startswith("[fe80::b9b]:")
    assert (
        detect(RuntimeConfig(), OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}).address[0]
        == "127.0.0.1"
    )
    # Open MPI 5 no longer says where mpirun is.
    with pytest.raises(
        ConfigError,
        match=r"^runtime\.coordinator: is needed for one of 4 processes under Open MPI$",
    ):
        detect(
            RuntimeConfig(), {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
        )


def test_an_indexed_job_of_kubernetes_has_its_index_and_its_first_pod(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "bert-2.pods.lab.svc.cluster.local")
    found = detect(RuntimeConfig(processes=4), KUBERNETES)
    assert (found.processes, found.process, found.address[0]) == (
        4,
        2,
        "bert-0.pods.lab.svc.cluster.local",
    )
    with pytest.raises(
        ConfigError,
        match=r"^runtime\.processes: is needed for one of several processes .* under Kubernetes$",
    ):
        detect(RuntimeConfig(), KUBERNETES)
    monkeypatch.setattr(socket, "getfqdn", lambda: "bert-2")  # no headless service
    with pytest.raises(ConfigError, match=r"^runtime\.coordinator: is needed"):
        detect(RuntimeConfig(processes=4), KUBERNETES)


def test_the_config_wins():
    asked = RuntimeConfig(processes=3, process=1, coordinator="[::1]:5000")
    assert detect(asked, {}) == Cluster(3, 1, "[::1]:5000")
    assert detect(asked, {}).address == ("::1", 5000)
    assert detect(RuntimeConfig(coordinator="other:1"), SLURM).coordinator == "other:1"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (RuntimeConfig(processes=2), "process"),
        (RuntimeConfig(processes=2, process=0), "coordinator"),
        (RuntimeConfig(process=0), "processes"),
        (RuntimeConfig(coordinator="a:1"), "processes"),
    ],
)
def test_what_is_missing_is_named(asked, key):
    with pytest.raises(ConfigError, match=rf"^runtime\.{key}: is needed for one of"):
        detect(asked, {})


def test_fewer_processes_than_the_scheduler_started_are_refused():
    with pytest.raises(ConfigError, match=r"^runtime\.processes: 4 leaves no place for process 9"):
        detect(RuntimeConfig(processes=4), SLURM)


def test_devices_of_a_host_stand_together():
    """SLURM may deal processes out to the nodes in turn."""
    found = [
        SimpleNamespace(process_index=process, id=10 * process + n)
        for process in range(4)
        for n in range(2)
    ]
    assert [d.id for d in platform.arranged(found, None, ("a", "b", "a", "b"))] == [
        0,
        1,
        20,
        21,
        10,
        11,
        30,
        31,
    ]
    assert [d.id for d in platform.arranged(found, 1, ("a", "a", "b", "b"))] == [0, 10, 20, 30]


# Before they have met


def test_a_coordinator_that_is_not_there_is_named_after_the_time_limit():
    here = Cluster(2, 1, f"127.0.0.1:{multiprocess.free_port()}")
    began = time.monotonic()
    with pytest.raises(
        LostError,
        match=rf"^process 1 can't reach the coordinator at {here.coordinator}: tried for 1 s \(Connection ref",
    ):
        distributed.connect(here, 1)
    assert 0.9 < time.monotonic() - began < 5
    assert LostError.exit_code == 5


def test_a_coordinator_that_comes_late_is_found():
    port = multiprocess.free_port()
    here = Cluster(2, 1, f"127.0.0.1:{port}")
    assert not distributed.is_listening(here)
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("127.0.0.1", port))
        threading.Timer(0.5, late.listen).start()
        distributed.connect(here, 20).close()
        assert distributed.is_listening(here)


def test_an_address_that_cannot_be_listened_on_names_its_key():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError,
            match=rf"^runtime\.coordinator: process 0 can't listen on 127\.0\.0\.1 port {port}: Address already",
        ):
            distributed.listening_address(Cluster(2, 0, f"127.0.0.1:{port}"), RuntimeConfig())
    with pytest.raises(
        ConfigError, match=r"^runtime\.coordinator_bind: process 0 can't listen on 192\.0\.2\.1"
    ):
        distributed.listening_address(
            Cluster(2, 0, "127.0.0.1:5"), RuntimeConfig(coordinator_bind="192.0.2.1")
        )
    assert distributed.listening_address(Cluster(2, 1, "[::1]:5"), RuntimeConfig()) == "[::1]:5"


def test_processes_that_do_not_come_end_the_wait(tmp_path):
    """jax itself would abort with a stack trace."""
    program = f"""
    import pathlib
    from jaxlm import runtime
    from jaxlm.config import RuntimeConfig
    def main(argv):
        where = "127.0.0.1:{multiprocess.free_port()}"
        asked = RuntimeConfig(platform="cpu", processes=2, process=0, coordinator=where, initialization_timeout_seconds=2)
        runtime.configure(asked)
        with runtime.Group(runtime.detect_cluster(asked), asked, pathlib.Path({str(tmp_path / "run")!r})) as group:
            group.initialize()
    runtime.run(main)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, env=multiprocess.environment()
    )
    assert done.returncode == 5
    assert (
        done.stderr.startswith("error: not all of the 2 processes came to 127.0.0.1:")
        and done.stderr.count("\n") == 1
    )


def test_the_first_difference_is_named():
    ours, theirs = {"a": "1", "b": "2"}, {"a": "1", "c": "3"}
    assert process_group.difference(ours, ours, "process 1") == ""
    assert (
        process_group.difference(ours, theirs, "process 1")
        == "process 1 differs from process 0 in b: 2 -> absent"
    )
    assert (
        process_group.difference({"a": "1"}, theirs, "process 1")
        == "process 1 differs from process 0 in c: absent -> 3"
    )


def test_what_a_process_alone_decides_is_not_compared():
    one = RuntimeConfig(
        processes=2, process=0, coordinator="127.0.0.1:1", coordinator_bind="0.0.0.0"
    )
    two = RuntimeConfig(processes=2, process=1, coordinator="localhost:1")
    assert runtime.without_process_fields(one) == runtime.without_process_fields(two) == RuntimeConfig()


def test_a_process_alone_needs_no_others(tmp_path):
    with runtime.ProcessGroup(Cluster(), RuntimeConfig(), tmp_path / "run") as alone:
        alone.meet()
        alone.agree("anything", {"a": "1"})
        assert alone.leads and alone.alone and isinstance(alone.stop_signal(), runtime.StopSignal)
    assert not (tmp_path / "run" / "logs").exists()
