"""Filling holes: from pictures with masks to a base that reads them and does what it did before."""

import dataclasses
import json
from types import SimpleNamespace

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from pipelines import save_pipeline
from sampled import command, draw, save_digits, save_filling
from untrained_run import export_sd3, save_generator, save_student

from configs import digits, sd3_inpaint, sd3_turbo, small_inpaint
from ladd_jax.cli import preflight
from ladd_jax.cli.preflight import check
from ladd_jax.config import architectures
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import identity
from ladd_jax.config.workdir import settle
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.images import decode_image, fit
from ladd_jax.data.joined import JOINED, Joined
from ladd_jax.data.masks import reduced
from ladd_jax.data.sources import open_source
from ladd_jax.data.sources.inpainting import record_masks
from ladd_jax.diffusion.samplers import sample_noise
from ladd_jax.diffusion.sampling import Sampler, seeds
from ladd_jax.errors import UserError
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.rows import read_metrics
from ladd_jax.models.sd3.transformer import mmdit, widened
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import evaluate as stage
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import _grid
from ladd_jax.stages.export import export
from ladd_jax.stages.flow_matching import pretrain
from ladd_jax.stages.given import GivenFiles, open_given
from ladd_jax.stages.holes import Holes, completed, errors
from ladd_jax.stages.judging import Originals, look_at
from ladd_jax.stages.latents import of_pixels
from ladd_jax.stages.load import load_generator, load_widened
from ladd_jax.stages.trained import check_text_alone, open_trained
from ladd_jax.weights import load_autoencoder, load_mmdit
from ladd_jax.weights.source import PIPELINE_INDEX

FILLED = ("masked_distance", "masked_error", "known_error")


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
        (
            {"data.joined": "outpaint"},
            "data.joined 'outpaint' is not one of inpaint, edit: use one of them, or",
        ),
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


def test_a_kind_that_there_is_not_is_told_by_its_field_where_weights_are_read_first(pipeline):
    config = of_weights(pipeline, "inpainting", **{"teacher.weights": str(pipeline)})
    with pytest.raises(UserError, match="data.joined 'inpainting' is not one of inpaint"):
        typed(config)


@pytest.mark.parametrize("other", ["text", "mask"])
def test_a_teacher_that_is_given_something_else_is_told_with_what_is_joined(
    pipeline, tmp_path, other
):
    teacher, joined = pipeline, "inpaint"
    words = "data.joined is 'inpaint', .* 5 channels .* reads 0: use a teacher that was trained for"
    if other == "mask":
        teacher, joined = tmp_path / "filler", ""
        fields = dict(in_channels=9, out_channels=4, context_width=32, pooled_width=20)
        teacher = reference.save(reference.transformer(**fields), teacher)
        words = "data.joined is '', .* 0 channels .* reads 5: .* or leave teacher.weights out"
    with pytest.raises(UserError, match=words):
        of_weights(pipeline, joined, **{"teacher.weights": str(teacher)})


def test_a_base_that_is_not_made_is_told_before_data_are_encoded(pipeline, photographs, tmp_path):
    config = small_sd3(pipeline, photographs)
    words = "which the weights .* do not read, and the stage 'pretrain', .* 'distil' would not find"
    config.stages = ("encode", "distil")
    with pytest.raises(UserError, match=words):
        check(typed(config), tmp_path)
    config.stages = ("encode", "evaluate")
    with pytest.raises(UserError, match=words.replace("distil", "evaluate")):
        preflight._check_base(typed(config), tmp_path)
    for stages in (("encode",), ("distil",), ("encode", "pretrain", "distil")):
        config.stages = stages
        preflight._check_base(typed(config), tmp_path)
    # It was made before.
    config.stages = ("encode", "distil")
    (tmp_path / "pretrain" / "checkpoints" / "10000").mkdir(parents=True)
    preflight._check_base(typed(config), tmp_path)
    config.pretrain.steps = 20_000
    with pytest.raises(UserError, match=words):
        preflight._check_base(typed(config), tmp_path)


