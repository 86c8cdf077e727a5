"""Prompts take little memory, and none is lost."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import sd3_turbo
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.packed_texts import PackedTexts
from ladd_jax.data.prompts import stream_prompts
from ladd_jax.data.sources import open_source

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


@settings(max_examples=50, deadline=None)
@given(texts=TEXTS, start=st.integers(-3, 9), stop=st.integers(-3, 9), seed=st.integers(0, 99))
def test_it_reads_like_a_list(texts, start, stop, seed):
    packed = PackedTexts(iter(texts))
    assert list(packed) == texts and len(packed) == len(texts)
    assert packed[start:stop] == texts[start:stop]
    places = np.random.default_rng(seed).permutation(len(texts))[: len(texts) // 2]
    taken = packed.take(places)
    assert list(taken) == [texts[place] for place in places]
    assert list(taken.take(np.arange(len(places))[::-1])) == list(taken)[::-1]


def test_ten_million_prompts_would_fit_in_two_gigabytes(tmp_path):
    file, count = tmp_path / "prompts.txt", 20_000
    file.write_text(
        "".join(f"a photograph of the number {i:032d} on a wall\n" for i in range(count))
    )
    tracemalloc.start()
    packed = PackedTexts(stream_prompts(file))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == count
    assert peak / count * 10_000_000 < 2e9


def test_prompts_keep_their_order_in_each_bucket(tmp_path):
    file = tmp_path / "prompts.txt"
    prompts = [f"prompt {i}" for i in range(600)]
    file.write_text("\n".join(prompts))
    config = sd3_turbo.get_config(f"size=medium,data={file}")
    config.pretrain.batch_size = config.distil.batch_size = 4
    names = ("32x32", "16x64", "64x16")
    config.data.update(dict(buckets=names, bucket_weights=(5.0, 1.0, 0.0)))
    source = open_source(typed(config), [Bucket.parse(name) for name in names], tmp_path)
    found = {bucket.name: list(texts) for bucket, texts in source.prompts.items()}
    assert set(found) == {"32x32", "16x64"}
    assert sorted(found["32x32"] + found["16x64"], key=prompts.index) == prompts
    for texts in found.values():
        assert texts == sorted(texts, key=prompts.index)
    assert 4 < len(found["32x32"]) / len(found["16x64"]) < 6.5
