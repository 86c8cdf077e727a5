"""Items are worked on by threads, in order, and few are in hand."""

import threading

import pytest

from ladd_jax.data.map_ahead import map_ahead


def test_results_come_in_the_order_of_the_items():
    first = threading.Event()

    def work(item):
        # The first waits for the second, which another thread has begun.
        if item == 1:
            first.set()
        elif item == 0:
            assert first.wait(10)
        return 10 * item

    assert list(map_ahead(work, range(20), threads=3)) == [10 * item for item in range(20)]
    assert list(map_ahead(work, [])) == []


def test_few_items_are_taken_before_their_turn():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item, items(), threads=2)
    for turn in range(50):
        assert next(results) == turn
        assert len(taken) <= turn + 4
    results.close()


def test_an_error_comes_where_its_result_would():
    def work(item):
        if item == 3:
            raise ValueError("the fourth")
        return item

    results = map_ahead(work, range(9), threads=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
