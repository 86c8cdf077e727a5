"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015).

One step updates the heads on a batch and then the student through the updated heads on the same
batch. The teacher is frozen and its features do not depend on the heads, so one student forward
and one teacher forward each for fake and real serve both updates. Further updates of the heads,
misaligned pairs, and the updated heads for a batch in several micro-batches add forward passes.

B batch, H W latent grid, C channels, h w token grid, N = hw, D width, L blocks, K heads.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion import times as timesteps
from ladd_jax.diffusion.flow import expand, interpolate, predict_x0
from ladd_jax.errors import UserError
from ladd_jax.models.base import Model, Params
from ladd_jax.objectives.accumulation import accumulate
from ladd_jax.objectives.adversarial import ADVERSARIAL_LOSSES
from ladd_jax.objectives.base import Batch, Metrics, TrainState
from ladd_jax.training.ema import update_ema
from ladd_jax.training.optimizers import Optimizer

BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Edges of the bands of t_hat in which the discriminator's accuracy is reported."""

HeadLoss = Callable[[Params, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""`(one head's parameters, tokens [B, N, D]) -> (loss [], statistics)`."""

Noise = tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Noise `[B, H, W, C]` and t_hat `[B]` of the fake samples, and of the real ones."""

Heads = tuple[Params, Any]
"""The heads and the state of their optimizer."""


class Samples(NamedTuple):
    """What a step has of each sample.

    Attributes:
      x_0: latents of the data `[B, H, W, C]`.
      context: text tokens `[B, T, Dc]`.
      pooled: text vector `[B, Dp]`.
      x_t: what the student is given `[B, H, W, C]`.
      t: at which time `[B]`.
      other: of misaligned pairs, where there are any: another sample's context and pooled, and the
        pair's weight `[B]`, whose mean over the batch is 1.
    """

    x_0: jax.Array
    context: jax.Array
    pooled: jax.Array
    x_t: jax.Array
    t: jax.Array
    other: tuple[jax.Array, jax.Array, jax.Array] | None


class Judged(NamedTuple):
    """How the heads judged.

    Attributes:
      gradient: of the heads.
      means: of fake and of real samples, statistics of each head `[K]`.
      accuracy: share of correct locations `[B, 2, K]`, of the fake sample and of the real one.
    """

    gradient: Params
    means: tuple[dict[str, jax.Array], dict[str, jax.Array]]
    accuracy: jax.Array


class Found(NamedTuple):
    """What a step's passes find.

    Attributes:
      student_gradient: of the generator's loss.
      losses: of the generator.
      x0_hat: the student's predictions `[B, H, W, C]`.
      heads: after all of their updates.
      judged: by the heads before the update that takes the generator's noise.
    """

    student_gradient: Params
    losses: Metrics
    x0_hat: jax.Array
    heads: Heads
    judged: Judged


@dataclasses.dataclass(frozen=True, kw_only=True)
class LADDSettings:
    """How a student is distilled.

    Attributes:
      timesteps: times at which the student is trained (paper: 1, 0.75, 0.5, 0.25).
      probabilities: of those times.
      warmup_probabilities: of those times in the first steps (paper, above 512^2: 0, 0, .5, .5).
      warmup_steps: how many those are (paper, above 512^2: 500).
      renoise_mean: m of t_hat = sigmoid(m + s u) (paper: 1).
      renoise_std: s (paper: 1).
      same_renoise: real and fake share t_hat and noise. Open in the paper.
      loss: key of `ADVERSARIAL_LOSSES`. Open in the paper; ADD has hinge.
      r1_gamma: weight of the gradient penalty on each head's input at real samples (ADD: 1e-5);
        0 leaves it out.
      r1_interval: steps between penalties, each multiplied by the interval.
      hooked_blocks: teacher blocks with a head; empty is all of them, as in the paper.
      distillation_weight: weight of the distance to the teacher's own x_0, for real data (ADD:
        2.5). The paper drops it (0) for synthetic data.
      misaligned_share: share of the loss on fakes that goes to extra ones, real latents with
        the text of another prompt; 0 has none. It holds the student to its prompts.
      head_updates: updates of the heads for each of the student, each on fresh re-noising.
      accumulation: micro-batches that a batch is taken in, to need less memory. What is drawn, and
        which pairs are misaligned, is decided for the whole batch.
      accumulated_heads: the heads that the generator sees where there are several micro-batches:
        `updated` is the update of one, by a second pass over all of them; `before` is the heads
        from before the step, at the price of one pass.
      ema_decay: decay of the student's moving average.
    """

    timesteps: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    probabilities: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1)
    warmup_probabilities: tuple[float, ...] = (0.0, 0.0, 0.5, 0.5)
    warmup_steps: int = 500
    renoise_mean: float = 1.0
    renoise_std: float = 1.0
    same_renoise: bool = True
    loss: str = "hinge"
    r1_gamma: float = 1e-5
    r1_interval: int = 1
    hooked_blocks: tuple[int, ...] = ()
    distillation_weight: float = 0.0
    misaligned_share: float = 0.0
    head_updates: int = 1
    accumulation: int = 1
    accumulated_heads: str = "updated"
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.loss not in ADVERSARIAL_LOSSES:
            raise UserError(f"loss {self.loss!r} is none of {', '.join(ADVERSARIAL_LOSSES)}")
        for name in ("probabilities", "warmup_probabilities"):
            values = getattr(self, name)
            if len(values) != len(self.timesteps) or abs(sum(values) - 1) > 1e-6:
                raise UserError(
                    f"{name} {values} must be {len(self.timesteps)} numbers that sum to 1, "
                    f"one for each of the timesteps {self.timesteps}"
                )
        if not 0 <= self.misaligned_share < 1:
            raise UserError(
                f"misaligned_share {self.misaligned_share} is not a share: use 0 for none, or a "
                f"number below 1"
            )
        if self.head_updates < 1 or self.r1_interval < 1:
            raise UserError(
                f"head_updates {self.head_updates} and r1_interval {self.r1_interval} "
                f"must be at least 1"
            )
        if self.accumulation < 1:
            raise UserError(f"accumulation is {self.accumulation}: use 1 or more")
        if self.accumulated_heads not in ("updated", "before"):
            raise UserError(
                f"accumulated_heads {self.accumulated_heads!r} is none of updated, before"
            )


@dataclasses.dataclass(frozen=True)
class LADD(LADDSettings):
    """The distillation of a frozen teacher into a student of few steps.

    Attributes:
      student: `student(params, x_t, t, context, pooled) -> v`.
      teacher: the same signature, `tap=` to read tokens after each block, and `features_vjp` of
        `models.sd3.transformer`. It may be cut after the last hooked block where there is no
        `distillation_weight`, and gives no v then.
      head: one head, `head(params, tokens, grid, t_hat, pooled) -> logits [B, h, w]`.
      heads: its stack, one for each hooked block, under the name `heads`.
      depth: number of the teacher's blocks, those that are cut off left out.
      patch: side of the teacher's patch.
      optimizer: of the student.
      heads_optimizer: of the heads; its schedule counts their updates, `head_updates` a step.
    """

    student: Model
    teacher: Model
    head: Model
    heads: Model
    depth: int
    patch: int
    optimizer: Optimizer
    heads_optimizer: Optimizer

    def __post_init__(self) -> None:
        super().__post_init__()
        for block in self.hooked:
            if not 0 <= block < self.depth:
                raise UserError(
                    f"hooked_blocks names block {block} of a teacher of {self.depth}: "
                    f"use blocks 0 to {self.depth - 1}"
                )

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks with a head, in order of depth."""
        return tuple(sorted(set(self.hooked_blocks))) or tuple(range(self.depth))

    @property
    def forward_units(self) -> tuple[int, int]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to.

        A backward pass is 2 of them, or 1 where the parameters are constants. The student goes
        forth and back; the teacher forth and back on fakes, forth on real ones; each further update
        of the heads, and misaligned pairs in each, go forth alone. Updated heads for several
        micro-batches take a second pass of both, forth on fakes. The heads, small next to a
        transformer, are left out.
        """
        misaligned = self.head_updates if self.misaligned_share else 0
        again = int(self.accumulation > 1 and self.accumulated_heads == "updated")
        return 3 + again, 3 + 2 * (self.head_updates - 1) + misaligned + again

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step.

        Args:
          key: raw PRNG key.
          params: the student's first parameters, usually the teacher's, in any dtype. They are
            copied: the step donates its state, and a shared buffer would take the teacher with it.
        """
        params = jax.tree.map(
            lambda leaf, own: jnp.array(leaf, own.dtype, copy=True), params, self.student.shapes
        )
        heads_key, state_key = jax.random.split(key)
        heads = self.heads.init(heads_key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=state_key,
            params=params,
            ema=jax.tree.map(jnp.copy, params),
            heads=heads,
            optimizer=self.optimizer.build().init(params),
            heads_optimizer=self.heads_optimizer.build().init(heads),
        )

    def step(self, state: TrainState, frozen: Params, batch: Batch) -> tuple[TrainState, Metrics]:
        """Updates the heads, then the student through them. `frozen` is the teacher."""
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.random.split(key, 1 + self.head_updates)
        samples = self._samples(keys[0], batch, state.step)
        noise = self._renoise(keys[-1], samples.x_0)
        if self.accumulation == 1:
            passes = self._in_one_pass
        elif self.accumulated_heads == "updated":
            passes = self._in_two_passes
        else:
            passes = self._through_heads_before
        found = passes(state, frozen, samples, noise, keys[1:-1])
        updates, optimizer = self.optimizer.build().update(
            found.student_gradient, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)

        fake, real = found.judged.means
        metrics: Metrics = found.losses | {
            "loss/discriminator": jnp.mean(fake["loss"] + real["loss"]),
            "gradient_norm/student": optax.tree.norm(found.student_gradient),
            "gradient_norm/heads": optax.tree.norm(found.judged.gradient),
            "x0_hat_std": jnp.std(found.x0_hat),
        }
        (_, t_fake), (_, t_real) = noise
        metrics |= _discriminator_metrics(fake, real, found.judged.accuracy, t_fake, t_real)
        heads, heads_optimizer = found.heads
        return dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            ema=update_ema(state.ema, params, self.ema_decay, state.step),
            heads=heads,
            optimizer=optimizer,
            heads_optimizer=heads_optimizer,
        ), metrics

    def _in_one_pass(
        self, state: TrainState, frozen: Params, samples: Samples, noise: Noise, early: jax.Array
    ) -> Found:
        """Heads and generator on the whole batch, which share the last of the fake passes."""

        def update(x0_hat: jax.Array, features: jax.Array) -> tuple[Params, Any]:
            """The updated heads; them with their optimizer, and how they judged."""
            heads = (state.heads, state.heads_optimizer)
            heads = self._update_heads(heads, state.step, frozen, samples, x0_hat, early)
            judged = self._heads_gradient(
                heads[0], state.step, frozen, samples, noise, x0_hat, features
            )
            heads = self._apply(heads, judged.gradient)
            return heads[0], (heads, judged)

        gradient, losses, x0_hat, (heads, judged) = self._student_gradient(
            state.params, frozen, samples, noise, update
        )
        return Found(gradient, losses, x0_hat, heads, judged)

    def _in_two_passes(
        self, state: TrainState, frozen: Params, samples: Samples, noise: Noise, early: jax.Array
    ) -> Found:
        """All micro-batches for the heads, then again for the generator: the same update.

        The updated heads are known only after all micro-batches.
        """

        def generate(samples: Samples) -> tuple[Any, Any, jax.Array]:
            return (), (), self._generate(state.params, samples)

        _, _, x0_hat = accumulate(generate, samples, self.accumulation, ())
        heads = (state.heads, state.heads_optimizer)
        heads = self._update_heads(heads, state.step, frozen, samples, x0_hat, early)
        judged = self._accumulated_heads_gradient(
            heads[0], state.step, frozen, samples, noise, x0_hat
        )
        heads = self._apply(heads, judged.gradient)

        def part(item: tuple[Samples, Noise]) -> tuple[Params, Metrics, Any]:
            gradient, losses, _, _ = self._student_gradient(
                state.params, frozen, *item, lambda *_: (heads[0], None)
            )
            return gradient, losses, ()

        gradient, losses, _ = accumulate(part, (samples, noise), self.accumulation, self.student)
        return Found(gradient, losses, x0_hat, heads, judged)

    def _through_heads_before(
        self, state: TrainState, frozen: Params, samples: Samples, noise: Noise, early: jax.Array
    ) -> Found:
        """All micro-batches for heads and generator at once: it sees the heads of before the step.

        The update of the heads that shares the generator's fake pass comes first, the others after.
        """

        def part(item: tuple[Samples, Noise]) -> tuple[Any, Any, Any]:
            def judge(x0_hat: jax.Array, features: jax.Array) -> tuple[Params, Judged]:
                return state.heads, self._heads_gradient(
                    state.heads, state.step, frozen, *item, x0_hat, features
                )

            gradient, losses, x0_hat, judged = self._student_gradient(
                state.params, frozen, *item, judge
            )
            return (
                (gradient, judged.gradient), (losses, judged.means), (x0_hat, judged.accuracy)
            )  # fmt: skip

        (gradient, heads_gradient), (losses, means), (x0_hat, accuracy) = accumulate(
            part, (samples, noise), self.accumulation, (self.student, self.heads)
        )
        heads = self._apply((state.heads, state.heads_optimizer), heads_gradient)
        heads = self._update_heads(heads, state.step, frozen, samples, x0_hat, early)
        judged = Judged(heads_gradient, means, accuracy)
        return Found(gradient, losses, x0_hat, heads, judged)

    def _generate(self, params: Params, samples: Samples) -> jax.Array:
        """The student's prediction of x_0 from a point of the teacher's own sample."""
        x_t, t = samples.x_t, samples.t
        return predict_x0(x_t, self.student(params, x_t, t, samples.context, samples.pooled), t)

    def _student_gradient(
        self,
        params: Params,
        frozen: Params,
        samples: Samples,
        noise: Noise,
        see: Callable[[jax.Array, jax.Array], tuple[Params, Any]],
    ) -> tuple[Params, Metrics, jax.Array, Any]:
        """The student's gradient, through heads and teacher.

        Args:
          params: of the student.
          frozen: the teacher.
          samples: or a micro-batch of them.
          noise: of `_renoise`.
          see: gives, of x0_hat and its features `[L + 1, B, N, D]`, the heads that the generator
            sees and anything more.

        Returns:
          Gradient, losses, x0_hat, and what more `see` gave.
        """
        context, pooled = samples.context, samples.pooled
        (eps_fake, t_fake), _ = noise
        x0_hat, student_vjp = jax.vjp(lambda params: self._generate(params, samples), params)

        x_t_hat, renoise_vjp = jax.vjp(lambda x: interpolate(x, eps_fake, t_fake), x0_hat)
        teacher = self.teacher.bind(frozen)
        v, features, teacher_vjp = teacher.features_vjp(x_t_hat, t_fake, context, pooled)
        heads, more = see(x0_hat, features)

        # The same features through the heads, back through the teacher's activations (its
        # parameters are constants here) and through the student.
        adversarial = ADVERSARIAL_LOSSES[self.loss]
        grid = self._grid(x0_hat)

        def generator_loss(head: Params, tokens: jax.Array) -> jax.Array:
            logits = self.head(head, tokens, grid, t_fake, pooled)
            return jnp.mean(adversarial.generator(logits)) / len(self.hooked)

        def through_head(gradient: jax.Array, head_and_block: Any) -> tuple[jax.Array, jax.Array]:
            head, block = head_and_block
            loss, tokens = jax.value_and_grad(generator_loss, argnums=1)(head, features[block + 1])
            return jax.lax.dynamic_update_index_in_dim(gradient, tokens, block + 1, 0), loss

        feature_gradient, losses = jax.lax.scan(
            through_head, jnp.zeros_like(features), (heads["heads"], jnp.asarray(self.hooked))
        )
        (x0_gradient,) = renoise_vjp(teacher_vjp(feature_gradient))

        def distillation_loss(x0_hat: jax.Array, teacher_x0: jax.Array) -> jax.Array:
            weight = expand(1 - t_fake, x0_hat)
            return jnp.mean(weight * jnp.square(x0_hat - jax.lax.stop_gradient(teacher_x0)))

        metrics: Metrics = {"loss/generator": jnp.sum(losses)}
        if self.distillation_weight:
            teacher_x0 = predict_x0(x_t_hat, v, t_fake)
            distance, gradient = jax.value_and_grad(distillation_loss)(x0_hat, teacher_x0)
            x0_gradient += self.distillation_weight * gradient
            metrics["loss/distillation"] = distance

        (student_gradient,) = student_vjp(x0_gradient)
        return student_gradient, metrics, x0_hat, more

    def _heads_gradient(
        self,
        heads: Params,
        step: jax.Array,
        frozen: Params,
        samples: Samples,
        noise: Noise,
        x0_hat: jax.Array,
        features: jax.Array | None = None,
    ) -> Judged:
        """The heads' gradient on samples, or a micro-batch of them.

        Without `features` of x0_hat, `[L + 1, B, N, D]`, a pass of the teacher makes them, and each
        is judged where it arises.
        """
        x_0, context, pooled = samples.x_0, samples.context, samples.pooled
        grid = self._grid(x_0)
        (eps_fake, t_fake), (eps_real, t_real) = noise
        fake_loss = self._fake_loss(grid, t_fake, pooled)
        if features is None:
            gradient, fake = self._judge(
                fake_loss, heads, frozen, x0_hat, eps_fake, t_fake, context, pooled
            )
        else:
            gradient, fake = _over_heads(fake_loss, heads, features, self.hooked)
        real_gradient, real = self._judge(
            self._real_loss(grid, t_real, pooled, step),
            heads, frozen, x_0, eps_real, t_real, context, pooled,
        )  # fmt: skip
        if samples.other is not None:
            other_context, other_pooled, weight = samples.other
            misaligned_gradient, _ = self._judge(
                self._fake_loss(grid, t_real, other_pooled, weight),
                heads, frozen, x_0, eps_real, t_real, other_context, other_pooled,
            )  # fmt: skip
            share = self.misaligned_share
            gradient = jax.tree.map(
                lambda a, b: (1 - share) * a + share * b, gradient, misaligned_gradient
            )
        accuracy = jnp.stack([fake.pop("accuracy").T, real.pop("accuracy").T], axis=1)
        return Judged(jax.tree.map(jnp.add, gradient, real_gradient), (fake, real), accuracy)

    def _accumulated_heads_gradient(
        self,
        heads: Params,
        step: jax.Array,
        frozen: Params,
        samples: Samples,
        noise: Noise,
        x0_hat: jax.Array,
    ) -> Judged:
        """The same on all micro-batches."""

        def part(item: tuple[Samples, Noise, jax.Array]) -> tuple[Any, Any, Any]:
            return self._heads_gradient(heads, step, frozen, *item)

        return Judged(*accumulate(part, (samples, noise, x0_hat), self.accumulation, self.heads))

    def _update_heads(
        self,
        heads: Heads,
        step: jax.Array,
        frozen: Params,
        samples: Samples,
        x0_hat: jax.Array,
        keys: jax.Array,
    ) -> Heads:
        """Heads after one update for each key of fresh re-noising, forward passes alone."""

        def update(heads: Heads, key: jax.Array) -> tuple[Heads, None]:
            noise = self._renoise(key, samples.x_0)
            judged = self._accumulated_heads_gradient(
                heads[0], step, frozen, samples, noise, x0_hat
            )
            return self._apply(heads, judged.gradient), None

        return jax.lax.scan(update, heads, keys)[0] if len(keys) else heads

    def _apply(self, heads: Heads, gradient: Params) -> Heads:
        parameters, optimizer = heads
        updates, optimizer = self.heads_optimizer.build().update(gradient, optimizer, parameters)
        return optax.apply_updates(parameters, updates), optimizer

    def _grid(self, latents: jax.Array) -> tuple[int, int]:
        return latents.shape[1] // self.patch, latents.shape[2] // self.patch

    def _samples(self, key: jax.Array, batch: Batch, step: jax.Array) -> Samples:
        """What a step has of the batch, all of it drawn before any of it is split."""
        x_0, context, pooled = batch["latents"], batch["context"], batch["pooled"]
        other = None
        if self.misaligned_share:
            other_context, other_pooled = jnp.roll(context, 1, 0), jnp.roll(pooled, 1, 0)
            # Where both share a prompt the pair is aligned after all.
            differs = jnp.any(other_pooled != pooled, axis=-1).astype(jnp.float32)
            weight = differs / jnp.maximum(jnp.mean(differs), 1 / differs.size)
            other = other_context, other_pooled, weight
        return Samples(x_0, context, pooled, *self._student_input(key, x_0, step), other)

    def _student_input(
        self, key: jax.Array, x_0: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x_t and t: pure noise only where t is 1."""
        time_key, noise_key = jax.random.split(key)
        probabilities = jnp.where(
            step < self.warmup_steps,
            jnp.asarray(self.warmup_probabilities),
            jnp.asarray(self.probabilities),
        )
        t = timesteps.discrete(time_key, x_0.shape[0], self.timesteps, probabilities)
        return interpolate(x_0, jax.random.normal(noise_key, x_0.shape), t), t

    def _renoise(self, key: jax.Array, x_0: jax.Array) -> Noise:
        """Noise and t_hat for fake, and for real."""

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            time_key, noise_key = jax.random.split(key)
            t_hat = timesteps.logit_normal(
                time_key, x_0.shape[0], self.renoise_mean, self.renoise_std
            )
            return jax.random.normal(noise_key, x_0.shape), t_hat

        fake_key, real_key = jax.random.split(key)
        fake = draw(fake_key)
        return fake, fake if self.same_renoise else draw(real_key)

    def _fake_loss(
        self,
        grid: tuple[int, int],
        t_hat: jax.Array,
        pooled: jax.Array,
        weight: jax.Array | None = None,
    ) -> HeadLoss:
        """Loss of one head on features of fake samples, each of a weight (`[B]`; None: of 1)."""
        adversarial = ADVERSARIAL_LOSSES[self.loss]

        def loss(head: Params, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            logits = self.head(head, tokens, grid, t_hat, pooled)
            values = adversarial.fake(logits)
            if weight is not None:
                values *= weight[:, None, None]
            value = jnp.mean(values)
            return value / len(self.hooked), _statistics(logits, logits < 0, value)

        return loss

    def _real_loss(
        self, grid: tuple[int, int], t_hat: jax.Array, pooled: jax.Array, step: jax.Array
    ) -> HeadLoss:
        """Loss of one head on features of real samples, with R1 on those features."""
        adversarial = ADVERSARIAL_LOSSES[self.loss]

        def r1(head: Params, tokens: jax.Array) -> jax.Array:
            def total(tokens: jax.Array) -> jax.Array:
                return jnp.sum(self.head(head, tokens, grid, t_hat, pooled))

            gradient = jax.grad(total)(tokens.astype(jnp.float32))
            return jnp.sum(jnp.square(gradient)) / tokens.shape[0]

        def loss(head: Params, tokens: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            logits = self.head(head, tokens, grid, t_hat, pooled)
            value = jnp.mean(adversarial.real(logits))
            statistics = _statistics(logits, logits > 0, value)
            if self.r1_gamma:
                due = step % self.r1_interval == 0
                penalty = jax.lax.cond(due, r1, lambda *_: jnp.zeros(()), head, tokens)
                # NaN is left out of the mean that is logged.
                statistics["r1"] = jnp.where(due, penalty, jnp.nan)
                value += 0.5 * self.r1_gamma * self.r1_interval * penalty
            return value / len(self.hooked), statistics

        return loss

    def _judge(
        self,
        loss: HeadLoss,
        heads: Params,
        frozen: Params,
        x_0: jax.Array,
        eps: jax.Array,
        t_hat: jax.Array,
        context: jax.Array,
        pooled: jax.Array,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """Gradient of the heads and statistics `[K, ...]` on re-noised latents.

        Each head runs inside the teacher's scan, as soon as its features exist, so that none are
        kept: the loss is a sum over blocks.
        """
        slots = [self.hooked.index(b) if b in self.hooked else -1 for b in range(self.depth)]

        def one(slot: jax.Array, tokens: jax.Array) -> Any:
            head = jax.tree.map(lambda leaf: leaf[slot], heads["heads"])
            gradient, statistics = jax.grad(loss, has_aux=True)(head, tokens)
            return gradient, statistics

        def tap(block: jax.Array, tokens: jax.Array) -> Any:
            tokens = jax.lax.stop_gradient(tokens)
            if len(self.hooked) == self.depth:
                return one(block, tokens)
            slot = jnp.asarray(slots)[block]
            empty = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, slot, tokens)
            )
            return jax.lax.cond(slot >= 0, one, lambda *_: empty, slot, tokens)

        x_t_hat = jax.lax.stop_gradient(interpolate(x_0, eps, t_hat))
        _, results = self.teacher(frozen, x_t_hat, t_hat, context, pooled, tap=tap)
        if len(self.hooked) != self.depth:
            results = jax.tree.map(lambda leaf: leaf[jnp.asarray(self.hooked)], results)
        gradient, statistics = results
        return {"heads": gradient}, statistics


def _over_heads(
    loss: HeadLoss, heads: Params, features: jax.Array, hooked: tuple[int, ...]
) -> tuple[Params, dict[str, jax.Array]]:
    """Gradient of the heads and statistics `[K, ...]` on features `[L + 1, B, N, D]`."""

    def body(_: None, head_and_block: Any) -> tuple[None, Any]:
        head, block = head_and_block
        return None, jax.grad(loss, has_aux=True)(head, features[block + 1])

    _, (gradient, statistics) = jax.lax.scan(body, None, (heads["heads"], jnp.asarray(hooked)))
    return {"heads": gradient}, statistics


def _statistics(logits: jax.Array, correct: jax.Array, loss: jax.Array) -> dict[str, jax.Array]:
    """Of one head: loss [], mean logit [] and share of correct locations `[B]`."""
    return {
        "loss": loss,
        "logit": jnp.mean(logits),
        "accuracy": jnp.mean(correct.astype(jnp.float32), axis=(1, 2)),
    }


def _discriminator_metrics(
    fake: dict[str, jax.Array],
    real: dict[str, jax.Array],
    accuracy: jax.Array,
    t_fake: jax.Array,
    t_real: jax.Array,
) -> Metrics:
    """Means over heads, values per head `[K]`, accuracy by band of t_hat (NaN: none in band)."""
    metrics = {
        "logit/real": real["logit"],
        "logit/fake": fake["logit"],
        "accuracy/head": jnp.mean(accuracy, axis=(0, 1)),
        "accuracy": jnp.mean(accuracy),
    }
    if "r1" in real:
        metrics["r1"] = jnp.mean(real["r1"])
    t_hat = jnp.concatenate([t_fake, t_real])
    by_sample = jnp.mean(accuracy, axis=-1).T.reshape(-1)  # fake, then real
    for low, high in zip(BANDS[:-1], BANDS[1:], strict=True):
        inside = (t_hat >= low) & (t_hat < high)
        metrics[f"accuracy/t_hat_{low:.2f}_{high:.2f}"] = jnp.mean(by_sample, where=inside)
    return metrics
