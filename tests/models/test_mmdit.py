"""The transformer's structure: shapes, grids, streams, scan."""

import dataclasses
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ladd_jax.models.sd3.positions import position_embedding
from ladd_jax.models.sd3.transformer import REMAT_POLICIES, mmdit


def forward(model, params, *args, **kwargs):
    return jax.jit(lambda params, *args: model(params, *args, **kwargs))(params, *args)


def inputs(height=8, width=4, size=2):
    batch = tiny.batch(height=height, width=width, size=size)
    t = jnp.linspace(0.2, 0.9, size)
    return batch["latents"], t, batch["cond"]


CONFIGS = {
    "sd3": {},
    "sd3.5": {"qk_norm": True},
    "dual": {"qk_norm": True, "dual_attention": (0, 1)},
    "dual everywhere": {"dual_attention": (0, 1, 2)},
    "depth 1": {"depth": 1},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_the_velocity_has_the_shape_of_the_latents_in_every_bucket(changes):
    model = mmdit(tiny.mmdit_config(**{"depth": 3, **changes}))
    params = tiny.random_params(model)
    for height, width in ((4, 4), (4, 8), (10, 2)):
        v = jax.eval_shape(model, params, *inputs(height, width))
        assert v.shape == (2, height, width, 2) and v.dtype == jnp.float32
    v = forward(model, params, *inputs(10, 2))
    assert bool(jnp.all(jnp.isfinite(v))) and float(jnp.std(v)) > 0


def test_a_tap_sees_the_image_tokens_after_every_block():
    config = tiny.mmdit_config(depth=4, dual_attention=(0, 1))
    model = mmdit(config)
    params = tiny.random_params(model)
    v, (layers, tokens) = forward(model, params, *inputs(), tap=lambda layer, x: (layer, x))
    assert layers.tolist() == [0, 1, 2, 3]
    assert tokens.shape == (4, 2, 8, config.width)
    np.testing.assert_allclose(v, forward(model, params, *inputs()), atol=1e-6)
    for i in range(3):
        assert float(jnp.max(jnp.abs(tokens[i + 1] - tokens[i]))) > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "full"},
        {"remat": "attention", "depth": 4, "dual_attention": (0, 1), "qk_norm": True},
        {"remat": "none"},
        {"remat": "dots", "cut": 2},
        {"remat": "dots_attention", "depth": 4, "unroll": 2},
        {"remat": "attention", "dtype": jnp.bfloat16},
        {"depth": 1},
    ],
    ids=str,
)
def test_the_way_back_from_features_is_the_gradient_of_a_call_with_a_tap(changes):
    config = tiny.mmdit_config(**{"depth": 3, **changes})
    model = mmdit(config)
    params = tiny.random_params(model)
    latents, *rest = inputs()

    def plain(latents):
        return model(params, latents, *rest, tap=lambda _, tokens: tokens)

    @jax.jit
    def ways(latents):
        (v, tokens), vjp = jax.vjp(plain, latents)
        tokens_bar = jnp.cos(tokens)
        theirs = v, tokens, vjp((jax.tree.map(jnp.zeros_like, v), tokens_bar))[0]
        v, features, back = model.features_vjp(params, latents, *rest)
        assert (v is None) == bool(config.cut)
        # Nobody reads the tokens before the first block.
        ours = v, features[1:], back(jnp.pad(tokens_bar, ((1, 0), (0, 0), (0, 0), (0, 0))))
        return [pair for pair in zip(ours, theirs, strict=True) if pair[0] is not None]

    tolerance = 1e-5 if config.dtype == jnp.float32 else 2e-2
    for ours, theirs in ways(latents):
        assert ours.dtype == theirs.dtype
        assert tiny.max_difference(*(x.astype(jnp.float32) for x in (ours, theirs))) < tolerance


def test_the_tokens_before_the_first_block_have_a_cotangent_too():
    model = mmdit(tiny.mmdit_config(depth=1))
    params = tiny.random_params(model)
    latents, *rest = inputs()

    @jax.jit
    def cotangents():
        _, features, back = model.features_vjp(params, latents, *rest)
        zero = jnp.zeros_like(features)
        return back(zero), back(zero.at[0].set(1.0))

    nothing, something = cotangents()
    assert float(jnp.max(jnp.abs(nothing))) == 0
    assert float(jnp.max(jnp.abs(something))) > 1e-3


