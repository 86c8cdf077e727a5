"""DINOv2 against Hugging Face's, and its files."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.flops import matrix_flops
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.models.dinov2 import Dinov2, Dinov2Config, dinov2_flops, normalised
from ladd_jax.models.resize import bicubic
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.weights.dinov2 import open_dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

KINDS = {
    "plain": {},
    "swiglu": {"use_swiglu_ffn": True},
    "registers": {"num_register_tokens": 3},
    "registers and swiglu": {"num_register_tokens": 1, "use_swiglu_ffn": True},
}


def opened(folder):
    """(network, parameters) of a folder, in float32."""
    found = open_dinov2(folder)
    network = Dinov2(found.config)
    return network, found.load(network)


def pictures(height, width, size=2, seed=0):
    return np.random.default_rng(seed).standard_normal((size, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
# The table's own 20 x 20, less, more, and one that only counts as many patches.
@pytest.mark.parametrize("sides", [(20, 20), (8, 12), (36, 28), (4, 100)], ids=str)
def test_it_is_hugging_faces_dinov2_with_its_gradient_at_the_picture(kind, sides, tmp_path):
    model = pipelines.save_dinov2(tmp_path, **KINDS[kind])
    network, params = opened(tmp_path)
    given = pictures(*sides)
    theirs = torch.tensor(given).permute(0, 3, 1, 2).requires_grad_()
    output = model(theirs, output_hidden_states=True)
    wanted = torch.stack(output.hidden_states).detach().numpy()
    last = output.last_hidden_state.detach().numpy()
    # A gradient at the tokens before the first block and after each.
    torch.autograd.backward(output.hidden_states, [state.detach().cos() for state in output[2]])
    slope = theirs.grad.permute(0, 2, 3, 1).numpy()

    @jax.jit
    def run(pixels):
        last, taps = network(params, pixels, tap=lambda _, tokens: tokens)
        tokens, back = network.features_vjp(params, pixels)
        return last, taps, tokens, back(jnp.cos(tokens))

    found, taps, tokens, gradient = run(given)
    assert tokens.shape == wanted.shape
    assert tiny.max_difference(tokens, wanted) < 1e-5
    assert tiny.max_difference(found, last) < 1e-5
    np.testing.assert_array_equal(taps, tokens[1:])
    assert tiny.max_difference(gradient, slope) < 1e-5


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.integers(1, 30), st.booleans()
)
def test_pictures_are_resized_as_pytorch_does(height, width, rows, columns, antialias):
    given = pictures(height, width)
    wanted = torch.nn.functional.interpolate(
        torch.tensor(given).permute(0, 3, 1, 2), (rows, columns), mode="bicubic",
        antialias=antialias,
    )  # fmt: skip
    found = bicubic(jnp.asarray(given), rows, columns, antialias=antialias)
    np.testing.assert_allclose(found, wanted.permute(0, 2, 3, 1).numpy(), atol=2e-5)


def test_pictures_are_scaled_as_its_processor_does():
    given = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), np.uint8)
    processor = transformers.BitImageProcessor(
        do_resize=False, do_center_crop=False, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    wanted = processor(list(given), return_tensors="np", input_data_format="channels_last")
    found = normalised(given.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), wanted["pixel_values"], atol=1e-5)
    grey = normalised(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(grey, normalised(jnp.zeros((1, 2, 2, 3))))


def test_up_to_a_block_it_is_the_first_blocks_of_the_whole_one(tmp_path):
    pipelines.save_dinov2(tmp_path)
    network, params = opened(tmp_path)
    found = open_dinov2(tmp_path)
    cut = Dinov2(Dinov2Config(**vars(found.config) | {"num_hidden_layers": 2}))
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    first = jax.device_get(found.load(cut, mesh))
    wanted = jax.device_get(
        params | {"blocks": jax.tree.map(lambda leaf: leaf[:2], params["blocks"])}
    )
    jax.tree.map(np.testing.assert_array_equal, first, wanted)


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_swiglu_ffn": True, "num_register_tokens": 4}, {"hidden_size": 192}],
    ids=str,
)
def test_its_flops_are_those_of_its_matrix_products(changes):
    config = Dinov2Config(num_hidden_layers=2, image_size=56, **changes)
    network = Dinov2(config)
    pixels = jax.ShapeDtypeStruct((1, 56, 56, 3), "float32")
    counted = matrix_flops(network, network.shapes, pixels)
    assert dinov2_flops(config, 56, 56) == pytest.approx(counted, rel=0.01)


def test_patches_have_the_pictures_own_token_added():
    network = Dinov2(Dinov2Config(num_register_tokens=2, num_hidden_layers=1))
    tokens = jnp.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    np.testing.assert_array_equal(network.places(tokens), tokens[:, 3:] + tokens[:, :1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2") / "dinov2-tiny"
    pipelines.save_dinov2(folder)
    return folder


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "vit"}, "is of a 'vit' model: give the folder of a DINOv2"),
        ({"model_type": []}, "is of a .* model: give the folder"),
        ({"hidden_size": "many"}, "hidden_size is 'many' in"),
        ({"num_attention_heads": 3}, "hidden_size 16 in .* not divisible by num_attention_heads 3"),
        ({"image_size": [20, 24]}, "image_size is .20, 24. in"),
        ({"patch_size": 40}, "patch_size 40 in .* is above image_size 20"),
        ({"use_swiglu_ffn": 1}, "neither true nor false"),
        ({"hidden_act": ["gelu"]}, "has hidden_act .* and only 'gelu' is supported"),
        ({"qkv_bias": False}, "has qkv_bias False and only True"),
        ({"use_swiglu_ffn": True}, "does not have the tensor encoder.layer.0.mlp.weights_in"),
        ({"num_hidden_layers": 2}, "has the unknown tensor encoder.layer.2"),
        ({"image_size": 24}, "position_embeddings in .* is .1, 26, 16. and the network needs"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused_in_a_sentence(saved, tmp_path, fields, words):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    change(folder, **fields)
    with pytest.raises(UserError, match=words):
        open_dinov2(folder)


def test_sides_may_be_given_as_two_and_a_classifier_holds_one(saved, tmp_path):
    _, wanted = opened(saved)
    folder = tmp_path / "classifier"
    base = transformers.Dinov2Model.from_pretrained(saved)
    model = transformers.Dinov2ForImageClassification(base.config)
    model.dinov2.load_state_dict(base.state_dict())
    model.save_pretrained(folder)
    change(folder, image_size=[20, 20], patch_size=[4, 4])
    jax.tree.map(np.testing.assert_array_equal, opened(folder)[1], wanted)


def test_files_that_are_not_there_or_damaged_are_named(saved, tmp_path):
    with pytest.raises(NotFoundError, match="dinov2-tin.*dinov2-tiny is there"):
        open_dinov2(saved.with_name("dinov2-tin"))
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="model.safetensors of 0 bytes is truncated"):
        open_dinov2(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="has no weights"):
        open_dinov2(folder)
    (folder / "config.json").unlink()
    with pytest.raises(NotFoundError, match="config.json: give the folder of a DINOv2"):
        open_dinov2(folder)
