"""A transformer in Stability AI's single files, such as `sd3_medium.safetensors`.

Such files come without a config: the architecture follows from names and shapes. Names may begin
with a prefix, most often `model.diffusion_model.`; then text encoders and autoencoder may be in the
same file.
"""

from ladd_jax.models.base import Params
from ladd_jax.models.sd3.network_layout import Deciding, network_layout, patches, rms_norm
from ladd_jax.models.sd3.transformer import MMDiTConfig
from ladd_jax.weights.layout import linear

PREFIX = "model.diffusion_model."
"""The prefix that this package, like most others, writes before all names."""

MARK = "x_embedder.proj.weight"
"""A tensor that only these networks have."""

POSITIONS = "pos_embed"
"""The position table `[1, S^2, D]`."""

DECIDING = Deciding(
    layer=r"joint_blocks\.(\d+)\.(x_block\.attn2\.)?",
    patches=MARK,
    positions=POSITIONS,
    norm="joint_blocks.0.x_block.attn.ln_q.weight",
    out="final_layer.linear.weight",
    context="context_embedder.weight",
    pooled="y_embedder.mlp.0.weight",
    hidden="joint_blocks.0.x_block.mlp.fc1.weight",
)
"""The tensors that the architecture is inferred from."""


def layout(config: MMDiTConfig, shapes: Params) -> Params:
    """The tensors behind a network, as a tree of `weights.layout`.

    Args:
      config: architecture of the network.
      shapes: its `Model.shapes`, those of a network that is cut too.
    """
    top = {
        "patch_embedding": patches("x_embedder.proj", config.patch),
        "context_embedding": linear("context_embedder"),
        "time_mlp": {"up": linear("t_embedder.mlp.0"), "down": linear("t_embedder.mlp.2")},
        "pooled_mlp": {"up": linear("y_embedder.mlp.0"), "down": linear("y_embedder.mlp.2")},
        "final_modulation": linear("final_layer.adaLN_modulation.1"),
        "final": linear("final_layer.linear"),
    }
    return network_layout(config, shapes, top, _block)


def _block(layer: int, last: bool) -> Params:
    def stream(name: str) -> Params:
        return {
            "modulation": linear(f"{name}.adaLN_modulation.1"),
            "qkv": linear(f"{name}.attn.qkv"),
            "norm_q": rms_norm(f"{name}.attn.ln_q"),
            "norm_k": rms_norm(f"{name}.attn.ln_k"),
            "out": linear(f"{name}.attn.proj"),
            "qkv2": linear(f"{name}.attn2.qkv"),
            "norm_q2": rms_norm(f"{name}.attn2.ln_q"),
            "norm_k2": rms_norm(f"{name}.attn2.ln_k"),
            "out2": linear(f"{name}.attn2.proj"),
            "mlp": {"up": linear(f"{name}.mlp.fc1"), "down": linear(f"{name}.mlp.fc2")},
        }

    del last  # The last block has the same names and chunks as the others.
    block = f"joint_blocks.{layer}"
    return {"image": stream(f"{block}.x_block"), "context": stream(f"{block}.context_block")}
