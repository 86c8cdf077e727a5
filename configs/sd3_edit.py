"""LADD of Stable Diffusion 3 and 3.5 for editing: from released weights and triples of pictures.

    python -m ladd_jax.main --config=sd3_edit:weights=DIR,data=EDITS --workdir=DIR

The base is fine-tuned to edit, by flow matching, with its first layer widened by zeros for the
latents of the picture that is edited; then it is distilled. Arguments after the colon, all
optional:

    weights     a pipeline's folder or owner/name on the hub, whose files say the architecture
    size        medium, medium3.5 or large, without weights (to plan a run); tiny needs weights
    data        edits: tables or a hub's dataset with the columns of InstructPix2Pix or MagicBrush,
                or a folder that names a source in its metadata
    resolution  side in pixels of the square bucket, 512
    pretrain    steps of the base's fine-tuning, 10000
    steps       steps of distillation, 10000
    knobs       1: the student is told the scales of guidance on the instruction, from 1 to 10, and
                on the picture, from 1 to 2, and learns from samples of the fine-tuned base at these
                scales; 0, the default: it learns from the edits, with the distillation loss, as the
                paper does
    recipe      paper; robust adds what helped small networks: regression at small t, less noise

In comments, "known" marks what the paper states and "ours" what this project chose. Whatever
neither this file nor `ladd_jax/config/fields.py` marks as known is this project's choice too.
"""

import math

from ml_collections import ConfigDict

from ladd_jax.config import base_config, large_recipe, learn_real_pictures, parse_arguments
from ladd_jax.config.sd3_pipelines import tune_base, use_pipeline, use_resolution


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            size="", weights="", data="", resolution=512, pretrain=10_000, steps=10_000, knobs=0,
            recipe="paper",
        ),
    )  # fmt: skip
    config = base_config()
    use_pipeline(config, given["size"], given["weights"])
    use_resolution(config, given["resolution"])
    config.data.update(dict(source="images", path=given["data"], joined="edit"))

    tune_base(config, given["pretrain"])
    # InstructPix2Pix's: 5% of the samples lose the text, 5% the picture, 5% both.
    config.pretrain.update(dict(text_dropout=0.1, image_dropout=0.1))
    config.synthesize.update(
        dict(
            samples=0,  # ours: one for each edit
            batch_size=32,  # ours
            records_per_shard=256,  # ours
            sampler="dpmpp_2m",  # ours
            steps=25,  # ours
            guidance=7.0,  # as in the community's pipeline; InstructPix2Pix has 7.5
            image_guidance=1.5,  # InstructPix2Pix's
            shift=3.0,  # SD3's
        )
    )
    config.distil.update(
        dict(
            steps=given["steps"],  # known: 10,000
            batch_size=256,  # ours
        )
    )
    if given["knobs"]:
        config.stages = ("encode", "pretrain", "synthesize", "distil")
        config.synthesize.update(
            dict(guidance_range=(1.0, 10.0), image_guidance_range=(1.0, 2.0))  # ours
        )
    else:
        # Known: the data are real, so no samples are made.
        config.stages = ("encode", "pretrain", "distil")
        learn_real_pictures(config)
    if given["resolution"] <= 512:  # known: the warm-up is for more than 512 x 512
        config.distil.warmup_steps = 0

    # Ours, for the stage `evaluate`, which looks at held-out edits.
    config.evaluate.update(
        dict(samples=512, per_prompt=1, batch_size=32, metrics=("edit_error", "kept_error", "fd"))
    )
    large_recipe(config, given["recipe"])
    # The base has learned these pictures already.
    config.finetune.steps = 0
    config.checkpoint.every = math.ceil(given["steps"] / 10)  # ours
    return config
