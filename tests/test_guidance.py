"""A student that is told a guidance scale, from samples that each have one of their own."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pipelines import save_pipeline
from test_sd3 import tiny
from tiny import random_params
from untrained_run import save_student

from configs import digits
from ladd_jax.config import architectures, objectives, typed
from ladd_jax.config.fields import to_dict
from ladd_jax.config.workdir import settle
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.samplers import euler, guided, linear_sigmas, sample_noise
from ladd_jax.diffusion.sampling import Sampler, seeds
from ladd_jax.errors import UserError
from ladd_jax.models.lora import Adapted, LoRA
from ladd_jax.models.sd3.lora_files import layout, save_lora
from ladd_jax.models.sd3.transformer import fixed_guidance, mmdit
from ladd_jax.objectives.critics.base import Noise
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import _ways
from ladd_jax.stages.export import export
from ladd_jax.stages.flow_matching import finetune, pretrain
from ladd_jax.stages.load import load_finetuned, load_generator
from ladd_jax.stages.sets import synthesized
from ladd_jax.stages.synthesize import guidance_scales, noise_keys, synthesize
from ladd_jax.stages.trained import open_trained
from ladd_jax.weights import load_mmdit

BUCKET, RANGE = Bucket(8, 8), (1.0, 4.0)


@pytest.fixture(scope="module")
def config():
    config = digits.get_config()
    config.compilation_cache = ""
    config.data.update(dict(buckets=("8x8",), examples=32, records_per_shard=32))
    config.model.update(dict(depth=1, width=16, unroll=1))
    config.heads.update(dict(channels=8))
    optimizer = dict(learning_rate=0.1, warmup_steps=0, decay_steps=0)
    config.pretrain.update(dict(steps=3, batch_size=8))
    config.finetune.update(dict(steps=3, batch_size=8, ema_decay=0.0))
    config.distil.update(dict(steps=2, batch_size=8, ema_decay=0.0))
    for stage in (config.pretrain, config.finetune, config.distil):
        stage.optimizer.update(optimizer)
    config.log.samples_every = 0
    config.synthesize.update(
        dict(samples=16, batch_size=4, records_per_shard=8, sampler="euler", steps=3, guidance=2.5,
             guidance_range=RANGE, shift=1.5)
    )  # fmt: skip
    return typed(config)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("guidance")
    settle(workdir, to_dict(config))
    for stage in (encode, pretrain, synthesize, finetune, distil):
        stage(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def records(workdir):
    return Shards(synthesized(workdir)).read(BUCKET, np.arange(16))


@pytest.fixture(scope="module")
def generator(config, workdir):
    return load_generator(config, workdir, make_mesh(config.mesh.sizes))


def test_scales_are_spread_over_the_range_and_are_those_of_places(config):
    scales = guidance_scales(config, BUCKET, np.arange(400))
    low, high = RANGE
    assert low <= scales.min() < low + 0.1 and high - 0.1 < scales.max() <= high
    assert abs(np.mean(scales) - 2.5) < 0.15
    np.testing.assert_array_equal(guidance_scales(config, BUCKET, np.arange(7, 9)), scales[7:9])


def test_each_record_holds_its_scale_and_the_sample_that_this_guidance_makes(
    config, workdir, records, generator
):
    scales = guidance_scales(config, BUCKET, np.arange(16))
    np.testing.assert_array_equal(records["cond"]["guidance"], scales)
    model = mmdit(architectures.generator_architecture(config))
    null = jax.tree.map(jnp.asarray, Shards(synthesized(workdir)).null)
    text = {name: records["cond"][name] for name in null}
    noise = sample_noise(noise_keys(config, BUCKET, np.arange(16)), 0, (8, 8, 1))

    @jax.jit
    def one(noise, text, scale):
        cond = {name: array[None] for name, array in text.items()}
        field = guided(lambda *args: model(generator, *args), cond, null, scale[None])
        return euler(field, noise[None], linear_sigmas(3, 1.5))[0]

    for place in (0, 5):
        own = {name: array[place] for name, array in text.items()}
        found = one(noise[place], own, jnp.asarray(scales[place, 0]))
        np.testing.assert_allclose(records["latents"][place], found, atol=1e-4)
        assert np.abs(found - one(noise[place], own, jnp.asarray(9.0))).max() > 1e-2


def test_a_student_begins_as_the_data_generator_whatever_it_is_told(config, generator):
    student = objectives.student(config)
    assert "guidance_up" in student.shapes and "guidance_up" not in generator
    begun = student.begin(jax.random.PRNGKey(0), generator)
    x, t = jnp.ones((2, 8, 8, 1)), jnp.asarray([1.0, 0.3])
    cond = {"context": jnp.ones((2, 17, 128)), "pooled": jnp.ones((2, 256))}
    wanted = mmdit(architectures.generator_architecture(config))(generator, x, t, cond)
    for scales in ([1.0, 4.0], [2.0, 2.0]):
        told = cond | {"guidance": jnp.asarray(scales)[:, None]}
        np.testing.assert_array_equal(student(begun, x, t, told), wanted)


@pytest.fixture(scope="module")
def trained(workdir):
    return open_trained(str(workdir), None, None, None, make_mesh({}, jax.devices()[:1]))


def pictures(trained, records, sampling, params=None, architecture=None):
    cond = {name: records["cond"][name][:4] for name in ("context", "pooled")}
    null = {name: np.zeros_like(array[0]) for name, array in cond.items()}
    network = trained.family.backbone(architecture or trained.architecture)
    sampler = Sampler(network, null, make_mesh({}, jax.devices()[:1]), 4)
    params = trained.load() if params is None else params
    return sampler(params, seeds(0, np.arange(4)), cond, (8, 8, 1), sampling)


def test_a_trained_student_heeds_what_it_is_told(trained, records):
    low, default, high = (
        pictures(trained, records, trained.sampling(1, scale, None)) for scale in (1.0, None, 4.0)
    )
    assert np.abs(low - high).max() > 1e-3
    np.testing.assert_array_equal(
        default, pictures(trained, records, trained.sampling(1, 2.5, None))
    )


def test_at_one_scale_it_is_a_network_that_nobody_tells(trained, records):
    told = pictures(trained, records, trained.sampling(2, 3.0, None))
    fixed = fixed_guidance(trained.load(), 3.0)
    architecture = dataclasses.replace(trained.architecture, guided=False)
    assert mmdit(architecture).shapes.keys() == fixed.keys()
    sampling = dataclasses.replace(trained.sampling(2, 3.0, None), given_guidance=None)
    alone = pictures(trained, records, sampling, fixed, architecture)
    np.testing.assert_allclose(alone, told, atol=1e-5)


def test_an_export_has_the_scale_that_was_asked_for(tmp_path):
    save_pipeline(tmp_path / "pipeline", qk_norm=True)
    config = tiny(tmp_path / "pipeline", "")
    config.synthesize.update(dict(guidance=2.0, guidance_range=(1.0, 4.0)))
    ema = save_student(typed(config), tmp_path / "run").ema
    export(tmp_path / "run", tmp_path / "turbo", dtype="float32", guidance=3.0)
    read = load_mmdit(tmp_path / "turbo", jnp.float32).params
    wanted = fixed_guidance(ema, 3.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), read, wanted)
    mesh = make_mesh({}, jax.devices()[:1])
    exported = open_trained(str(tmp_path / "turbo"), None, None, None, mesh)
    assert exported.fixed_guidance == 3.0
    assert exported.sampling(1, 3.0, None).given_guidance is None
    with pytest.raises(UserError, match="guidance is 2 and the student was exported with 3"):
        exported.sampling(1, 2.0, None)
    with pytest.raises(UserError, match="guidance is 9 and the student was trained for 1 to 4"):
        export(tmp_path / "run", tmp_path / "other", guidance=9.0)
    # Nobody's LoRA knows the layers of the scale, which stay.
    architecture = dataclasses.replace(exported.architecture, guided=False)
    network = Adapted(mmdit(architecture), LoRA(rank=2, layers=("*/image/qkv",)))
    adapters = random_params(network, seed=4)
    save_lora(tmp_path / "style.safetensors", adapters, layout(architecture, network))
    loras = [str(tmp_path / "style.safetensors")]
    told = open_trained(str(tmp_path / "run"), None, None, None, mesh, loras).load()
    np.testing.assert_array_equal(told["guidance_up"]["kernel"], ema["guidance_up"]["kernel"])
    assert (
        float(
            jnp.abs(
                told["blocks_0"]["image"]["qkv"]["kernel"]
                - ema["blocks_0"]["image"]["qkv"]["kernel"]
            ).max()
        )
        > 0
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"synthesize.guidance_range": (4.0, 1.0)}, "use two numbers from 0 to 100, the first"),
        ({"synthesize.guidance_range": (1.0, 150.0)}, "use two numbers from 0 to 100, the first"),
        ({"synthesize.guidance": 7.0}, "is 7, which is outside: use a scale within it"),
        ({"distil.lora.rank": 2}, "layers that adapters do not have"),
        ({"distil.data": "encoded", "distil.distillation_weight": 1.0}, "made without guidance"),
    ],
)
def test_what_a_range_does_not_go_with_is_refused(changes, words):
    config = digits.get_config()
    config.synthesize.guidance_range = RANGE
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words) as refused:
        typed(config)
    assert len(str(refused.value).splitlines()) == 1


def test_a_scale_that_it_was_not_trained_for_is_refused(trained):
    with pytest.raises(UserError, match="guidance is 7 and the student was trained for 1 to 4"):
        trained.sampling(1, 7.0, None)


def test_heads_are_told_the_scale(config, generator):
    critic = objectives.ladd(config).critic
    heads = critic.heads.init(jax.random.PRNGKey(0))
    noise = Noise(jnp.zeros((2, 8, 8, 1)), jnp.full(2, 0.3))

    def logits(scales):
        cond = {"context": jnp.ones((2, 17, 128)), "pooled": jnp.ones((2, 256))}
        told = cond | {"guidance": jnp.asarray(scales)[:, None]}
        opened = critic.open({"teacher": generator}, jnp.ones((2, 8, 8, 1)), noise, told)
        one = jax.tree.map(lambda leaf: leaf[0], heads["heads"])
        return critic.at_head(opened.given)(one)(opened.features[0])

    a, b = logits([1.0, 4.0])
    assert float(jnp.abs(a - b).max()) > 0.01 * float(jnp.abs(a).max())
    np.testing.assert_allclose(logits([4.0, 1.0]), [b, a], rtol=1e-4)


def test_a_pair_that_fits_but_for_its_scale_is_not_misaligned(config):
    stage = dataclasses.replace(config.distil, misaligned_share=0.3)
    objective = objectives.ladd(dataclasses.replace(config, distil=stage))
    state = SimpleNamespace(key=jax.random.PRNGKey(0), step=0)
    prompts = jnp.asarray([1.0, 1.0, 2.0])[:, None] * jnp.ones((3, 256))
    scales = jnp.asarray([[1.0], [2.0], [3.0]])
    batch = {"latents": jnp.ones((3, 8, 8, 1)), "cond": {"pooled": prompts, "guidance": scales}}
    drawn, _ = objective.draw(state, {}, batch)
    other, weights = drawn.misaligned
    np.testing.assert_array_equal(other["guidance"], scales)
    # The second has the prompt of the first.
    np.testing.assert_allclose(weights, [1.5, 0, 1.5])


def test_finetune_learns_the_scale_already(config, workdir):
    params = load_finetuned(config, workdir, make_mesh(config.mesh.sizes))
    assert float(jnp.abs(params["guidance_down"]["kernel"]).max()) > 0


def test_the_student_is_judged_at_further_scales_within_its_range(config):
    stage = dataclasses.replace(config.evaluate, guidances=(1.0, 2.5, 8.0), student_steps=(1, 2))
    ways = _ways(dataclasses.replace(config, evaluate=stage))
    found = [(way.steps, way.guidance, way.tried) for way in ways if way.model == "student"]
    assert found == [(1, 2.5, False), (2, 2.5, False), (1, 1.0, True), (2, 1.0, True)]
    assert all(
        way.sampling.given_guidance == way.guidance for way in ways if way.model == "student"
    )
    assert len({way.file for way in ways}) == len(ways)
    assert {way.sampling.given_guidance for way in ways if way.model == "untrained"} == {None}
