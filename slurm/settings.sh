# shellcheck shell=bash
# Read by the scripts of this folder, in the root of the repository: what cluster.env says.
settings=${CLUSTER_ENV:-slurm/cluster.env}
if [ ! -r "$settings" ]; then
  echo "error: $settings is missing: copy slurm/cluster.env.example to it and fill it in" >&2
  exit 1
fi
: "${USER:=$(id -un)}"  # containers and cron often have none
# shellcheck source=slurm/cluster.env.example
source "$settings"
mkdir -p "$LOGS"
if [ -n "$INTERFACE" ]; then
  export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi
if [ -n "$CACHE" ]; then
  mkdir -p "$CACHE"
  export TMPDIR=$CACHE TORCHINDUCTOR_CACHE_DIR=$CACHE/inductor TRITON_CACHE_DIR=$CACHE/triton
fi

run_python() (  # what sites load their modules with knows nothing of `set -u`
  set +u
  if ! activate; then  # else another Python, of the system say, would run
    echo "error: activate, in $settings, failed; mend it there" >&2
    exit 1
  fi
  exec "${CONTAINER[@]}" python "$@"
)

tell() {  # a line of the job's log
  echo "$(date +%FT%T) job ${SLURM_JOB_ID:-} start $((${SLURM_RESTART_COUNT:-0} + 1)): $*" >&2
}
