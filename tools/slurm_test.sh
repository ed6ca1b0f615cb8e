#!/usr/bin/env bash
# Test as a slurm job. SRUN_ARGS are passed on to srun.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 4 ] || slurm_usage 'PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]'
slurm_run "$1" "$2" test.py "$3" "$4" --launcher slurm "${@:5}"
