#!/usr/bin/env bash
# Runs a command on all hosts of a Cloud TPU slice, from a machine with gcloud.
#
#     export TPU_NAME=ladd TPU_ZONE=us-east5-a TPU_TYPE=v5p-32 TPU_BUCKET=my-runs
#     launch/tpu_pod.sh run python -m ladd_jax.main \
#         --config=configs/sd3_turbo.py:weights=... --workdir=/mnt/ladd/sd3_turbo
#     launch/tpu_pod.sh logs      # shows the first host's output; Ctrl-C leaves the run alone
#     launch/tpu_pod.sh stop      # ends the run and keeps the slice
#     launch/tpu_pod.sh delete    # gives the slice back
#
# `run` asks for the slice as a queued resource, or takes the one with that name. It installs this
# checkout on the hosts, starts the command on all of them, shows the output of the first one and
# ends with its exit code. Giving the same command again continues the run, also after a preemption;
# a run that was told to stop, but not by `stop`, is continued at once.
# TPU_SPOT=1 asks for spot capacity. TPU_RUNTIME is the image of the hosts. The hosts mount a
# bucket, TPU_BUCKET=NAME or NAME/FOLDER, or a share, TPU_NFS=HOST:/SHARE, on /mnt/ladd. The workdir
# of several hosts must be there, since all of them use it.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 2
}

action=${1:-}
shift || true
case $action in
    run) (($#)) || fail "run needs a command, such as: run python -m ladd_jax.main --config=..." ;;
    logs | stop | delete) (($# == 0)) || fail "$action takes no argument and was given: $*" ;;
    *) fail "the action is '$action': use run, logs, stop or delete" ;;
esac
for name in TPU_NAME TPU_ZONE; do
    [[ -n ${!name:-} ]] || fail "$name is not set: export $name=..."
done
if [[ $action == run && -n ${TPU_BUCKET:-} ]]; then
    [[ -z ${TPU_NFS:-} ]] || fail "TPU_BUCKET and TPU_NFS are both set: unset one of them"
    [[ $TPU_BUCKET =~ ^[a-z0-9][-_.a-z0-9]+(/[^/]+)*$ ]] ||
        fail "TPU_BUCKET is '$TPU_BUCKET': use NAME or NAME/FOLDER"
fi

on_host() { # HOST COMMAND: HOST is a number, or all
    gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$TPU_ZONE" --worker="$1" --command="$2"
}

queued() { # ACTION [FLAG...]
    local verb=$1
    shift
    gcloud compute tpus queued-resources "$verb" "$TPU_NAME" --zone="$TPU_ZONE" "$@"
}

state() {
    queued describe --format="value(state.state)" 2>/dev/null || true
}

runtime() {
    case $TPU_TYPE in
        v6e-*) echo v2-alpha-tpuv6e ;;
        v5p-*) echo v2-alpha-tpuv5 ;;
        v5litepod-*) echo v2-alpha-tpuv5-lite ;;
        *) echo tpu-ubuntu2204-base ;;
    esac
}

create_or_reuse() {
    local now last=unknown asked=""
    while now=$(state); [[ $now != ACTIVE ]]; do
        [[ $now == "$last" ]] || echo "$(date +%T) $TPU_NAME: ${now:-not there}"
        last=$now
        case $now in
            "")
                [[ -z $asked ]] || fail "$TPU_NAME was asked for and is not there: see gcloud above"
                [[ -n ${TPU_TYPE:-} ]] || fail "TPU_TYPE is not set: export TPU_TYPE=v5p-32"
                queued create --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" \
                    --runtime-version="${TPU_RUNTIME:-$(runtime)}" ${TPU_SPOT:+--spot}
                asked=1
                ;;
            FAILED | SUSPENDED)
                # Preempted or refused: a queued resource in these states never comes back.
                [[ -z $asked ]] || fail "$TPU_NAME is $now: see \`gcloud compute tpus" \
                    "queued-resources describe $TPU_NAME --zone=$TPU_ZONE\`"
                queued delete --force --quiet
                ;;
            *) sleep "${TPU_POLL_SECONDS:-30}" ;;
        esac
    done
}

install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git ls-files -z --cached --others --exclude-standard |
        tar --create --gzip --file="$archive" --null --files-from=-
    gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:ladd_jax.tar.gz" --zone="$TPU_ZONE" \
        --worker=all
    rm "$archive"
    # The hosts' own Python is older than JAX needs.
    on_host all 'set -e
mkdir -p ladd_jax
tar --extract --file=ladd_jax.tar.gz --directory=ladd_jax
cd ladd_jax
command -v ~/.local/bin/uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
[ -d .venv ] || ~/.local/bin/uv venv --quiet --python 3.12
~/.local/bin/uv pip install --quiet --constraint constraints.txt --editable ".[tpu]"'
}

