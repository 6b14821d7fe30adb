"""The place of this process in its run: from the config, or from SLURM, Open MPI or Kubernetes."""

import dataclasses
import os
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from functools import partial
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

    scheduled = detect_scheduler(environment, runtime)
    if scheduled is None:
        if runtime.processes is None and runtime.process is None and runtime.coordinator is None:
            return Cluster()
        scheduled = Cluster(
            processes=runtime.processes or 0,
            process=-1 if runtime.process is None else runtime.process,
            coordinator=runtime.coordinator or "",
        )
    if scheduled.processes == 1:
        return Cluster()

    check_complete(scheduled)
    return scheduled


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


# Schedulers. Each reads a variable only where the config does not say the same, so that a run that
# is told its place, or has one task, needs none of them.


class Variables:
    """The environment of a process that a scheduler started; a mistake in it is a ConfigError."""

    def __init__(self, scheduler: str, environment: Mapping[str, str]):
        self.scheduler, self.environment = scheduler, environment

    def text(self, name: str) -> str:
        """Return the value of a variable, which must not be empty."""
        value = self.environment.get(name, "").strip()
        if not value:
            raise self.error(name, "is not set" if name not in self.environment else "is empty")
        return value

    def number(self, name: str, least: int = 0, below: int | None = None) -> int:
        """Return the value of a variable that is a whole number from `least` on."""
        value = self.text(name)
        number = int(value) if re.fullmatch(r"[0-9]{1,9}", value) else -1
        if number < least:
            raise self.error(name, f"must be a whole number from {least} on, got {value!r}")
        if below is not None and number >= below:
            raise self.error(name, f"must be below {below}, got {value!r}")
        return number

    def error(self, name: str, problem: str) -> ConfigError:
        """Return the error for a variable that can't be used."""
        return ConfigError(
            name,
            f"{problem}, but this process was started by {self.scheduler}: set it, or "
            "runtime.processes=1 for a run of one process",
        )


def detect_slurm(environment: Mapping[str, str], runtime: RuntimeConfig) -> Cluster | None:
    """Return the place of a task of a job step (`srun`).

    A batch script and the shell of `salloc` are in a job, but not in a step.
    """
    if "SLURM_STEP_ID" not in environment and "SLURM_STEP_NUM_TASKS" not in environment:
        return None

    variables = Variables("SLURM", environment)
    processes = runtime.processes or variables.number("SLURM_STEP_NUM_TASKS", least=1)
    if processes == 1:
        return Cluster()
    process = runtime.process
    if process is None:
        process = variables.number("SLURM_PROCID")

    coordinator = runtime.coordinator
    if coordinator is None:
        host = LOOPBACK
        if environment.get("SLURM_STEP_NUM_NODES", "").strip() != "1":
            host = first_host(variables.text("SLURM_STEP_NODELIST"))
            if not host:
                raise variables.error("SLURM_STEP_NODELIST", "names no host")
        step = f"{environment.get('SLURM_JOB_ID')}.{variables.text('SLURM_STEP_ID')}"
        coordinator = f"{host}:{job_port(step)}"

    return Cluster(
        processes=processes,
        process=process,
        coordinator=coordinator,
        gpus=visible_gpus(environment, runtime, partial(slurm_task, variables)),
        scheduler="SLURM",
    )


def slurm_task(variables: Variables) -> tuple[int, int]:
    """Return the number of this task on its machine, and how many tasks the machine has."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    tasks = tasks_per_node(variables.text(name))
    if not tasks:
        raise variables.error(name, f"is no list of tasks: {variables.text(name)!r}")

    # A step of one machine does not need the number of the machine.
    node = 0 if len(tasks) == 1 else variables.number("SLURM_NODEID", below=len(tasks))
    return variables.number("SLURM_LOCALID", below=tasks[node]), tasks[node]


def first_host(nodes: str) -> str:
    """Return 'node07' for SLURM's list 'node[07-09,12],other'; '' if it is none."""
    match = re.match(r"((?:[^,\[\]]|\[[^\[\]]+\])+)(?:,|$)", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", match[1]) if match else ""


def tasks_per_node(text: str) -> list[int]:
    """Return [8, 8, 4] for SLURM's '8(x2),4'; [] for another text."""
    if not re.fullmatch(r"[1-9]\d{0,5}(\(x\d{1,5}\))?(,[1-9]\d{0,5}(\(x\d{1,5}\))?)*", text):
        return []
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in parts for _ in range(int(times or 1))]


