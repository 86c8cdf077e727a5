"""A student in the hands of diffusers, and back."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from huggingface_hub import errors
from pipelines import save_pipeline
from test_sd3 import tiny
from tiny import max_difference, random_params
from untrained_run import save_student

from configs import digits
from ladd_jax import export as command
from ladd_jax.cli.inputs import check_parts
from ladd_jax.config.architectures import student_architecture, teacher_architecture
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import difference, identity
from ladd_jax.config.workdir import read, settle
from ladd_jax.diffusion.samplers import sample_noise
from ladd_jax.diffusion.sampling import Sampler, Sampling, seeds
from ladd_jax.errors import ExistsError, Problems, UserError
from ladd_jax.methods import METHODS, Method
from ladd_jax.models.lora import Adapted, LoRA, add_adapters
from ladd_jax.models.sd3.card import model_card
from ladd_jax.models.sd3.lora_files import layout, open_lora, save_lora
from ladd_jax.models.sd3.pipeline import write_surroundings
from ladd_jax.models.sd3.transformer import cut_params, mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.export import describe, export
from ladd_jax.stages.load import load_generator, load_teacher, weights_inputs
from ladd_jax.stages.trained import open_trained
from ladd_jax.weights import load_mmdit

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, state) of a student of a small pipeline."""
    directory = tmp_path_factory.mktemp("sd3")
    save_pipeline(directory / "pipeline", qk_norm=True, dual_attention=(0,))
    config = tiny(directory / "pipeline", "")
    return directory / "run", save_student(typed(config), directory / "run")


@pytest.fixture(scope="module")
def turbo(run):
    out = run[0].parent / "turbo"
    export(run[0], out, layout="both", dtype="float32")
    return out


def test_an_export_read_again_is_the_student_bit_for_bit(run, turbo):
    for path in (turbo, turbo / "turbo.safetensors"):
        read = load_mmdit(path, jnp.float32).params
        jax.tree.map(np.testing.assert_array_equal, read, run[1].ema)


def test_an_export_goes_to_a_bucket_and_is_read_from_there(run, bucket, capsys):
    address = f"gs://{bucket[1]}/exports/turbo"
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=str(run[0])):
        command.FLAGS(["export", f"--out={address}", "--dtype=float32"])
        command.main()
        with pytest.raises(ExistsError, match=f"{address} exists: remove it"):
            command.main()
    assert f"{address}/README.md says" in capsys.readouterr().out
    read = load_mmdit(address, jnp.float32).params
    jax.tree.map(np.testing.assert_array_equal, read, run[1].ema)


def test_the_student_itself_can_be_exported_in_half_precision(run, tmp_path):
    out = tmp_path / "half"
    export(run[0], out, model="student", layout="single", dtype="float16")
    assert {file.name for file in out.iterdir()} == {"README.md", "half.safetensors"}
    read = load_mmdit(out / "half.safetensors", jnp.float16).params
    wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), run[1].params)
    jax.tree.map(np.testing.assert_array_equal, read, wanted)


KEY = seeds(0, 5)


@pytest.fixture(scope="module")
def latents(run):
    """Of our sampler `[H, W, C]`, by the number of steps."""
    return sampled(run[0], (4, 2, 1))


def sampled(workdir, counts):
    mesh = make_mesh({}, jax.devices()[:1])
    trained = open_trained(str(workdir), None, None, None, mesh)
    text = trained.encoder().encode([PROMPT, ""])
    cond, null = ({name: array[i] for name, array in text.items()} for i in ([0], 1))
    network = trained.family.backbone(trained.architecture)
    sampler = Sampler(network, null, mesh, 1)
    params = trained.load()
    return {
        steps: sampler(
            params, KEY, cond, (8, 8, 16),
            trained.sampling(steps, None, None).padded(5),
        )[0]
        for steps in counts
    }  # fmt: skip


