"""Settings and terms that other packages add to a config."""

import dataclasses
import math
import pickle
import sys
import types
from typing import Any

import pytest

from configs import digits
from ladd_jax.config import own
from ladd_jax.config.architectures import trained_generator_architecture
from ladd_jax.config.fields import base_config, to_dict, typed
from ladd_jax.config.identity import RESULTS, difference, identity
from ladd_jax.config.objectives import distillation
from ladd_jax.config.own import SECTIONS, Section
from ladd_jax.config.workdir import read, settle
from ladd_jax.errors import UserError
from ladd_jax.models.families import FAMILIES, family
from ladd_jax.objectives.terms.own import OWN_TERMS
from ladd_jax.objectives.terms.reconstruction import Reconstruction
from ladd_jax.ranges import NOT_NEGATIVE, check_numbers
from ladd_jax.stages.made import open_places
from ladd_jax.studies.runs import digest_of


@dataclasses.dataclass(frozen=True)
class Edges:
    """Settings of a term."""

    weight: float = 0.0
    levels: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        check_numbers(self, dict.fromkeys(("weight", "levels"), NOT_NEGATIVE))


@dataclasses.dataclass(frozen=True)
class Blobs:
    """Settings of a source."""

    count: int = 3


@pytest.fixture
def edges(monkeypatch):
    """A section and a term of the name `edges`."""
    monkeypatch.setitem(SECTIONS, "edges", Section(Edges(), beside="distil"))

    def term(config):
        weight = config.own.edges.weight
        return Reconstruction(weight, name="edges") if weight else None

    monkeypatch.setitem(OWN_TERMS, "edges", term)


def changed(**fields):
    config = digits.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def fields(**changes):
    return to_dict(typed(changed(**changes)))


@pytest.mark.usefixtures("edges")
def test_fields_of_a_package_are_typed_and_refused_as_all_others_are():
    assert typed(changed(own__edges__weight=0.5)).own.edges == Edges(0.5)
    whole = typed(changed(own__edges__weight=2)).own.edges.weight
    assert isinstance(whole, float) and whole == 2
    with pytest.raises(AttributeError, match="wieght"):
        base_config().own.edges.wieght = 1.0
    for path, value, words in (
        ("weight", -1.0, "own.edges.weight is -1.0: use 0 or more"),
        ("weight", "much", "own.edges.weight is 'much' of type str: use a float"),
        ("levels", (1, 0.5), r"own.edges.levels is \(1, 0.5\): use a tuple\[int, ...\]"),
    ):
        config = base_config().unlock()
        with config.own.edges.ignore_type():
            config.own.edges[path] = value
        with pytest.raises(UserError, match=words):
            typed(config)


def test_without_packages_results_are_known_by_what_they_were():
    assert all("own" not in identity(fields(), name)["config"] for name in RESULTS)


def test_a_package_that_is_installed_later_changes_no_result(monkeypatch, tmp_path):
    config = digits.get_config()
    before, digest = to_dict(typed(config)), digest_of(typed(config))
    settle(tmp_path, {name: value for name, value in before.items() if name != "own"})
    monkeypatch.setitem(SECTIONS, "edges", Section(Edges(), beside="data"))
    assert digest_of(typed(digits.get_config())) == digest
    for name in RESULTS:
        old, new = (identity(values, name) for values in (before, fields()))
        assert difference(old, new) == ""
        changed = identity(fields(own__edges__weight=0.5), name)
        assert difference(old, changed) == "own.edges.weight was 0.0 and is 0.5"
    assert read(tmp_path).own.edges == Edges()


@pytest.mark.usefixtures("edges")
def test_a_change_counts_where_the_section_counts_that_it_is_beside():
    old, new = fields(), fields(own__edges__weight=0.5)
    found = {name: difference(identity(old, name), identity(new, name)) for name in RESULTS}
    assert found.pop("distil") == "own.edges.weight was 0.0 and is 0.5"
    assert not any(found.values())
    assert digest_of(typed(changed())) != digest_of(typed(changed(own__edges__weight=0.5)))


