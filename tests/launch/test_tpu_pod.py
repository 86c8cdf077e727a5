"""`launch/tpu_pod.sh` against a `gcloud` whose hosts are folders of this machine."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"

# `gcloud compute tpus GROUP VERB ...`: states come one by one from a file, commands run in the
# folder of each host with it as their home.
GCLOUD = r"""#!/usr/bin/env bash
set -eu
echo "$*" >>"$CLOUD/calls"
group=$3 verb=$4
for argument in "$@"; do
    case $argument in
        --worker=*) worker=${argument#*=} ;;
        --command=*) command=${argument#*=} ;;
    esac
done
case "$group $verb" in
    "queued-resources describe")
        [ -s "$CLOUD/states" ] || exit 1
        head -n 1 "$CLOUD/states"
        [ "$(wc -l <"$CLOUD/states")" = 1 ] || sed -i 1d "$CLOUD/states" ;;
    "queued-resources create") cp "$CLOUD/after_create" "$CLOUD/states" ;;
    "queued-resources delete") : >"$CLOUD/states" ;;
    "tpu-vm scp") for host in "$CLOUD"/hosts/*; do cp "$5" "$host/ladd_jax.tar.gz"; done ;;
    "tpu-vm ssh")
        for host in "$CLOUD"/hosts/*; do
            [ "$worker" = all ] || [ "$worker" = "${host##*/}" ] || continue
            (cd "$host" && HOME=$host HOST=${host##*/} bash -c "$command")
        done ;;
    *) exit 3 ;;
esac
"""

UV = """#!/usr/bin/env bash
echo "$PWD: $*" >>"$CLOUD/installs"
[ "$1" != venv ] || mkdir -p .venv/bin
"""

# What hosts do as root is written down and not done; a file is read to its end as by `tee`.
SUDO = """#!/usr/bin/env bash
echo "$HOST: $*" >>"$CLOUD/sudo"
[ "$1" != tee ] || cat >>"$CLOUD/written"
[ "$1 $HOST" != "${FAILS:-}" ]
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    for host in ("0", "1"):
        program(tmp_path / "hosts" / host / ".local" / "bin" / "uv", UV)
    program(tmp_path / "bin" / "sudo", SUDO)
    program(tmp_path / "bin" / "findmnt", "#!/bin/sh\nexit 1\n")
    program(tmp_path / "bin" / "mount.nfs", "")
    program(tmp_path / "bin" / "gcsfuse", "")
    (tmp_path / "states").touch()
    (tmp_path / "calls").touch()
    (tmp_path / "after_create").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    return tmp_path


def run(cloud, *arguments, **settings):
    environment = os.environ | {
        "CLOUD": str(cloud),
        "PATH": f"{cloud / 'bin'}:{os.environ['PATH']}",
        "TPU_NAME": "pod",
        "TPU_ZONE": "z",
        "TPU_TYPE": "v5p-16",
        "TPU_POLL_SECONDS": "0",
    }
    return subprocess.run(
        [SCRIPT, *arguments], env=environment | settings, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def calls(cloud, words):
    return [line for line in (cloud / "calls").read_text().splitlines() if words in line]


def as_root(cloud, host):
    """What a host did as root, in order."""
    lines = (cloud / "sudo").read_text().splitlines()
    return [line.removeprefix(f"{host}: ") for line in lines if line.startswith(f"{host}: ")]


COMMAND = ["run", "bash", "-c", 'cat setup.py >~/seen; echo I am host $HOST, "$1"', "_", "a b'c"]


def test_run_makes_the_slice_installs_the_checkout_and_shows_the_first_host(cloud):
    result = run(cloud, *COMMAND, TPU_SPOT="1")
    assert result.returncode == 0, result.stderr
    assert "I am host 0, a b'c\n" in result.stdout and "host 1" not in result.stdout
    (created,) = calls(cloud, "queued-resources create")
    for flag in ("--node-id=pod", "--zone=z", "--accelerator-type=v5p-16", "--spot"):
        assert flag in created.split()
    assert "--runtime-version=v2-alpha-tpuv5" in created.split()
    states = [line.split(": ")[1] for line in result.stdout.splitlines() if "pod: " in line]
    assert states == ["not there", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    setup = (SCRIPT.parents[1] / "setup.py").read_text()
    for host in ("0", "1"):
        assert (cloud / "hosts" / host / "seen").read_text() == setup
        assert (cloud / "hosts" / host / "ladd.log").read_text() == f"I am host {host}, a b'c\n"
    assert (cloud / "installs").read_text().count("--editable .[tpu]") == 2


def test_run_takes_the_slice_that_is_there(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    assert run(cloud, *COMMAND).returncode == 0
    assert run(cloud, *COMMAND).returncode == 0
    assert not calls(cloud, "queued-resources create")
    assert (cloud / "installs").read_text().count("venv") == 2


def test_a_slice_that_was_preempted_is_asked_for_again(cloud):
    (cloud / "states").write_text("SUSPENDED\n")
    assert run(cloud, *COMMAND).returncode == 0
    assert len(calls(cloud, "queued-resources delete")) == 1
    assert len(calls(cloud, "queued-resources create")) == 1


def test_a_request_that_is_refused_is_an_error_and_not_made_again(cloud):
    (cloud / "after_create").write_text("FAILED\n")
    result = run(cloud, *COMMAND)
    assert result.returncode == 2 and "pod is FAILED" in result.stderr
    assert len(calls(cloud, "queued-resources create")) == 1


def test_a_run_that_fails_gives_its_code_and_the_last_lines_of_the_hosts_that_failed(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    script = "if [ $HOST = 1 ]; then echo no memory on host 1; fi; exit 3"
    result = run(cloud, "run", "bash", "-c", script)
    assert result.returncode == 3
    assert "no memory on host 1" in result.stderr


def test_a_run_that_was_told_to_stop_is_continued(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    script = "[ -e ~/once ] && exit 0; touch ~/once; exit 75"
    assert run(cloud, "run", "bash", "-c", script).returncode == 0
    assert (cloud / "installs").read_text().count("--editable .[tpu]") == 4
    # By `stop`, it is not.
    script = "touch ~/ladd.stopped; exit 75"
    assert run(cloud, "run", "bash", "-c", script).returncode == 75


def test_stop_ends_the_run_on_all_hosts_and_delete_gives_the_slice_back(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    script = "touch ~/started; (sleep 60; touch ~/alive) & sleep 60"
    environment = {"CLOUD": str(cloud), "PATH": f"{cloud / 'bin'}:{os.environ['PATH']}"}
    names = {"TPU_NAME": "pod", "TPU_ZONE": "z"}
    with subprocess.Popen(
        [SCRIPT, "run", "bash", "-c", script], env=os.environ | environment | names,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        while not all((cloud / "hosts" / host / "started").exists() for host in "01"):
            assert running.poll() is None
        assert run(cloud, "stop").returncode == 0
        # The run that was followed ended without an exit code of its own.
        assert running.wait(timeout=20) == 1
    for host in ("0", "1"):
        group = int((cloud / "hosts" / host / "ladd.pid").read_text())
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
    assert run(cloud, "stop").returncode == 0
    assert run(cloud, "delete").returncode == 0
    assert calls(cloud, "queued-resources delete pod --zone=z --force --quiet")


@pytest.mark.parametrize("folder", ["", "runs of/two"])
def test_a_bucket_is_mounted_on_all_hosts_so_that_each_sees_what_others_write(cloud, folder):
    (cloud / "states").write_text("ACTIVE\n")
    result = run(cloud, *COMMAND, TPU_BUCKET="my-runs" + (folder and f"/{folder}"))
    assert result.returncode == 0, result.stderr
    for host in ("0", "1"):
        made, mounted = as_root(cloud, host)
        assert made == "mkdir -p /mnt/ladd"
        assert mounted.startswith("gcsfuse ") and mounted.endswith(" my-runs /mnt/ladd")
        assert (f" --only-dir={folder} " in mounted) == bool(folder)
        for flag in (
            "--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0",
            "--kernel-list-cache-ttl-secs=0", "--implicit-dirs", "--rename-dir-limit=200000",
            f"--uid={os.getuid()}", "allow_other",
        ):  # fmt: skip
            assert flag in mounted.split()


def test_gcsfuse_comes_from_googles_packages_where_it_is_not_there(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "bin" / "gcsfuse").unlink()
    program(cloud / "bin" / "curl", '#!/bin/sh\necho "key of $2"\n')
    program(cloud / "bin" / "lsb_release", "#!/bin/sh\necho jammy\n")
    assert run(cloud, *COMMAND, TPU_BUCKET="my-runs").returncode == 0
    done = [line.split()[:2] for line in as_root(cloud, "1")]
    assert done[1:5] == [
        ["tee", "/usr/share/keyrings/cloud.google.asc"],
        ["tee", "/etc/apt/sources.list.d/gcsfuse.list"],
        ["apt-get", "update"],
        ["apt-get", "install"],
    ]
    assert done[5][0] == "gcsfuse"
    key, source = (cloud / "written").read_text().splitlines()[:2]
    assert key == "key of https://packages.cloud.google.com/apt/doc/apt-key.gpg"
    assert source == (
        "deb [signed-by=/usr/share/keyrings/cloud.google.asc] "
        "https://packages.cloud.google.com/apt gcsfuse-jammy main"
    )


def test_a_share_is_mounted_in_place_of_what_was_mounted_before(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    program(cloud / "bin" / "findmnt", "#!/bin/sh\n")
    assert run(cloud, *COMMAND, TPU_NFS="10.0.0.2:/my runs").returncode == 0
    assert as_root(cloud, "1") == [
        "umount --lazy /mnt/ladd",
        "mkdir -p /mnt/ladd",
        "mount -t nfs -o hard,lookupcache=positive 10.0.0.2:/my runs /mnt/ladd",
        "chmod 777 /mnt/ladd",
    ]


@pytest.mark.parametrize("settings", [{"TPU_BUCKET": "b0"}, {"TPU_NFS": "h:/s"}])
def test_no_command_is_started_where_one_host_cannot_mount(cloud, settings):
    (cloud / "states").write_text("ACTIVE\n")
    fails = "gcsfuse 1" if "TPU_BUCKET" in settings else "mount 1"
    result = run(cloud, *COMMAND, FAILS=fails, **settings)
    assert result.returncode == 2
    assert "mounting /mnt/ladd on all hosts of pod has failed" in result.stderr
    assert not (cloud / "hosts" / "0" / "ladd.log").exists()


@pytest.mark.parametrize("broken", ["hosts/0/.local/bin/uv", "bin/tar"])
def test_no_command_is_started_where_the_checkout_cannot_be_installed(cloud, broken):
    (cloud / "states").write_text("ACTIVE\n")
    program(cloud / broken, "#!/bin/sh\necho no such luck >&2\nexit 7\n")
    result = run(cloud, *COMMAND)
    assert result.returncode == 2 and "no such luck" in result.stderr
    assert "installing the checkout on pod has failed: see above" in result.stderr
    assert not (cloud / "hosts" / "1" / "seen").exists()


def test_a_slice_that_cannot_be_asked_for_is_named(cloud):
    (cloud / "after_create").unlink()
    result = run(cloud, *COMMAND)
    assert result.returncode == 2 and "asking for pod has failed: see above" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ([], {}, "use run, logs, stop or delete"),
        (["start"], {}, "the action is 'start'"),
        (["run"], {}, "run needs a command"),
        (["stop", "now"], {}, "takes no argument"),
        (["run", "true"], {"TPU_ZONE": ""}, "TPU_ZONE is not set"),
        (["run", "true"], {"TPU_TYPE": ""}, "TPU_TYPE is not set"),
        (["run", "true"], {"TPU_BUCKET": "b0", "TPU_NFS": "h:/s"}, "both set: unset one of them"),
        (["run", "true"], {"TPU_BUCKET": "gs://b0"}, "'gs://b0': use NAME or NAME/FOLDER"),
    ],
)
def test_bad_arguments_are_one_sentence_and_create_nothing(cloud, arguments, settings, words):
    result = run(cloud, *arguments, **settings)
    assert result.returncode == 2 and words in result.stderr
    assert not calls(cloud, "create")
