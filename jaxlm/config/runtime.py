"""The section `runtime`: process and platform."""

import re
from typing import Literal

from jaxlm.config.fields import Count, FilePath, NonEmpty, Positive, refuser, section

# HOST:PORT or [IPv6]:PORT
HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):\d{1,5}")


@section("runtime")
class RuntimeConfig:
    """Process and platform. Nothing here changes the maths."""

    platform: Literal["cpu", "cuda"] | None = None  # None: what jax finds
    # Of each process. CPU: devices to emulate; GPU: how many to use. None: all
    devices: Positive | None = None
    # auto: cuDNN's flash kernel where it supports the case; blockwise: no L x L scores in memory
    attention: Literal["auto", "xla", "cudnn", "blockwise"] = "auto"
    deterministic: bool = False  # GPU: the same bits each time, slower. A CPU always is
    # Folder of compiled programs. None: jaxlm's in the user's cache folder
    compilation_cache: FilePath | None = None
    # CPU: precision.compute as measured on this machine, not as it stands, and devices if None
    measure_cpu: bool = False

    # None in these: as SLURM, Open MPI or Kubernetes say
    processes: Positive | None = None  # of the run; 1 without a scheduler
    process: Count | None = None  # number of this one, from 0
    coordinator: NonEmpty | None = None  # HOST:PORT where process 0 waits for the others
    # Address on which process 0 listens. None: that of the coordinator's host
    coordinator_bind: NonEmpty | None = None

    initialization_timeout_seconds: Positive = 300  # until all processes are connected
    preparation_timeout_seconds: Positive = 3600  # until process 0 has prepared the data
    heartbeat_timeout_seconds: Positive = 100  # a process that is silent for longer is lost

    def __post_init__(self):
        refuse = refuser("runtime")
        count, number = self.processes, self.process
        if count is not None and number is not None and number >= count:
            refuse("process", f"must be below runtime.processes ({count}), got {number}")

        if self.coordinator is not None and not HOST_AND_PORT.fullmatch(self.coordinator):
            refuse("coordinator", f"must be HOST:PORT, got {self.coordinator!r}")
