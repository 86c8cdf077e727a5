"""The text transformer against Hugging Face's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladd_jax.models.clip import CLIPTextConfig, clip_text


def hugging_face_params(model):
    """Our tree from the tensors of `CLIPTextModelWithProjection`."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    encoder = "text_model.encoder.layers"

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    heads, width = model.config.num_attention_heads, model.config.hidden_size
    blocks = {}
    for i in range(model.config.num_hidden_layers):
        parts = [dense(f"{encoder}.{i}.self_attn.{n}_proj") for n in "qkv"]
        blocks[i] = {
            "norm1": norm(f"{encoder}.{i}.layer_norm1"),
            "norm2": norm(f"{encoder}.{i}.layer_norm2"),
            "qkv": {
                "kernel": np.stack([p["kernel"] for p in parts], 1).reshape(width, 3, heads, -1),
                "bias": np.stack([p["bias"] for p in parts]).reshape(3, heads, -1),
            },
            "out": dense(f"{encoder}.{i}.self_attn.out_proj"),
            "mlp": {
                "up": dense(f"{encoder}.{i}.mlp.fc1"), "down": dense(f"{encoder}.{i}.mlp.fc2"),
            },
        }  # fmt: skip
    return {
        "tokens": state["text_model.embeddings.token_embedding.weight"],
        "positions": state["text_model.embeddings.position_embedding.weight"],
        "blocks": blocks,
        "final_norm": norm("text_model.final_layer_norm"),
        "projection": {"kernel": state["text_projection.weight"].T},
    }


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_is_hugging_faces_clip(activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=40, max_position_embeddings=9, projection_dim=12,
        hidden_act=activation, eos_token_id=49,
    )  # fmt: skip
    reference = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(**fields, bos_token_id=48, pad_token_id=49)
    ).eval()
    ids = np.array([[1, 5, 7, 49, 49, 49], [3, 2, 8, 9, 4, 49]])
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), output_hidden_states=True)
    params = jax.tree.map(jnp.asarray, hugging_face_params(reference))
    context, pooled = clip_text(CLIPTextConfig(**fields))(params, jnp.asarray(ids))
    np.testing.assert_allclose(context, wanted.hidden_states[-2].numpy(), atol=1e-5)
    np.testing.assert_allclose(pooled, wanted.text_embeds.numpy(), atol=1e-5)
