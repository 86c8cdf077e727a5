"""The formula for memory against what a compiler took."""

import json
from pathlib import Path

import pytest

from configs import sd3_turbo
from ladd_jax import networks
from ladd_jax.models.mmdit import parameter_count
from ladd_jax.training.estimate import temporaries

_H200 = Path(__file__).parents[2] / "benchmarks/results/gpu_step.json"


@pytest.mark.parametrize("step", json.loads(_H200.read_text())["steps"], ids=lambda s: s["batch"])
def test_the_estimate_is_at_most_a_tenth_above_a_step_compiled_for_an_h200(step):
    config = sd3_turbo.get_config("size=medium")
    config.model.remat = step["remat"]
    objective = networks.ladd(config)
    estimate = temporaries(
        networks.transformer_config(config),
        networks.discriminator_config(config),
        objective,
        images=step["batch"],
        image_tokens=64 * 64,
        text_tokens=333,
        parameters=parameter_count(objective.student),
        fsdp=1,
    )
    assert 1 <= estimate / 2**30 / step["memory_gib"]["planned_temporaries"] < 1.1
