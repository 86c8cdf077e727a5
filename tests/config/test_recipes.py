"""Recipes of the distillation by name, in the configs that take one."""

import pytest

from configs import (
    digits,
    pictures,
    scenes,
    sd3_edit,
    sd3_inpaint,
    sd3_turbo,
    small,
    small_edit,
    small_inpaint,
)
from ladd_jax.config import typed
from ladd_jax.config.fields import Config, to_dict
from ladd_jax.studies.table import read_study

SMALL = (digits, scenes, small, pictures)
ADDED = (
    "renoise_mean", "renoise_slope", "reconstruction_weight", "reconstruction_gamma",
    "consistency_weight", "consistency_solver", "follows", "timesteps", "probabilities",
)  # fmt: skip


def changed(one, other):
    """Paths of the fields in which two configs differ."""

    def flat(fields, path=""):
        if not isinstance(fields, dict):
            return {path: fields}
        parts = [flat(value, f"{path}.{name}".lstrip(".")) for name, value in fields.items()]
        return {name: value for part in parts for name, value in part.items()}

    old, new = (flat(to_dict(typed(config))) for config in (one, other))
    return {path for path in old if old[path] != new[path]}


@pytest.mark.parametrize("module", SMALL, ids=lambda module: module.__name__)
def test_the_papers_recipe_has_nothing_that_the_paper_does_not(module):
    paper, default = module.get_config("recipe=paper"), module.get_config()
    assert typed(default) == typed(module.get_config("recipe=robust"))
    known = Config().distil
    assert all(getattr(paper.distil, name) == getattr(known, name) for name in ADDED)
    assert paper.finetune.steps == 0 and default.finetune.steps > 0
    # Whatever the paper leaves open is the same.
    differ = changed(paper, default)
    even = module in (scenes, small)
    own = {"distil.probabilities" if even else "distil.reconstruction_weight"}
    if module is not small:
        own.add("distil.consistency_solver")
    assert {path for path in differ if not path.startswith("finetune.")} == own | {
        "distil.renoise_mean", "distil.renoise_slope", "distil.consistency_weight",
        "distil.consistency_steps", "distil.follows",
    }  # fmt: skip


def test_sd3_is_the_papers_unless_asked_for_another_recipe():
    paper, robust = (sd3_turbo.get_config(given) for given in (None, "recipe=robust"))
    assert typed(paper) == typed(sd3_turbo.get_config("recipe=paper"))
    differ = changed(paper, robust)
    assert {path for path in differ if not path.startswith("finetune.")} == {
        "distil.renoise_mean", "distil.reconstruction_weight", "distil.reconstruction_gamma",
    }  # fmt: skip
    assert robust.finetune.steps == robust.distil.steps // 10
    assert robust.finetune.shift == robust.synthesize.shift == 3
    # Adapters spare the training of the whole network.
    assert sd3_turbo.get_config("recipe=robust,lora=8").finetune.steps == 0


@pytest.mark.parametrize(
    "module",
    [*SMALL, small_inpaint, small_edit, sd3_turbo, sd3_inpaint, sd3_edit],
    ids=lambda module: module.__name__,
)
def test_a_recipe_that_is_not_there_is_refused(module):
    with pytest.raises(
        ValueError, match="recipe 'best' is not one of robust, paper: use one of them"
    ):
        module.get_config("recipe=best")


def test_the_study_of_recipes_compares_those_of_the_config():
    study = read_study("recipe")
    default = digits.get_config("recipe=robust")
    made = {name: study.start(default, name, 0) for name in study.recipes}
    judged = {"evaluate.samples"}
    assert changed(made["robust"], default) == judged
    differ = changed(made["paper"], digits.get_config("recipe=paper"))
    # What a stage of no steps would have done.
    assert {path for path in differ if not path.startswith("finetune.")} == judged
    assert made["paper"].finetune.steps == 0
