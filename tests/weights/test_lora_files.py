"""LoRA files of others, added to a network."""

import dataclasses
import json
import logging

import diffusers_mmdit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.models.lora import Adapted, LoRA, add_adapters
from ladd_jax.models.sd3 import diffusers_layout, stability_layout
from ladd_jax.models.sd3.family import FAMILY
from ladd_jax.models.sd3.lora_files import (
    layout,
    open_lora,
    save_kohya_lora,
    save_lora,
)
from ladd_jax.models.sd3.transformer import cut_params, mmdit
from ladd_jax.parallel.mesh import make_mesh, parameter_shardings
from ladd_jax.stages.load import open_loras
from ladd_jax.weights import load_mmdit
from ladd_jax.weights.layout import tensor_shapes
from ladd_jax.weights.lora import AddedLoRA, lora_files
from ladd_jax.weights.transfer import write_tensors

# A second attention in some blocks, and norms of queries and keys: SD3.5-Medium's parts.
CONFIG = tiny.mmdit_config(depth=3, qk_norm=True, dual_attention=(0,))
NAMINGS = {"diffusers": diffusers_layout, "stability": stability_layout}

# How a layer's name and a matrix's end are written, by whom.
WRITERS = {
    "diffusers": ("diffusers", lambda layer: f"transformer.{layer}", "lora_A", "lora_B"),
    "PEFT": ("diffusers", lambda layer: f"base_model.model.{layer}", "lora_A", "lora_B"),
    "older diffusers": ("diffusers", lambda layer: f"transformer.{layer}", "lora.down", "lora.up"),
    "ComfyUI": ("stability", lambda layer: f"diffusion_model.{layer}", "lora_A", "lora_B"),
    "Kohya": (
        "stability", lambda layer: "lora_unet_" + layer.replace(".", "_"), "lora_down", "lora_up",
    ),
    "SimpleTuner": (
        "diffusers", lambda layer: "lycoris_" + layer.replace(".", "_"), "lora_down", "lora_up",
    ),
    "OneTrainer": (
        "diffusers", lambda layer: "lora_transformer_" + layer.replace(".", "_"),
        "lora_down", "lora_up",
    ),
}  # fmt: skip


def on_devices(params):
    """Copies, which adding adapters may make an end of."""
    return jax.tree.map(jnp.array, params)


def tensors_of(naming, params, config=CONFIG):
    """A network's tensors as a naming has them."""
    tree = NAMINGS[naming].layout(config, mmdit(config).shapes)
    names = tensor_shapes(tree, params)
    return dict(zip(names, write_tensors(tree, params, np.float32), strict=True))


def dense(tensors):
    return {
        name.removesuffix(".weight"): value
        for name, value in tensors.items()
        if name.endswith(".weight") and value.ndim == 2
    }


def write_lora(file, matrices, writer, extra=()):
    """Writes (A, B, alpha) by layer."""
    _, rename, down, up = WRITERS[writer]
    found = dict(extra)
    for layer, (a, b, alpha) in matrices.items():
        found[f"{rename(layer)}.{down}.weight"] = a
        found[f"{rename(layer)}.{up}.weight"] = b
        found[f"{rename(layer)}.alpha"] = np.asarray(alpha, np.float32)
    save_file(found, file)
    return str(file)


def random_matrices(layers, random):
    found = {}
    for layer, kernel in layers.items():
        rank = int(random.integers(1, 4))
        a = random.normal(size=(rank, kernel.shape[1])).astype(np.float32)
        b = random.normal(size=(kernel.shape[0], rank)).astype(np.float32)
        found[layer] = a, b, float(random.integers(1, 9))
    return found


