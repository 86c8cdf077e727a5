"""Arrays are stored in the form that their spec says, and come back as what they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladd_jax.data.array_specs import ArraySpec, text_spec
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError

BUCKET = Bucket(4, 6)


def there_and_back(spec, array):
    packed = spec.pack("context", spec.as_given(array))
    assert packed.keys() == spec.features("context", BUCKET).keys()
    for name, feature in spec.features("context", BUCKET).items():
        assert (packed[name].shape, packed[name].dtype) == (feature.shape, feature.np_dtype)
    out = spec.widen("context", packed)
    assert (out.shape, out.dtype) == (spec.shape_in(BUCKET), np.float32)
    # On the devices, for several at once.
    stored = {name: jnp.stack([jnp.asarray(part)] * 2) for name, part in packed.items()}
    for other in np.asarray(jax.jit(lambda parts: spec.widen("context", parts, jnp))(stored)):
        np.testing.assert_array_equal(other, out)
    assert sum(array.nbytes for array in packed.values()) == spec.bytes_in(BUCKET)
    return out


def with_blocks(seed=0):
    array = np.zeros((5, 8), np.float32)
    rng = np.random.default_rng(seed)
    array[:2, :3] = rng.standard_normal((2, 3))
    array[2:] = rng.standard_normal((3, 8))
    return array


BLOCKS = ((2, 3), (3, 8))


@pytest.mark.parametrize("blocks", [(), BLOCKS], ids=["whole", "blocks"])
def test_float32_comes_back_unchanged(blocks):
    array = with_blocks()
    np.testing.assert_array_equal(
        there_and_back(ArraySpec((5, 8), "float32", blocks), array), array
    )


def test_blocks_leave_out_the_zeros_beside_them():
    whole, cut = ArraySpec((5, 8), "float16"), ArraySpec((5, 8), "float16", BLOCKS)
    assert (whole.bytes_in(BUCKET), cut.bytes_in(BUCKET)) == (2 * 40, 2 * (6 + 24))
    array = with_blocks()
    np.testing.assert_array_equal(there_and_back(cut, array), array.astype("f2"))


def test_a_block_that_holds_nothing_is_not_stored():
    array = with_blocks()
    array[2:] = 0
    spec = ArraySpec((5, 8), "float32", ((2, 3), (3, 0)))
    assert spec.bytes_in(BUCKET) == 24
    np.testing.assert_array_equal(there_and_back(spec, array), array)


def test_a_value_outside_of_the_blocks_is_not_lost_without_a_word():
    array = with_blocks()
    array[1, 7] = 1
    with pytest.raises(ValueError, match="context is not zero outside of its blocks"):
        ArraySpec((5, 8), "float32", BLOCKS).pack("context", array)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 6e4]), min_size=5, max_size=5),
    blocks=st.sampled_from([(), BLOCKS]),
)
def test_int8_is_within_half_a_level_of_each_token(seed, scales, blocks):
    array = with_blocks(seed) * np.array(scales, np.float32)[:, None]
    found = there_and_back(ArraySpec((5, 8), "int8", blocks), array)
    level = np.abs(array).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - array) <= 0.501 * level).all()
    assert not found[level[:, 0] == 0].any()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 6e4]), min_size=3, max_size=3),
)
def test_int8_is_within_half_a_level_of_each_channel_of_a_latent(seed, scales):
    array = np.random.default_rng(seed).standard_normal((4, 6, 3)).astype(np.float32)
    array *= np.array(scales, np.float32)
    found = there_and_back(ArraySpec(("H", "W", 3), "int8"), array)
    level = np.abs(array).max(axis=(0, 1)) / 127
    assert (np.abs(found - array) <= 0.501 * level).all()
    assert not found[..., level == 0].any()


def test_a_vector_of_the_whole_prompt_is_float16_where_tokens_are_int8():
    assert text_spec((8,), "int8").dtype == "float16"
    assert text_spec((5, 8), "int8").dtype == "int8"
    assert text_spec((8,), "float32").dtype == "float32"


def test_sides_of_the_bucket_are_those_of_latents():
    array = np.random.default_rng(0).standard_normal((4, 6, 2)).astype("f2")
    np.testing.assert_array_equal(there_and_back(ArraySpec(("H", "W", 2), "float16"), array), array)


@pytest.mark.parametrize("blocks", [((2, 3),), ((2, 3), (3, 9)), ((6, 1),)])
def test_blocks_of_another_shape_are_refused(blocks):
    with pytest.raises(UserError, match="do not make an array of shape"):
        ArraySpec((5, 8), "float32", blocks)
