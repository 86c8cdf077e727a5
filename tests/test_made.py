"""What a run finds made: by itself, by another run that it shares data with or begins from."""

import dataclasses
import json

import pytest

from configs import digits
from ladd_jax.config.fields import to_dict, typed
from ladd_jax.config.identity import identity
from ladd_jax.config.workdir import Places, first_run, settle
from ladd_jax.data.shard_sets import write_identity
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.stages.made import check_made, open_places

RATE = {"distil__optimizer__learning_rate": 1e-7}


def config(**changes):
    made = digits.get_config()
    for path, value in changes.items():
        made.update_from_flattened_dict({path.replace("__", "."): value})
    return typed(made)


def save(workdir, stage, step, settings):
    """What says of a checkpoint what it was made with."""
    folder = workdir / stage / "checkpoints" / str(step) / "config"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(json.dumps(to_dict(settings)))


def encoded(data, settings, name="encoded"):
    write_identity(data / name, identity(to_dict(settings), name))
    (data / name / "null_text.npz").touch()


def check(settings, workdir, data=None):
    return check_made(settings, workdir, Places(data or workdir)).makes


def test_another_distillation_leaves_the_data_alone_and_other_data_are_refused(tmp_path):
    encoded(tmp_path, config())
    encoded(tmp_path, config(), "synthesized")
    save(tmp_path, "pretrain", config().pretrain.steps, config())
    check(config(distil__loss="softplus", distil__steps=9, heads__channels=48), tmp_path)
    with pytest.raises(UserError, match=r"encoded is another set .*data\.examples was 1437 and"):
        check(config(data__examples=1000), tmp_path)
    with pytest.raises(UserError, match=r"synthesized is another set .*synthesize\.guidance was"):
        check(config(synthesize__guidance=1.5), tmp_path)
    with pytest.raises(UserError, match=r"pretrain.checkpoints holds .*pretrain\.ema_decay was"):
        check(config(pretrain__ema_decay=0.5), tmp_path)
    # What is of another config is made anew by the stages that make it, and by no others.
    anew = {"pretrain__ema_decay": 0.5, "on_change": "redo"}
    assert check(config(**anew), tmp_path)
    with pytest.raises(UserError, match=r"synthesized is another set .*pretrain\.ema_decay was"):
        check(config(**anew, stages=("pretrain",)), tmp_path)


@pytest.mark.parametrize(
    ("step", "change", "words"),
    [
        (3, RATE, ""),
        (3, {"distil__steps": 30}, ""),
        # What is done is trained on with another rate where there are more steps.
        (10, {"distil__steps": 30}, ""),
        (10, RATE | {"distil__steps": 30}, ""),
        (10, RATE, r"learning_rate was .*: raise distil.steps above 10 to train on with it"),
        (10, {"distil__steps": 9}, "holds step 10 and distil.steps is 9: use 10 or more"),
        (3, {"distil__ema_decay": 0.5}, r"ema_decay was .*: use another --workdir with --from"),
        (3, {"pretrain__optimizer__learning_rate": 1.0}, r"pretrain\.optimizer\.learning_rate was"),
        (3, {"finetune__steps": 7}, r"finetune\.steps was"),
    ],
)
def test_a_training_goes_on_with_more_steps_or_another_rate(tmp_path, step, change, words):
    save(tmp_path, "distil", step, config(distil__steps=10))
    changed = config(**{"distil__steps": 10} | change)
    if words:
        with pytest.raises(UserError, match=words):
            check(changed, tmp_path)
    else:
        check(changed, tmp_path)


def test_what_no_stage_of_the_run_makes_is_missed_before_anything_is_written(tmp_path):
    only = config(stages=("distil",))
    with pytest.raises(NotFoundError, match="no complete latent shards in .*run.synthesized"):
        check(only, tmp_path / "run")
    encoded(tmp_path / "data", only, "synthesized")
    check(only, tmp_path / "run", tmp_path / "data")
    assert not (tmp_path / "run").exists()


def test_data_are_made_by_a_run_where_some_are_missing_and_only_read_where_they_are_there(tmp_path):
    settings = config()
    run, data = tmp_path / "run", tmp_path / "data"
    assert check(settings, run, data)
    for name in ("encoded", "synthesized"):
        encoded(data, settings, name)
    save(data, "pretrain", settings.pretrain.steps - 1, settings)
    assert check(settings, run, data)
    assert not check(dataclasses.replace(settings, stages=("distil",)), run, data)
    save(data, "pretrain", settings.pretrain.steps, settings)
    assert not check(settings, run, data)


def test_data_are_those_of_the_flag_of_the_workdir_or_its_own(tmp_path):
    run, data, other = (tmp_path / name for name in ("run", "data", "other"))
    assert open_places(config(), run, "", "") == Places(run)
    settle(run, to_dict(config()), open_places(config(), run, str(data), ""))
    assert open_places(config(), run, "", "") == Places(data)
    # A workdir that has none of its own stands for what it names.
    assert open_places(config(), other, str(run), "") == Places(data)
    encoded(other, config())
    with pytest.raises(UserError, match=r"has data of its own \(encoded\): leave --data="):
        open_places(config(), other, str(data), "")
    data.touch()
    with pytest.raises(UserError, match="--data=.* is a file: name a directory"):
        open_places(config(), run, str(data), "")


