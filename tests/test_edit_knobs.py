"""A student that edits, and is told both scales, from samples that each have two of their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small_edit
from ladd_jax.config import architectures, objectives, typed
from ladd_jax.config.fields import to_dict
from ladd_jax.config.workdir import settle
from ladd_jax.data.scenes import SQUARE
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.samplers import euler, guided, linear_sigmas, sample_noise
from ladd_jax.diffusion.sampling import Sampler, seeds
from ladd_jax.errors import UserError
from ladd_jax.models.sd3.transformer import fixed_guidance, mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.evaluate import _ways
from ladd_jax.stages.flow_matching import pretrain
from ladd_jax.stages.load import load_generator
from ladd_jax.stages.sets import encoded, synthesized
from ladd_jax.stages.synthesize import guidance_scales, noise_keys, synthesize
from ladd_jax.stages.trained import open_trained

RANGES = (1.0, 3.0), (1.0, 2.0)


@pytest.fixture(scope="module")
def config():
    config = small_edit.get_config("knobs=1,recipe=paper,guidance=2,image_guidance=1.5")
    config.compilation_cache = ""
    config.data.update(dict(examples=16, held_out_examples=4, records_per_shard=16))
    config.model.update(dict(depth=1, width=16, num_heads=1, patch=8, position_table=3))
    config.heads.update(dict(channels=8))
    config.pretrain.update(dict(steps=3, batch_size=8))
    config.distil.update(dict(steps=2, batch_size=8, head_updates=1, ema_decay=0.0))
    for stage in (config.pretrain, config.distil):
        stage.optimizer.update(dict(learning_rate=0.1, warmup_steps=0, decay_steps=0))
    config.synthesize.update(
        dict(samples=16, batch_size=8, records_per_shard=16, sampler="euler", steps=3)
    )
    return typed(config)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("edit_knobs")
    settle(workdir, to_dict(config))
    for stage in (encode, pretrain, synthesize, distil):
        stage(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def records(workdir):
    return Shards(synthesized(workdir)).read(SQUARE, np.arange(16))


@pytest.fixture(scope="module")
def generator(config, workdir):
    return load_generator(config, workdir, make_mesh(config.mesh.sizes))


@pytest.fixture(scope="module")
def trained(workdir):
    return open_trained(str(workdir), None, None, None, make_mesh({}, jax.devices()[:1]))


def test_both_scales_are_spread_over_their_ranges_and_the_first_is_as_without_the_second(config):
    scales = guidance_scales(config, SQUARE, np.arange(300))
    assert scales.shape == (300, 2)
    for column, (low, high) in zip(scales.T, RANGES, strict=True):
        assert low <= column.min() < low + 0.1 and high - 0.1 < column.max() <= high
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.15
    stage = dataclasses.replace(config.synthesize, image_guidance_range=(), image_guidance=1.0)
    alone = guidance_scales(dataclasses.replace(config, synthesize=stage), SQUARE, np.arange(300))
    np.testing.assert_array_equal(alone, scales[:, :1])


def test_each_sample_is_of_its_source_and_its_scales(config, workdir, records, generator):
    given = Shards(encoded(workdir)).read(SQUARE, np.arange(16))
    cond = records["cond"]
    np.testing.assert_array_equal(cond["channels"], given["cond"]["channels"])
    np.testing.assert_array_equal(cond["guidance"], guidance_scales(config, SQUARE, np.arange(16)))
    null = Shards(encoded(workdir)).null
    noise = sample_noise(jnp.asarray(noise_keys(config, SQUARE, np.arange(16))), 0, (24, 24, 3))
    model = mmdit(architectures.generator_architecture(config))

    @jax.jit
    def one(noise, cond, scales):
        own = {name: array[None] for name, array in cond.items() if name != "guidance"}
        field = guided(
            lambda *args: model(generator, *args), own, null, scales[:1], image_scale=scales[1:]
        )
        return euler(field, noise[None], linear_sigmas(3, 1.0))[0]

    for place in (0, 5):
        own = {name: array[place] for name, array in cond.items()}
        found = one(noise[place], own, jnp.asarray(cond["guidance"][place]))
        np.testing.assert_allclose(records["latents"][place], found, atol=1e-4)
        other = one(noise[place], own, jnp.asarray([cond["guidance"][place][0], 9.0]))
        assert np.abs(found - other).max() > 1e-3


def arguments(records):
    cond = {name: jnp.asarray(array[:4]) for name, array in records["cond"].items()}
    return jnp.ones((4, 24, 24, 3)), jnp.linspace(1.0, 0.2, 4), cond


def test_a_student_begins_as_the_data_generator_whatever_both_scales_are(
    config, generator, records
):
    student = objectives.student(config)
    assert {"guidance_up", "image_guidance_up"} <= student.shapes.keys() - generator.keys()
    begun = student.begin(jax.random.PRNGKey(0), generator)
    x, t, cond = arguments(records)
    untold = {name: array for name, array in cond.items() if name != "guidance"}
    wanted = mmdit(architectures.generator_architecture(config))(generator, x, t, untold)
    np.testing.assert_array_equal(student(begun, x, t, cond), wanted)


def test_a_trained_student_heeds_each_scale_and_at_fixed_ones_nobody_tells_it(
    config, trained, records
):
    x, t, cond = arguments(records)
    params, network = trained.load(), mmdit(trained.architecture)

    def at(*scales):
        told = cond | {"guidance": jnp.tile(jnp.asarray(scales), (4, 1))}
        return network(params, x, t, told)

    first = at(2.0, 1.5)
    for other in (at(3.0, 1.5), at(2.0, 1.0)):
        assert float(jnp.abs(other - first).max()) > 1e-4
    fixed = fixed_guidance(params, 2.0, 1.5)
    untold = dataclasses.replace(trained.architecture, guided=False, image_guided=False)
    assert mmdit(untold).shapes.keys() == fixed.keys()
    np.testing.assert_allclose(mmdit(untold)(fixed, x, t, cond), first, atol=1e-5)


def test_scales_are_told_in_one_pass_and_those_of_no_training_are_refused(trained, records):
    sampling = trained.sampling(1, 2.5, None, image_guidance=1.2)
    assert sampling.given_guidance == (2.5, 1.2) and sampling.passes == 1
    assert trained.sampling(1, None, None).given_guidance == (2.0, 1.5)
    with pytest.raises(UserError, match="image_guidance is 3 and the student was trained for 1 to"):
        trained.sampling(1, None, None, image_guidance=3.0)
    sampler = Sampler(mmdit(trained.architecture), {}, make_mesh({}, jax.devices()[:1]), 4)
    cond = {name: records["cond"][name][:4] for name in ("context", "pooled", "channels")}
    params, keys = trained.load(), seeds(0, np.arange(4))
    one, other = (
        sampler(params, keys, cond, (24, 24, 3), trained.sampling(1, 2.0, None, None, scale))
        for scale in (1.0, 2.0)
    )
    assert np.abs(one - other).max() > 1e-4


def test_the_data_generator_is_guided_by_three_passes(workdir):
    mesh = make_mesh({}, jax.devices()[:1])
    generator = open_trained(str(workdir), "generator", None, None, mesh)
    assert generator.sampling(10, None, None).passes == 30
    assert generator.sampling(10, 2.0, None, image_guidance=1.0).passes == 20


def test_the_student_is_judged_at_its_scales(config):
    found = {way.sampling.given_guidance for way in _ways(config) if way.model == "student"}
    assert found == {(2.0, 1.5)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthesize.image_guidance_range": (2.0, 1.0)}, "use two numbers from 0 to 100"),
        ({"synthesize.image_guidance": 7.0}, "is 7, which is outside: use a scale within it"),
        ({"synthesize.guidance_range": ()}, "name both, or that of the text alone"),
        ({"pretrain.image_dropout": 0.0}, r"image_dropout is 0 and synthesize.image_guidance is"),
        ({"pretrain.text_dropout": 0.0}, "text_dropout is 0 and .* by samples without text: use"),
        ({"data.joined": "inpaint", "data.source": "scenes"}, "zeros say that nothing is to be"),
        ({"data.joined": "edti"}, r"^data.joined 'edti' is not one of [^\n]*leave it empty$"),
    ],
)
def test_scales_that_cannot_be_are_refused(changes, message):
    config = small_edit.get_config("knobs=1")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        typed(config)


def test_without_guidance_on_the_image_nothing_is_dropped_for_it():
    config = small_edit.get_config()
    config.update_from_flattened_dict(
        {"synthesize.image_guidance": 1.0, "pretrain.image_dropout": 0.0}
    )
    assert typed(config).pretrain.image_dropout == 0


def test_guidance_on_the_image_of_a_network_without_one_is_refused():
    config = small_edit.get_config()
    config.data.update(dict(source="scenes", joined=""))
    with pytest.raises(UserError, match="is set and the network is given no picture"):
        typed(config)
