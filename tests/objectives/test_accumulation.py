"""A batch in micro-batches makes the update of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from runs import SIZES, Run, batches

from ladd_jax.objectives.accumulation import accumulate, join, split
from ladd_jax.objectives.flow_matching import FlowMatching
from ladd_jax.parallel.mesh import batch_sharding, make_mesh, parameter_shardings
from ladd_jax.training.optimizers import Optimizer

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


def test_every_sample_is_in_one_micro_batch():
    batch = {"a": jnp.arange(24).reshape(12, 2), "b": jnp.arange(12)}
    micro = split(batch, 3)
    assert micro["a"].shape == (3, 4, 2)
    np.testing.assert_array_equal(micro["b"][1], [1, 4, 7, 10])
    whole = join(micro)
    assert all(bool(jnp.all(whole[name] == batch[name])) for name in batch)
    with pytest.raises(ValueError, match="12 is not divisible by accumulation 5: .* such as 15"):
        split(batch, 5)


@pytest.mark.parametrize("sizes", [SIZES, {"data": 8}, {"fsdp": 4, "tensor": 2}])
def test_samples_stay_on_their_devices(sizes):
    mesh = make_mesh(sizes)
    rows = batch_sharding(mesh)
    x = jax.device_put(jnp.arange(32.0 * 3).reshape(32, 3), rows)
    with jax.set_mesh(mesh):
        there = jax.jit(lambda x: split(x, 4)).lower(x).compile()
        micro = there(x)
        back = jax.jit(join).lower(micro).compile()
        whole = back(micro)
    for program in (there, back):
        assert not [name for name in COLLECTIVES if name in program.as_text()]
    assert micro.sharding.is_equivalent_to(
        NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp"))), micro.ndim
    )
    assert whole.sharding.is_equivalent_to(rows, whole.ndim)
    # Each device has of each micro-batch as many rows, and of its own.
    for shard in micro.addressable_shards:
        (own,) = [s.data for s in x.addressable_shards if s.device == shard.device]
        assert set(np.ravel(shard.data)) == set(np.ravel(own))


def test_the_gradient_is_summed_in_float32_where_parameters_are_kept():
    mesh = make_mesh(SIZES)
    model = tiny.ladd(tiny.mmdit_config(param_dtype=jnp.bfloat16)).student
    shardings = parameter_shardings(mesh, model.shapes, model.axes)

    def part(samples):
        ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), model.shapes)
        gradient = jax.tree.map(lambda leaf: leaf * jnp.mean(samples).astype(leaf.dtype), ones)
        return gradient, jnp.mean(samples), samples

    # In bfloat16 512 + 1 is 512.
    x = jax.device_put(jnp.where(jnp.arange(8) % 2, 1.0, 512.0), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        gradient, mean, values = jax.jit(lambda x: accumulate(part, x, 2, model))(x)
    assert float(mean) == 256.5
    np.testing.assert_array_equal(values, x)
    for leaf, sharding in zip(jax.tree.leaves(gradient), jax.tree.leaves(shardings), strict=True):
        assert leaf.dtype == jnp.float32 and np.all(leaf == 256.5)
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def assert_updates_agree(ours, theirs, start):
    """Leaf by leaf, by the update: the start's rounding is all that it can be off by."""
    moved = 0.0
    paths = jax.tree_util.tree_leaves_with_path(jax.device_get(theirs))
    for (path, wanted), made, old in zip(
        paths, *map(jax.tree.leaves, jax.device_get((ours, start))), strict=True
    ):
        largest = np.max(np.abs(wanted - old))
        np.testing.assert_allclose(
            made - old, wanted - old, rtol=1e-3, atol=1e-3 * largest + 3e-7,
            err_msg=jax.tree_util.keystr(path),
        )  # fmt: skip
        moved = max(moved, largest)
    assert moved > 1e-4


def assert_metrics_agree(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        (
            4,
            {"loss": "softplus", "same_renoise": False, "misaligned_share": 0.3,
             "distillation_weight": 2.5},
        ),
        (2, {"head_updates": 3, "hooked_blocks": (1,), "r1_gamma": 1e-2, "misaligned_share": 0.3}),
        (2, {"head_updates": 2, "r1_gamma": 1e-2, "r1_noise": 0.1, "loss": "relativistic"}),
    ],
    ids=["plain", "misaligned pairs", "several updates", "a penalty with noise"],
)  # fmt: skip
def test_updated_heads_make_the_update_and_the_metrics_of_one_batch(count, changes):
    optimizers = {"optimizer": tiny.PROPORTIONAL, "heads_optimizer": tiny.PROPORTIONAL}
    whole, several = (tiny.ladd(accumulation=n, **optimizers, **changes) for n in (1, count))
    state, teacher = tiny.ladd_state(whole)
    batch = tiny.share_a_prompt(tiny.batch())
    one, metrics = tiny.step(whole)(state, teacher, batch)
    many, several_metrics = tiny.step(several)(state, teacher, batch)
    for name in ("params", "heads", "ema"):
        assert_updates_agree(*(getattr(s, name) for s in (many, one, state)))
    assert_metrics_agree(several_metrics, metrics)
    assert np.isnan([float(v) for name, v in metrics.items() if "t_hat" in name]).any()