def detect_open_mpi(environment: Mapping[str, str], runtime: RuntimeConfig) -> Cluster | None:
    """Return the place of a process of `mpirun`."""
    if not {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"} & set(environment):
        return None

    variables = Variables("Open MPI", environment)
    processes = runtime.processes or variables.number("OMPI_COMM_WORLD_SIZE", least=1)
    if processes == 1:
        return Cluster()
    process = runtime.process
    if process is None:
        process = variables.number("OMPI_COMM_WORLD_RANK")

    return Cluster(
        processes=processes,
        process=process,
        coordinator=runtime.coordinator or open_mpi_coordinator(variables, processes),
        gpus=visible_gpus(environment, runtime, partial(open_mpi_task, variables)),
        scheduler="Open MPI",
    )


def open_mpi_coordinator(variables: Variables, processes: int) -> str:
    """Return HOST:PORT of process 0, '' where it is not known.

    Open MPI 4 tells the address of mpirun, and process 0 runs on the same machine.
    """
    uri = variables.environment.get("OMPI_MCA_orte_hnp_uri", "")
    address = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    host = ""
    name = "OMPI_COMM_WORLD_LOCAL_SIZE"
    if name in variables.environment and variables.number(name, least=1) == processes:
        host = LOOPBACK
    elif address:
        host = address[1] or f"[{address[2]}]"
    job = uri.partition(".")[0] or variables.environment.get("PMIX_NAMESPACE", "")
    return f"{host}:{job_port(job)}" if host else ""


def open_mpi_task(variables: Variables) -> tuple[int, int]:
    """Return the number of this process on its machine, and how many the machine has."""
    tasks = variables.number("OMPI_COMM_WORLD_LOCAL_SIZE", least=1)
    return variables.number("OMPI_COMM_WORLD_LOCAL_RANK", below=tasks), tasks


def detect_kubernetes(environment: Mapping[str, str], runtime: RuntimeConfig) -> Cluster | None:
    """Return the place of a pod of an indexed Job with a headless service.

    A pod does not know how many there are: runtime.processes says it. The host name of a pod is
    JOB-INDEX, and the service gives pods the name HOST.SERVICE.NAMESPACE....
    """
    if "JOB_COMPLETION_INDEX" not in environment or "KUBERNETES_SERVICE_HOST" not in environment:
        return None

    variables = Variables("Kubernetes", environment)
    process, coordinator = runtime.process, runtime.coordinator
    if process is None:
        process = variables.number("JOB_COMPLETION_INDEX")

    if coordinator is None:
        host, _, domain = socket.getfqdn().partition(".")
        job = host.removesuffix(f"-{environment['JOB_COMPLETION_INDEX']}")
        coordinator = f"{job}-0.{domain}:{job_port(job)}" if domain and job != host else ""
    return Cluster(runtime.processes or 0, process, coordinator, scheduler="Kubernetes")


SCHEDULERS: tuple[Callable[[Mapping[str, str], RuntimeConfig], Cluster | None], ...] = (
    detect_slurm,
    detect_open_mpi,
    detect_kubernetes,
)


def detect_scheduler(environment: Mapping[str, str], runtime: RuntimeConfig) -> Cluster | None:
    """Return the place that the first scheduler which started this process gives it, or None.

    What the config says of it wins.
    """
    for detect in SCHEDULERS:
        cluster = detect(environment, runtime)
        if cluster is not None:
            return cluster
    return None


def visible_gpus(
    environment: Mapping[str, str], runtime: RuntimeConfig, task: Callable[[], tuple[int, int]]
) -> tuple[int, ...] | None:
    """Return the GPUs of this process; None for all that it sees.

    `task` gives its number on the machine and the number of processes there. It is asked only where
    there are GPUs to split.
    """
    gpus = count_visible_gpus(environment)
    if gpus < 2 or runtime.platform == "cpu":
        return None
    try:
        number, tasks = task()
    except ConfigError:
        # A process that the config tells its place needs no scheduler: as if started by hand.
        if None in (runtime.processes, runtime.process, runtime.coordinator):
            raise
        return None
    return split_gpus(gpus, number, tasks)


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
