"""Attention's kernels agree, and the one that runs is that of the devices in use."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import topologies
from jax.interpreters import partial_eval
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from ladd_jax.models.attention import (
    LANES,
    attention,
    block_size,
    cudnn,
    keep_attended,
    softmax_attention,
    splash,
)
from ladd_jax.parallel.mesh import MESH_AXES, make_mesh
from ladd_jax.planning.jaxpr_flops import product_flops

FORWARD, BACKWARD = 2e-6, 1e-5
"""Largest difference over the largest value; both compute in float32, in another order."""

# (queries, keys) of every kind of bucket at a quarter of SD3's grid: 16x16, 24x12 and 8x12 image
# tokens with 42 of text; the last block, where text asks no queries; image tokens alone.
LENGTHS = {
    "square": (256 + 42, 256 + 42),
    "small": (96 + 42, 96 + 42),
    "last block": (256, 256 + 42),
    "last block, wide": (288, 288 + 42),
    "dual attention": (256, 256),
}

in_interpreter = functools.partial(splash, limit=128, interpret=True)


def arrays(n, m, batch=2, heads=2, width=16, dtype=jnp.float32):
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    shapes = [(batch, length, heads, width) for length in (n, m, m, n)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def with_gradients(attend):
    @jax.jit
    def run(q, k, v, cotangent):
        out, vjp = jax.vjp(attend, q, k, v)
        return out, vjp(cotangent)

    return run


reference = with_gradients(functools.partial(jax.nn.dot_product_attention, implementation="xla"))


def difference(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


@pytest.mark.parametrize("attend", [softmax_attention, in_interpreter], ids=["softmax", "splash"])
@pytest.mark.parametrize(("n", "m"), LENGTHS.values(), ids=LENGTHS.keys())
def test_values_and_gradients_are_those_of_jax_in_every_bucket(n, m, attend):
    q, k, v, cotangent = arrays(n, m)
    out, gradients = with_gradients(attend)(q, k, v, cotangent)
    expected, expected_gradients = reference(q, k, v, cotangent)
    assert out.shape == q.shape
    assert difference(out, expected) < FORWARD
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert difference(ours, theirs) < BACKWARD


def test_half_precision_is_as_near_to_single_as_that_of_jax():
    whole = arrays(256, 298)
    half = [x.astype(jnp.bfloat16) for x in whole]
    exact = jax.tree.leaves(reference(*(x.astype(jnp.float32) for x in half)))
    ours = jax.tree.leaves(with_gradients(softmax_attention)(*half))
    theirs = jax.tree.leaves(reference(*half))
    assert {x.dtype for x in ours} == {jnp.dtype(jnp.bfloat16)}
    for own, other, right in zip(ours, theirs, exact, strict=True):
        assert difference(own, right) < max(1.5 * difference(other, right), 2**-8)


def test_the_gradient_keeps_one_array_of_all_pairs_of_tokens():
    q, k, v, _ = arrays(96, 138)
    _, vjp = jax.vjp(attention, q, k, v)
    pairs = [leaf for leaf in jax.tree.leaves(vjp) if leaf.size >= 2 * 2 * 96 * 138]
    assert len(pairs) == 1


def test_padded_keys_count_for_nothing_even_where_all_logits_are_very_negative():
    q, k, v, _ = arrays(130, 130)
    q, k = jnp.full_like(q, -30.0), jnp.full_like(k, 30.0) + 0.01 * k
    expected = reference(q, k, v, q)[0]
    # Logits of 3600 are rounded by 2e-4.
    assert difference(jax.jit(in_interpreter)(q, k, v), expected) < 1e-3


def test_each_device_runs_splash_on_its_own_samples_and_heads():
    q, k, v, _ = arrays(96, 138, batch=4, heads=4)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        spec = PartitionSpec(("data", "fsdp"), None, "tensor", None)
        laid = jax.device_put((q, k, v), NamedSharding(mesh, spec))
        program = jax.jit(in_interpreter).lower(*laid).compile()
        out = program(*laid)
        assert out.sharding.spec == spec
    assert difference(out, reference(q, k, v, q)[0]) < FORWARD
    assert "all-gather" not in program.as_text()


def test_samples_that_do_not_divide_over_the_mesh_are_attended_to_everywhere():
    q, k, v, _ = arrays(96, 96, batch=3, heads=1)
    with jax.set_mesh(make_mesh({"data": 4, "tensor": 2})):
        out = jax.jit(in_interpreter)(q, k, v)
    assert difference(out, reference(q, k, v, q)[0]) < FORWARD


def test_the_remat_policy_runs_the_forward_kernel_once():
    q, k, v, _ = arrays(96, 96)

    def kernels(policy):
        block = jax.checkpoint(lambda q: jnp.sin(in_interpreter(jnp.sin(q), k, v)), policy=policy)
        gradient = jax.make_jaxpr(jax.value_and_grad(lambda q: jnp.sum(block(q))))(q).jaxpr
        # What nothing reads is left out, as XLA will.
        needed, _ = partial_eval.dce_jaxpr(gradient, [True, True])
        return str(needed).count("name=splash_mha_fwd")

    assert kernels(jax.checkpoint_policies.nothing_saveable) == 2
    assert kernels(keep_attended) == 1


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    q, k, v, _ = arrays(96, 96)
    program = str(jax.make_jaxpr(in_interpreter)(q, k, v))
    assert re.findall(r"name=splash_mha_fwd\w*", program) == [
        "name=splash_mha_fwd_segmented_no_residuals"
    ]


def test_what_splash_keeps_has_whole_rows():
    # A TPU lays rows of 16 out in 128.
    q, k, v, _ = arrays(96, 96)
    block = jax.checkpoint(
        lambda q: jnp.sin(in_interpreter(jnp.sin(q), k, v)), policy=keep_attended
    )
    b, n, heads, width = q.shape
    kept = [leaf.shape for leaf in jax.tree.leaves(jax.vjp(block, q)[1])]
    padded = n + -n % LANES
    assert (b, padded, heads * width) in kept and (b, heads, padded) in kept
    assert (b, heads, padded, width) not in kept


@given(st.integers(1, 40_000), st.integers(1, 12).map(lambda n: 128 * n))
def test_blocks_are_within_the_limit_and_pad_by_less_than_128_each(length, limit):
    block = block_size(length, limit)
    count = -(-length // block)
    assert block % 128 == 0 and 128 <= block <= limit
    assert count * block - length < 128 * count


def kernel_for(kind, dtype, keys=1024, width=64):
    """Which kernel a program for this kind of device has; nothing runs."""
    fields = {field.name: None for field in dataclasses.fields(AbstractDevice)}
    device = AbstractDevice(**fields | {"device_kind": kind})
    mesh = AbstractMesh(
        (1,) * 3, MESH_AXES, (jax.sharding.AxisType.Auto,) * 3, abstract_device=device
    )
    q = jax.ShapeDtypeStruct((1, 64, 2, width), dtype)
    k = jax.ShapeDtypeStruct((1, keys, 2, width), dtype)
    with jax.sharding.use_abstract_mesh(mesh):
        try:
            program = str(jax.make_jaxpr(attention)(q, k, k))
        except RuntimeError as error:
            # JAX's answer where the choice is cuDNN and it is not installed.
            program = str(error)
    if "splash" in program:
        return "splash"
    return "cudnn" if "dot_product_attention_fwd" in program or "cuDNN" in program else "plain"


def test_the_kernel_is_that_of_the_devices_the_program_is_for():
    assert kernel_for("TPU v5", jnp.bfloat16) == "splash"
    assert kernel_for("TPU v6 lite", jnp.float32) == "splash"
    assert kernel_for("NVIDIA H200", jnp.bfloat16) == "cudnn"
    assert kernel_for("cpu", jnp.bfloat16) == "plain"


def test_shapes_and_types_that_no_fused_kernel_serves_take_plain_attention():
    assert kernel_for("NVIDIA H200", jnp.float32) == "plain"
    assert kernel_for("NVIDIA H200", jnp.bfloat16, width=512) == "plain"
    assert kernel_for("TPU v5", jnp.bfloat16, width=512) == "plain"
    assert kernel_for("TPU v5", jnp.bfloat16, keys=100) == "plain"


@pytest.mark.parametrize(("n", "m"), [(4429, 4429), (4096, 4429), (4096, 4096)])
def test_cudnn_takes_the_gradient_at_every_length_on_every_device(monkeypatch, n, m):
    # No GPU is needed for JAX to say what it refuses, and to write the program.
    monkeypatch.setattr(
        "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91100
    )
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    q, k = (
        jax.ShapeDtypeStruct((8, length, 24, 64), jnp.bfloat16, sharding=sharding)
        for length in (n, m)
    )

    def total(q, k, v):
        return jnp.sum(cudnn(q, k, v).astype(jnp.float32))

    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaSoftmaxBackward" in program
    # Of each device: 2 of 8 samples and 12 of 24 heads, of an even length.
    assert f"tensor<2x{n + n % 2}x12x64xbf16>" in program


@pytest.mark.parametrize(("n", "m"), [(130, 135), (131, 134), (131, 135)])
def test_what_pads_an_odd_length_for_cudnn_counts_for_nothing(monkeypatch, n, m):
    q, k, v, cotangent = arrays(n, m)
    # Logits of about -7: a key of zeros would weigh a thousand times as much as another.
    q, k = q * 0.1 - 1.0, k * 0.1 + 1.8
    expected = jax.tree.leaves(reference(q, k, v, cotangent))
    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **lengths: attend(*args, implementation="xla", **lengths),
    )
    ours = jax.tree.leaves(with_gradients(cudnn)(q, k, v, cotangent))
    for own, right in zip(ours, expected, strict=True):
        assert difference(own, right) < BACKWARD


def test_the_remat_policy_spares_a_product_of_plain_attention():
    q, k, v, _ = arrays(96, 138)

    def flops(policy):
        block = jax.checkpoint(
            lambda q: jnp.sin(softmax_attention(jnp.sin(q), k, v)), policy=policy
        )
        gradient = jax.make_jaxpr(jax.value_and_grad(lambda q: jnp.sum(block(q))))(q).jaxpr
        return product_flops(partial_eval.dce_jaxpr(gradient, [True, True])[0])

    spared = flops(jax.checkpoint_policies.nothing_saveable) - flops(keep_attended)
    assert spared == 2 * q.size * k.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_kernels_compile_for_a_tpu_at_1024_pixels(monkeypatch, topology):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, devices)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None))
    q, k = (
        jax.ShapeDtypeStruct((2, n, 24, 64), jnp.bfloat16, sharding=sharding)
        for n in (4096, 4096 + 333)
    )

    def total(q, k, v):
        return jnp.sum(attention(q, k, v).astype(jnp.float32))

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(total, (0, 1, 2))).lower(q, k, k).compile()
    text = program.as_text()
    for kernel in ("splash_mha_fwd", "splash_mha_dkv"):
        assert kernel in text
    # Gradients of q, k and v come from one kernel: two would compute the logits twice.
    assert "splash_mha_dq" not in text
    # XLA's attention keeps logits of 12 heads, 0.8 GiB in float32.
    assert program.memory_analysis().temp_size_in_bytes < 2**28 + 2**27
    assert not np.any([name in text for name in ("all-gather", "all-reduce", "all-to-all")])
