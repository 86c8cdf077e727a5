"""Intervals cover what they should."""

import numpy as np
import pytest

from ladd_jax.evaluation.intervals import measure_with_interval
from ladd_jax.evaluation.metrics import METRICS, alignment, contrast, diversity, frechet
from ladd_jax.evaluation.seen import Seen, joint


def seen(rng: np.random.Generator, count: int, parts: int = 1, right: float = 0.5) -> Seen:
    return Seen(
        images=rng.normal(size=(count, 2, 2 * parts, 1)).astype(np.float32),
        prompts=np.repeat(["a", "b"], count // 2),
        features=rng.normal(size=(count, parts, 3)),
        alignment=(rng.random(count) < right).astype(float),
        identity=np.arange(count),
    )


def test_an_interval_of_a_share_is_the_binomial_one():
    rng = np.random.default_rng(0)
    part = seen(rng, 400)
    value, (low, high) = measure_with_interval(alignment.measure, [part], [part], 400, 0)
    assert value == np.mean(part.alignment)
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(value * (1 - value) / 400), rel=0.15)


def test_most_intervals_hold_the_truth():
    hits = 0
    for trial in range(40):
        part = seen(np.random.default_rng(trial), 200)
        _, (low, high) = measure_with_interval(contrast.deviation, [part], [part], 40, trial)
        hits += low <= 1 <= high
    assert hits >= 34


def test_how_many_pictures_a_prompt_has_is_not_left_to_chance():
    # Prompts that differ in everything, and whose pictures are alike: nothing is unsure.
    part = seen(np.random.default_rng(0), 40)
    sure = Seen(
        part.images, part.prompts, part.features, (part.prompts == "a").astype(float), part.identity
    )
    value, (low, high) = measure_with_interval(alignment.measure, [sure], [sure], 50, 0)
    assert low == value == high == 0.5


def test_pictures_of_prompts_with_one_each_are_all_drawn_from():
    part = seen(np.random.default_rng(0), 40)
    real = Seen(
        part.images, np.arange(40).astype(str), part.features, part.alignment, part.identity
    )
    value, (low, high) = measure_with_interval(alignment.measure, [real], [real], 50, 0)
    assert low < value < high


def test_copies_that_a_resample_makes_do_not_lower_the_diversity():
    part = seen(np.random.default_rng(0), 12)
    value, (low, high) = measure_with_interval(diversity.measure, [part], [part], 200, 0)
    resampled = [
        diversity.measure([part.take(np.random.default_rng(i).integers(0, 12, 12))], [])
        for i in range(200)
    ]
    assert np.mean(resampled) == pytest.approx(value, rel=0.05)
    assert low < value < high


def test_buckets_of_as_many_parts_are_compared_picture_by_picture_and_others_part_by_part():
    rng = np.random.default_rng(0)
    one, two = seen(rng, 4), seen(rng, 4, parts=2)
    assert joint([two, two]).shape == (8, 6)
    assert joint([one, two]).shape == (12, 3)


def test_pictures_of_an_extractor_without_text_have_no_alignment():
    part = seen(np.random.default_rng(0), 4)
    blind = Seen(part.images, part.prompts, part.features, None, part.identity)
    assert measure_with_interval(alignment.measure, [blind], [blind], 10, 0) is None
    assert blind.take(np.array([1, 1])).alignment is None


def test_exaggerated_contrast_is_seen_in_deviation_and_range():
    rng = np.random.default_rng(0)
    reference, samples = seen(rng, 2000), seen(rng, 2000)
    assert contrast.outside([samples], [reference]) == pytest.approx(contrast.LEFT_OUT, abs=0.01)
    more = Seen(1.5 * samples.images, *(getattr(samples, n) for n in (
        "prompts", "features", "alignment", "identity")))  # fmt: skip
    assert contrast.outside([more], [reference]) > 3 * contrast.LEFT_OUT
    assert contrast.deviation([more], []) == pytest.approx(1.5, rel=0.05)


def test_every_metric_of_the_table_says_what_it_is():
    assert METRICS["fd"].measure is frechet.measure
    for metric in METRICS.values():
        assert metric.heading and metric.meaning and metric.reference in ("generator", "real")


def test_a_picture_without_prompt_is_refused():
    with pytest.raises(ValueError, match="one prompt for each"):
        Seen(np.zeros((2, 1, 1, 1)), np.array(["a"]), np.zeros((2, 1, 1)), None, np.arange(2))
