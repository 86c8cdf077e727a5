"""`plan` says what a step needs, and refuses what cannot be."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import sd3_turbo
from ladd_jax.config.fields import typed
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.autoencoder import AutoencoderConfig
from ladd_jax.models.sd3.encoder_flops import decoder_flops
from ladd_jax.planning.plan import Options, chosen_buckets, largest_batch, parse_mesh, plan
from ladd_jax.planning.topology import cuda_plugin

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/sd3_turbo.py:size=medium,resolution=256"


NARROW = (
    "--config.model.width=128",
    "--config.model.num_heads=2",
    "--config.heads.channels=16",
)


def run(*arguments):
    command = [sys.executable, "-m", "ladd_jax.plan", CONFIG, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def planned(tmp_path, *arguments):
    """The command's result and its JSON, of one bucket on a small slice."""
    path = tmp_path / "plan.json"
    result = run(
        "--topology=v5e:2x2",
        "--batch=8",
        "--buckets=32x32",
        "--nolargest",
        f"--json={path}",
        *arguments,
    )
    assert result.returncode == 0, result.stderr
    return result, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("text", "words"),
    [("fspd=4", "'fspd' is not a mesh axis: did you mean fsdp"), ("data=two", "data is 'two'")],
)
def test_a_mesh_that_is_misspelt_is_named(text, words):
    with pytest.raises(UserError, match=words):
        parse_mesh(text, {"data": 1, "fsdp": -1, "tensor": 1})


def test_a_mesh_that_does_not_fit_the_slice_is_one_sentence_and_exit_code_2(tmp_path):
    result = run("--topology=v5e:2x2", "--mesh=fsdp=3", f"--json={tmp_path / 'plan.json'}")
    assert result.returncode == 2, result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "data=1 x fsdp=3 x tensor=1 does not fill 4 devices" in sentence or "libtpu" in sentence
    assert "Traceback" not in result.stderr and not list(tmp_path.iterdir())


