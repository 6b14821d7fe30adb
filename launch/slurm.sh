#!/usr/bin/env bash
# Train under SLURM, with one task per GPU:
#
#   sbatch [options of sbatch] launch/slurm.sh --config FILE [arguments of jaxlm.train]
#
# The options of sbatch say what the job gets; those on the command line win over those below. For 2
# machines with 8 GPUs each:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00 \
#     launch/slurm.sh --config FILE
#
# Request GPUs per node, not per task: each task takes the GPU of its own number, and NCCL needs to
# see the others. Without GPUs, `--ntasks=2` trains as two processes on CPUs. PYTHON is the Python
# to use (default: python).
#
# 2 minutes before the time limit, and where a job of higher priority preempts this one, all tasks
# save and end with 75, and the job is queued again (unless sbatch has --no-requeue). `scancel JOB`
# saves too, within the cluster's KillWait (30 s by default), and the job stays ended. For more time
# to save: scontrol update JobId=JOB Requeue=0; scancel --signal=TERM JOB
#
#SBATCH --job-name=jaxlm
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail
stopped=75 # exit code of jaxlm.train: stopped by a signal, saved

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -eq 0 ]; then
  arguments="--config FILE [arguments of jaxlm.train]"
  echo "usage: sbatch [options of sbatch] launch/slurm.sh $arguments" >&2
  exit 2
fi

# Since SLURM 22.05 srun no longer inherits this from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# A job that was cancelled, or that is already being queued again, is no longer RUNNING.
running() { [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null)" = RUNNING ]; }

# Where only this shell gets the signal, it passes it on to the tasks, which may get it twice. srun
# would kill them at a SIGTERM.
trap 'if running; then scancel --signal=TERM "$SLURM_JOB_ID"; fi' TERM

# When a task has ended, the others may still be saving, or they need time to notice the loss
# (runtime.heartbeat_timeout_seconds, 100 by default).
srun --kill-on-bad-exit=0 --wait=150 "${PYTHON:-python}" -m jaxlm.train "$@" </dev/null &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a signal ends wait, not srun
wait "$step"
code=$?

if [ "$code" -eq "$stopped" ] && running; then
  trap '' TERM # requeueing signals this shell
  scontrol requeue "$SLURM_JOB_ID" || echo "launch/slurm.sh: saved, but not queued again" >&2
fi
exit "$code"
