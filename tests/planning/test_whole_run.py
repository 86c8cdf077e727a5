"""`plan` says what all stages of a run cost together."""

import dataclasses

import jax
import pytest

from configs import digits, sd3_inpaint, sd3_turbo, small_inpaint
from ladd_jax.config import objectives
from ladd_jax.config.fields import typed
from ladd_jax.data.buckets import Bucket
from ladd_jax.data.shards import Shards
from ladd_jax.errors import NotFoundError
from ladd_jax.models.families import family
from ladd_jax.parallel.chips import chip_named
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning import whole_run as whole_run_module
from ladd_jax.planning.job import Job
from ladd_jax.planning.plan import whole_run
from ladd_jax.planning.stored_bytes import pictures_of_record, record_bytes
from ladd_jax.planning.whole_run import known_records, run_costs
from ladd_jax.stages.encode import encode
from ladd_jax.stages.sets import encoded

BUCKET = Bucket(32, 32)


@pytest.fixture(scope="module")
def job():
    config = sd3_turbo.get_config("size=medium,resolution=256")
    config.model.update(dict(depth=2, width=128, num_heads=2))
    config.heads.channels = 16
    config.synthesize.update(dict(steps=10, guidance_interval=(0.4, 1.0), shift=1.0))
    config = typed(config)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    return Job(config, objectives.ladd(config), chip_named("v5e"), mesh, 0.5)


def changed(job, **sections):
    config = job.config
    for name, fields in sections.items():
        section = dataclasses.replace(getattr(config, name), **fields)
        config = dataclasses.replace(config, **{name: section})
    return dataclasses.replace(job, config=config)


def test_stages_cost_their_passes_at_the_assumed_share_of_the_peak(job):
    encode, synthesize, distil = run_costs(job, [BUCKET], 64, 500, {})
    assert [cost.stage for cost in (encode, synthesize, distil)] == [
        "encode",
        "synthesize",
        "distil",
    ]
    assert (encode.amount, synthesize.amount, distil.amount) == (500, 500, 10_000)
    sd3 = family("sd3")
    text, _ = sd3.encoder_flops(32, 32, 333)
    assert encode.model_flops == 500 * text
    cond = job.batch_shapes(BUCKET, 1)["cond"]
    forward = sd3.forward_flops(objectives.student_architecture(job.config), 32, 32, cond)
    # Of ten levels 1.0 to 0.1 the seven from 0.4 on are guided.
    assert synthesize.model_flops == 500 * 17 * forward
    assert distil.model_flops == 10_000 * 64 * objectives.model_flops(
        job.config, job.objective, BUCKET, cond
    )
    for cost in (encode, synthesize, distil):
        assert cost.seconds == pytest.approx(cost.model_flops / (0.5 * job.chip.bf16_flops))


def planned(config, count=500):
    """The cost of `encode` of so many records of a config."""
    config = typed(config)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    # No training is planned.
    job = Job(config, None, chip_named("v5e"), mesh, 0.5)
    return whole_run_module._encode(job, {BUCKET: count})


def test_a_released_base_that_is_fine_tuned_first_has_released_encoders():
    configs = [
        sd3_turbo.get_config("size=medium,resolution=256,data=pictures"),
        sd3_inpaint.get_config("size=medium,resolution=256"),
        small_inpaint.get_config(),
        small_inpaint.get_config("data=pictures"),
    ]
    for config in configs[:2]:
        config.model.update(dict(depth=2, width=128, num_heads=2))
        config.heads.channels = 16
    turbo, filling, *small = map(planned, configs)
    text, picture = family("sd3").encoder_flops(32, 32, 333)
    assert turbo.model_flops == 500 * (text + picture)
    assert filling.model_flops == 500 * (text + 2 * picture)
    assert [cost.model_flops for cost in small] == [0, 0]
    # A mask and the masked picture besides, and no more of the text.
    assert filling.bytes - turbo.bytes == 500 * 32 * 32 * 17 * 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_is_joined_counts_with_the_bytes_that_encode_writes(dtype, tmp_path):
    config = digits.get_config()
    config.data.update(
        dict(joined="inpaint", latents_dtype=dtype, buckets=("8x8",), examples=4,
             held_out_examples=2)
    )  # fmt: skip
    config, bucket = typed(config), Bucket(8, 8)
    encode(config, tmp_path)
    specs = Shards(encoded(tmp_path)).arrays
    written = sum(spec.bytes_in(bucket) for spec in specs.values())
    assert record_bytes(config, bucket, released=False) == written


