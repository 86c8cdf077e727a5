"""What a run is judged on, and by what."""

import jax
import numpy as np
import pytest

from configs import digits, sd3_turbo, small
from ladd_jax.cli import preflight
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.workdir import Places, settle
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS, Condition
from ladd_jax.data.shard_sets import LATENTS, Layout
from ladd_jax.data.shard_writing import finalize, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.diffusion.sampling import Sampling
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.evaluation.report import write_report
from ladd_jax.evaluation.rows import Row
from ladd_jax.evaluation.seen import Seen, in_shares_of
from ladd_jax.methods import METHODS
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.stages import evaluate as stage
from ladd_jax.stages import kept as keeping
from ladd_jax.stages.evaluate import facts_of, notes_of
from ladd_jax.stages.judging import look_at, pictures_of, training_pictures
from ladd_jax.stages.kept import directory_of, fingerprint, kept
from ladd_jax.stages.sets import encoded, held_out, synthesized
from ladd_jax.stages.subjects import choose, subject_of

SQUARE, WIDE, TALL = Bucket(8, 8), Bucket(8, 16), Bucket(16, 8)


def test_few_prompts_are_all_sampled_evenly():
    prompts = ["b", "a", "b", "c", "b"]
    places = choose(prompts, 10, 2, np.random.default_rng(0))
    assert [prompts[place] for place in places] == ["b"] * 3 + ["a"] * 3 + ["c"] * 3


def test_many_prompts_are_drawn_by_record_and_equal_ones_stand_together():
    prompts = [f"rare {i}" for i in range(500)] + ["common"] * 500
    places = choose(prompts, 400, 4, np.random.default_rng(0))
    texts = [prompts[place] for place in places]
    # As frequent as among the records, where the first prompts would have it once.
    assert len(places) == 400 and 0.35 < texts.count("common") / 400 < 0.65
    assert min(texts.count(text) for text in set(texts)) == 4
    runs = 1 + sum(a != b for a, b in zip(texts, texts[1:], strict=False))
    assert runs == len(set(texts))
    assert sorted(set(places)) != list(range(100))


def write(directory, sizes, latents=True, prompt=""):
    arrays = {"pooled": ArraySpec((2,))} | ({LATENTS: ArraySpec(("H", "W", 1))} if latents else {})
    layout = Layout(sizes, 1000, arrays)
    for shard in layout.shards():
        records = []
        for i in range(shard.stop):
            record = {"prompt": prompt or f"p{i}", "cond": {"pooled": np.full(2, i)}}
            if latents:
                record[LATENTS] = np.full((shard.bucket.height, shard.bucket.width, 1), i / 100)
            records.append(record)
        write_shard(directory, layout, shard, records)
    finalize(directory, layout, {"pooled": np.zeros(2)})


def test_a_bucket_with_too_few_held_out_records_is_left_out_and_named(tmp_path, caplog):
    config = digits.get_config()
    config.evaluate.update(dict(samples=4, per_prompt=2))
    with pytest.raises(UserError, match="no held-out records: name a file of prompts"):
        subject_of(typed(config), tmp_path)
    write(held_out(tmp_path), {SQUARE: 20, WIDE: 1})
    found = subject_of(typed(config), tmp_path)
    assert list(found.buckets) == [SQUARE]
    assert "bucket 8x16 has 1 held-out record and needs 2" in caplog.text
    subjects = found.buckets[SQUARE]
    assert [f"p{int(row[0])}" for row in subjects.cond["pooled"]] == subjects.prompts.tolist()
    # The data have buckets that no sample is in.
    write(encoded(tmp_path), {SQUARE: 5, TALL: 5})
    images, prompts = pictures_of(Shards(encoded(tmp_path)), {SQUARE: 4, WIDE: 4})
    assert list(images) == [SQUARE] and len(prompts[SQUARE]) == 4
    write(held_out(tmp_path / "other"), {WIDE: 1})
    with pytest.raises(UserError, match="no bucket has 2 held-out records: raise data.held_out"):
        subject_of(typed(config), tmp_path / "other")


