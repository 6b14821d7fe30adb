"""The launch scripts with a stand-in for Python that does as the test says, under SLURM where it runs here, and the manifest."""

import copy
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
LOCAL, SLURM, KUBERNETES = LAUNCH / "local.sh", LAUNCH / "slurm.sh", LAUNCH / "kubernetes.yaml"

# Each process writes what it was given into a file of its own, then does what N.py or else all.py in its folder says.
STAND_IN = """
import json, os, pathlib, signal, subprocess, sys, time
given = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("runtime.process=")]
process = given[0] if given else os.environ["SLURM_PROCID"]
folder = pathlib.Path(os.environ["STAND_IN"])
signals = []

def write(name, value):
    (folder / f"{name}.part{process}").write_text(value)
    (folder / f"{name}.part{process}").rename(folder / name)

def save(seconds=0.0):  # as the trainer does at SIGTERM
    while signal.SIGTERM not in signals:
        time.sleep(0.02)
    time.sleep(seconds)
    write(f"{process}.saved", "")
    sys.exit(75)

signal.alarm(300)  # a test that fails leaves nothing for ever
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: signals.append(number))
write(f"{process}.json", json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ)}))
plan = folder / f"{process}.py"
exec((plan if plan.exists() else folder / "all.py").read_text())
"""


class StandIn:
    """A program in place of Python, and what its processes have seen."""

    def __init__(self, folder: Path):
        self.folder = folder / "a folder"
        self.folder.mkdir()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        program = self.folder / "program"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "$0.py" "$@"\n')
        program.chmod(0o755)
        program.with_suffix(".py").write_text(STAND_IN)
        # What would tell a process of GPUs must come from the test.
        clean = {
            name: value
            for name, value in os.environ.items()
            if name not in ("CUDA_VISIBLE_DEVICES", "JAXLM_GRACE_SECONDS")
        }
        self.environment = {
            **clean,
            "PYTHON": str(program),
            "STAND_IN": str(self.folder),
            "TMPDIR": str(self.temporary),
        }

    def plan(self, every="", **by_process):
        """What the processes do: `every` for all, `p1` for process 1."""
        for name, text in {
            "all": every,
            **{name.removeprefix("p"): text for name, text in by_process.items()},
        }.items():
            (self.folder / f"{name}.py").write_text(textwrap.dedent(text))

    def start(self, *arguments, **environment):
        environment = {**self.environment, **environment}
        return subprocess.Popen(
            [LOCAL, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **environment):
        """Exit code and stderr of local.sh."""
        script = self.start(*arguments, **environment)
        return self.end(script)

    def end(self, script):
        try:
            _, errors = script.communicate(timeout=60)
        finally:
            script.kill()
        return script.returncode, errors

    def seen(self, process, timeout=20):
        """What the process has written at its start."""
        return json.loads(self.wait_for(f"{process}.json", timeout))

    def wait_for(self, name, timeout=20):
        deadline = time.monotonic() + timeout
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, (
                f"no {name}; there are {sorted(path.name for path in self.folder.iterdir())}"
            )
            time.sleep(0.02)
        return (self.folder / name).read_text()

    def saved(self):
        return sorted(int(path.stem) for path in self.folder.glob("*.saved"))

    def left(self):
        """The processes, of any kind, that were started with this stand-in's environment and still run."""
        if not Path("/proc/self/environ").exists():
            pytest.skip("there is no /proc to find processes in")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                ended = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if (
                    not ended
                    and f"STAND_IN={self.folder}\0".encode() in (process / "environ").read_bytes()
                ):
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended, or is not ours
                continue
        return found


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


def gpus(folder, count):
    """A PATH with an nvidia-smi that lists so many GPUs, the first one split by MIG; with 0, one that fails."""
    lines = [
        line
        for i in range(count)
        for line in (
            f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})",
            *(["  MIG 1g.10gb Device 0:"] * (i == 0)),
        )
    ]
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    listing = (
        "\n".join(["cat <<END", *lines, "END"])
        if count
        else "echo 'NVIDIA-SMI has failed' >&2; exit 9"
    )
    program.write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 1\n{listing}\n')
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


