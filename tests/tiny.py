"""Small networks and batches that several tests share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ladd_jax.models.base import OTHER, PREFERENCE
from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.sd3.transformer import MMDiTConfig, mmdit
from ladd_jax.objectives.critics.features import FeatureCritic
from ladd_jax.objectives.ladd import LADD
from ladd_jax.training.optimizers import Optimizer

B, T, CONTEXT, POOLED = 8, 5, 12, 10


def mmdit_config(**changes):
    fields = dict(
        depth=2, width=32, num_heads=2, in_channels=2, out_channels=2, context_width=CONTEXT,
        pooled_width=POOLED, position_table=8, position_base=8, remat="none",
    )  # fmt: skip
    return MMDiTConfig(**(fields | changes))


def random_params(model, seed=0, scale=0.3):
    """Parameters with no zeros in them: adaLN-zero would hide what a test looks for."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        fan_in = shape[-2] if len(shape) > 1 else 1
        noise = scale * rng.standard_normal(shape) / fan_in**0.5
        # Of NumPy, here and below: JAX would compile each operation for each shape.
        return jax.device_put(np.float32(noise + (0.05 if len(shape) == 1 else 0)))

    return jax.tree.map(lambda leaf: draw(leaf.shape), model.shapes)


def batch(seed=0, height=8, width=4, size=B):
    rng = np.random.default_rng(seed)
    shapes = ((size, height, width, 2), (size, T, CONTEXT), (size, POOLED))
    latents, context, pooled = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    return {"latents": latents, "cond": {"context": context, "pooled": pooled}}


def noise_keys(seed=0, size=B):
    """What a batch has besides for pairs of noise and sample."""
    return {"noise_keys": np.random.default_rng(seed).integers(0, 2**32, (size, 2), np.uint32)}


def compared(batch, signs=(1.0, -1.0) * (B // 2)):
    """The batch with other latents beside its own, and which of both is preferred."""
    other = jnp.asarray(np.random.default_rng(1).standard_normal(batch["latents"].shape), "float32")
    sign = jnp.asarray(signs, jnp.float32)[:, None]
    return batch | {"cond": batch["cond"] | {OTHER: other, PREFERENCE: sign}}


def share_a_prompt(batch):
    """The batch whose second sample has the prompt of the first: no misaligned pair."""
    cond = {name: array.at[1].set(array[0]) for name, array in batch["cond"].items()}
    return batch | {"cond": cond}


network = functools.cache(mmdit)

PROPORTIONAL = Optimizer(1.0, epsilon=1.0)
"""Its first update is nearly the gradient, not its sign."""


@functools.cache
def feature_critic(config, head_config, hooked):
    count = len(hooked) or config.blocks
    return FeatureCritic(network(config), head(head_config), head_stack(head_config, count), hooked)


def ladd(config=None, head_changes=None, **changes):
    """A LADD objective on a tiny network; equal ones share what `step` and `init` compile."""
    config = config or mmdit_config()
    head_config = HeadConfig(
        config.width, config.pooled_width, channels=16, groups=4, **(head_changes or {})
    )
    hooked = tuple(changes.pop("hooked_blocks", ()))
    fields = dict(
        student=network(config), critic=feature_critic(config, head_config, hooked),
        optimizer=Optimizer(1e-3), heads_optimizer=Optimizer(2e-3), warmup_steps=0, r1_gamma=0.0,
        ema_decay=0.9,
    )  # fmt: skip
    return LADD(**(fields | changes))


@functools.cache
def step(objective):
    """The objective's step, compiled once for all tests of a process."""
    return jax.jit(objective.step)


@functools.cache
def donating_step(objective):
    """The same, as training compiles it: the state is donated."""
    return jax.jit(objective.step, donate_argnums=0)


@functools.cache
def init(objective):
    """The objective's first state, compiled once for all tests of a process."""
    return jax.jit(objective.init)


def ladd_state(objective, seed=1):
    """(state, frozen) with different parameters for student and teacher."""
    frozen = {"teacher": random_params(objective.critic.teacher, seed)}
    student = random_params(objective.student, seed + 1)
    return init(objective)(jax.random.PRNGKey(seed + 2), student), frozen


def max_difference(a, b):
    """Largest absolute difference of two trees over the largest absolute value."""
    pairs = _pairs(a, b)
    difference = max(np.max(np.abs(x - y)) for x, y in pairs)
    return float(difference / max(max(np.max(np.abs(y)) for _, y in pairs), 1e-30))


def gradient_difference(ours, theirs):
    """The worst of two trees' leaves: its largest difference over its largest value.

    Some gradients are zero but for rounding, as softmax does not see the bias of keys: a leaf's
    value counts as at least a thousandth of the tree's.
    """
    pairs = _pairs(ours, theirs)
    largest = max(np.max(np.abs(b)) for _, b in pairs)
    return float(
        max(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-3 * largest) for a, b in pairs)
    )


def _pairs(a, b):
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (a, b))
    return list(zip(*leaves, strict=True))
