#!/usr/bin/env bash
# Where a chain of phases is: slurm/status.sh [CONFIG ...] [key.sub=value ...], as given to all_phases.sh.
set -euo pipefail
source slurm/settings.sh
if [[ ${*/*=*/} != *[![:space:]]* ]]; then  # all are overrides: none is a CONFIG
  set -- yamls/{phase{1,2,3-eng,3-cont,3-all},merge}.yaml "$@"
fi
run_python -m mmbert.status "$@"