@pytest.mark.parametrize("field", ["data.joined", "model.joined_channels"])
def test_prompts_alone_are_refused_as_subjects_before_anything_is_made(field):
    config = digits.get_config()
    config.evaluate.update(dict(prompts="prompts.txt", extractor="own"))
    preflight._check_subjects(typed(config))
    value = "inpaint" if field == "data.joined" else 3
    config.update_from_flattened_dict({field: value})
    words = f"evaluate.prompts is .* and {field} is {value!r}: prompts have no pictures"
    with pytest.raises(UserError, match=words):
        preflight._check_subjects(typed(config))


def test_weights_that_fill_holes_are_refused_without_masks(tmp_path):
    transformer = save_pipeline(tmp_path / "sd3", latent_channels=4, qk_norm=True).transformer
    sizes = dict(transformer.config) | {"in_channels": 9, "out_channels": 4}
    type(transformer).from_config(sizes).save_pretrained(tmp_path / "sd3" / "transformer")
    assert typed(of_weights(tmp_path / "sd3")).model.joined_channels == 5
    with pytest.raises(UserError, match="a mask and a masked picture: set data.joined=inpaint, "):
        typed(of_weights(tmp_path / "sd3", joined=""))


def test_weights_of_another_kind_with_as_many_channels_are_told_by_their_class(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(JOINED, "depth", Joined(lambda channels: channels, "a picture of depth"))
    transformer = save_pipeline(tmp_path / "sd3", latent_channels=4, qk_norm=True).transformer
    sizes = dict(transformer.config) | {"in_channels": 8, "out_channels": 4}
    type(transformer).from_config(sizes).save_pretrained(tmp_path / "sd3" / "transformer")
    # A class that any of both may have: the user says which.
    assert typed(of_weights(tmp_path / "sd3", joined="depth")).data.joined == "depth"
    with pytest.raises(UserError, match=r"is edited or a picture of depth: set .*=edit or depth, "):
        typed(of_weights(tmp_path / "sd3", joined=""))
    file = tmp_path / "sd3" / PIPELINE_INDEX
    index = json.loads(file.read_text())
    index["_class_name"] = "StableDiffusion3InstructPix2PixPipeline"
    file.write_text(json.dumps(index))
    assert typed(of_weights(tmp_path / "sd3", joined="edit")).data.joined == "edit"
    words = "which read the picture that is edited, and data.joined is 'depth': set it to edit, or"
    with pytest.raises(UserError, match=words):
        of_weights(tmp_path / "sd3", joined="depth")


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


@pytest.fixture(scope="module")
def filling_run(tmp_path_factory):
    """An untrained run that fills holes of digits."""
    return save_filling(tmp_path_factory.mktemp("filling"))


class Mean:
    """Looks at the mean of a picture."""

    def look(self, images, prompts):
        return images.mean(axis=(1, 2))[:, None].astype(np.float64), None


def test_a_run_is_judged_by_the_holes_that_it_fills(tmp_path, monkeypatch):
    config = digits.get_config()
    config.data.update(dict(joined="inpaint", buckets=("8x8",), examples=40, held_out_examples=20))
    config.model.update(dict(depth=1, width=16, unroll=1))
    config.heads.update(dict(channels=8))
    config.pretrain.steps, config.distil.steps, config.finetune.steps = 2, 2, 0
    config.distil.update(dict(data="encoded", follows="generator"))
    config.evaluate.update(
        dict(metrics=("fd_real", *FILLED), samples=12, batch_size=12, resamples=2,
             student_steps=(1,), teacher_steps=(2,))
    )  # fmt: skip
    config.synthesize.steps = 2
    config = typed(config)
    encode(config, tmp_path)
    save_student(config, tmp_path)
    save_generator(config, tmp_path)
    # The own extractor of digits would be trained first.
    monkeypatch.setattr(stage, "open_judge", lambda *given: Mean())
    stage.evaluate(config, tmp_path)
    rows, _ = read_metrics(tmp_path / "metrics.json")
    made = {row.model: row.values for row in rows if row.bucket == "all"}
    assert set(made) == {"data", "generator", "teacher", "untrained", "student"}
    assert not made.pop("data").keys() & set(FILLED)
    for values in made.values():
        assert all(0 < values[name] < 10 for name in FILLED) and values["fd_real"] > 0


@pytest.fixture
def files(tmp_path):
    """A picture, a mask whose right half is white, and one that is black."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    found = {"picture": pixels, "mask": mask, "black": 0 * mask, "small": mask[:4]}
    for name, array in found.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in found}


def test_pixels_that_are_known_come_back_as_they_were(filling_run, files, tmp_path):
    pictures, _ = draw(
        tmp_path / "out", "--prompt=three", checkpoint=filling_run, image=files["picture"],
        mask=files["mask"], num=2, steps=1,
    )  # fmt: skip
    grey = Image.open(files["picture"]).convert("L")
    shown = np.asarray(grey).repeat(8, axis=0).repeat(8, axis=1)
    one, other = (np.asarray(pictures["three", seed].convert("L")) for seed in (0, 1))
    np.testing.assert_array_equal(one[:, :32], shown[:, :32])
    np.testing.assert_array_equal(other[:, :32], shown[:, :32])
    assert (one[:, 32:] != other[:, 32:]).mean() > 0.5
    assert pictures["three", 0].text["mask"].startswith("mask.png ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "is given a picture: name one by --image=FILE"),
        (
            {"image": "picture"},
            "fills the part that a mask marks: name one by --mask=FILE, white where",
        ),
        ({"mask": "mask"}, "needs a picture: give --image=FILE, too"),
        ({"image": "picture", "mask": "black"}, "has nothing white in the part that is used"),
        (
            {"image": "picture", "mask": "small"},
            "has 8x4 pixels and its picture .* 8x8: make the mask",
        ),
        ({"image": "picture", "mask": "mask", "strength": 0.5}, "leave --strength out"),
    ],
    ids=str,
)
def test_what_a_network_that_fills_holes_lacks_is_told(filling_run, files, tmp_path, given, words):
    given = {name: files.get(value, value) for name, value in given.items()}
    with pytest.raises(UserError, match=words):
        draw(tmp_path / "out", "--prompt=three", checkpoint=filling_run, num=1, steps=1, **given)


def test_a_network_that_fills_holes_is_refused_for_benchmarks_of_others(
    filling_run, files, tmp_path
):
    (tmp_path / "annotation_images").mkdir()
    Image.open(files["picture"]).save(tmp_path / "annotation_images" / "a.png")
    pie, geneval = tmp_path / "m.json", tmp_path / "m.jsonl"
    pie.write_text(json.dumps({"0": dict(image_path="a.png", editing_instruction="remove it")}))
    geneval.write_text(json.dumps({"tag": "single_object", "prompt": "two"}))
    with pytest.raises(UserError, match="--piebench is for a network that edits .* leave it out"):
        command(tmp_path / "out", checkpoint=filling_run, piebench=pie)
    with pytest.raises(UserError, match="and --geneval gives none: leave --geneval out"):
        command(tmp_path / "out", checkpoint=filling_run, geneval=geneval)


def test_all_masks_are_looked_at_before_the_network_is_read(
    filling_run, files, tmp_path, monkeypatch
):
    monkeypatch.setattr("ladd_jax.stages.sample.Prompted", None)
    other = tmp_path / "other.png"
    other.write_bytes(files["picture"].read_bytes())
    for wrong, words in (("small", "has 8x4 pixels"), ("black", "has nothing white")):
        with pytest.raises(UserError, match=words):
            draw(
                tmp_path / "out", "--prompt=one", "--prompt=two", checkpoint=filling_run,
                image=f"{files['picture']},{other}",
                mask=f"{files['mask']},{files[wrong]}",
            )  # fmt: skip


@pytest.mark.parametrize("joined", ["", "edit", "inpaint"])
def test_a_picture_is_encoded_once_for_all_its_seeds(files, joined):
    encoded, pixels = [], of_pixels(1)
    pictures = dataclasses.replace(
        pixels, latents_of=lambda each: encoded.append(1) or pixels.latents_of(each)
    )
    trained = SimpleNamespace(joined=joined, pictures=pictures)
    given = open_given(trained, Bucket(8, 8), [GivenFiles(files["picture"], files["mask"])])
    one, other = (given.channels(0) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(encoded) == 1 and one.shape == (8, 8, 2 if joined == "inpaint" else 1)


def test_a_mask_is_refused_by_a_network_that_fills_none(files, tmp_path):
    run = save_digits(tmp_path / "run")
    with pytest.raises(
        UserError, match="--mask is for a network that fills holes, which .* does not"
    ):
        draw(tmp_path / "out", "--prompt=three", checkpoint=run, image=files["picture"],
             mask=files["mask"])  # fmt: skip


def test_what_is_completed_is_judged_in_its_hole_and_around_it():
    rng = np.random.default_rng(0)
    wholes, samples = rng.standard_normal((2, 3, 8, 8, 1))
    masks = np.zeros((3, 4, 4), bool)
    masks[:, 1:3, :2] = True
    inside = np.zeros((3, 8, 8, 1), bool)
    inside[:, 2:6, :4] = True
    filled = completed(samples, wholes, masks)
    np.testing.assert_array_equal(filled[inside], samples[inside])
    np.testing.assert_array_equal(filled[~inside], wholes[~inside])
    off = errors(samples, wholes, masks)
    np.testing.assert_allclose(off["masked"].mean(), np.square(samples - wholes)[inside].mean())
    np.testing.assert_allclose(off["known"].mean(), np.square(samples - wholes)[~inside].mean())
    assert not errors(filled, wholes, masks)["known"].any()


@pytest.mark.parametrize("show", [None, lambda latents: latents.repeat(2, 1).repeat(2, 2)])
def test_metrics_of_holes_are_those_of_completed_pictures(show):
    rng, bucket = np.random.default_rng(0), Bucket(4, 4)
    wholes, samples = rng.standard_normal((2, 20, 4, 4, 1)).astype(np.float32)
    masks = np.zeros((20, 4, 4), bool)
    masks[:, :2] = True
    holes = {bucket: Holes(masks, wholes)}
    prompts = {bucket: np.array(["a"] * 20)}
    found = look_at(Mean(), {bucket: samples}, prompts, show, holes)
    off = samples[:, :2] - wholes[:, :2]
    values = {name: METRICS[name].measure(found, found) for name in FILLED}
    assert values["masked_error"] == pytest.approx(np.sqrt(np.mean(off**2)), rel=1e-6)
    assert values["known_error"] == pytest.approx(
        np.sqrt(np.mean((samples - wholes)[:, 2:] ** 2)), rel=1e-6
    )
    distances = np.abs(off.sum(axis=(1, 2, 3)) / 16)
    assert values["masked_distance"] == pytest.approx(distances.mean(), rel=1e-5)
    assert METRICS["masked_error"].measure(look_at(Mean(), {bucket: samples}, prompts), []) is None
    assert len(found[0].take(np.arange(5)).errors["masked"]) == 5


def test_whole_pictures_are_decoded_and_looked_at_once_for_all_samples():
    rng, bucket = np.random.default_rng(0), Bucket(4, 4)
    wholes, *samples = rng.standard_normal((3, 20, 4, 4, 1)).astype(np.float32)
    masks = np.zeros((20, 4, 4), bool)
    masks[:, :2] = True
    shown, looked, prompts = [], [], {bucket: np.array(["a"] * 20)}

    def show(latents):
        shown.append(len(latents))
        return latents.repeat(2, 1).repeat(2, 2)

    class Counting(Mean):
        def look(self, images, prompts):
            looked.append(len(images))
            return super().look(images, prompts)

    originals, holes = Originals(), {bucket: Holes(masks, wholes)}
    found = [
        look_at(Counting(), {bucket: each}, prompts, show, holes, originals=originals)[0]
        for each in samples
    ]
    # Two sets of samples, and the whole pictures once.
    assert sum(shown) == sum(looked) == 3 * 20
    for each, seen in zip(samples, found, strict=True):
        [alone] = look_at(Mean(), {bucket: each}, prompts, show, holes)
        for name, values in alone.errors.items():
            np.testing.assert_array_equal(seen.errors[name], values)


def test_pictures_of_the_report_are_completed_in_pixels():
    rng, bucket = np.random.default_rng(0), Bucket(4, 4)
    wholes, samples = rng.standard_normal((2, 4, 4, 4, 1)).astype(np.float32)
    masks = np.zeros((4, 4, 4), bool)
    masks[:, :2] = True
    prompts, stage = np.array(["a", "a", "b", "b"]), typed(small_inpaint.get_config()).evaluate

    def show(latents):
        # As of a decoder, each pixel depends on all of the latent.
        return (latents + latents.mean((1, 2), keepdims=True)).repeat(2, 1).repeat(2, 2)

    grid = _grid("x", bucket, samples, prompts, stage, show, Holes(masks, wholes), Originals())
    assert grid.images.shape == (2, 2, 8, 8, 1) and list(grid.prompts) == ["a", "b"]
    images = grid.images.reshape(4, 8, 8, 1)
    np.testing.assert_array_equal(images[:, 4:], show(wholes)[:, 4:])
    np.testing.assert_array_equal(images[:, :4], show(samples)[:, :4])


LENGTH = 8


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the export, workdir) of an untrained student with the channels of SD3."""
    return export_sd3(sd3_inpaint.get_config, tmp_path_factory.mktemp("sd3"), LENGTH)


def test_diffusers_own_pipeline_loads_an_export_and_fills_the_same_hole(
    exported, tmp_path, monkeypatch
):
    import torch
    from diffusers import DiffusionPipeline, StableDiffusion3InpaintPipeline
    from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_inpaint as module

    out, workdir = exported
    card = (out / "README.md").read_text()
    assert "pipe = StableDiffusion3InpaintPipeline.from_pretrained" in card
    assert "strength=1.0," in card and "Img2Img" not in card and "ComfyUI" not in card
    pipe = DiffusionPipeline.from_pretrained(out, dtype=torch.float32)
    assert type(pipe) is StableDiffusion3InpaintPipeline
    assert pipe.transformer.config.in_channels == 33
    pipe.set_progress_bar_config(disable=True)

    mesh, bucket = make_mesh({}, jax.devices()[:1]), Bucket(8, 8)
    trained = open_trained(str(workdir), None, None, None, mesh)
    reduction = trained.reduction
    side = 8 * reduction
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    white = np.zeros((side, side), np.uint8)
    white[reduction : 4 * reduction, : 5 * reduction] = 255
    images = {"picture": Image.fromarray(picture), "mask": Image.fromarray(white)}
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    files = GivenFiles(tmp_path / "picture.png", tmp_path / "mask.png")
    given = open_given(trained, bucket, [files])
    text = trained.encoder().encode(["a red cat", ""])
    cond, null = ({name: array[i] for name, array in text.items()} for i in ([0], 1))
    cond["channels"] = given.channels(0)[None]
    sampler = Sampler(trained.family.backbone(trained.architecture), null, mesh, 1)
    key, sampling = seeds(0, 5), trained.sampling(4, None, None)
    ours = sampler(trained.load(), key, cond, (8, 8, 16), sampling)[0]

    noise = [
        torch.from_numpy(np.array(sample_noise(key, i, (8, 8, 16))).transpose(0, 3, 1, 2).copy())
        for i in range(5)
    ]
    fresh = iter(noise[1:])
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor",
        lambda shape, **_: next(fresh).reshape(shape),
    )
    # Without what the autoencoder draws.
    monkeypatch.setattr(module, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
    theirs = pipe(
        "a red cat", image=images["picture"], mask_image=images["mask"], strength=1.0,
        sigmas=[float(sigma) for sigma in sampling.sigmas[:-1]], guidance_scale=1.0,
        height=side, width=side, max_sequence_length=LENGTH, latents=noise[0],
        output_type="latent",
    ).images[0].numpy().transpose(1, 2, 0)  # fmt: skip
    assert np.std(ours) > 0.1
    assert np.max(np.abs(theirs - ours)) / np.max(np.abs(ours)) < 1e-3


def test_an_export_knows_what_it_is_given_and_other_layouts_are_refused(exported, tmp_path):
    out, workdir = exported
    again = open_trained(str(out), None, None, jnp.float32, make_mesh({}, jax.devices()[:1]))
    assert again.joined == "inpaint" and again.times == (1.0, 0.75, 0.5, 0.25)
    with pytest.raises(UserError, match="data.joined is 'inpaint'.*use --layout=diffusers"):
        export(workdir, tmp_path / "out", layout="single")
    with pytest.raises(UserError, match="besides prompts, and --a gives none: leave --a out"):
        check_text_alone(again, "--a")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of pictures of noise and their prompts."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red cat")
    return folder


