"""Eight simulated devices and little compilation for every test, set before JAX starts."""

import gc
import os
import platform
import shutil
import uuid
from pathlib import Path

import pytest
from hypothesis import settings
from quick_compilation import quick_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_flags(devices=8)}"

# A program is compiled once for all tests, their processes and the next run of them. Those of
# another machine may have instructions that this one has not.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS / platform.node())
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
_MOST_BYTES = 10**9

# Tracing makes many objects, and libraries hold a million that never go: looking through them took
# a tenth of the suite's time.
gc.set_threshold(100_000, 50, 100)

# The first example of a property compiles, and a loaded machine is slow: no example has a deadline.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_configure(config):
    """Forgets all programs when they are many: most are of code that is gone."""
    is_worker = hasattr(config, "workerinput")
    if not is_worker and sum(file.stat().st_size for file in PROGRAMS.rglob("*")) > _MOST_BYTES:
        shutil.rmtree(PROGRAMS)


def pytest_collection_modifyitems(items):
    """The file with the longest test first: no process is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name != "test_commands.py")


@pytest.fixture(scope="session")
def gcs_server():
    """Variables of a server of Google Cloud Storage on this machine; this process has them too."""
    # The server's package is there for some systems alone.
    from buckets import environment, serving

    from ladd_jax import object_store

    with serving() as variables, environment(variables):
        yield variables
        object_store._client.cache_clear()


@pytest.fixture
def bucket(gcs_server, tmp_path, monkeypatch):
    """(client, name) of a new bucket, of which nothing is copied yet."""
    from ladd_jax import object_store

    monkeypatch.setenv("LADD_JAX_CACHE", str(tmp_path / "cache"))
    client, name = object_store._client(), f"bucket-{uuid.uuid4().hex}"
    client.mkdir(name)
    object_store.fetch.cache_clear()
    yield client, name
    object_store.fetch.cache_clear()
