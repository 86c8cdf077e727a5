"""What is seen of a student while it trains."""

import jax
import numpy as np
import pytest
from PIL import Image
from runs import keeping_programs
from tiny import random_params

from configs import digits
from ladd_jax.config import objectives
from ladd_jax.config.architectures import student_architecture
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.evaluation.metrics.frechet import frechet_distance
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.strip import read_previews
from ladd_jax.models.families import family_of
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import quick_metrics
from ladd_jax.stages.distil import distil
from ladd_jax.stages.encode import encode
from ladd_jax.stages.previews import Previews, _spread
from ladd_jax.stages.sets import encoded
from ladd_jax.stages.students import load_student
from ladd_jax.training.checkpoint import Checkpoints
from ladd_jax.training.metrics import MetricWriter, read_history


class Flat:
    """An extractor that takes the first pixels for features, and counts how often it is opened."""

    opened = 0

    def __init__(self, *_):
        Flat.opened += 1

    def look(self, images, prompts):
        assert len(images) == len(prompts)
        features = np.asarray(images, np.float64).reshape(len(images), -1)[:, None, :8]
        return features, np.full(len(images), 0.5)


def settings(**changes):
    config = digits.get_config()
    config.data.update(dict(buckets=("8x8", "8x16"), examples=24, held_out_examples=2))
    config.model.update(dict(depth=1, width=16))
    config.log.update(dict(quick_samples=20) | changes)
    config.evaluate.student_steps = (1, 2)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with data, and parameters of a student."""
    workdir = tmp_path_factory.mktemp("run")
    config = typed(settings())
    encode(config, workdir)
    return workdir, random_params(_network(config))


def test_a_student_is_shown_as_its_objective_samples_it(run):
    config = settings(quick_samples=0)
    config.distil.update(dict(objective="progressive", phase_steps=9))
    config = typed(config)
    shards, mesh = Shards(encoded(run[0])), make_mesh({"data": 1}, jax.devices()[:1])
    shown = Previews(config, run[0], shards, _network(config), mesh)._samplings
    assert {(n, way.sampler, way.sigmas) for n, way in shown.items()} == {
        (1, "euler", (1.0, 0.0, 0.0)), (2, "euler", (1.0, 0.5, 0.0)),
    }  # fmt: skip


class Told(MetricWriter):
    """Keeps the pictures that it is given."""

    def __init__(self, directory):
        super().__init__(directory, ())
        self.pictures = {}

    def image(self, step, name, picture):
        self.pictures[name] = picture


@pytest.fixture(scope="module")
def seen(run):
    """Two previews of the same parameters: metrics, pictures, and the previews themselves."""
    workdir, params = run
    config, mesh = typed(settings()), make_mesh({"data": 2, "tensor": 2}, jax.devices()[:4])
    Flat.opened = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick_metrics, "open_judge", Flat)
        shards = Shards(encoded(workdir))
        previews = Previews(config, workdir, shards, _network(config), mesh)
        assert Flat.opened == 0
        writer = Told(workdir / "distil")
        with jax.set_mesh(mesh):
            first = previews(params, 10, writer)
            second = previews(params, 20, writer)
    return first, second, writer.pictures, previews


def _network(config):
    return family_of(config).backbone(student_architecture(config))


def test_previews_are_made_of_fixed_noise_by_one_program_for_each_bucket(seen):
    first, second, _, previews = seen
    assert first == second
    assert previews._sampler.program_count == 2
    assert Flat.opened == 1


def test_each_number_of_steps_has_metrics_and_a_picture_of_each_bucket(seen, run):
    first, _, pictures, _ = seen
    names = ("seed_spread", "fd", "alignment", "deviation", "outside")
    assert set(first) == {f"preview/{name}/{steps}" for name in names for steps in (1, 2)}
    assert set(pictures) == {f"samples/{b}/{n}" for b in ("8x8", "8x16") for n in (1, 2)}
    # Four prompts with four seeds, and a line between them.
    assert pictures["samples/8x16/1"].shape == (4 * 9 - 1, 4 * 17 - 1, 1)
    assert np.abs(pictures["samples/8x8/1"] - pictures["samples/8x8/2"]).max() > 0.01
    folder = run[0] / "distil" / "previews"
    assert {path.name for path in folder.iterdir()} == {
        f"{step:06d}_{n}steps_{b}.png" for step in (10, 20) for n in (1, 2) for b in ("8x8", "8x16")
    }
    assert Image.open(folder / "000010_1steps_8x8.png").size == (5 * 35, 5 * 35)


def test_quick_metrics_compare_with_the_records_of_the_same_prompts(seen, run):
    first, _, _, previews = seen
    shards = Shards(encoded(run[0]))
    made, real = [], []
    for bucket in shards.buckets:
        records = shards.read(bucket, np.arange(10))
        sampling = previews._samplings[2]
        made.append(previews._sample(run[1], sampling, bucket, records["cond"]))
        real.append(records["latents"])

    def features(parts):
        return np.concatenate([part.reshape(len(part), -1)[:, :8] for part in parts])

    distance = frechet_distance(features(made), features(real))
    assert first["preview/fd/2"] == pytest.approx(distance, rel=1e-4)
    assert first["preview/alignment/2"] == 0.5


def test_a_student_that_is_no_number_is_left_to_the_check_of_the_losses(run, monkeypatch):
    workdir, params = run
    monkeypatch.setattr(quick_metrics, "open_judge", Flat)
    shards = Shards(encoded(workdir))
    metrics = quick_metrics.QuickMetrics(
        typed(settings()), workdir, shards, shards.buckets, None, lambda latents: latents
    )
    assert metrics({1: lambda bucket, cond: np.full((10, 8, 8, 1), np.nan)}) == {}


def test_of_many_buckets_the_widest_the_tallest_and_one_between_are_shown():
    names = ("4x16", "8x8", "16x4", "6x12", "12x6")
    shown = _spread(tuple(sorted(map(Bucket.parse, names))))
    assert [bucket.name for bucket in shown] == ["4x16", "8x8", "16x4"]


def save_generator(config, workdir):
    """A random data generator, as if `pretrain` had made it."""
    objective = objectives.flow_matching(config, config.pretrain)
    state = jax.jit(objective.init)(jax.random.PRNGKey(0), random_params(objective.model))
    saved = Checkpoints(workdir / "pretrain" / "checkpoints")
    saved.save(1, state, to_dict(config))
    saved.close()


@pytest.mark.slow
def test_previews_change_nothing_of_a_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(quick_metrics, "open_judge", Flat)
    states = []
    with keeping_programs(tmp_path):
        for every in (0, 1):
            config = settings(every=1, samples_every=every)
            config.pretrain.steps = 1
            config.finetune.steps, config.distil.consistency_weight = 0, 0.0
            config.distil.update(dict(data="encoded", steps=2, batch_size=8, head_updates=1))
            config.distil.r1_gamma = 0.0
            config.heads.update(dict(channels=8, groups=2, projection=8))
            workdir = tmp_path / str(every)
            encoded(workdir).mkdir(parents=True)
            for path in encoded(run[0]).iterdir():
                if path.name != "8x16":
                    (encoded(workdir) / path.name).symlink_to(path)
            save_generator(typed(config), workdir)
            distil(typed(config), workdir)
            states.append(load_student(typed(config), workdir, make_mesh(config.mesh)))
    without, with_previews = jax.device_get(states)
    jax.tree.map(np.testing.assert_array_equal, without, with_previews)
    assert not (tmp_path / "0" / "distil" / "previews").exists()
    records = read_history(tmp_path / "1" / "distil")
    assert [record["step"] for record in records] == [1, 2]
    assert all("preview/fd/2" in record for record in records)
    shown = read_previews(tmp_path / "1" / "distil" / "previews")
    assert [(preview.step, preview.steps) for preview in shown] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    page = tmp_path / "report.html"
    write_report(page, [], [], {"distil": records}, previews=shown)
    assert page.read_text().count("<img") == len(shown) + 1
