# What dist_*.sh and slurm_*.sh have in common; sourced by them.
set -euo pipefail
TOOLS=$(CDPATH="" cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

usage() { # VARIABLES ARGUMENTS
    echo "usage: [$1 PYTHON=python] $0 $2" >&2
    exit 2
}
dist_usage() { usage 'NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500' "$1"; }
slurm_usage() { usage "GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=''" "$1"; }

# Fails unless all of them are whole numbers, the first at least 1 or a word of torchrun's.
are_numbers() { # PROCESSES NNODES NODE_RANK PORT
    case $1 in auto | cpu | gpu) set -- 1 "${@:2}" ;; 0) return 1 ;; esac
    local number
    for number; do
        case $number in '' | *[!0-9]*) return 1 ;; esac
    done
}

dist_run() { # PROCESSES SCRIPT ARGUMENTS...
    exec "${PYTHON:-python}" -m mmlavit.engine.launch \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$TOOLS/$2" "${@:3}"
}

slurm_run() { # PARTITION JOB_NAME SCRIPT ARGUMENTS...
    local gpus=${GPUS:-8}
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    # SRUN_ARGS holds several words.
    # shellcheck disable=SC2086
    exec srun -p "$1" \
        --job-name="$2" \
        --gres="gpu:$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        "${PYTHON:-python}" -u "$TOOLS/$3" "${@:4}"
}
