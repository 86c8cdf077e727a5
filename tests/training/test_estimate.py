"""The formula for memory against what a compiler took."""

import json
from pathlib import Path

import pytest

from configs import sd3_turbo
from ladd_jax.config import architectures, objectives
from ladd_jax.config.fields import typed
from ladd_jax.models.sd3.transformer import parameter_count
from ladd_jax.planning.estimate import temporaries

_PLANS = Path(__file__).parents[2] / "benchmarks/results/plan"


@pytest.mark.parametrize("path", sorted(_PLANS.glob("*_gpu_*.json")), ids=lambda path: path.stem)
def test_the_estimate_is_at_most_a_quarter_above_what_the_compiler_takes(path):
    plan = json.loads(path.read_text())
    (bucket,) = plan["buckets"]
    config = sd3_turbo.get_config("size=large" if "large" in path.stem else "size=medium")
    config.model.remat = plan["model"]["remat"]
    objective = objectives.ladd(typed(config))
    estimate = temporaries(
        architectures.student_architecture(typed(config)),
        architectures.teacher_architecture(typed(config)),
        objective,
        images=plan["batch"] // plan["chips"],
        image_tokens=64 * 64,
        text_tokens=333,
        parameters=parameter_count(objective.student),
        fsdp=plan["mesh"]["fsdp"],
    )
    assert 1 <= estimate / bucket["hbm"]["temporaries"] < 1.25
