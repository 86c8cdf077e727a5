"""What is told of a step that was skipped."""

import jax
import numpy as np
import tiny

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.diagnosis import diagnosis, in_words


def test_a_bad_record_is_found_in_a_step():
    objective = tiny.ladd(tiny.mmdit_config(depth=1))
    state, frozen = tiny.ladd_state(objective)
    batch = tiny.batch()
    bad = batch | {"latents": batch["latents"].at[3, 0, 0, 0].set(np.nan)}
    state, metrics = tiny.step(objective)(state, frozen, bad)
    assert float(metrics["skipped"]) == 1
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    told, samples = diagnosis(objective, state, frozen, bad, mesh)
    assert "the data of 1 of 8 samples" in told and samples == [3]


def test_heads_and_the_band_of_t_hat_are_named():
    fine, heads = np.zeros(4), np.zeros((3, 4))
    heads[2, 1] = heads[0, 3] = 1
    told, samples = in_words(fine, fine, heads, np.array([0.1, 0.3, 0.6, 0.9]))
    assert (
        told == "not finite are the logits of heads 00, 02, at t_hat of 0.25 to 0.50, 0.75 to 1.00"
    )
    assert samples == [1, 3]
    told, samples = in_words(fine, fine, 0 * heads, fine)
    assert told == "the forward passes are finite, and the gradient is not" and samples == []