AWKWARD = (
    "--config",
    "a folder/b.py",
    "--data",
    "texts/*.txt",
    "x=\"$HOME\" 'y'\\n",
    "",
    "a=`b`",
    "--flag",
)


# ---- launch/local.sh


def test_arguments_reach_every_process_unchanged(stand_in):
    stand_in.plan()
    assert stand_in.run("2", *AWKWARD) == (0, "")
    given = [stand_in.seen(process)["arguments"] for process in range(2)]
    assert [arguments[:-3] for arguments in given] == [["-m", "jaxlm.train", *AWKWARD]] * 2
    assert [arguments[-2:] for arguments in given] == [
        ["runtime.processes=2", f"runtime.process={process}"] for process in range(2)
    ]
    coordinator, other = (arguments[-3] for arguments in given)
    assert coordinator == other and coordinator.startswith("runtime.coordinator=127.0.0.1:")
    with socket.socket() as free:
        free.bind(("127.0.0.1", int(coordinator.rpartition(":")[2])))


def test_two_runs_have_two_ports(stand_in):
    stand_in.plan()
    ports = set()
    for _ in range(2):
        stand_in.run("1", "--config", "x")
        ports.add(stand_in.seen(0)["arguments"][-3])
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("count", "visible", "split"),
    [
        (4, {}, ["0,1", "2,3"]),
        (2, {}, ["0", "1"]),
        (0, {}, [None, None]),
        (0, {"CUDA_VISIBLE_DEVICES": "4,7"}, ["4", "7"]),
        (4, {"CUDA_VISIBLE_DEVICES": "MIG-a, GPU-b,3,2"}, ["MIG-a,GPU-b", "3,2"]),
        (4, {"CUDA_VISIBLE_DEVICES": "5,2,-1,3"}, ["5", "2"]),
        (3, {"CUDA_VISIBLE_DEVICES": "-1"}, ["-1", "-1"]),
        (3, {"CUDA_VISIBLE_DEVICES": ""}, ["", ""]),
    ],
)
def test_gpus_are_split(stand_in, tmp_path, count, visible, split):
    stand_in.plan()
    assert stand_in.run("2", "--config", "x", PATH=gpus(tmp_path, count), **visible) == (0, "")
    assert [
        stand_in.seen(process)["environment"].get("CUDA_VISIBLE_DEVICES") for process in range(2)
    ] == split


@pytest.mark.parametrize(
    ("count", "visible"), [(3, {}), (1, {}), (4, {"CUDA_VISIBLE_DEVICES": "0,1,2"})]
)
def test_gpus_that_do_not_divide_are_a_mistake(stand_in, tmp_path, count, visible):
    stand_in.plan()
    code, errors = stand_in.run("2", "--config", "x", PATH=gpus(tmp_path, count), **visible)
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "can't be split evenly among 2 processes" in errors and "CUDA_VISIBLE_DEVICES" in errors
    assert not list(stand_in.folder.glob("*.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("two", "--config", "x"),
        ("0", "--config", "x"),
        ("-2", "--config", "x"),
        ("--config", "x"),
        ("2",),
    ],
)
def test_a_wrong_call_shows_the_usage(stand_in, arguments):
    code, errors = stand_in.run(*arguments)
    assert code == 2 and errors.startswith("usage: launch/local.sh N --config FILE")
    assert errors.count("\n") < 8


