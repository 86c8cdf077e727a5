"""What networks of another package are given besides the text: by users, and by data."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest
from runs import keeping_programs
from sampled import draw, pixels
from test_arena import command
from untrained_run import save_generator, save_student

from configs import digits
from ladd_jax.cli.preflight import _check_subjects
from ladd_jax.config.fields import typed
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.conditions import CONDITIONS, Condition
from ladd_jax.data.joined import JOINED, Joined
from ladd_jax.data.shard_sets import Layout
from ladd_jax.data.shard_writing import finalize, missing_shards, write_shard
from ladd_jax.errors import NotFoundError, UserError
from ladd_jax.evaluation.arena.votes import read_votes
from ladd_jax.models.families import FAMILIES, family
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.serving.ready import Ready
from ladd_jax.serving.student import Student, Wish
from ladd_jax.stages.conditions import null_of, parse
from ladd_jax.stages.prompted import Picture, Prompted
from ladd_jax.stages.sets import encoded
from ladd_jax.stages.subjects import pair_conditions, subject_of
from ladd_jax.stages.trained import open_trained

CLASSES = 3


def one_of(value, wanted):
    """A class as one of so many."""
    (count,) = wanted.shape
    if not value.isdecimal() or int(value) >= count:
        raise UserError(f"the class is {value!r}: use a number below {count}")
    return np.eye(count)[int(value)]


def shade(data, wanted):
    """A file with a number, in every latent pixel."""
    return np.full(wanted.shape, float(data))


def _labelled():
    """SD3's family with networks that are given a class, which moves the vector of the text."""
    sd3 = family("sd3")

    def backbone(config):
        network = sd3.backbone(config)
        call = network.bind

        def bind(params):
            module = call(params)

            def labelled(x_t, t, cond, tap=None):
                pooled = cond["pooled"].at[:, :CLASSES].add(100 * cond["label"])
                return module(x_t, t, cond | {"pooled": pooled}, tap=tap)

            return labelled

        network.bind = bind
        return network

    def cond_shapes(config, height, width, length):
        return sd3.cond_shapes(config, height, width, length) | {"label": (CLASSES,)}

    return dataclasses.replace(sd3, name="labelled", backbone=backbone, cond_shapes=cond_shapes)


@pytest.fixture(scope="module", autouse=True)
def package():
    """What a package adds to the tables."""
    with pytest.MonkeyPatch.context() as tables:
        tables.setitem(sys.modules, "theirs", types.SimpleNamespace(FAMILY=_labelled()))
        tables.setitem(FAMILIES, "labelled", "theirs")
        tables.setitem(JOINED, "shade", Joined(lambda channels: channels, "a shade"))
        tables.setitem(CONDITIONS, "label", Condition("class", one_of, default="0"))
        tables.setitem(CONDITIONS, "shade", Condition("shade", shade, file=True))
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_are_kept_for_these_tests(tmp_path_factory):
    with keeping_programs(tmp_path_factory.mktemp("kept")):
        yield


def config_of(model_family="sd3", evaluate=None, **data):
    """A config of small runs of digits."""
    config = digits.get_config()
    config.model.update(dict(depth=1, width=16, unroll=1, family=model_family))
    config.heads.update(dict(channels=8))
    config.data.update(dict(buckets=("8x8",)) | data)
    config.evaluate.update(evaluate or {})
    config.compilation_cache = "compilation_cache"
    return typed(config)


def save(directory, *of, **data):
    """Writes such a run; returns its folder."""
    save_student(config_of(*of, **data), directory)
    return directory


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return save(tmp_path_factory.mktemp("labelled") / "run", "labelled")


@pytest.fixture(scope="module")
def shaded(tmp_path_factory):
    return save(tmp_path_factory.mktemp("shaded") / "run", joined="shade")


def encode_one(directory, **null):
    """Writes data of a single record, which has these arrays, as the empty prompt does."""
    arrays = {name: ArraySpec(array.shape) for name, array in null.items()}
    layout = Layout({Bucket(8, 8): 1}, 1, arrays)
    (shard,) = missing_shards(encoded(directory), layout)
    write_shard(encoded(directory), layout, shard, [{"prompt": "a", "cond": null}])
    finalize(encoded(directory), layout, null)


