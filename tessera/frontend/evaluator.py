"""From a kernel's definition to Tile IR: an abstract interpreter of its Python syntax tree.

What is known at compile time (Python numbers, lists, closures, calls of ordinary functions) is computed as Python
computes it; what is known only at run time becomes ops. The parts: `evaluator_statements` on `evaluator_expressions`
on `evaluator_calls`, all of them building through `evaluator_emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tessera.errors import SourceError, TesseraError
from tessera.frontend.annotations import ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import KernelDefinition, ParameterDefinition
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_frames import open_function
from tessera.frontend.evaluator_statements import Statements
from tessera.frontend.evaluator_values import Context
from tessera.frontend.grid import infer_grid
from tessera.ir import dims
from tessera.ir.core import Block, Kernel, Module, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import PURE
from tessera.ir.types import BufferType, ScalarType, TileType, Type, ViewType
from tessera.location import Loc


def trace(
    definition: KernelDefinition,
    static: dict[str, int] | None = None,
    grid: Callable[[Any], Any] | tuple[Any, ...] | None = None,
) -> Module:
    """The Tile IR of a kernel, its dims symbolic.

    `static` gives dims the values that decisions at compile time may use (a Python `if`, `range`); a decision on a
    dim that has none raises SourceError TS205. `grid`, or that of the definition, is declared instead of inferred: a
    tuple of sizes, or a function of the dims.

    Attributes of the kernel: `parameters` ((name, "in" | "out" | "inout"), ...), `dims` (names in order of appearance),
    `shape_dims` (those that must be static for lowering), `grid` and `notes` (see `grid.infer_grid`).
    """
    if "space" in definition.options:
        raise SourceError("TS102", f"'{definition.name}' is autotuned, which is not supported yet", definition.loc)
    types = [_parameter_type(definition, parameter) for parameter in definition.parameters]
    names = _dims_of(types)
    body = Block()
    emit = Emitter(body, names, static or {}, {}, definition.loc)
    arguments = {}
    for parameter, type_ in zip(definition.parameters, types, strict=True):
        value = body.add_argument(type_, parameter.name)
        arguments[parameter.name] = emit.parameter_view(value) if isinstance(type_, ViewType) else emit.handle(value)
    frame = open_function(definition.function, arguments, body)
    statements = Statements(emit)
    statements.frames.append(frame)
    statements.run_body(frame.source.node.body)
    _drop_unused(body, set())
    kernel = Kernel(definition.name, body, {}, (definition.loc,))
    kernel.attributes["parameters"] = tuple(_roles(kernel))
    kernel.attributes["dims"] = names
    needed = _dims_of(_placed_types(body)) + tuple(emit.decided)
    kernel.attributes["shape_dims"] = tuple(name for name in names if name in needed)
    chosen = grid if grid is not None else definition.grid
    infer_grid(kernel, None if chosen is None else _grid_sizes(chosen, emit.context, definition.loc))
    return Module("tile", [kernel])


def _parameter_type(definition: KernelDefinition, parameter: ParameterDefinition) -> Type:
    annotation = parameter.annotation
    if isinstance(annotation, ScalarAnnotation):
        return ScalarType(annotation.dtype)
    loc = parameter_loc(definition, parameter.name)
    if isinstance(annotation, ListAnnotation):
        raise SourceError("TS102", f"'{parameter.name}' is a list of tensors; kernels do not take lists yet", loc)
    assert isinstance(annotation, TensorAnnotation)
    if annotation.shape is None:
        raise SourceError(
            "TS206",
            f"'{parameter.name}' has the annotation {annotation}; a kernel must know the axes of its tensors",
            loc,
        )
    if annotation.dtype is None:
        raise SourceError("TS206", f"the annotation {annotation} of '{parameter.name}' has no dtype", loc)
    return ViewType(annotation.shape, annotation.dtype)


def parameter_loc(definition: KernelDefinition, name: str) -> Loc:
    """Where a parameter's annotation is written."""
    arguments = definition.source.node.args
    node = next(a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg == name)
    return definition.source.loc(node.annotation or node)


def _dims_of(types: Iterable[Type]) -> tuple[str, ...]:
    """Names of the dims in shapes, in order of appearance; inside one size, alphabetically."""
    found: dict[str, None] = {}
    for type_ in types:
        if isinstance(type_, (TileType, BufferType, ViewType)):
            for size in type_.shape:
                found.update(dict.fromkeys(sorted(dims.symbols(size))))
    return tuple(found)


def _placed_types(body: Block) -> Iterable[Type]:
    """Types of everything that takes room on the device, and of windows, whose extents code is made for."""
    for op in body.walk():
        for value in op.results:
            yield value.type
        if op.name == "window":
            yield ViewType(op.attributes["extents"], op.results[0].type.dtype)  # type: ignore[union-attr]


def _drop_unused(block: Block, used: set[int]) -> None:
    """Drops pure ops whose results nothing uses: what was evaluated only to find a window's extent, and the like."""
    kept = []
    for op in reversed(block.ops):
        if op.definition.has(PURE) and not any(id(result) in used for result in op.results):
            continue
        for region in op.regions:
            _drop_unused(region, used)
        used.update(id(value) for value in op.operands)
        kept.append(op)
    block.ops[:] = reversed(kept)


def _roles(kernel: Kernel) -> Iterable[tuple[str, str]]:
    """What the kernel does to each parameter: written and never read is "out", both is "inout"."""
    read: set[int] = set()
    written: set[int] = set()
    for op in kernel.body.walk():
        for effect, value in op.definition.effects_of(op):
            base = id(_base(value))
            if effect != "writes":
                read.add(base)
            if effect != "reads":
                written.add(base)
    for parameter in kernel.parameters:
        is_written = id(parameter) in written
        yield parameter.name, "in" if not is_written else "inout" if id(parameter) in read else "out"


def _base(value: Value) -> Value:
    """The parameter or buffer behind a reference."""
    while value.defining_op is not None and isinstance(value.type, ViewType):
        value = value.defining_op.operands[0]
    return value


def _grid_sizes(grid: Any, context: Context, loc: Loc) -> tuple[Size, ...]:
    """A grid as sizes: the tuple itself, or what the author's function gives for the dims."""
    if callable(grid):
        try:
            grid = grid(context)
        except TesseraError as error:
            raise error.at(loc) from None
        except Exception as error:  # the author's function may raise anything
            raise SourceError("TS105", f"the grid function raised {type(error).__name__}: {error}", loc) from None
    sizes = grid if isinstance(grid, (tuple, list)) else (grid,)
    for size in sizes:
        if type(size) is not int and not isinstance(size, dims.Dim):
            raise SourceError("TS203", f"a grid is a tuple of integers over the dims, not {grid!r}", loc)
    return tuple(sizes)
