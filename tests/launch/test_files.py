"""What `launch/` gives to shells, to Slurm and to Kubernetes is well-formed."""

import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from ladd_jax.parallel.stopping import EXIT_CODE

LAUNCH = Path(__file__).parents[2] / "launch"


def closed(required=(), **properties):
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items, **limits):
    return {"type": "array", "items": items, "minItems": 1, **limits}


NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"anyOf": [COUNT, {"type": "string", "pattern": "^[0-9.]+([EPTGMk]i?|m)?$"}]}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}

# What of the public API a job here may use: batch/v1 and core/v1 of Kubernetes 1.31, and
# jobset.x-k8s.io/v1alpha2. A misspelt field would be refused, or dropped, by the cluster only.
CONTAINER = closed(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(closed(("name",), name=TEXT, value=TEXT)),
    ports=listed(closed(("containerPort",), containerPort={"type": "integer", "maximum": 65535})),
    resources=closed((), requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=listed(closed(("name", "mountPath"), name=NAME, mountPath=TEXT)),
)
POD = closed(
    ("containers", "restartPolicy"),
    containers=listed(CONTAINER),
    nodeSelector=TEXTS,
    # A job's pod may not be restarted for ever, and a pod failure policy needs Never.
    restartPolicy={"enum": ["Never"]},
    terminationGracePeriodSeconds=COUNT,
    volumes=listed(
        closed(
            ("name",),
            name=NAME,
            persistentVolumeClaim=closed(("claimName",), claimName=NAME),
            csi=closed(
                ("driver",),
                driver={"const": "gcsfuse.csi.storage.gke.io"},
                readOnly={"type": "boolean"},
                volumeAttributes=TEXTS,
            ),
        )
    ),
    serviceAccountName=NAME,
)
POD_FAILURE = closed(
    ("action",),
    action={"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
    onPodConditions=listed(
        closed(("type", "status"), type=TEXT, status={"enum": ["True", "False", "Unknown"]})
    ),
    onExitCodes=closed(
        ("operator", "values"),
        containerName=NAME,
        operator={"enum": ["In", "NotIn"]},
        values=listed({"type": "integer"}),
    ),
)
JOB = closed(
    ("template",),
    parallelism=COUNT,
    completions=COUNT,
    backoffLimit=COUNT,
    podFailurePolicy=closed(("rules",), rules=listed(POD_FAILURE, maxItems=20)),
    template=closed(("spec",), metadata=closed((), annotations=TEXTS, labels=TEXTS), spec=POD),
)
RULE = closed(
    ("action",),
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={
        "enum": [
            "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
            "RestartJobAndIgnoreMaxRestarts",
        ]
    },
    onJobFailureReasons=listed(
        {
            "enum": [
                "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
                "MaxFailedIndexesExceeded", "PodFailurePolicy",
            ]
        },
        uniqueItems=True,
    ),
    targetReplicatedJobs=listed(NAME),
)  # fmt: skip
METADATA = closed(("name",), name=NAME, annotations=TEXTS, labels=TEXTS)
JOBSET = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=METADATA,
    spec=closed(
        ("replicatedJobs",),
        failurePolicy=closed((), maxRestarts=COUNT, rules=listed(RULE)),
        replicatedJobs=listed(
            closed(
                ("name", "template"),
                name=NAME,
                replicas=COUNT,
                template=closed(("spec",), spec=JOB),
            )
        ),
        suspend={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
    ),
)
ACCOUNT = closed(
    ("apiVersion", "kind", "metadata"),
    apiVersion={"const": "v1"},
    kind={"const": "ServiceAccount"},
    metadata=METADATA,
)


@pytest.fixture
def documents():
    return list(yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text()))


def test_shellcheck_has_nothing_to_say():
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    assert len(scripts) >= 3
    shellcheck = Path(sys.executable).parent / "shellcheck"
    result = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_jobset_is_of_the_public_api(documents):
    account, jobset = documents
    jsonschema.validate(account, ACCOUNT)
    jsonschema.validate(jobset, JOBSET)
    wrong = {**jobset, "spec": {**jobset["spec"], "failurePolicies": {}}}
    with pytest.raises(jsonschema.ValidationError, match="failurePolicies"):
        jsonschema.validate(wrong, JOBSET)


def test_the_jobset_has_a_pod_for_every_host_of_its_slice(documents):
    _, jobset = documents
    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    x, y, z = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == x * y * z // chips
    # One pod that fails ends the job, which the JobSet then starts as a whole.
    assert job["backoffLimit"] == 0
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert volume["name"] == mount["name"]
    workdir = container["args"][-1].removeprefix("--workdir=")
    assert workdir.startswith(mount["mountPath"] + "/")


def test_the_jobset_mounts_a_bucket_as_the_hosts_of_a_slice_do(documents):
    account, jobset = documents
    (slice_,) = jobset["spec"]["replicatedJobs"]
    template = slice_["template"]["spec"]["template"]
    pod = template["spec"]
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    (volume,) = pod["volumes"]
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    script = (LAUNCH / "tpu_pod.sh").read_text()
    # Whose the files are is left to the driver.
    flags = script[script.index("sudo gcsfuse") : script.index("-o allow_other")]
    assert {f"--{option}" for option in options} == set(re.findall(r"--\S+", flags))


def test_a_share_can_take_the_place_of_the_bucket(documents):
    lines = (LAUNCH / "gke_jobset.yaml").read_text().splitlines()
    (first,) = (i for i, line in enumerate(lines) if line.strip() == "# - name: runs")
    (volume,) = yaml.safe_load("\n".join(line.replace("# ", "", 1) for line in lines[first:]))
    _, jobset = documents
    (slice_,) = jobset["spec"]["replicatedJobs"]
    pod = slice_["template"]["spec"]["template"]["spec"]
    assert volume["name"] == pod["volumes"][0]["name"]
    jsonschema.validate({**pod, "volumes": [volume]}, POD)


def test_slurm_starts_the_command_once_for_each_gpu(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "memory $XLA_PYTHON_CLIENT_MEM_FRACTION" "$@"\n')
    srun.chmod(0o755)
    script = LAUNCH / "slurm.sbatch"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "8"}
    result = subprocess.run(
        ["bash", script, "python", "-m", "ladd_jax.main", "--workdir=a b"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = result.stdout.splitlines()
    assert said[0] == "memory 0.95"
    assert said[-4:] == ["python", "-m", "ladd_jax.main", "--workdir=a b"]
    assert "--kill-on-bad-exit=1" in said
    options = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    for words, directory in ((["true"], tmp_path / ".venv"), ([], tmp_path)):
        result = subprocess.run(
            ["bash", script, *words], cwd=directory, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 2 and result.stderr.startswith("error: no ")


@pytest.mark.parametrize(("code", "queued"), [(75, ["requeue 7"]), (3, []), (0, [])])
def test_slurm_queues_a_job_again_that_was_told_to_stop_and_no_other(tmp_path, code, queued):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    # Its options, then the command.
    programs = {
        "srun": 'while [[ $1 == -* ]]; do shift; done; exec "$@"',
        "scontrol": f'echo "$@" >>{tmp_path}/calls',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7"
    }  # fmt: skip
    result = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "bash", "-c", f"exit {code}"],
        cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == code
    calls = tmp_path / "calls"
    assert (calls.read_text().splitlines() if calls.exists() else []) == queued
    assert not list(tmp_path.glob(".ladd-stopped-*"))


def test_the_jobset_starts_a_job_again_that_was_told_to_stop(documents):
    _, jobset = documents
    (slice_,) = jobset["spec"]["replicatedJobs"]
    job = slice_["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    rule, _ = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [EXIT_CODE]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (restart,) = jobset["spec"]["failurePolicy"]["rules"]
    assert restart["onJobFailureReasons"] == ["PodFailurePolicy"]
