"""What a compiled program costs a chip, read from the text of its optimized HLO.

XLA's own analysis takes the body of a loop once, and knows neither what is inside a Pallas kernel
nor what goes over which mesh axis. Here loops count as often as they turn.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from ladd_jax.errors import UserError
from ladd_jax.parallel.mesh import SLICES
from ladd_jax.planning.products import (
    ATTENTION_BACKWARD_PRODUCTS,
    ATTENTION_PRODUCTS,
    Kernel,
)

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # Others tell their bits: bf16, f8e4m3, s4.

_COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip

_CUDNN_ATTENTION = {
    "__cudnn$fmhaSoftmax": ATTENTION_PRODUCTS,
    "__cudnn$fmhaSoftmaxBackward": ATTENTION_BACKWARD_PRODUCTS,
}

_BETWEEN_SLICES = {"ONE_TO_ONE": "collective-permute"}
"""Transfers by hosts whose names are not those of collectives."""

# They move nothing, or what they move is counted where it starts.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "optimization-barrier", "add-dependency", "domain", "iota",
}  # fmt: skip

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Part of a result: its shape, and whether it lies in HBM (else on chip, or on the host)."""

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
    """One line of a computation; `arguments` is the text between its parentheses."""

    name: str
    opcode: str
    result: tuple[Array, ...]
    arguments: str
    attributes: str
    root: bool

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        return tuple(_NAME.findall(self.arguments))

    def called(self, attribute: str) -> str:
        """Name of the computation in an attribute such as `body`."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """The numbers in braces of an attribute such as `lhs_contracting_dims`."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(number) for number in filter(None, match[1].split(","))) if match else ()


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication of one kind and shape.

    Attributes:
      kind: `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all`, `collective-permute`.
      axes: mesh axes that it runs over.
      results: shapes of what each chip has afterwards.
      gathered: position of the dimension that an `all-gather` makes longer; -1 for other kinds.
      times: how often it runs in a step.
      bytes: what a chip sends in a step by a ring: of n chips, (n - 1) / n of the whole for a
        gather or a scatter, twice that for an all-reduce.
    """

    kind: str
    axes: tuple[str, ...]
    results: tuple[tuple[int, ...], ...]
    gathered: int
    times: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run of a program, on one chip.

    Attributes:
      flops: of matrix products, convolutions, Pallas kernels and cuDNN's attention.
      hbm_bytes: read from and written to HBM by each instruction after fusion.
      collectives: in the order of the program.
      unknown: loops without a constant number of turns, counted once, and kernels without known
        FLOPs, counted as none.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    unknown: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.hbm_bytes + other.hbm_bytes,
            self.collectives + other.collectives,
            self.unknown + other.unknown,
        )

    def repeated(self, times: int) -> "Cost":
        """Of that many runs."""
        collectives = tuple(
            dataclasses.replace(c, times=c.times * times, bytes=c.bytes * times)
            for c in self.collectives
        )
        return Cost(self.flops * times, self.hbm_bytes * times, collectives, self.unknown)


def program_cost(
    text: str, mesh: Mapping[str, int], kernels: Mapping[Kernel, int] | None = None
) -> Cost:
    """The cost of a program on each chip of a mesh.

    Args:
      text: optimized HLO of a program with one partition for each device, `as_text()` of what JAX
        compiled.
      mesh: sizes of the axes, in the order in which the mesh's devices are; of several TPU slices
        `network_axes` of it.
      kernels: FLOPs of a call of each Pallas kernel, by name and result shapes.

    Raises:
      UserError: the text is not of an HLO module.
    """
    return _Program(text, mesh, kernels or {}).cost()


class _Program:
    def __init__(self, text: str, mesh: Mapping[str, int], kernels: Mapping[Kernel, int]):
        self.mesh = mesh
        self.kernels = kernels
        self.entry, self.computations = _parse(text)
        self.costs: dict[str, Cost] = {}

    def cost(self) -> Cost:
        return self.of(self.entry)

    def of(self, name: str) -> Cost:
        """Of one run of a computation that is no fusion's."""
        if name not in self.costs:
            computation = self.computations[name]
            total = Cost()
            seen: set[str] = set()
            for instruction in computation.values():
                total += self._instruction(instruction, computation, seen)
            self.costs[name] = total
        return self.costs[name]

    def _instruction(
        self, i: Instruction, computation: Mapping[str, Instruction], seen: set[str]
    ) -> Cost:
        if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
            return Cost()
        if i.opcode == "while":
            turns = self._turns(i, computation)
            body = self.of(i.called("body")).repeated(1 if turns is None else turns)
            return body if turns is not None else body + Cost(unknown=(i.name,))
        if i.opcode == "conditional":
            return max(map(self.of, _branches(i)), key=lambda cost: (cost.flops, cost.hbm_bytes))
        if i.opcode in ("call", "async-start"):
            return self.of(i.called("to_apply") or i.called("calls"))
        if i.opcode in ("fusion", "fusion-start"):
            return self._fused(i.called("calls"), seen) + Cost(
                hbm_bytes=self._fusion_bytes(i, computation)
            )
        kind = i.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            return self._collective(kind, i, computation, seen)
        if i.opcode in ("send", "recv"):
            return self._to_host(i)
        operands = self._arrays(i, computation)
        if i.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', i.attributes)
            moved = Cost(hbm_bytes=_in_hbm(operands) + _in_hbm(i.result))
            if target and target[1] == "tpu_custom_call":
                return self._kernel(i) + moved
            if target and target[1] in _CUDNN_ATTENTION:
                q, k = (array.shape for array in operands[:2])  # [B, N, K, D/K]
                products = _CUDNN_ATTENTION[target[1]]
                return Cost(2.0 * products * math.prod(q) * k[1]) + moved
            if target and target[1].startswith(("__cublas", "__cudnn")):
                return Cost(unknown=(target[1],)) + moved
            return Cost()
        flops = _product_flops(i, operands)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return Cost(hbm_bytes=2 * _in_hbm(i.result))
        if i.opcode in ("dynamic-update-slice", "scatter"):
            return Cost(hbm_bytes=2 * _in_hbm(operands[1:2]))
        if i.opcode.endswith("-start"):  # A copy: its result holds the source, too.
            return Cost(hbm_bytes=_in_hbm(i.result[:2]))
        return Cost(flops, _in_hbm(operands) + _in_hbm(i.result))

    def _arrays(self, i: Instruction, computation: Mapping[str, Instruction]) -> list[Array]:
        return [
            array
            for operand in i.operands
            if operand in computation
            for array in computation[operand].result
        ]

    def _fused(self, name: str, seen: set[str]) -> Cost:
        """FLOPs and communication inside of a fusion."""
        computation = self.computations[name]
        total = Cost()
        for i in computation.values():
            kind = i.opcode.removesuffix("-start")
            if i.opcode == "fusion":
                total += self._fused(i.called("calls"), seen)
            elif kind in _COLLECTIVES:
                # TPU's compiler has no other form of a fused reduce-scatter.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                total += self._collective(kind, i, computation, seen)
            else:
                total += Cost(_product_flops(i, self._arrays(i, computation)))
        return total

    def _kernel(self, i: Instruction) -> Cost:
        name = re.sub(r"(\.\d+|\.clone)+$", "", i.name)
        flops = self.kernels.get((name, tuple(array.shape for array in i.result)))
        return Cost(unknown=(i.name,)) if flops is None else Cost(flops)

    def _collective(
        self, kind: str, i: Instruction, computation: Mapping[str, Instruction], seen: set[str]
    ) -> Cost:
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        # One that runs beside several fusions is written into each of them.
        key = f"{kind} {channel[1]}" if channel else i.name
        if key in seen:
            return Cost()
        seen.add(key)
        groups = _groups(i.attributes)
        size = len(groups[0]) if groups else math.prod(self.mesh.values())
        arrays = self._arrays(i, computation)
        payload = sum(array.bytes for array in arrays)
        sent = _sent(kind, payload, size)
        dimensions = i.numbers("dimensions")
        gathered = dimensions[0] if kind == "all-gather" and dimensions else -1
        results = tuple(array.shape for array in arrays)
        if gathered >= 0:
            results = tuple(
                (*shape[:gathered], shape[gathered] * size, *shape[gathered + 1 :])
                for shape in results
            )
        collective = Collective(kind, _axes(groups, self.mesh), results, gathered, 1, sent)
        return Cost(hbm_bytes=2 * _in_hbm(arrays), collectives=(collective,))

    def _to_host(self, i: Instruction) -> Cost:
        """Hosts carry what goes from slice to slice: to the chip it is one send and one receipt."""
        payload = sum(array.bytes for array in i.result[:1])
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
        if i.opcode == "recv" or kind is None:
            return Cost(hbm_bytes=payload)
        name = _BETWEEN_SLICES.get(kind[1], kind[1].lower().replace("_", "-"))
        shapes = (i.result[0].shape,)
        sent = _sent(name, payload, self.mesh.get(SLICES, 1))
        collective = Collective(name, (SLICES,), shapes, -1, 1, sent)
        return Cost(hbm_bytes=payload, collectives=(collective,))

    def _fusion_bytes(self, i: Instruction, computation: Mapping[str, Instruction]) -> float:
        inner = self.computations[i.called("calls")]
        total = 0.0
        for position, operand in enumerate(i.operands):
            arrays = computation[operand].result if operand in computation else ()
            if _in_hbm(arrays):
                total += min(self._read(i.called("calls"), position), _in_hbm(arrays))
        root = next(j for j in inner.values() if j.root)
        parts = root.operands if root.opcode == "tuple" else (root.name,)
        # The result of one that starts now and ends later holds its operands, too.
        results = root.result if i.opcode == "fusion-start" else i.result
        for part, array in zip(parts, results, strict=False):
            written = _origin(inner[part], inner)
            if not array.in_hbm or written.opcode == "parameter":
                continue
            if written.opcode == "dynamic-update-slice":
                total += inner[written.operands[1]].result[0].bytes
            else:
                total += array.bytes
        return total

    def _read(self, name: str, position: int) -> float:
        """Bytes that a fused computation reads of a parameter: of a slice only the slice."""
        computation = self.computations[name]
        parameter = next(
            i
            for i in computation.values()
            if i.opcode == "parameter" and i.arguments == str(position)
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
                called = i.called("calls")
                used = [k for k, operand in enumerate(i.operands) if operand in names]
                total += sum(self._read(called, k) for k in used)
            elif i.opcode not in ("tuple", *_COLLECTIVES) and "Async" not in i.attributes:
                total += sum(array.bytes for array in parameter.result)
        return total

    def _turns(self, i: Instruction, computation: Mapping[str, Instruction]) -> int | None:
        """How often a loop runs that counts up to a constant."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', i.attributes)
        if known:
            return int(known[1])
        condition = self.computations[i.called("condition")]
        test = next(j for j in condition.values() if j.root)
        sides: list[Instruction | None] = [
            _origin(condition[name], condition) for name in test.operands
        ]
        if test.opcode == "fusion":
            inner = self.computations[test.called("calls")]
            outer, test = sides, next(j for j in inner.values() if j.root)
            sides = [_origin(inner[name], inner) for name in test.operands]
            sides = [
                outer[int(side.arguments)] if side and side.opcode == "parameter" else side
                for side in sides
            ]
        if test.opcode != "compare" or len(sides) != 2:
            return None
        start = _origin(computation[i.operands[0]], computation)
        state = start.operands if start.opcode == "tuple" else ()
        values = []
        for side in sides:
            if side is not None and side.opcode == "get-tuple-element" and state:
                index = re.search(r"\bindex=(\d+)", side.attributes)
                side = _origin(computation[state[int(index[1])]], computation) if index else None
            constant = side is not None and side.opcode == "constant"
            values.append(int(side.arguments) if constant and side is not None else None)
        first, limit = values
        if first is None or limit is None or "direction=LT" not in test.attributes:
            return None
        return max(limit - first, 0)


def _sent(kind: str, payload: float, size: int) -> float:
    """Bytes that each of `size` devices in a ring sends, which starts with `payload` of them."""
    share = (size - 1) / size
    return {
        "all-gather": payload * (size - 1),
        "all-reduce": 2 * payload * share,
        "collective-permute": payload,
    }.get(kind, payload * share)


def _parse(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
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
            instruction = _instruction(line[start.end() :], start[2], bool(start[1]))
            current[instruction.name] = instruction
    if not entry:
        raise UserError("the text holds no entry computation: give as_text() of a compiled step")
    return entry, computations


def _instruction(line: str, name: str, root: bool) -> Instruction:
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


def _origin(i: Instruction, computation: Mapping[str, Instruction]) -> Instruction:
    """The instruction that made a value, behind copies of it."""
    while i.opcode in ("bitcast", "copy", "copy-start", "copy-done") and i.operands:
        i = computation[i.operands[0]]
    return i


def _in_hbm(arrays: Iterable[Array]) -> float:
    return sum(array.bytes for array in arrays if array.in_hbm)


def _branches(i: Instruction) -> list[str]:
    several = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    if several:
        return _NAME.findall(several[1])
    return [i.called("true_computation"), i.called("false_computation")]


def _product_flops(i: Instruction, operands: list[Array]) -> float:
    if i.opcode == "dot":
        contracted = i.numbers("lhs_contracting_dims")
        return (
            2.0
            * math.prod(i.result[0].shape)
            * math.prod(operands[0].shape[axis] for axis in contracted)
        )
    if i.opcode == "convolution":
        return _convolution_flops(i, operands[0].shape, operands[1].shape)
    return 0.0


def _convolution_flops(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Products of elements that exist: padding and holes between dilated ones are left out.

    The TPU compiler writes every matrix product as a convolution, batch axes as dilated windows.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if labels is None:
        return 0.0
    window = _window(i.attributes)

    def grouped(name: str) -> int:
        count = re.search(rf"{name}_group_count=(\d+)", i.attributes)
        return int(count[1]) if count else 1

    result = i.result[0].shape
    total = 2.0 * left[labels[1].index("f")] / grouped("feature")
    total *= left[labels[1].index("b")] / grouped("batch")
    total *= result[labels[3].index("f")]
    for k in range(len(labels[1]) - 2):
        base = left[labels[1].index(str(k))]
        taps = right[labels[2].index(str(k))]
        outputs = result[labels[3].index(str(k))]
        stride, low, dilated, spread = (
            window.get(name, {}).get(k, default)
            for name, default in (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        places = np.arange(outputs)[:, None] * stride + np.arange(taps) * spread - low
        inside = (places >= 0) & (places % dilated == 0) & (places // dilated < base)
        total *= int(np.count_nonzero(inside))
    return total


def _window(attributes: str) -> dict[str, dict[int, int]]:
    """By name, the number of each spatial dimension; of the padding the lower."""
    match = re.search(r"window=\{([^}]*)\}", attributes)
    fields = [field.split("=") for field in match[1].split()] if match else []
    return {
        name: {k: int(part.split("_")[0]) for k, part in enumerate(value.split("x"))}
        for name, value in fields
    }


def _groups(attributes: str) -> list[tuple[int, ...]]:
    """Devices, by their place in the mesh, that a collective runs among.

    HLO writes them as lists, as a reshaped count (`[2,4]<=[4,2]T(1,0)`), or as the axes of a mesh
    of its own (`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`).
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    if pairs:
        return [_integers(pair) for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes)
    if listed:
        return [_integers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if counted:
        ids = _count(counted[2], counted[3]).reshape(_integers(counted[1]))
        return [tuple(map(int, row)) for row in ids.reshape(-1, ids.shape[-1])]
    meshed = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[?([^)\]]*)\]?(?:T\(([\d,]+)\))?\))?"
        r" \{([^}]*)\}",
        attributes,
    )
    if meshed:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", meshed[1])}
        ids = np.arange(math.prod(sizes.values()))
        if meshed[2]:
            ids = _count(meshed[2], meshed[3])
        return _rows(ids, sizes, meshed[4])
    return []


