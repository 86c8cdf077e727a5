"""Files of encoders: layouts on disk, and what is wrong with them in one sentence."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
from safetensors.numpy import load_file, save_file

from ladd_jax.models.sd3.encoder_weights import (
    load_autoencoder,
    load_clip_text,
    load_t5,
    load_text_encoders,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    return pipelines.save_pipeline(directory), directory


@pytest.fixture
def copy(saved, tmp_path):
    """A pipeline's encoders to spoil."""
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        shutil.copytree(saved[1] / part, tmp_path / part)
    for part in ("tokenizer", "tokenizer_2", "tokenizer_3", "transformer"):
        (tmp_path / part).symlink_to(saved[1] / part)
    return tmp_path


def edit_tensors(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value != "drop"})
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_sharded_files_hold_the_same_parameters(saved, copy):
    pipeline, directory = saved
    shutil.rmtree(copy / "vae")
    pipeline.vae.save_pretrained(copy / "vae", max_shard_size="20KB")
    shutil.rmtree(copy / "text_encoder_3")
    pipeline.text_encoder_3.save_pretrained(copy / "text_encoder_3", max_shard_size="10KB")
    for part in ("vae", "text_encoder_3"):
        assert len(list((copy / part).glob("*-of-*.safetensors"))) > 2
    assert_same(load_autoencoder(copy, jnp.float32)[1], load_autoencoder(directory, jnp.float32)[1])
    assert_same(
        load_t5(copy / "text_encoder_3", jnp.float32)[2],
        load_t5(directory / "text_encoder_3", jnp.float32)[2],
    )
    next((copy / "vae").glob("*-00002-of-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"names .*-00002-of-.*, which is not there"):
        load_autoencoder(copy, jnp.float32)


@pytest.mark.parametrize(
    ("stored", "dtype"), [("float16", jnp.bfloat16), ("bfloat16", jnp.float32)]
)
def test_half_precision_files_are_read_in_the_dtype_asked_for(saved, copy, stored, dtype):
    pipeline, directory = saved
    shutil.rmtree(copy / "vae")
    vae = diffusers.AutoencoderKL.from_config(pipeline.vae.config)
    vae.load_state_dict(pipeline.vae.state_dict())
    vae.to(getattr(torch, stored)).save_pretrained(copy / "vae")
    _, exact = load_autoencoder(directory, jnp.float32)
    network, params = load_autoencoder(copy, dtype)

    def check(half, full):
        assert half.dtype == dtype
        np.testing.assert_array_equal(half, full.astype(stored).astype(dtype))

    jax.tree.map(check, params, exact)
    assert network.config.dtype == dtype


def test_the_half_precision_variant_is_read_where_it_is_alone(saved, copy):
    part = copy / "text_encoder"
    (part / "model.safetensors").rename(part / "model.fp16.safetensors")
    assert_same(
        load_clip_text(part, jnp.float32)[2],
        load_clip_text(saved[1] / "text_encoder", jnp.float32)[2],
    )


def test_names_of_older_files_are_known(saved, copy):
    def older(tensors):
        length = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
        tensors["text_model.embeddings.position_ids"] = np.arange(length)[None]

    def tied(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    edit_tensors(copy / "text_encoder/model.safetensors", older)
    edit_tensors(copy / "text_encoder_3/model.safetensors", tied)
    assert_same(
        load_clip_text(copy / "text_encoder", jnp.float32)[2],
        load_clip_text(saved[1] / "text_encoder", jnp.float32)[2],
    )
    assert_same(
        load_t5(copy / "text_encoder_3", jnp.float32)[2],
        load_t5(saved[1] / "text_encoder_3", jnp.float32)[2],
    )


VAE = "vae/diffusion_pytorch_model.safetensors"
ATTENTION = "encoder.mid_block.attentions.0"
WRONG_TENSORS = {
    "without one": (
        VAE,
        lambda t: t.pop("decoder.conv_in.bias"),
        r"vae does not have the tensor decoder.conv_in.bias:",
    ),
    "without two": (
        VAE,
        lambda t: [t.pop(f"decoder.conv_{end}.bias") for end in ("in", "out")],
        r"vae does not have the tensor decoder.conv_in.bias and 1 more",
    ),
    "unknown": (
        VAE, lambda t: t.update(extra=np.zeros(2)), r"vae has the unknown tensor extra:",
    ),
    "misshaped kernel": (
        VAE,
        lambda t: t.update({"encoder.conv_in.weight": np.zeros((8, 3, 1, 1), np.float32)}),
        r"tensor encoder.conv_in.weight in .*vae is \[8, 3, 1, 1\] and .* \[8, 3, 3, 3\]",
    ),
    "misshaped part of a joined matrix": (
        VAE,
        lambda t: t.update({f"{ATTENTION}.to_k.weight": np.zeros((8, 32), np.float32)}),
        r"to_k.weight in .* is \[8, 32\] and .* \[16, 16\]",
    ),
    "without a layer": (
        "text_encoder_2/model.safetensors",
        lambda t: t.pop("text_model.encoder.layers.2.self_attn.k_proj.bias"),
        r"text_encoder_2 does not have the tensor text_model.encoder.layers.2.self_attn.k_proj",
    ),
    "misshaped layer": (
        "text_encoder_3/model.safetensors",
        lambda t: t.update(
            {"encoder.block.1.layer.1.DenseReluDense.wo.weight": np.zeros((24, 32), np.float32)}
        ),
        r"block.1.layer.1.DenseReluDense.wo.weight in .* is \[24, 32\] and .* \[32, 24\]",
    ),
    "no table": (
        "text_encoder_3/model.safetensors",
        lambda t: t.pop("shared.weight"),
        r"text_encoder_3 does not have the tensor encoder.embed_tokens.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_a_wrong_tensor_is_named(copy, case):
    file, change, words = case
    edit_tensors(copy / file, change)
    with pytest.raises(ValueError, match=words):
        load_autoencoder(copy, jnp.float32)
        load_text_encoders(copy, jnp.float32)


WRONG_CONFIGS = {
    "quant conv": ("vae", {"use_quant_conv": True}, "use_quant_conv True and only False"),
    "old vae": (
        "vae",
        {"use_post_quant_conv": "drop"},
        "no use_post_quant_conv, which is True",
    ),
    "no shift": ("vae", {"shift_factor": None}, "has no 'shift_factor'"),
    "relu": ("text_encoder_3", {"feed_forward_proj": "drop"}, "no feed_forward_proj, .* 'relu'"),
    "activation": (
        "text_encoder",
        {"hidden_act": "swish"},
        "'swish', which is not one of quick_gelu",
    ),
    "gone": (
        "text_encoder",
        {"vocab_size": "drop"},
        "config.json has no 'vocab_size': use",
    ),
    "no heads": ("text_encoder", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "many layers": ("text_encoder", {"num_hidden_layers": 10**6}, "describes 1000000 layers"),
    "huge width": ("text_encoder_3", {"d_model": 10**30}, "d_model is 1000"),
    "no buckets": ("text_encoder_3", {"relative_attention_num_buckets": 1}, "is below 4"),
    "epsilon": ("text_encoder_3", {"layer_norm_epsilon": "x"}, "it must be a number"),
    "one width": ("vae", {"block_out_channels": 8}, "must be a list of 1 to 16 widths"),
    "no groups": ("vae", {"norm_num_groups": 0}, "norm_num_groups is 0"),
    "no epsilon": ("text_encoder", {"layer_norm_eps": 0}, "layer_norm_eps is 0 .*from above 0 to"),
    "scale": ("vae", {"scaling_factor": [1]}, "scaling_factor is .* it must be a number"),
    "no scale": ("vae", {"scaling_factor": 0}, "scaling_factor is 0 .* must be a number above 0"),
    "shift": ("vae", {"shift_factor": "0"}, "shift_factor is '0' .* must be a finite number"),
    "layers": ("text_encoder_2", {"num_hidden_layers": 2}, "has the unknown tensor text_model.enc"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_a_config_that_is_not_sd3s_is_refused(copy, case):
    part, changes, words = case
    edit_config(copy / part, **changes)
    with pytest.raises(ValueError, match=words):
        load_autoencoder(copy, jnp.float32)
        load_text_encoders(copy, jnp.float32)


def test_missing_and_broken_files_are_named(copy):
    (copy / "text_encoder_2/model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"text_encoder_2/model.safetensors is a pointer of git-"):
        load_text_encoders(copy, jnp.float32)
    (copy / "text_encoder_2/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="text_encoder_2 has no weights, neither .*: give"):
        load_text_encoders(copy, jnp.float32)
    (copy / "tokenizer_3").unlink()
    # Both are told.
    words = "text_encoder_2 has no weights.*; no .*tokenizer_3: give the directory"
    with pytest.raises(ValueError, match=words):
        load_text_encoders(copy, jnp.float32)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder of a pipeline"):
        load_autoencoder(copy / "nowhere", jnp.float32)
    (copy / "vae/config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no .*vae/config.json: give"):
        load_autoencoder(copy, jnp.float32)


def test_importing_the_encoders_imports_no_other_framework():
    code = (
        "import sys, ladd_jax.models.sd3.autoencoder, ladd_jax.models.t5, "
        "ladd_jax.models.sd3.text, ladd_jax.models.sd3.encoder_weights; "
        "print({'torch', 'transformers', 'diffusers', 'tensorflow'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
