"""The place of this process in its run: from the config, or from SLURM, Open MPI or Kubernetes."""

import dataclasses
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxlm.config import ConfigError, RuntimeConfig

LOOPBACK = "127.0.0.1"

# A job's number is mapped to one of these ports, the upper end of the range that systems hand out.
FIRST_PORT, PORT_COUNT = 61440, 4096


class Cluster(NamedTuple):
    """The processes of a run and the place of this one among them."""

    processes: int = 1
    process: int = 0
    coordinator: str = ""  # HOST:PORT
    gpus: tuple[int, ...] | None = None  # this process's, numbered as it sees them. None: all
    scheduler: str = ""  # "SLURM", ...; "": known from the config alone

    @property
    def is_leader(self) -> bool:
        return self.process == 0

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def detect_cluster(runtime: RuntimeConfig, environment: Mapping[str, str] = os.environ) -> Cluster:
    """Return the cluster that the config gives; the scheduler's environment fills in the rest.

    Without either it is one process. Raises ConfigError where something is missing.
    """
    if runtime.processes == 1:
        return Cluster()

    scheduled = detect_scheduler(environment)
    if scheduled is None:
        if runtime.processes is None and runtime.process is None and runtime.coordinator is None:
            return Cluster()
        scheduled = Cluster(processes=0, process=-1)

    cluster = scheduled._replace(
        processes=runtime.processes or scheduled.processes,
        process=scheduled.process if runtime.process is None else runtime.process,
        coordinator=runtime.coordinator or scheduled.coordinator,
    )
    if cluster.processes == 1:
        return Cluster()

    check_complete(cluster)
    return cluster


def check_complete(cluster: Cluster) -> None:
    """Raise ConfigError if a cluster of several processes lacks something."""
    need = f"is needed for one of {cluster.processes or 'several'} processes"
    if not cluster.processes:
        need += " (1: a run of one process)"
    if cluster.scheduler:
        need += f" under {cluster.scheduler}"

    for key, is_missing in (
        ("processes", cluster.processes == 0),
        ("process", cluster.process < 0),
        ("coordinator", not cluster.coordinator),
    ):
        if is_missing:
            raise ConfigError(f"runtime.{key}", need)

    if cluster.process >= cluster.processes:
        reason = f"{cluster.processes} leaves no place for process {cluster.process}"
        raise ConfigError("runtime.processes", reason)


def without_process_fields(runtime: RuntimeConfig) -> RuntimeConfig:
    """Return the config without the place of this process.

    The place is no part of what a run is: the rest is the same in all processes, and is saved.
    """
    return dataclasses.replace(
        runtime, processes=None, process=None, coordinator=None, coordinator_bind=None
    )


# Schedulers


def detect_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """Return the place of a task of a job step (`srun`).

    A batch script and the shell of `salloc` are in a job, but not in a step.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return None

    nodes = environment.get("SLURM_STEP_NODELIST", "")
    host = LOOPBACK if environment.get("SLURM_STEP_NUM_NODES") == "1" else first_host(nodes)
    port = job_port(f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}")

    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    gpus = split_gpus(
        count_visible_gpus(environment),
        task=int(environment.get("SLURM_LOCALID", 0)),
        tasks=tasks[int(environment.get("SLURM_NODEID", 0))],
    )
    return Cluster(
        processes=int(environment["SLURM_STEP_NUM_TASKS"]),
        process=int(environment["SLURM_PROCID"]),
        coordinator=f"{host}:{port}",
        gpus=gpus,
        scheduler="SLURM",
    )


def first_host(nodes: str) -> str:
    """Return 'node07' for SLURM's list 'node[07-09,12],other'."""
    match = re.match(r"([^,\[]*)(?:\[([^\]]*)\]([^,]*))?", nodes)
    assert match is not None  # it matches the empty string
    prefix, ranges, suffix = match.groups()
    return prefix if ranges is None else prefix + re.split("[-,]", ranges)[0] + suffix


def tasks_per_node(text: str) -> list[int]:
    """Return [8, 8, 4] for SLURM's '8(x2),4'."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def detect_open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    """Return the place of a process of `mpirun`."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    size = int(environment["OMPI_COMM_WORLD_SIZE"])
    local_size = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))

    # Open MPI 4 tells the address of mpirun, and process 0 runs on the same machine.
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    address = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    host = ""
    if size == local_size:
        host = LOOPBACK
    elif address:
        host = address[1] or f"[{address[2]}]"
    job = uri.partition(".")[0] or environment.get("PMIX_NAMESPACE", "")

    gpus = split_gpus(
        count_visible_gpus(environment),
        task=int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)),
        tasks=local_size,
    )
    return Cluster(
        processes=size,
        process=int(environment["OMPI_COMM_WORLD_RANK"]),
        coordinator=f"{host}:{job_port(job)}" if host else "",
        gpus=gpus,
        scheduler="Open MPI",
    )


def detect_kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    """Return the place of a pod of an indexed Job with a headless service.

    A pod does not know how many there are: runtime.processes says it. The host name of a pod is
    JOB-INDEX, and the service gives pods the name HOST.SERVICE.NAMESPACE....
    """
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "KUBERNETES_SERVICE_HOST" not in environment:
        return None

    host, _, domain = socket.getfqdn().partition(".")
    job = host.removesuffix(f"-{index}")
    coordinator = f"{job}-0.{domain}:{job_port(job)}" if domain and job != host else ""
    return Cluster(0, int(index), coordinator, scheduler="Kubernetes")


SCHEDULERS: tuple[Callable[[Mapping[str, str]], Cluster | None], ...] = (
    detect_slurm,
    detect_open_mpi,
    detect_kubernetes,
)


def detect_scheduler(environment: Mapping[str, str]) -> Cluster | None:
    """Return the place that the first scheduler which started this process gives it, or None."""
    for detect in SCHEDULERS:
        cluster = detect(environment)
        if cluster is not None:
            return cluster
    return None


def job_port(job: str) -> int:
    """Return a port on which all processes of a job agree without talking to each other."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORT_COUNT


def count_visible_gpus(environment: Mapping[str, str]) -> int:
    """Count the GPUs that this process could use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name and name != "-1"])

    suffixes = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*")]
    return len([suffix for suffix in suffixes if suffix.isdigit()])


def split_gpus(gpus: int, task: int, tasks: int) -> tuple[int, ...] | None:
    """Return the GPUs of one of the `tasks` on a machine that all see `gpus` of them.

    None where each task sees only its own, or where they do not divide.
    """
    per_task = gpus // tasks
    if per_task == 0 or gpus % tasks or tasks == 1:
        return None
    return tuple(range(task * per_task, (task + 1) * per_task))