@pytest.mark.parametrize("steps", [4, 2, 1])
def test_diffusers_called_as_the_card_says_gives_the_latents_of_our_sampler(
    turbo, latents, steps, monkeypatch
):
    card = (turbo / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "sigmas=[1.0, 0.75, 0.5, 0.25]," in code
    if steps < 4:
        code = re.sub(r"sigmas=.*\]", re.search(rf"{steps} steps?: `(sigmas=.*\])`", card)[1], code)
    theirs = called(code, {'"turbo"': turbo}, steps, monkeypatch)
    expected = latents[steps]
    assert np.std(expected) > 0.1
    assert np.max(np.abs(theirs - expected)) / np.max(np.abs(expected)) < 1e-3


@pytest.fixture(scope="module")
def progressive(run):
    """A workdir of another objective, whose students are sampled by Euler."""
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.update(dict(objective="progressive", halvings=1, phase_steps=1))
    workdir = run[0].parent / "progressive"
    save_student(typed(config), workdir)
    return workdir


def test_a_student_of_euler_is_exported_with_its_scheduler(progressive, tmp_path, monkeypatch):
    from diffusers import FlowMatchEulerDiscreteScheduler

    export(progressive, tmp_path / "halved", layout="both", dtype="float32")
    card = (tmp_path / "halved" / "README.md").read_text()
    assert "Progressive Distillation of" in card and "- distillation\n- progressive\n" in card
    assert "| phases | the guided velocity, then 4 steps; all but the last of 1 updates |" in card
    assert "In the sampler choose `euler` and cfg 1" in card and "`FlowMatchEulerD" in card
    assert not re.search(r"LCM|lcm|fresh|discriminator|consistency|heads", card)
    # What a new noise in each step would change is not there.
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    theirs = called(code, {'"halved"': tmp_path / "halved"}, 0, monkeypatch)
    mesh = make_mesh({}, jax.devices()[:1])
    again = open_trained(str(tmp_path / "halved"), None, None, jnp.float32, mesh)
    assert again.sampling(2, None, None) == Sampling("euler", (1.0, 0.5, 0.0))
    expected = sampled(progressive, (4,))[4]
    assert np.std(expected) > 0.1
    assert np.max(np.abs(theirs - expected)) / np.max(np.abs(expected)) < 1e-3
    terminal = float(re.search(r"shift_terminal=([\d.]+)", card)[1])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, shift_terminal=terminal)
    scheduler.set_timesteps(4)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), (1, 0.75, 0.5, 0.25, 0), atol=1e-6)


def called(code, folders, steps, monkeypatch):
    """Latents of a card's code, from the noise of our sampler; folders in the place of names.

    Fresh noise is drawn for as many steps.
    """
    import torch

    places = {f"folder_{i}": str(folder) for i, folder in enumerate(folders.values())}
    changes = (
        *zip(folders, places, strict=True),
        ('"cuda"', '"cpu"'),
        (f'"{PROMPT}",', f'"{PROMPT}", latents=latents, output_type="latent",'),
    )
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    noise = [
        torch.from_numpy(np.array(sample_noise(KEY, i, (8, 8, 16))).transpose(0, 3, 1, 2).copy())
        for i in range(steps + 1)
    ]
    fresh = iter(noise[1:])
    # The draws of the scheduler's steps are replaced by those of our sampler, in their order.
    module = "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor"
    monkeypatch.setattr(module, lambda shape, **_: next(fresh).reshape(shape))
    names = places | {"latents": noise[0]}
    exec(code, names)
    assert not list(fresh)
    return names["image"].numpy().transpose(1, 2, 0)