@pytest.mark.parametrize("writer", WRITERS)
def test_each_layer_becomes_w_plus_alpha_over_r_b_a_whoever_wrote_it(tmp_path, writer):
    random = np.random.default_rng(len(writer))
    params = tiny.random_params(mmdit(CONFIG), seed=1)
    naming = WRITERS[writer][0]
    before = tensors_of(naming, params)
    layers = {name: value for name, value in dense(before).items() if random.random() < 0.5}
    matrices = random_matrices(layers, random)
    file = write_lora(tmp_path / "a.safetensors", matrices, writer)
    after = tensors_of(
        naming, add_adapters(on_devices(params), [(open_lora(file, CONFIG).load(), 0.5)])
    )
    for name, value in after.items():
        layer = name.removesuffix(".weight")
        expected = before[name]
        if layer in matrices and name.endswith(".weight"):
            a, b, alpha = matrices[layer]
            expected = expected + 0.5 * alpha / len(a) * (b @ a)
        np.testing.assert_allclose(value, expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("metadata", [False, True])
def test_a_lora_of_peft_does_what_it_does_in_diffusers(tmp_path, metadata):
    model = diffusers_mmdit.transformer(qk_norm=True, dual=(0,))
    folder = diffusers_mmdit.save(model, tmp_path / "transformer")
    lora = LoraConfig(
        r=3,
        lora_alpha=6 if metadata else 3,
        use_rslora=metadata,
        alpha_pattern={"attn.to_q": 9} if metadata else {},
        target_modules=[
            "to_q",
            "add_k_proj",
            "to_out.0",
            "norm1.linear",
            "norm_out.linear",
            "net.2",
        ],
    )
    model.add_adapter(lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=get_peft_model_state_dict(model),
        transformer_lora_adapter_metadata=lora.to_dict() if metadata else None,
    )
    network = load_mmdit(folder, jnp.float32)
    added = open_loras(FAMILY, network.config, [str(tmp_path / "lora")])(network.params)
    model.fuse_lora()
    model.unload_lora()
    expected = diffusers_mmdit.as_numpy(model.state_dict())
    for name, value in tensors_of("diffusers", added, network.config).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_adapters_that_were_written_are_read_bit_for_bit(tmp_path):
    network = Adapted(mmdit(CONFIG), LoRA(rank=3, layers=("*block*", "final*", "*_mlp*")))
    params = tiny.random_params(network, seed=1)
    save_lora(tmp_path / "a.safetensors", params, layout(CONFIG, network))
    read = open_lora(str(tmp_path), CONFIG).load()
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_adapters_under_kohyas_names_do_the_same(tmp_path):
    network = Adapted(mmdit(CONFIG), LoRA(rank=3, layers=("*block*", "final*", "*_mlp*")))
    params = tiny.random_params(network, seed=1)
    file = tmp_path / "a.safetensors"
    save_kohya_lora(file, params, CONFIG, network)
    tensors = load_file(file)
    assert all(name.startswith("lora_unet_") for name in tensors)
    block = "lora_unet_joint_blocks_0_x_block"
    width = CONFIG.width
    # One product for queries, keys and values, of three times the rank.
    down, up = (tensors[f"{block}_attn_qkv.lora_{end}.weight"] for end in ("down", "up"))
    assert down.shape == (9, width) and up.shape == (3 * width, 9)
    assert tensors[f"{block}_mlp_fc1.lora_down.weight"].shape == (3, width)
    assert (tensors[f"{block}_attn_qkv.alpha"], tensors[f"{block}_mlp_fc1.alpha"]) == (9, 3)
    for part in range(3):
        rows = up[part * width : (part + 1) * width]
        assert np.all(np.delete(rows, range(3 * part, 3 * part + 3), axis=1) == 0)
    read = open_lora(str(file), CONFIG).load()
    start = tiny.random_params(mmdit(CONFIG), seed=2)
    found = add_adapters(on_devices(start), [(read, 1.0)])
    expected = network.merge(params, start, jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    # Numbers are those of the adapters, bit for bit.
    save_lora(tmp_path / "b.safetensors", params, layout(CONFIG, network))
    peft = load_file(tmp_path / "b.safetensors")
    for place, part in enumerate("qkv"):
        of_part = f"transformer.transformer_blocks.0.attn.to_{part}"
        rows, ranks = slice(place * width, (place + 1) * width), slice(3 * place, 3 * place + 3)
        np.testing.assert_array_equal(down[ranks], peft[f"{of_part}.lora_A.weight"])
        np.testing.assert_array_equal(up[rows, ranks], peft[f"{of_part}.lora_B.weight"])


def test_of_a_network_that_is_cut_its_blocks_alone_are_adapted(tmp_path):
    whole = tiny.random_params(mmdit(CONFIG), seed=1)
    layers = dense(tensors_of("diffusers", whole))
    matrices = random_matrices(layers, np.random.default_rng(0))
    file = write_lora(tmp_path / "a.safetensors", matrices, "diffusers")
    config = dataclasses.replace(CONFIG, cut=2)
    shapes = mmdit(config).shapes
    adapters = open_lora(file, config).load()
    found = add_adapters(on_devices(cut_params(whole, shapes)), [(adapters, 1.0)])
    all_of_it = add_adapters(on_devices(whole), [(open_lora(file, CONFIG).load(), 1.0)])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        found, cut_params(all_of_it, shapes),
    )  # fmt: skip


def test_several_are_added_up_and_what_is_sharded_stays_so(tmp_path):
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    model = mmdit(dataclasses.replace(CONFIG, param_dtype=jnp.bfloat16))
    shardings = parameter_shardings(mesh, model.shapes, model.axes)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.random_params(model, seed=1))
    layers = {
        name: value
        for name, value in dense(tensors_of("diffusers", params)).items()
        if name.endswith("attn.to_q") or name == "norm_out.linear"
    }
    random = np.random.default_rng(0)
    files = [
        write_lora(tmp_path / f"{i}.safetensors", random_matrices(layers, random), "diffusers")
        for i in range(2)
    ]
    names = [f"{files[0]}:0.5", f"{files[1]}:-2"]
    found = open_loras(FAMILY, CONFIG, names)(jax.device_put(params, shardings))
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings
    in_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = open_loras(FAMILY, CONFIG, names)(on_devices(in_float32))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), found, expected
    )