def opened(directory, model=None):
    mesh = make_mesh({}, jax.devices()[:1])
    return open_trained(str(directory), model, None, None, mesh), mesh


def test_sample_gives_a_value_to_all_prompts_or_one_to_each_or_several_to_one(labelled, tmp_path):
    given = dict(checkpoint=labelled, num=1)
    usual, _ = draw(tmp_path / "0", "--prompt=seven", "--prompt=two", **given)
    first, _ = draw(tmp_path / "1", "--prompt=seven", "--prompt=two", condition="label=1", **given)
    each, _ = draw(
        tmp_path / "2", "--prompt=seven", "--prompt=two", "--condition=label=0",
        "--condition=label=1", **given,
    )  # fmt: skip
    key = ("seven", 0)
    assert usual[key].text["condition label"] == "0" and first[key].text["condition label"] == "1"
    assert np.any(pixels(usual[key]) != pixels(first[key]))
    np.testing.assert_array_equal(pixels(each["seven", 0]), pixels(usual["seven", 0]))
    np.testing.assert_array_equal(pixels(each["two", 0]), pixels(first["two", 0]))
    draw(tmp_path / "3", "--condition=label=0", "--condition=label=2", prompt="two", **given)
    assert len(list((tmp_path / "3").glob("two*.png"))) == 2
    with pytest.raises(UserError, match="3 values of --condition for 2 prompts"):
        draw(
            tmp_path / "4", "--prompt=seven", "--prompt=two",
            *(f"--condition=label={i}" for i in range(3)), **given,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("label=9", "--condition=label=9: the class is '9': use a number below 3"),
        ("lable=1", "--condition=lable=1 names no condition that .*run reads: name label$"),
        ("label", "--condition=label is not a name with a value: use NAME=VALUE"),
    ],
)
def test_a_mistake_in_a_condition_is_said(labelled, tmp_path, condition, words):
    with pytest.raises(UserError, match=words):
        draw(tmp_path / "out", prompt="seven", condition=condition, checkpoint=labelled)


def test_a_network_without_conditions_is_given_none(tmp_path):
    run = save(tmp_path / "run")
    with pytest.raises(UserError, match="no condition that .*run reads: leave it out$"):
        draw(tmp_path / "out", prompt="seven", condition="label=1", checkpoint=run)


def test_what_is_joined_to_x_t_is_made_of_the_file_that_is_named(shaded, tmp_path):
    pictures = []
    for value in ("0.0", "3.0"):
        file = tmp_path / f"{value}.txt"
        file.write_text(value)
        found, _ = draw(
            tmp_path / value, prompt="two", num=1, condition=f"shade={file}", checkpoint=shaded
        )
        pictures.append(found["two", 0])
        assert found["two", 0].text["condition shade"].startswith(f"{value}.txt ")
    assert np.any(pixels(pictures[0]) != pixels(pictures[1]))
    with pytest.raises(UserError, match=r"reads the condition 'shade' \(shade\): give it by --c"):
        draw(tmp_path / "out", prompt="two", checkpoint=shaded)
    with pytest.raises(NotFoundError, match="gone.txt cannot be read"):
        draw(tmp_path / "out", prompt="two", condition="shade=gone.txt", checkpoint=shaded)


def test_a_network_that_reads_what_nothing_gives_says_what_is_missing(
    labelled, tmp_path, monkeypatch
):
    monkeypatch.delitem(CONDITIONS, "label")
    with pytest.raises(UserError, match="is given label besides text, and nothing that is inst"):
        draw(tmp_path / "out", prompt="seven", checkpoint=labelled)
    monkeypatch.delitem(CONDITIONS, "shade")
    other = save(tmp_path / "other", joined="shade")
    with pytest.raises(UserError, match="is given 'shade', 1 channels beside those of x_t, and no"):
        draw(tmp_path / "out", prompt="seven", checkpoint=other)