def test_of_pictures_that_are_completed_each_record_is_another_whatever_its_prompt(tmp_path):
    config = digits.get_config()
    config.data.joined = "inpaint"
    config.evaluate.update(dict(samples=16, per_prompt=4))
    write(held_out(tmp_path), {SQUARE: 20, WIDE: 12}, prompt="a red cat")
    found = subject_of(typed(config), tmp_path).buckets
    for bucket, count in ((SQUARE, 16), (WIDE, 12)):
        subjects = found[bucket]
        assert subjects.prompts.tolist() == ["a red cat"] * count
        np.testing.assert_array_equal(subjects.cond["pooled"][:, 0], np.arange(count))
        np.testing.assert_allclose(subjects.latents[:, 0, 0, 0], np.arange(count) / 100, atol=1e-6)


def test_records_that_have_a_condition_are_each_another_whatever_their_prompt(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(CONDITIONS, "pooled", Condition("numbers", None))
    config = digits.get_config()
    config.evaluate.update(dict(samples=16, per_prompt=4))
    write(held_out(tmp_path), {SQUARE: 20}, prompt="a red cat")
    subjects = subject_of(typed(config), tmp_path).buckets[SQUARE]
    np.testing.assert_array_equal(subjects.cond["pooled"][:, 0], np.arange(16))


def seen(count):
    return Seen(
        np.zeros((count, 1, 1, 1)), np.arange(count).astype(str), np.zeros((count, 1, 1)), None,
        np.arange(count),
    )  # fmt: skip


def test_samples_have_the_shares_of_buckets_that_real_pictures_have():
    samples, real = [seen(100), seen(100)], [seen(900), seen(90)]
    assert [len(part.prompts) for part in in_shares_of(samples, real, 0)] == [100, 10]
    even = [seen(600), seen(600)]
    assert in_shares_of(samples, even, 0) == samples


def test_of_one_bucket_nothing_is_measured_twice(monkeypatch):
    measured = []

    def measure(*given):
        measured.append(given)
        return {"deviation": 1.0}, {"deviation": (0.5, 1.5)}

    monkeypatch.setattr(stage, "measure_with_intervals", measure)
    way = stage._Way("student", 1, 1.0, Sampling.student(1, (1.0,)), 1)
    config = typed(digits.get_config()).evaluate
    one, two = {SQUARE: seen(9)}, {SQUARE: seen(9), WIDE: seen(9)}
    rows = stage._rows(way, one, {"generator": one}, config, 0)
    assert [row.bucket for row in rows] == ["all", "8x8"] and len(measured) == 1
    assert rows[0].values == rows[1].values
    rows = stage._rows(way, two, {"generator": two}, config, 0)
    assert [row.bucket for row in rows] == ["all", "8x8", "8x16"] and len(measured) == 4


def test_decoded_pictures_are_looked_at_in_parts_and_keep_a_grid_of_pixels():
    class Means:
        def look(self, images, prompts):
            assert len(images) == len(prompts) <= 16
            return images.mean((1, 2))[:, None], np.arange(len(prompts))

    latents = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype(np.float32)
    (part,) = look_at(
        Means(), {SQUARE: latents}, {SQUARE: np.array(["x"] * 20)},
        lambda latents: latents.repeat(8, 1).repeat(8, 2),
    )  # fmt: skip
    assert part.images.shape == (20, 32, 32, 3) and part.features.shape == (20, 1, 3)
    np.testing.assert_allclose(part.features[:, 0], latents.mean((1, 2)), atol=1e-5)
    assert np.std(part.images) == pytest.approx(np.std(latents), rel=1e-5)


def test_an_encoder_learns_from_the_samples_where_the_data_have_no_pictures(tmp_path):
    write(encoded(tmp_path), {SQUARE: 3}, latents=False)
    write(synthesized(tmp_path), {SQUARE: 20})
    config = typed(digits.get_config())
    found = training_pictures(config, tmp_path, lambda latents: latents.repeat(16, 1).repeat(16, 2))
    images, prompts = found[SQUARE]
    assert images.shape == (20, 64, 64, 1) and prompts[3] == "p3"
    np.testing.assert_allclose(images[3], 0.03, atol=1e-6)


def test_samples_are_kept_for_the_same_settings_prompts_and_network(tmp_path, monkeypatch):
    config, mesh = typed(digits.get_config()), make_mesh({"data": 1}, jax.devices()[:1])
    params = {"a": jax.numpy.ones((3, 4)), "b": -jax.numpy.ones(2, jax.numpy.bfloat16)}
    other = jax.tree.map(lambda leaf: 1.001 * leaf, params)
    prompts = {SQUARE: np.array(["x", "y"])}
    marks = [
        fingerprint(config, {SQUARE: texts}, tree, mesh)
        for texts, tree in (
            (np.array(["x", "y"]), params), (np.array(["y", "x"]), params),
            (np.array(["x", "y"]), other),
        )
    ]  # fmt: skip
    assert len(set(marks)) == 3 and fingerprint(config, prompts, params, mesh) == marks[0]
    # Prompts tell all of what is not joined to x_t.
    channels = np.zeros((2, 8, 8, 2), np.float32)
    joined = [
        fingerprint(config, prompts, params, mesh, {SQUARE: {"pooled": channels} | cond})
        for cond in ({}, {"channels": channels}, {"channels": channels + 1})
    ]
    assert joined[0] == marks[0] and len({*marks, *joined}) == 5
    # Nor of what has a value of its own.
    with monkeypatch.context() as package:
        package.setitem(CONDITIONS, "label", Condition("class", None))
        own = [
            fingerprint(config, prompts, params, mesh, {SQUARE: {"pooled": channels} | cond})
            for cond in ({}, {"label": channels}, {"label": channels + 1})
        ]
    assert own[0] == marks[0] and len({*marks, *joined, *own}) == 7

    made = []

    def make():
        made.append(0)
        return {SQUARE: np.full((2, 8, 8, 1), len(made), np.float32)}

    path = tmp_path / "evaluation" / "reference.npz"
    for mark, count in ((marks[0], 1), (marks[0], 1), (marks[1], 2)):
        assert kept(path, mark, make)[SQUARE].max() == count
    assert [file.name for file in path.parent.iterdir()] == ["reference.npz"]


def test_samples_are_kept_with_the_data_where_these_can_be_written(tmp_path):
    data, run, away = (tmp_path / name for name in ("data", "run", "away"))
    fields = to_dict(typed(digits.get_config()))
    settle(run, fields, Places(data))
    # As of a share that is gone, or read-only.
    settle(away, fields, Places(tmp_path / "gone"))
    data.mkdir()
    assert directory_of(run) == data / "evaluation" == directory_of(data)
    assert directory_of(away) == away / "evaluation"


def test_process_0_decides_whether_samples_are_made_again(tmp_path, monkeypatch):
    path = tmp_path / "reference.npz"
    kept(path, "mark", lambda: {SQUARE: np.zeros((1, 8, 8, 1), np.float32)})
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(keeping, "as_process_0", lambda own: False)
    again = kept(path, "mark", lambda: {SQUARE: np.ones((1, 8, 8, 1), np.float32)})
    assert again[SQUARE].max() == 1
    monkeypatch.setattr(keeping, "as_process_0", lambda own: True)
    assert kept(path, "mark", lambda: {})[SQUARE].max() == 0


@pytest.mark.parametrize(
    ("config", "changes", "words"),
    [
        (digits, dict(extractor="clip"), "extractor_weights is empty and clip reads weights"),
        (digits, dict(extractor="inception", extractor_weights="no.pth"), "does not exist"),
        (digits, dict(extractor="clip", extractor_weights="no/such/clip"), "does not exist"),
        (digits, dict(extractor="scenes"), "'scenes' works for scenes only"),
        (small, dict(extractor="digits"), "'digits' works for digits only"),
        (sd3_turbo, dict(), "evaluate.prompts is empty and prompts have no held-out records"),
        (sd3_turbo, dict(prompts="p.txt"), "evaluate.extractor is empty and with evaluate.prompts"),
    ],
)
def test_what_no_judge_could_use_is_refused_before_the_run(config, changes, words):
    config = config.get_config(*["data=x.txt"] * (config is not digits))
    config.evaluate.update(changes)
    config = typed(config)
    with pytest.raises(UserError, match=words):
        preflight._check_subjects(config)
        preflight._check_judges(config)


def test_other_guidances_are_sampled_after_the_runs_own():
    config = digits.get_config()
    config.evaluate.guidances = (1.0, config.synthesize.guidance, 2.5)
    ways = [way for way in stage._ways(typed(config)) if way.model == "generator"]
    assert [way.guidance for way in ways] == [config.synthesize.guidance, 1.0, 2.5]
    assert len({way.file for way in ways}) == len({way.title for way in ways}) == 3
    assert {way.noise for way in ways} == {ways[0].noise}
    assert ways[2].sampling.guidance == 2.5
    config.evaluate.guidances = (0.5,)
    with pytest.raises(UserError, match="evaluate.guidances is .*: use 1, for none, or more"):
        typed(config)


def test_a_run_without_a_student_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(NotFoundError, match="holds nothing of 400 steps: run the stage 'distil'"):
        stage.evaluate(typed(digits.get_config()), tmp_path)


def test_the_report_says_what_the_student_was_trained_on():
    config = digits.get_config()
    assert "samples of each bucket" in facts_of(typed(config))["student"]
    config.distil.data = "encoded"
    config.distil.distillation_weight = 1.0
    config.evaluate.extractor = "own"
    assert "the encoded pictures" in facts_of(typed(config))["student"]
    notes = " ".join(notes_of(typed(config)))
    assert (
        "real pictures" in notes and "alignment in the row of the data is measured on held" in notes
    )


def test_rows_are_given_the_metrics_of_others_of_their_bucket_in_order():
    rows = [
        Row(
            "data", 0, 1.0, name, {"fd": 1.0, "diversity": 2.0}, {"fd": (0, 2), "diversity": (1, 3)}
        )
        for name in ("all", "8x8", "8x16")
    ]
    others = [
        Row("data", 0, 1.0, name, {"alignment": 0.5}, {"alignment": (0.4, 0.6)})
        for name in ("all", "8x8")
    ]
    found = stage._with_metrics(rows, others, ("fd", "fd_real", "alignment", "diversity"))
    assert [list(row.values) for row in found[:2]] == [["fd", "alignment", "diversity"]] * 2
    assert found[1].intervals["alignment"] == (0.4, 0.6) and found[1].bucket == "8x8"
    # A bucket without others stays as it is.
    assert found[2] == rows[2]


@pytest.mark.parametrize(
    ("objective", "changes", "note"),
    [
        ("ladd", {}, "is asked to match the data generator's guided samples"),
        ("lcm", {}, "follows the guided data generator, at points of its guided samples"),
        ("dmd", {}, "follows the guided data generator, at points of its guided samples"),
        ("progressive", {"phase_steps": 9}, "follows the guided data generator, at points of its"),
    ],
    ids=["ladd", "lcm", "dmd", "progressive"],
)
def test_the_report_says_how_the_student_was_distilled(tmp_path, objective, changes, note):
    config = digits.get_config()
    config.distil.update({"objective": objective, "follows": "generator"} | changes)
    short = METHODS[objective].short
    assert facts_of(typed(config))["student"].startswith(f"400 steps of {short} on ")
    assert note in " ".join(notes_of(typed(config)))
    write_report(tmp_path / "report.html", [], [], {}, method=METHODS[objective])
    assert f"<h1>{METHODS[objective].title}</h1>" in (tmp_path / "report.html").read_text()
    if objective != "ladd":
        config.distil.update(dict(follows="finetuned", data="encoded"))
        note = "follows the data generator after finetune, at points of real pictures"
        assert note in " ".join(notes_of(typed(config)))


@pytest.mark.parametrize(
    ("changes", "sampler"),
    [({}, "consistency"), ({"objective": "progressive", "phase_steps": 9}, "euler")],
    ids=["ladd", "progressive"],
)
def test_students_are_judged_as_their_objective_samples_them(changes, sampler):
    config = digits.get_config()
    config.distil.update(changes)
    ways = stage._ways(typed(config))
    few = {(way.model, way.sampling.sampler) for way in ways if way.model != "generator"}
    assert few == {("teacher", "dpmpp_2m"), ("untrained", sampler), ("student", sampler)}
    levels = [way.sampling.sigmas for way in ways if way.model == "student"]
    assert levels[1:] == [(1.0, 0.5, 0.0, 0.0, 0.0), (1.0, 0.75, 0.5, 0.25, 0.0)]
