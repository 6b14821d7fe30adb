"""Process and platform: settings that must come before jax, several processes, signals, the run's lock, exit codes. Imports no jax."""

from jaxlm.runtime.cluster import Cluster, detect, shared
from jaxlm.runtime.command import Parser, command, lock, run
from jaxlm.runtime.platform import (
    code_version,
    configure,
    describe_devices,
    devices,
    private_directory,
    versions,
)
from jaxlm.runtime.process_group import ProcessGroup
from jaxlm.runtime.stop import StopSignal

__all__ = [
    "Cluster",
    "ProcessGroup",
    "Parser",
    "StopSignal",
    "code_version",
    "command",
    "configure",
    "describe_devices",
    "detect",
    "devices",
    "lock",
    "private_directory",
    "run",
    "shared",
    "versions",
]
