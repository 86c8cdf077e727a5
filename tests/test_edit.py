"""A network that edits: what it is given, how its edits are judged, and who else reads it."""

import ast
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pipelines import save_pipeline
from sampled import command, draw, save_digits
from untrained_run import export_sd3, save_student

from configs import digits, sd3_edit, small_edit, small_inpaint
from ladd_jax.cli.preflight import check
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.workdir import settle
from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.samplers import sample_noise
from ladd_jax.diffusion.sampling import Sampler, seeds
from ladd_jax.errors import UserError
from ladd_jax.evaluation.metrics import METRICS
from ladd_jax.evaluation.rows import BARS, EDITING_BARS, FILLING_BARS, Row, aggregate, bars_of
from ladd_jax.models.base import CHANNELS
from ladd_jax.objectives.flow_matching import drop_conditions
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import quick_metrics
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import evaluate, measured_of, notes_of
from ladd_jax.stages.export import export
from ladd_jax.stages.flow_matching import pretrain
from ladd_jax.stages.given import GivenFiles, open_given
from ladd_jax.stages.judging import Edits, look_at
from ladd_jax.stages.synthesize import synthesize
from ladd_jax.stages.trained import open_trained, read_facts
from ladd_jax.weights.source import PIPELINE_INDEX

LENGTH = 8


def test_training_loses_text_picture_or_both_in_the_shares_of_the_paper():
    count = 20_000
    cond = {"pooled": jnp.ones((count, 2)), CHANNELS: jnp.ones((count, 1, 1, 1))}
    null = {"pooled": jnp.zeros(2)}
    dropped = drop_conditions(jax.random.PRNGKey(0), 0.1, cond, null, 0.1)
    text, picture = (np.asarray(dropped[name]).reshape(count, -1)[:, 0] == 0 for name in cond)
    for found in (text & ~picture, picture & ~text, text & picture):
        assert abs(found.mean() - 0.05) < 0.006
    # Whether a text is lost does not depend on the share of the pictures.
    lost = jax.random.bernoulli(jax.random.PRNGKey(0), 0.1, (count,))
    np.testing.assert_array_equal(text, lost)
    alone = drop_conditions(jax.random.PRNGKey(0), 0.1, cond, null)
    np.testing.assert_array_equal(np.asarray(alone["pooled"])[:, 0] == 0, lost)
    assert np.all(np.asarray(alone[CHANNELS]) == 1)


class Beside:
    """Looks at what a picture is off its source."""

    def look(self, images, prompts):
        return images.mean(axis=(1, 2))[:, None].astype(np.float64), None

    def look_at_edits(self, images, prompts, sources):
        return self.look(images, prompts)[0], np.abs(images - sources).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("show", [None, lambda latents: latents.repeat(2, 1).repeat(2, 2)])
def test_edits_are_judged_beside_their_sources_and_the_true_pictures(show):
    rng, bucket = np.random.default_rng(0), Bucket(4, 4)
    sources, truths, samples = rng.uniform(-1, 1, (3, 20, 4, 4, 1)).astype(np.float32)
    prompts = {bucket: np.array(["a"] * 20)}
    edits = {bucket: Edits(sources, truths)}
    [found] = look_at(Beside(), {bucket: samples}, prompts, show, edits=edits)
    np.testing.assert_allclose(
        found.alignment, np.abs(samples - sources).mean(axis=(1, 2, 3)), rtol=1e-5
    )
    expected = np.mean(np.sqrt(np.mean((samples - truths) ** 2, axis=(1, 2, 3))))
    assert METRICS["edit_error"].measure([found], []) == pytest.approx(expected, rel=1e-5)
    [alone] = look_at(Beside(), {bucket: samples}, prompts, show)
    assert alone.alignment is None and METRICS["edit_error"].measure([alone], []) is None


class Blind:
    """Looks at pictures and their texts, and at no source; counts the pictures."""

    looked = 0

    def look(self, images, prompts):
        Blind.looked += len(images)
        return images.mean(axis=(1, 2))[:, None].astype(np.float64), np.ones(len(images))


def test_who_sees_no_source_says_nothing_of_how_well_edits_fit_their_instructions():
    rng, bucket = np.random.default_rng(0), Bucket(4, 4)
    sources, truths, samples = rng.uniform(-1, 1, (3, 4, 4, 4, 1)).astype(np.float32)
    prompts = {bucket: np.array(["a"] * 4)}
    edits = {bucket: Edits(sources, truths)}
    [found] = look_at(Blind(), {bucket: samples}, prompts, edits=edits)
    assert found.alignment is None and "edit_error" in found.errors
    [alone] = look_at(Blind(), {bucket: samples}, prompts)
    assert alone.alignment is not None


