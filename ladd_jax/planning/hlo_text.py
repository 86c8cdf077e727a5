"""The text of a compiled program (optimized HLO) as computations of instructions.

A program is a dict of computations by name; a computation is a dict of instructions by name, in the
order of the text. Opcode and attributes, which stay text, tell what an instruction does.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property

from ladd_jax.errors import UserError

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # Other types name their bits: bf16, f8e4m3, s4.

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result.

    Attributes:
      dtype: HLO's name, such as `bf16`.
      shape: sizes of its dimensions.
      in_hbm: whether it is kept in HBM, and not on the chip or on the host.
    """

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def bytes(self) -> float:
        """Size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype, int(digits[0]) if digits else 8)
        return math.prod(self.shape) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name, unique in its computation.
      opcode: what it does, such as `fusion` or `all-gather-start`.
      result: the arrays of its result; tuples are flattened.
      arguments: the text between its parentheses.
      attributes: the text after them.
      root: whether its result is the computation's.
    """

    name: str
    opcode: str
    result: tuple[Array, ...]
    arguments: str
    attributes: str
    root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it reads."""
        return tuple(_NAME.findall(self.arguments))

    def called(self, attribute: str) -> str:
        """Name of the computation in an attribute such as `body`; empty without one."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    def branches(self) -> list[str]:
        """Names of the computations that a `conditional` chooses from."""
        several = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if several:
            return _NAME.findall(several[1])
        return [self.called("true_computation"), self.called("false_computation")]

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The numbers in braces of an attribute such as `lhs_contracting_dims`."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in filter(None, match[1].split(","))) if match else ()


Computation = Mapping[str, Instruction]


def parse_program(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """Name of the entry computation, and all computations.

    Args:
      text: optimized HLO, `as_text()` of what JAX compiled.

    Raises:
      UserError: the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
            continue
        start = _INSTRUCTION.match(line)
        if start:
            instruction = _parse_instruction(line[start.end() :], start[2], bool(start[1]))
            current[instruction.name] = instruction
    if not entry:
        raise UserError("the text holds no entry computation: give as_text() of a compiled step")
    return entry, computations


def root_of(computation: Computation) -> Instruction:
    """The instruction whose result is the computation's."""
    return next(i for i in computation.values() if i.root)


def origin(instruction: Instruction, computation: Computation) -> Instruction:
    """The instruction that made a value, which copies of it lead back to."""
    while (
        instruction.opcode in ("bitcast", "copy", "copy-start", "copy-done")
        and instruction.operands
    ):
        instruction = computation[instruction.operands[0]]
    return instruction


def operand_arrays(instruction: Instruction, computation: Computation) -> list[Array]:
    """Arrays that an instruction reads."""
    return [
        array
        for operand in instruction.operands
        if operand in computation
        for array in computation[operand].result
    ]


def bytes_in_hbm(arrays: Iterable[Array]) -> float:
    """Size of those arrays that are kept in HBM."""
    return sum(array.bytes for array in arrays if array.in_hbm)


def _parse_instruction(line: str, name: str, root: bool) -> Instruction:
    if line.startswith("("):
        end = _closing(line, 0) + 1
    else:
        end = line.index(" ")
    opening = line.index("(", end)
    closing = _closing(line, opening)
    return Instruction(
        name,
        line[end:opening].strip(),
        tuple(
            Array(
                dtype,
                tuple(int(size.lstrip("<=")) for size in filter(None, sizes.split(","))),
                not re.search(r"S\([1-9]\)", layout),
            )
            for dtype, sizes, layout in _ARRAY.findall(line[:end])
        ),
        line[opening + 1 : closing],
        line[closing + 1 :],
        root,
    )


def _closing(line: str, opening: int) -> int:
    depth = 0
    for match in re.finditer(r"[()]", line[opening:]):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return opening + match.start()
    return len(line)