def test_without_the_cuda_plugin_a_gpus_plan_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = typed(sd3_turbo.get_config("size=medium,resolution=256"))
    with pytest.raises(UserError, match=r"pip install ladd_jax\[cuda\]"):
        plan(config, Options(topology="gpu:80"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topology": ""}, "--topology is needed, such as v5e:4x8"),
        ({"topology": "v5e:2x2", "utilisation": 0.0}, "--utilisation=0.0 is not a share"),
        ({"topology": "v5e:2x2", "utilisation": 1.5}, "--utilisation=1.5 is not a share"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(UserError, match=words):
        Options(**options)


def test_a_bucket_that_the_config_does_not_have_is_named():
    config = typed(sd3_turbo.get_config("size=medium,resolution=256"))
    assert len(chosen_buckets(config, ())) == len(config.data.buckets)
    with pytest.raises(UserError, match="--buckets names 9x9, which is not in data.buckets: "):
        plan(config, Options(topology="v5e:2x2", buckets=["9x9"]))


def test_memory_is_a_line_in_the_batch():
    points = {16: 10.0, 32: 14.0}
    assert largest_batch(points, 20.0, 16) == 48
    assert largest_batch(points, 7.0, 16) == 0


@pytest.mark.slow
def test_of_two_slices_only_sums_go_over_the_network_between_them(tmp_path):
    pytest.importorskip("libtpu")
    path = tmp_path / "plan.json"
    result = run(
        "--topology=v5e:2x2",
        "--mesh=data=2,fsdp=4,slices=2",
        "--batch=8",
        "--buckets=32x32",
        "--nolargest",
        f"--json={path}",
        "--config.model.depth=1",
        *NARROW,
    )
    assert result.returncode == 0, result.stderr
    assert "v5e:2x2 x 2 slices: 8 x v5e" in result.stdout and "GiB over DCN" in result.stdout
    plan = json.loads(path.read_text())
    assert (plan["chips"], plan["slices"]) == (8, 2)
    (bucket,) = plan["buckets"]
    out = [item for item in bucket["collectives"] if "slices" in item["axes"]]
    sums = sum(item["dcn_bytes"] for item in out if item["kind"] == "all-reduce")
    sent = sum(item["dcn_bytes"] for item in bucket["collectives"])
    # The rest are single numbers of samples.
    assert 0 < sums <= sent < 1.001 * sums
    assert any(item["of"] == "parameters" for item in out)
    assert bucket["roofline_s"]["dcn"] == pytest.approx(sent / 3.125e9)


@pytest.mark.slow
def test_the_step_is_compiled_for_a_slice_that_is_not_here(tmp_path):
    pytest.importorskip("libtpu")
    result, plan = planned(
        tmp_path,
        "--config.model.depth=2",
        *NARROW,
    )
    assert "32x32 (256 x 256 pixels)" in result.stdout and "compile 32x32" in result.stderr
    assert (plan["chips"], plan["mesh"]) == (4, {"data": 1, "fsdp": 4, "tensor": 1})
    (bucket,) = plan["buckets"]
    hbm = bucket["hbm"]
    assert hbm["fits"] and hbm["capacity"] == 16 * 2**30
    assert hbm["free_fraction"] == pytest.approx(
        1 - (hbm["arguments"] + hbm["temporaries"]) / hbm["capacity"]
    )
    # Narrow as it is, heads and embeddings weigh more than they do at any real size.
    assert 1.0 < bucket["compiled_flops"] / bucket["model_flops"] < 2.0
    assert not bucket["not_counted"]
    gathered = [item for item in bucket["collectives"] if item["kind"] == "all-gather"]
    assert any(item["of"] == "parameters" for item in gathered)
    assert all(item["axes"] == ["fsdp"] for item in bucket["collectives"])
    assert set(bucket["roofline_s"]) == {"compute", "hbm", "network"}


def test_a_critic_in_pixels_is_planned_without_weights(tmp_path):
    pytest.importorskip("libtpu")
    arguments = ("--config.model.depth=1", "--config.distil.objective=add", "--nocompile")
    result, plan = planned(tmp_path, *arguments, *NARROW)
    assert "ADD, " in result.stdout and "0.02 B of the dino, 0.05 B of the decoder" in result.stdout
    assert (plan["objective"], plan["dino"]["depth"]) == ("add", 12)
    (cost,) = [stage for stage in plan["run"]["stages"] if stage["stage"] == "distil"]
    # The decoder, which goes forward and backward on fakes and forward on real samples.
    decoded = plan["batch"] * 10_000 * 3 * decoder_flops(AutoencoderConfig(), 32, 32)
    assert 1 < cost["model_flops"] / decoded < 1.2


@pytest.mark.slow
def test_the_step_of_adapters_is_planned_and_sums_their_gradients_alone(tmp_path):
    pytest.importorskip("libtpu")
    _, plan = planned(
        tmp_path,
        "--config.model.depth=2",
        "--config.distil.lora.rank=4",
        "--config.model.param_dtype=bfloat16",
        *NARROW,
    )
    (bucket,) = plan["buckets"]
    assert 1.0 < bucket["compiled_flops"] / bucket["model_flops"] < 2.0
    moved = {
        kind: sum(item["bytes"] for item in bucket["collectives"] if item["kind"] == kind)
        for kind in ("all-gather", "all-reduce", "reduce-scatter")
    }
    # All parameters are gathered, and adapters and heads have gradients.
    assert 0 < moved["all-reduce"] + moved["reduce-scatter"] < moved["all-gather"] / 4


@pytest.mark.slow
@pytest.mark.skipif(cuda_plugin() is None, reason="XLA's compiler for GPUs is not installed")
def test_the_step_is_compiled_for_gpus_that_are_not_here(tmp_path):
    path = tmp_path / "plan.json"
    result = run(
        "--topology=gpu:80x2",
        "--batch=4",
        "--buckets=32x32",
        f"--json={path}",
        "--config.model.depth=2",
        *NARROW,
    )
    assert result.returncode == 0, result.stderr
    assert "gpu:80x2: 2 x H100, mesh data=1 x fsdp=2 x tensor=1" in result.stdout
    plan = json.loads(path.read_text())
    (bucket,) = plan["buckets"]
    assert not bucket["not_counted"] and bucket["hbm"]["fits"]
    assert 1.0 < bucket["compiled_over_model_flops"] < 2.0
    kinds = {item["kind"]: item["axes"] for item in bucket["collectives"]}
    assert kinds["all-gather"] == ["fsdp"] and "all-reduce" in kinds
    assert plan["largest_batch"]["batch"] > 4
