"""Transformer weights: read from every layout, written so that others read them, or refused."""

import dataclasses
import json

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from diffusers import SD3Transformer2DModel

from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.parallel.mesh import make_mesh, parameter_shardings
from ladd_jax.weights import load_mmdit, read_mmdit_config, save_mmdit

NETWORKS = {
    "sd3": {"head_width": 64, "heads": 1},
    "sd3.5 large": {"qk_norm": True},
    "sd3.5 medium": {"depth": 4, "qk_norm": True, "dual": (0, 1)},
    "dual last": {"qk_norm": True, "dual": (1,), "in_channels": 5, "out_channels": 2},
    "one block": {"depth": 1, "head_width": 64, "heads": 1},
}
MEDIUM = NETWORKS["sd3.5 medium"]


def write_single(theirs, path, prefix="model.diffusion_model.", extra=None):
    state = reference.stability_state(theirs, prefix) | (extra or {})
    safetensors.torch.save_file(state, path)
    return path


def assert_same(a, b):
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def some_params(config, dtype=jnp.float32):
    params = tiny.random_params(mmdit(config))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_both_layouts_give_the_same_parameters_and_architecture(network, tmp_path):
    theirs = reference.transformer(**network)
    folder = load_mmdit(reference.save(theirs, tmp_path / "folder"), jnp.float32)
    for name, prefix in (("prefix", "model.diffusion_model."), ("bare", "")):
        path = write_single(theirs, tmp_path / f"{name}.safetensors", prefix)
        single = load_mmdit(path, jnp.float32)
        assert single.config == folder.config
        assert_same(single.params, folder.params)
    config = folder.config
    assert config.depth == theirs.config.num_layers
    assert config.dual_attention == tuple(network.get("dual", ()))
    assert config.qk_norm == network.get("qk_norm", False)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("layout", ["diffusers", "stability"])
def test_saved_and_loaded_again_nothing_has_changed(network, layout, tmp_path):
    config = read_mmdit_config(
        reference.save(reference.transformer(**network), tmp_path / "theirs"), jnp.bfloat16
    )
    params = some_params(config, jnp.bfloat16)
    path = tmp_path / ("ours" if layout == "diffusers" else "ours.safetensors")
    save_mmdit(path, params, config, jnp.bfloat16, layout)
    again = load_mmdit(path, jnp.bfloat16)
    assert again.config == config
    assert_same(again.params, params)
    assert {file.name for file in tmp_path.iterdir()} == {"theirs", path.name}


@pytest.mark.parametrize("network", [NETWORKS["sd3"], MEDIUM], ids=["sd3", "sd3.5 medium"])
@pytest.mark.parametrize("layout", ["diffusers", "stability"])
def test_diffusers_reads_what_we_write(network, layout, tmp_path):
    theirs = reference.transformer(**network)
    loaded = load_mmdit(reference.save(theirs, tmp_path / "theirs"), jnp.float32)
    path = tmp_path / ("ours" if layout == "diffusers" else "ours.safetensors")
    save_mmdit(path, loaded.params, loaded.config, jnp.float32, layout, sample_size=8)
    if layout == "diffusers":
        read, problems = SD3Transformer2DModel.from_pretrained(path, output_loading_info=True)
        assert not any(problems.values())
        mine, original = dict(read.config), dict(theirs.config)
        for field in ("_name_or_path", "_diffusers_version"):
            mine.pop(field, None)
            original.pop(field, None)
        assert {k: list(v) if k == "dual_attention_layers" else v for k, v in mine.items()} == {
            k: list(v) if k == "dual_attention_layers" else v for k, v in original.items()
        }
    else:
        read = SD3Transformer2DModel.from_single_file(
            str(path), config=str(tmp_path / "theirs"), local_files_only=True
        )
    state = reference.as_numpy(theirs.state_dict())
    for name, tensor in reference.as_numpy(read.state_dict()).items():
        if name == "pos_embed.pos_embed":
            np.testing.assert_allclose(tensor, state[name], atol=1e-5)
        else:
            np.testing.assert_array_equal(tensor, state[name], err_msg=name)


def test_large_models_are_split_over_files_with_an_index(tmp_path):
    theirs = reference.transformer(**MEDIUM)
    whole = load_mmdit(reference.save(theirs, tmp_path / "a"), jnp.float32)
    save_mmdit(tmp_path / "b", whole.params, whole.config, jnp.float32, shard_bytes=20_000)
    assert len(list((tmp_path / "b").glob("*-of-*.safetensors"))) > 3
    assert all(file.stat().st_size < 40_000 for file in (tmp_path / "b").glob("*.safetensors"))
    assert_same(load_mmdit(tmp_path / "b", jnp.float32).params, whole.params)
    read = SD3Transformer2DModel.from_pretrained(tmp_path / "b")
    reference.save(read, tmp_path / "c", max_shard_size="20KB")
    assert (tmp_path / "c/diffusion_pytorch_model.safetensors.index.json").exists()
    assert_same(load_mmdit(tmp_path / "c", jnp.float32).params, whole.params)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", [jnp.bfloat16, jnp.float32, jnp.float16])
