"""Studies: tables of runs, which of them is run next, and what becomes of them."""

import contextlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ladd_jax.errors import DamagedError, NotFoundError, UserError
from ladd_jax.studies.report import format_study, write_study_report
from ladd_jax.studies.rows import add_row, read_rows
from ladd_jax.studies.runs import check_recipes, check_rows, config_of, digest_of
from ladd_jax.studies.table import Study, folder_name, known_studies, next_run, read_study

ROOT = Path(__file__).parents[1]
TABLES = [*known_studies(), *map(str, sorted((ROOT / "benchmarks" / "studies").glob("*.json")))]


def config_named(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", TABLES)
def test_every_recipe_is_a_valid_config_unlike_the_others(name, tmp_path):
    study = read_study(name)
    config = config_named(study.config)
    made = [config_of(study, config, recipe, 1, tmp_path) for recipe in study.recipes]
    assert all(one.seed == 1 for one in made)
    assert len(made) == len(set(map(digest_of, made)))
    # `--only` has commas between names.
    assert name not in known_studies() or not any("," in recipe for recipe in study.recipes)


def test_what_has_a_row_is_not_run_again_and_may_not_have_changed():
    recipes = {"x": {"a": 1}, "y": {"a": 2}}
    done = [{"recipe": "x", "seed": 0, "changes": {"a": 1}}]
    assert next_run(recipes, [], [], [0, 1]) == ("x", 0)
    # All recipes of a seed first: they can be compared then.
    assert next_run(recipes, done, [], [0, 1]) == ("y", 0)
    assert next_run(recipes, done, [], [0, 1], {("y", 0)}) == ("x", 1)
    assert next_run(recipes, done, ["x"], [0, 1]) == ("x", 1)
    assert next_run(recipes, done, ["x"], [0]) is None
    with pytest.raises(UserError, match="no recipe 'z': valid are x, y"):
        next_run(recipes, done, ["z"], [0])
    done = [{"recipe": "y", "seed": 5, "changes": {"a": 3}}]
    with pytest.raises(UserError, match="give the changed recipe another name"):
        next_run(recipes, done, [], [0])


def table(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ({"recipes": {"a": {}}}, "has no config"),
        ({"config": "digits"}, "has no recipes"),
        ({"config": "digits", "recipes": {}}, "has no recipe: write"),
        ({"config": "digits", "recipes": {"a": 1}}, "has 1 as recipe 'a'"),
        ({"config": "digits", "recipes": {"a": {}}, "base": []}, "has .. as base"),
        ({"config": "digits", "recipes": {"a": {"seed": 1}}}, "recipe 'a' .* sets seed"),
        ({"config": "digits", "recipes": {"a": {}}, "data": {"seed": 1}}, "recipe 'a' .* sets se"),
        ({"config": "digits", "recipes": {"a": {}}, "bases": {}}, "has 'bases', .*mean base"),
        ('{"config": "digits", "recipes": {"a": {}, "b": {}, "a": {}}}', "it has 'a' twice"),
        ('{"config": "a", "recipes": {"a": {"seed": 1, "seed": 2}}}', "it has 'seed' twice"),
    ],
)
def test_what_is_no_table_is_a_sentence(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_study(table(tmp_path, text))


def test_a_study_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(NotFoundError, match="no study 'noises': did you mean noise"):
        read_study("noises")
    with pytest.raises(NotFoundError, match="none.json does not exist"):
        read_study(str(tmp_path / "none.json"))
    (tmp_path / "noise.json").write_text('{"config": "digits", "recipes": {"a": {}}}')
    with pytest.raises(UserError, match="has the name of a study of this package"):
        read_study(str(tmp_path / "noise.json"))


def test_all_that_is_wrong_with_recipes_is_told_at_once(tmp_path):
    recipes = {
        "field": {"distil.stepz": 3},
        "section": {"distil": 3},
        "value": {"distil.own_share": 3.0},
        "kind": {"distil.steps": "many"},
        "judges": {"stages": ["encode", "distil"]},
        "heads": {"distil.hooked_blocks": [9]},
        "samples": {"synthesize.samples": 16},
        "a/b": {},
        "a b": {},
    }
    study = Study("mine", "digits", recipes)
    with pytest.raises(UserError) as raised:
        check_recipes(study, config_named("digits"), recipes, [0], tmp_path)
    found = str(raised.value)
    for words in (
        "recipe 'field'", "distil.stepz", "recipe 'section'", "own_share is 3.0", "recipe 'kind'",
        "a study needs evaluate", "recipes 'a/b' and 'a b' have one folder", "recipe 'heads'",
        "recipe 'samples'",
    ):  # fmt: skip
        assert words in found, found


@pytest.mark.parametrize(
    ("name", "folder"), [("m -1, s .6", "m_-1_s_.6"), ("../x", "x"), ("~", "_"), ("a+b", "a+b")]
)
def test_a_recipe_has_a_folder_of_its_own(name, folder):
    assert folder_name(name) == folder


def run_of(recipe, seed, fd, **others):
    rows = [
        dict(model=model, steps=steps, guidance=1.0, bucket="all", values=values)
        for model, steps, values in (
            ("generator", 12, {"fd": 0.01, "diversity": 0.5}),
            ("untrained", 1, {"fd": 10 * fd, "diversity": 0.4}),
            ("student", 1, {"fd": fd, "diversity": 0.95}),
        )
    ]
    return {"recipe": recipe, "seed": seed, "changes": {}, "rows": rows} | others


def test_rows_are_added_one_by_one_and_a_damaged_file_is_a_sentence(tmp_path):
    path = tmp_path / "study" / "rows.json"
    assert read_rows(path) == []
    for run in (run_of("a", 0, 0.1), run_of("b", 0, 0.2), run_of("a", 0, 0.3)):
        add_row(path, run)
    assert [(run["recipe"], run["rows"][2]["values"]["fd"]) for run in read_rows(path)] == [
        ("b", 0.2), ("a", 0.3)
    ]  # fmt: skip
    for text in ("{", "[1]", '[{"recipe": "a"}]', '[{"recipe": 1, "seed": 0, "changes": {}}]'):
        path.write_text(text)
        with pytest.raises(DamagedError, match=r"rows.json is damaged"):
            read_rows(path)


def test_a_report_has_each_recipe_with_its_intervals_and_what_has_failed(tmp_path):
    study = Study("mine", "digits", {"a": {"x": 1}, "<b>": {"x": 2}, "c": {"x": 3}, "d": {"x": 4}})
    study = Study(study.name, study.config, study.recipes, question="Is it so?")
    failed = {"recipe": "c", "seed": 0, "changes": {}, "failed": "loss is not finite"}
    done = [run_of("a", 0, 0.1), run_of("a", 1, 0.3), run_of("<b>", 0, 0.2), failed]
    text = format_study(study, done).splitlines()
    assert text[0].split("  ")[0] == "recipe" and "FD, 1 step" in text[0]
    assert re.search(r"^a +2 +0\.200 ± 1\.271 \(0\.10x\) +\d of \d$", text[2])
    assert re.search(r"^<b> +1 +0\.200 \(0\.10x\) +\d of \d$", text[3])
    assert text[4] == "c of seed 0 has failed: loss is not finite" and len(text) == 5
    write_study_report(tmp_path / "report.html", study, "Config digits, seed 3", done)
    page = (tmp_path / "report.html").read_text()
    assert "<td>1.900 ± 0.000</td>" in page and "diversity, of the generator" in page
    assert (
        "Is it so?" in page
        and "Config digits, seed 3" in page
        and "&lt;b&gt;" in page
        and "<b>" not in page
    )
    assert "data:image/png;base64," in page and "loss is not finite" in page


def test_seeds_that_were_measured_otherwise_are_compared_in_what_they_share():
    study = Study("mine", "digits", {"a": {}})
    other = run_of("a", 1, 0.3)
    other["rows"].append(other["rows"][2] | {"steps": 2})
    text = format_study(study, [run_of("a", 0, 0.1), other, run_of("gone", 0, 1.0)])
    assert "2 steps" not in text and "0.200 ± 1.271" in text and "gone" not in text


@pytest.mark.parametrize(
    ("field", "value", "same"),
    [("log.every", 7, True), ("distil.own_share", 0.5, False), ("evaluate.samples", 40, False)],
)
def test_rows_of_another_config_are_refused(tmp_path, field, value, same):
    study, config = Study("mine", "digits", {"a": {"distil.steps": 7}}), config_named("digits")
    made = config_of(study, config, "a", 3, tmp_path)
    run = run_of("a", 3, 0.1)
    config.update_from_flattened_dict({field: value})
    # Of an older version.
    check_rows(study, config, [run], tmp_path)
    with contextlib.nullcontext() if same else pytest.raises(UserError, match="another config"):
        check_rows(study, config, [run | {"config": digest_of(made)}], tmp_path)


def test_a_report_tells_how_far_seeds_are_apart():
    study = Study("seeds", "digits", {f"seed {i}": {"distil.seed": i} for i in range(3)})
    done = [run_of(f"seed {i}", 0, fd) for i, fd in enumerate((0.1, 0.2, 0.3))]
    assert "median 0.200, ranging from 0.50 to 1.50 times the median" in format_study(study, done)


SMALL = {
    "data.buckets": ["8x8"], "data.examples": 32, "data.held_out_examples": 32,
    "data.records_per_shard": 32, "model.depth": 3, "model.width": 16, "heads.channels": 8,
    "heads.groups": 2, "heads.projection": 8, "pretrain.steps": 1, "pretrain.batch_size": 8,
    "synthesize.samples": 32, "synthesize.steps": 2, "finetune.steps": 0, "distil.batch_size": 8,
    "distil.head_updates": 1, "distil.consistency_weight": 0.0, "evaluate.samples": 32,
    "evaluate.resamples": 0, "log.every": 1, "log.samples_every": 0, "evaluate.student_steps": [1],
}  # fmt: skip


def study_command(tmp_path, *arguments, processes=1):
    together = [ROOT / "launch" / "local_processes.sh", str(processes)] * (processes > 1)
    command = [sys.executable, "-m", "ladd_jax.study", f"--workdir={tmp_path / 'studies'}"]
    return subprocess.run(
        [*together, *command, *arguments],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


@pytest.mark.slow
def test_a_study_shares_data_survives_runs_that_break_and_repeats_nothing(tmp_path):
    recipes = {
        "one": {"distil.steps": 1},
        "rate": {"distil.steps": 1, "distil.optimizer.learning_rate": 1e39},
        # Parameters that float32 holds, and their products that it does not.
        "samples": {
            "distil.steps": 1,
            "distil.optimizer.learning_rate": 1e38,
            "distil.ema_decay": 0.0,
        },
    }
    file = table(tmp_path, {"config": "digits", "data": SMALL, "recipes": recipes})
    # One after the other, by two processes together.
    first = study_command(tmp_path, f"--study={file}", processes=2)
    assert first.returncode == 0, first.stderr
    rows = read_rows(tmp_path / "studies" / "mine" / "rows.json")
    assert [(run["recipe"], "rows" in run) for run in rows] == [
        ("one", True), ("rate", False), ("samples", False)
    ]  # fmt: skip
    assert "rate of seed 0 has failed: " in first.stdout
    assert "samples of seed 0 has failed: metrics are not finite" in first.stdout
    (shared,) = (tmp_path / "studies" / "shared").iterdir()
    assert (shared / "synthesized").is_dir() and (shared / "evaluation").is_dir()
    again = study_command(tmp_path, f"--study={file}")
    assert again.returncode == 0 and "stage" not in again.stderr
    assert again.stdout == first.stdout[first.stdout.index("recipe  ") :]
    assert (tmp_path / "studies" / "mine" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--study=noise", "--seeds=1,x"], "--seeds has 'x'"),
        (["--study=noise", "--only=m 1"], "no recipe 'm 1': did you mean"),
        (["--study=noise", "--config.seed=5"], "seed is 5: give it with --seeds=5"),
        (["--study=noise", "--config.distil.own_share=3"], "error: distil.own_share is 3.0"),
        (["--study", "noise", "--config.distil.stepz=3"], "unknown config field distil.stepz"),
        (["--study=noises"], "no study 'noises': did you mean noise"),
        (["--study=noise", "--config=digit"], "there is no config 'digit': did you mean digits"),
        ([], "--study=NAME"),
    ],
)
def test_a_mistake_is_a_sentence_and_makes_nothing(tmp_path, arguments, words):
    found = study_command(tmp_path, *arguments)
    assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "studies").exists()


def test_rows_and_runs_that_cannot_be_written_are_told_before_the_first_run(tmp_path):
    (tmp_path / "file").write_text("")
    found = study_command(tmp_path, "--study=noise", f"--rows={tmp_path / 'file' / 'rows.json'}")
    assert found.returncode == 2 and "is in no folder where you may" in found.stderr
    file = table(tmp_path, {"config": "digits", "recipes": {"a": {}, "b" * 300: {}}})
    study, config = read_study(file), config_named("digits")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("")
    with pytest.raises(UserError) as told:
        check_recipes(study, config, study.recipes, [0], tmp_path)
    for words in ("recipe 'a': --workdir=", "/mine/a is not a folder", "use shorter names"):
        assert words in str(told.value)
    # What is done needs no folder any more.
    rows = [{"recipe": "a", "seed": seed, "changes": {}} for seed in (0, 1)]
    check_recipes(study, config, ["a"], [0, 1], tmp_path, rows)
    with pytest.raises(UserError, match="/mine/a is not a folder"):
        check_recipes(study, config, ["a"], [0, 1], tmp_path, rows[:1])
