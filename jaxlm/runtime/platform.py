"""Settings that jax needs before it starts, the devices of a run, and library versions.

Importing it imports no jax.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm import hardware
from jaxlm.config import ConfigError, RuntimeConfig

PACKAGES = (
    "jaxlm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tokenizers",
    "numpy",
)
# Options of glibc's mallopt (malloc.h) and their values: one heap for all threads, all buffers in
# it however large, and nothing of it given back.
KEEP_FREED_MEMORY = (
    (-8, 1),  # M_ARENA_MAX
    (-4, 0),  # M_MMAP_MAX
    (-1, -1),  # M_TRIM_THRESHOLD
)
# glibc's own values of the latter two, and the share of the machine's memory from which on a
# process has them again.
RETURN_FREED_MEMORY = ((-4, 65536), (-1, 128 * 1024))
KEPT_SHARE = 0.5
NO_GLIBC = (AttributeError, OSError, TypeError)  # what ctypes raises with another C library

EMULATED_DEVICES = "--xla_force_host_platform_device_count"

ALL_GATHER_LIMIT = "xla_gpu_all_gather_combine_threshold_bytes"
REDUCE_SCATTER_LIMIT = "xla_gpu_reduce_scatter_combine_threshold_bytes"

# Options with which XLA compiles the steps of a run on several GPUs, and why. They are options of
# the programs and not XLA_FLAGS: a flag that another version lacks would end the process.
SEVERAL_GPUS: dict[str, tuple[Any, str]] = {
    "xla_gpu_enable_latency_hiding_scheduler": (
        True,
        "start collectives early and compute in the meantime; XLA's default is one after another",
    ),
    # By default XLA combines up to 30 MB, a fraction of a layer. Small collectives take most of
    # their time to start, and the weights and gradients of a layer travel at the same moment. The
    # limits are those of what comes out: of a reduce-scatter that is a part of the gradients.
    # Under ZeRO 3 they are set to the size of a layer: combined with more, gathered weights would
    # stay in memory, and gradients wait.
    ALL_GATHER_LIMIT: (2**28, "the weights of a layer together"),
    REDUCE_SCATTER_LIMIT: (2**25, "the gradients of a layer together"),
    "xla_gpu_all_reduce_combine_threshold_bytes": (2**28, "the gradients of a step in few parts"),
}
# On one GPU products are cuBLAS's, whose kernels also add biases and compute GELU. Where Triton may
# have a product, XLA gives it all that follows, and if cuBLAS is faster takes the product alone
# (docs/performance.md has the times). On several GPUs it would have the gather of the next layer
# wait in the forward pass (tests/test_compiled_collectives.py).
ONE_GPU = {"xla_gpu_enable_triton_gemm": False}
# Triton's kernels convert float8 values to bfloat16 before they multiply them, cuBLAS's don't. XLA
# makes one product of several that share a factor, such as those of query, key and value, while
# they are small: their float8 factors have scales of their own, and it would multiply in bfloat16.
FLOAT8 = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
# A layer can't start before its weights are there, so nothing of it can hide the gather: in a scan
# those of the next layer are gathered while one is computed. Peak memory is that of two gathered
# layers. The option has another name since this version of jax, and one that a version lacks ends
# the compilation.
GATHER_AHEAD_RENAMED = (0, 11, 1)
GATHER_AHEAD_BEFORE = {"xla_gpu_enable_pipelined_all_gather": True}
GATHER_AHEAD = {
    "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
    # By this estimate of latencies a step waits for the gather before it computes the layer
    # (llama_1b for 8 H100).
    "xla_gpu_enable_analytical_sol_latency_estimator": False,
}


def configure(runtime: RuntimeConfig, *, trains: bool = False) -> None:
    """Set platform, device count, XLA flags, compilation cache and log levels, before jax is used.

    XLA_FLAGS that the user set win over ours. A process that `trains` keeps the memory that it
    frees on CPUs. Raises ConfigError for what this process can't have any more, since jax already
    runs.
    """
    quiet_logs()
    if trains and keeps_freed_memory(runtime):
        set_malloc(KEEP_FREED_MEMORY)
    if runtime.deterministic:
        add_xla_flag("--xla_gpu_deterministic_ops", "true")
    keep_compiled_programs(runtime.compilation_cache)
    if runtime.platform is not None:
        set_jax_option("jax_platforms", runtime.platform)

    user_emulates = EMULATED_DEVICES in os.environ.get("XLA_FLAGS", "")
    if runtime.devices is not None and runtime.platform != "cuda" and not user_emulates:
        emulate_devices(runtime.devices)


def runs_on_cpu(runtime: RuntimeConfig) -> bool:
    """Return True if jax will find no GPU, as far as that can be told before it starts."""
    if runtime.platform is not None:
        return runtime.platform == "cpu"
    return os.environ.get("JAX_PLATFORMS") == "cpu" or not Path("/dev/nvidia0").exists()


def keeps_freed_memory(runtime: RuntimeConfig) -> bool:
    """Return True if a process that trains keeps the memory that it frees.

    A step on CPUs allocates its buffers anew, often gigabytes. glibc gives them back to the system
    after the step, which then clears every page again: 10 to 25% of the time of a step. A user who
    has set glibc's own variables is left to them.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    return runs_on_cpu(runtime) and not is_set and "GLIBC_TUNABLES" not in os.environ