def test_every_dtype_is_read_as_every_other(stored, wanted, tmp_path):
    theirs = reference.transformer(depth=1, qk_norm=True).to(stored)
    loaded = load_mmdit(reference.save(theirs, tmp_path / "t"), wanted)
    assert loaded.config.position_base == 4 and loaded.config.position_start == 0
    weight = theirs.proj_out.weight.detach().float().numpy().T
    kernel = loaded.params["final"]["kernel"]
    assert kernel.dtype == wanted
    np.testing.assert_array_equal(kernel, weight.astype(wanted))
    scale = theirs.transformer_blocks[0].attn.norm_q.weight.detach().float().numpy()
    np.testing.assert_array_equal(
        loaded.params["last_block"]["image"]["norm_q"]["scale"], scale.astype(wanted)
    )


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}], ids=str
)
def test_a_mesh_holds_the_same_parameters_in_shards(sizes, tmp_path):
    theirs = reference.transformer(qk_norm=True, dual=(0,))
    path = reference.save(theirs, tmp_path / "t")
    alone, mesh = load_mmdit(path, jnp.float32), make_mesh(sizes)
    spread = load_mmdit(path, jnp.float32, mesh)
    shardings = parameter_shardings(mesh, spread.model.shapes, spread.model.axes)
    jax.tree.map(lambda leaf, wanted: _same_sharding(leaf, wanted), spread.params, shardings)
    assert_same(spread.params, alone.params)


def _same_sharding(leaf, wanted):
    assert leaf.sharding == wanted and len(leaf.addressable_shards) == 8


def test_a_loaded_network_is_a_function_of_latents_on_its_mesh(tmp_path):
    theirs = reference.transformer(**MEDIUM)
    inputs = reference.inputs(theirs, batch=8)
    loaded = load_mmdit(
        reference.save(theirs, tmp_path / "t"), jnp.float32, make_mesh({"data": 2, "fsdp": 4})
    )
    with torch.no_grad():
        expected = reference.velocity(theirs, *inputs).numpy()
    np.testing.assert_allclose(loaded(*inputs), expected, atol=1e-5 * np.max(np.abs(expected)))


def test_sharded_parameters_are_written_whole(tmp_path):
    theirs = reference.transformer(qk_norm=True)
    path = reference.save(theirs, tmp_path / "t")
    spread = load_mmdit(path, jnp.float32, make_mesh({"fsdp": 4, "tensor": 2}))
    save_mmdit(tmp_path / "again", spread.params, spread.config, jnp.float32)
    assert_same(load_mmdit(tmp_path / "again", jnp.float32).params, spread.params)


def test_a_single_file_may_hold_encoders_too(tmp_path):
    theirs = reference.transformer(qk_norm=True)
    others = {
        "text_encoders.clip_l.logit_scale": torch.zeros((), dtype=torch.float64),
        "first_stage_model.decoder.conv_in.bias": torch.zeros(3),
    }
    path = write_single(theirs, tmp_path / "all.safetensors", extra=others)
    folder = load_mmdit(reference.save(theirs, tmp_path / "t"), jnp.float32)
    assert_same(load_mmdit(path, jnp.float32).params, folder.params)


def test_a_file_of_a_folder_is_read_with_the_config_beside_it(tmp_path):
    theirs = reference.transformer(qk_norm=True)
    folder = reference.save(theirs, tmp_path / "t")
    by_file = load_mmdit(folder / "diffusion_pytorch_model.safetensors", jnp.float32)
    assert_same(by_file.params, load_mmdit(folder, jnp.float32).params)


def test_heads_that_no_shape_tells_are_kept_in_our_single_files(tmp_path):
    config = tiny.mmdit_config(num_heads=8)
    path = tmp_path / "t.safetensors"
    save_mmdit(path, some_params(config), config, jnp.float32, "stability")
    assert read_mmdit_config(path).num_heads == 8


def test_a_folder_with_one_variant_needs_no_name_for_it(tmp_path):
    theirs = reference.transformer(depth=1)
    other = reference.transformer(seed=1, depth=1)
    folder = tmp_path / "t"
    reference.save(theirs, folder, variant="fp16")
    only = load_mmdit(folder, jnp.float32)
    reference.save(other, folder)
    named = load_mmdit(folder, jnp.float32, variant="fp16")
    plain = load_mmdit(folder, jnp.float32)
    assert_same(only.params, named.params)
    assert tiny.max_difference(plain.params, named.params) > 1e-2
    reference.save(theirs, folder, variant="fp16", max_shard_size="10KB")
    (folder / "diffusion_pytorch_model.fp16.safetensors").unlink(missing_ok=True)
    assert_same(load_mmdit(folder, jnp.float32, variant="fp16").params, named.params)


