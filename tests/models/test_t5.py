"""The encoder of T5 against Hugging Face's."""

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import tiny

from ladd_jax.models.sd3.encoder_weights import load_t5
from ladd_jax.models.t5 import relative_buckets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def reference(seed):
    rng = np.random.default_rng(seed)
    config = transformers.T5Config(
        vocab_size=40, d_model=int(rng.integers(4, 24)), d_kv=int(rng.integers(2, 9)),
        d_ff=int(rng.integers(5, 30)), num_layers=int(rng.integers(1, 5)),
        num_heads=int(rng.integers(1, 5)), feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=int(rng.choice([8, 16, 32])),
        relative_attention_max_distance=int(rng.choice([20, 64, 128])),
    )  # fmt: skip
    torch.manual_seed(seed)
    return pipelines.randomize(transformers.T5EncoderModel(config))


LENGTHS = (1, 33, 150, 77)
MORE = (2, 7, 12, 40, 50, 90, 128, 256)


@pytest.mark.parametrize(
    ("seed", "length"),
    [
        *enumerate(LENGTHS),
        *(pytest.param(4 + i, n, marks=pytest.mark.slow) for i, n in enumerate(MORE)),
    ],
)
def test_it_is_hugging_faces_t5_with_its_gradients(seed, length, tmp_path):
    model = reference(seed)
    model.save_pretrained(tmp_path / "model")
    # With padding (0), which nothing masks.
    ids = np.random.default_rng(seed).integers(0, 40, (1 + seed % 2, length))
    ids[-1, (length + 1) // 2 :] = 0
    wanted = model(torch.tensor(ids)).last_hidden_state
    wanted.backward(wanted.detach().cos())
    pipelines.with_gradients(model).save_pretrained(tmp_path / "gradients")
    _, network, params = load_t5(tmp_path / "model", jnp.float32)
    _, _, wanted_gradients = load_t5(tmp_path / "gradients", jnp.float32)

    @jax.jit
    def run(params):
        context, vjp = jax.vjp(lambda params: network(params, jnp.asarray(ids)), params)
        return context, *vjp(jnp.cos(context))

    context, gradients = run(params)
    assert context.dtype == jnp.float32
    assert tiny.max_difference(context, wanted.detach().numpy()) < 1e-5
    # The tokens' table among them, which is what comes in.
    assert tiny.gradient_difference(gradients, wanted_gradients) < 1e-4


@pytest.mark.parametrize("buckets", [8, 16, 32, 64])
@pytest.mark.parametrize("max_distance", [33, 64, 100, 128, 256])
def test_every_distance_falls_in_the_bucket_of_hugging_faces_t5(buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    length = 300
    offset = torch.arange(length)[None] - torch.arange(length)[:, None]
    wanted = T5Attention._relative_position_bucket(offset, True, buckets, max_distance)
    np.testing.assert_array_equal(relative_buckets(length, buckets, max_distance), wanted)


def test_half_precision_stays_near_float32(tmp_path):
    reference(3).save_pretrained(tmp_path)
    ids = jnp.arange(24).reshape(2, 12)
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        _, network, params = load_t5(tmp_path, dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
        outputs.append(jax.jit(network.__call__)(params, ids))
    error = jnp.linalg.norm(outputs[1] - outputs[0]) / jnp.linalg.norm(outputs[0])
    assert 0 < float(error) < 0.03
