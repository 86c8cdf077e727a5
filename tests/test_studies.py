"""Tables of recipes, and which of them is run next."""

from pathlib import Path

import pytest

from benchmarks import studies
from ladd_jax.config import typed
from ladd_jax.errors import UserError

STUDIES = sorted(path.stem for path in Path(studies.__file__).parent.glob("*.json"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_recipe_is_a_valid_config_unlike_the_others(study):
    table = studies.read_table(study)
    recipes = studies.recipes_of(table)
    made = []
    for changes in recipes.values():
        config = studies.base(table, seed=1)
        studies.change(config, changes)
        made.append(typed(config))
        assert made[-1].seed == 1
    assert len(recipes) == len(set(map(str, made)))


def test_studies_share_data_but_for_those_that_say_what_theirs_is():
    assert studies.folder("runs", "seeds", 0) == Path("runs/digits/0")
    assert studies.folder("runs", "scenes", 0) == Path("runs/scenes/0")
    assert studies.folder("runs", "finetune", 0) == Path("runs/digits_finetune/0")
    assert studies.folder("runs", "digits", 0) != studies.folder("runs", "seeds", 0)
    assert studies.folder("runs", "samples", 0) != studies.folder("runs", "digits", 0)
    assert studies.base(studies.read_table("samples"), 0).synthesize.samples == 4096


def test_what_has_a_row_is_not_run_again_and_may_not_have_changed():
    table = {"base": {"a": 1}, "recipes": {"x": {}, "y": {"a": 2}}}
    done = [{"recipe": "x", "seed": 0, "changes": {"a": 1}}]
    assert studies.next_run(table, [], [], [0, 1]) == ("x", 0, {"a": 1})
    assert studies.next_run(table, done, [], [0, 1]) == ("x", 1, {"a": 1})
    assert studies.next_run(table, done, [], [0]) == ("y", 0, {"a": 2})
    assert studies.next_run(table, done, ["x"], [0]) is None
    with pytest.raises(UserError, match="no recipe 'z': it has x, y"):
        studies.next_run(table, done, ["z"], [0])
    done[0]["changes"] = {"a": 3}
    with pytest.raises(UserError, match="give the changed recipe another name"):
        studies.next_run(table, done, [], [0])


def test_a_spread_is_told_of_runs_that_differ_by_their_seed_alone():
    seeds = [{"changes": {"distil.steps": 9, "distil.seed": seed}} for seed in range(3)]
    assert studies.only_seeds_differ(seeds)
    assert not studies.only_seeds_differ(seeds[:1])
    assert not studies.only_seeds_differ([*seeds, {"changes": {"distil.steps": 8}}])