def test_a_config_of_sd3_without_the_fields_of_sd35_is_read(tmp_path):
    folder = reference.save(reference.transformer(), tmp_path / "t")
    values = json.loads((folder / "config.json").read_text())
    del values["qk_norm"], values["dual_attention_layers"]
    (folder / "config.json").write_text(json.dumps(values))
    config = read_mmdit_config(folder)
    assert not config.qk_norm and config.dual_attention == ()


def edited(theirs, path, edit, layout="diffusers"):
    """Weights after a change of their tensors."""
    if layout == "stability":
        state = reference.stability_state(theirs)
        edit(state)
        safetensors.torch.save_file(state, path / "t.safetensors")
        return path / "t.safetensors"
    reference.save(theirs, path)
    file = path / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    edit(state)
    safetensors.torch.save_file(state, file)
    return path


def without(name):
    return lambda state: state.pop(name)


def with_tensor(name, tensor):
    return lambda state: state.update({name: tensor})


A_WEIGHT = "transformer_blocks.0.ff.net.2.weight"
ITS_NAME = "model.diffusion_model.joint_blocks.0.x_block.mlp.fc2.weight"


@pytest.mark.parametrize(
    ("edit", "layout", "words"),
    [
        (without(A_WEIGHT), "diffusers", [A_WEIGHT, "missing"]),
        (without("pos_embed.pos_embed"), "diffusers", ["pos_embed.pos_embed", "missing"]),
        (
            with_tensor("pos_embed.scale", torch.ones(2)),
            "diffusers",
            ["pos_embed.scale", "no place"],
        ),
        (with_tensor(A_WEIGHT, torch.ones(16, 32)), "diffusers", [A_WEIGHT, "16, 32", "16, 64"]),
        (
            with_tensor("pos_embed.pos_embed", torch.ones(1, 25, 16)),
            "diffusers",
            ["pos_embed.pos_embed", "1, 25, 16", "1, 36, 16"],
        ),
        (
            with_tensor("pos_embed.pos_embed", torch.ones(1, 35, 16)),
            "diffusers",
            ["pos_embed.pos_embed", "1, 35, 16"],
        ),
        (with_tensor(A_WEIGHT, torch.ones(16, 64).int()), "diffusers", [A_WEIGHT, "I32"]),
        (without(ITS_NAME), "stability", ["joint_blocks.0.x_block.mlp.fc2.weight", "missing"]),
        (
            without("model.diffusion_model.x_embedder.proj.weight"),
            "stability",
            ["x_embedder.proj.weight", "missing"],
        ),
        (
            without("model.diffusion_model.pos_embed"),
            "stability",
            ["pos_embed", "missing"],
        ),
        (
            with_tensor("model.diffusion_model.register", torch.ones(2)),
            "stability",
            ["register", "no place"],
        ),
        (with_tensor(ITS_NAME, torch.ones(16, 32)), "stability", ["fc2.weight", "16, 32"]),
        (
            with_tensor("model.diffusion_model.joint_blocks.99999999.x", torch.ones(2)),
            "stability",
            ["describes 100000000 layers"],
        ),
        (
            with_tensor("model.diffusion_model.x_embedder.proj.weight", torch.ones(0, 16, 2, 2)),
            "stability",
            ["x_embedder.proj.weight", "none of them 0"],
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(edit, layout, words, tmp_path):
    theirs = reference.transformer(qk_norm=True)
    path = edited(theirs, tmp_path, edit, layout)
    with pytest.raises(ValueError) as raised:
        load_mmdit(path, jnp.float32)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("heads", ["0", "-1", "x", "1.5", "9" * 5000])
def test_heads_in_the_metadata_that_are_no_number_are_named(heads, tmp_path):
    state = reference.stability_state(reference.transformer(), "model.diffusion_model.")
    path = tmp_path / "one.safetensors"
    safetensors.torch.save_file(state, path, metadata={"num_heads": heads})
    with pytest.raises(ValueError, match="as num_heads: it must be a whole number"):
        load_mmdit(path)


@pytest.mark.parametrize("keep", [0, 5, 200, 3000, -1])
def test_a_truncated_file_is_said_to_be_so(keep, tmp_path):
    folder = reference.save(reference.transformer(), tmp_path / "t")
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated") as raised:
        load_mmdit(folder)
    assert str(file) in str(raised.value)


def test_a_file_of_something_else_is_said_to_be_so(tmp_path):
    file = tmp_path / "t.safetensors"
    file.write_bytes(b"<!DOCTYPE html><html>not found</html>" * 9)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_mmdit(file)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "LoRA"),
        ("lora_unet_joint_blocks_0_x_block_mlp_fc1.lora_down.weight", "LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "U-Net"),
        ("down_blocks.0.attentions.0.norm.weight", "U-Net"),
        ("text_model.final_layer_norm.weight", "not an MMDiT"),
    ],
)
def test_a_file_of_another_kind_is_named(name, words, tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({name: torch.ones(4, 4)}, path)
    with pytest.raises(ValueError, match=words):
        load_mmdit(path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("_class_name", "FluxTransformer2DModel", "FluxTransformer2DModel"),
        ("_class_name", "UNet2DConditionModel", "UNet2DConditionModel"),
        ("num_layers", None, "num_layers is None"),
        ("num_layers", "24", "num_layers is '24'"),
        ("qk_norm", "layer_norm", "qk_norm is 'layer_norm'"),
        ("caption_projection_dim", 12, "caption_projection_dim is 12"),
        ("num_layers", 3, "missing .* 3 blocks"),
        ("num_layers", 1, "no place"),
        ("num_layers", 10**6, "describes 1000000 layers and the weights beside it have"),
        ("num_layers", 10**400, "num_layers is 10.*it must be a whole number from 1 to"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("patch_size", -2, "patch_size is -2"),
        ("dual_attention_layers", 3, "dual_attention_layers is 3"),
        ("dual_attention_layers", [[0]], "dual_attention_layers is"),
        ("pos_embed_max_size", 7, "pos_embed"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(field, value, words, tmp_path):
    folder = reference.save(reference.transformer(), tmp_path / "t")
    values = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=words):
        load_mmdit(folder)


def test_a_damaged_config_is_an_error(tmp_path):
    folder = reference.save(reference.transformer(), tmp_path / "t")
    (folder / "config.json").write_text('{"num_layers": ')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        load_mmdit(folder)


class Unreadable:
    """An array that is lost when it is asked for."""

    def __init__(self, shape):
        self.shape = shape

    def __array__(self, *_, **__):
        raise OSError("lost")


def test_nothing_is_written_over_or_half_written(tmp_path):
    config = tiny.mmdit_config()
    params = some_params(config)
    shape = params["time_mlp"]["up"]["kernel"].shape
    lost = {**params, "time_mlp": {**params["time_mlp"], "up": {"kernel": Unreadable(shape)}}}
    lost["time_mlp"]["up"]["bias"] = params["time_mlp"]["up"]["bias"]
    for layout in ("diffusers", "stability"):
        path = tmp_path / layout
        save_mmdit(path, params, config, jnp.float32, layout)
        with pytest.raises(FileExistsError, match="remove it"):
            save_mmdit(path, params, config, jnp.float32, layout)
        with pytest.raises(OSError, match="lost"):
            save_mmdit(tmp_path / "lost", lost, config, jnp.float32, layout)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["diffusers", "stability"]


@pytest.mark.parametrize("dtype", ["float17", "int8", "bf16", jnp.float64], ids=str)
def test_a_dtype_that_weights_are_not_kept_in_is_named(dtype, tmp_path):
    path = reference.save(reference.transformer(depth=1), tmp_path / "t")
    name = dtype if isinstance(dtype, str) else "float64"
    with pytest.raises(ValueError, match=f"dtype {name}: use float32, float16, bfloat16"):
        load_mmdit(path, dtype)


def test_parameters_of_another_network_are_not_written(tmp_path):
    params = some_params(tiny.mmdit_config(depth=3))
    for changes, words in (({"depth": 2}, r"blocks_0\.context"), ({"qk_norm": True}, "norm_k")):
        with pytest.raises(ValueError, match=words):
            save_mmdit(tmp_path / "t", params, tiny.mmdit_config(**{"depth": 3, **changes}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"dtype": jnp.int8}, "int8"),
        ({}, {"layout": "ckpt"}, "'ckpt' is not one of diffusers, stability"),
        ({"mlp_ratio": 2}, {}, "mlp_ratio of 4"),
    ],
)
def test_what_cannot_be_written_is_an_error(changes, options, words, tmp_path):
    config = tiny.mmdit_config(**changes)
    with pytest.raises(ValueError, match=words):
        save_mmdit(tmp_path / "t", some_params(config), config, **options)
    assert not list(tmp_path.iterdir())


def test_a_network_of_another_mlp_ratio_is_kept_in_a_single_file(tmp_path):
    config = tiny.mmdit_config(mlp_ratio=2, qk_norm=True)
    params = some_params(config)
    save_mmdit(tmp_path / "t.safetensors", params, config, jnp.float32, "stability")
    loaded = load_mmdit(tmp_path / "t.safetensors", jnp.float32)
    assert loaded.config == dataclasses.replace(config, remat="full")
    assert_same(loaded.params, params)
