#!/usr/bin/env bash
# Train as a slurm job. SRUN_ARGS are passed on to srun.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 3 ] || slurm_usage 'PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]'
PARTITION=$1 JOB_NAME=$2 CONFIG=$3
shift 3
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    set -- --work-dir "$@"
fi
slurm_run "$PARTITION" "$JOB_NAME" train.py "$CONFIG" --launcher slurm "$@"