def _rows(ids: np.ndarray, sizes: Mapping[str, int], names: str) -> list[tuple[int, ...]]:
    """Groups of a mesh's devices along some of its axes, or parts of axes (`'a':(2)4`)."""
    chosen: list[int] = []
    shape: list[int] = []
    for name, size in sizes.items():
        match = re.search(rf"'{re.escape(name)}'(?::\((\d+)\)(\d+))?", names)
        if match and match[1]:
            before, part = int(match[1]), int(match[2])
            chosen.append(len(shape) + 1)
            shape += [before, part, size // (before * part)]
        else:
            if match:
                chosen.append(len(shape))
            shape.append(size)
    rest = [axis for axis in range(len(shape)) if axis not in chosen]
    width = math.prod(shape[axis] for axis in chosen)
    rows = ids.reshape(shape).transpose(rest + chosen).reshape(-1, width)
    return [tuple(map(int, row)) for row in rows]


def _count(sizes: str, order: str | None) -> np.ndarray:
    shape = _integers(sizes)
    ids = np.arange(math.prod(shape)).reshape(shape)
    return (ids.transpose(_integers(order)) if order else ids).reshape(-1)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _axes(groups: list[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    if not groups:
        return tuple(axis for axis, size in mesh.items() if size > 1)
    places = np.unravel_index(np.asarray(list(itertools.chain(*groups))), tuple(mesh.values()))
    lengths = [len(group) for group in groups]
    starts = np.cumsum([0, *lengths[:-1]])
    return tuple(
        axis
        for axis, place in zip(mesh, places, strict=True)
        if any(
            np.ptp(place[start : start + length])
            for start, length in zip(starts, lengths, strict=True)
        )
    )
