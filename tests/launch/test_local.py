"""launch/local.sh, with a stand-in for Python that does as the test says."""

import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.stand_in import AWKWARD, HEED_SIGINT, LOCAL, SLURM, StandIn, fake_nvidia_smi

TWO = ("2", "--config", "x")


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


# Arguments


def test_arguments_reach_every_process_unchanged(stand_in):
    stand_in.plan()
    assert stand_in.run("2", *AWKWARD) == (0, "")

    coordinators = set()
    for process in range(2):
        *arguments, coordinator, processes, number = stand_in.seen(process)["arguments"]
        assert arguments == ["-m", "jaxlm.train", *AWKWARD]
        assert (processes, number) == ("runtime.processes=2", f"runtime.process={process}")
        coordinators.add(coordinator)

    (coordinator,) = coordinators
    address, _, port = coordinator.rpartition(":")
    assert address == "runtime.coordinator=127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(port)))


def test_two_runs_have_two_ports(stand_in):
    stand_in.plan()
    ports = set()
    for _ in range(2):
        stand_in.run("1", "--config", "x")
        ports.add(stand_in.seen(0)["arguments"][-3])
    assert len(ports) == 2


USAGE = "usage: launch/local.sh N --config FILE"
WRONG_CALLS = [  # arguments, environment, how stderr begins
    ((), {}, USAGE),
    (("two", "--config", "x"), {}, USAGE),
    (("0", "--config", "x"), {}, USAGE),
    (("-2", "--config", "x"), {}, USAGE),
    (("--config", "x"), {}, USAGE),
    (("2",), {}, USAGE),
    (
        TWO,
        {"JAXLM_GRACE_SECONDS": "1m"},
        "launch/local.sh: JAXLM_GRACE_SECONDS must be a whole number of seconds, got '1m'\n",
    ),
]


def test_a_wrong_call_starts_nothing(stand_in):
    stand_in.plan()
    for arguments, environment, beginning in WRONG_CALLS:
        code, errors = stand_in.run(*arguments, **environment)
        assert code == 2 and errors.startswith(beginning), (arguments, errors)
        assert errors.count("\n") < 8
    assert not list(stand_in.folder.glob("*.json"))


