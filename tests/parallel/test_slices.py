"""Of several slices only `data` goes over the network between them."""

import itertools
import math
import random
from types import SimpleNamespace

import jax
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ladd_jax.parallel.chips import chip_named
from ladd_jax.parallel.mesh import device_grid, make_mesh, mesh_shape, network_axes
from ladd_jax.planning.collectives import Collective, contents, dcn_bytes
from ladd_jax.planning.compile import step_arguments
from ladd_jax.planning.hlo_cost import program_cost
from ladd_jax.training.program import step_program


def tpu_slices(slices, torus=(2, 2, 1)):
    """Devices of slices of this torus, in no order."""
    devices = [
        SimpleNamespace(
            platform="tpu", device_kind="TPU v4", slice_index=index, process_index=index,
            coords=coords, core_on_chip=0,
        )
        for index in range(slices)
        for coords in itertools.product(*map(range, torus))
    ]  # fmt: skip
    random.Random(0).shuffle(devices)
    return devices


def cpu_processes(processes, devices=2):
    return [
        SimpleNamespace(platform="cpu", device_kind="cpu", slice_index=0, process_index=index)
        for index in range(processes)
        for _ in range(devices)
    ]


@given(slices=st.integers(1, 4), data=st.integers(1, 2), fsdp=st.sampled_from([1, 2, 4]))
def test_fsdp_and_tensor_stay_inside_a_slice(slices, data, fsdp):
    tensor = 8 // (data * fsdp)
    sizes = {"data": slices * data, "fsdp": fsdp, "tensor": tensor, "slices": slices}
    grid = device_grid(sizes, tpu_slices(slices, (2, 2, 2)))
    assert grid.shape == (slices * data, fsdp, tensor)
    assert len({id(device) for device in grid.flat}) == grid.size
    for index, row in enumerate(grid):
        assert {device.slice_index for device in row.flat} == {index // data}


def test_without_slices_a_process_is_the_unit_and_a_slice_has_as_many_as_another():
    sizes = {"data": 2, "fsdp": -1, "slices": 2}
    for processes, of_slice in [(2, [{0}, {1}]), (4, [{0, 1}, {2, 3}])]:
        grid = device_grid(sizes, cpu_processes(processes))
        assert [{device.process_index for device in row.flat} for row in grid] == of_slice


def test_gpus_of_several_machines_need_no_slices():
    # JAX counts each machine as a slice, and `jax.make_mesh` refuses more than one.
    gpus = [
        SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", id=i, slice_index=i // 2)
        for i in range(4)
    ]
    assert [gpu.id for gpu in device_grid({"fsdp": -1}, gpus).flat] == [0, 1, 2, 3]


def test_one_slice_lies_as_ever():
    for sizes in ({"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}):
        kinds = (jax.sharding.AxisType.Auto,) * 3
        shape = mesh_shape(sizes, 8)
        wanted = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=kinds)
        assert make_mesh(sizes) == wanted == make_mesh(sizes | {"slices": 1})


@pytest.mark.parametrize(
    ("sizes", "devices", "words"),
    [
        ({"data": 1, "fsdp": -1, "slices": 2}, tpu_slices(2),
         "data=1 does not divide over 2 slices: use mesh.data=2 with mesh.fsdp=-1"),
        ({"data": -1, "slices": 0}, tpu_slices(1), "mesh.slices is 0: use 1, or the number"),
        ({"data": -1, "slices": 2}, tpu_slices(4), "is 2 and the devices are of 4 slices: use"),
        ({"data": 4, "fsdp": -1}, tpu_slices(4), "mesh.slices is 1 and the devices are of 4"),
        ({"data": -1, "slices": 2}, tpu_slices(1), "is 2 and the devices are of 1 slice: use"),
        ({"data": -1, "slices": 2}, cpu_processes(1), "is 2 and the devices are of 1 process"),
        ({"data": -1, "slices": 2}, cpu_processes(3), "is 2 and the devices are of 3 processes"),
        ({"data": -1, "slices": 2}, cpu_processes(1, 2) + cpu_processes(2, 2)[2:] * 2,
         "the slices have 2 and 4 devices: use slices of one size"),
    ],
)  # fmt: skip
def test_slices_that_can_not_be_are_named(sizes, devices, words):
    with pytest.raises(ValueError, match=words):
        device_grid(sizes, devices)


def test_in_costs_slices_are_an_axis():
    grid = device_grid({"data": 4, "fsdp": 2, "slices": 2}, tpu_slices(2))
    mesh = SimpleNamespace(devices=grid, shape={"data": 4, "fsdp": 2, "tensor": 1})
    axes = network_axes(mesh)
    assert axes == {"slices": 2, "data": 2, "fsdp": 2, "tensor": 1} and list(axes)[0] == "slices"
    alone = make_mesh({"data": 4, "fsdp": 2})
    assert network_axes(alone) == dict(alone.shape)


def test_a_slice_shares_what_it_sends_to_another():
    mesh = {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1}
    payload = 1024.0
    inside = Collective("all-gather", ("fsdp",), ((4,),), 0, 1, payload)
    assert dcn_bytes(inside, mesh) == 0
    # Two chips that hold the same shard: all of it goes out.
    pair = Collective("all-reduce", ("slices",), ((4,),), -1, 1, payload)
    assert dcn_bytes(pair, mesh) == payload
    # Eight chips: a ring sends 2 x 7/8 of the array, and each chip a quarter of it out.
    ring = Collective("all-reduce", ("slices", "fsdp"), ((4,),), -1, 1, 2 * 7 / 8 * payload)
    assert dcn_bytes(ring, mesh) == pytest.approx(2 * payload / 4 / 2)


@pytest.mark.slow
def test_of_a_step_only_sums_and_single_numbers_of_a_sample_go_to_other_slices():
    mesh, objective = make_mesh({"data": 2, "fsdp": 4}), tiny.ladd()
    shapes = jax.eval_shape(tiny.batch)
    shardings, arguments = step_arguments(objective, mesh, shapes)
    with jax.set_mesh(mesh):
        program = step_program(objective, shardings, mesh).lower(*arguments).compile()
    cost = program_cost(program.as_text(), {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1})
    out = [c for c in cost.collectives if "slices" in c.axes]
    assert {"all-gather", "all-reduce"} <= {c.kind for c in cost.collectives}
    # Times and accuracies: a number for each sample, or for each sample and head.
    others = [c for c in out if c.kind != "all-reduce"]
    numbers = tiny.B * len(objective.critic.hooked)
    assert all(math.prod(shape) <= numbers for c in others for shape in c.results)
    assert len(others) < len(out)


_TO_ANOTHER_SLICE = """HloModule sum

ENTRY %main (a: bf16[256,8,128]) -> bf16[256,8,128] {
  %a = bf16[256,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %begin = token[] after-all()
  %send.1 = (bf16[256,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%a, %begin), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.6_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %recv.1 = (bf16[256,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) recv(%begin), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.1 = (bf16[256,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
  ROOT %sum = bf16[256,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%recv-done.1), index=0
}
"""  # noqa: E501


def test_what_hosts_carry_to_another_slice_is_told_once():
    mesh = {"slices": 2, "data": 1, "fsdp": 4, "tensor": 1}
    cost = program_cost(_TO_ANOTHER_SLICE, mesh)
    (found,) = cost.collectives
    payload = 2 * 256 * 8 * 128
    # Of two slices each sends a half to be summed, and a half of the sum.
    assert found == Collective("all-reduce", ("slices",), ((256, 8, 128),), -1, 1, payload)
    assert dcn_bytes(found, mesh) == payload
    assert cost.hbm_bytes == 2 * payload
    # A quarter of a gradient, for each of four chips.
    assert contents(found, {(512, 2048)}, mesh, images=1) == "parameters"


@pytest.mark.parametrize(("name", "gigabits"), [("v5e", 25), ("v5p", 50), ("v6e", 100)])
def test_the_network_between_slices_is_slower_than_that_inside(name, gigabits):
    chip = chip_named(name)
    assert chip.dcn * 8 == gigabits * 1e9 and chip.dcn < chip.interconnect / 20
