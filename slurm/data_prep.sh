#!/usr/bin/env bash
# Prepares rows as arrays of jobs: slurm/data_prep.sh --input mytext --source mine --tokenizer data/tokenizer-gemma2 \
#   --row-length 1024 --output data/rows-1024 [--tasks 1000 and whatever else data_prep.prepare takes]
# in the root of the repository. A last job sees that all is there, and its log has the totals. After anything, the same
# command goes on with what is not finished.
set -euo pipefail
source slurm/settings.sh
if [ -n "$ACCOUNT" ]; then
  export SBATCH_ACCOUNT=$ACCOUNT
fi
told=$(run_python -m data_prep.prepare --slurm "$CPU_PARTITION" --slurm-time "$TIME" "$@")
echo "$told"
last=$(sed -n 's/^submitted: .*\b\([0-9]\+\);.*/\1/p' <<< "$told")  # empty where nothing is left to do
sbatch --partition="$CPU_PARTITION" --time="$TIME" --job-name=data-totals --output="$LOGS/data-totals-%j.log" \
  ${last:+--dependency=afterok:"$last" --kill-on-invalid-dep=yes} slurm/one_task.sbatch -m data_prep.prepare "$@"