def test_channels_of_a_source_of_ones_own_count_too():
    config = digits.get_config()
    plain = record_bytes(typed(config), BUCKET, released=False)
    config.model.joined_channels = 3
    config = typed(config)
    assert record_bytes(config, BUCKET, released=False) == plain + 32 * 32 * 3 * 4
    assert pictures_of_record(config) == 1


def test_samples_with_scales_of_their_own_take_two_passes_a_step(job):
    other = changed(job, synthesize={"guidance": 1.0, "guidance_range": (1.0, 3.0)})
    (_, one, _), (_, own, _) = (run_costs(j, [BUCKET], 64, 500, {}) for j in (job, other))
    assert own.model_flops == one.model_flops


def test_the_compiled_step_gives_the_hours_of_distil(job):
    *_, distil = run_costs(job, [BUCKET], 64, 500, {BUCKET.name: 1.5})
    assert distil.seconds == 15_000
    entry = distil.entry(16)
    assert entry["hours"] == pytest.approx(15 / 3.6) and entry["chip_hours"] == 16 * entry["hours"]


def test_a_training_leaves_its_checkpoints_and_the_one_in_work(job):
    *_, two = run_costs(job, [BUCKET], 64, 500, {})
    *_, five = run_costs(changed(job, checkpoint={"keep": 5}), [BUCKET], 64, 500, {})
    assert five.bytes == 2 * two.bytes
    *_, finetune, _ = run_costs(changed(job, finetune={"steps": 20}), [BUCKET], 64, 500, {})
    assert (finetune.stage, finetune.amount, finetune.unit) == ("finetune", 20, "steps")


def test_records_are_spread_over_the_planned_buckets_in_their_shares(job):
    config = dataclasses.replace(
        job.config.data, buckets=("32x32", "16x16", "8x8"), bucket_weights=(1.0, 3.0, 6.0)
    )
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, data=config))
    small, large = Bucket(16, 16), BUCKET
    both = run_costs(job, [large, small], 64, 400, {})[1]
    alone = [run_costs(job, [bucket], 64, count, {})[1] for bucket, count in
             ((large, 100), (small, 300))]  # fmt: skip
    assert both.model_flops == pytest.approx(sum(cost.model_flops for cost in alone))


def test_records_are_those_that_the_config_names(tmp_path):
    config = digits.get_config()
    config.data.update(dict(examples=10, buckets=("8x8", "8x16")))
    assert known_records(typed(config), 0) == 20
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na dog\na bird\n")
    config = typed(sd3_turbo.get_config(f"size=medium,data={file}"))
    assert known_records(config, 0) == 3
    assert known_records(config, 7) == 7
    file.unlink()
    with pytest.raises(NotFoundError, match="no file"):
        known_records(config, 0)


def test_without_their_number_a_thousand_records_are_planned_and_no_sum(job, capsys):
    run = whole_run(job, [BUCKET], 64, 0, [])
    assert run["records"] is None and "all" not in run
    assert run["stages"][0]["records"] == 1000
    assert "--records=N" in capsys.readouterr().out
    run = whole_run(job, [BUCKET], 64, 2000, [])
    names = ("hours", "chip_hours", "bytes", "model_flops")
    for name in names:
        assert run["all"][name] == sum(stage[name] for stage in run["stages"])
    assert "encode" in (printed := capsys.readouterr().out) and "all " in printed
