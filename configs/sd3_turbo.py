"""LADD of Stable Diffusion 3 and 3.5: the paper's settings, from released weights to a student.

    python -m ladd_jax.main --config=sd3_turbo:weights=DIR,data=prompts.txt --workdir=DIR

Arguments after the colon, all optional:

    weights     a pipeline's folder or owner/name on the hub, whose files say the architecture
    size        medium, medium3.5 or large, without weights (to plan a run); tiny needs weights
    teacher     another pipeline, or a size to plan with, for the network under the heads
    data        prompts (txt, tsv, csv, jsonl, or SET:FILE of a published set) or images (a folder,
                tars, tables, a hub's dataset)
    resolution  side in pixels of the square bucket, 1024
    steps       of distillation, 10000
    lora        rank of adapters to train in place of the whole student; 0 trains all of it
    recipe      paper; robust adds what helped small networks: fine-tuning first, regression at
                small t, less noise

"known" is what the paper states, "ours" is this project's, and so is all that neither this file
nor `ladd_jax/config/fields.py` marks as known.
"""

import math

from ml_collections import ConfigDict

from ladd_jax.config import base_config, large_recipe, parse_arguments
from ladd_jax.data.buckets import bucket_table
from ladd_jax.data.prompt_sets import names_prompts
from ladd_jax.errors import UserError

# Esser et al. 2024 and the released configs: fields of the model by size.
SIZES = {
    "medium": dict(depth=24, width=1536, num_heads=24, **{"position_start": -16.0}),
    "medium3.5": dict(
        depth=24, width=1536, num_heads=24, qk_norm=True, dual_attention=tuple(range(13)),
        position_table=384, position_base=96.0, position_start=-40.0,
    ),
    "large": dict(depth=38, width=2432, num_heads=38, qk_norm=True, position_start=-16.0),
}  # fmt: skip

_PATCH, _REDUCTION = 2, 8


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            size="", weights="", teacher="", data="", resolution=1024, steps=10_000, lora=0,
            recipe="paper",
        ),
    )  # fmt: skip
    config = base_config()
    config.stages = ("encode", "prefer", "synthesize", "finetune", "distil")
    config.model.position_base = 48.0
    config.data.update(dict(text_width=4096, pooled_width=2048))
    if given["size"] not in ("", "tiny", *SIZES):
        raise UserError(f"size {given['size']!r} is none of tiny, {', '.join(SIZES)}")
    if given["size"] == "tiny" and not given["weights"]:
        raise UserError("size=tiny is what its weights are: give weights=DIR too")
    if given["weights"]:
        config.weights = given["weights"]
        # With weights a depth of 0 takes theirs, and another one must be theirs.
        config.model.depth = SIZES[given["size"]]["depth"] if given["size"] in SIZES else 0
    else:
        config.model.update(SIZES[given["size"] or "medium"])

    config.teacher.position_base = 48.0
    if given["teacher"] in SIZES:
        config.teacher.update(SIZES[given["teacher"]])
    else:
        config.teacher.weights = given["teacher"]

    side = given["resolution"]
    step = _PATCH * _REDUCTION if side < 512 else 64  # known above: multiples of 64
    if side < 2 * step or side % step:
        raise UserError(f"resolution {side} is not a multiple of {step}: use 1024, 512 or 256")
    is_images = given["data"] and not names_prompts(given["data"])
    config.data.update(
        dict(
            source="images" if is_images else "prompts",
            path=given["data"],
            held_out=0.0,  # no stage here reads held-out pictures
            buckets=tuple(bucket.name for bucket in bucket_table(side * side, step)),  # ours
            records_per_shard=256,  # ours
            text_length=77 + 256,  # SD3's: CLIP's tokens, then T5's
            text_dtype="float16",  # ours
            text_batch_size=32,  # ours
        )
    )
    # Ours: sharded parameters and batch over all devices.
    config.mesh.update(dict(data=1, fsdp=-1))
    config.model.teacher_dtype = "bfloat16"  # ours
    # Ours: attention is a third of all operations, so what it gave is kept and not computed again.
    config.model.remat = "attention"

    config.synthesize.update(
        dict(
            samples=0,  # ours: one for each prompt
            batch_size=32,  # ours
            records_per_shard=256,  # ours
            # Ours: on the demo's digits as good as twice to four times as many steps of Euler.
            sampler="dpmpp_2m",
            steps=25,
            guidance=5.0,  # known: one constant scale; ours: its value
            shift=3.0,  # SD3's
        )
    )

    # Ours, for the stage `evaluate`, which needs evaluate.prompts: 128 prompts of each bucket.
    config.evaluate.update(dict(samples=512, batch_size=32))

    config.distil.update(
        dict(
            steps=given["steps"],  # known: 10,000
            batch_size=256,  # ours
        )
    )
    if given["lora"]:
        config.distil.lora.rank = given["lora"]
        # Ours: adapters begin as zero and want more than a network; 1e-4 is LCM-LoRA's.
        config.distil.optimizer.learning_rate = 1e-4
    if side <= 512:  # known: the warm-up is for more than 512 x 512
        config.distil.warmup_steps = 0
    if config.data.source == "images":
        config.distil.distillation_weight = 2.5  # known: there is one; ADD's: its value
    large_recipe(config, given["recipe"])
    config.checkpoint.every = math.ceil(given["steps"] / 10)  # ours
    return config