def small_sd3(pipeline, photographs, *arguments):
    """`sd3_inpaint` of a small pipeline, whose latents are of 8 x 8."""
    given = (f"size=tiny,weights={pipeline},data={photographs},resolution=128", *arguments)
    config = sd3_inpaint.get_config(",".join(given))
    config.data.update(
        dict(buckets=("8x8",), text_length=77 + LENGTH, text_batch_size=8, held_out=0.1)
    )
    config.model.update(dict(dtype="float32", remat="none"))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    config.mesh.update(dict(data=-1, fsdp=1))
    config.pretrain.batch_size = config.distil.batch_size = 8
    config.log.update(dict(every=1, samples_every=0))
    read_architectures(config)
    return config


def test_a_picture_is_encoded_with_its_mask_and_what_is_left_of_it(pipeline, photographs, tmp_path):
    config, bucket = typed(small_sd3(pipeline, photographs)), Bucket(8, 8)
    source = open_source(config, [bucket], tmp_path)
    arrays = source.read(bucket, 0, 4)
    assert arrays["channels"].shape == (4, 8, 8, 5) and arrays["latents"].shape == (4, 8, 8, 4)
    keys = [source.where(bucket, i)[1].removeprefix("picture ") for i in range(4)]
    autoencoder, params = load_autoencoder(pipeline, jnp.float32)
    reduction = autoencoder.reduction
    side = 8 * reduction
    masks = record_masks(config, keys, side, side, reduction)
    files = [photographs / f"{key}.png" for key in keys]
    pixels = np.stack([fit(decode_image(file.read_bytes()), side, side) for file in files])
    held = jax.jit(autoencoder.encode)(params, np.where(masks[..., None], 0, pixels))
    np.testing.assert_allclose(arrays["channels"][..., 1:], held, atol=1e-5)
    small = [reduced(mask, reduction) for mask in masks]
    np.testing.assert_array_equal(arrays["channels"][..., 0], small)