def test_the_card_says_how_the_student_was_made_and_what_it_cannot(run, turbo):
    card = (turbo / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    for words in ("step 2 of 2", "16x16", "32x8", "hinge", "merge", "spatial", "negates", "lcm"):
        assert words in card
    config = tiny(run[0].parent / "pipeline", "")
    config.weights = "someone/sd3"
    config.distil.update(
        dict(timesteps=(1.0, 0.9), probabilities=(0.5, 0.5), warmup_probabilities=(0.5, 0.5))
    )
    assert "samples: 2 steps of dpmpp_2m, guidance" in card
    assert "`ema`, the moving average of step 2 of 2" in card and "fine-tuned first" not in card
    config.finetune.update(dict(steps=30, batch_size=12))
    exported = describe(typed(config), "x", run[0], "ema", 2, "single", "bfloat16")
    card = model_card(exported, reduction=8)
    assert "base_model: someone/sd3\n" in card and "```python" not in card
    assert "| fine-tuned first | 30 steps of flow matching on the same data, batch 12," in card
    # ComfyUI's own schedules do not have these times.
    assert "steps 2, custom sigmas: sigmas 1, 0.9, 0" in card
    assert "steps 1, scheduler `simple`: sigmas 1, 0" in card
    tokens = exported.text_length - 77
    assert f"`T5TokenizerOptions`, with min_length {tokens}," in card
    assert "in 1 or 2 unguided steps." in card
    one = dataclasses.replace(exported, sigmas={1: (1.0, 0.0)}, layouts=("diffusers",))
    card = model_card(one, reduction=8)
    assert "in 1 unguided step." in card and "shift_terminal" not in card
    uneven = dataclasses.replace(one, sigmas={3: (1.0, 0.9, 0.5, 0.0)})
    assert "shift_terminal" not in model_card(uneven, reduction=8)
    card = model_card(dataclasses.replace(one, place="someone/turbo"), reduction=8)
    assert 'from_pretrained("someone/turbo", dtype=torch.bfloat16)' in card
    assert "# x\n" in card


def test_the_card_of_a_student_without_heads_tells_of_none(run):
    config = tiny(run[0].parent / "pipeline", "")
    config.weights, config.distil.objective = "someone/sd3", "lcm"
    config.synthesize.update(dict(guidance=4.5, shift=3.0))

    def card():
        return model_card(describe(typed(config), "x", run[0], "ema", 2, "single", "bfloat16"), 8)

    alone = card()
    assert "Latent Consistency Distillation of [someone/sd3]" in alone
    assert "- distillation\n- lcm\n" in alone
    assert "| consistency | alone, along paths of 50 steps of euler, shift 3 |" in alone
    assert "| network that is followed | the base model, guidance 4.5 |" in alone
    assert not re.search(r"discriminator|heads|R1|hinge|Adversarial|trained at", alone)
    config.distil.update(dict(objective="dmd", head_updates=5))
    matched = card()
    assert "Distribution Matching Distillation of" in matched and "\n- dmd\n" in matched
    assert "| updates of the fake network per step | 5 |" in matched
    assert not re.search(r"discriminator|heads|R1|hinge|Adversarial|consistency", matched)
    config.distil.update(
        dict(
            objective="ladd",
            consistency_weight=0.5,
            consistency_steps=20,
            consistency_solver="midpoint",
        )
    )
    beside = card()
    assert "| consistency | weight 0.5, along paths of 20 steps of midpoint, shift 3 |" in beside
    config.dino.update(dict(weights="facebook/dinov2-small", blocks=(5, 2)))
    config.distil.update(dict(objective="add", distillation_weight=2.5))
    in_pixels = card()
    assert "Adversarial Diffusion Distillation of" in in_pixels and "\n- add\n" in in_pixels
    assert re.search(
        r"\| network under the heads \| \[facebook/dinov2-small\]\S+, blocks 2, 5, pictures of 224",
        in_pixels,
    )
    assert "| noise for the teacher | logit-normal" in in_pixels
    assert not re.search(r"noise for the discriminator|blocks with heads", in_pixels)
    config.distil.objective = "ladd"
    config.finetune.steps, config.distil.follows = 30, "finetuned"
    assert "| network that is followed | the fine-tuned network, without guidance |" in card()
    config.distil.update(dict(r1_noise=0.1, student_interval=2, refreshed_heads=0.01))
    config.distil.ramp.update(dict(steps=(0, 900), consistency=(1.0, 0.2)))
    told = card()
    assert "| R1 | 1e-05 every 1 steps, estimated with noise of 0.1 |" in told
    assert "| steps between updates of the student | 2 |" in told
    assert "| share of the heads reset per step | 0.01 |" in told
    assert "| factor of the loss consistency | 1 up to step 0, 0.2 from step 900 |" in told
    assert "- distillation\n- ladd\n" in beside and "| learning rate of the heads |" in beside


def test_a_method_of_another_package_has_its_inputs_on_the_card(monkeypatch, tmp_path):
    monkeypatch.setitem(METHODS, "theirs", Method("Their distillation", "theirs", has_heads=True))
    config = digits.get_config()
    config.distil.objective = "theirs"
    made = describe(typed(config), "x", tmp_path, "ema", 2, "single", "bfloat16").made
    assert made["their probabilities"] == ", ".join(f"{p:g}" for p in config.distil.probabilities)


def test_networks_of_a_family_without_layouts_are_not_exported(monkeypatch, tmp_path):
    family = SimpleNamespace(layouts={})
    monkeypatch.setattr("ladd_jax.stages.export.family_of", lambda config: family)
    with pytest.raises(UserError, match="'sd3' have no layout of other programs"):
        describe(typed(digits.get_config()), "x", tmp_path, "ema", 2, "single", "bfloat16")


def test_a_number_of_steps_alone_gives_the_times_as_the_card_says(run):
    import torch
    from diffusers import FlowMatchLCMScheduler

    config = typed(tiny(run[0].parent / "pipeline", ""))
    exported = describe(config, "x", run[0], "ema", 2, "diffusers", "bfloat16")
    card = model_card(exported, reduction=8)
    terminal = float(re.search(r"shift_terminal=([\d.]+)", card)[1])
    steps = int(re.search(r"num_inference_steps=(\d+)", card)[1])
    scheduler = FlowMatchLCMScheduler(num_train_timesteps=1000, shift=1.0)
    scheduler = scheduler.from_config(scheduler.config, shift_terminal=terminal)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(exported.sigmas[steps]))


