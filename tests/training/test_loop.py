"""What the loop does around a step."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counting, go
from runs import FLOPS, SHAPES, SQUARE, WIDE, batches, keeping_programs

from ladd_jax.cli.compilation_cache import keep_programs
from ladd_jax.training.metrics import MetricWriter, read_history
from ladd_jax.training.profile import Profile


class Slow(Counting):
    """Its steps keep the device busy for a while."""

    def more(self, state):
        def turn(_, x):
            return jnp.tanh(x @ x / 256)

        start = jnp.full((256, 256), state.params["w"])
        return {"busy": jnp.mean(jax.lax.fori_loop(0, 500, turn, start))}


class Added(MetricWriter):
    """Keeps the results of the last step that the device was told to do."""

    def add(self, metrics):
        self.last = metrics
        super().add(metrics)


def test_the_host_waits_for_the_device_at_log_steps_and_nowhere_else(tmp_path):
    writer = Added(tmp_path)
    made, ended = list(batches(0, 6)), []

    def data():
        for number, batch in enumerate(made):
            if number:
                ended.append(writer.last["busy"].is_ready())
            yield batch

    go(tmp_path, Slow(), data=data(), writer=writer)
    # When batches 2 to 6 are asked for: of the steps before them only the one of the record.
    assert ended == [False, False, True, False, False]


def test_a_step_that_would_copy_from_the_host_each_time_is_an_error(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        go(tmp_path, frozen={"rate": np.float32(0.1)})


def test_samples_are_made_at_their_steps_and_their_metrics_recorded(tmp_path):
    def sample(state, step):
        return {"seen": float(step + state.step)}

    go(tmp_path, sample=sample, sample_every=2, every=6)
    seen = [(record["step"], record["seen"]) for record in read_history(tmp_path)]
    assert seen == [(2, 4.0), (4, 8.0), (6, 12.0)]


@pytest.mark.parametrize("fields", [dict(sample=None, sample_every=2), dict(sample_every=0)])
def test_no_samples_are_made_without_a_sampler_or_a_number_of_steps(tmp_path, fields):
    def sample(state, step):
        raise AssertionError("samples are made")

    go(tmp_path, **(dict(sample=sample, every=6) | fields))
    assert [record["step"] for record in read_history(tmp_path)] == [6]


def test_a_record_tells_how_fast_the_run_goes(tmp_path):
    go(tmp_path)
    names = {
        "images_per_second", "step_seconds/p50", "step_seconds/p95", "data_wait", "model_tflops",
        "hours_left",
    }  # fmt: skip
    first, last = read_history(tmp_path)
    assert names <= first.keys() and "mfu" not in first
    assert first["hours_left"] > last["hours_left"] == 0
    # Of three batches the second is wide, with twice the model FLOPs.
    flops = first["images_per_second"] * (2 * FLOPS[SQUARE] + FLOPS[WIDE]) / 3
    assert first["model_tflops"] * 1e12 == pytest.approx(flops)


@pytest.fixture
def kept_programs(tmp_path):
    """Events of the compilation cache while programs are kept in a folder."""
    events = Counter()

    def listen(event, **_):
        events.update([event.rpartition("/")[2]])

    with keeping_programs(tmp_path):
        jax.monitoring.register_event_listener(listen)
        yield events
        jax.monitoring.unregister_event_listener(listen)


def test_a_second_start_compiles_nothing_and_trains_the_same_bits(tmp_path, kept_programs):
    jax.clear_caches()
    first = go(tmp_path / "first")
    assert kept_programs["cache_misses"] >= len(SHAPES)
    kept_programs.clear()
    jax.clear_caches()  # As in a new process.
    second = go(tmp_path / "second")
    assert kept_programs["cache_misses"] == 0
    assert kept_programs["cache_hits"] >= len(SHAPES)
    assert float(first.params["w"]) == float(second.params["w"]) != 0


def test_no_place_keeps_no_programs(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    keep_programs("", tmp_path)
    assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())


def test_a_profile_holds_the_steps_that_were_asked_for(tmp_path):
    go(tmp_path, profile=Profile(range(2, 4), tmp_path))
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    events = [
        dict(event.stats)
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "test"
    ]
    assert sorted(event["step_num"] for event in events) == [2, 3]


def test_a_profile_that_goes_beyond_the_run_ends_with_it(tmp_path):
    go(tmp_path, profile=Profile(range(6, 100), tmp_path))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    with jax.profiler.trace(tmp_path / "another"):  # Only one can run at a time.
        pass