@pytest.mark.parametrize(
    "name",
    [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
        "lycoris_text_encoder_2_layers_0.lora_down.weight",
        "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora.down.weight",
    ],
)
def test_matrices_of_text_encoders_are_left_out_and_said_to_be(tmp_path, caplog, name):
    layers = {"context_embedder": np.zeros((CONFIG.width, CONFIG.context_width))}
    extra = {name: np.ones((1, 2))}
    matrices = random_matrices(layers, np.random.default_rng(0))
    file = write_lora(tmp_path / "a.safetensors", matrices, "Kohya", extra=extra)
    with caplog.at_level(logging.WARNING):
        open_lora(file, CONFIG)
        open_lora(file, CONFIG)
    assert caplog.text.count("its 1 tensors for text encoders are left out") == 1


def test_an_alpha_that_is_a_whole_number_is_read(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(tensors(**WIDTHS) | {"transformer.context_embedder.alpha": np.asarray(6)}, file)
    assert open_lora(str(file), CONFIG).found["context_embedder"].scale == 3


def test_a_file_of_peft_whose_settings_are_not_there_is_warned_of(tmp_path, caplog):
    found = {
        name.replace("transformer.", "base_model.model."): v
        for name, v in tensors(**WIDTHS).items()
    }
    save_file(found, tmp_path / "any.safetensors")
    with caplog.at_level(logging.WARNING):
        assert open_lora(str(tmp_path), CONFIG).found["context_embedder"].scale == 1
    assert "adapter_config.json beside it with its alpha" in caplog.text
    caplog.clear()
    before = weights_inputs_of(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    assert open_lora(str(tmp_path), CONFIG).found["context_embedder"].scale == 4
    assert not caplog.text and weights_inputs_of(tmp_path) != before


def weights_inputs_of(place):
    return [file.read_bytes() for file in lora_files(str(place))]


@pytest.mark.parametrize(
    ("text", "place", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("owner/name:-1", "owner/name", -1.0),
        ("gs://bucket/a:.5e-1", "gs://bucket/a", 0.05),
        ("a:1E-1", "a", 0.1),
        ("a:b", "a:b", 1.0),
    ],
)
def test_a_lora_is_named_by_path_and_scale(text, place, scale):
    assert AddedLoRA.parse(text) == AddedLoRA(place, scale)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a PATH or PATH:SCALE"),
        ("a:1e999", "a scale of inf: use a number from -1000 to 1000"),
        ("a:-1e30", r"a scale of -1e\+30: use a number from"),
    ],
)
def test_a_lora_without_path_or_with_an_absurd_scale_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        AddedLoRA.parse(text)


def tensors(name="context_embedder", a=(2, 5), b=(16, 2), **others):
    found = {f"transformer.{name}.lora_A.weight": np.ones(a, np.float32)}
    return found | {f"transformer.{name}.lora_B.weight": np.ones(b, np.float32)} | others