class _Hub:
    """Stands for huggingface_hub's, which no test can reach: keeps what it is given."""

    def __init__(self, fault=None):
        self.fault, self.calls = fault, []

    def whoami(self):
        self.calls.append("whoami")
        if self.fault == "login":
            raise errors.LocalTokenNotFoundError("Token is required")
        return {"auth": {"accessToken": {"role": "read" if self.fault == "read" else "write"}}}

    def create_repo(self, repository, exist_ok):
        assert exist_ok
        self.calls.append(repository)

    def upload_folder(self, repo_id, folder_path):
        if self.fault == "upload":
            raise OSError("no space")
        self.calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}")


def test_an_export_is_uploaded_whole_and_what_hinders_it_is_said_first(run, tmp_path, monkeypatch):
    def exported(name, push_to, fault=None):
        hub = _Hub(fault)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
        export(run[0], tmp_path / name, layout="single", push_to=push_to)
        return hub.calls

    with pytest.raises(
        UserError, match="--push=turbo is not a repository on the hub: use OWNER/NAME"
    ):
        exported("a", "turbo")
    with pytest.raises(UserError, match=r"Token is required\), and nothing is exported: run `hf"):
        exported("a", "someone/turbo", "login")
    with pytest.raises(
        UserError, match=r"someone/turbo cannot .* \(the token may only read\), and"
    ):
        exported("a", "someone/turbo", "read")
    with pytest.raises(UserError, match=r"--push=a/b\.\.c is not a name that the hub allows \("):
        exported("a", "a/b..c")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"was not uploaded \(no space\), and .*/b is whole"):
        exported("b", "someone/turbo", "upload")
    assert (tmp_path / "b" / "b.safetensors").is_file()
    files = ["README.md", "c.safetensors"]
    assert exported("c", "someone/turbo") == ["whoami", "someone/turbo", ("someone/turbo", files)]


