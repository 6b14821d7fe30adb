"""Starting and ending jax's distributed runtime. The only module that knows `jax.distributed`, and the parts of jax below it."""

import functools
import ipaddress
import os
import socket
import sys
import threading
import time
from typing import Any

from jaxlm.config import ConfigError, LostError, RuntimeConfig
from jaxlm.runtime.cluster import LOOPBACK, Cluster
from jaxlm.runtime.output import complain

SLACK_SECONDS = 60  # after our own time limits jax's would end the process with a stack trace
PROBE_SECONDS = 5
HEARTBEAT_SLACK = 2.5  # jax may call a process lost after half of its time limit


def initialize(cluster: Cluster, runtime: RuntimeConfig) -> socket.socket | None:
    """Starts jax's distributed runtime and waits for all processes of the cluster.

    Returns a connection to the coordinator that breaks when process 0 ends; None for process 0 itself.
    """
    connection = None if cluster.leads else connect(cluster, runtime.initialization_timeout_seconds)
    bind = listening_address(cluster, runtime)
    if is_loopback(cluster.address[0]):
        stay_local()
    import jax

    late = threading.Timer(runtime.initialization_timeout_seconds, give_up, [cluster, runtime])
    late.daemon = True
    late.start()
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.processes,
        process_id=cluster.process,
        local_device_ids=cluster.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=runtime.initialization_timeout_seconds + SLACK_SECONDS,
        heartbeat_timeout_seconds=round(HEARTBEAT_SLACK * runtime.heartbeat_timeout_seconds),
        shutdown_timeout_seconds=runtime.heartbeat_timeout_seconds,
        coordinator_bind_address=bind,
    )
    late.cancel()
    return connection


def shutdown() -> None:
    """Ends the runtime once all processes are here."""
    import jax

    jax.distributed.shutdown()


def is_initialized() -> bool:
    """Whether this process is still part of a run: jax would wait for the others before it lets the interpreter end."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def client() -> Any:
    """The key-value store that the processes share."""
    from jax._src import distributed

    return distributed.global_state.client


def is_listening(cluster: Cluster) -> bool:
    """Whether somebody listens at the coordinator's address."""
    try:
        socket.create_connection(cluster.address, timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def connect(cluster: Cluster, seconds: float) -> socket.socket:
    """A connection to the coordinator. jax would end the process without a word of ours if there is none."""
    deadline, reason = time.monotonic() + seconds, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection(cluster.address, timeout=left)
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(0.2, left))
    reason = f"process {cluster.process} can't reach the coordinator at {cluster.coordinator}: tried for {seconds:g} s ({reason})"
    raise LostError(
        f"{reason}; is process 0 running there? (runtime.coordinator, runtime.initialization_timeout_seconds)"
    )


def give_up(cluster: Cluster, runtime: RuntimeConfig) -> None:
    seconds = runtime.initialization_timeout_seconds
    reason = f"not all of the {cluster.processes} processes came to {cluster.coordinator} within {seconds} s"
    complain(f"error: {reason} (runtime.initialization_timeout_seconds)")
    os._exit(LostError.exit_code)


def listening_address(cluster: Cluster, runtime: RuntimeConfig) -> str:
    """IP:PORT on which process 0 listens: one interface, unless the user asks for all."""
    host, port = cluster.address
    key, name = (
        ("coordinator_bind", runtime.coordinator_bind)
        if runtime.coordinator_bind
        else ("coordinator", host)
    )
    try:
        family, *_, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"runtime.{key}", f"{name!r} is no address: {error.strerror}") from error
    ip = str(address[0])
    if cluster.leads:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen()
        except OSError as error:
            raise ConfigError(
                f"runtime.{key}", f"process 0 can't listen on {ip} port {port}: {error.strerror}"
            ) from error
        if is_loopback(ip) and ip != host and host != "localhost":
            hint = "processes on other machines can't reach it; runtime.coordinator_bind says where to listen (0.0.0.0: everywhere)"
            print(f"warning: {host} is {ip} on this machine: {hint}", flush=True)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def stay_local() -> None:
    """Has the collectives of a run on one machine listen on loopback alone: by themselves they choose the machine's address."""
    from jax._src.lib import _jax  # type: ignore[attr-defined]

    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if not isinstance(_jax.make_gloo_tcp_collectives, functools.partial):
        _jax.make_gloo_tcp_collectives = functools.partial(
            _jax.make_gloo_tcp_collectives, hostname=LOOPBACK
        )
