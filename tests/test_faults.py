"""How the trials of faults tell what became of a run."""

from benchmarks.faults import bits, job


def test_runs_are_compared_by_name_and_what_only_one_has_differs():
    wanted = {"a": "1", "b": "2"}
    assert bits.compared(dict(wanted), wanted) == "same bits"
    assert bits.compared({"a": "1", "b": "3"}, wanted) == "1 of 2 differ, such as b"
    assert bits.compared({"a": "1"}, wanted) == "1 of 2 differ, such as b"
    assert bits.compared(wanted | {"c": "1"}, wanted) == "1 of 2 differ, such as c"


def test_a_job_was_in_the_stage_that_it_named_last():
    assert job.place("") == "start"
    assert job.place("stage encode\nstage pretrain\nerror: it ends") == "pretrain"


def test_an_error_is_told_by_its_line_and_a_traceback_is_seen():
    ended = job.Ended((2,), "stage encode\nerror: the disk is full\n", 1.0)
    assert ended.sentence == "error: the disk is full" and not ended.traceback
    assert job.Ended((1,), "Traceback (most recent call last):\n", 1.0).traceback
