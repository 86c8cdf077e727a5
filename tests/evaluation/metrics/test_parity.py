"""Statistics on fixed features against torch-fidelity's, and against formulas written out."""

import fidelity  # noqa: F401  # Before any part of torch-fidelity.
import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid, metric_kid, metric_prc

from ladd_jax.evaluation.metrics import kernel, precision_recall
from ladd_jax.evaluation.metrics.copies import joint_identity
from ladd_jax.evaluation.metrics.frechet import frechet_distance
from ladd_jax.evaluation.metrics.kernel import (
    clip_mean_discrepancy,
    kernel_inception_distance,
    measure_cmmd,
    measure_kid,
)
from ladd_jax.evaluation.metrics.precision_recall import (
    covered,
    measure_precision,
    measure_recall,
)
from ladd_jax.evaluation.seen import Seen, joint


def features(seed, count, width=12, shift=0.0):
    """Positive, as the features of networks often are, and correlated."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(width, width))
    return np.maximum(rng.normal(size=(count, width)) @ mix + shift, 0)


def seen(values, parts=1, copies=None):
    count = len(values)
    index = np.arange(count) if copies is None else copies
    values = values.reshape(count, parts, -1)
    prompts = np.array(["a prompt"] * count)
    images = np.zeros((count, 2, 2, 1), np.float32)
    return Seen(images, prompts, values, None, np.arange(count)).take(index)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (80, 50)])
def test_the_frechet_distance_is_torch_fidelitys(n, m):
    a, b = features(0, n), features(1, m, shift=0.3)
    statistics = [metric_fid.fid_features_to_statistics(torch.tensor(x)) for x in (a, b)]
    wanted = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(a, b) == pytest.approx(wanted[metric_fid.KEY_METRIC_FID], rel=1e-6)


@pytest.mark.parametrize(("n", "m", "size"), [(60, 60, 60), (80, 50, 40), (80, 50, 50)])
def test_kid_is_torch_fidelitys(n, m, size):
    a, b = features(0, n), features(1, m, shift=0.3)
    wanted = metric_kid.kid_features_to_metric(
        torch.tensor(a), torch.tensor(b), kid_subset_size=size, kid_subsets=10, verbose=False
    )
    ours = kernel_inception_distance(a, b, subsets=10, subset_size=size)
    assert ours == pytest.approx(wanted[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_precision_and_recall_are_torch_fidelitys(shift):
    samples, real = features(0, 200, width=4, shift=shift), features(1, 150, width=4)
    wanted = metric_prc.prc_features_to_metric(
        torch.tensor(samples), torch.tensor(real), verbose=False
    )
    precision, recall = covered(samples, real), covered(real, samples)
    assert precision == pytest.approx(wanted[metric_prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert recall == pytest.approx(wanted[metric_prc.KEY_METRIC_RECALL], abs=1e-6)
    assert shift or 0.2 < recall < 1 and 0.2 < precision < 1


def test_cmmd_is_the_formula_of_its_authors():
    """google-research/cmmd, distance.py: all means are over all pairs, of vectors of length 1."""
    a, b = features(0, 30), features(1, 20, shift=1.0)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))

    def mean(u, v):
        return np.mean([[np.exp(-np.sum((p - q) ** 2) / (2 * 10**2)) for q in v] for p in u])

    wanted = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert clip_mean_discrepancy(a, b) == pytest.approx(wanted, rel=1e-6)
    # Of any lengths.
    assert clip_mean_discrepancy(3 * a, b) == pytest.approx(wanted, rel=1e-6)
    assert clip_mean_discrepancy(a, a) == pytest.approx(0, abs=1e-9)


def test_large_sets_are_measured_in_parts(monkeypatch):
    a, b = features(0, 50, width=4), features(1, 40, width=4, shift=0.5)
    whole = clip_mean_discrepancy(a, b), covered(a, b)
    monkeypatch.setattr(kernel, "_ROWS", 7)
    monkeypatch.setattr(precision_recall, "_ROWS", 7)
    assert (clip_mean_discrepancy(a, b), covered(a, b)) == pytest.approx(whole, rel=1e-12)


def test_a_copy_is_no_neighbour_of_what_it_copies():
    a, b = features(0, 60, width=4), features(1, 60, width=4)
    twice = np.repeat(np.arange(60), 2)
    once = [seen(a)], [seen(b)]
    doubled = [seen(a, copies=twice)], [seen(b, copies=twice)]
    for measure in (measure_kid, measure_cmmd, measure_precision, measure_recall):
        assert measure(*doubled) == pytest.approx(measure(*once), rel=1e-9)


def test_copies_are_told_apart_by_bucket_and_part():
    copies = np.array([0, 0, 2])
    wide = seen(features(0, 6, width=5), copies=copies)
    tall = seen(features(1, 6, width=10), parts=2, copies=copies)
    for parts in ([wide], [wide, wide], [tall, tall], [tall, wide]):
        identity = joint_identity(parts)
        assert identity.shape == joint(parts).shape[:1]
    assert joint_identity([wide, wide]).tolist() == [0, 0, 1, 3, 3, 4]
    assert len(set(joint_identity([tall, wide]))) == 6


@pytest.mark.parametrize("distance", [kernel_inception_distance, clip_mean_discrepancy])
def test_sets_without_a_distance_are_refused(distance):
    with pytest.raises(ValueError, match="2 samples or more"):
        distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="2 samples or more"):
        distance(np.zeros((4, 2)), np.zeros((4, 3)))


def test_too_few_neighbours_are_refused():
    with pytest.raises(ValueError, match="3 different samples has no neighbour number 3"):
        covered(np.zeros((5, 2)), np.zeros((4, 2)), identity=np.array([0, 0, 1, 2]))
    with pytest.raises(ValueError, match="not empty"):
        covered(np.zeros((0, 2)), np.zeros((4, 2)))
