"""Chips that are not here have a name, devices to compile for, and a compiler."""

import importlib.util
import re

import pytest

from ladd_jax.parallel.chips import chip_named
from ladd_jax.planning.topology import (
    cuda_plugin,
    find_target,
    gpu_description,
    gpu_devices,
    parse_gpu,
    parse_slice,
)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5p", "is not CHIP:SIZES, such as v5e:4x8"),
        ("v9:2x2", "chip 'v9', which is not one of v5e, v5p, v6e"),
        ("v5e:3x5", "does not exist: slices of v5e are 1x1, 2x2"),
        ("v5e:4x8x2", "does not exist"),
        ("v5p:4x4", "does not exist"),
        ("v5p:8x4x4", "ascending multiples of 4 up to 16x16x24"),
        ("v5p:16x16x28", "does not exist"),
    ],
)
def test_a_slice_that_nobody_rents_is_named_with_those_that_are(name, words):
    with pytest.raises(ValueError, match=words):
        parse_slice(name)


@pytest.mark.parametrize("name", ["v5e:4x8", "v6e:8x8", "v5p:2x2x4", "v5p:4x4x4", "v5p:8x8x12"])
def test_a_slice_has_its_chip_and_sizes(name):
    chip, sizes = parse_slice(name)
    assert f"{chip.name}:{'x'.join(map(str, sizes))}" == name


def test_a_gpu_is_known_by_its_memory():
    assert [(chip.name, count) for chip, count in map(parse_gpu, ("gpu:80", "gpu:141x8"))] == [
        ("H100", 1), ("H200", 8)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'gpu:24' is not one of gpu:40"):
        parse_gpu("gpu:24")


def test_gpus_that_are_not_here_want_their_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cuda_plugin() is None
    with pytest.raises(ValueError, match=r"not installed: pip install ladd_jax\[cuda\]"):
        gpu_devices(chip_named("H100"), 1)
    with pytest.raises(ValueError, match=r"not installed: pip install ladd_jax\[plan\]"):
        find_target("v5e:2x2")


def test_gpus_of_one_machine_are_no_slices():
    with pytest.raises(ValueError, match="mesh.slices is 2 and gpu:80x8 is one machine: use 1"):
        find_target("gpu:80x8", slices=2)


@pytest.mark.parametrize("name", ["gpu:40", "gpu:80", "gpu:141"])
def test_a_gpu_is_described_as_its_maker_does(name):
    chip, _ = parse_gpu(name)
    lines = dict(re.findall(r"(\w+): (\S+)", gpu_description(chip)))
    assert "{" not in "".join(lines.values())
    assert int(lines["device_memory_size"]) == int(name[4:]) * 2**30
    # Of the tensor cores' peak: 4 of them, of 256 or 512 products and sums of bfloat16 a clock.
    products = int(lines["core_count"]) * 4 * (512 if int(lines["major"]) == 9 else 256)
    clock = float(lines["clock_rate_ghz"]) * 1e9
    assert 2 * products * clock == pytest.approx(chip.bf16_flops, rel=0.1)
