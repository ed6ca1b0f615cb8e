#!/usr/bin/env bash
# Train in several processes: one per GPU, or on CPU cores where there is no GPU.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
if [ $# -lt 2 ] || ! are_numbers "$2" "${NNODES:-1}" "${NODE_RANK:-0}" "${PORT:-29500}"; then
    dist_usage 'CONFIG GPUS [options of tools/train.py]'
fi
dist_run "$2" train.py "$1" --launcher pytorch "${@:3}"