@pytest.mark.slow
def test_the_stages_run_from_weights_to_a_student(pipeline, photographs, tmp_path):
    config = small_sd3(pipeline, photographs, "steps=2", "pretrain=2")
    config.pretrain.optimizer.learning_rate = 1e-2
    config = typed(config)
    check(dataclasses.replace(config, stages=("encode", "pretrain", "distil")))
    settle(tmp_path, to_dict(config))
    encode(config, tmp_path)
    pretrain(config, tmp_path)
    mesh = make_mesh(config.mesh.sizes)
    kernel = load_generator(config, tmp_path, mesh)["patch_embedding"]["kernel"]
    begun = load_widened(config, mesh)["patch_embedding"]["kernel"]
    by_channel = np.abs(np.asarray(kernel - begun)).reshape(4, 9, -1).max(axis=(0, 2))
    assert (by_channel > 1e-6).all()
    distil(config, tmp_path)
    assert open_trained(str(tmp_path), None, None, None, mesh).joined == "inpaint"


@pytest.mark.parametrize("recipe", ["paper", "robust"])
@pytest.mark.parametrize("module", [small_inpaint, sd3_inpaint], ids=lambda m: m.__name__)
def test_holes_are_filled_from_real_pictures_with_the_distillation_loss(module, recipe):
    config = typed(module.get_config(f"recipe={recipe}"))
    assert "synthesize" not in config.stages and "pretrain" in config.stages
    assert (config.distil.data, config.distil.distillation_weight) == ("encoded", 2.5)
    assert config.finetune.steps == 0 and config.distil.follows == "generator"
    network = architectures.student_architecture(config)
    assert network.in_channels == 2 * network.out_channels + 1
    assert architectures.teacher_architecture(config).in_channels == network.in_channels


def test_small_inpaint_takes_pictures_and_refuses_sides_that_it_has_not():
    config = typed(small_inpaint.get_config("data=somewhere,resolution=32"))
    assert (config.data.source, config.data.path) == ("images", "somewhere")
    with pytest.raises(UserError, match="resolution 512 is not from 8 to 64"):
        small_inpaint.get_config("resolution=512")
    with pytest.raises(UserError, match="resolution is 16 and data is empty: scenes have 24 x 24"):
        small_inpaint.get_config("resolution=16")
    assert small_inpaint.get_config("resolution=24").data.buckets == ("24x24",)