def test_a_guided_data_generator_knows_what_stands_for_none(labelled):
    save_generator(config_of("labelled"), labelled)
    encode_one(labelled, label=np.eye(CLASSES)[2], pooled=np.ones(32))
    student, generator = opened(labelled)[0], opened(labelled, "generator")[0]
    assert null_of(student) == {}
    (found,) = null_of(generator).items()
    assert found[0] == "label" and found[1].tolist() == [0, 0, 1]
    sampling = generator.sampling(1, 3.0, None)
    pictures = []
    for array in (found[1], np.zeros(CLASSES, np.float32)):
        other = dataclasses.replace(generator, null=lambda array=array: {"label": array})
        prompted = Prompted(other, ["two"], opened(labelled)[1], 1)
        [(_, picture)] = prompted.pictures(sampling, Bucket(8, 8), [Picture(0, 0)])
        pictures.append(picture)
    assert np.any(pictures[0] != pictures[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run whose network reads no condition."""
    return save(tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A file of two prompts."""
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("seven\ntwo\n")
    return file


def page_of(folder):
    """The samples of a page, and the pictures of each model."""
    data = json.loads((folder / "arena.json").read_text(encoding="utf-8"))
    made = {each["model"]: [file for file, *_ in each["pictures"]] for each in data["contenders"]}
    return data, made


def test_compared_models_are_given_the_values_that_they_read(labelled, plain, prompts, tmp_path):
    options = dict(compare=f"a={labelled},b={plain}", prompts=prompts, steps=1, teacher_steps=0)
    command("--condition=label=1", "--condition=label=2", page=tmp_path / "each", **options)
    command(page=tmp_path / "usual", **options)
    data, made = page_of(tmp_path / "each")
    assert data["samples"] == [
        {"prompt": "seven", "seed": 0, "conditions": "class: 1"},
        {"prompt": "two", "seed": 0, "conditions": "class: 2"},
    ]
    usual, other = page_of(tmp_path / "usual")
    assert usual["samples"] == [{"prompt": prompt, "seed": 0} for prompt in ("seven", "two")]
    assert made["b"] == other["b"] and not {*made["a"]} & {*other["a"]}


def test_votes_on_several_values_of_one_prompt_are_several(labelled, plain, prompts, tmp_path):
    (tmp_path / "one.txt").write_text("two")
    command(
        "--condition=label=0", "--condition=label=2", compare=f"a={labelled},b={plain}", steps=1,
        teacher_steps=0, prompts=tmp_path / "one.txt", page=tmp_path / "page", num=2,
    )  # fmt: skip
    data, made = page_of(tmp_path / "page")
    told = [(each["conditions"], each["seed"]) for each in data["samples"]]
    assert told == [("class: 0", 0), ("class: 0", 1), ("class: 2", 0), ("class: 2", 1)]
    assert len({*made["a"]}) == 4 and made["b"][:2] == made["b"][2:]
    names = [each["title"] for each in data["contenders"]]
    vote = {"left": names[0], "right": names[1], "choice": "left", "time": "2026-01-01"}
    votes = {"format": "ladd_jax votes", "page": data["id"], "models": names, "voter": "v"}
    votes["votes"] = [vote | each for each in data["samples"]]
    (tmp_path / "votes.json").write_text(json.dumps(votes))
    assert len(read_votes([tmp_path / "votes.json"]).games) == 4


def test_a_model_without_the_joined_condition_is_compared_with_one_that_has_it(
    shaded, plain, prompts, tmp_path
):
    (tmp_path / "dark.txt").write_text("3")
    command(
        f"--condition=shade={tmp_path / 'dark.txt'}", compare=f"a={shaded},b={plain}", steps=1,
        teacher_steps=0, prompts=prompts, page=tmp_path / "page",
    )  # fmt: skip
    assert {each["conditions"] for each in page_of(tmp_path / "page")[0]["samples"]} == {
        "shade: dark.txt"
    }


def test_what_compared_models_cannot_be_given_is_said(labelled, plain, shaded, prompts, tmp_path):
    for models, values, words in (
        (labelled, ["lable=1"], "=lable=1 names no condition that a compared model reads: name l"),
        (plain, ["label=1"], "=label=1 names no condition that a compared .* reads: leave it out$"),
        (labelled, ["label=9"], "--condition=label=9: the class is '9': use a number below 3"),
        (labelled, [f"label={i}" for i in range(3)], "3 values of --condition for 2 prompts: give"),
        (shaded, [], r"reads the condition 'shade' \(shade\): give it by --condition=shade=FILE"),
    ):
        with pytest.raises(UserError, match=words):
            command(
                *(f"--condition={value}" for value in values), compare=models, prompts=prompts,
                teacher_steps=0, page=tmp_path / "page",
            )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "classes"),
    [((), [0, 0]), (("label=1",), [1, 1]), (("label=1", "label=2"), [1, 2])],
)
def test_prompts_that_a_run_is_judged_on_have_the_values_of_its_config(
    given, classes, prompts, tmp_path
):
    encode_one(tmp_path, label=np.eye(CLASSES)[2], pooled=np.ones(32), context=np.ones((4, 32)))
    settings = dict(prompts=str(prompts), conditions=given, samples=6, per_prompt=2)
    subject = subject_of(config_of("labelled", settings), tmp_path)
    (subjects,) = subject.buckets.values()
    assert subjects.prompts.tolist() == ["seven"] * 3 + ["two"] * 3
    assert np.argmax(subjects.cond["label"], axis=1).tolist() == np.repeat(classes, 3).tolist()
    # What stands for none is the data's, so that the teacher is guided as in training.
    np.testing.assert_array_equal(subject.null["label"], np.eye(CLASSES)[2])


