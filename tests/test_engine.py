"""Requests of many sessions in batches: `ladd_jax.serving.engine`."""

import threading
from concurrent.futures import wait

import pytest

from ladd_jax.errors import UserError
from ladd_jax.serving.engine import Engine, SupersededError

PATIENCE = 30


class Maker:
    """Makes text of rows, one batch at a time, once it is let."""

    def __init__(self):
        self.batches, self.begun, self.let = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, kind, rows):
        self.begun.release()
        assert self.let.acquire(timeout=PATIENCE)
        self.batches.append((kind, list(rows)))
        if kind == "broken":
            raise OSError("no memory")
        return [UserError("too long") if row == "long" else f"{kind}:{row}" for row in rows]

    def free(self, count=100):
        for _ in range(count):
            self.let.release()


@pytest.fixture
def maker():
    return Maker()


@pytest.fixture
def engine(maker):
    engine = Engine(maker, (4, 1), bound=3)
    yield engine
    maker.free()
    engine.close()


def busy(engine, maker):
    """The engine with a batch in work, so that what follows waits."""
    future = engine.submit("first", "a", ["0"])
    assert maker.begun.acquire(timeout=PATIENCE)
    return future


def test_those_of_one_kind_that_wait_go_as_one_batch_padded_to_a_fixed_size(engine, maker):
    first = busy(engine, maker)
    one = engine.submit("one", "a", ["1", "2"])
    other = engine.submit("other", "b", ["3"])
    two = engine.submit("two", "a", ["4"])
    maker.free()
    assert first.result(PATIENCE) == ["a:0"]
    assert one.result(PATIENCE) == ["a:1", "a:2"] and two.result(PATIENCE) == ["a:4"]
    assert other.result(PATIENCE) == ["b:3"]
    # One row is a batch of one, three are filled up to four.
    assert maker.batches == [("a", ["0"]), ("a", ["1", "2", "4", "1"]), ("b", ["3"])]


def test_a_request_that_does_not_fit_beside_the_oldest_waits_and_smaller_ones_do_not(engine, maker):
    busy(engine, maker)
    engine.submit("one", "a", ["1", "2"])
    large = engine.submit("two", "a", ["3", "4", "5"])
    engine.submit("three", "a", ["6"])
    maker.free()
    assert large.result(PATIENCE) == ["a:3", "a:4", "a:5"]
    assert [rows for _, rows in maker.batches[1:]] == [["1", "2", "6", "1"], ["3", "4", "5", "3"]]


def test_the_queue_is_bounded_and_says_so(engine, maker):
    busy(engine, maker)
    waiting = [engine.submit(str(i), "a", ["x"]) for i in range(3)]
    with pytest.raises(UserError, match="3 requests are waiting, which is the limit: try again"):
        engine.submit("one more", "a", ["x"])
    # Who waits already may ask for something else.
    again = engine.submit("2", "b", ["y"])
    maker.free()
    assert again.result(PATIENCE) == ["b:y"]
    assert [future.result(PATIENCE) for future in waiting[:2]] == [["a:x"]] * 2


def test_what_a_session_has_waiting_is_dropped_for_what_it_asks_next(engine, maker):
    in_work = busy(engine, maker)
    old = engine.submit("typing", "a", ["s"])
    of_another = engine.submit("another", "a", ["t"])
    new = engine.submit("typing", "a", ["se"])
    with pytest.raises(SupersededError):
        old.result(PATIENCE)
    left = engine.submit("left", "a", ["u"])
    engine.drop("left")
    with pytest.raises(SupersededError):
        left.result(PATIENCE)
    # What is in work is finished.
    newest = engine.submit("first", "b", ["1"])
    maker.free()
    wait([in_work, of_another, new, newest], PATIENCE)
    made = [row for _, rows in maker.batches for row in rows]
    assert "s" not in made and "u" not in made and in_work.result() == ["a:0"]
    assert new.result() == ["a:se"] and newest.result() == ["b:1"]


def test_a_bad_row_is_told_to_its_own_request_alone_and_a_failure_to_all_of_the_batch(
    engine, maker
):
    busy(engine, maker)
    bad, good = engine.submit("bad", "a", ["1", "long"]), engine.submit("good", "a", ["2"])
    broken = engine.submit("unlucky", "broken", ["3"])
    maker.free()
    with pytest.raises(UserError, match="too long"):
        bad.result(PATIENCE)
    assert good.result(PATIENCE) == ["a:2"]
    with pytest.raises(OSError, match="no memory"):
        broken.result(PATIENCE)
    # The thread goes on.
    assert engine.submit("bad", "a", ["4"]).result(PATIENCE) == ["a:4"]


@pytest.mark.parametrize("count", [0, 5])
def test_more_than_a_batch_is_refused(engine, count):
    with pytest.raises(UserError, match=f"{count} pictures at once and the limit is 4"):
        engine.submit("one", "a", ["x"] * count)


def test_who_waits_when_it_closes_is_told_and_nobody_comes_after(maker):
    engine = Engine(maker, (1,), bound=3)
    in_work = busy(engine, maker)
    waiting = engine.submit("one", "a", ["1"])
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(SupersededError):
        waiting.result(PATIENCE)
    maker.free()
    closing.join(PATIENCE)
    assert in_work.result(PATIENCE) == ["a:0"]
    with pytest.raises(UserError, match="the server is stopping"):
        engine.submit("one", "a", ["1"])
