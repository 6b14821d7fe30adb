"""The place of a process in its run, from the config and from the variables of schedulers."""

import socket

import pytest

from jaxlm import runtime
from jaxlm.config import ConfigError, RuntimeConfig
from jaxlm.runtime import cluster
from jaxlm.runtime.cluster import Cluster, detect_cluster

# Variables that `srun` sets for one of 12 tasks on two nodes of eight GPUs (SLURM 22.05)
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


def detect(variables, **config):
    return detect_cluster(RuntimeConfig(**config), variables)


def test_one_process_by_itself():
    assert detect({}) == Cluster()
    assert detect(SLURM, processes=1) == Cluster()
    # In a batch script or the shell of salloc the variables of the job are set, but no step's.
    job = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert detect(job) == Cluster()
    one_task = {
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_NODEID": "0",
    }
    assert detect(SLURM | one_task) == Cluster()


def test_slurm_tells_a_task_its_place():
    place = detect(SLURM)
    # Two of eight GPUs for each of the four tasks of its node
    assert place._replace(coordinator="") == Cluster(12, 9, "", (2, 3), "SLURM")
    host, port = place.address
    assert host == "gpu07" and 61440 <= port < 65536

    first = detect(SLURM | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert first.coordinator == place.coordinator and first.is_leader and not place.is_leader
    # Another step of the same job, at the same time, has another port.
    assert detect(SLURM | {"SLURM_STEP_ID": "1"}).coordinator != place.coordinator
    # On one machine nothing leaves it.
    assert detect(SLURM | {"SLURM_STEP_NUM_NODES": "1"}).address[0] == "127.0.0.1"


def test_slurm_tasks_split_the_gpus_that_they_see():
    one_each = {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}
    assert detect(SLURM | one_each).gpus == (5,)
    # Where SLURM binds GPUs to tasks, each task sees only its own.
    assert detect(SLURM | {"CUDA_VISIBLE_DEVICES": "0"}).gpus is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("node[001-015],b", "node001"),
        ("n[7,9-12]", "n7"),
        ("r1-n[03]-ib,x", "r1-n03-ib"),
        ("rack[1-2]n[3-4]", "rack1n3"),
        ("rack[2,4]n[07-09]-ib,rack9", "rack2n07-ib"),
        ("", ""),
        ("rack[1-2", ""),
        (",a", ""),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert cluster.first_host(nodes) == first


def test_tasks_per_node_are_written_out():
    assert cluster.tasks_per_node("8(x2),4") == [8, 8, 4]
    assert cluster.tasks_per_node("2") == [2]


@pytest.mark.parametrize("text", ["", "x", "0", "8(x2", "8,,4", "8(x2)4"])
def test_odd_tasks_per_node_are_none(text):
    assert cluster.tasks_per_node(text) == []


NUMBERS = [
    *((SLURM, name) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_NODEID")),
    *((SLURM, name) for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID")),
    *((OPEN_MPI, f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK", "LOCAL_RANK")),
    (OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    (KUBERNETES, "JOB_COMPLETION_INDEX"),
]
REQUIRED = [
    # Without the others the scheduler is not there.
    *((SLURM, name) for _, name in NUMBERS[:5]),
    *((OPEN_MPI, name) for _, name in NUMBERS[5:9]),
    *((SLURM, name) for name in ("SLURM_STEP_ID", "SLURM_STEP_NODELIST")),
]


def refusal(variables, **config) -> ConfigError:
    """Return the error that `detect` raises."""
    with pytest.raises(ConfigError) as refused:
        detect(variables, **config)
    return refused.value


@pytest.mark.parametrize(("variables", "name"), NUMBERS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("value", ["", " ", "x", "-1", "1.5", "9" * 30, "\u0663"])
def test_an_odd_variable_is_named(variables, name, value):
    error = refusal(variables | {name: value})
    assert error.path == name and "runtime.processes=1" in error.reason


@pytest.mark.parametrize(("variables", "name"), REQUIRED, ids=lambda value: str(value)[:40])
def test_a_missing_variable_is_named(variables, name):
    rest = {key: value for key, value in variables.items() if key != name}
    error = refusal(rest)
    assert error.path == name and "runtime.processes=1" in error.reason
    assert detect(rest, processes=1) == Cluster()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (SLURM, "SLURM_STEP_NUM_TASKS"),
        (OPEN_MPI, "OMPI_COMM_WORLD_SIZE"),
        (OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ],
)
def test_no_job_has_0_processes(variables, name):
    assert refusal(variables | {name: "0"}).path == name
    assert refusal(variables | {name: "0"}, coordinator="other:1").path == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("SLURM_NODEID", "2"), ("SLURM_LOCALID", "4"), ("SLURM_STEP_NODELIST", "gpu[")],
)
def test_a_place_outside_of_the_job_is_refused(name, value):
    assert refusal(SLURM | {name: value}).path == name
    by_hand = dict(processes=12, process=9, coordinator="a:1")
    assert detect(SLURM | {name: value}, **by_hand).coordinator == "a:1"


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"},
        {"SLURM_STEP_ID": "", "SLURM_STEP_NUM_TASKS": "x", "CUDA_VISIBLE_DEVICES": "0,1"},
        {"OMPI_COMM_WORLD_SIZE": "", "CUDA_VISIBLE_DEVICES": "0,1"},
        KUBERNETES | {"JOB_COMPLETION_INDEX": "x"},
    ],
)
def test_nothing_is_asked_for_that_the_config_says(variables):
    place = detect(variables, processes=2, process=1, coordinator="127.0.0.1:9999")
    assert place[:4] == (2, 1, "127.0.0.1:9999", None)


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "x", "CUDA_VISIBLE_DEVICES": "0,1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_nothing_is_asked_for_of_one_task(variables):
    assert detect(variables) == Cluster()


def test_variables_of_gpus_are_asked_for_only_where_there_are_several():
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID")
    rest = {key: value for key, value in SLURM.items() if key not in names}
    assert detect(rest | {"CUDA_VISIBLE_DEVICES": "3"}).gpus is None
    assert detect(rest, platform="cpu").gpus is None
    assert refusal(rest).path == "SLURM_STEP_TASKS_PER_NODE"


def test_gpus_are_split_only_where_they_divide():
    assert cluster.split_gpus(8, task=1, tasks=4) == (2, 3)
    assert cluster.split_gpus(8, task=0, tasks=3) is None
    assert cluster.split_gpus(1, task=0, tasks=2) is None
    assert cluster.split_gpus(4, task=0, tasks=1) is None


def test_open_mpi_tells_a_process_its_place():
    place = detect(OPEN_MPI)
    assert place._replace(coordinator="") == Cluster(4, 3, "", (1,), "Open MPI")
    assert place.address[0] == "10.96.0.1"

    six = detect(OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "7.0;tcp6://[fe80::b9b,2620::1]:43370"})
    assert six.address[0] == "fe80::b9b" and six.coordinator.startswith("[fe80::b9b]:")
    assert detect(OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}).address[0] == "127.0.0.1"

    # Open MPI 5 no longer tells the address of mpirun.
    newer = {name: value for name, value in OPEN_MPI.items() if "uri" not in name}
    message = r"^runtime\.coordinator: is needed for one of 4 processes under Open MPI$"
    with pytest.raises(ConfigError, match=message):
        detect(newer)