mount_shared() {
    local mount=""
    if [[ -n ${TPU_BUCKET:-} ]]; then
        # No metadata is cached, so that a host sees at once what another one has written: on TPU
        # hosts gcsfuse caches it for ever by default. Folders may exist only in the names of what
        # was uploaded, which --implicit-dirs allows. The limit is for buckets without a
        # hierarchical namespace, in which a folder is renamed file by file.
        # shellcheck disable=SC2016 # expanded on the hosts
        mount='command -v gcsfuse >/dev/null || {
google=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
curl -fsSL $google/doc/apt-key.gpg | sudo tee $key >/dev/null
echo "deb [signed-by=$key] $google gcsfuse-$(lsb_release --codename --short) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
sudo apt-get update --quiet >/dev/null
sudo apt-get install --yes --quiet gcsfuse >/dev/null
}
sudo gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    --kernel-list-cache-ttl-secs=0 --rename-dir-limit=200000 \
    -o allow_other --uid="$(id -u)" --gid="$(id -g)" --file-mode=666 --dir-mode=777'
        [[ $TPU_BUCKET != */* ]] || mount+=" --only-dir=$(printf %q "${TPU_BUCKET#*/}")"
        mount+=" ${TPU_BUCKET%%/*} /mnt/ladd"
    elif [[ -n ${TPU_NFS:-} ]]; then
        # With lookupcache=positive a host sees at once the files that another one has made.
        mount="command -v mount.nfs >/dev/null ||
    sudo apt-get install --yes --quiet nfs-common >/dev/null
sudo mount -t nfs -o hard,lookupcache=positive $(printf %q "$TPU_NFS") /mnt/ladd
sudo chmod 777 /mnt/ladd"
    else
        return 0
    fi
    # Another bucket or share may be mounted there, or one whose program has died.
    on_host all "set -eo pipefail
if findmnt --mountpoint /mnt/ladd >/dev/null; then sudo umount --lazy /mnt/ladd; fi
sudo mkdir -p /mnt/ladd
$mount"
}

# Starts the command in its own session, so that it outlives the connection and ends as a whole.
start() {
    on_host all "set -e
rm -f ladd.exit ladd.pid ladd.stopped
cd ladd_jax
PATH=\$PWD/.venv/bin:\$PATH setsid --fork bash -c $(printf %q \
        "echo \$\$ >../ladd.pid; $(printf '%q ' "$@"); echo \$? >../ladd.exit") \
    </dev/null >../ladd.log 2>&1"
}

# Follows the first host until its command has ended.
follow() {
    on_host 0 "while [ ! -e ladd.pid ]; do sleep 0.2; done
tail --lines=+1 --follow --sleep-interval=0.2 --pid=\$(cat ladd.pid) ladd.log
exit \$(cat ladd.exit 2>/dev/null || echo 1)"
}

stop() {
    # shellcheck disable=SC2016 # expanded on the hosts
    on_host all '[ -e ladd.pid ] || exit 0
pid=$(cat ladd.pid)
touch ladd.stopped
kill -TERM -- "-$pid" 2>/dev/null || exit 0
for _ in $(seq 1200); do kill -0 -- "-$pid" 2>/dev/null || exit 0; sleep 0.1; done
kill -KILL -- "-$pid"'
}

case $action in
    run)
        # Errors are trapped here and not tested in a condition, where `set -e` has no effect.
        set -o errtrace
        trap 'fail "$doing has failed: see above"' ERR
        while :; do
            doing="asking for $TPU_NAME"
            create_or_reuse
            doing="ending the previous run on $TPU_NAME"
            stop
            doing="installing the checkout on $TPU_NAME"
            install
            doing="mounting /mnt/ladd on all hosts of $TPU_NAME"
            mount_shared
            doing="starting the command on $TPU_NAME"
            start "$@"
            code=0
            follow || code=$?
            # 75 is the exit code of a run that has saved because it was told to stop.
            if ((code != 75)) || ! on_host 0 "[ ! -e ladd.stopped ]"; then break; fi
        done
        if ((code)); then
            # The reason why the first host failed may be on another one.
            # shellcheck disable=SC2016 # expanded on the hosts
            on_host all '[ "$(cat ladd.exit 2>/dev/null)" = 0 ] || {
echo "--- $(hostname)"; tail --lines=20 ladd.log; }' >&2 || true
        fi
        exit "$code"
        ;;
    logs) follow ;;
    stop) stop ;;
    delete) queued delete --force --quiet ;;
esac