def test_help():
    done = subprocess.run([LOCAL, "-h"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(
        "usage: launch/local.sh N"
    )


def test_a_grace_that_is_no_number_is_a_mistake(stand_in):
    assert stand_in.run("2", "--config", "x", JAXLM_GRACE_SECONDS="1m") == (
        2,
        "launch/local.sh: JAXLM_GRACE_SECONDS must be a whole number of seconds, got '1m'\n",
    )


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        ("sys.exit(0)", "sys.exit(0)", 0),
        ("sys.exit(2)", "sys.exit(2)", 2),
        ("sys.exit(75)", "sys.exit(75)", 75),
        ("sys.exit(75)", "sys.exit(0)", 75),
        ("sys.exit(75)", "time.sleep(0.6); sys.exit(3)", 3),  # the failure counts
        ("time.sleep(0.6); sys.exit(75)", "sys.exit(3)", 3),
        ("time.sleep(0.6); os.abort()", "sys.exit(5)", 5),  # the first failure
        ("sys.exit(0)", "time.sleep(0.6); sys.exit(1)", 1),
    ],
)
def test_exit_codes(stand_in, first, second, code):
    stand_in.plan(p0=first, p1=second)
    assert stand_in.run("2", "--config", "x") == (code, "")
    assert not stand_in.left() and not list(stand_in.temporary.iterdir())


def test_a_killed_process_is_told_of(stand_in):
    stand_in.plan(p0="time.sleep(1); sys.exit(5)", p1="os.kill(os.getpid(), signal.SIGKILL)")
    assert stand_in.run("2", "--config", "x") == (
        137,
        "launch/local.sh: process 1 was ended by SIGKILL\n",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_and_the_saves_waited_for(stand_in, number):
    stand_in.plan("save(seconds=1.5)")
    script = stand_in.start(
        "2", "--config", "x", JAXLM_GRACE_SECONDS="0"
    )  # which is not for those that save
    assert stand_in.seen(0) and stand_in.seen(1)
    script.send_signal(number)
    assert stand_in.end(script) == (75, "")
    assert stand_in.saved() == [0, 1] and not stand_in.left()


def test_a_signal_to_one_process_lets_all_save(stand_in):
    stand_in.plan("save()", p1="save(seconds=1.5)")
    script = stand_in.start("2", "--config", "x", JAXLM_GRACE_SECONDS="0")
    for process in range(2):
        os.kill(stand_in.seen(process)["pid"], signal.SIGTERM)
    assert stand_in.end(script) == (75, "")
    assert stand_in.saved() == [0, 1]


def test_ctrl_c_at_a_terminal_arrives_as_one_sigterm(stand_in):
    stand_in.plan(
        "while not signals: time.sleep(0.02)\ntime.sleep(1)\nwrite(f'{process}.got', json.dumps(signals)); save()"
    )
    code, shown = at_a_terminal(stand_in, b"\x03")
    assert code == 75, shown
    assert [json.loads(stand_in.wait_for(f"{process}.got")) for process in range(2)] == [
        [signal.SIGTERM]
    ] * 2
    assert not stand_in.left()


def test_a_second_ctrl_c_ends_without_saving(stand_in):
    stand_in.plan("while signal.SIGINT not in signals: time.sleep(0.02)\nsys.exit(130)")
    code, shown = at_a_terminal(stand_in, b"\x03", b"\x03")
    assert code == 130, shown
    assert not stand_in.left()


def at_a_terminal(stand_in, *keys):
    """Exit code and output of local.sh with two processes, at a terminal where these keys are typed."""
    ours, theirs = pty.openpty()
    become = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", become, LOCAL, "2", "--config", "x"]
    ends = dict(stdin=theirs, stdout=theirs, stderr=theirs)
    script = subprocess.Popen(command, env=stand_in.environment, start_new_session=True, **ends)  # type: ignore[call-overload]
    os.close(theirs)
    try:
        assert stand_in.seen(0) and stand_in.seen(1)
        for key in keys:
            os.write(ours, key)
            time.sleep(1)  # else the terminal's two signals are one
        code = script.wait(timeout=30)
        shown = os.read(ours, 65536) if select.select([ours], [], [], 0)[0] else b""
        return code, shown.decode()
    finally:
        script.kill()
        os.close(ours)


def test_survivors_that_hang_are_ended_after_the_grace(stand_in):
    stand_in.plan("save()", p0="time.sleep(60)", p1="sys.exit(3)")  # 0 ignores SIGTERM, 2 heeds it
    started = time.monotonic()
    code, errors = stand_in.run("3", "--config", "x", JAXLM_GRACE_SECONDS="1")
    assert code == 3 and 2 <= time.monotonic() - started < 20
    told = "launch/local.sh: process 1 has ended with code 3; {} for the others"
    assert errors.splitlines() == [told.format("SIGTERM"), told.format("SIGKILL")]
    assert stand_in.saved() == [2] and not stand_in.left()


GRANDCHILD = (
    "child = subprocess.Popen(['sleep', '60'])\nwrite(f'{process}.child', str(child.pid))\n"
)


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(0)", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 137)]
)
def test_what_the_processes_started_ends_with_them(stand_in, end, code):
    stand_in.plan(GRANDCHILD + end)
    assert stand_in.run("2", "--config", "x")[0] == code
    assert int(stand_in.wait_for("0.child")) and int(stand_in.wait_for("1.child"))
    assert not stand_in.left()


