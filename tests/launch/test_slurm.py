"""The scripts of launch/ under SLURM, where it runs here, mostly with a stand-in for Python."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.slurm import Job, require_cluster, slurm
from support.stand_in import AWKWARD, SLURM, StandIn
from support.stores import all_texts, write_corpus

from jaxlm.data import open_store

ROOT = Path(__file__).parents[2]
PREPARE_SLURM = ROOT / "launch" / "prepare_slurm.sh"
TINY = """
from jaxlm.config import Config, DataConfig, ModelConfig, TokenizerConfig

config = Config(
    model=ModelConfig(vocabulary_size=300, layers=1, width=16, heads=2, context_length=32),
    tokenizer=TokenizerConfig(kind="bytes"),
    data=DataConfig(sequence_length=32),
)
"""

# Longer than a requeued job waits in the test bed
REQUEUE_SECONDS = 8


@pytest.fixture
def stand_in(tmp_path):
    return StandIn(tmp_path)


@pytest.fixture
def submit(stand_in):
    """Return a function that submits a job. Jobs that still run are ended after the test."""
    require_cluster()
    jobs = []

    def start(*options, **arguments):
        jobs.append(Job(stand_in, *options, **arguments))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


@pytest.mark.parametrize(
    ("arguments", "job"), [((), {"SLURM_JOB_ID": "1"}), (("--config", "x"), {})]
)
def test_a_wrong_call_shows_the_usage(arguments, job):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [SLURM, *arguments], env={**clean, **job}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("usage: sbatch [options of sbatch] launch/slurm.sh --config FILE")


@pytest.mark.slow
def test_arguments_and_each_tasks_place_arrive(stand_in, submit):
    stand_in.plan("print('task', process, flush=True)")
    job = submit("--cpus-per-task=2", arguments=AWKWARD)
    assert job.wait_for_end() == ("COMPLETED", 0), job.log.read_text()

    for process in range(2):
        task = stand_in.seen(process)
        assert task["arguments"] == ["-m", "jaxlm.train", *AWKWARD]
        assert task["environment"]["SLURM_PROCID"] == str(process)
        assert task["environment"]["SLURM_STEP_NUM_TASKS"] == "2"
        assert task["environment"]["SRUN_CPUS_PER_TASK"] == "2"
    assert sorted(job.log.read_text().splitlines()) == ["task 0", "task 1"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "code"), [(2, 2, 2), (0, 4, 4), (3, 5, 5)])
def test_exit_codes(stand_in, submit, first, second, code):
    stand_in.plan(p0=f"sys.exit({first})", p1=f"sys.exit({second})")
    job = submit()
    assert job.wait_for_end() == ("FAILED", code), job.log.read_text()
    assert job.field("Restarts") == "0"


@pytest.mark.slow
def test_sbatch_returns_the_exit_code(stand_in):
    require_cluster()
    stand_in.plan("sys.exit(3)")
    command = ["sbatch", "--wait", "--ntasks=2", "--output=job.log", SLURM, "--config", "x"]
    done = subprocess.run(
        command, env=stand_in.environment, cwd=stand_in.folder, capture_output=True, timeout=90
    )
    assert done.returncode == 3


@pytest.mark.slow
def test_a_failed_task_does_not_signal_the_others(stand_in, submit):
    stand_in.plan(
        p0="time.sleep(4); write('0.saved'); sys.exit(6 if signals else 5)",
        p1="os.kill(os.getpid(), signal.SIGKILL)",
    )
    job = submit()
    assert job.wait_for_end() == ("FAILED", 137), job.log.read_text()
    assert stand_in.saved() == [0]
    assert "task 0: Exited with exit code 5" in job.log.read_text()


# Saves at SIGTERM in the first run of the job, and is done in the next.
SAVE_ONCE = """
restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
write(f"{process}.{restarts}")
if restarts == "0":
    wait_for_signal(signal.SIGTERM)
    time.sleep(2)
    save()
"""

STOPS = [
    ("scancel", "--signal=TERM"),  # as before the time limit, and in a preemption with a grace time
    ("scancel", "--batch", "--signal=TERM"),  # as where the cluster signals the script only
    ("scontrol", "requeue"),  # as in a preemption without a grace time
]


@pytest.mark.slow
@pytest.mark.parametrize("command", STOPS, ids=" ".join)
def test_a_stopped_job_saves_and_is_queued_again(stand_in, submit, command):
    stand_in.plan(SAVE_ONCE)
    job = submit()
    for process in range(2):
        stand_in.wait_for(f"{process}.0")
    slurm(*command, job.number)
    assert job.wait_for_end() == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"
    for process in range(2):
        stand_in.wait_for(f"{process}.1")


@pytest.mark.slow
def test_a_job_saves_before_its_time_limit(stand_in, submit):
    stand_in.plan(SAVE_ONCE)
    job = submit("--time=1", "--signal=TERM@45")
    assert job.wait_for_end(limit=150) == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"


@pytest.mark.slow
def test_scancel_saves_and_is_final(stand_in, submit):
    stand_in.plan("wait_for_signal(signal.SIGTERM); time.sleep(3); save()")
    job = submit()
    assert stand_in.seen(0) and stand_in.seen(1)
    slurm("scancel", job.number)
    assert job.wait_for_end() == ("CANCELLED", 75), job.log.read_text()
    assert stand_in.saved() == [0, 1]
    time.sleep(REQUEUE_SECONDS)
    assert (job.field("JobState"), job.field("Restarts")) == ("CANCELLED", "0")


@pytest.mark.slow
def test_no_requeue_is_heeded(stand_in, submit):
    stand_in.plan("save()")
    job = submit("--no-requeue")
    assert stand_in.seen(0) and stand_in.seen(1)
    slurm("scancel", "--signal=TERM", job.number)
    assert job.wait_for_end() == ("FAILED", 75), job.log.read_text()
    assert job.log.read_text().splitlines()[-1] == "launch/slurm.sh: saved, but not queued again"


@pytest.mark.slow
def test_a_preempted_job_saves_and_goes_on(stand_in, submit):
    if "urgent" not in slurm("sinfo", "--noheader", "--format=%R").split():
        pytest.skip("this cluster has no partition `urgent`, which .ci/slurm makes")
    stand_in.plan(SAVE_ONCE)
    job = submit()
    assert stand_in.seen(0) and stand_in.seen(1)
    urgent = ("--partition=urgent", "--nodes=1", "--exclusive", f"--output={os.devnull}")
    slurm("sbatch", *urgent, "--wrap=true")
    assert job.wait_for_end() == ("COMPLETED", 0), job.log.read_text()
    assert stand_in.saved() == [0, 1] and job.field("Restarts") == "1"


@pytest.mark.slow
def test_tasks_share_the_preparation_of_a_corpus(tmp_path):
    """The Python is the real one."""
    require_cluster()
    write_corpus(tmp_path / "texts")
    (tmp_path / "tiny.py").write_text(TINY)
    command = ["--config", "tiny.py", "--data", "texts"]
    done = subprocess.run(
        ["sbatch", "--wait", "--ntasks=2", f"--output={tmp_path}/job.log", PREPARE_SLURM, *command],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    log = (tmp_path / "job.log").read_text()
    assert done.returncode == 0, log
    assert log.count("read: ") == log.count("tokens: ") == 2 and "report.html" in log
    (manifest,) = (tmp_path / "stores").glob("*/manifest.json")
    assert len(all_texts(open_store(manifest.parent))) == 40
