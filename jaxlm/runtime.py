"""Process and platform: settings that must come before jax, signals, the run's lock, exit codes. Imports no jax at module level."""

import argparse
import contextlib
import fcntl
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from jaxlm.config import ConfigError, Runtime, UserError

if TYPE_CHECKING:
    import jax

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")
EMULATED_DEVICES = "--xla_force_host_platform_device_count"
INTERRUPTED, BROKEN_PIPE = 128 + signal.SIGINT, 128 + signal.SIGPIPE  # exit codes, as shells count


def configure(runtime: Runtime) -> None:
    """Sets platform, device count, XLA flags, compilation cache and log levels; call it before jax is used.

    XLA_FLAGS that the user set win over ours. Raises ConfigError for settings that this process can't have any more.
    """
    quiet_logs()
    if runtime.deterministic:
        add_xla_flag("--xla_gpu_deterministic_ops", "true")
    if runtime.compilation_cache is not None:
        set_jax_option("jax_compilation_cache_dir", str(private_directory(runtime.compilation_cache)))
    if runtime.platform is not None:
        set_jax_option("jax_platforms", runtime.platform)
    if runtime.devices is not None and runtime.platform != "cuda" and EMULATED_DEVICES not in os.environ.get("XLA_FLAGS", ""):
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
    if not any(f"{os.sep}{package}{os.sep}" in file for file in files for package in ("asyncio", "orbax")):
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
        raise ConfigError("runtime.compilation_cache", f"can't make {directory}: {error.strerror}") from error
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


def devices(runtime: Runtime) -> list["jax.Device"]:  # type: ignore[valid-type]
    """The devices of the run: the first `runtime.devices`, or all. Starts jax's backend.

    Raises ConfigError on runtime.devices where there are fewer, on runtime.platform where jax can't use that platform.
    """
    import jax

    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax fails by assertion where a platform has no device
        asked = runtime.platform or os.environ.get("JAX_PLATFORMS") or "any"
        reason = f"jax finds no device of platform {asked!r} {' '.join(str(error).split())}".strip()
        raise ConfigError("runtime.platform", reason) from error
    if runtime.platform is not None and found[0].platform != {"cuda": "gpu"}.get(runtime.platform, runtime.platform):
        raise ConfigError("runtime.platform", f"{runtime.platform!r} asked for, but jax already runs on {found[0].platform!r}")
    if runtime.devices is not None and runtime.devices > len(found):
        raise ConfigError("runtime.devices", f"{runtime.devices} devices asked for, {describe_devices(found)} found")
    return found[: runtime.devices]


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


class Parser(argparse.ArgumentParser):
    """The arguments of a command, with its examples kept as written in --help; a mistake is a UserError in one line."""

    def __init__(self, prog: str, description: str, epilog: str):
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str):
        hint = "; settings are written without dashes: key=value" if message.startswith("unrecognized") and "=" in message else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def command(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Runs a command's `main` on the arguments and returns its exit code; in a process of its own, `run(main)`.

    A UserError becomes one line on stderr and its exit code; a closed pipe and Ctrl-C stay quiet; anything else is our
    mistake and keeps its traceback (1).
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's last flush complains
        code = BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except Exception:
        traceback.print_exc()
        code = 1
    return code


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a command's `main` on this process's arguments and ends the process with its exit code.

    After an error it doesn't wait for the threads of libraries: Orbax leaves some waiting for ever when a save failed.
    """
    code = command(main)
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if code and not all(thread.daemon for thread in threads):
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class StopSignal:
    """While entered, SIGINT and SIGTERM only set `requested`, so that a step can end and be saved.

    A Ctrl-C after a first signal raises KeyboardInterrupt as usual. Outside the main thread, where Python has no signals, it does nothing.
    """

    requested: str | None = None  # "SIGINT" or "SIGTERM"

    def __enter__(self) -> "StopSignal":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name


@contextlib.contextmanager
def lock(run_directory: Path) -> Iterator[None]:
    """Makes the run directory and holds its lock: two trainers would overwrite each other's checkpoints.

    Raises UserError if another process holds it or the directory can't be written.
    """
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        file = (run_directory / ".lock").open("a+")
    except FileExistsError as error:
        raise UserError(f"run_directory: {run_directory} is a file, not a folder") from error
    except OSError as error:
        raise UserError(f"run_directory: can't write to {run_directory}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            reason = f"another process (pid {holder}) trains in {run_directory}: stop it or choose another run_directory"
            raise UserError(reason) from error
        except OSError as error:  # some cluster file systems have no locks
            print(f"warning: can't lock {run_directory} ({error.strerror}); start one trainer only", file=sys.stderr)
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
