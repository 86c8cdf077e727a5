"""The plan of batches is a function of seed and step."""

import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shards import layout, write_all

from ladd_jax.data.buckets import Bucket
from ladd_jax.data.pipeline import BatchPlan, loader, put
from ladd_jax.data.shards import Shards
from ladd_jax.errors import DamagedError
from ladd_jax.parallel.mesh import make_mesh

SMALL, WIDE = Bucket(2, 2), Bucket(2, 4)

plans = st.builds(
    lambda batch, extra, seed: (
        {SMALL: batch + extra[0], WIDE: batch + extra[1]}, batch, seed
    ),
    st.integers(1, 8), st.tuples(st.integers(0, 30), st.integers(0, 30)), st.integers(0, 99),
)  # fmt: skip


@settings(deadline=None)
@given(plans)
def test_an_epoch_holds_each_record_at_most_once_and_drops_less_than_a_batch(plan):
    sizes, batch, _ = plan
    batches = BatchPlan(*plan)
    seen = {bucket: [] for bucket in sizes}
    for step in range(batches.steps_per_epoch):
        bucket, indices = batches[step]
        assert len(indices) == batch
        seen[bucket] += indices.tolist()
    for bucket, size in sizes.items():
        assert len(set(seen[bucket])) == len(seen[bucket]) > size - batch
        assert all(0 <= i < size for i in seen[bucket])


@settings(deadline=None)
@given(plans, st.lists(st.integers(0, 200), min_size=1, max_size=10))
def test_every_host_computes_the_same_plan_in_any_order(plan, steps):
    one, other = BatchPlan(*plan), BatchPlan(*plan)
    forwards = [one[step] for step in steps]
    backwards = [other[step] for step in reversed(steps)][::-1]
    for (bucket, indices), (bucket2, indices2) in zip(forwards, backwards, strict=True):
        assert bucket == bucket2
        np.testing.assert_array_equal(indices, indices2)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 30), st.integers(0, 99))
def test_any_number_of_hosts_reads_each_record_of_an_epoch_once(hosts, each, extra, seed):
    batch = hosts * each
    plans = [BatchPlan({SMALL: batch + extra, WIDE: batch}, batch, seed) for _ in range(hosts)]
    read = [
        (bucket, int(index))
        for host, plan in enumerate(plans)
        for bucket, indices in (plan[step] for step in range(plan.steps_per_epoch))
        for index in indices[host * each : (host + 1) * each]
    ]
    assert len(set(read)) == len(read) == batch * plans[0].steps_per_epoch


def test_epochs_and_seeds_differ():
    plan = BatchPlan({SMALL: 64}, 64, 0)
    other = BatchPlan({SMALL: 64}, 64, 1)
    assert not np.array_equal(plan[0][1], plan[1][1])
    assert not np.array_equal(plan[0][1], other[0][1])


def test_a_bucket_smaller_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="bucket 2x2 holds 3 records, fewer than one batch of 4"):
        BatchPlan({SMALL: 3}, 4, 0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_all(directory, layout({SMALL: 9, WIDE: 8}))
    return Shards(directory)


def test_the_loader_resumes_at_any_step_on_any_number_of_hosts(shards):
    plan = BatchPlan(shards.sizes, 4, 0)
    whole = list(loader(shards, plan, 0, 7))
    resumed = list(loader(shards, plan, 3, 7))
    hosts = [
        list(loader(shards, plan, 3, 7, rows=rows)) for rows in (np.arange(2), np.arange(2, 4))
    ]
    for step, (bucket, batch) in enumerate(resumed):
        assert bucket == whole[3 + step][0]
        assert batch.keys() == {"latents", "cond"}
        parts = (host[step][1] for host in hosts)
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
        for other in (whole[3 + step][1], joined):
            jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_the_loader_gives_the_keys_of_the_noise_of_its_records_where_they_are_wanted(shards):
    def keys(bucket, places):
        return np.stack([np.full(len(places), bucket.width), places], axis=1).astype(np.uint32)

    plan, rows = BatchPlan(shards.sizes, 4, 0), np.array([1, 3])
    for step, (bucket, batch) in enumerate(loader(shards, plan, 0, 4, rows=rows, noise_keys=keys)):
        np.testing.assert_array_equal(batch["noise_keys"], keys(bucket, plan[step][1][rows]))


def test_a_batch_lies_over_data_and_fsdp(shards):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    _, batch = next(loader(shards, BatchPlan(shards.sizes, 4, 0), 0, 1))
    placed = put(batch, mesh)
    assert len(jax.devices()) == 8
    assert placed["latents"].addressable_shards[0].data.shape[0] == 1
    np.testing.assert_array_equal(placed["latents"], batch["latents"])


def test_a_damaged_record_stops_the_loader_with_its_name(tmp_path):
    sizes = {SMALL: 6}
    plan = layout(sizes)
    write_all(tmp_path, plan)
    first, second = (shard.path(tmp_path) for shard in plan.shards())
    shutil.copy(first, second)
    with pytest.raises(DamagedError, match=rf"record 2x2/\d of .*{second.name} cannot be read"):
        list(loader(Shards(tmp_path), BatchPlan(sizes, 6, 0), 0, 1))
    assert len(list(loader(Shards(tmp_path, (0.5, 0)), BatchPlan(sizes, 6, 0), 0, 1))) == 1
