"""Bytes that a fusion of a compiled program reads from HBM and writes to it."""

from collections.abc import Mapping

from ladd_jax.planning.collectives import COLLECTIVES
from ladd_jax.planning.hlo_text import (
    Computation,
    Instruction,
    bytes_in_hbm,
    origin,
    root_of,
)


def fusion_bytes(
    fusion: Instruction, computation: Computation, computations: Mapping[str, Computation]
) -> float:
    """Traffic of a fusion: it reads each operand once and writes its results.

    Args:
      fusion: the instruction.
      computation: the computation that contains it.
      computations: all computations of the program.
    """
    name = fusion.called("calls")
    inner = computations[name]
    total = 0.0
    for position, operand in enumerate(fusion.operands):
        held = bytes_in_hbm(computation[operand].result) if operand in computation else 0.0
        if held:
            total += min(_bytes_read(name, position, computations), held)
    root = root_of(inner)
    parts = root.operands if root.opcode == "tuple" else (root.name,)
    # The result of a fusion that starts now and ends later holds its operands, too.
    results = root.result if fusion.opcode == "fusion-start" else fusion.result
    for part, array in zip(parts, results, strict=False):
        written = origin(inner[part], inner)
        if not array.in_hbm or written.opcode == "parameter":
            continue
        if written.opcode == "dynamic-update-slice":
            total += inner[written.operands[1]].result[0].bytes
        else:
            total += array.bytes
    return total


def _bytes_read(name: str, position: int, computations: Mapping[str, Computation]) -> float:
    """Bytes that a fused computation reads of a parameter; where it slices it, only the slice."""
    computation = computations[name]
    parameter = next(
        i for i in computation.values() if i.opcode == "parameter" and i.arguments == str(position)
    )
    total = 0.0
    names = {parameter.name}
    for i in computation.values():
        if names.isdisjoint(i.operands):
            continue
        if i.opcode == "bitcast":
            names.add(i.name)
        elif i.opcode in ("dynamic-slice", "slice", "gather"):
            total += i.result[0].bytes
        elif i.opcode == "dynamic-update-slice" and i.operands[0] in names:
            continue  # Written in place.
        elif i.opcode == "fusion":
            used = [k for k, operand in enumerate(i.operands) if operand in names]
            total += sum(_bytes_read(i.called("calls"), k, computations) for k in used)
        elif i.opcode not in ("tuple", *COLLECTIVES) and "Async" not in i.attributes:
            total += sum(array.bytes for array in parameter.result)
    return total