def test_an_index_whose_parts_are_not_beside_it_is_damaged(tmp_path):
    index = {"_class_name": "StableDiffusion3Pipeline", "../vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "vae").mkdir()
    (tmp_path / "deep" / "out").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"model_index\.json is damaged \(it names the part '\.\./vae'"
    ):
        write_surroundings(tmp_path / "base", tmp_path / "deep" / "out", "euler")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_export_that_diffusers_saved_again_is_not_taken_for_a_data_generator(turbo, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(turbo, again)
    # diffusers' save_pretrained writes the components and their configs, and nothing else.
    (again / "ladd_jax.json").unlink()
    mesh = make_mesh({}, jax.devices()[:1])
    with pytest.raises(UserError, match="is a student, by its scheduler, but has no ladd_jax.json"):
        open_trained(str(again), None, None, None, mesh)
    shutil.copyfile(turbo / "ladd_jax.json", again / "ladd_jax.json")
    assert open_trained(str(again), None, None, None, mesh).times == (1.0, 0.75, 0.5, 0.25)


def test_components_in_half_precision_and_in_many_files_are_copied_so_that_they_load(tmp_path):
    import diffusers
    import torch

    pipeline = save_pipeline(tmp_path / "plain", dtype="float16")
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="5KB")
    assert list((tmp_path / "half" / "text_encoder_3").glob("*.fp16*"))
    (tmp_path / "half" / "LICENSE.md").write_text("of the base model")
    (tmp_path / "copy").mkdir()
    write_surroundings(tmp_path / "half", tmp_path / "copy", "consistency")
    assert (tmp_path / "copy" / "LICENSE.md").exists()
    copy = diffusers.StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "copy", transformer=pipeline.transformer, torch_dtype=torch.float16
    )
    assert type(copy.scheduler).__name__ == "FlowMatchLCMScheduler"
    for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        old, new = (getattr(p, name).state_dict() for p in (pipeline, copy))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_what_cannot_be_exported_is_said_and_nothing_is_left_behind(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json: name the --workdir"):
        export(tmp_path / "none", tmp_path / "out")
    config = digits.get_config()
    settle(tmp_path / "digits", to_dict(typed(config)))
    with pytest.raises(UserError, match="a data generator of its own"):
        export(tmp_path / "digits", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7 .* steps \[2\]"):
        export(run[0], tmp_path / "out", step=7)
    pipeline = run[0].parent / "pipeline"
    settle(tmp_path / "new", to_dict(typed(tiny(pipeline, ""))))
    with pytest.raises(FileNotFoundError, match="holds no student yet: run the stage 'distil'"):
        export(tmp_path / "new", tmp_path / "out")
    shutil.move(pipeline / "tokenizer_2", tmp_path / "moved")
    try:
        with pytest.raises(FileNotFoundError, match="names tokenizer_2, which is not there"):
            export(run[0], tmp_path / "out")
    finally:
        shutil.move(tmp_path / "moved", pipeline / "tokenizer_2")
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "new"}
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="choose another --out"):
        export(run[0], tmp_path / "out")


@pytest.fixture(scope="module")
def adapted(run):
    """Workdir of a student that is adapters of the same pipeline."""
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.lora.rank, config.distil.lora.alpha = 3, 6.0
    config.distil.lora.layers = ("*block*", "final*", "*_mlp*", "context_embedding")
    workdir = run[0].parent / "adapted"
    save_student(typed(config), workdir)
    return workdir


