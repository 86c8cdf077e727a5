"""LADD of Stable Diffusion 3 and 3.5 for filling holes: from released weights and pictures.

    python -m ladd_jax.main --config=sd3_inpaint:weights=DIR,data=PICTURES --workdir=DIR

The base is fine-tuned to fill holes, by flow matching, with its first layer widened by zeros for
the mask and the masked picture; then it is distilled on the same pictures with the distillation
loss. Arguments after the colon, all optional:

    weights     a pipeline's folder or owner/name on the hub, whose files say the architecture
    size        medium, medium3.5 or large, without weights (to plan a run); tiny needs weights
    data        pictures with text: a folder, tars, tables, a hub's dataset
    resolution  side in pixels of the square bucket, 1024
    pretrain    steps of the base's fine-tuning, 10000
    steps       steps of distillation, 10000
    recipe      paper; robust adds what helped small networks: regression at small t, less noise

The paper distils a model of depth 18 for this, which was never released; here the depth is that of
the weights. In comments, "known" marks what the paper states and "ours" what this project chose.
Whatever neither this file nor `ladd_jax/config/fields.py` marks as known is this project's choice
too.
"""

import math

from ml_collections import ConfigDict

from ladd_jax.config import base_config, large_recipe, learn_real_pictures, parse_arguments
from ladd_jax.config.sd3_pipelines import tune_base, use_pipeline, use_resolution


def get_config(arguments: str | None = None) -> ConfigDict:
    given = parse_arguments(
        arguments,
        dict(
            size="", weights="", data="", resolution=1024, pretrain=10_000, steps=10_000,
            recipe="paper",
        ),
    )  # fmt: skip
    config = base_config()
    # Known: the data are real, so no samples are made.
    config.stages = ("encode", "pretrain", "distil")
    use_pipeline(config, given["size"], given["weights"])
    use_resolution(config, given["resolution"])
    config.data.update(dict(source="images", path=given["data"], joined="inpaint"))

    tune_base(config, given["pretrain"])
    # How the data generator is sampled, in `evaluate` and in `sample`.
    config.synthesize.update(dict(steps=25, guidance=5.0, shift=3.0))  # ours; SD3's shift

    # Ours, for the stage `evaluate`, which looks at held-out pictures.
    config.evaluate.update(
        dict(
            samples=512,
            batch_size=32,
            metrics=(*config.evaluate.metrics, "masked_distance", "masked_error", "known_error"),
        )
    )

    config.distil.update(
        dict(
            steps=given["steps"],  # known: 10,000
            batch_size=256,  # ours
        )
    )
    if given["resolution"] <= 512:  # known: the warm-up is for more than 512 x 512
        config.distil.warmup_steps = 0
    large_recipe(config, given["recipe"])
    learn_real_pictures(config)
    config.checkpoint.every = math.ceil(given["steps"] / 10)  # ours
    return config
