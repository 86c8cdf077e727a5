"""One process of each host goes first, so that a host fetches what it needs once."""

import jax
import numpy as np
import pytest

from ladd_jax.parallel import processes

HOSTS = ["a", "a", "b", "a", "b"]


@pytest.fixture
def order(monkeypatch):
    """What a process does, in its order; call it with the process's index."""
    done = []
    places = np.asarray([[ord(host)] for host in HOSTS], np.uint8)
    monkeypatch.setattr(jax, "process_count", lambda: len(HOSTS))
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda _: places)
    monkeypatch.setattr(processes, "barrier", lambda name: done.append(f"barrier {name}"))

    def of(index):
        done.clear()
        monkeypatch.setattr(jax, "process_index", lambda: index)
        with processes.one_of_each_host_first("weights"):
            done.append("fetch")
        return list(done)

    return of


def test_the_first_process_of_each_host_fetches_before_the_others(order):
    first = {index for index in range(len(HOSTS)) if order(index) == ["fetch", "barrier weights"]}
    later = {index for index in range(len(HOSTS)) if order(index) == ["barrier weights", "fetch"]}
    assert (first, later) == ({0, 2}, {1, 3, 4})


def test_the_others_follow_where_the_first_fails(order, monkeypatch):
    order(0)
    passed = []
    monkeypatch.setattr(processes, "barrier", passed.append)
    with pytest.raises(OSError), processes.one_of_each_host_first("weights"):
        raise OSError
    assert passed == ["weights"]
