"""Settings that jax needs before it starts, mostly in a process of their own."""

import importlib.metadata
import platform as platform_of_python
import sys
from types import SimpleNamespace

import pytest
from support.programs import run_python, words

from jaxlm import runtime
from jaxlm.config import ConfigError, RuntimeConfig
from jaxlm.runtime import platform

CONFIGURE = "import os, sys; from jaxlm import runtime; from jaxlm.config import RuntimeConfig\n"


def test_importing_changes_nothing():
    program = """
    import os, sys
    before = dict(os.environ)
    import jaxlm.runtime
    print(before == dict(os.environ), "jax" in sys.modules)
    """
    assert words(program) == ["True", "False"]


def test_devices_are_emulated_and_the_cache_is_private(tmp_path):
    cache = tmp_path / "a" / "cache"
    program = f"""
config = RuntimeConfig(platform="cpu", devices=3, compilation_cache={str(cache)!r})
runtime.configure(config)
assert "jax" not in sys.modules
devices = runtime.select_devices(config)
import jax
print(runtime.describe_devices(devices), jax.config.jax_compilation_cache_dir)
print(len(runtime.select_devices(RuntimeConfig(devices=2))))
"""
    assert words(CONFIGURE + program) == ["3", "x", "cpu", str(cache), "2"]
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("runtime", "environment", "expected"),
    [
        ("", {}, "cache/jaxlm/compiled-"),
        ("", {"JAX_COMPILATION_CACHE_DIR": "own"}, "own"),
        ("compilation_cache='mine'", {}, "/mine"),
    ],
)
def test_programs_are_kept_in_the_folder_of_the_user(tmp_path, runtime, environment, expected):
    program = f"""
runtime.configure(RuntimeConfig(platform="cpu", {runtime}))
import jax
print(jax.config.jax_compilation_cache_dir)
"""
    cache = tmp_path / "cache"
    (found,) = words(CONFIGURE + program, XDG_CACHE_HOME=str(cache), **environment)
    assert expected in found
    for folder in (cache / "jaxlm").glob("*"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(platform_of_python.libc_ver()[0] != "glibc", reason="it is glibc's")
@pytest.mark.parametrize(
    ("runtime", "trains", "environment", "kept"),
    [
        ("platform='cpu'", True, {}, True),
        ("platform='cpu'", False, {}, False),
        ("platform='cuda'", True, {}, False),
        ("platform='cpu'", True, {"MALLOC_ARENA_MAX": "4"}, False),
    ],
)
def test_freed_memory_is_kept_on_cpus(runtime, trains, environment, kept):
    """The second buffer gets the pages of the first: none is cleared again.

    But not in a process that has too much of the machine's memory.
    """
    program = f"""
import numpy as np, resource
from jaxlm.runtime import platform
config = RuntimeConfig({runtime})
runtime.configure(config, trains={trains})
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
pages = 64 * 2**20 // resource.getpagesize()
def cleared():
    before = faults()
    np.ones(2**26, np.uint8)
    return (faults() - before) / pages
first, second = cleared(), cleared()
runtime.limit_kept_memory(config)
third = cleared()
platform.KEPT_SHARE = 0
runtime.limit_kept_memory(config)
print(second, third, cleared())
"""
    second, third, last = map(float, words(CONFIGURE + program, **environment))
    # Where pages are huge, one fault clears many.
    for share in (second, third):
        assert share < 0.001 if kept else share > 0.001
    assert last > 0.001


def test_the_users_own_flags_win():
    program = """
runtime.configure(RuntimeConfig(devices=3, deterministic=True))
import jax
print(os.environ["XLA_FLAGS"], len(jax.devices()))
"""
    flags = "--xla_gpu_deterministic_ops=false --xla_force_host_platform_device_count=2"
    shown = words(CONFIGURE + program, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    assert shown == [*flags.split(), "2"]


def test_deterministic_adds_its_flag_once():
    program = """
for _ in range(2):
    runtime.configure(RuntimeConfig(deterministic=True))
print(os.environ["XLA_FLAGS"])
"""
    flags = ["--xla_cpu_enable_fast_math=false", "--xla_gpu_deterministic_ops=true"]
    assert words(CONFIGURE + program, XLA_FLAGS=flags[0]) == flags


def test_an_imported_jax_is_set_up_until_it_runs():
    program = """
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
    assert words(CONFIGURE + program) == ["2", "runtime.devices", "1"]


def test_too_few_devices_name_the_key():
    message = r"^runtime\.devices: 4096 devices requested, \d+ x cpu found"
    with pytest.raises(ConfigError, match=message):
        runtime.select_devices(RuntimeConfig(devices=4096))


def test_a_platform_that_is_not_there_names_the_key():
    program = """
config = RuntimeConfig(platform="cuda")
def main(argv):
    runtime.configure(config)
    runtime.select_devices(config)
runtime.run(main)
"""
    done = run_python(CONFIGURE + program, CUDA_VISIBLE_DEVICES="-1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: runtime.platform: jax finds no device of platform 'cuda'")


def test_devices_of_a_host_are_next_to_each_other():
    """SLURM may distribute processes over the nodes in turn."""
    devices = [
        SimpleNamespace(process_index=process, id=10 * process + number)
        for process in range(4)
        for number in range(2)
    ]

    def ordered(count, hosts):
        return [device.id for device in platform.order_devices(devices, count, hosts)]

    assert ordered(None, ()) == [0, 1, 10, 11, 20, 21, 30, 31]
    assert ordered(None, ("a", "b", "a", "b")) == [0, 1, 20, 21, 10, 11, 30, 31]
    assert ordered(1, ("a", "a", "b", "b")) == [0, 10, 20, 30]


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_can_write_is_refused(tmp_path, mode):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    message = r"^runtime\.compilation_cache: .*cache can be written by other users"
    with pytest.raises(ConfigError, match=message):
        runtime.private_directory(str(cache))


def test_a_cache_below_a_file_names_the_key(tmp_path):
    (tmp_path / "file").touch()
    message = r"^runtime\.compilation_cache: can't make .*file/cache: Not a directory"
    with pytest.raises(ConfigError, match=message):
        runtime.private_directory(str(tmp_path / "file" / "cache"))


def test_only_errors_of_checkpoint_threads_are_hidden(capsys):
    def report(file):
        try:
            exec(compile("raise ValueError('in a thread')", file, "exec"), {})
        except ValueError as error:
            trace = error.__traceback__
            unraisable = SimpleNamespace(
                exc_type=ValueError, exc_value=error, exc_traceback=trace, err_msg=None, object=None
            )
        platform.hide_checkpoint_threads(unraisable)
        return capsys.readouterr().err

    hidden = [report(f"/lib/{package}/a.py") for package in ("asyncio", "orbax")]
    assert hidden == ["", ""]


def test_versions_name_every_library():
    versions = runtime.versions()
    assert versions["jax"] == importlib.metadata.version("jax")
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(versions) == {"python", *platform.PACKAGES}
    assert {"jaxlm", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"} < set(versions)


def test_the_version_of_the_code_changes_with_it(tmp_path, monkeypatch):
    for folder in ("runtime", "nn"):
        (tmp_path / folder).mkdir()
    module = tmp_path / "nn" / "block.py"
    module.write_text("x = 1")
    monkeypatch.setattr(platform, "__file__", str(tmp_path / "runtime" / "platform.py"))
    version = runtime.code_version()
    assert len(version) == 16 and version == runtime.code_version()

    (tmp_path / "nn" / "notes.txt").write_text("not code")
    assert runtime.code_version() == version
    module.write_text("x = 2")
    assert runtime.code_version() != version
    module.write_text("x = 1")
    module.rename(tmp_path / "nn" / "stack.py")
    assert runtime.code_version() != version


BEFORE = {"xla_gpu_enable_pipelined_all_gather": True}
SINCE_0_11_1 = {
    "xla_gpu_pipeline_all_gather": "COLLECTIVE_PIPELINING_MODE_ON",
    "xla_gpu_enable_analytical_sol_latency_estimator": False,
}


@pytest.mark.parametrize(
    ("jax", "expected"),
    [
        ("0.10.2", BEFORE),
        ("0.11.0", BEFORE),
        ("0.11.1", SINCE_0_11_1),
        ("0.12.0.1", SINCE_0_11_1),
    ],
)
def test_gathering_ahead_has_the_options_of_the_version(jax, expected, monkeypatch):
    monkeypatch.setattr(platform.importlib.metadata, "version", lambda _: jax)
    gpu = SimpleNamespace(platform="gpu")
    options = platform.compiler_options([gpu, gpu])
    others = dict.fromkeys(platform.SEVERAL_GPUS)
    assert {key: value for key, value in options.items() if key not in others} == expected


def test_steps_on_gpus_have_compiler_options_and_the_users_flags_win(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    gpu, cpu = SimpleNamespace(platform="gpu"), SimpleNamespace(platform="cpu")
    assert platform.compiler_options([cpu, cpu]) == {}
    assert platform.compiler_options([gpu]) == platform.ONE_GPU

    options = platform.compiler_options([gpu, gpu])
    assert options["xla_gpu_enable_latency_hiding_scheduler"] is True
    assert set(options) > set(platform.SEVERAL_GPUS)
    limited = platform.compiler_options([gpu, gpu], layer_bytes=(4096, 1024))
    changed = {name: value for name, value in limited.items() if options[name] != value}
    assert changed == {platform.ALL_GATHER_LIMIT: 4096, platform.REDUCE_SCATTER_LIMIT: 1024}
    for devices, others in (([gpu], platform.ONE_GPU), ([gpu, gpu], options)):
        float8 = platform.compiler_options(devices, float8=True)
        assert float8 == others | platform.FLOAT8
    assert platform.compiler_options([cpu], float8=True) == {}

    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_latency_hiding_scheduler=false")
    options.pop("xla_gpu_enable_latency_hiding_scheduler")
    assert platform.compiler_options([gpu, gpu]) == options
