"""Which process of which run this is: from the config, or from what SLURM, Open MPI and Kubernetes tell their processes."""

import dataclasses
import os
import re
import socket
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxlm.config import ConfigError, RuntimeConfig

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = (
    61440,
    4096,
)  # the ports that a job's number is mapped to: the upper end of the range that systems hand out


class Cluster(NamedTuple):
    """The processes of a run and this one's place among them."""

    processes: int = 1
    process: int = 0
    coordinator: str = ""  # HOST:PORT
    gpus: tuple[int, ...] | None = (
        None  # numbers of this process's GPUs among those that it sees; None: all
    )
    told_by: str = ""  # "SLURM", ...; "": the config

    @property
    def leads(self) -> bool:
        return self.process == 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def detect(runtime: RuntimeConfig, environment: Mapping[str, str] = os.environ) -> Cluster:
    """The cluster that the config gives, with what it leaves open filled in from the environment; one process if nobody says more.

    Raises ConfigError where something is missing.
    """
    if runtime.processes == 1:
        return Cluster()
    told = next(
        (found for detector in DETECTORS if (found := detector(environment)) is not None), None
    )
    if told is None:
        if runtime.processes is None and runtime.process is None and runtime.coordinator is None:
            return Cluster()
        told = Cluster(processes=0, process=-1)
    found = told._replace(
        processes=runtime.processes or told.processes,
        process=told.process if runtime.process is None else runtime.process,
        coordinator=runtime.coordinator or told.coordinator,
    )
    if found.processes == 1:
        return Cluster()
    of = (
        f"one of {found.processes} processes"
        if found.processes
        else "one of several processes (1: for one by itself)"
    )
    for key, missing in (
        ("processes", found.processes == 0),
        ("process", found.process < 0),
        ("coordinator", not found.coordinator),
    ):
        if missing:
            raise ConfigError(
                f"runtime.{key}",
                f"is needed for {of}{f' under {told.told_by}' if told.told_by else ''}",
            )
    if found.process >= found.processes:
        raise ConfigError(
            "runtime.processes", f"{found.processes} leaves no place for process {found.process}"
        )
    return found


def shared(runtime: RuntimeConfig) -> RuntimeConfig:
    """The settings without this process's place, which is no part of what a run is: they are the same in all, and are what is saved."""
    return dataclasses.replace(
        runtime, processes=None, process=None, coordinator=None, coordinator_bind=None
    )


def slurm(environment: Mapping[str, str]) -> Cluster | None:
    """A task of a job step (`srun`). A batch script and the shell of `salloc` are in a job, but not in a step."""
    if "SLURM_STEP_ID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    host = LOOPBACK if environment.get("SLURM_STEP_NUM_NODES") == "1" else first_host(nodes)
    port = port_of(f"{environment.get('SLURM_JOB_ID')}.{environment['SLURM_STEP_ID']}")
    here = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[
        int(environment.get("SLURM_NODEID", 0))
    ]
    gpus = share(visible_gpus(environment), int(environment.get("SLURM_LOCALID", 0)), here)
    return Cluster(
        int(environment["SLURM_STEP_NUM_TASKS"]),
        int(environment["SLURM_PROCID"]),
        f"{host}:{port}",
        gpus,
        "SLURM",
    )


def first_host(nodes: str) -> str:
    """'node07' of 'node[07-09,12],other'."""
    prefix, ranges, suffix = re.match(r"([^,\[]*)(?:\[([^\]]*)\]([^,]*))?", nodes).groups()  # type: ignore[union-attr]
    return prefix if ranges is None else prefix + re.split("[-,]", ranges)[0] + suffix


def tasks_per_node(text: str) -> list[int]:
    """[8, 8, 4] of '8(x2),4'."""
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def open_mpi(environment: Mapping[str, str]) -> Cluster | None:
    """A process of `mpirun`."""
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    size, local_size = (
        int(environment.get(name, 1))
        for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")
    )
    uri = environment.get(
        "OMPI_MCA_orte_hnp_uri", ""
    )  # Open MPI 4: the address of mpirun, beside which process 0 runs
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    name = LOOPBACK if size == local_size else next(filter(None, host.groups())) if host else ""
    job = uri.partition(".")[0] or environment.get("PMIX_NAMESPACE", "")
    coordinator = (
        f"[{name}]:{port_of(job)}" if ":" in name else f"{name}:{port_of(job)}" if name else ""
    )
    gpus = share(
        visible_gpus(environment), int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)), local_size
    )
    return Cluster(size, int(environment["OMPI_COMM_WORLD_RANK"]), coordinator, gpus, "Open MPI")


def kubernetes(environment: Mapping[str, str]) -> Cluster | None:
    """A pod of an indexed Job with a headless service. How many there are is not told to a pod: runtime.processes says it.

    The pod's host name is JOB-INDEX, and the service gives pods the name HOST.SERVICE.NAMESPACE....
    """
    index = environment.get("JOB_COMPLETION_INDEX")
    if index is None or "KUBERNETES_SERVICE_HOST" not in environment:
        return None
    host, _, domain = socket.getfqdn().partition(".")
    job = host.removesuffix(f"-{index}")
    coordinator = f"{job}-0.{domain}:{port_of(job)}" if domain and job != host else ""
    return Cluster(0, int(index), coordinator, None, "Kubernetes")


DETECTORS = (slurm, open_mpi, kubernetes)


def port_of(job: str) -> int:
    """A port that all processes of a job agree on without talking to each other."""
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS


def visible_gpus(environment: Mapping[str, str]) -> int:
    """How many GPUs this process could use."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(
            [
                path
                for path in Path("/dev").glob("nvidia*")
                if path.name.removeprefix("nvidia").isdigit()
            ]
        )
    return len([name for name in visible.split(",") if name and name != "-1"])


def share(gpus: int, task: int, tasks: int) -> tuple[int, ...] | None:
    """The GPUs of one of the `tasks` on a machine that all see `gpus`. None where each sees but its own, or they don't divide."""
    each = gpus // tasks
    return (
        tuple(range(task * each, (task + 1) * each))
        if each and gpus % tasks == 0 and tasks > 1
        else None
    )
