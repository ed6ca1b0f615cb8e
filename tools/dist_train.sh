#!/usr/bin/env bash
# Train in several processes: one per GPU, or on CPU cores where there is no GPU.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 2 ] || dist_usage 'CONFIG GPUS [options of tools/train.py]'
dist_run "$2" train.py "$1" --launcher pytorch "${@:3}"
