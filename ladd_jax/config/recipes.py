"""What several configs set alike."""

from ml_collections import ConfigDict

_BATCH_SIZE = 32


def small_recipe(config: ConfigDict, steps: int) -> None:
    """How a small network is distilled on small pictures.

    What helps was found on the digits, one setting at a time: `benchmarks/studies/digits.json` and
    `docs/tuning.md`. Times and their probabilities stay the paper's.

    Args:
      config: is changed; its data generator's training is set already.
      steps: of the distillation.
    """

    # Over an eighteenth of a training: a longer average has less noise and lags behind more.
    def ema_decay(steps: int) -> float:
        return 1 - 18 / max(steps, 36)

    first = max(steps // 4, 1)
    config.finetune.update(
        dict(steps=first, batch_size=2 * _BATCH_SIZE, ema_decay=ema_decay(first))
    )
    config.finetune.optimizer.update(
        dict(
            learning_rate=config.pretrain.optimizer.learning_rate / 3,
            warmup_steps=min(20, first // 10),
            decay_steps=first,
        )
    )
    distil = config.distil
    distil.update(
        dict(
            steps=steps,
            batch_size=_BATCH_SIZE,
            warmup_steps=0,
            # A small picture's pixel carries more than one of a large latent, so less noise hides
            # as much; and what is at stake at small t is less.
            renoise_mean=0.0,
            renoise_slope=2.0,
            # The heads see little of what a prediction from little noise does wrong: the data
            # themselves hold the student where x_0 is nearly known.
            reconstruction_weight=1.0,
            r1_interval=16,
            # The heads are the slower learners here, and an update of them alone costs no backward
            # pass through a transformer.
            head_updates=3,
            ema_decay=ema_decay(steps),
        )
    )
    distil.optimizer.update(dict(learning_rate=8e-5, beta1=0.5))
    distil.heads_optimizer.update(dict(learning_rate=3e-3, beta1=0.5))
