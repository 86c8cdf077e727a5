"""Random diffusers transformers that tests compare with ours."""

import contextlib

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

SMALL = dict(
    depth=2, heads=2, head_width=8, patch=2, in_channels=3, out_channels=3, context_width=6,
    pooled_width=5, table=6, sample_size=8, qk_norm=False, dual=(),
)  # fmt: skip


def transformer(seed=0, **changes):
    """A small `SD3Transformer2DModel` without zeros or ones among its parameters."""
    fields = SMALL | changes
    width = fields["heads"] * fields["head_width"]
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=fields["sample_size"],
        patch_size=fields["patch"],
        in_channels=fields["in_channels"],
        num_layers=fields["depth"],
        attention_head_dim=fields["head_width"],
        num_attention_heads=fields["heads"],
        joint_attention_dim=fields["context_width"],
        caption_projection_dim=width,
        pooled_projection_dim=fields["pooled_width"],
        out_channels=fields["out_channels"],
        pos_embed_max_size=fields["table"],
        dual_attention_layers=fields["dual"],
        qk_norm="rms_norm" if fields["qk_norm"] else None,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            # Rounding 1000 t moves its sinusoids by 3e-5 already: they must not decide everything.
            gain = 0.1 if "timestep_embedder" in name else 1.2
            parameter.copy_(torch.randn(parameter.shape) * (gain / fan_in**0.5))
    return model.eval()


def save(model, folder, **options):
    """Writes the transformer as diffusers does."""
    model.save_pretrained(folder, **options)
    return folder


def as_numpy(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def stability_state(model, prefix="model.diffusion_model."):
    """The transformer's tensors under Stability's names, as their own model would store them."""
    state = dict(model.state_dict())
    last = model.config.num_layers - 1

    def swap(tensor):
        return torch.cat(tensor.chunk(2)[::-1])

    moved = {"pos_embed": state["pos_embed.pos_embed"]}
    for suffix in ("weight", "bias"):
        for ours, theirs in (
            ("x_embedder.proj", "pos_embed.proj"),
            ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
            ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
            ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
            ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
            ("context_embedder", "context_embedder"),
            ("final_layer.linear", "proj_out"),
        ):
            moved[f"{ours}.{suffix}"] = state[f"{theirs}.{suffix}"]
        moved[f"final_layer.adaLN_modulation.1.{suffix}"] = swap(state[f"norm_out.linear.{suffix}"])
        for i in range(last + 1):
            theirs, ours = f"transformer_blocks.{i}.", f"joint_blocks.{i}."

            def put(name, *sources, ours=ours, theirs=theirs, suffix=suffix):
                with contextlib.suppress(KeyError):
                    parts = [state[f"{theirs}{source}.{suffix}"] for source in sources]
                    moved[f"{ours}{name}.{suffix}"] = torch.cat(parts)

            put("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v")
            put("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
            put("x_block.attn2.qkv", "attn2.to_q", "attn2.to_k", "attn2.to_v")
            put("x_block.attn.proj", "attn.to_out.0")
            put("context_block.attn.proj", "attn.to_add_out")
            put("x_block.attn2.proj", "attn2.to_out.0")
            put("x_block.attn.ln_q", "attn.norm_q")
            put("x_block.attn.ln_k", "attn.norm_k")
            put("context_block.attn.ln_q", "attn.norm_added_q")
            put("context_block.attn.ln_k", "attn.norm_added_k")
            put("x_block.attn2.ln_q", "attn2.norm_q")
            put("x_block.attn2.ln_k", "attn2.norm_k")
            put("x_block.mlp.fc1", "ff.net.0.proj")
            put("x_block.mlp.fc2", "ff.net.2")
            put("context_block.mlp.fc1", "ff_context.net.0.proj")
            put("context_block.mlp.fc2", "ff_context.net.2")
            put("x_block.adaLN_modulation.1", "norm1.linear")
            put("context_block.adaLN_modulation.1", "norm1_context.linear")
        context = f"joint_blocks.{last}.context_block.adaLN_modulation.1.{suffix}"
        moved[context] = swap(moved[context])
    return {prefix + name: tensor.contiguous() for name, tensor in moved.items()}


def inputs(model, seed=0, batch=2, rows=2, columns=3, tokens=5):
    """Float32 latents `[B, H, W, C]`, t `[B]` in [0, 1], context, pooled."""
    config = model.config
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    p = config.patch_size
    return (
        normal(batch, rows * p, columns * p, config.in_channels),
        rng.uniform(0, 1, batch).astype(np.float32),
        normal(batch, tokens, config.joint_attention_dim),
        normal(batch, config.pooled_projection_dim),
    )


def velocity(model, latents, t, context, pooled):
    """The transformer on our inputs, which may be tensors: `[B, H, W, C]`."""
    latents, t, context, pooled = (torch.as_tensor(x) for x in (latents, t, context, pooled))
    v = model(
        hidden_states=latents.permute(0, 3, 1, 2),
        encoder_hidden_states=context,
        pooled_projections=pooled,
        timestep=1000 * t,
    ).sample
    return v.permute(0, 2, 3, 1)


def released_positions(side, width):
    """The table of Esser et al.: 256/S of the place counted from a centred grid of S = 1024."""
    places = (np.arange(side) - (side - 64) / 2) * 256 / 1024
    angles = places[:, None] * 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.empty((side, side, width))
    table[..., : width // 2] = axis
    table[..., width // 2 :] = axis[:, None]
    return torch.tensor(table.reshape(1, side * side, width), dtype=torch.float32)
