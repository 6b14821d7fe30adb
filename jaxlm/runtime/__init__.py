"""Process and platform: what must be set before jax, several processes, signals, exit codes.

Importing it imports no jax.
"""

from jaxlm.runtime.cluster import Cluster, detect_cluster, without_process_fields
from jaxlm.runtime.command import Parser, command, lock_run_directory, run
from jaxlm.runtime.platform import (
    code_version,
    compiler_options,
    configure,
    describe_devices,
    device_memory,
    private_directory,
    select_devices,
    versions,
)
from jaxlm.runtime.process_group import ProcessGroup
from jaxlm.runtime.stop import PeerStop, StopSignal

__all__ = [
    "Cluster",
    "Parser",
    "PeerStop",
    "ProcessGroup",
    "StopSignal",
    "code_version",
    "command",
    "compiler_options",
    "configure",
    "describe_devices",
    "detect_cluster",
    "device_memory",
    "lock_run_directory",
    "private_directory",
    "run",
    "select_devices",
    "versions",
    "without_process_fields",
]
