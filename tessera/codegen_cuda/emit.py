"""Target IR to CUDA C++: one op becomes one statement, said by its template or expression. Nothing is decided here."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tessera.codegen_cuda import statements
from tessera.codegen_cuda.layouts import LayoutNames
from tessera.codegen_cuda.names import Names, dim_name, function_name, size_text
from tessera.codegen_cuda.views import ViewNames, parameter_view
from tessera.errors import InternalError
from tessera.ir.clusters import cluster_of
from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.ops.roles import computing_warps
from tessera.ir.ranges import Ranges
from tessera.ir.strides import parameter_strides
from tessera.ir.types import ListType, ScalarType, TileType, tensor_type
from tessera.target.row_lines import blocks_of_lines
from tessera.target.tensor_maps import TensorMap, mapped_views

TEMPLATES = Path(__file__).parent / "templates"
BODY = "<<body>>"  # the line of a template where an op's region goes


@dataclass(frozen=True)
class Line:
    """A line of text and the op that it says."""

    text: str
    op: Op | None = None


@dataclass(frozen=True)
class CudaKernel:
    """Emitted text.

    `threads` of a block, producers counted. `lines` maps a 1-based line of `text` to the id of its op; `pointers` names
    the parameters passed as a pointer, lists as one for each tensor; `maps` are the tensor maps passed after those, for
    a list one for each tensor, and `sizes` the dims after these. `variables` says how the text calls the values of the
    kernel that it was emitted from; a window is called by its pointer.
    """

    name: str
    text: str
    threads: int
    shared_bytes: int
    pointers: tuple[str, ...]
    sizes: tuple[str, ...]
    scalars: tuple[str, ...]
    lines: dict[int, int] = field(default_factory=dict)
    variables: dict[Value, str] = field(default_factory=dict, repr=False, compare=False)
    maps: tuple[TensorMap, ...] = ()


@cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        autoescape=False,
        auto_reload=False,  # else each use of a template asks the file system for its time
    )


_DECLARED = re.compile(r"(?:\b(?:int|float|bool|char|ts_\w+)|\}\}|,)[ *]+(\w+)(?= = |\[|;)")


@cache
def template_locals(template: str) -> frozenset[str]:
    """The variables that a template declares: inside its statement, a value of the same name would be hidden."""
    return frozenset(_DECLARED.findall((TEMPLATES / f"{template}.j2").read_text(encoding="utf-8")))


def emit(kernels: Sequence[Kernel]) -> list[CudaKernel]:
    """The CUDA texts of placed Target kernels, which one after the other are one text.

    Raises InternalError for an op without a template.
    """
    texts, before = [], (0, 0)
    declared: set[str] = set()
    for kernel in kernels:
        emitter = Emitter(kernel, before, frozenset(declared))
        texts.append(emitter.run())
        before = emitter.layouts.count
        declared |= emitter.instructions
    return texts


def _bounds(name: str, threads: int, kernel: Kernel) -> str:
    """The head of the kernel: threads of a block and, where the schedule or its lines ask, blocks that must fit, or
    form a cluster.

    Where roles move registers, the assembler must know how many a thread starts with, which follows from both: without
    the blocks it ignores the moves (C7508).
    """
    blocks = (kernel.attributes.get("schedule") or {}).get("blocks", 1)
    blocks = blocks if blocks > 1 else blocks_of_lines(kernel)
    moves = any(op.name == "roles" and any(op.attributes["registers"]) for op in kernel.body.ops)
    if cluster_of(kernel) > 1:
        return f"TS_KERNEL_CLUSTER({name}, {threads}, {blocks}, {cluster_of(kernel)})"
    said = blocks > 1 or moves
    return f"TS_KERNEL_OCC({name}, {threads}, {blocks})" if said else f"TS_KERNEL({name}, {threads})"


class Emitter:
    def __init__(self, kernel: Kernel, before: tuple[int, int] = (0, 0), declared: frozenset[str] = frozenset()):
        """`before`, `declared`: the layouts and the instructions that the text in front of the kernel has."""
        self.kernel = kernel
        self.names = Names()
        self.layouts = LayoutNames(before)
        self.views: dict[Value, ViewNames] = {}
        self.elements: dict[Value, ViewNames] = {}  # of a list parameter, any of its tensors
        self.places: dict[Value, tuple[str, int]] = {}  # of a buffer: its turn's bytes and its start in shared memory
        self.warps = kernel.attributes["warps"]
        self.threads = self.warps * 32  # that compute: those of producers stand behind them
        self.block_threads = (computing_warps(kernel) + kernel.attributes.get("producer_warps", 0)) * 32
        self.first_warp = 0  # of the team of consumers that the current statement is for
        self.part = (0, 1)  # of the registers of each tile, which one the current statement is about, and of how many
        self.ranges = Ranges(kernel)
        self.declared, self.instructions = declared, set[str]()  # those of a shape, which the head declares
        self.used = uses(kernel.body)
        self.maps: dict[TensorMap, tuple[str, str]] = {}  # how each is declared and called
        self.mapped = mapped_views(kernel.body)

    def run(self) -> CudaKernel:
        kernel = self.kernel
        self.names.taken |= {"shared_base"}
        for op in kernel.body.walk():
            if op.definition.lower is not None and op.definition.lower.template:
                self.names.taken |= template_locals(op.definition.lower.template)
        static = kernel.attributes.get("static", {})
        dims = [dim for dim in kernel.attributes.get("dims", ()) if dim not in static]
        roles = dict(kernel.attributes.get("parameters", ()))
        pointers, scalars, signature = [], [], []
        for value in kernel.parameters:
            name = self.names.value(value)
            tensor = tensor_type(value.type)
            if tensor is None:
                continue
            steps = parameter_strides(value.name, tensor.shape, kernel.attributes)
            view = parameter_view(name, tensor, steps, roles.get(value.name, "in") == "in")
            pointers.append(value.name)
            if isinstance(value.type, ListType):
                # An array has one element at least, and every argument of a launch a slot.
                signature.append(f"TS_TABLE({view.dtype}, {max(1, value.type.length)}) {name}")
                self.elements[value] = view
            else:
                signature.append(f"{view.dtype}* TS_RESTRICT {name}")
                self.views[value] = view
        for value in kernel.parameters:
            if isinstance(value.type, ScalarType):
                self.names.value(value)  # before those of the body
                scalars.append(value)
        body = self.block(kernel.body, "    ")
        signature += [declaration for declaration, _ in self.maps.values()]
        signature += [f"ts_i64 {dim_name(dim)}" for dim in dims]
        signature += [f"{value.type.dtype.cuda} {self.names.value(value)}" for value in scalars]
        name = function_name(kernel.name)
        head = [
            '#include "tessera_device.h"',
            "",
            *sorted(self.instructions - self.declared),
            *self.layouts.functions(),
            "",
            f"{_bounds(name, self.block_threads, kernel)}({', '.join(signature)}) {{",
            "    TS_SHARED(shared_base);",
            *(f"    {text}" for text in self.layouts.variables(self.threads // 32)),
        ]
        lines = [Line(text) for text in head] + body + [Line("}"), Line("")]
        table = {number: line.op.id for number, line in enumerate(lines, 1) if line.op is not None}
        return CudaKernel(
            name,
            "\n".join(line.text for line in lines),
            self.block_threads,
            kernel.attributes.get("shared_bytes", 0),
            tuple(pointers),
            tuple(dims),
            tuple(value.name for value in scalars),
            table,
            {**self.names.of_value, **{value: view.pointer for value, view in self.views.items()}},
            tuple(self.maps),
        )

    def block(self, block: Block, indent: str) -> list[Line]:
        lines: list[Line] = []
        for op in block.ops:
            lines += self.op(op, block, indent)
        return lines

    def op(self, op: Op, block: Block, indent: str) -> list[Line]:
        lowering = op.definition.lower
        if lowering is None or not (lowering.template or lowering.expression or lowering.integer):
            raise InternalError("TS901", f"op {op.name} has no CUDA text at Target level", op.loc)
        family = statements.statement_of(op.name) or statements.basic.elementwise
        context = family(self, op)
        if context is None:  # says nothing: its users refer to the operand itself
            return []
        # A tile that is computed in parts is declared by the first.
        template = _environment().get_template(f"{lowering.template or 'elementwise'}.j2")
        text = template.render(context, declare=self.part[0] == 0, thread=self.thread)
        lines: list[Line] = []
        if op.loc is not None and op.name not in statements.QUIET:
            place = op.loc.file.replace("\\", "/").rsplit("/", 1)[-1]
            lines.append(
                Line(
                    f"{indent}// {op.name} {', '.join(result.name for result in op.results if result.name)}".rstrip()
                    + f"  {place}:{op.loc.line}",
                    op,
                )
            )
        bodies = self.bodies(op, indent)
        for row in text.split("\n"):
            if row.strip() == BODY:
                deeper = row[: row.index(BODY)]
                lines += [Line(deeper + line.text, line.op) for line in next(bodies)] if deeper else next(bodies)
            elif row.strip():
                lines.append(Line(indent + row, op))
        return lines

    def bodies(self, op: Op, indent: str) -> Iterator[list[Line]]:
        """The lines of each region of an op; of one that runs in parts those of every part, in one scope."""
        parts = op.get("parts")
        if parts is None:
            around, first = self.first_warp, itertools.repeat(self.first_warp)
            if op.name == "roles":
                first = (0, *itertools.accumulate(op.attributes["warps"][1:], initial=0))
            for region, warp in zip(op.regions, first, strict=False):
                self.first_warp = warp
                yield self.block(region, indent + "    ")
            self.first_warp = around
            return
        for number in range(parts):
            self.part = (number, parts)
            lines = self.block(op.regions[0], indent)
            self.part = (0, 1)
            yield lines

    # names that templates use -----------------------------------------------------------------------------------------

    def name(self, value: Value) -> str:
        return self.names.value(value)

    def fresh(self, hint: str) -> str:
        return self.names.fresh(hint)

    def map_name(self, wanted: TensorMap, length: int | None) -> str:
        """The parameter that a tensor map is passed as, or the maps of all `length` tensors of a list."""
        if wanted not in self.maps:
            name = self.fresh(f"{wanted.parameter}_map{'s' if length is not None else ''}")
            # An array has one element at least.
            declared = "TS_MAP" if length is None else f"TS_MAPS({max(1, length)})"
            self.maps[wanted] = f"{declared} {name}", name
        return self.maps[wanted][1]

    @property
    def thread(self) -> str:
        """The number of a thread among those that compute a tile together."""
        return f"(ts_thread() - {self.first_warp * 32})" if self.first_warp else "ts_thread()"

    @property
    def warp(self) -> str:
        return f"(ts_warp() - {self.first_warp})" if self.first_warp else "ts_warp()"

    def size(self, size: Any) -> str:
        return size_text(size)

    def span(self, count: int) -> tuple[int, int]:
        """The first of `count` registers that the current statement is about, and the one after its last."""
        number, parts = self.part
        return number * count // parts, (number + 1) * count // parts

    def is_tile(self, value: Value) -> bool:
        return isinstance(value.type, TileType)
