#!/usr/bin/env bash
# Runs on every node of a job, started by train.sbatch: a launcher, which starts the ranks of this node.
set -euo pipefail
trap '' USR1 TERM  # until Python listens: whatever is started below inherits it
source slurm/settings.sh
ranks=$((GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1))
status=0
run_python -m mmbert.launch --nproc "$ranks" --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
  --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "$@" || status=$?
echo "$status on $SLURMD_NODENAME" >> "$ENDS"
exit "$status"
