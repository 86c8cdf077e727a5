#!/usr/bin/env bash
# Runs a command as several CPU processes of one job on this machine.
#
#     launch/local_processes.sh [-d DEVICES] PROCESSES COMMAND [ARGUMENT...]
#
#     launch/local_processes.sh -d 2 4 python -m ladd_jax.main \
#         --config=configs/digits.py --workdir=runs/digits
#
# -d is the number of simulated devices in each process, 1 by default. The first process writes to
# the terminal. When a process fails, the others are ended, its last lines are shown, and this
# script ends with its exit code. When this script is told to stop, the processes have two minutes
# for a last checkpoint; it then ends with exit code 75 if the same command can go on from there.
set -euo pipefail

fail() {
    echo "error: $*" >&2
    exit 2
}

devices=1
while getopts "d:" option; do
    case $option in
        d) devices=$OPTARG ;;
        *) fail "usage: $0 [-d DEVICES] PROCESSES COMMAND [ARGUMENT...]" ;;
    esac
done
shift $((OPTIND - 1))
(($# >= 2)) || fail "usage: $0 [-d DEVICES] PROCESSES COMMAND [ARGUMENT...]"
count=$1
shift
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "PROCESSES is $count: use a number of 1 or more"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "-d is $devices: use a number of 1 or more"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
logs=$(mktemp -d)
pids=()

# Each process leads a group, so that what it started ends with it.
set -m
grace=50 # tenths of a second
end_all() {
    # Silences bash, which would print a line for each process that it ends.
    exec 2>/dev/null
    local pid
    for pid in "${pids[@]}"; do
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    for ((wait = 0; wait < grace; wait++)); do
        for pid in "${pids[@]}"; do
            kill -0 -- "-$pid" 2>/dev/null && sleep 0.1 && continue 2
        done
        break
    done
    for pid in "${pids[@]}"; do
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    rm -rf "$logs"
}
stop() {
    local code=$1 pid
    grace=1200
    end_all
    for pid in "${pids[@]}"; do
        wait "$pid" || (($? != 75)) || code=75
    done
    exit "$code"
}
trap end_all EXIT
trap 'stop 130' INT
trap 'stop 143' TERM

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$count

for ((i = 0; i < count; i++)); do
    if ((i == 0)); then
        JAX_PROCESS_ID=$i "$@" </dev/null &
    else
        JAX_PROCESS_ID=$i "$@" </dev/null >"$logs/$i" 2>&1 &
    fi
    pids+=($!)
done

for ((left = count; left > 0; left--)); do
    code=0
    wait -n -p ended || code=$?
    ((code == 0)) && continue
    for ((i = 0; i < count; i++)); do
        if ((pids[i] == ended)); then
            echo "error: process $i of $count ended with exit code $code" >&2
            ((i == 0)) || tail -n 20 "$logs/$i" >&2
        fi
    done
    exit "$code"
done
