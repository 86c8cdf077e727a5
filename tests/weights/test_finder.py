"""One rule finds the weights of every part of a pipeline, as diffusers does."""

import json
import shutil

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextModelWithProjection

from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.sd3.encoder_weights import load_clip_text
from ladd_jax.weights import load_autoencoder, load_mmdit
from ladd_jax.weights.source import weight_files


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finder") / "whole"
    return pipelines.save_pipeline(folder, t5=False), folder


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def doubled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 2
    return model


def test_parts_go_before_a_whole_file_of_before(tmp_path):
    model = reference.transformer()
    reference.save(model, tmp_path / "t")
    old = (tmp_path / "t/diffusion_pytorch_model.safetensors").read_bytes()
    new = reference.save(doubled(model), tmp_path / "new", max_shard_size="20KB")
    assert len(list(new.glob("*-of-*"))) > 1
    (new / "diffusion_pytorch_model.safetensors").write_bytes(old)
    expected = SD3Transformer2DModel.from_pretrained(new).state_dict()
    reference.save(model, tmp_path / "alone")
    alone = SD3Transformer2DModel.from_pretrained(tmp_path / "alone").state_dict()
    assert all((expected[name] == alone[name]).all() for name in alone)
    assert_same(
        load_mmdit(new, jnp.float32).params, load_mmdit(tmp_path / "alone", jnp.float32).params
    )


def test_a_whole_file_beside_parts_is_refused_where_libraries_differ(tmp_path):
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"both model\.safetensors and model\.safetensors\.index"):
        weight_files(tmp_path)


@pytest.mark.parametrize("variant", ["bf16", "fp16"])
@pytest.mark.parametrize("size", ["10GB", "10KB"], ids=["whole", "parts"])
def test_the_only_variant_is_read_in_every_part(pipeline, tmp_path, variant, size):
    models, folder = pipeline
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[variant]
    options = dict(variant=variant, max_shard_size=size)
    kinds = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
    }
    for part, kind in kinds.items():
        kind.from_pretrained(folder / part).to(dtype).save_pretrained(tmp_path / part, **options)
        assert all(variant in file.name for file in (tmp_path / part).glob("*safetensors*"))
        # As diffusers reads the same files.
        theirs = kind.from_pretrained(tmp_path / part, variant=variant).float()
        theirs.save_pretrained(tmp_path / "expected" / part)
    ours, expected = tmp_path, tmp_path / "expected"
    assert_same(load_mmdit(ours, jnp.float32).params, load_mmdit(expected, jnp.float32).params)
    assert_same(load_autoencoder(ours)[1], load_autoencoder(expected)[1])
    assert_same(
        load_clip_text(ours / "text_encoder", jnp.float32)[2],
        load_clip_text(expected / "text_encoder", jnp.float32)[2],
    )


def test_older_indices_of_variants_are_known(tmp_path):
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.fp16.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.fp16.index.json").write_text(json.dumps(index))
    file = tmp_path / "diffusion_pytorch_model-00001-of-00001.fp16.safetensors"
    file.touch()
    assert weight_files(tmp_path) == weight_files(tmp_path, "fp16") == [file]


def test_full_precision_goes_before_variants(tmp_path):
    for mark in ("", ".fp16", ".bf16"):
        (tmp_path / f"model{mark}.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert weight_files(tmp_path, "bf16") == [tmp_path / "model.bf16.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        NotFoundError, match="in the variants bf16, fp16 and none without a variant"
    ):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_pickled_weights_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} holds pickled weights, which can run any code"):
        weight_files(tmp_path)


def test_a_pickled_file_is_refused(tmp_path):
    (tmp_path / "sd3.ckpt").touch()
    with pytest.raises(UserError, match=r"sd3\.ckpt holds pickled weights"):
        load_mmdit(tmp_path / "sd3.ckpt")


@pytest.mark.parametrize("prefix", ["", "transformer.", "model.diffusion_model."])
def test_a_single_file_may_have_the_names_of_diffusers(tmp_path, prefix):
    model = reference.transformer(qk_norm=True, dual=(0,))
    folder = reference.save(model, tmp_path / "t")
    file = tmp_path / "single.safetensors"
    state = {prefix + name: x.contiguous() for name, x in model.state_dict().items()}
    safetensors.torch.save_file(state, file)
    loaded, expected = load_mmdit(file, jnp.float32), load_mmdit(folder, jnp.float32)
    assert loaded.config == expected.config
    assert_same(loaded.params, expected.params)


def test_two_transformers_in_a_file_are_refused(tmp_path):
    state = reference.transformer(depth=1).state_dict()
    both = {p + name: x.clone() for p in ("a.", "b.") for name, x in state.items()}
    safetensors.torch.save_file(both, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match=r"holds 2 transformers \(a\., b\.\)"):
        load_mmdit(tmp_path / "two.safetensors")


FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("dtype", FLOAT8.values(), ids=FLOAT8)
@pytest.mark.parametrize("scaled", ["", "tensor", "row"])
def test_float8_is_read_as_the_numbers_that_it_stands_for(tmp_path, dtype, scaled):
    state = reference.transformer(table=16, sample_size=64, head_width=32).state_dict()
    stored, meant = {"scaled_fp8": torch.zeros(2, dtype=dtype)} if scaled else {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and scaled:
            scale = tensor.abs().amax(1 if scaled == "row" else None, keepdim=scaled == "row") / 100
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            stored[name.removesuffix("weight") + "scale_input"] = torch.ones(1)
            stored[name] = (tensor / scale).to(dtype)
            meant[name] = stored[name].float() * scale
        else:
            stored[name] = tensor.to(dtype)
            meant[name] = tensor if name.endswith("pos_embed.pos_embed") else stored[name].float()
    safetensors.torch.save_file(stored, tmp_path / "float8.safetensors")
    safetensors.torch.save_file(meant, tmp_path / "meant.safetensors")
    for compute in (jnp.float32, jnp.bfloat16):
        loaded = load_mmdit(tmp_path / "float8.safetensors", compute)
        expected = load_mmdit(tmp_path / "meant.safetensors", compute)
        assert loaded.config == expected.config
        assert_same(loaded.params, expected.params)


def test_a_scale_of_another_shape_is_named(tmp_path):
    state = reference.transformer(depth=1).state_dict()
    state["context_embedder.scale_weight"] = torch.ones(3)
    safetensors.torch.save_file(state, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match=r"context_embedder\.scale_weight .* \[3\] and scales"):
        load_mmdit(tmp_path / "t.safetensors")


def test_an_autoencoder_may_be_a_folder_of_its_own(pipeline, tmp_path):
    shutil.copytree(pipeline[1] / "vae", tmp_path / "vae")
    assert_same(load_autoencoder(tmp_path / "vae")[1], load_autoencoder(pipeline[1])[1])
