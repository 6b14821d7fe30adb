#!/usr/bin/env bash
# Prepare a corpus under SLURM, shared among the tasks of a job:
#
#   sbatch [options of sbatch] launch/prepare_slurm.sh --config FILE [arguments of jaxlm.prepare]
#
# One task per machine with all its cores, for example on 16 machines:
#
#   sbatch --nodes=16 --ntasks-per-node=1 --cpus-per-task=64 launch/prepare_slurm.sh --config FILE
#
# All tasks need the sources and the folder of the stores (data.store) under the same path. Each
# reads its part of the text, one task finds the duplicates and makes the tokenizer, each tokenises
# its part, and one task joins the store. A job that is submitted again goes on where it stopped.
# PYTHON is the Python to use (default: python).
#
#SBATCH --job-name=jaxlm-prepare
#SBATCH --open-mode=append
set -euo pipefail

if [ -z "${SLURM_JOB_ID:-}" ] || [ $# -eq 0 ]; then
  arguments="--config FILE [arguments of jaxlm.prepare]"
  echo "usage: sbatch [options of sbatch] launch/prepare_slurm.sh $arguments" >&2
  exit 2
fi
export PYTHON=${PYTHON:-python}
# Since SLURM 22.05 srun no longer inherits this from sbatch.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

alone() { srun --nodes=1 --ntasks=1 "$PYTHON" -m jaxlm.prepare "$@" </dev/null; }

# shellcheck disable=SC2016 # each task has its own number
together() {
  srun --kill-on-bad-exit=1 bash -c \
    'exec "$PYTHON" -m jaxlm.prepare "$@" --part "$((SLURM_PROCID + 1))/$SLURM_NTASKS"' \
    prepare "$@" </dev/null
}

alone "$@" --stage files
together "$@" --stage read
alone "$@" --stage tokenizer
together "$@" --stage tokens
alone "$@"
