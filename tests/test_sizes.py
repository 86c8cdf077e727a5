"""A student, a teacher and a data generator of different sizes, each trained from nothing."""

import errno
import importlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ladd_jax.cli import begin, preflight
from ladd_jax.cli.ownership import check_unread
from ladd_jax.cli.preflight import check
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import difference, identity
from ladd_jax.config.pretraining import further_trainings
from ladd_jax.config.workdir import Places, folder, settle
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.contents import contents_of, write_contents
from ladd_jax.data.shard_sets import write_identity
from ladd_jax.errors import ExistsError, NotFoundError, Problems, UserError
from ladd_jax.models.families import family
from ladd_jax.parallel.chips import chip_named
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.job import Job
from ladd_jax.planning.whole_run import run_costs
from ladd_jax.stages import load
from ladd_jax.stages.evaluate import facts_of, trainings_of
from ladd_jax.stages.load import load_generator, load_teacher
from ladd_jax.stages.made import check_made, open_places, source_of
from ladd_jax.studies import encoded
from ladd_jax.studies.encoded import share_encoded
from ladd_jax.studies.runs import config_of, run_recipe
from ladd_jax.studies.table import Study, read_study


def config_dict(changes):
    made = digits.get_config()
    made.update_from_flattened_dict(changes)
    architectures.read_architectures(made)
    return made


def config(**changes):
    return typed(config_dict({path.replace("__", "."): value for path, value in changes.items()}))


def sized(**changes):
    return config(**{"student__depth": 2, "teacher__depth": 3} | changes)


def blocks(architecture):
    return architecture.depth, architecture.width, architecture.num_heads


def test_each_of_the_three_networks_has_a_size_of_its_own():
    found = sized()
    assert further_trainings(found) == ("pretrain_teacher", "pretrain_student")
    assert blocks(architectures.generator_architecture(found)) == (4, 64, 2)
    assert blocks(architectures.student_architecture(found)) == (2, 64, 2)
    assert blocks(architectures.teacher_architecture(found)) == (3, 64, 2)
    trained = {
        name: objectives.flow_matching(found, found.pretrain, name).model.blocks
        for name in ("pretrain", *further_trainings(found))
    }
    assert trained == {"pretrain": 4, "pretrain_teacher": 3, "pretrain_student": 2}
    # The student starts from a network of its own, which `finetune` trains on and all follow.
    assert objectives.flow_matching(found, found.finetune).model.blocks == 2
    objective = objectives.distillation(found)
    assert {name: network.blocks for name, network in objective.networks.items()} == {
        "teacher": 3, "base": 2
    }  # fmt: skip
    assert objective.student.blocks == 2 and further_trainings(config()) == ()


def test_student_and_teacher_of_the_same_fields_are_trained_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(load, "_pretrained_as", lambda training, *_: read.append(training))
    for changes, trainings in (
        ({"student__depth": 3}, ("pretrain_student",)),
        ({"student__depth": 3, "student__width": 96}, ("pretrain_teacher", "pretrain_student")),
        ({"student__depth": 0}, ("pretrain_teacher",)),
    ):
        found = sized(**changes)
        assert further_trainings(found) == trainings
        # The teacher's comes first, where it is one of its own.
        load_teacher(found, tmp_path, None)
        assert read.pop() == trainings[0]
        assert facts_of(found)["teacher's network"] == "3 blocks of width 64"
        assert facts_of(found)["data generator's network"] == "4 blocks of width 64"
        # The report has no curves of what is left of others.
        assert tuple(n for n in trainings_of(found) if n.startswith("pretrain_")) == trainings


def test_what_is_not_said_of_a_network_is_as_in_the_model():
    found = config(student__depth=8, teacher__depth=2, teacher__width=96)
    for name in ("patch", "qk_norm", "position_table", "position_base", "mlp_ratio"):
        assert getattr(found.student, name) == getattr(found.model, name)
        assert getattr(found.teacher, name) == getattr(found.model, name)
    # Heads are as wide as the model's.
    assert (found.student.width, found.student.num_heads) == (64, 2)
    assert (found.teacher.width, found.teacher.num_heads) == (96, 3)
    # Who names the heads describes the whole network.
    own = config(student__depth=8, student__width=64, student__num_heads=4)
    assert not own.student.qk_norm and own.model.qk_norm
    with pytest.raises(UserError, match="teacher.width is 80 and teacher.num_heads 0, .* of 32"):
        config(teacher__depth=2, teacher__width=80)
    with pytest.raises(UserError, match="^model.width 64 is not divisible by model.num_heads 3: "):
        config(student__depth=2, model__num_heads=3)


