"""What the documentation of extending shows runs."""

import re
from pathlib import Path

import numpy as np

from ladd_jax.config.fields import base_config, typed
from ladd_jax.config.own import SECTIONS
from ladd_jax.objectives.terms.own import OWN_TERMS, own_terms
from ladd_jax.objectives.terms.reconstruction import Reconstruction

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_package_adds_settings_and_a_term_as_it_is_shown(monkeypatch):
    for table in (SECTIONS, OWN_TERMS):
        monkeypatch.setitem(table, "near", None)
    section = PAGE.read_text().split("### Settings of its own\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    exec(shown, {})
    config = base_config()
    assert own_terms(typed(config)) == ()
    config.own.near.weight = 0.1
    assert own_terms(typed(config)) == (Reconstruction(0.1, 5.0, "near"),)


def test_a_step_in_a_program_runs_as_it_is_shown():
    section = PAGE.read_text().split("## In a program\n")[1].split("\n## ")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(shown, names)
    assert int(names["state"].step) == 1
    assert all(np.isfinite(names["metrics"][name]).all() for name in ("loss/generator", "r1"))
