"""Addresses of buckets, by the real client and a server on this machine."""

import contextlib
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from configs import small
from ladd_jax.config.fields import typed
from ladd_jax.config.workdir import Places, data_directory, folder, settle
from ladd_jax.data.array_specs import ArraySpec
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.prompt_sets import read_prompt_set
from ladd_jax.data.shard_sets import Layout
from ladd_jax.data.shard_writing import finalize, write_shard
from ladd_jax.data.shards import Shards
from ladd_jax.errors import ExistsError, NotFoundError, UserError
from ladd_jax.object_store import address_of, fetch, find, place_of, uploading
from ladd_jax.paths import expand, expand_local, matches
from ladd_jax.stages.made import Writes, check_on_disk

SQUARE = Bucket(2, 2)


def put(bucket, **files):
    client, name = bucket
    for key, text in files.items():
        client.pipe_file(f"{name}/{key.replace('__', '/')}", text.encode())


def copies(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_set(directory):
    layout = Layout({SQUARE: 5}, 2, {"latents": ArraySpec(("H", "W", 1)), "x": ArraySpec((2,))})
    for shard in layout.shards():
        places = range(shard.start, shard.stop)
        write_shard(
            directory,
            layout,
            shard,
            [
                {"latents": np.full((2, 2, 1), i), "cond": {"x": np.zeros(2)}, "prompt": str(i)}
                for i in places
            ],
        )
    finalize(directory, layout, {"x": np.zeros(2)})


def test_a_prefix_is_copied_with_all_below_it(bucket):
    put(bucket, run__a="1", run__b__c="22", other="3", runner="4", run__empty="")
    folder = fetch(f"gs://{bucket[1]}/run")
    assert copies(folder) == {"a": "1", "b/c": "22", "empty": ""}
    assert address_of(folder / "b") == f"gs://{bucket[1]}/run/b"


def test_what_has_not_changed_is_not_copied_again_and_what_is_gone_goes(bucket):
    put(bucket, run__a="1", run__b="2", run__c__d="3")
    folder = fetch(f"gs://{bucket[1]}/run")
    kept, changed = (folder / "a").stat().st_ino, folder / "b"
    put(bucket, run__b="5")
    bucket[0].rm(f"{bucket[1]}/run/c/d")
    # Within a process all is as it was first seen.
    assert fetch(f"gs://{bucket[1]}/run") == folder
    assert changed.read_text() == "2"
    fetch.cache_clear()
    fetch(f"gs://{bucket[1]}/run")
    assert copies(folder) == {"a": "1", "b": "5"}
    assert not (folder / "c").exists()
    assert (folder / "a").stat().st_ino == kept


def test_a_copy_that_was_altered_here_is_copied_again(bucket):
    put(bucket, file="right")
    path = fetch(f"gs://{bucket[1]}/file")
    path.write_text("wrong")
    fetch.cache_clear()
    assert fetch(f"gs://{bucket[1]}/file").read_text() == "right"


def test_an_object_may_become_a_prefix(bucket):
    put(bucket, name="1")
    fetch(f"gs://{bucket[1]}/name")
    bucket[0].rm(f"{bucket[1]}/name")
    put(bucket, name__below="2")
    assert fetch(f"gs://{bucket[1]}/name/below").read_text() == "2"


def test_paths_take_addresses_for_their_copies(bucket):
    put(bucket, data__1="a", data__2="b", data__more__3="c")
    at = f"gs://{bucket[1]}/data"
    assert [path.read_text() for path in matches(f"{at}/[12], {at}/more/3")] == ["a", "b", "c"]
    assert find(f"{at}/*/3") == [f"{at}/more/3"]
    with pytest.raises(NotFoundError, match=r"no file matches gs://.*/data/\*\.tar: check"):
        matches(f"{at}/*.tar")
    with pytest.raises(NotFoundError, match="no file gs://.*/none: check the path"):
        matches(f"{at}/none")
    assert not expand("gs://no-such-bucket-here/x").exists()


def test_a_run_reads_shards_of_a_bucket_by_copies_on_each_host(bucket, tmp_path, monkeypatch):
    client, name = bucket
    written, address = tmp_path / "made", f"gs://{name}/runs/first"
    write_set(written / "encoded")
    client.put(f"{written}/", f"{name}/runs/first/", recursive=True)
    workdir = tmp_path / "run"
    workdir.mkdir()
    data = data_directory(place_of(address))
    settle(workdir, {}, Places(data))
    # On another host, and whatever was copied there before.
    monkeypatch.setenv("LADD_JAX_CACHE", str(tmp_path / "other"))
    fetch.cache_clear()
    assert address_of(data_directory(workdir)) == address
    shards = Shards(folder(workdir, "encoded"))
    assert shards.directory.is_relative_to(tmp_path / "other")
    read = shards.read(SQUARE, np.arange(5))
    assert read["prompt"] == list("01234")
    np.testing.assert_array_equal(read["latents"][:, 0, 0, 0], np.arange(5))


@pytest.mark.parametrize("writes", [Writes(makes=True, alters=False), Writes(False, True)])
def test_nothing_is_made_among_data_in_a_bucket(bucket, writes):
    config = typed(small.get_config("data=gs://b/pictures,resolution=8"))
    reads = dataclasses.replace(config, stages=("distil", "evaluate"))
    place = place_of("gs://b/data")
    with pytest.raises(UserError, match="--data=gs://b/data is missing data .* only read"):
        check_on_disk(reads, place, writes)
    check_on_disk(reads, place, Writes(False, False))
    check_on_disk(reads, place.parents[3], writes)
    # It would look for held-out records, which are not there.
    with pytest.raises(UserError, match="--data=gs://b/data is missing data"):
        check_on_disk(config, place, Writes(False, False))


def test_prompts_are_read_from_a_bucket(bucket):
    client, name = bucket
    client.pipe_file(f"{name}/prompts.txt", b"a red cat\na blue dog\n")
    assert list(read_prompt_set(f"gs://{name}/prompts.txt")) == ["a red cat", "a blue dog"]


@pytest.mark.parametrize("address", ["gs://", "gs://b/../../x", "gs://../x"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="is not an address of a bucket: write gs://BUCKET/NAME"):
        place_of(address)


def test_an_object_with_others_below_it_is_refused(bucket):
    put(bucket, a__b="1", a__b__c="2")
    with pytest.raises(UserError, match="is an object and has .*a/b/c below it"):
        fetch(f"gs://{bucket[1]}/a")


def test_what_does_not_fit_on_the_disk_is_not_begun(bucket, monkeypatch):
    put(bucket, big="12345")
    client = bucket[0]
    listed = client.find(f"{bucket[1]}/big", detail=True)
    huge = {name: info | {"size": 1 << 60} for name, info in listed.items()}
    monkeypatch.setattr(client, "find", lambda *_, **__: huge)
    with pytest.raises(UserError, match="has 1.15e.09 GB to be copied .*set LADD_JAX_CACHE"):
        fetch(f"gs://{bucket[1]}/big")


def test_a_folder_is_uploaded_with_its_index_last(bucket):
    address = f"gs://{bucket[1]}/exports/turbo"
    order = []
    put_file = bucket[0].put_file
    bucket[0].put_file = lambda path, name, **options: (
        order.append(name),
        put_file(path, name, **options),
    )
    try:
        with uploading(address, "index.json") as folder:
            assert folder.name == "turbo"
            (folder / "part").mkdir(parents=True)
            (folder / "index.json").write_text("{}")
            (folder / "part" / "z").write_text("weights")
    finally:
        bucket[0].put_file = put_file
    assert order[-1].endswith("/index.json")
    assert copies(fetch(address)) == {"index.json": "{}", "part/z": "weights"}
    with pytest.raises(ExistsError, match="exists: remove it, or choose another --out"):
        uploading(address, "index.json").__enter__()


def test_of_an_export_that_fails_nothing_is_left(bucket, tmp_path):
    address = f"gs://{bucket[1]}/turbo"
    with contextlib.suppress(RuntimeError), uploading(address, "index.json") as folder:
        folder.mkdir()
        (folder / "file").write_text("1")
        raise RuntimeError
    assert not fetch(address).exists()
    assert not list((tmp_path / "cache" / "uploads").iterdir())


def test_what_the_client_raises_is_one_sentence(bucket, monkeypatch):
    def forbidden(*_, **__):
        raise OSError("Forbidden: the account may not list\nmore of it")

    monkeypatch.setattr(bucket[0], "find", forbidden)
    with pytest.raises(UserError) as raised:
        fetch("gs://theirs/x")
    assert str(raised.value).startswith(
        "gs://theirs/x cannot be read (Forbidden: the account may not list): check its name"
    )


def test_what_is_written_to_has_to_be_on_a_disk(tmp_path):
    with pytest.raises(UserError, match="--out=gs://b/x cannot be an address of a bucket: go on"):
        expand_local("gs://b/x", "out", "go on")
    assert expand_local(str(tmp_path), "out", "") == tmp_path


def test_the_client_is_imported_for_addresses_alone():
    code = "import sys, ladd_jax.paths as p; p.matches('.'); assert 'gcsfs' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
