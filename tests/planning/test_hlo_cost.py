"""Costs read from compiled programs are those of the programs that were written."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec

from ladd_jax.parallel.mesh import make_mesh
from ladd_jax.planning.device_groups import parse_groups, spanned_axes
from ladd_jax.planning.hlo_cost import instruction_costs, program_cost
from ladd_jax.planning.jaxpr_flops import kernel_flops, product_flops


def compiled(function, *shapes, mesh=None, specs=None):
    arguments = [
        jax.ShapeDtypeStruct(
            shape, "float32", sharding=NamedSharding(mesh, PartitionSpec(*spec)) if mesh else None
        )
        for shape, spec in zip(shapes, specs or [()] * len(shapes), strict=True)
    ]
    return jax.jit(function).lower(*arguments).compile().as_text()


def cost(function, *shapes, **options):
    mesh = options.get("mesh")
    return program_cost(compiled(function, *shapes, **options), mesh.shape if mesh else {"data": 1})


def test_a_scanned_matrix_product_counts_as_often_as_it_turns():
    def scanned(x, weights):
        def body(x, w):
            inner = jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x)
            return inner + jax.lax.map(lambda row: row @ w, x), None

        return jax.lax.scan(body, x, weights)[0]

    product = 2 * 16 * 32 * 32
    assert cost(scanned, (16, 32), (5, 32, 32)).flops == 5 * (3 + 1) * product


def test_a_batched_product_and_a_convolution_count_what_exists():
    def batched(a, b):
        return jnp.einsum("bij,bkj->bik", a, b)

    assert cost(batched, (3, 8, 16), (3, 24, 16)).flops == 2 * 3 * 8 * 24 * 16

    def convolution(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    # 5 x 5 places and 3 x 3 taps: those of the border have nothing below them.
    taps = (3 * 5 - 2) ** 2
    assert cost(convolution, (2, 5, 5, 4), (3, 3, 4, 6)).flops == 2 * taps * 2 * 4 * 6


# How the TPU compiler writes a product with a batch axis of 3: one tap of three meets an element.
_DILATED = """HloModule dilated

ENTRY %main (a: bf16[3,8,16], b: bf16[3,24,16]) -> bf16[3,8,24] {
  %a = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[3,24,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[3,8,24]{2,1,0:T(8,128)(2,1)} convolution(%a, %b), window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0oi->0bf
}
"""  # noqa: E501


def test_holes_between_dilated_elements_are_no_work_and_what_lies_on_chip_no_traffic():
    found = program_cost(_DILATED, {"data": 1})
    assert found.flops == 2 * 3 * 8 * 24 * 16
    assert found.hbm_bytes == 2 * (3 * 8 * 16 + 3 * 8 * 24)


def test_the_dearest_branch_of_a_condition_counts():
    def branch(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert cost(branch, (8, 16), (16, 16)).flops == 2 * 2 * 8 * 16 * 16


def test_reading_a_slice_of_stacked_parameters_is_not_reading_all_of_them():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (x + w, None), x, weights)[0]

    layers, size = 50, 1024
    once = 4 * size
    traffic = cost(scanned, (size,), (layers, size)).hbm_bytes
    assert layers * 3 * once <= traffic <= layers * 6 * once


MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_gather_over_one_axis_is_told_with_its_bytes_and_turns():
    mesh = make_mesh(MESH)

    def scanned(x, weights):
        def body(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(body, x, weights)[0]

    found = cost(
        scanned, (16, 32), (5, 32, 32), mesh=mesh, specs=[(("data",),), (None, "fsdp")]
    )  # fmt: skip
    (gather,) = found.collectives
    assert (gather.kind, gather.axes, gather.times) == ("all-gather", ("fsdp",), 5)
    assert gather.results == ((1, 32, 32),) and gather.gathered == 1
    # Of two chips each sends its half to the other.
    assert gather.bytes == 5 * 4 * 32 * 32 / 2
    assert found.flops == 5 * 2 * 8 * 32 * 32


def test_a_mean_over_the_batch_is_one_reduction_over_the_axes_of_the_batch():
    mesh = make_mesh(MESH)
    found = cost(
        lambda x: jnp.mean(x, axis=0), (16, 64), mesh=mesh, specs=[(("data", "fsdp"), "tensor")]
    )
    (reduction,) = found.collectives
    assert (reduction.kind, reduction.axes) == ("all-reduce", ("data", "fsdp"))
    assert reduction.bytes == 2 * 4 * 32 * 3 / 4


@pytest.mark.parametrize(
    ("written", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", ("tensor",)),
        ("replica_groups=[4,2]<=[4,2], x", ("tensor",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1), x", ("fsdp",)),
        ("replica_groups=[2,4]<=[2,4], x", ("fsdp", "tensor")),
        ("replica_groups=[1,8]<=[8], x", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','b'}, x", ("data", "fsdp")),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", ("data",)),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}, x", ("fsdp",)),
    ],
)
def test_groups_of_devices_name_their_mesh_axes(written, axes):
    assert spanned_axes(parse_groups(written), MESH) == axes


def _doubled(x):
    def kernel(x, w, out):
        out[...] = jnp.dot(x[...], w[...])

    block = pl.BlockSpec((8, 16), lambda i: (i, 0))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // 8,),
        in_specs=[block, pl.BlockSpec((16, 16), lambda i: (0, 0))],
        out_specs=block,
        name="doubled",
    )(x, 2 * jnp.eye(16))


def test_a_pallas_kernel_counts_its_program_for_each_place_of_its_grid():
    jaxpr = jax.make_jaxpr(_doubled)(jnp.zeros((32, 16))).jaxpr
    flops = 2 * 32 * 16 * 16
    assert kernel_flops(jaxpr) == {("doubled", ((32, 16),)): flops}
    assert product_flops(jaxpr) == flops


_KERNEL = """HloModule kernel

ENTRY %main (a: f32[32,16]) -> f32[32,16] {
  %a = f32[32,16]{1,0} parameter(0)
  %doubled.1 = f32[32,16]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", x={
"metadata":"{}"
}}
  ROOT %doubled.2 = f32[32,16]{1,0} custom-call(%doubled.1), custom_call_target="tpu_custom_call"
}
"""


def test_each_call_of_a_kernel_counts_and_an_unknown_one_is_named():
    known = program_cost(_KERNEL, {"data": 1}, {("doubled", ((32, 16),)): 1000})
    assert known.flops == 2000 and not known.unknown
    unknown = program_cost(_KERNEL, {"data": 1})
    assert unknown.flops == 0 and unknown.unknown == ("doubled.1", "doubled.2")


# Of a program for an NVIDIA GPU: a copy that runs beside what follows, attention of 2 samples with
# 6 queries, 10 keys, 3 heads of 4, and a call of another library.
_CUDA = """HloModule cuda