def limit_kept_memory(runtime: RuntimeConfig) -> None:
    """Give freed memory back from now on, if this process has half of the machine's memory.

    What is kept grows to several times the buffers of a step, as these don't fit into each other's
    places.
    """
    if not keeps_freed_memory(runtime):
        return
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no Linux
        return
    if pages * os.sysconf("SC_PAGE_SIZE") > KEPT_SHARE * host_memory():
        set_malloc(RETURN_FREED_MEMORY)
        with contextlib.suppress(*NO_GLIBC):
            ctypes.CDLL(None).malloc_trim(0)


def set_malloc(options: Sequence[tuple[int, int]]) -> None:
    """Set options of glibc's mallopt; with another C library nothing happens.

    The number of heaps counts for threads that start later: a thread with a heap of its own takes
    large buffers from the system.
    """
    with contextlib.suppress(*NO_GLIBC):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options:
            mallopt(option, value)


def keep_compiled_programs(folder: str | None) -> None:
    """Keep compiled programs in a folder; None: in the user's own, unless jax has one already.

    Raises ConfigError for a folder that was asked for and can't be used.
    """
    if folder is not None:
        set_jax_option("jax_compilation_cache_dir", str(private_directory(folder)))
        return

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_compilation_cache_dir is not None:
        return
    with contextlib.suppress(ConfigError):
        path = user_cache() / f"compiled-{hardware.cpu_identity()}"
        set_jax_option("jax_compilation_cache_dir", str(private_directory(str(path))))


def user_cache() -> Path:
    """Return the folder in which programs of this user keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxlm"


def quiet_logs() -> None:
    """Hide what libraries log; their failures reach the user as our own errors."""
    import absl.logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A failed save or restore logs a traceback from each of Orbax's threads and tasks.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = hide_checkpoint_threads


def hide_checkpoint_threads(unraisable: Any) -> None:
    """Hide errors from the event loop of a failed save or restore, which raises its own error."""
    files = [frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback)]
    for file in files:
        if any(f"{os.sep}{package}{os.sep}" in file for package in ("asyncio", "orbax")):
            return
    sys.__unraisablehook__(unraisable)


def add_xla_flag(name: str, value: str) -> None:
    """Add a flag to XLA_FLAGS unless it is there already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in (flag.partition("=")[0] for flag in flags.split()):
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


def compiler_options(
    devices: Sequence[Any],
    layer_bytes: tuple[int, int] | None = None,
    *,
    float8: bool = False,
) -> dict[str, Any]:
    """Return the options with which the steps of a run on these jax devices are compiled.

    `layer_bytes` are those of a layer's gathered weights and of a device's part of its gradients,
    where each layer's travel by themselves (ZeRO 3). `float8` is for steps with such
    products. An option that the user has set in XLA_FLAGS is left to that.
    """
    if not are_gpus(devices):
        return {}
    flags = os.environ.get("XLA_FLAGS", "").split()
    set_by_user = {flag.partition("=")[0].removeprefix("--") for flag in flags}
    options: dict[str, Any] = dict(ONE_GPU)
    if len(devices) > 1:
        options = {name: value for name, (value, _) in SEVERAL_GPUS.items()}
        is_renamed = jax_version() >= GATHER_AHEAD_RENAMED
        options |= GATHER_AHEAD if is_renamed else GATHER_AHEAD_BEFORE
        if layer_bytes is not None:
            options[ALL_GATHER_LIMIT], options[REDUCE_SCATTER_LIMIT] = layer_bytes
    if float8:
        options |= FLOAT8
    return {name: value for name, value in options.items() if name not in set_by_user}


