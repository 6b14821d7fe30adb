"""The start of jax's distributed runtime: addresses, time limits, and the private names of jax."""

import socket
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from jax._src import distributed as jax_distributed
from jax._src.lib import _jax  # type: ignore[attr-defined]
from support import multiprocess

from jaxlm.config import ConfigError, LostError, RuntimeConfig, UserError
from jaxlm.runtime import distributed
from jaxlm.runtime.cluster import Cluster


@pytest.fixture
def fake_time(monkeypatch):
    """Replace the module's clock by one that advances when it sleeps; `at` has events by time."""
    clock = SimpleNamespace(now=0.0, at={})

    def sleep(seconds):
        clock.now += seconds
        for start in [start for start in clock.at if start <= clock.now]:
            clock.at.pop(start)()

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(distributed, "time", fake)
    return clock


def test_a_missing_coordinator_is_named_after_the_time_limit(fake_time):
    follower = Cluster(2, 1, f"127.0.0.1:{multiprocess.free_port()}")
    problem = f"process 1 can't reach the coordinator at {follower.coordinator}: tried for 300 s"
    with pytest.raises(LostError, match=rf"^{problem} \(Connection refused\); is process 0"):
        distributed.connect(follower, 300)
    assert fake_time.now == pytest.approx(300)
    assert LostError.exit_code == 5


def test_a_coordinator_that_starts_late_is_found(fake_time):
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))  # refuses connections until it listens
        follower = Cluster(2, 1, f"127.0.0.1:{late.getsockname()[1]}")
        assert not distributed.is_listening(follower)

        fake_time.at[100] = late.listen
        distributed.connect(follower, 300).close()
        assert 100 <= fake_time.now < 101
        assert distributed.is_listening(follower)


def listening_address(coordinator, process=0, **config):
    cluster = Cluster(2, process, coordinator)
    return distributed.check_listening_address(cluster, RuntimeConfig(**config))


def test_an_address_that_cannot_be_listened_on_names_its_key():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"process 0 can't listen on 127\.0\.0\.1 port {port}: Address already in use"
        with pytest.raises(ConfigError, match=rf"^runtime\.coordinator: {message}"):
            listening_address(f"127.0.0.1:{port}")

    message = r"^runtime\.coordinator_bind: process 0 can't listen on 192\.0\.2\.1 port 5"
    with pytest.raises(ConfigError, match=message):
        listening_address("127.0.0.1:5", coordinator_bind="192.0.2.1")


def test_one_interface_listens_unless_the_user_asks_for_all():
    port = multiprocess.free_port()
    assert listening_address(f"127.0.0.1:{port}") == f"127.0.0.1:{port}"
    everywhere = listening_address(f"127.0.0.1:{port}", coordinator_bind="0.0.0.0")
    assert everywhere == f"0.0.0.0:{port}"
    assert listening_address("[::1]:5", process=1) == "[::1]:5"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("gpu", False)],
)
def test_loopback_is_known(host, loopback):
    assert distributed.is_loopback(host) is loopback


def test_processes_that_do_not_come_end_the_wait(tmp_path):
    """jax itself would abort with a stack trace."""
    program = f"""
    import pathlib
    from jaxlm import runtime
    from jaxlm.config import RuntimeConfig

    def main(argv):
        config = RuntimeConfig(
            platform="cpu", processes=2, process=0, initialization_timeout_seconds=1,
            coordinator="127.0.0.1:{multiprocess.free_port()}",
        )
        runtime.configure(config)
        directory = pathlib.Path({str(tmp_path / "run")!r})
        with runtime.ProcessGroup(runtime.detect_cluster(config), config, directory) as group:
            group.initialize()

    runtime.run(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        env=multiprocess.environment(),
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("error: not all of the 2 processes connected to 127.0.0.1:")
    limit = "within 1 s (runtime.initialization_timeout_seconds)\n"
    assert done.stderr.endswith(limit) and done.stderr.count("\n") == 1


# Private names of jax


def test_jax_has_the_private_names():
    assert distributed.key_value_store() is None  # no run of several processes here
    assert callable(_jax.make_gloo_tcp_collectives)


@pytest.mark.parametrize(
    ("owner", "attribute", "name"),
    [
        (jax_distributed, "global_state", "jax._src.distributed.global_state.client"),
        (_jax, "make_gloo_tcp_collectives", "jax._src.lib._jax.make_gloo_tcp_collectives"),
    ],
)
def test_a_private_name_that_is_gone_is_told_before_anyone_waits(
    monkeypatch, owner, attribute, name
):
    monkeypatch.delattr(owner, attribute)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(distributed, "connect", lambda *_: pytest.fail("it waits"))
    with pytest.raises(UserError) as caught:
        distributed.initialize(Cluster(2, 1, "127.0.0.1:1"), RuntimeConfig())
    message = str(caught.value)
    assert message.startswith("jax ") and "\n" not in message
    assert f"has no {name}, which a run of several processes needs: install" in message


def test_collectives_on_one_machine_listen_on_loopback(monkeypatch):
    calls = []
    monkeypatch.setattr(_jax, "make_gloo_tcp_collectives", lambda **values: calls.append(values))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    for _ in range(2):
        distributed.keep_collectives_on_loopback()
        _jax.make_gloo_tcp_collectives(distributed_client="client")
    assert calls == [{"distributed_client": "client", "hostname": "127.0.0.1"}] * 2
    assert distributed.os.environ["NCCL_SOCKET_IFNAME"] == "lo"
