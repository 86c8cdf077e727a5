"""Latent Adversarial Diffusion Distillation (Sauer et al. 2024, arXiv 2403.12015).

One step updates the heads on a batch and then the student through the updated heads on the same
batch. The teacher is frozen and its features do not depend on the heads, so one student forward
and one teacher forward each for fake and real serve both updates.

B batch, H W latent grid, C channels, K heads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ladd_jax.diffusion.flow import expand
from ladd_jax.diffusion.samplers import sample_noise
from ladd_jax.models.base import GUIDANCE, Backbone, Model, Params
from ladd_jax.objectives import update_orders
from ladd_jax.objectives.adversarial import (
    ADVERSARIAL_LOSSES,
    R1,
    Due,
    Head,
    Penalty,
    RelativisticLoss,
    Statistics,
    fake_loss,
    in_pairs,
    pair_loss,
    real_loss,
)
from ladd_jax.objectives.base import (
    Batch,
    Metrics,
    TrainState,
    first_state,
    student_x0,
    unless_skipped,
    updated,
)
from ladd_jax.objectives.consistency import Consistency
from ladd_jax.objectives.critics.base import Critic, Noise, Opened
from ladd_jax.objectives.discriminator_metrics import discriminator_metrics
from ladd_jax.objectives.ladd_settings import LADDSettings
from ladd_jax.objectives.passes import Drawn, Heads, Passes, Verdict
from ladd_jax.objectives.terms import terms_of
from ladd_jax.objectives.terms.base import (
    FEATURE_GRADIENT,
    PREDICTED_X0,
    REAL_FEATURES,
    Seen,
    Term,
    total,
)
from ladd_jax.training.optimizers import Optimizer


@dataclasses.dataclass(frozen=True)
class LADD(LADDSettings):
    """The distillation of a frozen teacher into a student of few steps.

    Attributes:
      student: the student, which predicts velocity.
      critic: the critic, which tells real from fake; the paper's is
        `critics.features.FeatureCritic`.
      optimizer: optimizer of the student.
      heads_optimizer: optimizer of the heads; its schedule counts their updates, `head_updates` a
        step.
      terms: terms of the student's loss; None for those that the settings name.
      own_terms: terms besides those that the settings name.
      penalty: the penalty on the heads' inputs; None for R1, as the settings say.
      consistency: the loss that `consistency_weight` weighs, at points of its own; None for none.
    """

    student: Backbone
    critic: Critic
    optimizer: Optimizer
    heads_optimizer: Optimizer
    terms: tuple[Term, ...] | None = None
    own_terms: tuple[Term, ...] = ()
    penalty: Penalty | None = None
    consistency: Consistency | None = None

    def step(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[TrainState, Metrics]:
        """Updates the heads, then the student through them; neither if a gradient is not finite.

        `frozen` holds the trees of `networks`.
        """
        # 1. Noise the latents: x_t at one of the student's times t. Draw t_hat and its noise, too.
        drawn, head_keys = self.draw(state, frozen, batch)
        # With an interval of the student, most steps update the heads alone.
        is_due = (state.step + 1) % self.student_interval == 0
        passes = update_orders.passes_if_due(
            self.student_interval,
            is_due,
            lambda: self._passes(state, frozen, batch, drawn, head_keys),
            lambda: update_orders.of_heads(self, state, frozen, drawn, head_keys),
        )
        # 8. The student is updated, and its average follows.
        new = updated(state, self.optimizer, passes.student_gradient, self.ema_decay)
        if self.student_interval > 1:
            new = unless_skipped(~is_due, new, state)
        heads = passes.heads.params
        if self.refreshed_heads:
            # Folds in the first number after the one that `_hold` uses. The optimizer keeps the
            # head's moments: gradients of the new head are about as large.
            key = jax.random.fold_in(state.key, state.step)
            key = jax.random.fold_in(key, 2 + self.head_updates)
            heads = self.critic.refreshed(heads, self.refreshed_heads, key)
        new = dataclasses.replace(new, heads=heads, heads_optimizer=passes.heads.optimizer)
        # Both or neither: the student's gradient goes through the updated heads.
        metrics = self._metrics(drawn, passes, is_due)
        skipped = self._skipped(passes)
        metrics["skipped"] = skipped.astype(jnp.float32)
        if self.student_interval > 1:
            metrics["student_updated"] = is_due.astype(jnp.float32)
        return unless_skipped(skipped, new, state), metrics

    def _passes(
        self,
        state: TrainState,
        frozen: dict[str, Any],
        batch: Batch,
        drawn: Drawn,
        head_keys: jax.Array,
    ) -> Passes:
        """The passes of a step that updates the heads and then the student."""
        if self.accumulation > 1:
            passes = update_orders.in_micro_batches(self, state, frozen, drawn, head_keys)
        else:
            # 2. The student predicts x_0.
            x0_hat, student_vjp = jax.vjp(
                lambda params: self.predict(params, frozen, drawn), state.params
            )
            # 3. Its prediction is re-noised and shown to the teacher: features, kept once.
            fake, real = self.open(frozen, drawn, x0_hat)
            # 4. The heads judge it and the re-noised data, whose features are not kept.
            heads = Heads(state.heads, state.heads_optimizer)
            heads = update_orders.update_heads(self, heads, state, frozen, drawn, x0_hat, head_keys)
            verdict = self.judge(heads.params, state.step, frozen, drawn, x0_hat, fake, real)
            # 5. The heads are updated.
            heads = self.apply(heads, verdict.gradient)
            # 6. The student's loss: through the updated heads, back along the same features.
            x0_bar, losses = self.student_loss(heads.params, state.step, drawn, x0_hat, fake, real)
            (student_gradient,) = student_vjp(x0_bar)
            passes = Passes(student_gradient, losses, x0_hat, heads, verdict)
        if self.consistency is None:
            return passes
        # 7. The student is held to the data generator's paths, at points of their own.
        return self._hold(self.consistency, passes, state, frozen, batch)

    def diagnose(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> dict[str, jax.Array]:
        """Which forward passes of a step are not finite, for each of its samples.

        It is a program of its own, which costs nothing until something is wrong.

        Returns:
          `data` and `student`: 1 where the latents or the prediction are not finite, float32 `[B]`;
          `heads`: 1 where a head's logits on the prediction are not, `[K, B]`; `t_hat`: `[B]`.
        """
        drawn, _ = self.draw(state, frozen, batch)
        x0_hat = self.predict(state.params, frozen, drawn)

        def bad(x: jax.Array) -> jax.Array:
            finite = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
            return 1.0 - finite.astype(jnp.float32)

        def judge(head: Head, inputs: jax.Array) -> tuple[jax.Array, Statistics]:
            logits = head(inputs)
            return jnp.mean(logits), {"bad": bad(logits)}

        _, fakes = self.critic.judge(
            state.heads, frozen, x0_hat, drawn.fake_noise, drawn.cond, judge
        )
        return {
            "data": bad(drawn.x_0),
            "student": bad(x0_hat),
            "heads": fakes["bad"],
            "t_hat": drawn.fake_noise.t_hat,
        }

    def init(self, key: jax.Array, params: Params) -> TrainState:
        """State before the first step.

        Args:
          key: raw PRNG key.
          params: parameters of the network that the student begins as, usually the data
            generator's, in any dtype.
        """
        heads_key, state_key = jax.random.split(key)
        # Not 0 or 1: folding these in gives the two keys of the split above.
        params = self.student.begin(jax.random.fold_in(key, 2), params)
        heads = self.critic.heads.init(heads_key)
        return first_state(state_key, params, self.optimizer, heads, self.heads_optimizer)

    @property
    def loss_terms(self) -> tuple[Term, ...]:
        """The terms of the student's loss."""
        return terms_of(self) + self.own_terms if self.terms is None else self.terms

    @property
    def trained(self) -> Backbone:
        """The student."""
        return self.student

    @property
    def networks(self) -> dict[str, Model]:
        """The networks whose parameters come in `frozen`, by name."""
        own = {} if self.consistency is None else self.consistency.networks
        return self.critic.networks | own | self.student.constants

    @property
    def heads(self) -> Model:
        """The critic's trainable part."""
        return self.critic.heads

    @property
    def reads_noise_keys(self) -> bool:
        """Whether a batch has the `noise_keys` of its records."""
        return bool(self.paired_weight)

    @property
    def heads_penalty(self) -> Penalty | None:
        """The penalty on the heads' inputs; None for none."""
        if self.penalty is not None or not self.r1_gamma:
            return self.penalty
        return R1(self.r1_gamma, self.r1_interval, self.r1_noise)

    @property
    def needs(self) -> frozenset[str]:
        """What the terms ask of the step."""
        return frozenset().union(*(term.needs for term in self.loss_terms))

    @property
    def forward_units(self) -> tuple[float, float]:
        """(student, teacher): forward passes over the batch that a step's model FLOPs amount to.

        With a `student_interval` they are the mean over steps with and without the student's
        update; steps without it only go forward. `critic_units` counts the passes of a critic's
        further networks.

        A backward pass counts as 2, or as 1 where the parameters are constants. The student goes
        forward and backward; the teacher goes forward and backward on fakes and forward on real
        samples; each further update of the heads, and misaligned pairs in each update (together
        with their real samples once more if the loss is relativistic), only go forward. Heads that
        are updated by several micro-batches take a second pass of both, forward on fakes, and on
        real samples if a term needs their features. A term that goes back from features to the
        prediction by itself adds a backward pass of the teacher. The heads, small next to a
        transformer, are left out. Inputs from the student's own sampling take a forward pass for
        each time but the last; `consistency` adds passes of its own, and its passes of the data
        generator, which has the student's architecture, count as the student's.
        """
        # Gradients of the adapters of a constant network are small beside a pass.
        backward = 1 if self.student.constants else 2
        held = 0 if self.consistency is None else self.consistency.forward_units
        of_student = (backward + self._again + held) / self.student_interval
        return 1 + of_student + self.own_passes, self.critic_units.get("teacher", 0)

    @property
    def critic_units(self) -> dict[str, float]:
        """Forward passes of the critic's networks that a step's model FLOPs amount to, by name."""
        predictions = (PREDICTED_X0 in self.needs) / self.student_interval
        return self.critic.units(self.critic_passes, predictions)

    @property
    def followed_units(self) -> float:
        """The part of the student's `forward_units` that the followed network takes."""
        held = 0 if self.consistency is None else self.consistency.followed_units
        return held / self.student_interval

    @property
    def critic_passes(self) -> float:
        """Forward passes of the network below the heads, counted as in `forward_units`."""
        misaligned = self.head_updates if self.misaligned_share else 0
        if isinstance(ADVERSARIAL_LOSSES[self.loss], RelativisticLoss):
            misaligned *= 2
        real = self._again * (REAL_FEATURES in self.needs)
        back = sum(FEATURE_GRADIENT in term.needs for term in self.loss_terms)
        of_student = 1 + self._again + real + back
        return 2 * self.head_updates + misaligned + of_student / self.student_interval

    @property
    def _again(self) -> int:
        """Second passes for heads that are updated by several micro-batches."""
        return int(self.accumulation > 1 and self.accumulated_heads == "updated")

    def draw(
        self, state: TrainState, frozen: dict[str, Any], batch: Batch
    ) -> tuple[Drawn, jax.Array]:
        """The batch with its times and noises, and a key for each further update of the heads."""
        x_0, cond = batch["latents"], batch["cond"]
        key = jax.random.fold_in(state.key, state.step)
        student_key, *_, renoise_key = keys = jax.random.split(key, 1 + self.head_updates)
        misaligned = None
        if self.misaligned_share:
            # The guidance scale stays: it differs for every sample, and would make a pair count as
            # misaligned whose prompts are the same.
            other = {
                name: array if name == GUIDANCE else jnp.roll(array, 1, 0)
                for name, array in cond.items()
            }
            # Where both have the same condition the pair is aligned after all.
            differences = [
                jnp.any(a != b, axis=tuple(range(1, a.ndim)))
                for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(cond), strict=True)
            ]
            differs = jnp.any(jnp.stack(differences), axis=0).astype(jnp.float32)
            misaligned = other, differs / jnp.maximum(jnp.mean(differs), 1 / differs.size)
        x_t, t = self.student_input(student_key, x_0, state.step)
        own = None
        if self.own_share:
            # Not 0 or 1: folding these in gives the two keys of the split in `student_input`.
            own_key = jax.random.fold_in(student_key, 2)
            whole = self.student.complete(state.params, frozen)
            x_t, own = self.own_input(own_key, self.student, whole, x_t, t, cond)
        paired = None
        if self.paired_weight:
            drawn = jax.random.uniform(jax.random.fold_in(student_key, 3), t.shape)
            paired = (t == 1) & (drawn < self.paired_share)
            noise = sample_noise(batch["noise_keys"], 0, x_0.shape[1:])
            x_t = jnp.where(expand(paired, x_t), noise, x_t)
        noises = self._noises(renoise_key, x_0, t)
        return Drawn(x_0, cond, x_t, t, misaligned, own, paired, *noises), keys[1:-1]

    def renoised(self, drawn: Drawn, key: jax.Array) -> Drawn:
        """The batch with other re-noising."""
        fake, real, penalty_keys = self._noises(key, drawn.x_0, drawn.t)
        return drawn._replace(fake_noise=fake, real_noise=real, penalty_keys=penalty_keys)

    def _noises(
        self, key: jax.Array, x_0: jax.Array, t: jax.Array
    ) -> tuple[Noise, Noise, jax.Array | None]:
        """What `renoise` gives, and the keys of the penalty's noise."""
        penalty = self.heads_penalty
        if penalty is None or not penalty.keyed:
            return *self.renoise(key, x_0, t), None
        # Not 0 or 1: folding these in gives the two keys of the split in `renoise`.
        keys = jax.random.split(jax.random.fold_in(key, 2), len(x_0))
        return *self.renoise(key, x_0, t), keys

    def renoise(self, key: jax.Array, x_0: jax.Array, t: jax.Array) -> tuple[Noise, Noise]:
        """Noise and t_hat for fake samples, predicted from x_t, and for real ones."""

        def draw(key: jax.Array) -> Noise:
            time_key, noise_key = jax.random.split(key)
            t_hat = self.renoise_times(time_key, t)
            return Noise(jax.random.normal(noise_key, x_0.shape), t_hat)

        fake_key, real_key = jax.random.split(key)
        fake = draw(fake_key)
        return fake, fake if self.same_renoise else draw(real_key)

    def predict(self, params: Params, frozen: dict[str, Any], drawn: Drawn) -> jax.Array:
        """The student's x_0 from a point between the data and noise, `[B, H, W, C]`."""
        return student_x0(self.student, params, frozen, drawn.x_t, drawn.t, drawn.cond)

    def open(
        self, frozen: dict[str, Any], drawn: Drawn, x0_hat: jax.Array
    ) -> tuple[Opened, Opened | None]:
        """The student's samples opened by the critic; the data too, where a term needs them."""
        fake = self.critic.open(frozen, x0_hat, drawn.fake_noise, drawn.cond)
        if REAL_FEATURES not in self.needs:
            return fake, None
        return fake, self.critic.open(frozen, drawn.x_0, drawn.real_noise, drawn.cond)

    def judge(
        self,
        heads: Params,
        step: jax.Array,
        frozen: dict[str, Any],
        drawn: Drawn,
        x0_hat: jax.Array,
        fake: Opened | None = None,
        real: Opened | None = None,
    ) -> Verdict:
        """The heads' verdict; samples that are not opened yet go through the critic once more."""
        critic, form = self.critic, ADVERSARIAL_LOSSES[self.loss]
        if isinstance(form, RelativisticLoss):
            return self._judge_pairs(form, heads, step, frozen, drawn, x0_hat, fake, real)
        on_fake = fake_loss(form)
        on_real = real_loss(form, self.heads_penalty, Due(step, drawn.penalty_keys))
        gradient, fakes = (
            critic.judge(heads, frozen, x0_hat, drawn.fake_noise, drawn.cond, on_fake)
            if fake is None
            else fake.judge(heads, on_fake)
        )
        real_gradient, reals = (
            critic.judge(heads, frozen, drawn.x_0, drawn.real_noise, drawn.cond, on_real)
            if real is None
            else real.judge(heads, on_real)
        )
        if drawn.misaligned is not None:
            other, weight = drawn.misaligned
            misaligned, _ = critic.judge(
                heads, frozen, drawn.x_0, drawn.real_noise, other, fake_loss(form, weight)
            )
            gradient = self._with_misaligned(gradient, misaligned)
        gradient = jax.tree.map(jnp.add, gradient, real_gradient)
        return _verdict(gradient, fakes, reals)

    def _judge_pairs(
        self,
        form: RelativisticLoss,
        heads: Params,
        step: jax.Array,
        frozen: dict[str, Any],
        drawn: Drawn,
        x0_hat: jax.Array,
        fake: Opened | None,
        real: Opened | None,
    ) -> Verdict:
        """`judge` where a loss sees a fake sample beside its real one."""
        of_real = drawn.x_0, drawn.real_noise, drawn.cond
        due = Due(step, in_pairs(drawn.penalty_keys, drawn.penalty_keys))

        def pass_by(of_fake: Any, weight: jax.Array | None = None) -> tuple[Params, Statistics]:
            on_pairs = pair_loss(form, self.heads_penalty, due, weight)
            x_0, noise, cond = in_pairs(of_fake, of_real)
            return self.critic.judge(heads, frozen, x_0, noise, cond, on_pairs)

        if fake is None or real is None:
            gradient, statistics = pass_by((x0_hat, drawn.fake_noise, drawn.cond))
        else:
            on_pairs = pair_loss(form, self.heads_penalty, due)
            gradient, statistics = fake.beside(real).judge(heads, on_pairs)
        if drawn.misaligned is not None:
            other, weight = drawn.misaligned
            misaligned, _ = pass_by((drawn.x_0, drawn.real_noise, other), weight)
            gradient = self._with_misaligned(gradient, misaligned)
        return _verdict(gradient, statistics["fake"], statistics["real"])

    def _with_misaligned(self, gradient: Params, misaligned: Params) -> Params:
        """The heads' gradient on fakes, a share of which are misaligned pairs."""
        share = self.misaligned_share
        return jax.tree.map(lambda a, b: (1 - share) * a + share * b, gradient, misaligned)

    def apply(self, heads: Heads, gradient: Params) -> Heads:
        """The heads after an update."""
        return heads.updated(self.heads_optimizer, gradient)

    def student_loss(
        self,
        heads: Params,
        step: jax.Array,
        drawn: Drawn,
        x0_hat: jax.Array,
        fake: Opened,
        real: Opened | None,
    ) -> tuple[jax.Array, Metrics]:
        """Gradient of the student's loss at x0_hat, and its terms."""
        seen = Seen(
            x0_hat=x0_hat,
            x_0=drawn.x_0,
            x_t=drawn.x_t,
            t=drawn.t,
            own=drawn.own,
            paired=drawn.paired,
            cond=drawn.cond,
            noise=drawn.fake_noise,
            heads=heads,
            fake=fake,
            real=real,
        )
        return total(self.loss_terms, seen, self.ramp, step)

    def _hold(
        self,
        consistency: Consistency,
        passes: Passes,
        state: TrainState,
        frozen: dict[str, Any],
        batch: Batch,
    ) -> Passes:
        """The passes with the gradient and the loss of consistency added."""
        # The first number after those that give the keys of the split in `draw`.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1 + self.head_updates)
        held = consistency.hold(key, state, frozen, batch)
        weight = self.ramp.weight("consistency", self.consistency_weight, state.step)
        gradient = jax.tree.map(lambda a, b: a + weight * b, passes.student_gradient, held.gradient)
        losses = passes.losses | {"loss/consistency": held.value}
        return passes._replace(student_gradient=gradient, losses=losses)

    def _skipped(self, passes: Passes) -> jax.Array:
        """Whether a gradient is not finite, bool []."""
        finite = jnp.isfinite(optax.tree.norm(passes.student_gradient))
        finite &= jnp.isfinite(optax.tree.norm(passes.verdict.gradient))
        if self.head_updates > 1:
            # That norm is of one update's gradient; the heads show whether another one was bad.
            finite &= jnp.isfinite(optax.tree.norm(passes.heads.params))
        return ~finite

    def _metrics(self, drawn: Drawn, passes: Passes, is_due: jax.Array) -> Metrics:
        (fake, real), accuracy = passes.verdict.statistics, passes.verdict.accuracy
        t_fake, t_real = drawn.fake_noise.t_hat, drawn.real_noise.t_hat
        penalty = self.heads_penalty
        penalties = {} if penalty is None else {penalty.name: jnp.mean(real["penalty"])}
        return passes.losses | {
            "loss/discriminator": jnp.mean(fake["loss"] + real["loss"]),
            "gradient_norm/student": jnp.where(
                is_due, optax.tree.norm(passes.student_gradient), jnp.nan
            ),
            "gradient_norm/heads": optax.tree.norm(passes.verdict.gradient),
            "x0_hat_std": jnp.std(passes.x0_hat),
            **discriminator_metrics(fake, real, accuracy, t_fake, t_real),
            **penalties,
        }


def _verdict(gradient: Params, fakes: Statistics, reals: Statistics) -> Verdict:
    accuracy = jnp.stack([fakes.pop("accuracy").T, reals.pop("accuracy").T], axis=1)
    return Verdict(gradient, (fakes, reals), accuracy)
