"""The transformer against diffusers' on random small networks: values, gradients, tables."""

import dataclasses
import random

import diffusers_mmdit as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ladd_jax.models.sd3.transformer import mmdit
from ladd_jax.models.sd3.weights import open_mmdit
from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.weights.layout import tensor_shapes
from ladd_jax.weights.transfer import write_tensors

FORWARD, GRADIENT = 1e-5, 1e-4

CASES = {
    "sd3": {},
    "sd3.5 large": {"qk_norm": True},
    "sd3.5 medium": {"depth": 3, "qk_norm": True, "dual": (0,)},
    "one block": {"depth": 1},
    "one block, dual": {"depth": 1, "dual": (0,), "qk_norm": True},
    "dual without norm, scattered": {"depth": 4, "dual": (1, 3)},
    "more channels in than out": {"in_channels": 7, "out_channels": 2},
    "patches of 3": {"patch": 3, "in_channels": 2, "out_channels": 4},
    "patches of 1": {"patch": 1},
    "one head": {"heads": 1, "head_width": 12},
    "odd table": {"table": 7, "sample_size": 6},
}


def random_case(seed):
    """An architecture and a shape of inputs."""
    draw = random.Random(seed)
    depth = draw.randint(1, 4)
    table = draw.randint(3, 9)
    network = dict(
        depth=depth,
        heads=draw.randint(1, 3),
        head_width=draw.choice([4, 8, 12]),
        patch=draw.randint(1, 3),
        in_channels=draw.randint(1, 5),
        out_channels=draw.randint(1, 5),
        context_width=draw.randint(1, 9),
        pooled_width=draw.randint(1, 9),
        table=table,
        sample_size=draw.randint(3, 16),
        qk_norm=draw.random() < 0.5,
        dual=tuple(i for i in range(depth) if draw.random() < 0.4),
    )
    shape = dict(
        batch=draw.randint(1, 3),
        rows=draw.randint(1, table),
        columns=draw.randint(1, table),
        tokens=draw.randint(1, 7),
    )
    return network, shape


RANDOM = {f"random {seed}": random_case(seed) for seed in range(20)}
NAMED = {name: (changes, {"batch": 1 + i % 2}) for i, (name, changes) in enumerate(CASES.items())}
QUICK = ("sd3", "sd3.5 large", "sd3.5 medium", "one block, dual", "patches of 3", "random 0")
EVERY = [
    pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow)
    for name, case in (NAMED | RANDOM).items()
]


class Pair:
    """The same network here and in diffusers, and inputs for both."""

    def __init__(self, network, shape, folder):
        self.theirs = reference.transformer(**network)
        self.inputs = reference.inputs(self.theirs, **shape)
        latents, t, context, pooled = self.inputs
        self.t, self.cond = t, {"context": context, "pooled": pooled}
        checkpoint = open_mmdit(reference.save(self.theirs, folder), jnp.float32)
        self.layout = checkpoint.layout
        self.params = checkpoint.load(make_mesh({}, jax.devices()[:1]))
        self.config = dataclasses.replace(checkpoint.config, remat="none")
        self.model = mmdit(self.config)

    def ours(self, params, latents):
        """Velocity of latents with all the channels that the network reads."""
        c, cond = self.config.out_channels, self.cond
        if self.config.in_channels > c:
            latents, cond = latents[..., :c], cond | {"channels": latents[..., c:]}
        return self.model(params, latents, self.t, cond)


def relative(ours, theirs):
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_velocity_is_that_of_diffusers(seed, tmp_path):
    pair = Pair(*random_case(seed), tmp_path / "t")
    with torch.no_grad():
        expected = reference.velocity(pair.theirs, *pair.inputs).numpy()
    assert relative(jax.jit(pair.ours)(pair.params, pair.inputs[0]), expected) < FORWARD


def test_the_random_networks_are_of_every_kind():
    networks, shapes = zip(*RANDOM.values(), strict=True)
    assert {network["depth"] for network in networks} == {1, 2, 3, 4}
    assert {network["qk_norm"] for network in networks} == {False, True}
    assert {bool(network["dual"]) for network in networks} == {False, True}
    assert {shape["batch"] for shape in shapes} == {1, 2, 3}
    odd = [n for n, s in RANDOM.values() if n["patch"] % 2 and s["rows"] * s["columns"] % 2]
    assert odd and any(shape["rows"] != shape["columns"] for shape in shapes)


@pytest.mark.parametrize(("network", "shape"), EVERY)
def test_velocity_and_gradients_are_those_of_diffusers(network, shape, tmp_path):
    pair = Pair(network, shape, tmp_path / "t")
    latents, *rest = pair.inputs

    leaf = torch.tensor(latents, requires_grad=True)
    expected = reference.velocity(pair.theirs, leaf, *rest)
    cotangent = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))

    @jax.jit
    def run(params, latents):
        v, pullback = jax.vjp(pair.ours, params, latents)
        return v, *pullback(cotangent)

    v, params_gradient, latents_gradient = run(pair.params, latents)
    assert relative(v, expected.detach().numpy()) < FORWARD
    assert relative(latents_gradient, leaf.grad.numpy()) < GRADIENT

    parameters = dict(pair.theirs.named_parameters())
    names = list(tensor_shapes(pair.layout, params_gradient))
    assert sorted(names) == sorted(parameters)
    ours = write_tensors(pair.layout, params_gradient, np.float32)
    gradients = {}
    for name, gradient in zip(names, ours, strict=True):
        grad = parameters[name].grad
        gradients[name] = gradient, np.zeros_like(gradient) if grad is None else grad.numpy()
    largest = max(float(np.max(np.abs(b))) for _, b in gradients.values())
    for name, (a, b) in gradients.items():
        # Some are zero but for rounding: softmax does not see the bias of keys.
        scale = max(float(np.max(np.abs(b))), 1e-3 * largest)
        assert float(np.max(np.abs(a - b))) < GRADIENT * scale, name