@pytest.mark.parametrize("saves", [True, False])
def test_a_killed_script_takes_its_processes_with_it(stand_in, saves):
    stand_in.plan(GRANDCHILD + ("save(seconds=0.5)" if saves else "time.sleep(60)"))
    script = stand_in.start("2", "--config", "x", JAXLM_GRACE_SECONDS="3")
    assert stand_in.wait_for("0.child") and stand_in.wait_for("1.child")
    assert len(stand_in.left()) >= 5  # the script, the processes and theirs
    script.kill()
    deadline = time.monotonic() + 20
    while stand_in.left():
        assert time.monotonic() < deadline, stand_in.left()
        time.sleep(0.1)
    assert stand_in.saved() == ([0, 1] if saves else [])
    assert not list(stand_in.temporary.iterdir())
    script.communicate(timeout=20)


def test_shellcheck():
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if (shellcheck := shutil.which("shellcheck", path=beside)) is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, LOCAL, SLURM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# ---- launch/slurm.sh


def slurm(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def cluster():
    """Skips unless this machine is a node of a SLURM cluster that takes jobs, as .ci/slurm makes one."""
    if shutil.which("sbatch") is None:
        pytest.skip("SLURM is not installed")
    nodes = slurm("sinfo", "--noheader", "--Node", "--format=%n %T", check=False).splitlines()
    if not any(
        line.split() in ([name, "idle"], [name, "mixed"])
        for line in nodes
        for name in (socket.gethostname(), socket.gethostname().split(".")[0])
    ):
        pytest.skip(
            "this machine is no node of a SLURM cluster that takes jobs (.ci/slurm makes one)"
        )


class Job:
    """A job of launch/slurm.sh with two tasks of the stand-in."""

    def __init__(self, stand_in, *options, arguments=("--config", "x")):
        self.log = stand_in.folder / "job.log"
        command = [
            "sbatch",
            "--parsable",
            "--ntasks=2",
            f"--output={self.log}",
            *options,
            SLURM,
            *arguments,
        ]
        done = subprocess.run(
            command,
            env=stand_in.environment,
            cwd=stand_in.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    def field(self, name):
        shown = slurm("scontrol", "show", "job", self.number)
        return next(word.partition("=")[2] for word in shown.split() if word.startswith(f"{name}="))

    def wait_for(self, *states, timeout=90):
        """The state once it is one of these, with the exit code of the script."""
        deadline = time.monotonic() + timeout
        while (state := self.field("JobState")) not in states:
            assert time.monotonic() < deadline, f"{state}: {self.log.read_text()}"
            time.sleep(0.2)
        return state, int(self.field("ExitCode").partition(":")[0])


ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture
def submit(cluster, stand_in):
    jobs = []

    def start(*options, **settings):
        jobs.append(Job(stand_in, *options, **settings))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.field("JobState") not in ENDED:
            slurm("scontrol", "update", f"JobId={job.number}", "Requeue=0", check=False)
            slurm("scancel", "--full", "--signal=KILL", job.number, check=False)
            slurm("scancel", job.number, check=False)


@pytest.mark.slow
def test_slurm_passes_the_arguments_and_tells_each_task_its_place(stand_in, submit):
    stand_in.plan("print('task', process, flush=True)")
    job = submit("--cpus-per-task=2", arguments=AWKWARD)
    assert job.wait_for(*ENDED) == ("COMPLETED", 0), job.log.read_text()
    tasks = [stand_in.seen(process) for process in range(2)]
    assert [task["arguments"] for task in tasks] == [["-m", "jaxlm.train", *AWKWARD]] * 2
    for name, values in {
        "SLURM_PROCID": ["0", "1"],
        "SLURM_STEP_NUM_TASKS": ["2", "2"],
        "SRUN_CPUS_PER_TASK": ["2", "2"],
    }.items():
        assert [task["environment"][name] for task in tasks] == values
    assert sorted(job.log.read_text().splitlines()) == ["task 0", "task 1"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "code"), [("2", "2", 2), ("0", "4", 4), ("3", "5", 5)])
def test_slurm_exit_codes(stand_in, submit, first, second, code):
    stand_in.plan(p0=f"sys.exit({first})", p1=f"sys.exit({second})")
    job = submit()
    assert job.wait_for(*ENDED) == ("FAILED", code), job.log.read_text()
    assert job.field("Restarts") == "0"


@pytest.mark.slow
def test_slurm_sbatch_returns_the_exit_code(cluster, stand_in):
    stand_in.plan("sys.exit(3)")
    command = ["sbatch", "--wait", "--ntasks=2", "--output=job.log", SLURM, "--config", "x"]
    done = subprocess.run(
        command, env=stand_in.environment, cwd=stand_in.folder, capture_output=True, timeout=90
    )
    assert done.returncode == 3


@pytest.mark.slow
def test_slurm_a_failed_task_does_not_signal_the_others(stand_in, submit):
    stand_in.plan(
        p0="time.sleep(4); write('0.saved', ''); sys.exit(6 if signals else 5)",
        p1="os.kill(os.getpid(), signal.SIGKILL)",
    )
    job = submit()
    assert job.wait_for(*ENDED) == ("FAILED", 137), job.log.read_text()
    assert stand_in.saved() == [0]
    assert "task 0: Exited with exit code 5" in job.log.read_text()


# Saves at SIGTERM the first time, and is done the next.
SAVE_ONCE = """
restarted = os.environ.get("SLURM_RESTART_COUNT", "0")
write(f"{process}.{restarted}", "")
if restarted == "0":
    save(seconds=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        (
            "scancel",
            "--signal=TERM",
        ),  # as before the time limit, and in a preemption with a grace time
        ("scancel", "--batch", "--signal=TERM"),  # as where the cluster tells the script only
        ("scontrol", "requeue"),  # as in a preemption without a grace time
    ],
    ids=" ".join,
)
def test_slurm_saves_and_is_queued_again(stand_in, submit, how):
    stand_in.plan(SAVE_ONCE)
    job = submit()
    for process in range(2):
        stand_in.wait_for(f"{process}.0")
    slurm(*how, job.number)
    assert job.wait_for(*ENDED) == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"
    for process in range(2):
        stand_in.wait_for(f"{process}.1")


@pytest.mark.slow
def test_slurm_saves_before_the_time_limit(stand_in, submit):
    stand_in.plan(SAVE_ONCE)
    job = submit("--time=1", "--signal=TERM@45")
    assert job.wait_for(*ENDED, timeout=150) == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"


@pytest.mark.slow
def test_slurm_scancel_saves_and_is_final(stand_in, submit):
    stand_in.plan("save(seconds=3)")
    job = submit()
    assert stand_in.seen(0) and stand_in.seen(1)
    slurm("scancel", job.number)
    assert job.wait_for(*ENDED) == ("CANCELLED", 75), job.log.read_text()
    assert stand_in.saved() == [0, 1]
    time.sleep(8)  # longer than a requeued job waits in the test bed
    assert (job.field("JobState"), job.field("Restarts")) == ("CANCELLED", "0")


@pytest.mark.slow
def test_slurm_no_requeue_is_heeded(stand_in, submit):
    stand_in.plan("save()")
    job = submit("--no-requeue")
    assert stand_in.seen(0) and stand_in.seen(1)
    slurm("scancel", "--signal=TERM", job.number)
    assert job.wait_for(*ENDED) == ("FAILED", 75), job.log.read_text()
    assert job.log.read_text().splitlines()[-1] == "launch/slurm.sh: saved, but not queued again"


@pytest.mark.slow
def test_slurm_a_preempted_job_saves_and_goes_on(stand_in, submit):
    if "urgent" not in slurm("sinfo", "--noheader", "--format=%R").split():
        pytest.skip("this cluster has no partition `urgent`, which .ci/slurm makes")
    stand_in.plan(SAVE_ONCE)
    job = submit()
    assert stand_in.seen(0) and stand_in.seen(1)
    slurm(
        "sbatch",
        "--partition=urgent",
        "--nodes=1",
        "--exclusive",
        f"--output={os.devnull}",
        "--wrap=true",
    )
    assert job.wait_for(*ENDED) == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"


@pytest.mark.parametrize(
    ("arguments", "job"), [((), {"SLURM_JOB_ID": "1"}), (("--config", "x"), {})]
)
def test_slurm_a_wrong_call_shows_the_usage(arguments, job):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_")
    }
    done = subprocess.run(
        [SLURM, *arguments], env={**environment, **job}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("usage: sbatch [options of sbatch] launch/slurm.sh --config FILE")


# ---- launch/kubernetes.yaml


@pytest.fixture
def manifest():
    """The Service and the Job."""
    yaml = pytest.importorskip(
        "yaml", reason="PyYAML is not installed (it comes with kubernetes-validate)"
    )
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


@pytest.fixture
def validate():
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )

    def check(resource, version=None):
        schemas.validate(resource, version or schemas.latest_version(), strict=True)

    return check


@pytest.mark.parametrize("version", ["1.31", None])
def test_the_manifest_is_valid(manifest, validate, version):
    assert [resource["kind"] for resource in manifest] == ["Service", "Job"]
    for resource in manifest:
        validate(resource, version)


def container_of(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def misspell(job):
    job["spec"]["backofLimit"] = job["spec"].pop("backoffLimit")


def quote(job):
    job["spec"]["completions"] = str(job["spec"]["completions"])


def drop_the_name(job):
    del container_of(job)["name"]


@pytest.mark.parametrize("spoil", [misspell, quote, drop_the_name])
def test_a_wrong_manifest_is_refused(manifest, validate, spoil):
    job = copy.deepcopy(manifest[1])
    spoil(job)
    with pytest.raises(
        Exception, match=r"backofLimit|'2' is not of type|'name' is a required property"
    ):
        validate(job)


def test_the_manifest_agrees_with_itself(manifest):
    service, job = manifest
    spec, pod, container = job["spec"], job["spec"]["template"]["spec"], container_of(job)
    assert (
        service["spec"]["clusterIP"] == "None"
        and service["spec"]["publishNotReadyAddresses"] is True
    )
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"]
    assert [edit for edit in container["args"] if edit.startswith("runtime.processes=")] == [
        f"runtime.processes={spec['completions']}"
    ]
    # All volumes that are mounted are there.
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_the_manifests_exit_codes(manifest):
    spec = manifest[1]["spec"]
    rules = spec["podFailurePolicy"]["rules"]
    of_codes = {
        code: rule["action"]
        for rule in rules
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert of_codes == {2: "FailJob", 3: "FailJob", 4: "FailJob", 75: "Ignore"}
    conditions = [
        (rule["action"], condition["type"])
        for rule in rules
        for condition in rule.get("onPodConditions", [])
    ]
    assert conditions == [("Ignore", "DisruptionTarget")]
    # What the API server asks of such a policy, beyond the schema.
    assert (
        spec["template"]["spec"]["restartPolicy"] == "Never"
        and spec["podReplacementPolicy"] == "Failed"
    )
    for rule in rules:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container_of(manifest[1])["name"]
            assert rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"])


def test_the_manifests_command_is_the_trainer_itself(manifest):
    container = container_of(manifest[1])
    assert container["command"] == ["python", "-m", "jaxlm.train"]
    assert all(isinstance(argument, str) for argument in container["args"])
