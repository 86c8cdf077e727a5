"""The text transformer against Hugging Face's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import tiny

from ladd_jax.models.clip import clip_text
from ladd_jax.models.sd3.encoder_weights import load_clip_text

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

END = 49


def reference(seed, **changes):
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    fields = dict(
        vocab_size=50, hidden_size=heads * int(rng.integers(2, 9)), num_attention_heads=heads,
        num_hidden_layers=int(rng.integers(1, 4)), intermediate_size=int(rng.integers(5, 40)),
        max_position_embeddings=int(rng.integers(6, 12)), projection_dim=int(rng.integers(4, 20)),
        bos_token_id=48, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(**fields | changes)
    return pipelines.randomize(transformers.CLIPTextModelWithProjection(config))


def rows(length, padding):
    """Rows with an end after one, some and all other tokens."""
    ids = np.random.default_rng(length).integers(1, 48, (3, length))
    for row, end in zip(ids, (1, length // 2, length - 1), strict=True):
        row[end] = END
        row[end + 1 :] = padding
    return ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 12))]
)
def test_it_is_hugging_faces_clip_with_its_gradients(seed, activation, tmp_path):
    model = reference(seed, hidden_act=activation)
    model.save_pretrained(tmp_path / "model")
    # bigG's tokenizer pads with another token than the end, CLIP-L's with the end.
    ids = rows(6, END if activation == "quick_gelu" else 0)[: 1 + seed % 3]
    output = model(torch.tensor(ids), output_hidden_states=True)
    wanted = output.hidden_states[-2], output.text_embeds
    torch.autograd.backward(wanted, [tensor.detach().cos() for tensor in wanted])
    pipelines.with_gradients(model).save_pretrained(tmp_path / "gradients")
    _, network, params = load_clip_text(tmp_path / "model", jnp.float32)
    _, _, wanted_gradients = load_clip_text(tmp_path / "gradients", jnp.float32)

    @jax.jit
    def run(params):
        outputs, vjp = jax.vjp(lambda params: network(params, jnp.asarray(ids)), params)
        return outputs, *vjp(jax.tree.map(jnp.cos, outputs))

    outputs, gradients = run(params)
    for ours, theirs in zip(outputs, wanted, strict=True):
        assert tiny.max_difference(ours, theirs.detach().numpy()) < 1e-5
    # The tokens' table among them, which is what comes in.
    assert tiny.gradient_difference(gradients, wanted_gradients) < 1e-4


def test_configs_of_before_2023_read_the_pooled_vector_at_the_highest_id(tmp_path):
    model = reference(7, eos_token_id=2)
    model.save_pretrained(tmp_path)
    ids = rows(6, 0)
    ids[0, 0] = 2
    with torch.no_grad():
        wanted = model(torch.tensor(ids)).text_embeds.numpy()
    config, network, params = load_clip_text(tmp_path, jnp.float32)
    assert config.eos_token_id is None
    literal = clip_text(dataclasses.replace(config, eos_token_id=2))
    pooled, at_the_id = jax.jit(lambda ids: (network(params, ids)[1], literal(params, ids)[1]))(ids)
    assert tiny.max_difference(pooled, wanted) < 1e-5
    assert tiny.max_difference(at_the_id, wanted) > 1e-3
