"""Start and end jax's distributed runtime.

The only module that knows `jax.distributed`, and the private parts of jax below it.
"""

import functools
import importlib.metadata
import ipaddress
import os
import socket
import sys
import threading
import time
from typing import Any

from jaxlm.config import ConfigError, LostError, RuntimeConfig, UserError
from jaxlm.runtime.cluster import LOOPBACK, Cluster
from jaxlm.runtime.output import print_error

SLACK_SECONDS = 60  # past our own time limits jax's would end the process with a stack trace
PROBE_SECONDS = 5
RETRY_SECONDS = 0.2
HEARTBEAT_SLACK = 2.5  # jax may call a process lost after half of its time limit


def initialize(cluster: Cluster, runtime: RuntimeConfig) -> socket.socket | None:
    """Start jax's distributed runtime and wait for all processes of the cluster.

    Returns a connection to the coordinator that breaks when process 0 ends; None for process 0
    itself. Raises UserError, before it waits, if jax lacks a private name that is needed.
    """
    key_value_store()
    if is_loopback(cluster.address[0]):
        keep_collectives_on_loopback()

    seconds = runtime.initialization_timeout_seconds
    connection = None if cluster.is_leader else connect(cluster, seconds)
    bind_address = check_listening_address(cluster, runtime)

    import jax

    timer = threading.Timer(seconds, exit_after_timeout, [cluster, runtime])
    timer.daemon = True
    timer.start()
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator,
        num_processes=cluster.processes,
        process_id=cluster.process,
        local_device_ids=cluster.gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds + SLACK_SECONDS,
        heartbeat_timeout_seconds=round(HEARTBEAT_SLACK * runtime.heartbeat_timeout_seconds),
        shutdown_timeout_seconds=runtime.heartbeat_timeout_seconds,
        coordinator_bind_address=bind_address,
    )
    timer.cancel()
    return connection


def shutdown() -> None:
    """Wait until all processes are done and end the runtime."""
    import jax

    jax.distributed.shutdown()


def is_initialized() -> bool:
    """Return whether this process is still part of a run.

    jax would then wait for the other processes before it lets the interpreter end.
    """
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


# Private names of jax


def key_value_store() -> Any:
    """Return the store of jax's coordination service that the processes share.

    None before `initialize`. jax has no public name for it. Raises UserError if the private one is
    gone.
    """
    try:
        from jax._src import distributed

        return distributed.global_state.client
    except (ImportError, AttributeError) as error:
        raise missing_from_jax("jax._src.distributed.global_state.client") from error


def keep_collectives_on_loopback() -> None:
    """Make the collectives of a run on one machine listen on loopback alone.

    Without it NCCL and gloo listen on the machine's address. NCCL has a variable for that; gloo's
    host name is an argument that jax does not pass, so the function that jax calls is replaced by
    one with the argument. Raises UserError if that function is gone.
    """
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    try:
        from jax._src.lib import _jax  # type: ignore[attr-defined]

        make_collectives = _jax.make_gloo_tcp_collectives
    except (ImportError, AttributeError) as error:
        raise missing_from_jax("jax._src.lib._jax.make_gloo_tcp_collectives") from error

    if not isinstance(make_collectives, functools.partial):
        _jax.make_gloo_tcp_collectives = functools.partial(make_collectives, hostname=LOOPBACK)


def missing_from_jax(name: str) -> UserError:
    """Return the error for a private name that this version of jax does not have."""
    version = importlib.metadata.version("jax")
    return UserError(
        f"jax {version} has no {name}, which a run of several processes needs: "
        "install a version of jax that jaxlm is tested with (pyproject.toml has the range)"
    )


# Addresses


def is_listening(cluster: Cluster) -> bool:
    """Return whether somebody listens at the coordinator's address."""
    try:
        socket.create_connection(cluster.address, timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def connect(cluster: Cluster, seconds: float) -> socket.socket:
    """Connect to the coordinator, trying again for `seconds`; LostError if it is not there.

    jax itself would end the process without a word of ours.
    """
    deadline, reason = time.monotonic() + seconds, ""
    while (seconds_left := deadline - time.monotonic()) > 0:
        try:
            return socket.create_connection(cluster.address, timeout=seconds_left)
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(min(RETRY_SECONDS, seconds_left))

    raise LostError(
        f"process {cluster.process} can't reach the coordinator at {cluster.coordinator}: "
        f"tried for {seconds:g} s ({reason}); is process 0 running there? "
        "(runtime.coordinator, runtime.initialization_timeout_seconds)"
    )


def exit_after_timeout(cluster: Cluster, runtime: RuntimeConfig) -> None:
    """End this process, since not all processes of the cluster have connected in time."""
    seconds = runtime.initialization_timeout_seconds
    problem = f"not all of the {cluster.processes} processes connected to {cluster.coordinator}"
    print_error(f"error: {problem} within {seconds} s (runtime.initialization_timeout_seconds)")
    os._exit(LostError.exit_code)


def check_listening_address(cluster: Cluster, runtime: RuntimeConfig) -> str:
    """Return IP:PORT on which process 0 listens: one interface, unless the user asks for all.

    Raises ConfigError if the name is no address or process 0 can't listen there.
    """
    host, port = cluster.address
    key, name = "coordinator", host
    if runtime.coordinator_bind:
        key, name = "coordinator_bind", runtime.coordinator_bind

    try:
        family, *_, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"runtime.{key}", f"{name!r} is no address: {error.strerror}") from error
    ip = str(address[0])

    if cluster.is_leader:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen()
        except OSError as error:
            reason = f"process 0 can't listen on {ip} port {port}: {error.strerror}"
            raise ConfigError(f"runtime.{key}", reason) from error

        if is_loopback(ip) and ip != host and host != "localhost":
            print(
                f"warning: {host} is {ip} on this machine: processes on other machines can't reach "
                "it; runtime.coordinator_bind says where to listen (0.0.0.0: everywhere)",
                flush=True,
            )

    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