WIDTHS = dict(a=(2, CONFIG.context_width), b=(CONFIG.width, 2))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            tensors("blocks.7.attn"),
            "adapts blocks.7.attn, which is not a dense layer of a Stable Diffusion 3 transformer",
        ),
        (tensors("pos_embed.proj"), "adapts pos_embed.proj, which is not a dense layer"),
        (tensors(b=(3, 2)), r"adapts context_embedder as .O, I. = .3, 5. and the network has"),
        (tensors(b=(3, 1)), "which are not .r, I. and .O, r."),
        (tensors(a=(0, 5), b=(16, 0)), "has a rank of 0"),
        (tensors(a=(2, 5, 1, 1)), "give a LoRA of dense layers"),
        ({"a.lora_A.weight": np.ones((2, 5))}, "has one matrix of a and not the other"),
        (
            tensors() | tensors("transformer_blocks.9.attn.to_q", (2, 16)),
            "adapts transformer_blocks.9.attn.to_q, which",
        ),
        (
            tensors() | {"context_embedder.lora_A.weight": np.ones((2, 5))},
            "context_embedder.lora_A.weight under another name as well",
        ),
        ({"a.hada_w1_a": np.ones((2, 5))}, "tensor a.hada_w1_a in .* is not a matrix of a LoRA"),
        (tensors(**{"transformer.context_embedder.alpha": np.asarray(np.nan)}), "has nan as alpha"),
        (tensors(**{"transformer.context_embedder.alpha": np.ones(3)}), "is not a single number"),
        ({"text_encoder.a.lora_A.weight": np.ones((2, 5))}, "no matrices of a transformer"),
    ],
)
def test_what_is_no_lora_of_the_network_is_a_sentence(tmp_path, found, sentence):
    save_file(found, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=sentence):
        open_lora(str(tmp_path / "a.safetensors"), CONFIG)


@pytest.mark.parametrize(
    ("given_settings", "sentence"),
    [
        ('{"transformer.lora_alpha": "many"}', "as alpha"),
        ('{"transformer.lora_alpha": 1' + "0" * 400 + "}", "have .1000.* as alpha"),
        ('{"transformer.alpha_pattern": {"(": 1}}', "are damaged"),
        ('{"transformer.use_dora": true}', "is a LoRA with DoRA"),
        ("[1]", "are damaged"),
        ("{", "are damaged"),
    ],
)
def test_damaged_settings_are_a_sentence(tmp_path, given_settings, sentence):
    file = tmp_path / "a.safetensors"
    save_file(tensors(**WIDTHS), file, {"lora_adapter_metadata": given_settings})
    with pytest.raises(UserError, match=sentence):
        open_lora(str(file), CONFIG)


def test_the_file_of_a_folder_is_found(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        open_lora(str(tmp_path / "none"), CONFIG)
    with pytest.raises(NotFoundError, match="has no .safetensors file"):
        open_lora(str(tmp_path), CONFIG)
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="pickled weights"):
        open_lora(str(tmp_path), CONFIG)
    for name in ("style.safetensors", "adapter_model.safetensors", "other.safetensors"):
        save_file(tensors(**WIDTHS), tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    opened = open_lora(str(tmp_path), CONFIG)
    assert opened.file.name == "adapter_model.safetensors"
    assert opened.found["context_embedder"].scale == 4
    opened.file.unlink()
    with pytest.raises(UserError, match="has 2 files, .* among them: name one"):
        open_lora(str(tmp_path), CONFIG)
    # macOS puts such files beside others.
    (tmp_path / "other.safetensors").rename(tmp_path / "._style.safetensors")
    assert open_lora(str(tmp_path), CONFIG).file.name == "style.safetensors"


@pytest.mark.parametrize(
    ("name", "value"), [("lora_A.weight", np.nan), ("lora_B.weight", np.inf), ("alpha", 3e38)]
)
def test_numbers_that_are_not_finite_are_named_as_they_are_read(tmp_path, name, value):
    found = tensors(**WIDTHS) | {"transformer.context_embedder.alpha": np.float32([2])}
    found["transformer.context_embedder.lora_B.weight"] *= 1e3
    found[f"transformer.context_embedder.{name}"][..., 0] = value
    save_file(found, tmp_path / "a.safetensors")
    opened = open_lora(str(tmp_path / "a.safetensors"), CONFIG)
    with pytest.raises(
        DamagedError, match=r"tensor .*context_embedder\.lora_[AB].* not finite, by"
    ):
        opened.load()


def test_a_truncated_file_is_a_sentence(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(tensors(**WIDTHS), file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="is truncated"):
        open_lora(str(file), CONFIG)