def test_a_run_of_a_package_that_is_gone_says_so(tmp_path, monkeypatch):
    with monkeypatch.context() as installed:
        installed.setitem(SECTIONS, "blobs", Section(Blobs(), beside="data"))
        settle(tmp_path / "run", fields())
    with pytest.raises(UserError, match=r"own\.blobs, of a package that is not installed here"):
        read(tmp_path / "run")
    # Going on with its own command, which no longer names the settings.
    config, run = typed(changed()), tmp_path / "run"
    words = r"run.config.json has own\.blobs, of a .* here: install it, or use another --workdir$"
    with pytest.raises(UserError, match=words):
        open_places(config, run, "", "")
    redone = dataclasses.replace(config, on_change="redo")
    assert open_places(redone, run, "", "").data == run
    settle(run, to_dict(redone))
    open_places(config, run, "", "")


def test_a_run_with_an_entry_of_a_package_that_is_gone_says_where_it_is_named(tmp_path):
    settle(tmp_path, fields() | {"data": fields()["data"] | {"source": "theirs"}})
    words = r"config.json is of another version of .*, or of a package beside it: data.source 'the"
    with pytest.raises(UserError, match=words):
        read(tmp_path)


@pytest.mark.usefixtures("edges")
def test_a_term_of_a_package_has_a_weight_and_factors_in_a_config():
    assert distillation(typed(changed())).own_terms == ()
    config = changed(
        own__edges__weight=0.5, distil__ramp__steps=(0, 9), distil__ramp__edges=(0.0, 1.0)
    )
    objective = distillation(typed(config))
    assert objective.loss_terms[-1] == Reconstruction(0.5, math.inf, "edges")
    assert objective.ramp.ramped == ("edges",)
    assert float(objective.ramp.weight("edges", 0.5, 3)) == pytest.approx(0.5 / 3)
    config.own.edges.weight = 0.0
    with pytest.raises(UserError, match=r"distil.ramp.edges is \(0.0, 1.0\) and the loss has no"):
        typed(config)


@pytest.mark.usefixtures("edges")
def test_a_term_beside_a_loss_that_is_one_is_refused():
    config = changed(own__edges__weight=0.5, distil__objective="lcm")
    words = "objective is lcm, whose loss has one term, and the term edges"
    with pytest.raises(UserError, match=words):
        typed(config)


@dataclasses.dataclass(frozen=True)
class Grids:
    """Settings of a family."""

    window: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridConfig(Grids):
    """Architecture of a network that is no MMDiT."""

    depth: int
    width: int
    num_heads: int
    in_channels: int
    out_channels: int
    context_width: int
    pooled_width: int
    patch: int
    dtype: Any
    param_dtype: Any


def test_a_family_has_settings_of_its_own_and_none_of_anothers(monkeypatch):
    theirs = dataclasses.replace(family("sd3"), name="grids", architecture=GridConfig)
    monkeypatch.setitem(sys.modules, "grids", types.SimpleNamespace(FAMILY=theirs))
    monkeypatch.setitem(FAMILIES, "grids", "grids")
    monkeypatch.setitem(SECTIONS, "grids", Section(Grids(), beside="model"))
    config = base_config()
    config.model.family, config.own.grids.window = "grids", 8
    assert trained_generator_architecture(typed(config)).window == 8
    config.model.qk_norm = True
    with pytest.raises(UserError, match="model.qk_norm is True and networks of model.family 'grid"):
        typed(config)


@pytest.mark.usefixtures("edges")
def test_a_config_can_be_sent_to_another_process():
    config = changed(
        own__edges__weight=0.5, distil__ramp__edges=(1.0, 0.5), distil__ramp__steps=(0, 9)
    )
    assert pickle.loads(pickle.dumps(typed(config))) == typed(config)


def test_what_cannot_be_a_section_or_a_term_is_refused(monkeypatch):
    with_a_list = dataclasses.make_dataclass("Listed", [("names", list)], frozen=True)([])
    for defaults in (Blobs, with_a_list):
        with pytest.raises(UserError, match="give an instance of a frozen dataclass"):
            Section(defaults, beside="data")
    for table, name, entry, words in (
        (SECTIONS, "my-blobs", Section(Blobs(), "data"), "'my-blobs' is the name of a section"),
        (SECTIONS, "blobs", Section(Blobs(), "date"), "own.blobs 'date' is not one of mesh"),
        (OWN_TERMS, "steps", lambda config: None, "'steps' is the name of a term and of a field"),
        (OWN_TERMS, "edge", lambda config: Reconstruction(1.0), "a term named 'reconstr"),
    ):
        with monkeypatch.context() as installed:
            installed.setitem(table, name, entry)
            with pytest.raises(UserError, match=words):
                typed(digits.get_config())
    assert own.own_sections() == typed(base_config()).own
