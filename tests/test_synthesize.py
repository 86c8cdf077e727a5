"""The data generator's samples on disk are those that the config asks for."""

import dataclasses
import multiprocessing
import os
import random
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import quick_flags

from configs import digits
from ladd_jax.config import architectures, typed
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.samplers import euler, guided, linear_sigmas, sample_noise
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.encode import encode
from ladd_jax.stages.flow_matching import pretrain
from ladd_jax.stages.load import load_generator
from ladd_jax.stages.sets import synthesized
from ladd_jax.stages.synthesize import noise_keys, synthesize


@pytest.fixture(scope="module")
def config():
    config = digits.get_config()
    config.data.update(dict(buckets=("8x8",), examples=32, records_per_shard=32))
    config.model.update(dict(depth=1, width=16))
    # The first update moves the output layer away from zero, the next ones what it depends on.
    config.pretrain.update(dict(steps=3, batch_size=8))
    config.pretrain.optimizer.update(dict(learning_rate=0.1, warmup_steps=0, decay_steps=0))
    config.synthesize.update(
        dict(
            samples=10, batch_size=4, records_per_shard=2, sampler="euler", steps=3, guidance=2.5,
            shift=1.5,
        )
    )  # fmt: skip
    return typed(config)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("synthesize")
    encode(config, workdir)
    pretrain(config, workdir)
    synthesize(config, workdir)
    return workdir


def test_samples_have_the_guidance_steps_and_shift_of_the_config(config, workdir):
    shards = Shards(synthesized(workdir))
    (bucket,) = shards.buckets
    read = shards.read(bucket, np.arange(10))
    generator = load_generator(config, workdir, make_mesh(config.mesh.sizes))
    model = mmdit(architectures.student_architecture(config))
    null = jax.tree.map(jnp.asarray, shards.null)

    def sample(guidance, steps, shift):
        def velocity(*args):
            return model(generator, *args)

        # As training has it for pairs of noise and sample.
        noise = sample_noise(noise_keys(config, bucket, np.arange(10)), 0, (8, 8, 1))
        field = guided(velocity, read["cond"], null, guidance)
        return jax.jit(lambda: euler(field, noise, linear_sigmas(steps, shift)))()

    np.testing.assert_allclose(read["latents"], sample(2.5, 3, 1.5), atol=1e-4)
    for other in ((1.0, 3, 1.5), (2.5, 4, 1.5), (2.5, 3, 1.0)):
        assert np.max(np.abs(read["latents"] - sample(*other))) > 1e-2


def test_a_stage_that_was_stopped_ends_in_the_same_records(config, workdir):
    target = synthesized(workdir)
    (bucket,) = Shards(target).buckets
    before = Shards(target).read(bucket, np.arange(10))
    # As if it had been killed after four of five shards.
    (target / "null_text.npz").unlink()
    (lost,) = target.rglob("*.array_record-00001-of-00005")
    kept = {path: path.stat().st_mtime_ns for path in target.rglob("*-of-00005") if path != lost}
    lost.unlink()
    synthesize(config, workdir)
    after = Shards(target).read(bucket, np.arange(10))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert after["key"] == before["key"] and after["prompt"] == before["prompt"]
    for name in ("latents", "cond"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])


# Processes as real as any, forked from one that has done the imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ladd_jax.stages.synthesize"])


def _host(config, workdir, address, count, index):
    # Read when JAX first looks for devices, which its import does not.
    os.environ["XLA_FLAGS"] = quick_flags(devices=1)
    if count > 1:
        jax.distributed.initialize(address, count, index)
    synthesize(config, workdir)


def start_hosts(config, workdir, count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        PROCESSES.Process(target=_host, args=(config, workdir, address, count, index))
        for index in range(count)
    ]
    for host in hosts:
        host.start()
    return hosts


@pytest.mark.slow
def test_killed_at_any_moment_and_on_another_number_of_hosts_no_record_is_lost_or_twice(
    config, tmp_path
):
    # Many shards, so that a life which has written one has most of them before it.
    stage, count_of_shards = dataclasses.replace(config.synthesize, samples=100), 50
    config = dataclasses.replace(config, synthesize=stage)
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    for stage in (encode, pretrain, synthesize):
        stage(config, uninterrupted)
    killed.mkdir()
    for name in ("encoded", "pretrain"):
        (killed / name).symlink_to(uninterrupted / name)
    target = synthesized(killed)

    def shards():
        return {path.name for path in target.rglob("latents-*")}

    draw = random.Random(0)
    seen, left = set(), []
    # In the first lives another shard is waited for, then the end comes within moments.
    for count, waits in ((1, True), (2, True), (1, False), (3, False)):
        hosts = start_hosts(config, killed, count)
        before, deadline = len(shards()), time.monotonic() + 120
        while waits and len(shards()) == before and any(host.is_alive() for host in hosts):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05 if waits else 4))
        for host in hosts:
            host.kill()
        for host in hosts:
            host.join()
        assert seen <= shards()
        seen = shards()
        left.append(len(seen))
    # Some life ended in the middle of the work.
    assert any(0 < count < count_of_shards for count in left), left
    hosts = start_hosts(config, killed, 2)
    for host in hosts:
        host.join()
    assert [host.exitcode for host in hosts] == [0, 0]
    interrupted, whole = Shards(target), Shards(synthesized(uninterrupted))
    assert interrupted.sizes == whole.sizes
    (bucket,) = whole.buckets
    ours, theirs = (s.read(bucket, np.arange(100)) for s in (interrupted, whole))
    assert ours["key"] == theirs["key"] and ours["prompt"] == theirs["prompt"]
    np.testing.assert_allclose(ours["latents"], theirs["latents"], atol=1e-5)
    for name, array in theirs["cond"].items():
        np.testing.assert_allclose(ours["cond"][name], array, atol=1e-5)
