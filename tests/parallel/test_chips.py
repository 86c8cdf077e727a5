"""The table of accelerators."""

from types import SimpleNamespace

import jax
import pytest

from ladd_jax.parallel.chips import CHIPS, chip_named, chip_of


def test_a_device_is_found_by_its_kind_and_no_two_chips_claim_it():
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))
    assert chip_of(SimpleNamespace(device_kind="TPU v5 lite")) is chip_named("v5e")
    assert chip_of(SimpleNamespace(device_kind="TPU v5")) is chip_named("v5p")


def test_a_device_that_is_not_in_the_table_is_not_taken_for_one_with_a_like_name():
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None
    assert chip_of(jax.devices()[0]) is None  # A CPU.


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'v9' is not one of v4, v5e"):
        chip_named("v9")
