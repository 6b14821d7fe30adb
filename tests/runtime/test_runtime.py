"""What must happen before jax starts, and around a command: each in a process of its own, since that is what it changes."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from jaxlm import runtime
from jaxlm.config import ConfigError, DivergedError, RuntimeConfig, UserError

OURS = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_NUM_CPU_DEVICES",
    "JAX_COMPILATION_CACHE_DIR",
    "TF_CPP_MIN_LOG_LEVEL",
)


def python(program, timeout=60, **environment):
    """Runs a program in a new process with our settings absent from its environment."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    arguments = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(
        arguments, env={**clean, **environment}, capture_output=True, text=True, timeout=timeout
    )


def output(program, **environment):
    done = python(program, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


CONFIGURE = "import os, sys; from jaxlm import runtime; from jaxlm.config import RuntimeConfig; "


def test_importing_changes_nothing():
    program = "import os, sys; before = dict(os.environ); import jaxlm.runtime; print(before == dict(os.environ), 'jax' in sys.modules)"
    assert output(program) == ["True", "False"]


def test_devices_are_emulated_and_the_cache_is_private(tmp_path):
    cache = tmp_path / "a" / "cache"
    program = (
        CONFIGURE
        + f"""
used = RuntimeConfig(platform="cpu", devices=3, compilation_cache={str(cache)!r})
runtime.configure(used)
assert "jax" not in sys.modules
found = runtime.select_devices(used)
import jax
print(runtime.describe_devices(found).replace(" ", "_"), jax.config.jax_compilation_cache_dir, len(runtime.select_devices(RuntimeConfig(devices=2))))
"""
    )
    assert output(program) == ["3_x_cpu", str(cache), "2"]
    assert cache.stat().st_mode & 0o777 == 0o700


def test_the_users_own_flags_win():
    program = (
        CONFIGURE
        + """
runtime.configure(RuntimeConfig(devices=3, deterministic=True))
import jax
print(os.environ["XLA_FLAGS"], len(jax.devices()))
"""
    )
    flags = "--xla_gpu_deterministic_ops=false --xla_force_host_platform_device_count=2"
    assert output(program, XLA_FLAGS=flags, JAX_PLATFORMS="cpu") == [*flags.split(), "2"]


def test_deterministic_adds_its_flag_once():
    program = (
        CONFIGURE
        + "[runtime.configure(RuntimeConfig(deterministic=True)) for _ in range(2)]; print(os.environ['XLA_FLAGS'])"
    )
    flags = ["--xla_cpu_enable_fast_math=false", "--xla_gpu_deterministic_ops=true"]
    assert output(program, XLA_FLAGS=flags[0]) == flags


def test_an_imported_jax_is_set_up_until_it_runs():
    program = (
        CONFIGURE
        + """
import jax
from jaxlm.config import ConfigError
runtime.configure(RuntimeConfig(platform="cpu", devices=2))
print(len(jax.devices()))
runtime.configure(RuntimeConfig(devices=2))
try:
    runtime.configure(RuntimeConfig(devices=4))
except ConfigError as error:
    print(error.path, str(error).count("4"))
"""
    )
    assert output(program) == ["2", "runtime.devices", "1"]


def test_too_few_devices_name_the_key():
    with pytest.raises(ConfigError, match=r"^runtime\.devices: 4096 devices asked for, \d+ x "):
        runtime.select_devices(RuntimeConfig(devices=4096))


def test_a_platform_that_is_not_there_names_the_key():
    program = (
        CONFIGURE
        + """
used = RuntimeConfig(platform="cuda")
def main(argv):
    runtime.configure(used)
    runtime.select_devices(used)
runtime.run(main)
"""
    )
    done = python(program, CUDA_VISIBLE_DEVICES="-1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: runtime.platform: jax finds no device of platform 'cuda'")


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_can_write_is_refused(tmp_path, mode):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(
        ConfigError, match=r"^runtime\.compilation_cache: .*cache can be written by other users"
    ):
        runtime.private_directory(str(tmp_path / "cache"))


def test_a_cache_below_a_file_names_the_key(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"^runtime\.compilation_cache: can't make .*file/cache: Not a directory"
    ):
        runtime.private_directory(str(tmp_path / "file" / "cache"))


# Exit codes


def command(body, **options):
    program = f"""
    import sys, threading
    from jaxlm import config, runtime
    def main(argv):
        {body}
    sys.argv[1:] = ['x']
    runtime.run(main)
    """
    return python(program, **options)


def test_a_commands_own_code_is_returned():
    assert command("return 75 if argv == ['x'] else 0").returncode == 75


@pytest.mark.parametrize(
    ("kind", "code"), [("UserError", 2), ("NoCheckpointError", 3), ("DivergedError", 4)]
)
def test_a_users_mistake_is_one_line(kind, code):
    done = command(f"raise config.{kind}('a.txt:3: no text\\n  here')")
    assert (done.returncode, done.stderr) == (code, "error: a.txt:3: no text here\n")


def test_our_own_mistakes_keep_their_traceback():
    done = command("return {}['layers']")
    assert done.returncode == 1
    assert "KeyError: 'layers'" in done.stderr and "Traceback" in done.stderr


def test_ctrl_c_is_quiet():
    done = command("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_closed_pipe_is_quiet():
    program = """
    import sys; from jaxlm import runtime
    def main(argv):
        for _ in range(100000): print("a line")
        return 0
    runtime.run(main)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_an_error_ends_the_process_though_a_thread_waits_for_ever():
    body = "print('before'); threading.Thread(target=threading.Event().wait).start(); raise config.UserError('full disk')"
    done = command(body, timeout=20)  # hangs without the forced exit
    assert (done.returncode, done.stdout, done.stderr) == (2, "before\n", "error: full disk\n")


def test_an_error_of_a_command_leaves_the_process_of_its_caller_alone():
    thread_ends, mistake = threading.Event(), DivergedError("training: the loss is nan")
    thread = threading.Thread(target=thread_ends.wait)
    thread.start()

    def main(argv):
        raise mistake

    assert runtime.command(main, []) == 4
    thread_ends.set()
    thread.join()


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_only_noted(name):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with runtime.StopSignal() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.requested == name
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts():
    program = """
    import os, signal
    from jaxlm.runtime import StopSignal
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.requested)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    assert output(program) == ["SIGINT", "interrupted", "True"]


def test_a_second_sigterm_is_not_an_interrupt():
    with runtime.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def enter():
        with runtime.StopSignal() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, signal.getsignal(signal.SIGTERM))]


# The lock


def test_a_second_process_is_told_who_trains(tmp_path):
    directory = tmp_path / "runs" / "a"
    program = f"""
    import pathlib, sys
    from jaxlm.runtime import lock
    with lock(pathlib.Path({str(directory)!r})):
        print("locked", flush=True)
        sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout and holder.stdout.readline() == b"locked\n"
    with (
        pytest.raises(
            UserError, match=rf"^another process \(pid {holder.pid}\) trains in {directory}"
        ),
        runtime.lock_run_directory(directory),
    ):
        pass
    holder.kill()  # the lock of a killed process is free
    holder.wait()
    with runtime.lock_run_directory(directory):
        assert (directory / ".lock").read_text() == str(os.getpid())
    with runtime.lock_run_directory(directory):
        pass


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            UserError, match=r"^run_directory: can't write to .*/file/run: Not a directory"
        ),
        runtime.lock_run_directory(tmp_path / "file" / "run"),
    ):
        pass


def test_versions_name_every_library():
    found = runtime.versions()
    assert found["jax"] == importlib.metadata.version("jax")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {
        "python",
        "jaxlm",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "tokenizers",
        "numpy",
    }
