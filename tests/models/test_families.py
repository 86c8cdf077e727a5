"""Families of networks, by name and by what a released pipeline says of itself."""

import json

import jax
import numpy as np
import pytest
import tiny

from ladd_jax.errors import UserError
from ladd_jax.models.families import Family, family, family_of_pipeline
from ladd_jax.models.sd3.flops import forward_flops


def test_a_family_that_there_is_not_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"model\.family 'flux' is not one of sd3"):
        family("flux")


def test_a_family_without_files_of_others_refuses_what_asks_for_them():
    sd3 = family("sd3")
    needed = (
        "name", "architecture", "weight_fields", "backbone", "cut_params", "forward_flops",
        "cond_shapes", "sides", "preview",
    )  # fmt: skip
    small = Family(**{name: getattr(sd3, name) for name in needed})
    with pytest.raises(UserError, match=r"this model\.family have no files of weights: use"):
        small.open_weights("weights", "float32")
    assert small.text_blocks(77) == {} and small.layouts == {}


def test_a_pipeline_names_its_family(tmp_path):
    assert family_of_pipeline(str(tmp_path / "t.safetensors")).name == "sd3"
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    # What fits nothing is left to the first family, whose reader says what it found.
    assert family_of_pipeline(str(tmp_path)).name == "sd3"
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(UserError, match=r"model_index\.json is damaged"):
        family_of_pipeline(str(tmp_path))


def test_a_condition_of_sd3_has_the_shapes_that_its_network_reads():
    sd3, config = family("sd3"), tiny.mmdit_config()
    shapes = sd3.cond_shapes(config, 4, 8, 5)
    cond = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    batch = {
        name: jax.ShapeDtypeStruct((3, *array.shape), "float32") for name, array in cond.items()
    }
    network = sd3.backbone(config)
    latents = jax.ShapeDtypeStruct((3, 8, 4, 2), "float32")
    time = jax.ShapeDtypeStruct((3,), "float32")
    assert jax.eval_shape(network, network.shapes, latents, time, batch).shape == latents.shape
    assert sd3.forward_flops(config, 8, 4, cond) == forward_flops(config, 8, 4, 5)
    assert sd3.sides(config) == (2, 16)


def test_what_weights_decide_are_the_sizes_of_a_network():
    fields = set(family("sd3").weight_fields)
    assert {"depth", "width", "patch", "qk_norm", "position_base"} <= fields
    assert not fields & {"remat", "unroll", "cut", "quantized", "dtype", "param_dtype"}


def test_latents_of_sd3_are_shown_in_colours_without_the_autoencoder():
    preview = family("sd3").preview
    grey = preview(np.zeros((2, 4, 6, 16), np.float32))
    assert grey.shape == (2, 4, 6, 3) and not grey.any()
    latents = np.zeros((3, 4, 6, 16), np.float32)
    # The channel that is red most of all, that which lightens, and that which darkens.
    for latent, channel in zip(latents, (2, 10, 15), strict=True):
        latent[..., channel] = 4
    red, light, dark = preview(latents)
    assert (red[..., 0] > red[..., 1] + 0.3).all() and (red[..., 0] > red[..., 2] + 0.3).all()
    assert (light > 0.4).all() and (dark < -0.4).all()
    assert np.abs(preview(100 * latents)).max() == 1
    # No colours are known of other autoencoders.
    for channels, shown in ((1, 1), (2, 1), (4, 3)):
        assert preview(np.ones((4, 6, channels), np.float32)).shape == (4, 6, shown)