def are_gpus(devices: Sequence[Any]) -> bool:
    """Return True for CUDA devices of jax; those of a mesh are all of one kind."""
    return devices[0].platform in ("gpu", "cuda")


def jax_version() -> tuple[int, ...]:
    """Return the first three numbers of the version of jax."""
    numbers = re.findall(r"\d+", importlib.metadata.version("jax"))
    return tuple(int(number) for number in numbers[:3])


def device_memory(device: Any) -> int | None:
    """Return the bytes that jax may use on a device; None where it does not say (CPUs)."""
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (NotImplementedError, RuntimeError):  # devices that are only described
        return None


def host_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def set_jax_option(name: str, value: Any) -> None:
    """Set an option of jax: by environment before jax is imported, else directly."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
    else:
        os.environ[name.upper()] = str(value)


def private_directory(path: str) -> Path:
    """Make the folder at `path`, with mode 0700, and return it.

    It holds native code that this user will run: ConfigError if others can write to it.
    """
    directory = Path(path).expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"can't make {directory}: {error.strerror}"
        raise ConfigError("runtime.compilation_cache", reason) from error

    if directory.stat().st_mode & 0o022:
        raise ConfigError(
            "runtime.compilation_cache",
            f"{directory} can be written by other users, and the programs in it are run as you: "
            "chmod 700 it or choose another",
        )
    return directory


def emulate_devices(count: int) -> None:
    """Emulate at least `count` CPU devices. Has no effect on GPUs."""
    if "jax" not in sys.modules:
        set_jax_option("jax_num_cpu_devices", count)
        return

    import jax

    # Never fewer: whoever imported jax may need the others.
    if jax.config.jax_num_cpu_devices >= count:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:  # the backend runs already
        available = len(jax.devices())
        if available < count:
            reason = f"{count} devices requested, but jax already runs with {available}"
            raise ConfigError("runtime.devices", reason) from error


def select_devices(runtime: RuntimeConfig, hosts: Sequence[str] = ()) -> list[Any]:
    """Return the jax devices of the run: `runtime.devices` of each process, or all.

    Starts jax's backend. `hosts` are those of the processes: devices of one host are put next to
    each other, so that the inner axes of a mesh are on fast links. Raises ConfigError on
    runtime.devices where there are fewer, on runtime.platform where jax can't use that platform.
    """
    import jax

    requested = runtime.platform
    try:
        devices, local_devices = jax.devices(), jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a platform has no device
        name = requested or os.environ.get("JAX_PLATFORMS") or "any"
        reason = f"jax finds no device of platform {name!r} {' '.join(str(error).split())}".strip()
        raise ConfigError("runtime.platform", reason) from error

    if requested is not None:
        actual = devices[0].platform
        if actual != {"cuda": "gpu"}.get(requested, requested):
            reason = f"{requested!r} requested, but jax already runs on {actual!r}"
            raise ConfigError("runtime.platform", reason)

    if runtime.devices is not None and runtime.devices > len(local_devices):
        available = describe_devices(local_devices)
        reason = f"{runtime.devices} devices requested, {available} found"
        raise ConfigError("runtime.devices", reason)
    return order_devices(devices, runtime.devices, hosts)


def count_devices(runtime: RuntimeConfig, processes: int) -> int | None:
    """Return the devices that the run asks for; None if it takes all that jax finds.

    Imports no jax. Where there are fewer `select_devices` says so.
    """
    return None if runtime.devices is None else runtime.devices * processes


def order_devices(devices: Sequence[Any], count: int | None, hosts: Sequence[str]) -> list[Any]:
    """Return the first `count` devices of each process, by host, process and number.

    Hosts come in the order of their first process.
    """
    processes = sorted({device.process_index for device in devices})
    if hosts:
        processes.sort(key=lambda process: hosts.index(hosts[process]))

    ordered = []
    for process in processes:
        ordered += [device for device in devices if device.process_index == process][:count]
    return ordered


def describe_devices(devices: Sequence[Any]) -> str:
    """Return '8 x NVIDIA H100 80GB HBM3' or '2 x cpu'."""
    return f"{len(devices)} x {devices[0].device_kind}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide what a run computes."""
    found_versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found_versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found_versions[package] = "not installed"  # jaxlm itself, when run from a checkout
    return found_versions


def code_version() -> str:
    """Return a hash of jaxlm's own source."""
    package, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