def test_adapters_loaded_by_diffusers_are_the_student(adapted, tmp_path):
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    export(adapted, tmp_path / "lora", layout="lora", dtype="float32")
    export(adapted, tmp_path / "whole", dtype="float32")
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {
        "README.md", "pytorch_lora_weights.safetensors"
    }  # fmt: skip
    base = read(adapted).weights
    before = SD3Transformer2DModel.from_pretrained(base, subfolder="transformer").state_dict()
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    found = pipe.transformer.state_dict()
    folder = tmp_path / "whole" / "transformer"
    wanted = SD3Transformer2DModel.from_pretrained(folder).state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-6, err_msg=name)
    same = {name for name, tensor in before.items() if bool((tensor == wanted[name]).all())}
    dense = {name for name, tensor in before.items() if tensor.ndim == 2}
    assert not same & dense


def test_adapters_under_kohyas_names_are_the_student_too(adapted, tmp_path):
    export(adapted, tmp_path / "mine", layout="kohya", dtype="bfloat16")
    file = tmp_path / "mine" / "mine.safetensors"
    assert {path.name for path in file.parent.iterdir()} == {"README.md", file.name}
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "`mine.safetensors` holds adapters of" in card and "pip install peft" not in card
    # What diffusers' form in the same dtype does.
    export(adapted, tmp_path / "lora", layout="lora", dtype="bfloat16")
    base = load_mmdit(read(adapted).weights, jnp.float32)
    kohya, peft = (open_lora(str(place), base.config).load() for place in (file, tmp_path / "lora"))
    start = base.params
    found, wanted = (
        add_adapters(jax.tree.map(jnp.array, start), [(adapters, 1.0)])
        for adapters in (kohya, peft)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    assert max_difference(found, start) > 1e-3


def test_adapters_called_as_their_card_says_give_the_latents_of_our_sampler(
    adapted, tmp_path, monkeypatch
):
    export(adapted, tmp_path / "lora", layout="lora", dtype="float32")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "\n- lora\n" in card and "`pip install peft`" in card
    assert "| adapters | rank 3, scale 2, of the layers `*block*`," in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    folders = {'"pipeline"': adapted.parent / "pipeline", '"lora"': tmp_path / "lora"}
    theirs, expected = called(code, folders, 4, monkeypatch), sampled(adapted, (4,))[4]
    assert np.std(expected) > 0.1
    assert np.max(np.abs(theirs - expected)) / np.max(np.abs(expected)) < 1e-3


def test_adapters_that_others_cannot_use_are_not_exported(run, adapted, tmp_path):
    with pytest.raises(UserError, match="no adapters .distil.lora.rank is 0."):
        export(run[0], tmp_path / "lora", layout="lora")
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.lora.rank, config.distil.lora.layers = 3, ("*",)
    save_student(typed(config), tmp_path / "patches")
    with pytest.raises(UserError, match="pos_embed.proj.weight is not a dense layer in other"):
        export(tmp_path / "patches", tmp_path / "lora", layout="lora")
    config.distil.lora.layers = ("*block*",)
    config.finetune.steps = 5
    save_student(typed(config), tmp_path / "tuned")
    with pytest.raises(UserError, match="fine-tuned .finetune.steps is 5."):
        export(tmp_path / "tuned", tmp_path / "lora", layout="lora")
    assert not (tmp_path / "lora").exists()


def test_adapters_of_weights_that_have_changed_are_refused(run, tmp_path):
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.lora.rank = 3
    save_student(typed(config), tmp_path / "adapted", inputs={"weights": "of others"})
    with pytest.raises(UserError, match="weights had other content"):
        export(tmp_path / "adapted", tmp_path / "lora", layout="lora")
    # A whole student has all of its weights.
    config.distil.lora.rank = 0
    save_student(typed(config), tmp_path / "whole", inputs={"weights": "of others"})
    export(tmp_path / "whole", tmp_path / "single", layout="single")


@pytest.fixture(scope="module")
def lora(run):
    """(file, what it adds at a scale of 1) for the transformer of the pipeline."""
    config = typed(tiny(run[0].parent / "pipeline", ""))
    network = Adapted(mmdit(student_architecture(config)), LoRA(rank=2, layers=("*image*",)))
    params = random_params(network, seed=7)
    file = run[0].parent / "style.safetensors"
    save_lora(file, params, layout(student_architecture(config), network))
    return str(file), params


def plus(params, adapters, scale):
    return add_adapters(jax.tree.map(jnp.array, params), [(adapters, scale)])


def test_a_lora_is_added_to_a_student_that_is_exported_or_sampled(run, turbo, lora, tmp_path):
    file, adapters = lora
    wanted = plus(run[1].ema, adapters, 0.5)
    export(run[0], tmp_path / "out", dtype="float32", loras=[f"{file}:0.5"])
    mesh = make_mesh({}, jax.devices()[:1])
    for found in (
        load_mmdit(tmp_path / "out", jnp.float32).params,
        open_trained(str(run[0]), "ema", None, None, mesh, [f"{file}:0.5"]).load(),
        open_trained(str(turbo), None, None, jnp.float32, mesh, [f"{file}:0.5"]).load(),
    ):
        # Programs for other devices may round a product otherwise.
        assert max_difference(found, wanted) < 1e-6
    assert (
        "| LoRA added | `style.safetensors` at 0.5 |"
        in (tmp_path / "out" / "README.md").read_text()
    )


def test_a_run_begins_with_its_weights_and_the_loras_that_are_added(run, lora, tmp_path):
    file, adapters = lora
    config = tiny(run[0].parent / "pipeline", "")
    mesh = make_mesh({}, jax.devices()[:1])
    base = load_generator(typed(config), tmp_path, mesh)
    config.loras = (f"{file}:-1.5",)
    made = typed(config)
    wanted = plus(base, adapters, -1.5)
    assert max_difference(load_generator(made, tmp_path, mesh), wanted) < 1e-6
    # The teacher under the heads has fewer blocks, in another dtype.
    teacher = load_teacher(made, tmp_path, mesh)
    cut = cut_params(wanted, mmdit(teacher_architecture(made)).shapes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=1e-3), teacher, cut)


