"""Encoders in single files, which hold what a pipeline's folder holds."""

import re

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import safetensors.torch
from diffusers import AutoencoderKL

from ladd_jax.models.families import family
from ladd_jax.weights import load_autoencoder, load_mmdit, load_text_encoders

# From diffusers' names to those of the autoencoder's first release.
LATENT_DIFFUSION = (
    (r"up_blocks\.(\d)", lambda match: f"up.{1 - int(match[1])}"),
    (r"down_blocks\.", "down."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"resnets\.", "block."),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    (r"(down|up)samplers\.0", r"\1sample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
)


def first_release(state):
    moved = {}
    for name, tensor in state.items():
        attention = "attentions" in name and "group_norm" not in name and tensor.ndim == 2
        for pattern, replacement in LATENT_DIFFUSION:
            name = re.sub(pattern, replacement, name)
        moved[f"first_stage_model.{name}"] = tensor[..., None, None] if attention else tensor
    return moved


def whole(pipeline):
    """All of a pipeline's tensors, under the names of a single file."""
    state = reference.stability_state(pipeline.transformer)
    state |= first_release(pipeline.vae.state_dict())
    for name, part in (("clip_l", ""), ("clip_g", "_2"), ("t5xxl", "_3")):
        for key, tensor in getattr(pipeline, f"text_encoder{part}").state_dict().items():
            if "embed_tokens" not in key and "position_ids" not in key:
                state[f"text_encoders.{name}.transformer.{key}"] = tensor
    return {name: tensor.contiguous() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    state = whole(pipelines.save_pipeline(root / "folder", family_sizes=True, qk_norm=True))
    safetensors.torch.save_file(state, root / "all.safetensors")
    return root / "folder", root / "all.safetensors", state


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_autoencoder_is_that_of_the_folder(saved):
    folder, file, _ = saved
    (single, params), (network, expected) = load_autoencoder(file), load_autoencoder(folder)
    assert single.config == network.config
    assert_same(params, expected)


def test_diffusers_finds_the_same_autoencoder(saved):
    folder, file, _ = saved
    theirs = AutoencoderKL.from_single_file(
        str(file), config=str(folder), subfolder="vae", local_files_only=True
    ).state_dict()
    expected = AutoencoderKL.from_pretrained(folder, subfolder="vae").state_dict()
    assert theirs.keys() == expected.keys()
    assert all((theirs[name] == expected[name]).all() for name in theirs)


def test_the_text_encoders_are_those_of_the_folder(saved):
    folder, file, _ = saved
    options = {"t5_length": 9, "batch": 2}
    expected = load_text_encoders(folder, jnp.float32, **options)
    single = load_text_encoders(file, jnp.float32, tokenizers=folder, **options)
    assert_same(single.params, expected.params)
    prompts = ["a red cat", "seven"]
    assert_same(single.encode(prompts), expected.encode(prompts))


def test_a_run_reads_a_single_file_with_the_tokenizers_of_a_pipeline(saved):
    folder, file, _ = saved
    sd3 = family("sd3")
    sd3.check_text(file, sd3.open_weights(file, jnp.float32).config, 77 + 9, str(folder))
    sd3.check_autoencoder(file, 16)
    options = (jnp.float32, None, 77 + 9, 2)
    encoder = sd3.load_text_encoder(file, *options, str(folder))
    expected = sd3.load_text_encoder(folder, *options, "")
    assert_same(encoder.encode(["a red cat"]), expected.encode(["a red cat"]))


def test_t5_may_be_left_out(saved, tmp_path):
    folder, _, state = saved
    file = tmp_path / "clips.safetensors"
    safetensors.torch.save_file({k: v for k, v in state.items() if "t5xxl" not in k}, file)
    encoder = load_text_encoders(file, jnp.float32, tokenizers=folder, t5_length=9, batch=1)
    context = encoder.encode(["seven"])["context"]
    assert context.shape == (1, 77 + 9, 4096) and not context[:, 77:].any()


def test_one_file_gives_the_transformer_too(saved):
    folder, file, _ = saved
    assert_same(load_mmdit(file, jnp.float32).params, load_mmdit(folder, jnp.float32).params)


def test_a_single_file_without_tokenizers_says_where_they_come_from(saved):
    with pytest.raises(ValueError, match="holds no tokenizers: give tokenizers="):
        load_text_encoders(saved[1])


def test_a_file_of_the_transformer_alone_is_said_to_be_so(saved, tmp_path):
    folder, _, state = saved
    file = tmp_path / "transformer.safetensors"
    alone = {name: tensor for name, tensor in state.items() if name.startswith("model.")}
    safetensors.torch.save_file(alone, file)
    with pytest.raises(ValueError, match="transformer.safetensors holds no autoencoder"):
        load_autoencoder(file)
    with pytest.raises(ValueError, match="transformer.safetensors holds no text encoder clip_l"):
        load_text_encoders(file, tokenizers=folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first_stage_model.decoder.mid.block_1.conv2.bias", "mid_block.resnets.0.conv2.bias"),
        ("text_encoders.clip_g.transformer.text_model.final_layer_norm.bias", "final_layer_norm"),
        ("text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight", "final_layer_norm"),
    ],
)
def test_a_missing_tensor_is_named(saved, name, message, tmp_path):
    folder, _, state = saved
    file = tmp_path / "cut.safetensors"
    safetensors.torch.save_file({k: v for k, v in state.items() if k != name}, file)
    with pytest.raises(ValueError, match=f"cut.safetensors does not have the tensor .*{message}"):
        load_autoencoder(file)
        load_text_encoders(file, jnp.float32, tokenizers=folder)
