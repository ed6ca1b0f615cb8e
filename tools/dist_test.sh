#!/usr/bin/env bash
# Test in several processes: one per GPU, or on CPU cores where there is no GPU.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
[ $# -ge 3 ] || dist_usage 'CONFIG CHECKPOINT GPUS [options of tools/test.py]'
dist_run "$3" test.py "$1" "$2" --launcher pytorch "${@:4}"
