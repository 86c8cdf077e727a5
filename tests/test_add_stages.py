"""ADD through the stages: its weights, what is refused, what a run depends on, and its plan."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
from test_stages import settings, write_generator
from tiny import max_difference, random_params

from configs import digits, sd3_turbo
from ladd_jax.cli.preflight import check
from ladd_jax.config import architectures, objectives
from ladd_jax.config.architectures import read_architectures
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import difference, identity
from ladd_jax.data.buckets import Bucket
from ladd_jax.errors import UserError
from ladd_jax.models.base import parameter_count
from ladd_jax.models.families import family
from ladd_jax.models.sd3.flops import forward_flops
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.changes import inputs_in
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.load import load_frozen
from ladd_jax.stages.students import load_student
from ladd_jax.training.metrics import read_history
from ladd_jax.weights.dinov2 import open_dinov2


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "dinov2-tiny"
    pipelines.save_dinov2(folder)
    return folder


def add(dino, **changes):
    """Settings of a run on digits whose heads stand on this DINOv2."""
    config = settings(**{"objective": "add", "distillation_weight": 2.5, "steps": 1} | changes)
    config.dino.update(dict(weights=str(dino), blocks=(0, 2), resolution=8))
    config.model.depth = 1
    read_architectures(config)
    return config


@pytest.mark.slow
def test_it_runs_through_the_stage_on_the_files_of_a_dinov2(dino, tmp_path):
    config = add(dino)
    config.distil.optimizer.update(dict(learning_rate=1e-2, warmup_steps=0))
    encode(typed(config), tmp_path)
    written = write_generator(typed(config), tmp_path)
    check(typed(config))
    distil(typed(config), tmp_path)
    # More steps go on from the first, and samples are shown.
    config.distil.steps = 2
    distil(typed(config), tmp_path)
    state = load_student(typed(config), tmp_path, make_mesh({"data": 1}, jax.devices()[:1]))
    assert int(state.step) == 2
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), state.params, written)
    # An update of Adam moves a parameter by no more than the rate.
    assert 1e-3 < max(jax.tree.leaves(moved)) < 2.2e-2
    assert state.heads["heads"]["entry"]["convolution"]["kernel"].shape == (2, 1, 1, 16, 8)
    first, second = read_history(tmp_path / "distil")
    assert (first["step"], second["step"]) == (1, 2)
    assert second["loss/distillation"] > 0 and 0 <= second["accuracy"] <= 1
    assert not [name for name in second if "t_hat" in name]
    # With other weights of the same sizes it is another student.
    other = tmp_path / "dinov2-tiny"
    pipelines.save_dinov2(other, seed=1)
    config.distil.steps, config.dino.weights = 3, str(other)
    with pytest.raises(UserError, match="dino.weights"):
        distil(typed(config), tmp_path)


def test_the_frozen_networks_are_those_that_it_asks(dino):
    def networks(**changes):
        objective = objectives.distillation(typed(add(dino, **changes)))
        return list(objective.networks)

    assert networks() == ["dino", "teacher"]
    assert networks(distillation_weight=0.0) == ["dino"]
    adapters = dict(rank=2, layers=("*qkv",))
    assert networks(lora=adapters) == ["dino", "teacher"]
    assert networks(lora=adapters, distillation_weight=0.0) == ["dino", "base"]
    followed = dict(consistency_weight=1.0, follows="generator")
    assert networks(**followed) == ["dino", "teacher"]
    assert networks(**followed, distillation_weight=0.0) == ["dino", "generator"]


def test_its_weights_are_read_up_to_the_last_block_with_a_head(dino):
    config = add(dino)
    config.dino.blocks = (0, 1)
    config.model.teacher_dtype = "bfloat16"
    mesh = make_mesh({"data": 1}, jax.devices()[:1])

    class Empty:
        null = {}

    (found, _) = load_frozen(typed(config), dino, mesh, ["dino"], Empty()).values()
    opened = open_dinov2(dino)
    assert objectives.distillation(typed(config)).networks["dino"].shapes == jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found
    )
    tensor = opened.tensors["encoder.layer.1.mlp.fc1.weight"].map()
    kernel = found["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 16, 32) and kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel[1], tensor.T.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dino.weights": ""}, "objective is add and dino.weights is empty: name a DINOv2"),
        ({"dino.blocks": (0, 3)}, "dino.blocks names block 3 of a DINOv2 of 3: use blocks 0 to 2"),
        ({"dino.blocks": ()}, r"dino.blocks is \(\): name one or more"),
        ({"dino.resolution": 10}, "resolution 10 is not a multiple of DINOv2's patch of 4: use 8"),
        ({"dino.width": 24}, "do not fit the config: width is 16 in the weights and 24"),
        ({"distil.hooked_blocks": (0,)}, "whose heads stand on DINOv2: use .. and dino.blocks"),
        (
            {"distil.distillation_weight": 0.0, "teacher.weights": "elsewhere", "teacher.depth": 1,
             "teacher.width": 16, "teacher.num_heads": 2},
            "the section teacher names a network that nothing uses",
        ),
        (
            {"distil.distillation_weight": 0.0, "model.teacher_dtype": "int8"},
            "teacher_dtype int8, which is for a teacher that is used",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_a_run(dino, changes, words):
    config = add(dino)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        check(typed(config))


def test_a_misspelt_folder_is_named_with_what_is_there(dino):
    config = add(dino)
    config.dino.weights = str(dino)[:-1]
    with pytest.raises(UserError, match="dinov2-tin is not a folder .*dinov2-tiny is there"):
        read_architectures(config)


def test_weights_say_their_sizes_where_they_are_used(tmp_path):
    pipelines.save_dinov2(tmp_path, use_swiglu_ffn=True, num_register_tokens=2, image_size=24)
    config = digits.get_config()
    config.dino.weights = str(tmp_path)
    before = config.dino.to_dict()
    read_architectures(config)
    assert config.dino.to_dict() == before
    config.distil.objective = "add"
    read_architectures(config)
    config.dino.blocks = (0, 1, 2)
    found = architectures.dino_architecture(typed(config))
    assert dataclasses.replace(found) == open_dinov2(tmp_path).config


def test_a_student_depends_on_its_dinov2_and_no_other_does(dino, tmp_path):
    config = typed(add(dino))
    assert inputs_in(config, tmp_path, "distil").keys() >= {"dino.weights"}
    assert "dino.weights" not in inputs_in(config, tmp_path, "finetune")

    def found(objective, name="distil"):
        old, new = (
            to_dict(typed(changed)) for changed in (digits.get_config(), digits.get_config())
        )
        new["dino"]["resolution"] = 448
        for fields in (old, new):
            fields["distil"]["objective"] = objective
        return difference(identity(old, name), identity(new, name))

    assert found("add") == "dino.resolution was 224 and is 448"
    assert not found("ladd") and not found("lcm") and not found("add", "finetune")


def test_the_decoder_of_a_pipeline_is_its_autoencoders(tmp_path):
    pipelines.save_pipeline(tmp_path, t5=False)
    sd3 = family("sd3")
    autoencoder, params = sd3.load_autoencoder(tmp_path, jnp.float32)
    decoder = sd3.picture_decoder(tmp_path, jnp.float32, jnp.float32)
    mesh = make_mesh({"fsdp": 2}, jax.devices()[:2])
    found = sd3.load_decoder(tmp_path, decoder, mesh)
    latents = np.random.default_rng(0).standard_normal((1, 3, 2, 16)).astype(np.float32)
    assert decoder.reduction == autoencoder.reduction
    wanted = jax.jit(autoencoder.decode)(params, latents)
    with jax.set_mesh(mesh):
        assert max_difference(jax.jit(decoder)(found, latents), wanted) < 1e-5

    def both(decode, params):
        # Blocks that are computed again have the same gradient.
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(decode(params, x)))))(latents)

    params = random_params(decoder)
    plain = both(lambda p, x: autoencoder.decode({"decoder": p}, x), params)
    assert max_difference(both(decoder, params), plain) < 1e-5


def test_a_plan_knows_the_networks_without_weights():
    config = sd3_turbo.get_config("size=medium")
    config.distil.objective = "add"
    config = typed(config)
    objective = objectives.distillation(config)
    sizes = {name: parameter_count(network) for name, network in objective.networks.items()}
    # facebook/dinov2-small, but for the token that hides patches in its own training.
    assert sizes["dino"] == 22_056_576 - 384
    # SD3's, as its file has it.
    assert sizes["decoder"] == 49_545_475
    cond = {"context": jax.ShapeDtypeStruct((333, 1), jnp.float32)}
    flops = objectives.model_flops(config, objective, Bucket(128, 128), cond)
    student = 3 * forward_flops(architectures.student_architecture(config), 128, 128, 333)
    passes = objective.critic.flops(128, 128)
    assert flops == student + 3 * passes["dino"] + 3 * passes["decoder"]
    # Diffusers' decoder takes 10 TFLOP at 1024 x 1024, and ViT-S/14 12 GFLOP at 224 x 224.
    assert 9e12 < passes["decoder"] < 12e12 and 10e9 < passes["dino"] < 14e9


def test_training_reads_it_without_transformers_or_torch(dino):
    code = (
        "import sys\n"
        "from ladd_jax.stages import distil, load\n"
        "from ladd_jax.weights.dinov2 import open_dinov2\n"
        "from ladd_jax.models.dinov2 import Dinov2\n"
        f"opened = open_dinov2({str(dino)!r})\n"
        "opened.load(Dinov2(opened.config))\n"
        "print(*{'torch', 'transformers', 'tensorflow'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
