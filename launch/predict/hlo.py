"""Reads a compiled TPU program's HLO text: cycles, operations and collectives, with loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once. Here the text is walked from the entry; the body of a `while` is
multiplied by its trips: the bound in its condition where that is a constant, else what the caller knows of the loop.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rlvr.policy.packed import whole_blocks

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
BYTES |= {"u64": 8, "f64": 8, "s4": 1, "u4": 1}

Shape = tuple[str, tuple[int, ...]]
# (op_name of a loop) -> how often it runs, or None where that is not known.
Trips = Callable[[str], float | None]


class Op(NamedTuple):
    """One instruction.

    Attributes:
        name, kind: of it.
        shapes: of its result, one for each part of a tuple.
        operands: names.
        calls: computations that it runs: of a fusion, or (condition, body) of a loop.
        cycles: the compiler's estimate; 0 where it gives none.
        path: the op_name of its metadata.
        text: the whole line.
    """

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    cycles: float
    path: str
    text: str


class Collective(NamedTuple):
    """One exchange between chips, run `times` times: `bytes` that arrive at a chip each time."""

    kind: str
    bytes: float
    times: float
    shapes: tuple[Shape, ...]
    path: str


@dataclasses.dataclass
class Program:
    """What a program does on one chip.

    Attributes:
        cycles: the sum of the compiler's estimates.
        flops: of products.
        kernel_flops: those of them in grouped products, for which the compiler estimates no cycles.
        attention_flops, attention_bytes: of the kernels of attention, for which it estimates none either: products of
            packed rows (also in `flops`; here heads count as 128 wide at least, as they fill the matrix units), and
            what of the cache is read.
        hbm_bytes: that products read and write, on-chip memory left out.
        gather_bytes: that gathers read and write, for which it estimates no cycles either.
        collectives: all of them.
        by_place: cycles by the part of the program that they are spent in.
        unknown: loops that were counted once for want of knowledge.
    """

    cycles: float = 0.0
    flops: float = 0.0
    kernel_flops: float = 0.0
    attention_flops: float = 0.0
    attention_bytes: float = 0.0
    hbm_bytes: float = 0.0
    gather_bytes: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    by_place: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    unknown: set[str] = dataclasses.field(default_factory=set)

    def collective_bytes(self) -> dict[str, float]:
        """Returns the bytes that arrive at a chip, by kind."""
        out: dict[str, float] = collections.defaultdict(float)
        for one in self.collectives:
            out[one.kind] += one.bytes * one.times
        return dict(out)


def parse(text: str) -> tuple[dict[str, list[Op]], str]:
    """Returns (the computations by name, the entry's name)."""
    computations: dict[str, list[Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (op := parse_op(line)):
            current.append(op)
    return computations, entry


def parse_op(line: str) -> Op | None:
    """Returns the instruction of a line, None if there is none."""
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$", line)
    if not match:
        return None
    name, result, kind, rest = match.groups()
    called = re.search(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)", rest)
    calls = called.groups() if called else tuple(re.findall(r"(?:calls|called_computation)=%?([\w.\-]+)", rest))
    if not calls and (branches := re.search(r"branch_computations=\{([^}]*)\}", rest)):
        calls = tuple(re.findall(r"%?([\w.\-]+)", branches[1]))
    cycles = re.search(r'"estimated_cycles":"?(\d+)', rest)
    path = re.search(r'op_name="([^"]*)"', rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest.split(")", 1)[0]))
    return Op(
        name, kind, read_shapes(result), operands, calls, float(cycles[1]) if cycles else 0.0,
        path[1] if path else "", line,
    )  # fmt: skip


def read_shapes(text: str) -> tuple[Shape, ...]:
    """Returns the shapes in a result's type."""
    return tuple(
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", text)
        if dtype in BYTES
    )


def shape_bytes(shape: Shape) -> int:
    """Returns the bytes of an array."""
    return math.prod(shape[1]) * BYTES[shape[0]]


def analyse(text: str, trips: Trips, kernel_share: float = 1.0) -> Program:
    """Walks a program; see the module's docstring.

    Args:
        trips: of the loops whose bounds are not constants.
        kernel_share: of the rows of grouped products, how many belong to a group (the kernels skip the others).
    """
    computations, entry = parse(text)
    program, seen = Program(), set[str]()
    _walk(computations, entry, 1.0, trips, program, seen, inside=False)
    program.flops -= program.kernel_flops * (1 - kernel_share)
    program.kernel_flops *= kernel_share
    return program


def _walk(
    computations: dict[str, list[Op]],
    name: str,
    times: float,
    trips: Trips,
    program: Program,
    seen: set[str],
    *,
    inside: bool,
) -> None:
    """Adds a computation that runs `times` times. `inside` a fusion its cycles and bytes are the fusion's."""
    ops = computations[name]
    shapes, results = {op.name: op.shapes for op in ops}, {op.name: op for op in ops}
    for op in ops:
        if not inside:
            program.cycles += op.cycles * times
            program.by_place[place_of(op.path)] += op.cycles * times
        if op.kind == "convolution":
            program.flops += convolution_flops(op, shapes) * times
            program.hbm_bytes += hbm_bytes(op, results) * times
        elif op.kind == "custom-call" and (work := kernel_flops(op, shapes)):
            program.flops += work * times
            program.kernel_flops += work * times
        elif op.kind == "custom-call" and "attention" in op.path and (visits := trips(f"{op.path}/{op.name}")):
            work, room, read = attention_work(op, results)
            program.flops += work * visits * times
            program.attention_flops += room * visits * times
            program.attention_bytes += read * visits * times
        elif op.kind.removesuffix("-start") in COLLECTIVES:
            # A collective that runs beside other work stands in each of the fusions that it goes through, always with
            # its channel. Those of a `shard_map` all have the first.
            channel = re.search(r"channel_id=(\d+)", op.text)
            key = op.name if channel is None or channel[1] == "1" else channel[1]
            if key not in seen:
                seen.add(str(key))
                program.collectives.append(read_collective(op, shapes, name)._replace(times=times))
        if op.kind == "while":
            condition, body = op.calls
            known = constant_bound(computations[condition])
            count: float | None = trips(op.path) if known is None else known
            if count is None:
                program.unknown.add(op.path)
                count = 1.0
            _walk(computations, body, times * count, trips, program, seen, inside=inside)
        else:
            if op.kind == "fusion" and not op.cycles and not inside and gathers(computations[op.calls[0]]):
                program.gather_bytes += 2.0 * sum(shape_bytes(shape) for shape in op.shapes) * times
            for called in op.calls:
                fused = inside or op.kind in ("fusion", "custom-call")
                _walk(computations, called, times, trips, program, seen, inside=fused)


def gathers(ops: list[Op]) -> bool:
    """Returns whether a fusion is a gather."""
    return any(op.kind == "gather" for op in ops)


def constant_bound(condition: list[Op]) -> float | None:
    """Returns the bound of a loop that counts from 0 to a constant, or None."""
    constants = {op.name: float(value[1]) for op in condition if (value := re.search(r" constant\((\d+)\)", op.text))}
    for op in condition:
        if op.kind == "compare" and "direction=LT" in op.text:
            return next((constants[name] for name in op.operands if name in constants), None)
    fused = [op for op in condition if op.kind == "fusion"]
    return next(iter(constants.values())) if fused and len(constants) == 1 else None


def convolution_flops(op: Op, shapes: dict[str, tuple[Shape, ...]]) -> float:
    """Returns the operations of a convolution, which is what products are on a TPU: 2 a multiplication that counts.

    Raises:
        ValueError: its operands are not in the same computation.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text)
    if labels is None or any(name not in shapes for name in op.operands[:2]):
        raise ValueError(f"cannot read the convolution {op.text[:200]}")
    left, kernel, out = labels.groups()
    left_sizes, kernel_sizes, out_sizes = shapes[op.operands[0]][0][1], shapes[op.operands[1]][0][1], op.shapes[0][1]
    window = re.search(r"window=\{([^}]*)\}", op.text)
    fields = dict(re.findall(r"(\w+)=([\w\-]+)", window[1])) if window else {}
    work = 2.0 * kernel_sizes[kernel.index("i")] * out_sizes[out.index("b")] * out_sizes[out.index("f")]
    for dimension in range(sum(label.isdigit() for label in out)):
        work *= valid_taps(
            left_sizes[left.index(str(dimension))],
            kernel_sizes[kernel.index(str(dimension))],
            out_sizes[out.index(str(dimension))],
            {name: value.split("x")[dimension] for name, value in fields.items()},
        )
    return work


def valid_taps(left: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Returns how many pairs of an output's place and a kernel's meet an element of the input, in one dimension."""
    stride, low = int(window.get("stride", 1)), int(window.get("pad", "0_0").split("_")[0])
    left_dilate, kernel_dilate = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    last = (left - 1) * left_dilate
    return sum(
        0 <= (at := place * stride + tap * kernel_dilate - low) <= last and at % left_dilate == 0
        for place in range(out)
        for tap in range(kernel)
    )


def kernel_flops(op: Op, shapes: dict[str, tuple[Shape, ...]]) -> float:
    """Returns the operations of a grouped product [m, k] x [groups, k, n], 0 for any other custom call."""
    sizes = [shapes[name][0][1] for name in op.operands if shapes.get(name)]
    products = [s for s in sizes if len(s) == 3]
    rows = [s for s in sizes if len(s) == 2]
    if "ragged" not in op.path or len(products) != 1 or not rows or not op.shapes:
        return 0.0
    out = op.shapes[0][1]
    left = next((s for s in rows if s[1] in products[0][1:]), None)
    return 2.0 * math.prod(left) * out[-1] if left and len(out) == 2 else 0.0


def attention_work(op: Op, results: dict[str, Op]) -> tuple[float, float, float]:
    """Returns (operations a pair of blocks, the same as if heads were 128 wide or more, bytes a page of each row) of a
    kernel of attention."""
    arrays = [results[name].shapes[0] for name in op.operands if name in results and results[name].shapes]
    kernel = re.match(r"(forward|query|key)_kernel", op.name)
    if kernel:
        # Queries [B, K, g, T, h]; products of each kernel.
        batch, heads, groups, length, size = next(shape for _, shape in arrays if len(shape) == 5)
        products = {"forward": 2, "query": 3, "key": 4}[kernel[1]]
        each = 2.0 * products * whole_blocks(length) ** 2 * batch * heads * groups
        return each * size, each * max(size, 128), 0.0
    dtype, shape = max(arrays, key=shape_bytes)  # [pages, P, 2K, W]
    return 0.0, 0.0, float(op.shapes[0][1][0] * shape_bytes((dtype, shape[-3:])))


def read_collective(op: Op, shapes: dict[str, tuple[Shape, ...]], computation: str) -> Collective:
    """Returns what a collective moves to a chip; rings, so that an all-reduce is two passes."""
    kind = op.kind.removesuffix("-start")
    group = group_size(op.text)
    size = float(sum(shape_bytes(shape) for shape in op.shapes))
    share = (group - 1) / group if group else 1.0
    if kind == "all-reduce":
        # Where only a slice of the sum is kept the compiler fuses the two.
        kind = "reduce-scatter" if "all-reduce-scatter" in computation else kind
        size *= share * (1.0 if kind == "reduce-scatter" else 2.0)
    elif kind == "reduce-scatter":
        size *= group - 1 if group else 1.0
    elif kind != "collective-permute":
        size *= share
    return Collective(kind, size, 1.0, op.shapes, op.path)


def group_size(text: str) -> int:
    """Returns over how many chips a collective goes; 0 where the text does not say."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    return 0


def hbm_bytes(op: Op, results: dict[str, Op]) -> float:
    """Returns the bytes that a product reads and writes, arrays in on-chip memory (space 1) left out."""
    parts = [op, *(results[name] for name in op.operands[:2] if name in results)]
    return float(
        sum(
            math.prod(int(size) for size in sizes.split(",") if size) * BYTES[dtype]
            for part in parts
            for dtype, sizes, layout in re.findall(
                r"([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", part.text.split(" = ", 1)[1].split(f" {part.kind}(", 1)[0]
            )
            if dtype in BYTES and "S(1)" not in layout
        )
    )


def place_of(path: str) -> str:
    """Returns the part of the program that an op_name belongs to: "attention", "mlp", "moe", "head" or "other"."""
    for place, pattern in PLACES:
        if re.search(pattern, path):
            return place
    return "other"


PLACES: tuple[tuple[str, str], ...] = (
    ("attention", r"/attention/"),
    ("moe", r"/moe/"),
    ("mlp", r"/(mlp|shared)/"),
    ("head", r"Decoder\.logits|jvp\(\)/while|/logits"),
)


def iterate_shapes(text: str) -> Iterator[Shape]:
    """Yields the shape of every result in a program."""
    computations, _ = parse(text)
    for ops in computations.values():
        for op in ops:
            yield from op.shapes
