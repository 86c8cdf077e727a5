"""Small networks and batches that several tests share."""

import jax
import jax.numpy as jnp

from ladd_jax.models.heads import HeadConfig, head, head_stack
from ladd_jax.models.mmdit import MMDiTConfig, mmdit
from ladd_jax.objectives.base import Optimizer
from ladd_jax.objectives.ladd import LADD

B, T, CONTEXT, POOLED = 8, 5, 12, 10


def mmdit_config(**changes):
    fields = dict(
        depth=2, width=32, num_heads=2, in_channels=2, out_channels=2, context_width=CONTEXT,
        pooled_width=POOLED, position_table=8, position_base=8, remat="none",
    )  # fmt: skip
    return MMDiTConfig(**(fields | changes))


def random_params(model, seed=0, scale=0.3):
    """Parameters with no zeros in them: adaLN-zero would hide what a test looks for."""
    shapes, tree = jax.tree.flatten(model.shapes)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(shapes))
    return tree.unflatten(
        [
            scale * jax.random.normal(k, s.shape) / max(1, s.shape[-2] if s.ndim > 1 else 1) ** 0.5
            + (0.05 if s.ndim == 1 else 0)
            for k, s in zip(keys, shapes, strict=True)
        ]
    )


def batch(seed=0, height=8, width=4, size=B):
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    return {
        "latents": jax.random.normal(keys[0], (size, height, width, 2)),
        "context": jax.random.normal(keys[1], (size, T, CONTEXT)),
        "pooled": jax.random.normal(keys[2], (size, POOLED)),
    }


def ladd(config=None, head_changes=None, **changes):
    """A LADD objective on a tiny network, with the stack that makes its heads."""
    config = config or mmdit_config()
    head_config = HeadConfig(
        config.width, config.pooled_width, channels=16, groups=4, **(head_changes or {})
    )
    model = mmdit(config)
    fields = dict(
        student=model, teacher=model, head=head(head_config), depth=config.depth, patch=2,
        optimizer=Optimizer(1e-3), heads_optimizer=Optimizer(2e-3),
        warmup_steps=0, r1_gamma=1e-2,
    )  # fmt: skip
    objective = LADD(**(fields | changes))
    return objective, head_stack(head_config, len(objective.hooked))


def ladd_state(objective, stack, seed=1):
    """(state, teacher) with different parameters for each."""
    teacher = random_params(objective.teacher, seed)
    student = random_params(objective.student, seed + 1)
    heads = stack.init(jax.random.PRNGKey(seed + 2))
    return objective.init(jax.random.PRNGKey(seed + 3), student, heads), teacher


def max_difference(a, b):
    """Largest absolute difference of two trees over the largest absolute value."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    difference = max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)
    return difference / max(max(float(jnp.max(jnp.abs(y))) for _, y in pairs), 1e-30)
