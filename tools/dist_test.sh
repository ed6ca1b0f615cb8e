#!/usr/bin/env bash
# Test in several processes: one per GPU, or on CPU cores where there is no GPU.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
if [ $# -lt 3 ] || ! are_numbers "$3" "${NNODES:-1}" "${NODE_RANK:-0}" "${PORT:-29500}"; then
    dist_usage 'CONFIG CHECKPOINT GPUS [options of tools/test.py]'
fi
dist_run "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
