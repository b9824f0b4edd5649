#!/bin/bash
# Train on a Slurm cluster; all options after batch.sh are those of train.py:
#
#   NAME=exp DATA=/path/to/prepared sbatch batch.sh --num_epochs 200
#
# The job saves its state before the time limit, requeues itself and goes on where it stopped, until the run is finished.
# The same command again resumes too. docs/slurm.md explains it and lists the exit codes.
#
# -- Edit for your cluster (options of sbatch win over these lines: `sbatch --time=2:00:00 batch.sh`) ----------------------
#SBATCH --job-name=medsis
##SBATCH --partition=gpu            # one # less to use it; `sinfo` lists the partitions
##SBATCH --account=mygroup
#SBATCH --time=24:00:00             # of one go; the run may take many
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1         # one task for each GPU of a node
#SBATCH --gres=gpu:1                # GPUs of a node; some clusters write gpu:a100:1
#SBATCH --cpus-per-task=4           # for each GPU; --num_workers 3 uses them where slices do not fit into memory
#SBATCH --mem=32G                   # of a node
#
# Eight GPUs on two nodes: sbatch --nodes=2 --ntasks-per-node=4 --gres=gpu:4 batch.sh --batch_size 64
# The batch is shared by all of them, so --batch_size must be a multiple of their number.
#
# -- Keep ---------------------------------------------------------------------------------------------------------------
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@300
#SBATCH --output=slurm-%x-%j.out

set -u
NAME=${NAME:?set NAME to the name of the run}
DATA=${DATA:?set DATA to a folder written by scripts/prepare_data.py}
DATA=$(realpath "$DATA")
PYTHON=${PYTHON:-.venv/bin/python} # built by `make test` or `make demo` on the login node

# -- Environment: lines that your cluster needs before Python runs, for example
# module load cuda
# export MEDSIS_WEIGHTS=$HOME/medsis-weights     # for FID, LPIPS and the VGG loss: docs/offline.md
# export NCCL_SOCKET_IFNAME=ib0                  # where processes on two nodes do not find each other
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since Slurm 22.05 srun does not take it from sbatch

# -- Container: CONTAINER=medsis.sif (built from apptainer.def) runs Python inside it. This folder, DATA, STAGE and
# MEDSIS_WEIGHTS are mounted; APPTAINER_BIND=/more,/folders mounts others, such as that of --checkpoints_dir.
run=("$PYTHON")
if [ -n "${CONTAINER:-}" ]; then
  run=(apptainer exec --nv --bind "$PWD" --bind "$DATA" ${STAGE:+--bind "$STAGE"}
    ${MEDSIS_WEIGHTS:+--bind "$MEDSIS_WEIGHTS"} --pwd "$PWD" "$CONTAINER" python)
fi

# -- Staging: STAGE=/scratch/$USER (a disk of each node) copies DATA there first, once for each node and data set.
if [ -n "${STAGE:-}" ]; then
  staged=$STAGE/medsis-$(sha256sum "$DATA/manifest.json" | cut -c1-16)
  export DATA staged
  # shellcheck disable=SC2016 (expanded on each node)
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
    [ -f "$staged/manifest.json" ] && exit 0
    mkdir -p "$staged.$SLURM_JOB_ID" && tar -C "$DATA" -cf - . | tar -C "$staged.$SLURM_JOB_ID" -xf - || exit 1
    mv -T "$staged.$SLURM_JOB_ID" "$staged" 2>/dev/null || rm -rf "$staged.$SLURM_JOB_ID" # another job was first
  ' || { echo "batch.sh: DATA could not be copied to $STAGE" >&2; exit 2; }
  DATA=$staged
fi

# --wait: when a task has died, the others, which may be waiting for it, are ended two minutes later.
srun --wait=120 "${run[@]}" train.py --name "$NAME" --dataroot "$DATA" "$@"
code=$?

# 85: stopped by the time limit, resumable. Anything else (finished, failed, cancelled) is not requeued by us; Slurm itself
# requeues jobs that were preempted or whose node failed.
if [ "$code" -eq 85 ]; then
  job=$SLURM_JOB_ID
  [ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
  scontrol requeue "$job"
fi
exit "$code"
