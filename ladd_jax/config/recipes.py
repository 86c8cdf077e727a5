"""What several configs set alike."""

from ml_collections import ConfigDict


def small_recipe(distil: ConfigDict, steps: int) -> None:
    """How a small network is distilled on small pictures.

    What helps was found on the digits, one setting at a time: `benchmarks/studies/digits.json` and
    `docs/tuning.md`. Times and their probabilities stay the paper's.

    Args:
      distil: the section of a config, which is changed.
      steps: of the distillation.
    """
    distil.update(
        dict(
            steps=steps,
            batch_size=32,
            warmup_steps=0,
            # A small picture's pixel carries more than one of a large latent, so less noise hides
            # as much; and what is at stake at small t is less.
            renoise_mean=0.0,
            renoise_slope=2.0,
            # The heads see too little of what more steps do wrong, which is diversity: the data
            # themselves hold the student where x_0 is nearly known.
            reconstruction_weight=5.0,
            r1_interval=16,
            # The heads are the slower learners here, and an update of them alone costs no backward
            # pass through a transformer.
            head_updates=3,
            # Over an eighteenth of the training: a longer one has less noise and lags behind more.
            ema_decay=1 - 18 / max(steps, 36),
        )
    )
    distil.optimizer.update(dict(learning_rate=8e-5, beta1=0.5))
    distil.heads_optimizer.update(dict(learning_rate=3e-3, beta1=0.5))
