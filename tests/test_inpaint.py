"""Filling holes: from pictures with masks to a base that reads them and does what it did before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from pipelines import save_pipeline

from configs import digits, sd3_turbo
from ladd_jax.cli.preflight import check
from ladd_jax.config import architectures
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import identity
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.sources import open_source
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.transformer import mmdit, widened
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.load import load_widened
from ladd_jax.weights import load_mmdit


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1}, jax.devices()[:1])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "sd3"
    save_pipeline(directory, latent_channels=4, qk_norm=True)
    return directory


def of_weights(pipeline, joined="inpaint", **changes):
    """A config that fine-tunes a released pipeline to fill holes."""
    config = sd3_turbo.get_config(f"size=tiny,weights={pipeline},resolution=128")
    config.stages = ("encode", "pretrain", "distil")
    config.data.update(dict(source="images", path="pictures", joined=joined))
    config.distil.data = "encoded"
    config.update_from_flattened_dict(changes)
    read_architectures(config)
    return config


@pytest.mark.parametrize("joined", [1, 3])
def test_a_first_layer_that_is_widened_by_zeros_does_the_same_whatever_the_channels_are(joined):
    narrow = tiny.mmdit_config()
    wide = dataclasses.replace(narrow, in_channels=narrow.in_channels + joined)
    params, batch = tiny.random_params(mmdit(narrow)), tiny.batch()
    # Of few bits, so that sums are exact and do not depend on how a product is cut.
    params["patch_embedding"]["kernel"] = jnp.round(params["patch_embedding"]["kernel"] * 64) / 64
    batch["latents"] = jnp.round(batch["latents"] * 64) / 64
    t = jnp.linspace(0.0, 1.0, tiny.B)
    channels = jax.random.normal(jax.random.PRNGKey(0), (*batch["latents"].shape[:3], joined))
    cond = batch["cond"] | {"channels": 100 * channels}
    before = mmdit(narrow)(params, batch["latents"], t, batch["cond"])
    after = mmdit(wide)(widened(params, wide), batch["latents"], t, cond)
    np.testing.assert_array_equal(after, before)
    assert float(jnp.max(jnp.abs(before))) > 0.1


def test_released_weights_begin_the_fine_tuning_with_zeros_for_mask_and_picture(pipeline, mesh):
    config = typed(of_weights(pipeline))
    assert architectures.weights_architecture(config).in_channels == 4
    assert architectures.student_architecture(config).in_channels == 9
    params = load_widened(config, mesh)
    kernel = params["patch_embedding"]["kernel"].reshape(4, 9, -1)
    whole = load_mmdit(pipeline, jnp.float32)
    np.testing.assert_array_equal(kernel[:, :4].reshape(16, -1),
                                  whole.params["patch_embedding"]["kernel"])  # fmt: skip
    assert not np.any(kernel[:, 4:])


def test_whether_weights_are_fine_tuned_follows_from_the_data_and_not_from_the_stages(pipeline):
    for stages in (("encode", "pretrain", "distil"), ("distil",)):
        fields = to_dict(typed(of_weights(pipeline, stages=stages)))
        made = identity(fields, "distil")["config"]
        assert made["pretrain"] == fields["pretrain"] and made["data"]["joined"] == "inpaint"
    plain = identity(to_dict(typed(of_weights(pipeline, joined=""))), "distil")["config"]
    assert "pretrain" not in plain
    with pytest.raises(UserError, match="the stage 'pretrain' makes a data generator and weights"):
        check(typed(of_weights(pipeline, joined="")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.joined": "outpaint"}, "data.joined 'outpaint' is none of inpaint: use one, or"),
        ({"data.joined": "inpaint", "model.joined_channels": 3}, "joined_channels is 3 and data"),
        ({"data.joined": "inpaint", "data.source": "prompts"}, "the source 'prompts', which has"),
        ({"data.mask_shares": (0.0, 0.0, 0.0)}, "use three numbers of 0 or more, not all 0"),
    ],
)
def test_what_cannot_be_filled_is_refused(changes, words):
    config = digits.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        typed(config)


@pytest.mark.parametrize("source", ["digits", "scenes"])
def test_every_record_has_a_mask_and_its_picture_without_what_is_to_be_filled(source, tmp_path):
    config = digits.get_config()
    bucket = Bucket(8, 8) if source == "digits" else Bucket(24, 24)
    config.data.update(dict(source=source, joined="inpaint", buckets=(bucket.name,), examples=20))
    opened = open_source(typed(config), [bucket], tmp_path)
    for part in (opened, opened.held_out):
        arrays = part.read(bucket, 3, 9)
        mask, held = np.split(arrays["channels"], [1], axis=-1)
        assert set(np.unique(mask)) == {0, 1}
        np.testing.assert_array_equal(held, np.where(mask, 0, arrays["latents"]))
        # A record's mask is its own, whichever are read with it.
        np.testing.assert_array_equal(part.read(bucket, 5, 6)["channels"][0],
                                      arrays["channels"][2])  # fmt: skip
    masks = [part.read(bucket, 3, 9)["channels"][..., 0] for part in (opened, opened.held_out)]
    assert (masks[0] != masks[1]).any()