def test_a_prompt_is_judged_with_each_of_several_values(tmp_path):
    encode_one(tmp_path, channels=np.zeros((8, 8, 1)))
    files = [tmp_path / name for name in ("0.txt", "2.txt")]
    for file in files:
        file.write_text(file.stem)
    (tmp_path / "prompt.txt").write_text("two")
    settings = dict(
        prompts=str(tmp_path / "prompt.txt"), conditions=tuple(f"shade={file}" for file in files),
        samples=4, per_prompt=2,
    )  # fmt: skip
    config = config_of("sd3", settings, joined="shade")
    (subjects,) = subject_of(config, tmp_path).buckets.values()
    assert subjects.prompts.tolist() == ["two"] * 4
    assert subjects.cond["channels"][:, 0, 0, 0].tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    ("run", "given", "words"),
    [
        (
            "labelled",
            ("lable=1",),
            "evaluate.conditions=lable=1 names no condition that the run re",
        ),
        ("labelled", ("label=9",), "evaluate.conditions=label=9: the class is '9': use a number"),
        ("labelled", ("label",), "evaluate.conditions=label is not a name with a value: use NAME="),
        ("plain", ("label=1",), "no condition that the run reads: leave it out$"),
        ("shaded", (), r"the run reads .* \(shade\): give it by evaluate.conditions=shade=FILE$"),
        ("shaded", ("shade=gone.txt",), "gone.txt cannot be read"),
    ],
)
def test_a_mistake_in_the_values_of_a_config_is_said_before_the_run(run, given, words):
    settings = dict(prompts="prompts.txt", extractor="own", conditions=given)
    of = {"joined": "shade"} if run == "shaded" else {}
    config = config_of("labelled" if run == "labelled" else "sd3", settings, **of)
    with pytest.raises(UserError, match=words):
        _check_subjects(config)


def test_values_of_a_config_go_with_its_prompts():
    words = r"evaluate.conditions is \('label=1',\) and prompts is empty, so that held-out records"
    with pytest.raises(UserError, match=words):
        config_of("labelled", dict(conditions=("label=1",)))
    given = dict(prompts="prompts.txt", conditions=("label=1", "label=2"))
    with pytest.raises(UserError, match="2 values of evaluate.conditions for 3 prompts: give one"):
        pair_conditions(config_of("labelled", given), 3)


def test_sd3_writes_no_files_for_what_no_pipeline_is_given(tmp_path):
    export = types.SimpleNamespace(joined="shade", layouts=("diffusers",))
    with pytest.raises(UserError, match="data.joined is 'shade'.: sample or serve it from its run"):
        family("sd3").write_export(tmp_path, export)