def test_a_run_that_follows_what_was_finetuned_begins_where_that_is_there(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    taught = dict(distil__objective="lcm", distil__follows="finetuned", finetune__steps=3)
    short, long = config(distil__steps=10, **taught), config(distil__steps=20, **taught)
    save(first, "distil", 10, short)
    with pytest.raises(NotFoundError, match="first has nothing of its stage 'finetune', which"):
        open_places(long, second, "", str(first))
    save(first, "finetune", 3, short)
    (tmp_path / "data").mkdir()
    found = open_places(long, second, str(tmp_path / "data"), str(first))
    assert found == Places(tmp_path / "data", first, 10)
    # And so does one that begins from the second, which fine-tuned nothing itself.
    settle(second, to_dict(long), found)
    save(second, "distil", 20, long)
    assert open_places(config(distil__steps=30, **taught), third, "", str(second)).step == 20
    assert first_run(third) == third and first_run(second) == first


def test_adapters_begin_from_those_of_another_run_of_the_same_network(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    adapted = dict(distil__lora__rank=4, finetune__steps=0, distil__consistency_weight=0.0)
    save(first, "distil", 10, config(distil__steps=10, **adapted))
    more = config(distil__steps=20, **adapted)
    assert open_places(more, second, "", str(first)) == Places(first, first, 10)
    with pytest.raises(
        UserError, match=r"has another data generator .*the adapters .*leave --data out"
    ):
        open_places(more, second, str(tmp_path / "data"), str(first))
    for change, words in (
        (dict(pretrain__steps=7), r"pretrain\.steps was"),
        (dict(finetune__steps=3), "nothing of its stage 'finetune'"),
        (dict(distil__lora__rank=2), r"distil\.lora\.rank was 4 and is 2"),
    ):
        with pytest.raises(UserError, match=words):
            open_places(
                config(**{"distil__steps": 20, **adapted, **change}), second, "", str(first)
            )


def test_a_run_begins_from_the_newest_student_of_another_on_its_data(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    with pytest.raises(NotFoundError, match="--from=.*first holds no student: name the --workdir"):
        open_places(config(), second, "", str(first))
    save(first, "finetune", config().finetune.steps, config())
    save(first, "distil", 5, config(distil__steps=10))
    save(first, "distil", 10, config(distil__steps=10))
    more = config(distil__steps=20, distil__ema_decay=0.5)
    found = open_places(more, second, "", str(first))
    assert found == Places(first, first, 10)
    assert open_places(more, second, str(tmp_path / "data"), str(first)).data == tmp_path / "data"
    with pytest.raises(UserError, match="a student of 10 steps and distil.steps is 10: raise it"):
        open_places(config(distil__steps=10), second, "", str(first))
    with pytest.raises(UserError, match=r"student of other networks \(model\.width was"):
        open_places(config(distil__steps=20, model__width=48), second, "", str(first))
    told = config(distil__steps=20, synthesize__guidance_range=(1.0, 6.0))
    with pytest.raises(UserError, match=r"other networks \(synthesize\.guidance_range was"):
        open_places(told, second, "", str(first))
    with pytest.raises(
        UserError, match=r"other networks \(distil\.objective was 'ladd' and is 'lcm'"
    ):
        open_places(config(distil__steps=20, distil__objective="lcm"), second, "", str(first))
    adapted = tmp_path / "adapted"
    save(adapted, "finetune", config().finetune.steps, config())
    save(adapted, "distil", 10, config(distil__steps=10, distil__lora__rank=4))
    with pytest.raises(UserError, match=r"student of other networks \(distil\.lora\.rank was"):
        open_places(more, tmp_path / "third", "", str(adapted))
    # Once it has begun, the other one may train on.
    settle(second, to_dict(more), found)
    save(second, "distil", 12, more)
    save(first, "distil", 15, config(distil__steps=15))
    assert open_places(more, second, "", str(first)) == found == open_places(more, second, "", "")
    with pytest.raises(UserError, match="first already has a student that did not begin with"):
        open_places(config(distil__steps=30), first, "", str(second))


def test_a_student_that_is_given_no_picture_begins_none_that_is(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    old = config(distil__steps=10)
    save(first, "finetune", old.finetune.steps, old)
    save(first, "distil", 10, old)
    [file] = first.glob("distil/checkpoints/10/config/metadata")
    fields = json.loads(file.read_text())
    # As a version wrote it that joined nothing.
    del fields["data"]["joined"]
    file.write_text(json.dumps(fields))
    assert open_places(config(distil__steps=20), second, "", str(first)).step == 10
    with pytest.raises(UserError, match=r"other networks \(data\.joined was '' and is 'inpaint'"):
        open_places(config(distil__steps=20, data__joined="inpaint"), second, "", str(first))


def test_a_progressive_student_goes_on_by_other_phases_only_where_one_begins(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    phases = dict(
        distil__objective="progressive", distil__follows="generator", finetune__steps=0,
        distil__phase_steps=20, distil__consistency_weight=0.0,
    )  # fmt: skip
    save(first, "distil", 100, config(distil__steps=100, **phases))

    def begun(**changes):
        return open_places(config(distil__steps=200, **phases | changes), second, "", str(first))

    assert begun().step == 100
    one = dict(
        distil__timesteps=(1.0,), distil__probabilities=(1.0,), distil__warmup_probabilities=(1.0,)
    )
    with pytest.raises(UserError, match="a student of 100 steps, where no phase begins"):
        begun(**one)
    with pytest.raises(
        UserError,
        match=r"phase_steps=30 and halvings=5, and it was trained with another distil\.timesteps",
    ):
        begun(**one, distil__halvings=5, distil__phase_steps=30)
    assert begun(**one, distil__halvings=5, distil__phase_steps=25).step == 100
