"""The teacher's samples on disk are those that the config asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ladd_jax import networks, stages
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.generate import seeds
from ladd_jax.diffusion.samplers import euler, guided, linear_sigmas, sample_noise
from ladd_jax.encode import encode
from ladd_jax.models.mmdit import mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.synthesize import synthesize


@pytest.fixture(scope="module")
def config():
    config = digits.get_config()
    config.data.update(dict(buckets=("8x8",), examples=32, records_per_shard=32))
    config.model.update(dict(depth=1, width=16))
    # The first update moves the output layer away from zero, the next ones what it depends on.
    config.pretrain.update(dict(steps=3, batch_size=8))
    config.pretrain.optimizer.update(dict(learning_rate=0.1, warmup_steps=0, decay_steps=0))
    config.synthesize.update(
        dict(samples=10, batch_size=4, records_per_shard=4, steps=3, guidance=2.5, shift=1.5)
    )
    return config


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("synthesize")
    encode(config, workdir)
    stages.pretrain(config, workdir)
    synthesize(config, workdir)
    return workdir


def test_samples_have_the_guidance_steps_and_shift_of_the_config(config, workdir):
    shards = Shards(stages.synthesized(workdir))
    (bucket,) = shards.buckets
    read = shards.read(bucket, np.arange(10))
    teacher = stages.load_teacher(config, workdir, make_mesh(config.mesh))
    model = mmdit(networks.transformer_config(config))
    null = (jnp.asarray(shards.null_context), jnp.asarray(shards.null_pooled))

    def sample(guidance, steps, shift):
        def velocity(*args):
            return model(teacher, *args)

        noise = sample_noise(
            jnp.asarray(seeds(config.seed, bucket.height, bucket.width, np.arange(10))),
            0,
            (8, 8, 1),
        )
        field = guided(velocity, read["context"], read["pooled"], *null, guidance)
        return jax.jit(lambda: euler(field, noise, linear_sigmas(steps, shift)))()

    np.testing.assert_allclose(read["latents"], sample(2.5, 3, 1.5), atol=1e-4)
    for other in ((1.0, 3, 1.5), (2.5, 4, 1.5), (2.5, 3, 1.0)):
        assert np.max(np.abs(read["latents"] - sample(*other))) > 1e-2


def test_a_stage_that_was_stopped_ends_in_the_same_records(config, workdir):
    target = stages.synthesized(workdir)
    (bucket,) = Shards(target).buckets
    before = Shards(target).read(bucket, np.arange(10))
    # As if it had been killed after two of three shards.
    (target / "null_text.npz").unlink()
    (lost,) = target.rglob("*.array_record-00001-of-00003")
    kept = {path: path.stat().st_mtime_ns for path in target.rglob("*-of-00003") if path != lost}
    lost.unlink()
    synthesize(config, workdir)
    after = Shards(target).read(bucket, np.arange(10))
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert after["key"] == before["key"] and after["prompt"] == before["prompt"]
    for name in ("latents", "context", "pooled"):
        np.testing.assert_array_equal(after[name], before[name])
