#!/bin/bash
# Train on a Slurm cluster:  NAME=exp DATA=/path/to/prepared sbatch batch.sh [train.py options]
# The job saves its state before the time limit, requeues itself and goes on where it stopped.
#
# Edit for your cluster:
#SBATCH --job-name=medsis
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=24:00:00
##SBATCH --partition=gpu
# Keep:
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@300
#SBATCH --output=slurm-%x-%j.out

set -u
NAME=${NAME:?set NAME to the name of the run}
DATA=${DATA:?set DATA to a folder written by scripts/prepare_data.py}
PYTHON=${PYTHON:-.venv/bin/python} # built by `make test` or `make demo` on the login node

srun "$PYTHON" train.py --name "$NAME" --dataroot "$DATA" "$@"
code=$?

# 85: stopped by the time limit, resumable. Anything else (finished, failed, cancelled) is not requeued by us.
job=$SLURM_JOB_ID
[ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
if [ "$code" -eq 85 ]; then
  scontrol requeue "$job"
fi
exit "$code"