@pytest.mark.slow
def test_heads_of_before_the_step_are_those_that_the_generator_sees():
    optimizers = {"optimizer": tiny.PROPORTIONAL, "heads_optimizer": tiny.PROPORTIONAL}
    changes = {"misaligned_share": 0.3, "r1_gamma": 1e-2}
    objective = tiny.ladd(accumulation=2, accumulated_heads="before", **optimizers, **changes)
    state, teacher = tiny.ladd_state(objective)
    after, metrics = tiny.step(objective)(state, teacher, tiny.batch())
    # The update of the heads is that of one batch; the student's is what heads that stay give.
    whole, _ = tiny.step(tiny.ladd(**optimizers, **changes))(state, teacher, tiny.batch())
    held = tiny.ladd(optimizer=tiny.PROPORTIONAL, heads_optimizer=Optimizer(0.0), **changes)
    still, wanted = tiny.step(held)(state, teacher, tiny.batch())
    assert_updates_agree(after.heads, whole.heads, state.heads)
    assert_updates_agree(after.params, still.params, state.params)
    assert_metrics_agree(metrics, wanted)
    assert tiny.max_difference(whole.params, still.params) > 1e-4


@pytest.mark.slow
def test_a_penalty_that_is_not_due_is_left_out_of_all_micro_batches():
    objective = tiny.ladd(accumulation=2, accumulated_heads="before", r1_gamma=1.0, r1_interval=2)
    state, teacher = tiny.ladd_state(objective)
    step = tiny.step(objective)
    state, first = step(state, teacher, tiny.batch())
    _, second = step(state, teacher, tiny.batch())
    assert float(first["r1"]) > 0 and np.isnan(float(second["r1"]))
    assert np.isfinite(float(second["loss/discriminator"]))


@pytest.mark.slow
def test_eight_devices_in_micro_batches_make_the_update_of_one_in_one():
    _, batch = next(batches(0, 1))
    results = []
    for run in (Run(), Run(make_mesh(SIZES), accumulation=2)):
        with jax.set_mesh(run.mesh):
            step = jax.jit(run.objective.step, out_shardings=(run.shardings, None))
            results.append(jax.device_get(step(run.fresh(), run.frozen, batch)))
    (one, metrics), (eight, eight_metrics) = results
    for name in ("optimizer", "heads_optimizer"):
        a, b = (getattr(state, name)[0].mu for state in (eight, one))
        assert tiny.gradient_difference(a, b) < 1e-3
    assert_metrics_agree(eight_metrics, metrics)


def test_flow_matching_in_micro_batches_makes_the_update_of_one():
    null = {"context": jnp.zeros((tiny.T, tiny.CONTEXT)), "pooled": jnp.zeros(tiny.POOLED)}
    model = tiny.ladd().student
    params = tiny.random_params(model)
    results = []
    for count in (1, 4):
        objective = FlowMatching(model, tiny.PROPORTIONAL, accumulation=count)
        state = objective.init(jax.random.PRNGKey(0), params)
        results.append(tiny.step(objective)(state, {"null": null}, tiny.batch()))
    (one, metrics), (four, four_metrics) = results
    assert_updates_agree(four.params, one.params, params)
    assert_metrics_agree(four_metrics, metrics)
    with pytest.raises(ValueError, match="accumulation is 0"):
        FlowMatching(model, tiny.PROPORTIONAL, accumulation=0)


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["updated", "before"])
def test_micro_batches_need_less_memory(heads):
    batch = tiny.batch(size=16, height=16, width=16)

    def temporaries(count):
        objective = tiny.ladd(accumulation=count, accumulated_heads=heads)
        state = jax.eval_shape(objective.init, jax.random.PRNGKey(0), objective.student.shapes)
        program = jax.jit(objective.step, donate_argnums=0)
        compiled = program.lower(
            state, {"teacher": objective.critic.teacher.shapes}, batch
        ).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.5 * temporaries(1)