def test_values_of_several_names_go_together():
    found = [dict(pairs) for pairs in parse(["a=1", "b=x=y", "a=2"])]
    assert found == [{"a": "1", "b": "x=y"}, {"a": "2", "b": "x=y"}]
    assert parse([]) == [()]
    with pytest.raises(UserError, match="--condition gives 2 values of a and 3 values of b: give"):
        parse(["a=1", "a=2", "b=1", "b=2", "b=3"])


def test_a_text_is_no_default_of_a_file():
    with pytest.raises(UserError, match="the default of the condition 'depth' is the text 'a.png'"):
        Condition("depth", shade, default="a.png", file=True)


def test_an_array_of_another_shape_names_the_condition(labelled, tmp_path, monkeypatch):
    monkeypatch.setitem(CONDITIONS, "label", Condition("class", lambda *_: np.ones(2), "0"))
    with pytest.raises(UserError, match=r"the class became an array of shape \(2,\) .* \(3,\): co"):
        draw(tmp_path / "out", prompt="seven", checkpoint=labelled)


def test_what_is_served_is_what_sample_makes_of_the_same_value(labelled, tmp_path):
    trained, mesh = opened(labelled)
    student = Student(trained, mesh, 1)
    student.warm_up(lambda *counts: None)
    before = [sampler.program_count for sampler in student._samplers.values()]
    expected, _ = draw(
        tmp_path / "out", prompt="two", num=1, condition="label=2", checkpoint=labelled
    )
    bucket = trained.buckets[0]
    made = [
        student(*student.rows_of(Wish("two", bucket, 4, conditions=conditions)))[0]
        for conditions in ((("label", "2"),), ())
    ]
    assert np.max(np.abs(pixels(made[0][..., 0]) - pixels(expected["two", 0]))) <= 1
    assert np.any(made[0] != made[1])
    assert [sampler.program_count for sampler in student._samplers.values()] == before
    with pytest.raises(UserError, match="^the class is 'cat': use a number below 3"):
        student.rows_of(Wish("two", bucket, 4, conditions=(("label", "cat"),)))


def test_a_file_of_the_page_is_read_and_none_is_asked_for(shaded, tmp_path):
    trained, mesh = opened(shaded)
    student, bucket = Student(trained, mesh, 1), trained.buckets[0]
    (tmp_path / "a.txt").write_text("2")
    given = (("shade", str(tmp_path / "a.txt")),)
    _, (row,) = student.rows_of(Wish("two", bucket, 1, conditions=given))
    assert row.own["channels"].shape == (8, 8, 1) and (row.own["channels"] == 2).all()
    with pytest.raises(UserError, match="^there is no shade: give one"):
        student.rows_of(Wish("two", bucket, 1))
    gone = (("shade", str(tmp_path / "gone.txt")),)
    with pytest.raises(UserError, match=r"the shade gone.txt cannot be read \(No such"):
        student.rows_of(Wish("two", bucket, 1, conditions=gone))


@pytest.mark.parametrize("run", ["labelled", "shaded"])
def test_the_page_has_a_field_for_each_condition(run, request):
    gradio = pytest.importorskip("gradio", reason='needs gradio: the extra "serve"')
    from ladd_jax.serving.fields import fields_of, ready_words
    from ladd_jax.serving.page import Page, _Session

    trained, _ = opened(request.getfixturevalue(run))
    with gradio.Blocks():
        fields = fields_of(trained, {"1:1": trained.buckets[0]}, 1)
    name = "label" if run == "labelled" else "shade"
    field = fields.inputs[f"condition {name}"]
    assert isinstance(field, gradio.Textbox if run == "labelled" else gradio.File)
    assert field.label == ("Class" if run == "labelled" else "Shade")
    assert (field.value or None) == ("0" if run == "labelled" else None)
    # A student that is given no picture may start from one.
    assert "strength" in fields.inputs and ready_words(trained) == "Ready: type a prompt."
    student = types.SimpleNamespace(trained=trained, steps=4)
    page = Page(student, types.SimpleNamespace(largest=1), Ready())
    page.blocks()
    given = dict.fromkeys(page._names) | {"prompt": "two", "seed": 0, "aspect": "1:1 (64x64)"}
    for value, conditions in ((None, ()), ("2", ((name, "2"),))):
        given[f"condition {name}"] = value
        assert page._wish(_Session(), given.values()).conditions == conditions
