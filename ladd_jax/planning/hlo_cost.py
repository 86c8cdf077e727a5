"""What a compiled program costs a chip: operations, memory traffic and communication.

Read from the text of its optimized HLO. XLA's own analysis counts the body of a loop once, and
knows neither what is inside a Pallas kernel nor what crosses which mesh axis. Here loops count as
often as they run.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from ladd_jax.parallel.mesh import SLICES
from ladd_jax.planning.collectives import COLLECTIVES, Collective, ring_bytes
from ladd_jax.planning.device_groups import parse_groups, spanned_axes
from ladd_jax.planning.hlo_flops import cudnn_attention_flops, matrix_flops
from ladd_jax.planning.hlo_loops import loop_turns
from ladd_jax.planning.hlo_text import (
    Computation,
    Instruction,
    bytes_in_hbm,
    operand_arrays,
    parse_program,
)
from ladd_jax.planning.hlo_traffic import fusion_bytes
from ladd_jax.planning.jaxpr_flops import Kernel

_BETWEEN_SLICES = {"ONE_TO_ONE": "collective-permute"}
"""The collective's name for transfers by hosts that have another name."""

# Opcodes that move nothing, or whose traffic is counted where it starts.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "optimization-barrier", "add-dependency", "domain", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a program on one chip.

    Attributes:
      flops: operations of matrix products, convolutions, Pallas kernels and cuDNN's attention.
      hbm_bytes: bytes read from and written to HBM by each instruction after fusion.
      collectives: communication in the order of the program.
      unknown: names of loops without a constant number of turns, counted once, and of kernels
        without known FLOPs, counted as zero.
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
        """The cost of that many runs."""
        collectives = tuple(
            dataclasses.replace(c, times=c.times * times, bytes=c.bytes * times)
            for c in self.collectives
        )
        return Cost(self.flops * times, self.hbm_bytes * times, collectives, self.unknown)


@dataclasses.dataclass(frozen=True)
class InstructionCost:
    """What one instruction costs a chip in one run of its program.

    Attributes:
      instruction: the instruction, as the text has it.
      fused: if it is a fusion, the opcodes inside it that make arrays, and not numbers such as an
        index.
      times: how often it runs.
      cost: the cost of all these times.
    """

    instruction: Instruction
    fused: frozenset[str]
    times: int
    cost: Cost


def program_cost(
    text: str, mesh: Mapping[str, int], kernels: Mapping[Kernel, int] | None = None
) -> Cost:
    """The cost of a program on each chip of a mesh.

    Args:
      text: optimized HLO of a program with one partition for each device, `as_text()` of what JAX
        compiled.
      mesh: sizes of the axes, in the order in which the mesh's devices are; for several TPU slices
        those of `network_axes`.
      kernels: FLOPs of a call of each Pallas kernel, by name and result shapes.

    Raises:
      UserError: the text is not an HLO module.
    """
    return _Program(text, mesh, kernels or {}).cost()


def instruction_costs(
    text: str, mesh: Mapping[str, int], kernels: Mapping[Kernel, int] | None = None
) -> list[InstructionCost]:
    """The cost of each instruction of a program that computes or moves anything.

    All branches of a condition are listed, while `program_cost` counts only the most expensive one.

    Args:
      text: as in `program_cost`.
      mesh: as in `program_cost`.
      kernels: as in `program_cost`.

    Raises:
      UserError: the text is not an HLO module.
    """
    program = _Program(text, mesh, kernels or {})
    return program.each(program.entry, 1)


