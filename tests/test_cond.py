"""An array that nobody but the network knows travels from a shard to a sampled picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import BatchPlan, loader, put, widened
from ladd_jax.data.shard_sets import Layout
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.optimizers import Optimizer
from ladd_jax.training.program import batch_like

BUCKET, SIZE = Bucket(8, 4), 16
ARRAYS = {
    "latents": ArraySpec(("H", "W", 2)),
    "context": ArraySpec((tiny.T, tiny.CONTEXT)),
    "pooled": ArraySpec((tiny.POOLED,)),
    # Made up, such as a mask: SD3's transformer joins it to x_t.
    "channels": ArraySpec(("H", "W", 1), "float16"),
}
CONFIG = tiny.mmdit_config(depth=1, in_channels=3, out_channels=2)
OPTIMIZER = Optimizer(1e-2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Records with the third array, which the empty prompt does not have."""
    directory = tmp_path_factory.mktemp("shards")
    layout = Layout({BUCKET: SIZE}, 8, ARRAYS)
    rng = np.random.default_rng(0)
    for shard in missing_shards(directory, layout):
        records = []
        for i in range(shard.start, shard.stop):
            drawn = {
                name: rng.standard_normal(spec.shape_in(BUCKET)) for name, spec in ARRAYS.items()
            }
            records.append({"prompt": str(i), "latents": drawn.pop("latents"), "cond": drawn})
        write_shard(directory, layout, shard, records)
    null = {name: np.zeros(ARRAYS[name].shape) for name in ("context", "pooled")}
    finalize(directory, layout, null)
    return Shards(directory)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2}, jax.devices()[:2])


@pytest.fixture(scope="module")
def batch(shards, mesh):
    """The first batch of training, on its devices."""
    _, batch = next(loader(shards, BatchPlan(shards.sizes, 8, 0), 0, 1))
    placed = widened(put(batch, mesh), mesh)
    wanted = batch_like(shards.batch_shapes(8)[BUCKET], mesh)
    assert jax.tree.map(jnp.shape, placed) == jax.tree.map(jnp.shape, wanted)
    return placed


def without_channels(batch):
    """The same, with another third array."""
    return batch | {"cond": batch["cond"] | {"channels": 0 * batch["cond"]["channels"]}}


def flow_matching(shards):
    """(objective, state, frozen)"""
    # Half of the samples lose their text, which `null` holds, and keep their channels.
    target = FlowMatching(mmdit(CONFIG), OPTIMIZER, text_dropout=0.5)
    null = jax.tree.map(jnp.asarray, shards.null)
    params = tiny.random_params(target.model)
    return target, target.init(jax.random.PRNGKey(0), params), {"null": null}


def ladd(shards):
    """The same."""
    target = tiny.ladd(CONFIG, optimizer=OPTIMIZER, misaligned_share=0.3)
    return target, *tiny.ladd_state(target)


@pytest.mark.parametrize("make", [flow_matching, ladd])
def test_it_travels_from_the_shard_to_a_step_of_training(shards, batch, mesh, make):
    assert shards.null.keys() == {"context", "pooled"}
    assert batch["cond"]["channels"].shape == (8, 8, 4, 1)
    objective, state, frozen = make(shards)
    with jax.set_mesh(mesh):
        step = jax.jit(objective.step)
        after, metrics = step(state, frozen, batch)
        other, _ = step(state, frozen, without_channels(batch))
    assert all(np.isfinite(float(v)) for name, v in metrics.items() if name.startswith("loss"))
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    # Of each of four pixels of a patch: two channels of latents, then the one that is joined.
    kernel = moved["patch_embedding"]["kernel"].reshape(2, 2, 3, CONFIG.width)
    assert float(jnp.min(jnp.max(jnp.abs(kernel[:, :, 2]), axis=-1))) > 1e-3
    still = other.params["patch_embedding"]["kernel"] - state.params["patch_embedding"]["kernel"]
    assert float(jnp.max(jnp.abs(still.reshape(2, 2, 3, CONFIG.width)[:, :, 2]))) == 0


@pytest.mark.parametrize(
    "sampling",
    [Sampling.generator(2, 3.0, 1.0), Sampling.student(2, (1.0, 0.5))],
    ids=["guided", "student"],
)
def test_it_travels_from_the_shard_to_a_sampled_picture(shards, mesh, sampling):
    cond = shards.read(BUCKET, np.arange(3))["cond"]
    model = mmdit(CONFIG)
    generate = Sampler(model, shards.null, mesh, 4)
    params = tiny.random_params(model)

    def sample(cond):
        return generate(params, seeds(0, np.arange(3)), cond, (8, 4, 2), sampling)

    pictures = sample(cond)
    assert pictures.shape == (3, 8, 4, 2)
    changed = cond["channels"].copy()
    changed[1] += 1.0
    others = sample(cond | {"channels": changed})
    np.testing.assert_allclose(others[[0, 2]], pictures[[0, 2]], atol=1e-6)
    assert np.max(np.abs(others[1] - pictures[1])) > 1e-3
