"""Settings that must come before jax, its devices, and the versions of what computes. Imports no jax at module level."""

import hashlib
import importlib.metadata
import logging
import os
import platform
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm.config import ConfigError, RuntimeConfig

if TYPE_CHECKING:
    import jax

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
EMULATED_DEVICES = "--xla_force_host_platform_device_count"


def configure(runtime: RuntimeConfig) -> None:
    """Sets platform, device count, XLA flags, compilation cache and log levels; call it before jax is used.

    XLA_FLAGS that the user set win over ours. Raises ConfigError for settings that this process can't have any more.
    """
    quiet_logs()
    if runtime.deterministic:
        add_xla_flag("--xla_gpu_deterministic_ops", "true")
    if runtime.compilation_cache is not None:
        set_jax_option(
            "jax_compilation_cache_dir", str(private_directory(runtime.compilation_cache))
        )
    if runtime.platform is not None:
        set_jax_option("jax_platforms", runtime.platform)
    if (
        runtime.devices is not None
        and runtime.platform != "cuda"
        and EMULATED_DEVICES not in os.environ.get("XLA_FLAGS", "")
    ):
        emulate(runtime.devices)


def quiet_logs() -> None:
    """Hides what libraries log; their failures reach the user as our own errors."""
    import absl.logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # A failed save or restore logs a traceback from each of Orbax's threads and tasks.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = hide_checkpoint_threads


def hide_checkpoint_threads(unraisable: Any) -> None:
    """Keeps quiet where the event loop of a failed save or restore is torn down; that failure is raised as well."""
    files = [frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback)]
    if not any(
        f"{os.sep}{package}{os.sep}" in file for file in files for package in ("asyncio", "orbax")
    ):
        sys.__unraisablehook__(unraisable)


def add_xla_flag(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in (flag.partition("=")[0] for flag in flags.split()):
        os.environ["XLA_FLAGS"] = f"{flags} {name}={value}".strip()


def set_jax_option(name: str, value: Any) -> None:
    """Sets an option of jax for this process: by environment before jax is imported, directly afterwards."""
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(name, value)
    else:
        os.environ[name.upper()] = str(value)


def private_directory(path: str) -> Path:
    """The folder at `path`, made with mode 0700: it holds native code that this user will run."""
    directory = Path(path).expanduser().absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "runtime.compilation_cache", f"can't make {directory}: {error.strerror}"
        ) from error
    if directory.stat().st_mode & 0o022:
        reason = f"{directory} can be written by other users, and what it holds is run as you: chmod 700 it or choose another"
        raise ConfigError("runtime.compilation_cache", reason)
    return directory


def emulate(count: int) -> None:
    """At least `count` CPU devices. Has no effect on GPUs."""
    if "jax" not in sys.modules:
        set_jax_option("jax_num_cpu_devices", count)
        return
    import jax

    if jax.config.jax_num_cpu_devices >= count:  # type: ignore[attr-defined]
        return  # never fewer: whoever imported jax may want the others
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:  # the backend runs already
        if len(jax.devices()) < count:
            reason = f"{count} devices asked for, but jax already runs with {len(jax.devices())}"
            raise ConfigError("runtime.devices", reason) from error


def devices(runtime: RuntimeConfig, hosts: Sequence[str] = ()) -> list["jax.Device"]:  # type: ignore[valid-type]
    """The devices of the run: the first `runtime.devices` of each process, or all. Starts jax's backend.

    With the `hosts` of the processes, devices of one host stand together, so that the inner axes of a mesh are on fast links.
    Raises ConfigError on runtime.devices where there are fewer, on runtime.platform where jax can't use that platform.
    """
    import jax

    try:
        found, local = jax.devices(), jax.local_devices()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # jax fails by assertion where a platform has no device
        asked = runtime.platform or os.environ.get("JAX_PLATFORMS") or "any"
        reason = f"jax finds no device of platform {asked!r} {' '.join(str(error).split())}".strip()
        raise ConfigError("runtime.platform", reason) from error
    if runtime.platform is not None and found[0].platform != {"cuda": "gpu"}.get(
        runtime.platform, runtime.platform
    ):
        raise ConfigError(
            "runtime.platform",
            f"{runtime.platform!r} asked for, but jax already runs on {found[0].platform!r}",
        )
    if runtime.devices is not None and runtime.devices > len(local):
        raise ConfigError(
            "runtime.devices",
            f"{runtime.devices} devices asked for, {describe_devices(local)} found",
        )
    return arranged(found, runtime.devices, hosts)


def arranged(found: Sequence[Any], count: int | None, hosts: Sequence[str]) -> list[Any]:
    """The first `count` devices of each process, by host, process and number; hosts in the order of their first process."""
    processes = sorted(
        {device.process_index for device in found},
        key=lambda p: (hosts.index(hosts[p]) if hosts else 0, p),
    )
    return [
        device
        for process in processes
        for device in [d for d in found if d.process_index == process][:count]
    ]


def describe_devices(devices: Sequence["jax.Device"]) -> str:  # type: ignore[valid-type]
    """'8 x NVIDIA H100 80GB HBM3', '2 x cpu'."""
    return f"{len(devices)} x {devices[0].device_kind}"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"  # jaxlm itself, when run from a checkout
    return found


def code_version() -> str:
    """A hash of jaxlm's own source."""
    package, whole = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:16]
