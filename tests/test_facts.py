"""What an exported student says of itself is read as it was written, or named as damaged."""

import json

import pytest

from ladd_jax.errors import DamagedError
from ladd_jax.stages.trained import FACTS, read_facts

WHOLE = {"times": [1.0, 0.5], "buckets": ["8x8"], "text_length": 85, "step": 3}


def test_they_come_back_and_other_pipelines_have_none(tmp_path):
    assert read_facts(tmp_path) == {}
    (tmp_path / FACTS).write_text(json.dumps(WHOLE))
    assert read_facts(tmp_path) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        {"times": 1.0}, {"times": [0.0]}, {"times": ["1"]}, {"buckets": "8x8"}, {"buckets": [8]},
        {"buckets": ["8"]}, {"sampler": "heun"}, {"sampler": []}, {"text_length": -1},
        {"text_length": 85.5}, {"step": None},
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path, change):
    (tmp_path / FACTS).write_text(json.dumps(WHOLE | change))
    (name,) = change
    with pytest.raises(DamagedError, match=f"{FACTS} is damaged .its {name} is .*: export again"):
        read_facts(tmp_path)
