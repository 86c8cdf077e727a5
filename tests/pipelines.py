"""Small random Stable Diffusion 3 pipelines in the directory layout of diffusers."""

from pathlib import Path

MERGES = (
    ("t", "h"), ("th", "e</w>"), ("o", "n"), ("i", "n"), ("e", "n</w>"), ("s", "e"), ("se", "v"),
    ("sev", "en</w>"), ("a", "r"), ("o", "v"), ("e", "r</w>"), ("ov", "er</w>"), ("re", "d</w>"),
    ("r", "e"), ("c", "a"), ("ca", "t</w>"),
)  # fmt: skip
CLIP_LENGTH = 77


def clip_tokenizer(pad_token="<|endoftext|>"):
    """Byte-level BPE with a few merges; the end token has the highest id, as in CLIP's."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair) for pair in MERGES]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=list(MERGES),
        pad_token=pad_token,
        model_max_length=CLIP_LENGTH,
    )


def t5_tokenizer():
    """Unigram pieces of one to a few letters, with T5's special tokens at its ids."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [chr(c) for c in range(33, 127)]
    pieces += [(piece, -5.0) for piece in ["▁", *letters]]
    pieces += [(piece, -3.0) for piece in ["▁a", "▁the", "▁seven", "on", "er", "▁red", "▁cat"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def randomize(model):
    """Moves all parameters of a torch module: norms and biases start where mistakes cancel."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def with_gradients(model):
    """The torch module with its gradients in place of its parameters, to be saved and loaded."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return model


def save_pipeline(
    directory,
    *,
    t5=True,
    dual_attention=(),
    qk_norm=False,
    dtype="float32",
    depth=2,
    latent_channels=16,
    family_sizes=False,
    seed=0,
):
    """Saves a random `StableDiffusion3Pipeline` whose parts are real but tiny, and returns it.

    Without T5, `from_pretrained` wants `text_encoder_3=None, tokenizer_3=None`.

    Args:
      directory: where to save; made if it is not there.
      t5: with the third text encoder and its tokenizer.
      dual_attention: blocks of the transformer with a second attention (SD3.5-Medium).
      qk_norm: RMSNorm on queries and keys (SD3.5).
      dtype: name of the dtype of all parameters.
      depth: blocks of the transformer.
      latent_channels: channels of the latents.
      family_sizes: heads and groups as wide as in all released models, which Stability's single
        files do not tell.
      seed: of the parameters.
    """
    import diffusers
    import torch
    import transformers

    torch.manual_seed(seed)
    clip_widths, clip_heads = ((64, 128), (1, 2)) if family_sizes else ((8, 12), (2, 2))
    width = max(32, sum(clip_widths))
    clip = dict(
        intermediate_size=16,
        max_position_embeddings=CLIP_LENGTH, bos_token_id=0, pad_token_id=1,
        # The released SD3 pipelines still carry this id, which means the highest one in a row.
        eos_token_id=2,
    )  # fmt: skip
    tokenizers = [clip_tokenizer(), clip_tokenizer(pad_token="!")]
    clips = [
        transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(
                **clip, vocab_size=len(tokenizers[0]), num_hidden_layers=layers, hidden_act=act,
                hidden_size=clip_width, projection_dim=clip_width, num_attention_heads=heads,
            )
        )
        for layers, act, clip_width, heads in zip(
            (2, 3), ("quick_gelu", "gelu"), clip_widths, clip_heads, strict=True
        )
    ]  # fmt: skip
    t5_tokens = t5_tokenizer() if t5 else None
    t5_encoder = None
    if t5:
        t5_encoder = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=len(t5_tokens), d_model=width, d_kv=6, d_ff=24, num_layers=2,
                num_heads=4, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=latent_channels, num_layers=depth,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=width,
        caption_projection_dim=32, pooled_projection_dim=sum(clip_widths),
        out_channels=latent_channels,
        pos_embed_max_size=16, dual_attention_layers=tuple(dual_attention),
        qk_norm="rms_norm" if qk_norm else None,
    )  # fmt: skip
    groups = 32 if family_sizes else 4
    vae = diffusers.AutoencoderKL(
        block_out_channels=(2 * groups, 4 * groups), layers_per_block=1,
        latent_channels=latent_channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=groups, use_quant_conv=False, use_post_quant_conv=False, sample_size=16,
        scaling_factor=1.5305, shift_factor=0.0609,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clips[0], tokenizer=tokenizers[0],
        text_encoder_2=clips[1], tokenizer_2=tokenizers[1],
        text_encoder_3=t5_encoder, tokenizer_3=t5_tokens,
    )  # fmt: skip
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        if getattr(pipeline, name) is not None:
            randomize(getattr(pipeline, name)).to(getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(Path(directory))
    return pipeline


def save_dinov2(directory, *, seed=0, **changes):
    """Saves a random tiny DINOv2, with registers where `num_register_tokens` says so; returns it.

    Args:
      directory: where to save; made if it is not there.
      seed: of the parameters.
      **changes: fields of its config.
    """
    import torch
    import transformers

    fields = dict(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=20,
        patch_size=4,
    )  # fmt: skip
    kind = transformers.Dinov2Model
    if "num_register_tokens" in changes:
        kind = transformers.Dinov2WithRegistersModel
    torch.manual_seed(seed)
    model = randomize(kind(kind.config_class(**fields | changes)))
    model.save_pretrained(Path(directory))
    return model
