#!/bin/bash
# A command that works in shards, as an array of jobs; all words after batch_array.sh are the command:
#
#   sbatch --array=0-7 batch_array.sh scripts/prepare_data.py --format bids --source bids --out data
#   sbatch --array=0-99%20 batch_array.sh scripts/generate.py --labels maps --out synthetic --n 100000
#   sbatch --array=0-3 batch_array.sh scripts/evaluate.py --results results/exp/best
#
# Job i of n gets `--shard i/n`. The last one to end writes the manifest, index or metrics; the result is that of one job without
# shards, byte for byte. An array that was interrupted goes on when it is submitted again.
#
# -- Edit for your cluster ------------------------------------------------------------------------------------------------
#SBATCH --job-name=medsis-array
##SBATCH --partition=cpu
#SBATCH --time=4:00:00
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out

set -u
PYTHON=${PYTHON:-.venv/bin/python}
[ "${SLURM_ARRAY_TASK_MIN:?use sbatch --array=0-7}" -eq 0 ] && [ "$SLURM_ARRAY_TASK_MAX" -eq $((SLURM_ARRAY_TASK_COUNT - 1)) ] ||
  { echo "batch_array.sh: give --array=0-<number of shards less one>" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# CONTAINER=medsis.sif as for batch.sh; APPTAINER_BIND=/data,/results mounts folders outside this one.
run=("$PYTHON")
[ -n "${CONTAINER:-}" ] && run=(apptainer exec --bind "$PWD" --pwd "$PWD" "$CONTAINER" python)
exec "${run[@]}" "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