def test_a_field_that_the_model_decides_is_refused_in_a_recipe(tmp_path):
    study = Study("mine", "digits", {"a": {"student.depth": 2, "student.patch": 4}})
    with pytest.raises(
        UserError,
        match="student.patch is 4 and student.num_heads 0, .* 2 from `model` instead: leave",
    ):
        config_of(study, digits.get_config(), "a", 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student.depth": 2, "student.width": 32, "student.num_heads": 2, "weights": "elsewhere"},
         "student.depth is 2 and weights is elsewhere"),
        ({"student.depth": 2, "prefer.steps": 9}, "student.depth is 2 and prefer.applied is bef"),
        ({"student.depth": -1}, "student.depth is -1"),
        ({"teacher.depth": 3, "stages": ("encode", "distil")},
         "teacher.depth is 3 and teacher.weights is empty, and the stage 'pretrain', which trains"),
        ({"student.depth": 2, "stages": ("encode", "finetune", "distil")},
         "student.depth is 2, and the stage 'pretrain', .* 'finetune' would not find it: name it"),
        ({"student.depth": 2, "student.width": 32, "student.num_heads": 2, "student.patch": 3},
         "not a multiple of 3, which is student.patch"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_sentence(changes, words):
    made = digits.get_config()
    made.update_from_flattened_dict(changes)
    if "weights" not in changes:
        architectures.read_architectures(made)
    with pytest.raises(UserError, match=words):
        check(typed(made))


def test_results_of_a_run_without_other_sizes_are_those_of_a_version_that_had_none():
    now = to_dict(config())
    before = {name: value for name, value in now.items() if name != "student"}
    for name in ("encoded", "pretrain", "synthesized", "finetune", "distil"):
        assert identity(now, name) == identity(before, name)
    old, new = identity(now, "distil"), identity(to_dict(config(student__depth=2)), "distil")
    assert difference(old, new) == "student.depth was 0 and is 2"
    assert difference(new, old) == "student.depth was 2 and is 0"


def test_a_size_changes_what_is_made_of_it_and_nothing_else():
    base, changed = to_dict(config()), to_dict(sized())
    for name in ("encoded", "pretrain", "synthesized"):
        assert identity(base, name) == identity(changed, name)
    deeper = to_dict(sized(model__depth=6))
    other = to_dict(sized(pretrain__steps=9))
    for name in ("pretrain_teacher", "pretrain_student"):
        assert identity(changed, name) == identity(deeper, name) != identity(other, name)
    assert identity(changed, "finetune") != identity(to_dict(sized(student__depth=1)), "finetune")


def sized_job(**changes):
    found = sized(**changes)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return Job(found, objectives.distillation(found), chip_named("v5e"), mesh, 0.5)


def test_plan_counts_what_each_network_takes_to_train():
    job, bucket = sized_job(), Bucket(8, 8)
    costs = {cost.stage: cost for cost in run_costs(job, [bucket], 32, 100, {})}
    assert list(costs)[:4] == ["encode", "pretrain", "pretrain_teacher", "pretrain_student"]
    cond = job.batch_shapes(bucket, 1)["cond"]
    for name in ("pretrain", "pretrain_teacher", "pretrain_student"):
        forward = family("sd3").forward_flops(
            architectures.stage_architecture(job.config, name), 8, 8, cond
        )
        assert costs[name].model_flops == 1600 * 64 * 3 * forward
    assert costs["pretrain_student"].bytes < costs["pretrain_teacher"].bytes


# A guided velocity is two passes; a step of second order along a path asks for two velocities.
@pytest.mark.parametrize(("objective", "followed"), [("ladd", 4), ("lcm", 4), ("dmd", 2)])
def test_a_pass_of_the_data_generator_counts_as_one_of_its_size(objective, followed):
    job = sized_job(
        distil__objective=objective, distil__follows="generator", synthesize__guidance=4.0,
        teacher__depth=3 if objective == "ladd" else 0,
    )  # fmt: skip
    cond = {"context": jax.ShapeDtypeStruct((17, 1), jnp.float32)}
    student, teacher = job.objective.forward_units

    def of(architecture):
        return family("sd3").forward_flops(architecture, 8, 8, cond)

    assert objectives.model_flops(job.config, job.objective, Bucket(8, 8), cond) == round(
        (student - followed) * of(architectures.student_architecture(job.config))
        + followed * of(architectures.generator_architecture(job.config))
        + teacher * of(architectures.teacher_architecture(job.config))
    )


def save(workdir, training, step, settings):
    """What says of a checkpoint what it was made with."""
    place = workdir / training / "checkpoints" / str(step) / "config"
    place.mkdir(parents=True)
    (place / "metadata").write_text(json.dumps(to_dict(settings)))


def test_a_network_of_another_size_stops_a_run_until_it_is_made_anew(tmp_path):
    settings = sized(stages=("pretrain",))
    (tmp_path / "encoded").mkdir()
    (tmp_path / "encoded" / "null_text.npz").touch()
    save(tmp_path, "pretrain_teacher", settings.pretrain.steps, settings)
    check_made(settings, tmp_path, Places(tmp_path))
    deeper = sized(stages=("pretrain",), teacher__depth=8)
    with pytest.raises(UserError, match=r"pretrain_teacher.checkpoints .*teacher\.depth was 3 and"):
        check_made(deeper, tmp_path, Places(tmp_path))
    check_made(
        sized(stages=("pretrain",), teacher__depth=8, on_change="redo"), tmp_path, Places(tmp_path)
    )
    # It is none of a run whose teacher is the data generator.
    check_made(config(stages=("pretrain",)), tmp_path, Places(tmp_path))


def test_a_run_that_began_from_another_has_the_networks_of_the_first(tmp_path):
    same = {"distil__steps": 20, "finetune__steps": 0, "distil__follows": "generator"}
    settings = sized(**same)
    first, run = tmp_path / "first", tmp_path / "run"
    save(first, "distil", 10, settings)
    with pytest.raises(NotFoundError, match="stage 'pretrain', which trains the teacher's network"):
        open_places(settings, run, "", str(first))
    for training in further_trainings(settings):
        save(first, training, settings.pretrain.steps, settings)
    with pytest.raises(UserError, match="student of other networks .student.depth was 2 and is 1"):
        open_places(sized(**same, student__depth=1), run, "", str(first))
    settle(run, to_dict(settings), open_places(settings, run, "", str(first)))
    assert folder(run, "pretrain_teacher") == first / "pretrain_teacher"


def test_a_run_that_begins_from_another_is_not_asked_for_its_networks(tmp_path, monkeypatch):
    same = {"finetune__steps": 0, "distil__follows": "generator"}
    settings = sized(stages=("distil",), distil__steps=20, **same)
    first, run, counted = tmp_path / "first", tmp_path / "run", []
    save(first, "distil", 10, settings)
    # As many steps as the first run has given them.
    for training in further_trainings(settings):
        save(first, training, 7, settings)
    write_identity(first / "synthesized", identity(to_dict(settings), "synthesized"))
    (first / "synthesized" / "null_text.npz").touch()
    monkeypatch.setattr(preflight, "check_space", lambda *given: counted.append(set(given[-1])))
    monkeypatch.setattr(begin, "keep_programs", lambda *_: None)
    # They take seconds to build, and say nothing of where they are.
    for build in ("flow_matching", "distillation"):
        monkeypatch.setattr(preflight.objectives, build, lambda *_: None)
    # Begun, and gone on with.
    for origin in (str(first), ""):
        with begin.begun(settings, run, origin=origin):
            assert folder(run, "pretrain_student") == first / "pretrain_student"
    # Nor are they written, or counted as what will be.
    assert counted == [{"pretrain", "finetune", "distil"}] * 2
    shutil.rmtree(first / "pretrain_teacher")
    with pytest.raises(NotFoundError, match="which trains the teacher's network"):
        check(settings, run)


@pytest.mark.parametrize("stages", [("distil",), ("synthesize", "finetune", "distil")])
def test_what_is_not_trained_to_its_end_is_missed_before_any_stage(stages, tmp_path):
    settings = sized(stages=stages)
    words = "'pretrain', which trains that network, is not among stages"

    def told():
        problems = Problems()
        # Without what takes the time to build networks.
        preflight.look(settings, problems, tmp_path, refused={"model", "data"})
        problems.tell()

    for training in reversed(further_trainings(settings)):
        for step in (settings.pretrain.steps - 1, settings.pretrain.steps):
            with pytest.raises(UserError, match=words):
                told()
            save(tmp_path, training, step, settings)
    told()


@pytest.mark.parametrize("name", ["digits", "scenes", "small"])
def test_the_study_changes_one_size_at_a_time_by_half_and_twice(name, tmp_path):
    study = read_study("scaling")
    argument = ["data=pictures"] if name == "small" else []
    start = importlib.import_module(f"configs.{name}").get_config(*argument)
    sizes = {}
    for recipe in study.recipes:
        made = config_of(study, start, recipe, 0, tmp_path)
        networks = (
            architectures.student_architecture(made),
            architectures.teacher_architecture(made),
            architectures.generator_architecture(made),
        )
        sizes[recipe] = tuple(network.depth for network in networks)
        assert len({(network.width, network.qk_norm, network.patch) for network in networks}) == 1
    assert sizes == {
        "all 4": (4, 4, 4), "student 2": (2, 4, 4), "student 8": (8, 4, 4),
        "teacher 2": (4, 2, 4), "teacher 8": (4, 8, 4), "generator 2": (4, 4, 2),
        "generator 8": (4, 4, 8),
    }  # fmt: skip


def test_what_is_encoded_once_serves_every_data_generator(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for name in ("encoded", "held_out"):
        write_identity(first / name, identity(to_dict(config()), name))
        (first / name / "null_text.npz").touch()
    share_encoded(config(model__depth=8), second)
    for name in ("encoded", "held_out"):
        files = [directory / name / "null_text.npz" for directory in (first, second)]
        assert files[0].samefile(files[1])
    # Of other data nothing is taken, and what is there stays.
    share_encoded(config(data__examples=100), third)
    assert not third.exists()
    (third / "encoded").mkdir(parents=True)
    share_encoded(config(), third)
    assert not list((third / "encoded").iterdir()) and not (third / "held_out").exists()


def test_what_is_encoded_is_shared_where_its_records_are_the_same(tmp_path):
    first, second, prompts = tmp_path / "first", tmp_path / "second", tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n" * 50)
    given = config(data__source="prompts", data__path=str(prompts), stages=("encode",))
    records = contents_of(source_of(given, first))
    write_identity(first / "encoded", identity(to_dict(given), "encoded"))
    write_contents(first / "encoded", records)
    (first / "encoded" / "null_text.npz").touch()
    prompts.write_text("a cat\na cow\n" * 50)
    share_encoded(given, second)
    assert not second.exists()
    prompts.write_text("a cat\na dog\n" * 50)
    share_encoded(given, second)
    assert (second / "encoded" / "records.npz").samefile(first / "encoded" / "records.npz")


def test_buckets_that_the_stage_chooses_are_chosen_for_each_network(tmp_path):
    for buckets in ((), ("32x32",)):
        first, second = (tmp_path / str(len(buckets)) / name for name in ("first", "second"))
        given = config(
            data__source="images", data__path="somewhere", data__buckets=buckets,
            data__resolution=32,
        )  # fmt: skip
        write_identity(first / "encoded", identity(to_dict(given), "encoded"))
        (first / "encoded" / "null_text.npz").touch()
        share_encoded(given, second)
        assert second.exists() == bool(buckets)


def test_encoded_data_that_vanish_while_they_are_shared_are_encoded_anew(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    write_identity(first / "encoded", identity(to_dict(config()), "encoded"))
    (first / "encoded" / "null_text.npz").touch()

    def vanished(source, target):
        # Who would change them is told that they are read.
        with pytest.raises(ExistsError):
            check_unread(first)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)

    monkeypatch.setattr(encoded, "_link", vanished)
    share_encoded(config(), second)
    assert not list(second.iterdir())


TINY = {
    "data.buckets": ["8x8"], "data.examples": 32, "data.held_out_examples": 32,
    "data.records_per_shard": 32, "model.depth": 2, "model.width": 16, "heads.channels": 8,
    "heads.groups": 2, "heads.projection": 8, "pretrain.steps": 2, "pretrain.batch_size": 8,
    "synthesize.samples": 32, "synthesize.steps": 2, "finetune.steps": 1, "finetune.batch_size": 8,
    "distil.steps": 1, "distil.batch_size": 8, "distil.head_updates": 1,
    "distil.consistency_weight": 0.0, "evaluate.samples": 32, "evaluate.resamples": 0,
    "log.every": 1, "log.samples_every": 0, "evaluate.student_steps": [1],
    "evaluate.teacher_steps": [2],
}  # fmt: skip


@pytest.mark.slow
def test_networks_of_other_sizes_are_the_runs_own_and_the_data_are_shared(tmp_path):
    recipes = {"same": {"teacher.depth": 2}, "both": {"student.depth": 1, "teacher.depth": 3}}
    study, start = Study("sizes", "digits", recipes, TINY), digits.get_config()
    rows = {name: run_recipe(study, start, name, 0, tmp_path)["rows"] for name in recipes}
    assert all(any(row["model"] == "student" for row in found) for found in rows.values())
    (data,) = (tmp_path / "shared").iterdir()
    assert not list(data.glob("pretrain_*"))
    runs = {name: tmp_path / "sizes" / name / "0" for name in recipes}
    assert sorted(path.name for path in runs["both"].glob("pretrain_*")) == [
        "pretrain_student", "pretrain_teacher"
    ]  # fmt: skip
    # A network of the data generator's size, from the same seed, is the same network.
    made = config_of(study, start, "same", 0, tmp_path)
    mesh = make_mesh(made.mesh.sizes)
    generator, teacher = (
        jax.tree.leaves(load(made, runs["same"], mesh)) for load in (load_generator, load_teacher)
    )
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(generator, teacher, strict=True))
    # Run again, each is found done: what is trained anew has the same step and the same config.
    checkpoints = runs["both"] / "pretrain_student" / "checkpoints"
    (kept,) = (folder for folder in checkpoints.iterdir() if folder.name.isdecimal())
    before = kept.stat()
    assert run_recipe(study, start, "both", 0, tmp_path)["rows"] == rows["both"]
    after = kept.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