%slice (stack: bf16[5,2,6,3,4], at: s32[]) -> bf16[1,2,6,3,4] {
  %stack = bf16[5,2,6,3,4]{4,3,2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %one = bf16[1,2,6,3,4]{4,3,2,1,0} dynamic-slice(%stack, %at, %zero, %zero, %zero, %zero), dynamic_slice_sizes={1,2,6,3,4}
}

ENTRY %main (stack: bf16[5,2,6,3,4], at: s32[], k: bf16[2,10,3,4]) -> bf16[2,3,6,4] {
  %stack.1 = bf16[5,2,6,3,4]{4,3,2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %k = bf16[2,10,3,4]{3,2,1,0} parameter(2)
  %start = ((bf16[5,2,6,3,4]{4,3,2,1,0}, s32[]), bf16[1,2,6,3,4]{4,3,2,1,0}, u32[]) fusion-start(%stack.1, %at.1), kind=kLoop, calls=%slice
  %done = bf16[1,2,6,3,4]{4,3,2,1,0} fusion-done(%start)
  %q = bf16[2,6,3,4]{3,2,1,0} bitcast(%done)
  %forth = (bf16[2,3,6,4]{3,1,2,0}, f32[2,3,6]{2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax"
  %out = bf16[2,3,6,4]{3,1,2,0} get-tuple-element(%forth), index=0
  %rows = f32[2,3,6]{2,1,0} get-tuple-element(%forth), index=1
  %back = (bf16[2,3,6,4]{3,1,2,0}, bf16[2,3,10,4]{3,1,2,0}, bf16[2,3,10,4]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k, %rows, %out, %out), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %dq = bf16[2,3,6,4]{3,1,2,0} get-tuple-element(%back), index=0
  ROOT %other = bf16[2,3,6,4]{3,1,2,0} custom-call(%dq), custom_call_target="__cublas$gemm"
}
"""  # noqa: E501


def test_a_gpus_attention_and_copies_count_and_an_unknown_library_is_named():
    found = program_cost(_CUDA, {"data": 1})
    product = 2 * (2 * 3) * 6 * 10 * 4
    assert found.flops == (2 + 5) * product
    assert found.unknown == ("__cublas$gemm",)
    queries, keys, rows = 2 * 2 * 6 * 3 * 4, 2 * 2 * 10 * 3 * 4, 4 * 2 * 3 * 6
    copy = 2 * queries + 4  # Of the stack only a slice is read, and the index.
    forth = 2 * queries + 2 * keys + rows
    back = 4 * queries + 4 * keys + rows
    assert found.hbm_bytes == copy + forth + back + 2 * queries


_CUBLAS = """HloModule step, entry_computation_layout={(bf16[6,4]{1,0}, bf16[4,5]{1,0})->bf16[6,5]{1,0}}

%into (p: bf16[6,4], q: bf16[4,5]) -> (bf16[6,5], s8[32]) {
  %p = bf16[6,4]{1,0} parameter(0)
  %q = bf16[4,5]{1,0} parameter(1)
  ROOT %inner = (bf16[6,5]{1,0}, s8[32]{0}) custom-call(%p, %q), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}

ENTRY %main (a: bf16[6,4], b: bf16[4,5]) -> bf16[6,5] {
  %a = bf16[6,4]{1,0} parameter(0)
  %b = bf16[4,5]{1,0} parameter(1)
  %fused = (bf16[6,5]{1,0}, s8[32]{0}) fusion(%a, %b), kind=kCustom, calls=%into
  %again = (bf16[6,5]{1,0}, s8[32]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %out = bf16[6,5]{1,0} get-tuple-element(%again), index=0
}
"""  # noqa: E501


def test_a_product_of_cublas_counts_alone_and_in_a_fusion():
    found = program_cost(_CUBLAS, {"data": 1})
    assert found.flops == 2 * (2 * 6 * 4 * 5)
    assert not found.unknown


def test_the_costs_of_instructions_add_up_to_their_programs():
    def scanned(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), x), x, weights)

    text = compiled(scanned, (8, 16), (5, 16, 16))
    found = instruction_costs(text, {"data": 1})
    whole = program_cost(text, {"data": 1})
    assert sum(item.cost.flops for item in found) == whole.flops
    assert sum(item.cost.hbm_bytes for item in found) == pytest.approx(whole.hbm_bytes)
    assert {item.times for item in found if item.cost.flops} == {5}


def test_the_opcodes_inside_a_fusion_are_told():
    (fused, alone) = instruction_costs(_CUBLAS, {"data": 1})
    assert fused.fused == {"parameter", "custom-call"}
    assert alone.fused == frozenset()


def test_a_text_that_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no entry computation"):
        program_cost("nothing", {"data": 1})
