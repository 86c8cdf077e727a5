"""The parts of a pipeline against each other, before any of them works."""

import json
import shutil

import diffusers
import jax.numpy as jnp
import pipelines
import pytest

from ladd_jax.errors import UserError, UserErrors
from ladd_jax.models.families import family
from ladd_jax.models.sd3.encoder_weights import load_text_encoders
from ladd_jax.models.sd3.family import _UNREAD
from ladd_jax.models.sd3.parts import check_autoencoder, check_text
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.trained import open_trained
from ladd_jax.weights import read_mmdit_config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    pipelines.save_pipeline(folder)
    return folder


def index(folder, **entries):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def without_vocabulary(folder, part):
    for file in (folder / part).iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()


def of_another(folder):
    shutil.rmtree(folder / "tokenizer_3")
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_3")


def scheduler(folder):
    file = folder / "scheduler/scheduler_config.json"
    file.write_text('{"_class_name": "FlowMatchLCMScheduler"}')


SPOILT = {
    "vocabulary of CLIP": (lambda f: without_vocabulary(f, "tokenizer"), "tokenizer holds no voc"),
    "vocabulary of T5": (lambda f: without_vocabulary(f, "tokenizer_3"), "zer_3 holds no voc"),
    "another's vocabulary": (of_another, "tokenizer_3 knows 530 tokens and its text encoder 105"),
    "class of the pipeline": (lambda f: index(f, _class_name="FluxPipeline"), "of a FluxPipeline"),
    "class of a part": (
        lambda f: index(f, vae=["diffusers", "AutoencoderTiny"]), "AutoencoderTiny as vae, not",
    ),
    "scheduler": (
        lambda f: index(f, scheduler=["diffusers", "DDIMScheduler"]), "names DDIMScheduler",
    ),
    "another scheduler": (scheduler, "of FlowMatchLCMScheduler and .* names FlowMatchEuler"),
    "half of T5": (
        lambda f: index(f, text_encoder_3=[None, None]), "no text_encoder_3 and has tokenizer_3",
    ),
    "half of T5, empty": (
        lambda f: index(f, text_encoder_3=[]), "no text_encoder_3 and has tokenizer_3",
    ),
    "T5 not there": (
        lambda f: shutil.rmtree(f / "text_encoder_3"),
        r"names text_encoder_3, which is not there: .* missing by \[null, null\]",
    ),
    "weights": (
        lambda f: (f / "text_encoder/model.safetensors").unlink(), "text_encoder has no weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_a_part_that_does_not_belong_is_named(pipeline, tmp_path, spoil, words):
    folder = tmp_path / "p"
    shutil.copytree(pipeline, folder)
    spoil(folder)
    with pytest.raises(UserError, match=words):
        check_text(folder, read_mmdit_config(folder), 85, "")


def test_a_whole_pipeline_and_one_without_t5_pass(pipeline, tmp_path):
    architecture = read_mmdit_config(pipeline)
    check_text(pipeline, architecture, 85, "")
    check_autoencoder(pipeline, 16)
    folder = tmp_path / "p"
    shutil.copytree(pipeline, folder)
    index(folder, text_encoder_3=[None, None], tokenizer_3=[None, None])
    # What is declared missing is not read, though it is there.
    check_text(folder, architecture, 85, "")
    context = load_text_encoders(folder, jnp.float32, t5_length=8, batch=1).encode(["a"])["context"]
    assert not context[:, 77:].any()


def test_what_the_network_reads_is_what_the_encoders_make(pipeline, tmp_path):
    pipelines.save_pipeline(tmp_path / "other", family_sizes=True, latent_channels=4, t5=False)
    architecture = read_mmdit_config(pipeline)
    with pytest.raises(UserError, match="make a text vector of 192 features and .* reads 20"):
        check_text(tmp_path / "other", architecture, 85, "")
    with pytest.raises(UserError, match="latents of 4 channels and model.channels is 16"):
        check_autoencoder(tmp_path / "other", 16)
    with pytest.raises(UserError, match="data.text_length is 17 and the CLIP encoders"):
        check_text(pipeline, architecture, 17, "")


def test_all_problems_are_told_at_once(pipeline, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(pipeline, folder)
    without_vocabulary(folder, "tokenizer")
    without_vocabulary(folder, "tokenizer_2")
    index(folder, vae=["diffusers", "AutoencoderTiny"])
    with pytest.raises(UserErrors) as raised:
        check_text(folder, read_mmdit_config(folder), 5, "")
    assert len(raised.value.problems) == 4


@pytest.mark.parametrize(("fields", "shift"), [({}, 3.0), ({"shift": None}, 1.0)])
def test_the_shift_is_that_of_the_scheduler_or_its_default(pipeline, tmp_path, fields, shift):
    shutil.copytree(pipeline, tmp_path / "p")
    file = tmp_path / "p" / "scheduler/scheduler_config.json"
    found = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))
    assert family("sd3").released(str(tmp_path / "p")).shift == shift
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(file.parent).shift == shift


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"use_dynamic_shifting": False, "shift_terminal": None, "base_shift": 0.5}, ""),
        ({"use_dynamic_shifting": True}, "json sets use_dynamic_shifting, and of a schedule only "),
        (
            {"use_beta_sigmas": True, "shift_terminal": 0.1},
            "json sets shift_terminal and use_beta_sigmas, and of a schedule only shift is read: "
            "choose a shift by sample --shift, or set these to false in a copy of the pipeline",
        ),
    ],
)
def test_a_schedule_that_is_more_than_a_shift_is_told(pipeline, tmp_path, fields, words):
    shutil.copytree(pipeline, tmp_path / "p")
    file = tmp_path / "p" / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    unread = family("sd3").released(str(tmp_path / "p")).unread
    assert words in unread and bool(words) == bool(unread)


def test_a_pipeline_with_a_schedule_of_its_own_is_sampled_with_a_shift_that_is_given(
    pipeline, tmp_path
):
    shutil.copytree(pipeline, tmp_path / "p")
    file = tmp_path / "p" / "scheduler/scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dynamic_shifting": True}))
    trained = open_trained(str(tmp_path / "p"), None, None, None, make_mesh({"fsdp": -1}))
    with pytest.raises(UserError, match="sets use_dynamic_shifting, .* by sample --shift"):
        trained.sampling(2, None, None)
    assert trained.sampling(2, None, 3.0).sigmas == (1, 0.75, 0)


def test_no_field_of_the_scheduler_is_passed_over():
    fields = set(diffusers.FlowMatchEulerDiscreteScheduler().config)
    of_dynamic_shift = {
        "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type",
    }  # fmt: skip
    # The number of timesteps is 1,000 in all that SD3's networks were trained with.
    read = {"shift", "num_train_timesteps", *of_dynamic_shift, *_UNREAD}
    assert {name for name in fields if not name.startswith("_")} == read


@pytest.mark.parametrize(
    ("file", "field", "value", "words"),
    [("scheduler/scheduler_config.json", "shift", -1, "has '-1' as shift, which must be a number"),
     ("scheduler/scheduler_config.json", "shift", "3", "has '3' as shift"),
     ("transformer/config.json", "sample_size", 0, "has '0' as sample_size, which must be a n")],
)  # fmt: skip
def test_what_a_pipeline_says_of_how_it_is_sampled_is_in_range(
    pipeline, tmp_path, file, field, value, words
):
    shutil.copytree(pipeline, tmp_path / "p")
    file = tmp_path / "p" / file
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=words):
        family("sd3").released(str(tmp_path / "p"))
