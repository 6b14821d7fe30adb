"""Process and platform: what must be set before jax, several processes, signals, exit codes.

Importing it imports no jax.
"""

from jaxlm.runtime.cluster import Cluster, detect_cluster, without_process_fields
from jaxlm.runtime.command import (
    Parser,
    add_config_arguments,
    add_keep_argument,
    call_command,
    check_output_file,
    command,
    lock_run_directory,
    memory_advice,
    memory_errors,
    run,
    write_json,
)
from jaxlm.runtime.cpu_choice import settle_cpu
from jaxlm.runtime.platform import (
    are_gpus,
    code_version,
    compiler_options,
    configure,
    count_devices,
    describe_devices,
    device_memory,
    host_memory,
    limit_kept_memory,
    private_directory,
    select_devices,
    versions,
)
from jaxlm.runtime.process_group import ProcessGroup
from jaxlm.runtime.stop import STOPPED, PeerStop, StopSignal

__all__ = [
    "STOPPED",
    "Cluster",
    "Parser",
    "PeerStop",
    "ProcessGroup",
    "StopSignal",
    "add_config_arguments",
    "add_keep_argument",
    "are_gpus",
    "call_command",
    "check_output_file",
    "code_version",
    "command",
    "compiler_options",
    "configure",
    "count_devices",
    "describe_devices",
    "detect_cluster",
    "device_memory",
    "host_memory",
    "limit_kept_memory",
    "lock_run_directory",
    "memory_advice",
    "memory_errors",
    "private_directory",
    "run",
    "select_devices",
    "settle_cpu",
    "versions",
    "without_process_fields",
    "write_json",
]
