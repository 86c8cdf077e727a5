"""Adam with less to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import SIZES, Run

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.optimizers import Optimizer, round_stochastically

PARAMS = {"w": jnp.linspace(-2, 2, 64).reshape(8, 8), "b": jnp.ones(8)}


def gradients(steps):
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), "float32"), PARAMS)
        for _ in range(steps)
    ]


def assert_same_bits(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def moments(optimizer):
    """State of Adam before the first step."""
    state = optimizer.build().init(PARAMS)
    return (state[-1] if optimizer.clip_norm else state)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"beta1": 0.0},
        {"beta1": 0.0, "clip_norm": 1.0},
        {"beta1": 0.0, "clip_norm": 0.5, "weight_decay": 0.1, "warmup_steps": 3, "decay_steps": 9},
        {"clip_norm": 0.5, "weight_decay": 0.1},
    ],
    ids=[
        "no first moment",
        "no first moment, clipped",
        "no first moment, all else",
        "both moments",
    ],
)
def test_the_updates_are_those_of_adamw_in_every_bit(changes):
    ours = Optimizer(0.1, **changes)
    theirs = optax.adamw(
        ours.schedule(), b1=ours.beta1, b2=ours.beta2, eps=ours.epsilon,
        weight_decay=ours.weight_decay,
    )  # fmt: skip
    if ours.clip_norm:
        theirs = optax.chain(optax.clip_by_global_norm(ours.clip_norm), theirs)

    def loss(params, x):
        return 30 * jnp.mean(jnp.tanh(x @ params["w"] + params["b"]) ** 2)

    def train(optimizer):
        def step(params, state, x):
            updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
            return optax.apply_updates(params, updates), state

        # As a training step is compiled, with what the compiler then fuses and simplifies.
        step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 3})
        params, state, ways = PARAMS, optimizer.init(PARAMS), []
        for gradient in gradients(6):
            params, state = step(params, state, gradient["w"])
            ways.append(params)
        return ways

    assert_same_bits(train(ours.build()), train(theirs))


def test_a_first_moment_that_is_the_gradient_is_not_kept():
    count = len(jax.tree.leaves(PARAMS))
    assert len(jax.tree.leaves(moments(Optimizer(0.1)))) == 1 + 2 * count
    assert len(jax.tree.leaves(moments(Optimizer(0.1, beta1=0.0)))) == 1 + count


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_have_their_own_dtype_whatever_that_of_the_parameters(dtype):
    optimizer = Optimizer(0.1, moment_dtype=dtype).build()
    for own in (jnp.float32, jnp.bfloat16):
        params = optax.tree.cast(PARAMS, own)
        state = optimizer.init(params)
        _, after = jax.jit(optimizer.update)(params, state, params)
        for adam in (state[0], after[0]):
            assert {leaf.dtype for leaf in jax.tree.leaves((adam.mu, adam.nu))} == {
                jnp.dtype(dtype)
            }


@pytest.mark.parametrize("beta2", [0.99, 0.999])
def test_a_second_moment_in_bfloat16_follows_a_smaller_gradient_down(beta2):
    def kept(dtype, rounded=False):
        optimizer = Optimizer(0.1, beta1=0.0, beta2=beta2, moment_dtype=dtype).build()
        state = optimizer.init(jnp.zeros(512))
        scales = jnp.concatenate([jnp.ones(400), jnp.full(int(3 / (1 - beta2)), 0.1)])

        def step(state, scale):
            _, state = optimizer.update(jnp.full(512, scale), state, jnp.zeros(512))
            if rounded:
                state = jax.tree.map(
                    lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if x.ndim else x, state
                )
            return state, state[0].nu[0]

        state, way = jax.jit(lambda state: jax.lax.scan(step, state, scales))(state)
        return np.asarray(state[0].nu, np.float32), np.asarray(way, np.float32)

    wide, way = kept("float32")
    assert way[399] > 5 * wide[0]
    narrow, _ = kept("bfloat16")
    assert np.mean(narrow) == pytest.approx(wide[0], rel=0.02)
    assert np.max(np.abs(narrow / wide[0] - 1)) < 0.3
    # What it is up against: to nearest, a decay of .999 never moves it.
    if beta2 == 0.999:
        nearest, _ = kept("float32", rounded=True)
        assert abs(nearest[0] / wide[0] - 1) > 1


def test_rounding_is_to_a_neighbour_and_right_in_the_mean():
    value = 1 + 2**-7 * 0.3  # Bfloat16 has 1 and 1 + 2**-7.
    rounded = round_stochastically(jnp.full(20_000, value), jax.random.key(0))
    assert rounded.dtype == jnp.bfloat16
    rounded = np.asarray(rounded, np.float32)
    assert set(rounded) == {1.0, 1.0 + 2**-7}
    assert np.mean(rounded == 1.0) == pytest.approx(0.7, abs=0.02)


def test_what_bfloat16_has_is_not_rounded():
    values = jnp.asarray([0.0, -0.0, 1.0, -1.5, 2.0**100, 2.0**-100, jnp.inf, -jnp.inf, jnp.nan])
    for seed in range(5):
        rounded = round_stochastically(values, jax.random.key(seed)).astype(jnp.float32)
        np.testing.assert_array_equal(rounded, values)


def test_rounding_depends_on_the_count_alone():
    optimizer = Optimizer(0.1, moment_dtype="bfloat16").build()
    (gradient,) = gradients(1)
    state = optimizer.init(PARAMS)
    first, again = (optimizer.update(gradient, state, PARAMS)[1] for _ in range(2))
    assert_same_bits(first, again)
    later = (state[0]._replace(count=state[0].count + 1), *state[1:])
    other = optimizer.update(gradient, later, PARAMS)[1]
    assert np.any(np.asarray(other[0].nu["w"] != first[0].nu["w"]))


@pytest.mark.slow
def test_a_state_with_less_in_it_is_laid_saved_and_restored(tmp_path):
    optimizer = Optimizer(0.1, beta1=0.0, clip_norm=1.0, moment_dtype="bfloat16")
    run = Run(make_mesh(SIZES), optimizer=optimizer, heads_optimizer=optimizer)
    state = run.fresh()
    second = state.optimizer[1][0].nu["blocks_0"]["image"]["mlp"]["up"]["kernel"]
    kernel = state.params["blocks_0"]["image"]["mlp"]["up"]["kernel"]
    assert second.dtype == jnp.bfloat16 and second.sharding == kernel.sharding
    assert not second.sharding.is_fully_replicated
    random = jax.random.normal(jax.random.key(0), second.shape).astype(second.dtype)
    state.optimizer[1][0].nu["blocks_0"]["image"]["mlp"]["up"]["kernel"] = jax.device_put(
        random, second.sharding
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    restored = checkpoints.restore(run.abstract())
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same_bits(restored, state)
