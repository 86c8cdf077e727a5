"""How often a loop of a compiled program runs."""

import re
from collections.abc import Mapping

from ladd_jax.planning.hlo_text import Computation, Instruction, origin, root_of


def loop_turns(
    loop: Instruction, computation: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """How often a `while` runs; None if it does not count up to a constant.

    XLA says so in an attribute, or else the loop's condition compares a counter with a limit, in a
    fusion or not.

    Args:
      loop: the instruction.
      computation: the computation that contains it.
      computations: all computations of the program.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = computations[loop.called("condition")]
    test = root_of(condition)
    sides: list[Instruction | None] = [origin(condition[name], condition) for name in test.operands]
    if test.opcode == "fusion":
        inner = computations[test.called("calls")]
        outer, test = sides, root_of(inner)
        sides = [origin(inner[name], inner) for name in test.operands]
        sides = [
            outer[int(side.arguments)] if side and side.opcode == "parameter" else side
            for side in sides
        ]
    if test.opcode != "compare" or len(sides) != 2:
        return None
    start = origin(computation[loop.operands[0]], computation)
    state = start.operands if start.opcode == "tuple" else ()
    first, limit = (_constant(side, state, computation) for side in sides)
    if first is None or limit is None or "direction=LT" not in test.attributes:
        return None
    return max(limit - first, 0)


def _constant(
    side: Instruction | None, state: tuple[str, ...], computation: Computation
) -> int | None:
    """The value of one side of a comparison, looked up in the loop's first state if it is there."""
    if side is not None and side.opcode == "get-tuple-element" and state:
        index = re.search(r"\bindex=(\d+)", side.attributes)
        side = origin(computation[state[int(index[1])]], computation) if index else None
    if side is None or side.opcode != "constant":
        return None
    return int(side.arguments)