@pytest.mark.parametrize("data", ["encoded", "synthesized"])
def test_previews_are_held_against_true_edits_and_no_samples(data, monkeypatch):
    config = small()
    config.log.quick_samples = 4
    config.distil.data = data
    config, bucket = typed(config), Bucket(4, 4)
    rng = np.random.default_rng(0)
    records = {
        "prompt": ["a"] * 4, "cond": {CHANNELS: rng.standard_normal((4, 4, 4, 3))},
        "latents": rng.standard_normal((4, 4, 4, 3)),
    }  # fmt: skip
    shards = SimpleNamespace(sizes={bucket: 4}, read=lambda *_: records)
    monkeypatch.setattr(quick_metrics, "open_judge", lambda *_: Blind())
    shown = []

    def show(latents):
        shown.append(latents)
        return latents

    metrics = quick_metrics.QuickMetrics(config, None, shards, [bucket], None, show)
    assert not shown
    found = metrics({1: lambda bucket, cond: rng.standard_normal((4, 4, 4, 3))})
    assert ("preview/edit_error/1" in found) == (data == "encoded")
    assert "preview/fd/1" in found and "preview/alignment/1" not in found


def test_the_report_names_both_scales_that_a_student_was_told():
    config = small_edit.get_config("knobs=1,guidance=2,image_guidance=1.5")
    notes = " ".join(notes_of(typed(config)))
    low, high = config.synthesize.image_guidance_range
    assert f"and the image guidance, {low:g} to {high:g}. " in notes
    assert "samples of guidance 2 and image guidance 1.5." in notes


@pytest.mark.parametrize(
    ("config", "bars"),
    [(small_edit, EDITING_BARS), (small_inpaint, FILLING_BARS), (digits, BARS)],
    ids=["edit", "inpaint", "text"],
)
def test_rows_of_a_run_have_limits_of_their_own_whatever_is_asked_for(config, bars):
    config = config.get_config()
    config.evaluate.metrics = ("fd", "alignment")
    measured = measured_of(typed(config)).metrics
    assert measured[:2] == ("fd", "alignment")
    values = dict.fromkeys(measured, 0.9)
    runs = [[Row("student", 4, 1.0, "all", values), Row("data", 0, 1.0, "all", {"fd": 0.1})]] * 2
    assert bars_of(runs[0]) == bars_of(aggregate(runs)) == bars