class _Program:
    def __init__(self, text: str, mesh: Mapping[str, int], kernels: Mapping[Kernel, int]):
        self.mesh = mesh
        self.kernels = kernels
        self.entry, self.computations = parse_program(text)
        self.costs: dict[str, Cost] = {}

    def cost(self) -> Cost:
        return self.of(self.entry)

    def of(self, name: str) -> Cost:
        """The cost of one run of a computation that is not the inside of a fusion."""
        if name not in self.costs:
            computation = self.computations[name]
            total = Cost()
            seen: set[str] = set()
            for instruction in computation.values():
                total += self._instruction(instruction, computation, seen)
            self.costs[name] = total
        return self.costs[name]

    def each(self, name: str, times: int) -> list[InstructionCost]:
        """The costs of the instructions that are executed in `times` runs of a computation."""
        found = []
        computation = self.computations[name]
        for i in computation.values():
            called = _called_computations(i)
            if called:
                turns = 1
                if i.opcode == "while":
                    turns = loop_turns(i, computation, self.computations) or 1
                for inner in called:
                    found += self.each(inner, times * turns)
                continue
            cost = self._instruction(i, computation, set())
            if cost.flops or cost.hbm_bytes:
                inside = self.computations.get(i.called("calls"), {}).values()
                fused = frozenset(j.opcode for j in inside if any(a.shape for a in j.result))
                found.append(InstructionCost(i, fused, times, cost.repeated(times)))
        return found

    def _instruction(self, i: Instruction, computation: Computation, seen: set[str]) -> Cost:
        if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
            return Cost()
        if i.opcode == "while":
            turns = loop_turns(i, computation, self.computations)
            body = self.of(i.called("body")).repeated(1 if turns is None else turns)
            return body if turns is not None else body + Cost(unknown=(i.name,))
        if i.opcode == "conditional":
            costs = map(self.of, i.branches())
            return max(costs, key=lambda cost: (cost.flops, cost.hbm_bytes))
        if i.opcode in ("call", "async-start"):
            return self.of(i.called("to_apply") or i.called("calls"))
        if i.opcode in ("fusion", "fusion-start"):
            moved = Cost(hbm_bytes=fusion_bytes(i, computation, self.computations))
            return self._inside_fusion(i.called("calls"), seen) + moved
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return self._collective(kind, i, computation, seen)
        if i.opcode in ("send", "recv"):
            return self._through_host(i)
        if i.opcode == "custom-call":
            return self._custom_call(i, computation)
        operands = operand_arrays(i, computation)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return Cost(hbm_bytes=2 * bytes_in_hbm(i.result))
        if i.opcode in ("dynamic-update-slice", "scatter"):
            return Cost(hbm_bytes=2 * bytes_in_hbm(operands[1:2]))
        if i.opcode.endswith("-start"):  # A copy: its result holds the source, too.
            return Cost(hbm_bytes=bytes_in_hbm(i.result[:2]))
        moved_bytes = bytes_in_hbm(operands) + bytes_in_hbm(i.result)
        return Cost(matrix_flops(i, operands), moved_bytes)

    def _inside_fusion(self, name: str, seen: set[str]) -> Cost:
        """FLOPs and communication of the instructions in a fusion."""
        computation = self.computations[name]
        total = Cost()
        for i in computation.values():
            kind = i.opcode.removesuffix("-start")
            if i.opcode == "fusion":
                total += self._inside_fusion(i.called("calls"), seen)
            elif kind in COLLECTIVES:
                # TPU's compiler has no other form of a fused reduce-scatter.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                total += self._collective(kind, i, computation, seen)
            else:
                total += Cost(matrix_flops(i, operand_arrays(i, computation)))
        return total

    def _custom_call(self, i: Instruction, computation: Computation) -> Cost:
        """Pallas kernels, cuDNN's attention, cuBLAS; NVIDIA's other libraries are unknown."""
        operands = operand_arrays(i, computation)
        moved = Cost(hbm_bytes=bytes_in_hbm(operands) + bytes_in_hbm(i.result))
        found = re.search(r'custom_call_target="([^"]*)"', i.attributes)
        target = found[1] if found else ""
        if target == "tpu_custom_call":
            name = re.sub(r"(\.\d+|\.clone)+$", "", i.name)
            flops = self.kernels.get((name, tuple(array.shape for array in i.result)))
            return moved + (Cost(unknown=(i.name,)) if flops is None else Cost(flops))
        attention = cudnn_attention_flops(target, operands)
        if attention is not None:
            return moved + Cost(attention)
        product = matrix_flops(i, operands)
        if product:
            return moved + Cost(product)
        if target.startswith(("__cublas", "__cudnn")):
            return moved + Cost(unknown=(target,))
        return Cost()

    def _collective(
        self, kind: str, i: Instruction, computation: Computation, seen: set[str]
    ) -> Cost:
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        # A collective that runs beside several fusions is written into each of them.
        key = f"{kind} {channel[1]}" if channel else i.name
        if key in seen:
            return Cost()
        seen.add(key)
        groups = parse_groups(i.attributes)
        size = len(groups[0]) if groups else math.prod(self.mesh.values())
        arrays = operand_arrays(i, computation)
        payload = sum(array.bytes for array in arrays)
        dimensions = i.numbers("dimensions")
        gathered = dimensions[0] if kind == "all-gather" and dimensions else -1
        results = tuple(array.shape for array in arrays)
        if gathered >= 0:
            results = tuple(
                (*shape[:gathered], shape[gathered] * size, *shape[gathered + 1 :])
                for shape in results
            )
        sent = ring_bytes(kind, payload, size)
        axes = spanned_axes(groups, self.mesh)
        collective = Collective(kind, axes, results, gathered, 1, sent)
        return Cost(hbm_bytes=2 * bytes_in_hbm(arrays), collectives=(collective,))

    def _through_host(self, i: Instruction) -> Cost:
        """A transfer between slices, carried by hosts: to the chip it is one send, one receive."""
        payload = sum(array.bytes for array in i.result[:1])
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
        if i.opcode == "recv" or kind is None:
            return Cost(hbm_bytes=payload)
        name = _BETWEEN_SLICES.get(kind[1], kind[1].lower().replace("_", "-"))
        sent = ring_bytes(name, payload, self.mesh.get(SLICES, 1))
        collective = Collective(name, (SLICES,), (i.result[0].shape,), -1, 1, sent)
        return Cost(hbm_bytes=payload, collectives=(collective,))


def _called_computations(i: Instruction) -> list[str]:
    """Names of the computations whose instructions run one by one where `i` stands."""
    if i.opcode == "while":
        return [i.called("body")]
    if i.opcode == "conditional":
        return i.branches()
    if i.opcode in ("call", "async-start"):
        return [i.called("to_apply") or i.called("calls")]
    return []
