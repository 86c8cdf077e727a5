"""What several configs set alike: recipes of the distillation, by name.

`paper` is LADD as the paper states it: no stage before it, noise of one mean at every t, and the
adversarial loss alone. `robust` adds what has helped since.
"""

from ml_collections import ConfigDict

from ladd_jax.ranges import check_choice

RECIPES = ("robust", "paper")
"""Names of the recipes."""

_BATCH_SIZE = 32


def check_recipe(recipe: str) -> None:
    """Raises UserError where there is no such recipe."""
    check_choice(recipe, "recipe", *RECIPES)


def small_recipe(
    config: ConfigDict, steps: int, recipe: str = "robust", *, even_shares: bool = False
) -> None:
    """How a small network is distilled on small pictures.

    What helps was found on the digits, one setting at a time: `digits.json` and `rivals.json` of
    `benchmarks/studies`, and `docs/experiments.md`. Rates, averages and updates of the heads, of
    which the paper says nothing, are the same in both recipes; times stay the paper's.

    Args:
      config: the config to change; its data generator's training is already set.
      steps: steps of the distillation.
      recipe: one of `RECIPES`.
      even_shares: whether `robust` gives the times below 1 more than the paper's share of the
        steps, instead of the distance to the data.

    Raises:
      UserError: there is no such recipe.
    """
    check_recipe(recipe)
    distil = config.distil
    distil.update(
        dict(
            steps=steps,
            batch_size=_BATCH_SIZE,
            warmup_steps=0,
            r1_interval=16,
            # The heads are the slower learners here, and an update of them alone costs no backward
            # pass through a transformer.
            head_updates=3,
            ema_decay=_ema_decay(steps),
        )
    )
    distil.optimizer.update(dict(learning_rate=8e-5, beta1=0.5))
    distil.heads_optimizer.update(dict(learning_rate=3e-3, beta1=0.5))
    if recipe == "paper":
        return
    distil.update(
        dict(
            # A small picture's pixel carries more than one of a large latent, so less noise hides
            # as much; and what is at stake at small t is less.
            renoise_mean=0.0,
            renoise_slope=2.0,
            # The heads see little of what a prediction from little noise does wrong: the data
            # themselves hold the student where x_0 is nearly known.
            reconstruction_weight=1.0,
            # And elsewhere a network that has learned the guided samples does, along its own
            # paths: those of the guided data generator do not end at its samples.
            consistency_weight=1.0,
            consistency_steps=16,
            # In so few pieces Euler's paths end at samples that are too much alike.
            consistency_solver="midpoint",
            follows="finetuned",
        )
    )
    if even_shares:
        # With enough steps at these times the student needs no distance to the data there:
        # docs/experiments.md, shares of the times.
        distil.update(dict(probabilities=(0.4, 0.2, 0.2, 0.2), reconstruction_weight=0.0))
    first = max(3 * steps // 2, 1)
    _finetune(
        config,
        first,
        batch_size=2 * _BATCH_SIZE,
        learning_rate=config.pretrain.optimizer.learning_rate / 3,
        warmup_steps=min(20, first // 10),
    )


def large_recipe(config: ConfigDict, recipe: str = "paper") -> None:
    """What `robust` changes where the paper's own sizes are distilled.

    It is what helped small networks on small pictures, with SANA-Sprint's noise instead of theirs,
    and without consistency, which nearly doubles the passes of a step. None of it was tried here at
    these sizes. A student with adapters is not fine-tuned first, since that would train the whole
    network, which adapters are to avoid.

    Args:
      config: the config to change; the steps of its distillation and its rates are already set.
      recipe: one of `RECIPES`.

    Raises:
      UserError: there is no such recipe.
    """
    check_recipe(recipe)
    if recipe == "paper":
        return
    distil, steps = config.distil, max(config.distil.steps // 10, 1)
    distil.update(dict(renoise_mean=0.09, reconstruction_weight=1.0, reconstruction_gamma=5.0))
    if distil.lora.rank:
        return
    config.finetune.shift = config.synthesize.shift
    _finetune(
        config,
        steps,
        batch_size=distil.batch_size,
        learning_rate=distil.optimizer.learning_rate,
        warmup_steps=steps // 10,
    )


def learn_real_pictures(config: ConfigDict) -> None:
    """The student learns from the encoded pictures themselves, as the paper's do that edit or fill.

    Args:
      config: the config to change; its recipe is already set. Its data generator has learned these
        pictures, and is what the student follows.
    """
    config.distil.update(
        dict(
            data="encoded",  # known
            distillation_weight=2.5,  # known: there is one; ADD's: its value
            follows="generator",
            # A guided velocity takes two or three passes, and Euler needs one instead of two.
            consistency_solver="euler",
        )
    )
    config.finetune.steps = 0


def _finetune(
    config: ConfigDict, steps: int, *, batch_size: int, learning_rate: float, warmup_steps: int
) -> None:
    # Its rate falls to 0 at the end.
    config.finetune.update(dict(steps=steps, batch_size=batch_size, ema_decay=_ema_decay(steps)))
    config.finetune.optimizer.update(
        dict(learning_rate=learning_rate, warmup_steps=warmup_steps, decay_steps=steps)
    )


def _ema_decay(steps: int) -> float:
    # Over an eighteenth of a training: a longer average has less noise and lags behind more.
    return 1 - 18 / max(steps, 36)
