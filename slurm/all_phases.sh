#!/usr/bin/env bash
# Submits a chain of phases and merges, their conversion and evaluation, each job behind those that it needs:
#   slurm/all_phases.sh [--dry-run] [--train-only] [CONFIG ...] [key.sub=value ...]
# in the root of the repository; without a CONFIG the paper's five phases and their merge. What is finished is left out,
# and what is queued or running is not submitted again, so the same command goes on after anything.
set -euo pipefail
source slurm/settings.sh

dry_run=false stages=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry-run) dry_run=true ;;
    --train-only) stages=(--train-only) ;;
    *) echo "error: $1 is no option; there are --dry-run and --train-only" >&2; exit 1 ;;
  esac
  shift
done
if [[ ${*/*=*/} != *[![:space:]]* ]]; then  # all are overrides: none is a CONFIG
  set -- yamls/{phase{1,2,3-eng,3-cont,3-all},merge}.yaml "$@"
fi
list=$(run_python -m mmbert.stages "${stages[@]}" "$@")
queue=
if command -v squeue > /dev/null; then
  queue=$(squeue --me --noheader --format='%t %A %k') || $dry_run
elif ! $dry_run; then
  echo "error: there is no squeue here: submit on a login node of the cluster, or look with --dry-run" >&2
  exit 1
fi

submit() {  # NAME [argument of sbatch ...]: sets job[NAME]
  local name=$1
  shift
  local command=(sbatch --parsable ${ACCOUNT:+--account="$ACCOUNT"} ${PARTITION:+--partition="$PARTITION"}
    --time="$TIME" "${OPTIONS[@]}" "$@")
  if $dry_run; then
    echo "${command[*]@Q}"
    job[$name]=NUMBER_OF_$name
  else
    job[$name]=$("${command[@]}" | cut -d';' -f1)
    echo "$name: job ${job[$name]}${after:+, after ${after#:}}"
  fi
}

in_queue() {  # RESULT [STATE]: the number of the job that makes it
  awk -v result="$1" -v state="${2:-.}" \
    '$1 ~ state && substr($0, length($1 $2) + 3) == result { print $2; exit }' <<< "$queue"
}

while IFS=$'\t' read -r name result state _; do  # before anything is submitted
  ending=$(in_queue "$result" CG)  # cancelled, or to be queued again: nobody can tell yet
  if [ "$state" = todo ] && [ -n "$ending" ]; then
    echo "error: job $ending of $name is ending; run the same command again when it is gone" >&2
    exit 1
  fi
done <<< "$list"

declare -A job
while IFS=$'\t' read -r -a field; do
  name=${field[0]} result=${field[1]} arguments=("${field[@]:4}") after=
  if [ "${field[2]}" = "done" ]; then
    echo "$name: done"
    continue
  fi
  job[$name]=$(in_queue "$result")
  if [ -n "${job[$name]}" ]; then
    echo "$name: job ${job[$name]} is queued already"
    continue
  fi
  for need in ${field[3]//,/ }; do
    after+=${job[$need]:+:${job[$need]}}
  done
  options=(--job-name="$name" --comment="$result" --output="$LOGS/$name-%j.log"
    ${after:+--dependency=afterok"$after" --kill-on-invalid-dep=yes})
  if [ "${arguments[0]}" = main.py ]; then
    ((GPUS_PER_NODE == 0)) || options+=(--gpus-per-node="$GPUS_PER_NODE")
    submit "$name" "${options[@]}" --cpus-per-task="$CPUS_PER_NODE" --nodes="$NODES" slurm/train.sbatch "${arguments[@]:1}"
  else
    ((GPUS_PER_NODE == 0)) || options+=(--gpus-per-node=1)
    cpus=$((CPUS_PER_NODE / (GPUS_PER_NODE > 0 ? GPUS_PER_NODE : 1)))
    submit "$name" "${options[@]}" --cpus-per-task="$cpus" slurm/one_task.sbatch "${arguments[@]}"
  fi
done <<< "$list"
