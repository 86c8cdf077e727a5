"""Parts of a checkpoint, and what is done about damaged ones."""

import dataclasses
import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ladd_jax.errors import DamagedError, UserError
from ladd_jax.objectives.base import TrainState
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.training.checkpoint import Checkpoints


def state(value):
    params = {"a": {"w": jnp.arange(8.0).reshape(4, 2) + value}}
    empty = {"heads": {}, "optimizer": (params, ()), "heads_optimizer": ()}
    key = jnp.zeros(2, jnp.uint32)
    return TrainState(step=jnp.int32(3), key=key, params=params, ema=params, **empty)


def abstract(shape):
    mesh = make_mesh({"fsdp": -1}, jax.devices()[:2])
    sharding = NamedSharding(mesh, PartitionSpec("fsdp"))
    return {"a": {"w": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)}}


def test_one_tree_of_a_state_is_read_alone_onto_a_mesh_or_not_at_all(tmp_path):
    saved = Checkpoints(tmp_path)
    for step in (1, 3):
        saved.save(step, state(step), {})
    saved.wait()
    assert saved.find() == 3
    for step, found in ((1, 1), (None, 3)):
        leaf = saved.restore_tree("ema", abstract((4, 2)), step)["a"]["w"]
        np.testing.assert_array_equal(leaf, state(found).ema["a"]["w"])
        assert len(leaf.sharding.device_set) == 2
    with pytest.raises(ValueError, match=r"a/w is \(4, 2\) float32, not \(2, 2\) float32"):
        saved.restore_tree("ema", abstract((2, 2)))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 2 .* steps \[1, 3\]"):
        saved.restore_tree("ema", abstract((4, 2)), 2)
    saved.close()


def random_state(step):
    # Too large to be kept beside the metadata, and random, so that no byte is without a meaning.
    values = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    return dataclasses.replace(state(step), params={"a": {"w": jnp.asarray(values)}})


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    saved = Checkpoints(directory, keep=5)
    for step in (1, 3):
        saved.save(step, random_state(step), {"a": 1})
    saved.wait()
    saved.close()
    return directory


leaves = st.tuples(
    st.lists(st.integers(1, 5), max_size=3), st.sampled_from(["float32", "bfloat16", "int32"])
)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tree=st.dictionaries(st.sampled_from("abc"), leaves, min_size=1), seed=st.integers(0, 99),
    config=st.dictionaries(st.text("xyz", min_size=1), st.integers() | st.text() | st.booleans()),
)  # fmt: skip
def test_a_state_and_its_config_come_back_as_they_were(tmp_path_factory, tree, seed, config):
    rng = np.random.default_rng(seed)
    params = {
        name: jnp.asarray(100 * rng.standard_normal(shape), dtype)
        for name, (shape, dtype) in tree.items()
    }
    whole = dataclasses.replace(state(2), params=params)
    saved = Checkpoints(tmp_path_factory.mktemp("saved"))
    saved.save(2, whole, config)
    saved.wait()
    jax.tree.map(np.testing.assert_array_equal, saved.restore(like(whole)), whole)
    assert saved.config() == config
    saved.close()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 4] ^= 0x11
    file.write_bytes(bytes(data))


def arrays_of(step):
    """The file of its arrays."""
    return max((step / "state").rglob("*"), key=lambda file: file.stat().st_size * file.is_file())


DAMAGES = {
    "flipped bytes": lambda step: flip(arrays_of(step)),
    "cut arrays": lambda step: cut(arrays_of(step)),
    "no arrays": lambda step: shutil.rmtree(step / "state" / "d"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no metadata": lambda step: (step / "state" / "_METADATA").unlink(),
    "no manifest": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "no config": lambda step: shutil.rmtree(step / "config"),
    "empty config": lambda step: (step / "config" / "metadata").write_text(""),
    "another config": lambda step: (step / "config" / "metadata").write_text('{"a": 2}'),
    "no digests": lambda step: shutil.rmtree(step / "digests"),
    "cut digests": lambda step: cut(step / "digests" / "metadata"),
}


def warnings_of(caplog):
    """Ours alone: a command shows none of Orbax's."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("ladd_jax")]


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_newest_checkpoint_the_one_before_is_used(
    two_steps, tmp_path, caplog, capfd, damage
):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    DAMAGES[damage](directory / "3")
    saved = Checkpoints(directory, keep=5)
    restored = saved.restore_newest(like(random_state(3)))
    np.testing.assert_array_equal(restored.params["a"]["w"], random_state(1).params["a"]["w"])
    warned = warnings_of(caplog)
    assert f"{directory / '3'} is damaged (" in warned[0]
    assert warned[0].endswith("the one of step 1 is used")
    assert "Exception ignored" not in capfd.readouterr().err
    # Nothing is lost, and training writes the step again.
    (aside,) = (tmp_path / "damaged_checkpoints").iterdir()
    assert aside.name.startswith("3-")
    saved.save(3, random_state(4), {"a": 1})
    saved.wait()
    assert saved.latest() == 3
    saved.close()
    saved = Checkpoints(directory)
    restored = saved.restore(like(random_state(3)))
    np.testing.assert_array_equal(restored.params["a"]["w"], random_state(4).params["a"]["w"])
    saved.close()


def test_a_damaged_checkpoint_that_is_asked_for_is_named_and_stays(two_steps, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    flip(arrays_of(directory / "3"))
    saved = Checkpoints(directory)
    words = (
        r"checkpoints/3 is damaged \(params/a/w is not as it was saved\); step 1 is whole: .*away"
    )
    with pytest.raises(DamagedError, match=words):
        saved.restore(like(random_state(3)), 3)
    with pytest.raises(DamagedError, match=words):
        Checkpoints(directory).restore_tree("params", like(random_state(3)).params, 3)
    assert (directory / "3").is_dir()
    saved.close()


def test_where_all_checkpoints_are_damaged_training_does_not_start_anew(two_steps, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    for step in ("1", "3"):
        shutil.rmtree(directory / step / "state")
    saved = Checkpoints(directory)
    with pytest.raises(DamagedError, match=r"no checkpoint .* can be read \(step 3: .*remove"):
        saved.latest()
    saved.close()


def test_folders_that_are_no_checkpoints_are_ignored(two_steps, tmp_path, caplog):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    for name in ("lost+found", ".ipynb_checkpoints", "4.orbax-checkpoint-tmp-1/state"):
        (directory / name).mkdir(parents=True)
    saved = Checkpoints(directory)
    assert saved.latest() == 3 and not warnings_of(caplog)
    saved.close()


def test_a_checkpoint_without_digests_of_an_older_version_is_read_with_a_warning(
    two_steps, tmp_path, caplog
):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    shutil.rmtree(directory / "3" / "digests")
    listed = directory / "3" / "_CHECKPOINT_METADATA"
    handlers = json.loads(listed.read_text())
    del handlers["item_handlers"]["digests"]
    listed.write_text(json.dumps(handlers))
    saved = Checkpoints(directory)
    restored = saved.restore(like(random_state(3)))
    np.testing.assert_array_equal(restored.params["a"]["w"], random_state(3).params["a"]["w"])
    assert "has no digests" in caplog.text
    saved.close()


def test_a_disk_that_takes_no_checkpoint_is_a_sentence(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoints")
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        with pytest.raises(
            UserError, match=r"cannot be written to .*checkpoints \(File too large\)"
        ):
            saved.save(1, random_state(1), {})
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert saved.latest() is None
