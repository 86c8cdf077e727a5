"""LADD of Stable Diffusion 3 and 3.5: the paper's settings, from released weights to a student.

    python -m ladd_jax.main --config=sd3_turbo:weights=DIR,data=prompts.txt --workdir=DIR

Arguments after the colon, all optional:

    weights     a pipeline's folder or owner/name on the hub, whose files say the architecture
    size        medium, medium3.5 or large, without weights (to plan a run); tiny needs weights
    teacher     another pipeline, or a size to plan with, for the network under the heads
    data        prompts (txt, tsv, csv, jsonl, or SET:FILE of a published set) or images (a folder,
                tars, tables, a hub's dataset)
    resolution  side in pixels of the square bucket, 1024
    steps       steps of distillation, 10000
    lora        rank of adapters to train instead of the whole student; 0 trains all of it
    recipe      paper; robust adds what helped small networks: fine-tuning first, regression at
                small t, less noise

In comments, "known" marks what the paper states and "ours" what this project chose. Whatever
neither this file nor `ladd_jax/config/fields.py` marks as known is this project's choice too.
"""

import math

from ml_collections import ConfigDict

from ladd_jax.config import base_config, large_recipe, parse_arguments
from ladd_jax.config.sd3_pipelines import SIZES, use_pipeline, use_resolution
from ladd_jax.data.prompt_sets import names_prompts


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
    use_pipeline(config, given["size"], given["weights"])
    if given["teacher"] in SIZES:
        config.teacher.update(SIZES[given["teacher"]])
    else:
        config.teacher.weights = given["teacher"]

    side = given["resolution"]
    use_resolution(config, side)
    is_images = given["data"] and not names_prompts(given["data"])
    config.data.update(
        dict(
            source="images" if is_images else "prompts",
            path=given["data"],
            held_out=0.0,  # no stage here reads held-out pictures
        )
    )

    config.synthesize.update(
        dict(
            samples=0,  # ours: one for each prompt
            batch_size=32,  # ours
            records_per_shard=256,  # ours
            # Ours: on the demo's digits as good as two to four times as many steps of Euler.
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
        # Ours: adapters start at zero and need a higher rate than a network; 1e-4 is LCM-LoRA's.
        config.distil.optimizer.learning_rate = 1e-4
    if side <= 512:  # known: the warm-up is for more than 512 x 512
        config.distil.warmup_steps = 0
    if config.data.source == "images":
        config.distil.distillation_weight = 2.5  # known: there is a weight; its value is ADD's
    large_recipe(config, given["recipe"])
    config.checkpoint.every = math.ceil(given["steps"] / 10)  # ours
    return config