def stacks_of_tokens(function, *args, shape):
    """Arrays of several blocks' image tokens that loops give, anywhere in a program."""
    found = []

    def look(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                found.extend(v.aval for v in equation.outvars if v.aval.shape[1:] == shape)
            jax.tree.map(look, list(jax.extend.core.jaxprs_in_params(equation.params)))

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
# Without rematerialisation the input is kept normalised, which the features are not.
@pytest.mark.parametrize("remat", sorted(REMAT_POLICIES.keys() - {"none"}))
def test_features_are_held_once(remat, dtype):
    config = tiny.mmdit_config(depth=4, remat=remat, dtype=dtype)
    model = mmdit(config)
    params = tiny.random_params(model)
    latents, *rest = inputs()

    def twice(latents):
        tap = {"tap": lambda _, tokens: tokens}
        (v, tokens), vjp = jax.vjp(lambda x: model(params, x, *rest, **tap), latents)
        return vjp((jnp.zeros_like(v), tokens))

    def once(latents):
        _, features, back = model.features_vjp(params, latents, *rest)
        return back(features)

    stacks = functools.partial(stacks_of_tokens, shape=(2, 8, config.width))
    assert len(stacks(twice, latents)) == len(stacks(once, latents)) + 1
    if remat == "full":
        (features,) = stacks(once, latents)
        assert features.shape[0] == config.depth + 1 and features.dtype == dtype


def test_unrolled_and_scanned_blocks_are_the_same_function():
    config = tiny.mmdit_config(depth=4)
    params = tiny.random_params(mmdit(config))
    unrolled = mmdit(dataclasses.replace(config, unroll=3))
    np.testing.assert_allclose(
        forward(mmdit(config), params, *inputs()), forward(unrolled, params, *inputs()), atol=1e-5
    )


def test_every_input_matters():
    model = mmdit(tiny.mmdit_config())
    params = tiny.random_params(model)
    leaves, structure = jax.tree.flatten(inputs())
    program = jax.jit(lambda *leaves: model(params, *jax.tree.unflatten(structure, leaves)))
    assert len(leaves) == 4
    for i in range(4):
        changed = list(leaves)
        changed[i] = changed[i] * 0.5
        assert tiny.max_difference(program(*changed), program(*leaves)) > 1e-3


def test_each_sample_is_on_its_own():
    model = mmdit(tiny.mmdit_config())
    params = tiny.random_params(model)
    args = inputs(size=4)
    alone = forward(model, params, *jax.tree.map(lambda array: array[1:2], args))
    np.testing.assert_allclose(forward(model, params, *args)[1:2], alone, atol=1e-5)


def test_patches_keep_their_place():
    # With zero text and identical patches only positions tell tokens apart, so moving the content
    # of one patch moves what comes out of it.
    config = tiny.mmdit_config(depth=1)
    model = mmdit(config)
    params = tiny.random_params(model)
    latents, t, cond = inputs(4, 4, 1)
    marked = latents.at[:, 0:2, 2:4].add(5.0)
    program = jax.jit(lambda latents: model(params, latents, t, cond))
    change = jnp.abs(program(marked) - program(latents))
    patches = change.reshape(2, 2, 2, 2, 2).max(axis=(1, 3, 4))
    assert np.unravel_index(np.argmax(patches), (2, 2)) == (0, 1)


def test_positions_are_the_centre_of_the_table():
    config = tiny.mmdit_config(position_table=16, position_base=8)
    whole = position_embedding(16, 16, config)
    np.testing.assert_allclose(position_embedding(4, 6, config), whole[6:10, 5:11], atol=1e-6)
    # First half: column; second half: row.
    np.testing.assert_allclose(whole[3, :, :16], whole[9, :, :16])
    np.testing.assert_allclose(whole[:, 3, 16:], whole[:, 9, 16:])


def test_the_last_block_has_no_text_output():
    model = mmdit(tiny.mmdit_config())
    last = model.shapes["last_block"]["context"]
    assert "mlp" not in last and "out" not in last
    assert last["modulation"]["kernel"].shape[1] == 2
    assert model.shapes["blocks_0"]["context"]["modulation"]["kernel"].shape[2] == 6


def test_dual_blocks_have_nine_chunks_and_stand_in_their_own_run():
    model = mmdit(tiny.mmdit_config(depth=5, dual_attention=(0, 1)))
    assert model.shapes["blocks_0"]["image"]["modulation"]["kernel"].shape[:3:2] == (2, 9)
    assert model.shapes["blocks_2"]["image"]["modulation"]["kernel"].shape[:3:2] == (2, 6)


def test_a_fresh_network_predicts_zero():
    model = mmdit(tiny.mmdit_config())
    params = jax.jit(model.init)(jax.random.PRNGKey(0))
    assert float(jnp.max(jnp.abs(forward(model, params, *inputs())))) == 0


def test_half_precision_stays_near_float32():
    config = tiny.mmdit_config(qk_norm=True)
    params = tiny.random_params(mmdit(config))
    half = mmdit(dataclasses.replace(config, dtype=jnp.bfloat16))
    exact = forward(mmdit(config), params, *inputs())
    assert half.shapes["final"]["kernel"].dtype == jnp.float32
    error = jnp.linalg.norm(forward(half, params, *inputs()) - exact) / jnp.linalg.norm(exact)
    assert float(error) < 0.05


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mmdit(tiny.mmdit_config(num_heads=3)), "width 32 is not divisible by num_heads 3"),
        (lambda: tiny.mmdit_config(remat="all"), "'all' is not one of none, full, attention"),
        (lambda: tiny.mmdit_config(dual_attention=(2,)), "block 2 of a depth of 2"),
        (
            lambda: jax.eval_shape(
                mmdit(tiny.mmdit_config()), mmdit(tiny.mmdit_config()).shapes, *inputs(5, 4)
            ),
            "5x4 are not divisible by the patch of 2: use 4x4",
        ),
        (
            lambda: jax.eval_shape(
                mmdit(tiny.mmdit_config()), mmdit(tiny.mmdit_config()).shapes, *inputs(32, 4)
            ),
            "16x2 patches exceeds the position table of 8x8",
        ),
    ],
)
def test_a_size_that_can_not_be_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_networks_of_one_configuration_share_nothing_that_can_be_changed():
    first, second = (mmdit(tiny.mmdit_config()) for _ in range(2))
    before = jax.tree.leaves((second.shapes, second.axes))
    # A family of another package may build on a network by changing it.
    first.bind = first.shapes["final"] = first.axes["final"] = None
    assert jax.tree.leaves((second.shapes, second.axes)) == before
    assert callable(second.bind)