def test_help():
    done = subprocess.run([LOCAL, "-h"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: launch/local.sh N")


# GPUs

SPLITS = [  # GPUs that nvidia-smi lists, CUDA_VISIBLE_DEVICES, the same of each process
    (4, None, ["0,1", "2,3"]),
    (2, None, ["0", "1"]),
    (0, None, [None, None]),
    (0, "4,7", ["4", "7"]),
    (4, "MIG-a, GPU-b,3,2", ["MIG-a,GPU-b", "3,2"]),
    (4, "5,2,-1,3", ["5", "2"]),
    (3, "-1", ["-1", "-1"]),
    (3, "", ["", ""]),
]


@pytest.mark.parametrize(("count", "visible", "split"), SPLITS)
def test_gpus_are_split(stand_in, tmp_path, count, visible, split):
    stand_in.plan()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    path = fake_nvidia_smi(tmp_path, count)
    assert stand_in.run(*TWO, PATH=path, **environment) == (0, "")
    environments = [stand_in.seen(process)["environment"] for process in range(2)]
    assert [given.get("CUDA_VISIBLE_DEVICES") for given in environments] == split


def test_gpus_that_do_not_divide_are_a_mistake(stand_in, tmp_path):
    stand_in.plan()
    for count, environment in ((3, {}), (1, {}), (4, {"CUDA_VISIBLE_DEVICES": "0,1,2"})):
        path = fake_nvidia_smi(tmp_path, count)
        code, errors = stand_in.run(*TWO, PATH=path, **environment)
        assert (code, errors.count("\n")) == (2, 1), errors
        assert "can't be split evenly among 2 processes" in errors
        assert "CUDA_VISIBLE_DEVICES" in errors
    assert not list(stand_in.folder.glob("*.json"))


# Exit codes

CODES = [  # of process 0, process 1 and the script
    (0, 0, 0),
    (2, 2, 2),
    (75, 75, 75),
    (75, 0, 75),
    (75, 3, 3),  # a failure counts before a save
    (3, 75, 3),
]


@pytest.mark.parametrize(("first", "second", "code"), CODES)
def test_exit_codes(stand_in, first, second, code):
    stand_in.plan(p0=f"sys.exit({first})", p1=f"sys.exit({second})")
    assert stand_in.run(*TWO) == (code, "")
    assert not stand_in.running() and not list(stand_in.temporary.iterdir())


FAILURES = [  # how process 1 fails, the code, what is said of it
    ("sys.exit(5)", 5, []),
    (
        "os.kill(os.getpid(), signal.SIGKILL)",
        137,
        ["launch/local.sh: process 1 was ended by SIGKILL"],
    ),
]


@pytest.mark.parametrize(("failure", "code", "lines"), FAILURES)
def test_the_first_failure_counts(stand_in, failure, code, lines):
    # The script sends SIGTERM once it has noticed the failure, so that process 0 fails after it.
    stand_in.plan(
        p0="wait_for_signal(signal.SIGTERM); os.abort()", p1=f"wait_for('0.json'); {failure}"
    )
    message = f"launch/local.sh: process 1 has ended with code {code}; SIGTERM for the others"
    end, errors = stand_in.run(*TWO, JAXLM_GRACE_SECONDS="0")
    assert (end, errors.splitlines()) == (code, [*lines, message])


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_and_the_saves_waited_for(stand_in, number):
    stand_in.plan("save(after='go')")
    script = stand_in.start(*TWO, JAXLM_GRACE_SECONDS="0")  # the grace is not for those that save
    assert stand_in.seen(0) and stand_in.seen(1)
    script.send_signal(number)
    for process in range(2):
        stand_in.wait_for(f"{process}.stopping")
    assert script.poll() is None
    stand_in.write("go")
    assert stand_in.finish(script) == (75, "")
    assert stand_in.saved() == [0, 1] and not stand_in.running()


def test_a_signal_to_each_process_lets_all_save(stand_in):
    stand_in.plan("save()", p1="save(after='0.saved')")
    script = stand_in.start(*TWO, JAXLM_GRACE_SECONDS="0")
    for process in range(2):
        os.kill(stand_in.seen(process)["pid"], signal.SIGTERM)
    assert stand_in.finish(script) == (75, "")
    assert stand_in.saved() == [0, 1]


def test_ctrl_c_at_a_terminal_arrives_as_one_sigterm(stand_in):
    stand_in.plan(
        """
        wait_for_signal(signal.SIGTERM)
        time.sleep(0.5)  # another signal would arrive in this time
        write(f"{process}.got", json.dumps(signals))
        sys.exit(75)
        """
    )
    code, shown = run_at_a_terminal(stand_in, signals=["SIGTERM"])
    assert code == 75, shown
    for process in range(2):
        assert json.loads(stand_in.wait_for(f"{process}.got")) == [signal.SIGTERM]
    assert not stand_in.running()


def test_a_second_ctrl_c_ends_without_saving(stand_in):
    stand_in.plan(
        """
        wait_for_signal(signal.SIGTERM)
        write(f"{process}.SIGTERM")
        wait_for_signal(signal.SIGINT)
        sys.exit(130)
        """
    )
    code, shown = run_at_a_terminal(stand_in, signals=["SIGTERM", "SIGINT"])
    assert code == 130, shown
    assert not stand_in.running()


def run_at_a_terminal(stand_in, signals):
    """Return exit code and output of local.sh with two processes, at a terminal.

    Ctrl-C is typed once for each of the `signals` that it shall send. Before the next one the
    processes must have got the last: a terminal may make one signal of two keys.
    """
    ours, theirs = pty.openpty()
    own_terminal = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    script = subprocess.Popen(
        [sys.executable, "-c", own_terminal + HEED_SIGINT, LOCAL, *TWO],
        env=stand_in.environment,
        start_new_session=True,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)

    try:
        assert stand_in.seen(0) and stand_in.seen(1)
        for number, name in enumerate(signals):
            os.write(ours, b"\x03")
            if number < len(signals) - 1:
                for process in range(2):
                    stand_in.wait_for(f"{process}.{name}")
        code = script.wait(timeout=30)
        shown = os.read(ours, 65536) if select.select([ours], [], [], 0)[0] else b""
        return code, shown.decode()
    finally:
        script.kill()
        os.close(ours)


# The ends of processes


def test_survivors_that_hang_are_ended_after_the_grace(stand_in):
    # Process 0 ignores SIGTERM, process 2 heeds it.
    stand_in.plan(
        "save()", p0="time.sleep(60)", p1="wait_for('0.json'); wait_for('2.json'); sys.exit(3)"
    )
    code, errors = stand_in.run("3", "--config", "x", JAXLM_GRACE_SECONDS="1")
    message = "launch/local.sh: process 1 has ended with code 3; {} for the others"
    assert code == 3
    assert errors.splitlines() == [message.format("SIGTERM"), message.format("SIGKILL")]
    assert stand_in.saved() == [2] and not stand_in.running()


GRANDCHILD = """
child = subprocess.Popen(['sleep', '60'])
write(f'{process}.child', str(child.pid))
wait_for('0.child')
wait_for('1.child')
"""


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(0)", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_what_the_processes_started_ends_with_them(stand_in, end, code):
    stand_in.plan(GRANDCHILD + end)
    assert stand_in.run(*TWO)[0] == code
    assert int(stand_in.wait_for("0.child")) and int(stand_in.wait_for("1.child"))
    assert not stand_in.running()


@pytest.mark.parametrize("saves", [True, False])
def test_a_killed_script_takes_its_processes_with_it(stand_in, saves):
    stand_in.plan(GRANDCHILD + ("save()" if saves else "time.sleep(60)"))
    script = stand_in.start(*TWO, JAXLM_GRACE_SECONDS="20" if saves else "1")
    assert stand_in.wait_for("0.child") and stand_in.wait_for("1.child")
    assert len(stand_in.running()) >= 5  # the script, the processes and theirs
    script.kill()
    stand_in.wait_until_none_runs()
    assert stand_in.saved() == ([0, 1] if saves else [])
    assert not list(stand_in.temporary.iterdir())
    script.communicate(timeout=20)


def test_shellcheck():
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=search_path)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, LOCAL, SLURM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