def small(**data):
    """`small_edit` with a tiny network."""
    config = small_edit.get_config("recipe=paper")
    config.data.update(dict(examples=16, held_out_examples=4) | data)
    config.model.update(dict(depth=1, width=16, num_heads=1, patch=8, position_table=3))
    config.heads.update(dict(channels=8))
    config.pretrain.update(dict(steps=2, batch_size=8))
    config.distil.update(dict(steps=2, batch_size=8, head_updates=1))
    config.synthesize.steps = 2
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained run that edits scenes."""
    workdir = tmp_path_factory.mktemp("editing")
    save_student(typed(small()), workdir)
    return workdir


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_another_picture_is_edited_to_another_one(run, picture, tmp_path):
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(tmp_path / "other.png")
    one, other = (
        draw(tmp_path / name, "--prompt=remove the seven", checkpoint=run, num=1, steps=1,
             image=tmp_path / f"{name}.png")[0]["remove the seven", 0]
        for name in ("picture", "other")
    )  # fmt: skip
    assert np.any(np.asarray(one) != np.asarray(other))
    assert one.text["image"].startswith("picture.png ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "is given a picture: name one by --image=FILE"),
        ({"image": "picture", "strength": 0.5}, "leave --strength out"),
        ({"image": "picture", "image_guidance": 1.5}, "image_guidance is 1.5 and this student has"),
    ],
    ids=str,
)
def test_what_a_network_that_edits_is_not_asked_is_told(run, picture, tmp_path, given, words):
    given = {name: picture if name == "image" else value for name, value in given.items()}
    with pytest.raises(UserError, match=words):
        draw(tmp_path / "out", "--prompt=remove the seven", checkpoint=run, num=1, **given)


def test_edits_of_the_benchmark_are_where_its_scorer_looks(run, picture, tmp_path):
    data = tmp_path / "data"
    names = ("0_random/1.jpg", "1_change/2.jpg")
    for name in names:
        (data / "annotation_images" / name).parent.mkdir(parents=True)
        Image.open(picture).save(data / "annotation_images" / name, "jpeg")
    tasks = {
        str(i): dict(image_path=name, editing_instruction="remove the seven")
        for i, name in enumerate(names)
    }
    (data / "mapping_file.json").write_text(json.dumps(tasks))
    command(tmp_path / "out", checkpoint=run, piebench=data / "mapping_file.json", steps=1)
    for name in names:
        with Image.open(tmp_path / "out" / "annotation_images" / name) as image:
            assert image.format == "PNG" and image.text["image"].startswith(name.split("/")[1])


def test_a_picture_of_the_benchmark_that_is_damaged_is_told_before_any_is_edited(
    run, picture, tmp_path
):
    folder = tmp_path / "annotation_images"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture.read_bytes())
    (folder / "b.png").write_bytes(picture.read_bytes()[:200])
    tasks = {name: dict(image_path=f"{name}.png", editing_instruction="remove it") for name in "ab"}
    (tmp_path / "m.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match=r"b\.png"):
        command(tmp_path / "out", checkpoint=run, piebench=tmp_path / "m.json", steps=1)
    assert not (tmp_path / "out").exists()


def test_a_network_that_edits_nothing_is_refused_for_the_benchmark(picture, tmp_path):
    checkpoint = save_digits(tmp_path / "run")
    (tmp_path / "annotation_images").mkdir()
    Image.open(picture).save(tmp_path / "annotation_images" / "a.png")
    (tmp_path / "m.json").write_text(
        json.dumps({"0": dict(image_path="a.png", editing_instruction="remove it")})
    )
    with pytest.raises(UserError, match="--piebench is for a network that edits pictures"):
        command(tmp_path / "out", checkpoint=checkpoint, piebench=tmp_path / "m.json")


@pytest.mark.slow
def test_a_small_run_is_judged_by_its_edits(tmp_path):
    config = small()
    metrics = ("kept_error", "alignment", "fd")
    config.evaluate.update(
        dict(samples=4, batch_size=4, resamples=2, teacher_steps=(2,), metrics=metrics)
    )
    config = typed(config)
    check(config)
    for stage in (encode, pretrain, distil):
        stage(config, tmp_path)
    rows = evaluate(config, tmp_path)
    student = next(row for row in rows if (row.model, row.steps) == ("student", 1))
    assert {"edit_error", "kept_error", "alignment", "fd"} <= student.values.keys()
    assert student.values["edit_error"] > 0 and 0 <= student.values["alignment"] <= 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder of the export, workdir) of an untrained student with the channels of SD3."""
    return export_sd3(sd3_edit.get_config, tmp_path_factory.mktemp("sd3"), LENGTH)


def test_an_export_names_the_pipeline_of_the_community_and_how_it_is_called(exported):
    out, workdir = exported
    index = json.loads((out / PIPELINE_INDEX).read_text())
    assert index["_class_name"] == "StableDiffusion3InstructPix2PixPipeline"
    transformer = json.loads((out / "transformer" / "config.json").read_text())
    assert (transformer["in_channels"], transformer["out_channels"]) == (32, 16)
    card = (out / "README.md").read_text()
    assert "examples/community/pipeline_stable_diffusion_3_instruct_pix2pix.py" in card
    assert "image_guidance_scale=1.0," in card and "has no pipeline for this" in card
    assert "Img2Img" not in card and "ComfyUI" not in card
    again = open_trained(str(out), None, None, jnp.float32, make_mesh({}, jax.devices()[:1]))
    assert again.joined == "edit" and again.times == (1.0, 0.75, 0.5, 0.25)
    assert read_facts(out)["joined"] == "edit"


STAND_IN = """
from ...image_processor import VaeImageProcessor
from ..pipeline_utils import DiffusionPipeline
from .pipeline_output import StableDiffusion3PipelineOutput


class StableDiffusion3InstructPix2PixPipeline(DiffusionPipeline):
    def __init__(
        self, transformer, scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2,
        text_encoder_3, tokenizer_3, image_encoder=None, feature_extractor=None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
"""
"""Imports as the community's pipeline does, and takes the same components."""


