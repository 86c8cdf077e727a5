"""What would stop a job late is found before it starts, and before it writes anything."""

from typing import Any

from ml_collections import ConfigDict

from ladd_jax.config import build as networks
from ladd_jax.config.fields import STAGES, steps_of
from ladd_jax.data.buckets import Bucket
from ladd_jax.diffusion.samplers import student_sigmas
from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import check_batch_size, make_mesh

_AT_LEAST_ONE = (
    "data.examples", "data.records_per_shard", "data.text_batch_size",
    "data.image_batch_size", "data.text_length", "model.depth", "model.width",
    "model.num_heads", "model.channels", "model.patch", "model.unroll", "heads.channels",
    "heads.kernel", "heads.groups", "heads.projection", "pretrain.steps", "pretrain.batch_size",
    "pretrain.accumulation", "synthesize.batch_size", "synthesize.records_per_shard",
    "synthesize.steps", "distil.steps", "distil.batch_size", "distil.accumulation",
    "evaluate.batch_size", "evaluate.shown_prompts", "checkpoint.every", "checkpoint.keep",
    "log.every",
)  # fmt: skip


def _field(config: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config


def check(config: ConfigDict) -> None:
    """Builds what the config describes, without data and without parameters.

    Raises:
      UserError: a value that no stage could use; the message names it and the remedy.
    """
    unknown = [name for name in config.stages if name not in STAGES]
    if unknown:
        raise UserError(f"stage {unknown[0]!r} is none of {', '.join(STAGES)}")
    for path in _AT_LEAST_ONE:
        if _field(config, path) < 1:
            raise UserError(f"{path} is {_field(config, path)}: use 1 or more")
    buckets = [Bucket.parse(name) for name in config.data.buckets]
    if not buckets:
        raise UserError("data.buckets is empty: name one or more, such as 8x8")
    mesh = make_mesh(config.mesh)
    trained = [stage for stage in ("pretrain", "distil") if stage in config.stages]
    for stage in trained:
        check_batch_size(config[stage].batch_size, mesh, config[stage].accumulation)
    traced = steps_of(config.log.profile)
    longest = max((config[stage].steps for stage in trained), default=0)
    if traced and traced.start > longest:
        raise UserError(
            f"profile {config.log.profile} begins after the last of {longest} steps: use earlier "
            f"ones"
        )
    networks.flow_matching(config)
    networks.ladd(config)
    _check_data(config, buckets)
    if config.teacher.depth and not config.teacher.weights and "distil" in config.stages:
        raise UserError(
            f"teacher.depth is {config.teacher.depth} and teacher.weights is empty: name the "
            f"weights of that network; without them it can be planned only"
        )
    both = {"synthesize", "distil"} <= set(config.stages)
    if both and 0 < config.synthesize.samples < config.distil.batch_size:
        raise UserError(
            f"synthesize.samples {config.synthesize.samples} are fewer than one batch of "
            f"distil.batch_size {config.distil.batch_size}: raise one or lower the other"
        )
    if "evaluate" in config.stages:
        _check_evaluation(config, len(buckets))


def _check_data(config: ConfigDict, buckets: list[Bucket]) -> None:
    data = config.data
    if data.source not in ("digits", "prompts", "images"):
        raise UserError(f"data.source {data.source!r} is none of digits, prompts, images")
    if data.text_dtype not in ("float32", "float16"):
        raise UserError(f"data.text_dtype {data.text_dtype!r} is none of float32, float16")
    if config.synthesize.samples < 0:
        raise UserError(
            f"synthesize.samples is {config.synthesize.samples}: use 0 for one of each encoded "
            f"record, or more"
        )
    if config.distil.data not in ("synthesized", "encoded"):
        raise UserError(f"distil.data {config.distil.data!r} is none of synthesized, encoded")
    weights = data.bucket_weights
    if weights and (len(weights) != len(buckets) or min(weights) < 0 or not sum(weights)):
        raise UserError(
            f"data.bucket_weights is {weights}: give {len(buckets)} numbers of 0 or more, one for "
            f"each of data.buckets, or none"
        )
    if data.source == "digits":
        if config.model.channels != 1:
            raise UserError(f"model.channels is {config.model.channels}: digits have 1")
        return
    if "evaluate" in config.stages:
        raise UserError("the stage 'evaluate' judges digits: leave it out of stages")
    if not config.weights:
        raise UserError(
            f"weights is empty, and {data.source} need a released pipeline: give "
            f"--config=FILE:weights=DIR or --weights=DIR, a folder that `hf download OWNER/NAME "
            f"--local-dir=DIR` or StableDiffusion3Pipeline.save_pretrained wrote, or owner/name "
            f"of the hub"
        )
    if "encode" in config.stages and not data.path:
        raise UserError(
            "data.path is empty: give --config=FILE:data=PATH, --prompts=FILE or --images=DIR, or "
            "write the shards with `python -m ladd_jax.encode` and the same --config and --workdir"
        )
    if "pretrain" in config.stages:
        raise UserError("the stage 'pretrain' makes a teacher and weights are one: leave it out")


def _check_evaluation(config: ConfigDict, buckets: int) -> None:
    stage = config.evaluate
    if stage.student not in ("ema", "params"):
        raise UserError(f"evaluate.student {stage.student!r} is none of ema, params")
    for steps in stage.student_steps:
        student_sigmas(steps, tuple(config.distil.timesteps))
    if not stage.teacher_steps or min(stage.teacher_steps) < 1:
        raise UserError(f"evaluate.teacher_steps is {stage.teacher_steps}: use 1 or more")
    counts = stage.samples_per_prompt
    if len(counts) != buckets or min(counts) < 2:
        raise UserError(
            f"evaluate.samples_per_prompt is {counts}: give {buckets} numbers, one for each of "
            f"data.buckets, each 2 or more"
        )
    if stage.test_images < 2:
        raise UserError(f"evaluate.test_images is {stage.test_images}: use 2 or more")