def test_a_result_knows_the_loras_that_it_was_made_with(run, lora, tmp_path):
    file, _ = lora
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.lora.rank, config.loras = 3, (file,)
    names = weights_inputs(typed(config))
    assert names.keys() == {"weights", f"loras: {file}"} and all(names.values())
    old = names | {f"loras: {file}": "of another"}
    save_student(typed(config), tmp_path / "adapted", inputs=old)
    with pytest.raises(UserError, match="style.safetensors had other content"):
        export(tmp_path / "adapted", tmp_path / "out")
    stages = ("synthesized", "finetune", "distil")
    fields = to_dict(typed(config))
    for stage in (*stages, "encoded"):
        without = identity(fields | {"loras": ()}, stage)
        found = difference(without, identity(fields, stage))
        assert ("loras" in found) == (stage in stages)


def test_adapters_on_top_of_a_lora_are_not_exported_alone(run, lora, tmp_path):
    file, _ = lora
    config = tiny(run[0].parent / "pipeline", "")
    config.distil.lora.rank = 3
    save_student(typed(config), tmp_path / "adapted")
    with pytest.raises(UserError, match="is added to a whole network, and --layout=lora writes"):
        export(tmp_path / "adapted", tmp_path / "out", layout="lora", loras=[file])
    config.loras = (file,)
    save_student(typed(config), tmp_path / "on_top")
    with pytest.raises(UserError, match="are useless without them: use another --layout"):
        export(tmp_path / "on_top", tmp_path / "out", layout="lora")
    assert not (tmp_path / "out").exists()


def test_a_lora_of_another_network_is_told_before_anything_starts(run, tmp_path):
    config = tiny(run[0].parent / "pipeline", "")
    config.loras = (str(tmp_path / "none.safetensors"),)
    problems = Problems()
    check_parts(typed(config), problems)
    with pytest.raises(UserError, match="the LoRA .*none.safetensors does not exist"):
        problems.tell()
    config.weights = ""
    with pytest.raises(UserError, match="weights is empty: name the weights that they are added"):
        typed(config)