def test_the_code_of_the_card_loads_a_file_that_imports_as_a_part_of_diffusers(
    exported, tmp_path, monkeypatch
):
    out, _ = exported
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    ast.parse(code)
    loads, _, calls = code.partition('pipe = pipe.to("cuda")')
    assert loads and "image_guidance_scale=1.0," in calls
    (tmp_path / "pipeline_stable_diffusion_3_instruct_pix2pix.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    place = re.search(r'from_pretrained\(\s*"([^"]+)"', loads)[1]
    found = {}
    exec(loads.replace(place, str(out)), found)
    assert type(found["pipe"]).__name__ == "StableDiffusion3InstructPix2PixPipeline"
    assert found["pipe"].transformer.config.in_channels == 32


def test_an_export_edits_in_diffusers_as_here(exported, tmp_path, monkeypatch):
    """By the parts of diffusers that the community's pipeline calls, in its order."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    out, workdir = exported
    pipe = StableDiffusion3Pipeline.from_pretrained(out, dtype=torch.float32)
    mesh, bucket = make_mesh({}, jax.devices()[:1]), Bucket(8, 8)
    trained = open_trained(str(workdir), None, None, None, mesh)
    side = 8 * trained.reduction
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "picture.png")
    given = open_given(trained, bucket, [GivenFiles(tmp_path / "picture.png")])
    text = trained.encoder().encode(["make it red", ""])
    cond, null = ({name: array[i] for name, array in text.items()} for i in ([0], 1))
    cond[CHANNELS] = given.channels(0)[None]
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
    with torch.no_grad():
        tokens, _, pooled, _ = pipe.encode_prompt(
            "make it red", None, None, do_classifier_free_guidance=False,
            max_sequence_length=LENGTH,
        )  # fmt: skip
        encoded = pipe.vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
        encoded = (encoded - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        pipe.scheduler.set_timesteps(sigmas=[float(s) for s in sampling.sigmas[:-1]])
        x = noise[0]
        for t in pipe.scheduler.timesteps:
            v = pipe.transformer(
                hidden_states=torch.cat([x, encoded], dim=1), timestep=t.expand(1),
                encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False,
            )[0]  # fmt: skip
            x = pipe.scheduler.step(v, t, x, return_dict=False)[0]
    theirs = x[0].numpy().transpose(1, 2, 0)
    assert np.std(ours) > 0.1
    assert np.max(np.abs(theirs - ours)) / np.max(np.abs(ours)) < 1e-3


def edits_folder(folder):
    """A folder of edits, each with its source in the metadata."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        for name in (f"{i}_before.png", f"{i}_after.png"):
            pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
        lines.append({"file_name": f"{i}_after.png", "source_file_name": f"{i}_before.png",
                      "text": "make it red"})  # fmt: skip
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [0, 1])
def test_the_stages_run_from_weights_and_edits_to_a_student(tmp_path, knobs):
    save_pipeline(tmp_path / "sd3", latent_channels=4, qk_norm=True)
    data = edits_folder(tmp_path / "edits")
    config = sd3_edit.get_config(
        f"size=tiny,weights={tmp_path / 'sd3'},data={data},resolution=128,steps=2,pretrain=2,"
        f"knobs={knobs}"
    )
    config.data.update(
        dict(buckets=("8x8",), text_length=77 + LENGTH, text_batch_size=8, held_out=0.0)
    )
    config.model.update(dict(dtype="float32", remat="none"))
    config.heads.update(dict(channels=8, groups=2, projection=8))
    config.mesh.update(dict(data=-1, fsdp=1))
    config.pretrain.batch_size = config.distil.batch_size = 8
    config.synthesize.update(dict(batch_size=8, steps=2))
    config.log.update(dict(every=1, samples_every=0))
    read_architectures(config)
    config = typed(config)
    check(config)
    settle(tmp_path / "run", to_dict(config))
    for stage in (encode, pretrain, *((synthesize,) if knobs else ()), distil):
        stage(config, tmp_path / "run")
    mesh = make_mesh({}, jax.devices()[:1])
    trained = open_trained(str(tmp_path / "run"), None, None, None, mesh)
    assert trained.joined == "edit"
    assert trained.sampling(1, None, None).given_guidance == ((7.0, 1.5) if knobs else None)
    export(tmp_path / "run", tmp_path / "editor", dtype="float32")
    facts = json.loads((tmp_path / "editor" / "ladd_jax.json").read_text())
    told = {"guidance": 7.0, "image_guidance": 1.5}
    assert {name: facts.get(name) for name in told} == (told if knobs else dict.fromkeys(told))