def test_an_indexed_job_of_kubernetes_has_its_index_and_its_first_pod(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda: "bert-2.pods.lab.svc.cluster.local")
    place = detect(KUBERNETES, processes=4)
    assert (place.processes, place.process) == (4, 2)
    assert place.address[0] == "bert-0.pods.lab.svc.cluster.local"

    message = r"^runtime\.processes: is needed for one of several processes .* under Kubernetes$"
    with pytest.raises(ConfigError, match=message):
        detect(KUBERNETES)

    monkeypatch.setattr(socket, "getfqdn", lambda: "bert-2")  # no headless service
    with pytest.raises(ConfigError, match=r"^runtime\.coordinator: is needed"):
        detect(KUBERNETES, processes=4)


def test_the_config_wins():
    place = detect({}, processes=3, process=1, coordinator="[::1]:5000")
    assert place == Cluster(3, 1, "[::1]:5000") and place.address == ("::1", 5000)
    assert detect(SLURM, coordinator="other:1").coordinator == "other:1"
    assert detect(SLURM, process=2).process == 2


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"processes": 2}, "process"),
        ({"processes": 2, "process": 0}, "coordinator"),
        ({"process": 0}, "processes"),
        ({"coordinator": "a:1"}, "processes"),
    ],
)
def test_a_missing_key_is_named(config, key):
    with pytest.raises(ConfigError, match=rf"^runtime\.{key}: is needed for one of"):
        detect({}, **config)


def test_fewer_processes_than_the_scheduler_started_are_refused():
    with pytest.raises(ConfigError, match=r"^runtime\.processes: 4 leaves no place for process 9"):
        detect(SLURM, processes=4)


def test_the_place_of_a_process_is_no_part_of_the_run():
    one = RuntimeConfig(
        processes=2, process=0, coordinator="127.0.0.1:1", coordinator_bind="0.0.0.0"
    )
    two = RuntimeConfig(processes=2, process=1, coordinator="localhost:1")
    shared = [runtime.without_process_fields(config) for config in (one, two)]
    assert shared == [RuntimeConfig()] * 2
