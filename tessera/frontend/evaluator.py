"""From a kernel's definition to Tile IR: an abstract interpreter of its Python syntax tree.

What is known at compile time (Python numbers, lists, closures, calls of ordinary functions) is computed as Python
computes it; what is known only at run time becomes ops. The parts: `evaluator_statements` on `evaluator_expressions`
on `evaluator_calls`, all of them building through `evaluator_emit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tessera.errors import SourceError, TesseraError
from tessera.frontend.annotations import ListAnnotation, ScalarAnnotation
from tessera.frontend.definition import Definition, KernelDefinition, ParameterDefinition
from tessera.frontend.evaluator_emit import Emitter
from tessera.frontend.evaluator_frames import open_function
from tessera.frontend.evaluator_lists import TensorList, check_elements
from tessera.frontend.evaluator_statements import Statements
from tessera.frontend.evaluator_unknown import UnknownList, UnknownTensor
from tessera.frontend.evaluator_values import Context
from tessera.frontend.grid import infer_grid
from tessera.frontend.inference import LENGTH, resolve, tensor_of
from tessera.frontend.space import NUM_LAYERS
from tessera.ir import dims
from tessera.ir.core import Block, Kernel, Module, Value
from tessera.ir.dims import Size
from tessera.ir.opdef import PURE
from tessera.ir.types import BufferType, ListType, ScalarType, TileType, Type, ViewType, length_name, tensor_type
from tessera.location import Loc


def trace(
    definition: KernelDefinition,
    static: dict[str, int] | None = None,
    grid: Callable[[Any], Any] | tuple[Any, ...] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Module:
    """The Tile IR of a kernel, its dims symbolic.

    `static` gives dims the values that decisions at compile time may use (a Python `if`, `range`); a decision on a
    dim that has none raises SourceError TS205. The length of each list x is among them, as "len(x)". `grid`, or that of
    the definition, is declared instead of inferred: a tuple of sizes, or a function of the dims. `constants` pins
    tuning constants, as `KernelDefinition.pinned`.

    Attributes of the kernel: `parameters` ((name, "in" | "out" | "inout"), ...), `dims` (names in order of appearance),
    `shape_dims` (those that must be static for lowering), `grid` and `notes` (see `grid.infer_grid`).
    """
    return trace_with_reads(definition, static, grid, constants)[0]


def trace_with_reads(
    definition: KernelDefinition,
    static: dict[str, int] | None = None,
    grid: Callable[[Any], Any] | tuple[Any, ...] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> tuple[Module, frozenset[str]]:
    """What `trace` gives, and the tuning constants that decided it: with other values of the rest it is the same."""
    definition = definition.pinned(constants or {})
    definition.check_space()
    definition = resolve(definition, static)
    attempt = _Attempt(definition, static or {}, rerolls=True)
    try:
        return attempt.module(grid), attempt.reads
    except TesseraError as error:
        if not attempt.statements.rerolled:
            raise
        problem = error
    try:
        # What a loop left of its names may have been missed after it: unrolled, they have their last values.
        unrolled = _Attempt(definition, static or {}, rerolls=False)
        return unrolled.module(grid), attempt.reads | unrolled.reads
    except TesseraError as error:
        raise problem if error.code == problem.code else error from problem  # the loop tells more


class _Attempt:
    """One evaluation of a kernel. `rerolls`: whether static loops may stay loops."""

    def __init__(self, definition: KernelDefinition, static: Mapping[str, int], rerolls: bool) -> None:
        self.definition = definition
        lengths = _lengths(definition, static)
        types = {p.name: _parameter_type(p, lengths) for p in definition.parameters}
        self.names = _dims_of(type_ for type_ in types.values() if type_ is not None)
        self.body = Block()
        constants = dict(definition.constants)
        if lengths and NUM_LAYERS not in (*constants, *self.names):
            constants[NUM_LAYERS] = next(iter(lengths.values()))
        self.emit = Emitter(self.body, self.names, dict(static), constants, definition.loc)
        self.emit.decided |= {length_name(name) for name in lengths}
        arguments = {name: self._argument(name, type_, lengths) for name, type_ in types.items()}
        arguments.update(dict.fromkeys(definition.absent))
        self.statements = Statements(self.emit)
        self.statements.rerolls = rerolls
        self.statements.frames.append(open_function(definition.function, arguments, self.body))

    def _argument(self, name: str, type_: Type | None, lengths: Mapping[str, int]) -> Any:
        if type_ is None:
            return UnknownList(self.emit, name, lengths[name]) if name in lengths else UnknownTensor(name)
        value = self.body.add_argument(type_, name)
        if isinstance(type_, ListType):
            return TensorList(self.emit, value)
        return self.emit.parameter_view(value) if isinstance(type_, ViewType) else self.emit.handle(value)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.emit.context._reads & set(self.definition.constants))

    def run(self) -> None:
        self.statements.run_body(self.statements.frame.source.node.body)

    def module(self, grid: Callable[[Any], Any] | tuple[Any, ...] | None) -> Module:
        self.run()
        definition, emit, names, body = self.definition, self.emit, self.names, self.body
        _drop_unused(body, set())
        kernel = Kernel(definition.name, body, {}, (definition.loc,))
        kernel.attributes["parameters"] = tuple(_roles(kernel))
        kernel.attributes["dims"] = names
        if definition.constants:
            kernel.attributes["constants"] = dict(definition.constants)
        if definition.schedule:
            kernel.attributes["pins"] = dict(definition.schedule)
        emit.decided |= check_elements(kernel, emit.static)
        if definition.static:
            kernel.attributes["static_dims"] = _known_dims(definition, names)
            emit.decided |= set(definition.static)
        needed = _dims_of(_placed_types(body)) + tuple(emit.decided)
        lengths = tuple(length_name(p.name) for p in kernel.parameters if isinstance(p.type, ListType))
        kernel.attributes["shape_dims"] = tuple(name for name in (*names, *lengths) if name in needed)
        chosen = grid if grid is not None else definition.grid
        infer_grid(kernel, None if chosen is None else _grid_sizes(chosen, emit.context, definition.loc))
        return Module("tile", [kernel])


def _known_dims(definition: KernelDefinition, names: tuple[str, ...]) -> tuple[str, ...]:
    """The dims that the option `static=` names. Raises SourceError TS201 for one that the kernel does not have."""
    for name in definition.static:
        if name not in names:
            message = f"static= names '{name}', which is no dim of '{definition.name}': those are {', '.join(names)}"
            raise SourceError("TS201", message, definition.loc)
    return definition.static


def evaluate_once(definition: KernelDefinition, static: Mapping[str, int]) -> None:
    """Evaluates a kernel for the sake of what it asks of its unknown tensors. Raises `inference.NeedsAxes`."""
    lengths = {length_name(p.name): LENGTH for p in definition.parameters if isinstance(p.annotation, ListAnnotation)}
    given = {name: size for name, size in static.items() if size or name not in lengths}  # no tensors tell nothing
    _Attempt(definition, {**lengths, **given}, rerolls=True).run()


def _lengths(definition: KernelDefinition, static: Mapping[str, int]) -> dict[str, int]:
    """The length of each list parameter. Raises SourceError TS205 where it is not given, TS206 for a missing dtype."""
    lengths = {}
    for parameter in definition.parameters:
        _check_dtype(definition, parameter)
        if isinstance(parameter.annotation, ListAnnotation):
            name = length_name(parameter.name)
            if name not in static:
                loc = parameter_loc(definition, parameter.name)
                raise SourceError("TS205", f"the length of the list '{parameter.name}' must be known", loc)
            lengths[parameter.name] = static[name]
    return lengths


def _check_dtype(definition: KernelDefinition, parameter: ParameterDefinition) -> None:
    tensor = tensor_of(parameter.annotation)
    if tensor is not None and tensor.shape is not None and tensor.dtype is None:
        loc = parameter_loc(definition, parameter.name)
        raise SourceError("TS206", f"the annotation {parameter.annotation} of '{parameter.name}' has no dtype", loc)


def _parameter_type(parameter: ParameterDefinition, lengths: Mapping[str, int]) -> Type | None:
    """The type of a parameter; None where its axes are still to be inferred."""
    annotation = parameter.annotation
    if isinstance(annotation, ScalarAnnotation):
        return ScalarType(annotation.dtype)
    tensor = tensor_of(annotation)
    assert tensor is not None
    if tensor.shape is None or tensor.dtype is None:
        return None
    view = ViewType(tensor.shape, tensor.dtype)
    return ListType(view, lengths[parameter.name]) if isinstance(annotation, ListAnnotation) else view


def parameter_loc(definition: Definition, name: str) -> Loc:
    """Where a parameter's annotation is written."""
    arguments = definition.source.node.args
    node = next(a for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg == name)
    return definition.source.loc(node.annotation or node)


def _dims_of(types: Iterable[Type]) -> tuple[str, ...]:
    """Names of the dims in shapes, in order of appearance; inside one size, alphabetically."""
    found: dict[str, None] = {}
    for type_ in types:
        shaped = tensor_type(type_) or type_
        if isinstance(shaped, (TileType, BufferType, ViewType)):
            for size in shaped.shape:
                found.update(dict.fromkeys(sorted(dims.symbols(size))))
    return tuple(found)


def _placed_types(body: Block) -> Iterable[Type]:
    """Types of everything that takes room on the device, and of windows, whose extents code is made for."""
    for op in body.walk():
        for value in op.results if op.name != "element" else ():
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
                if isinstance(_base(value).type, ListType):
                    raise SourceError(
                        "TS203",
                        f"'{_base(value).name}' is a list of tensors, which a kernel only reads; what it writes is a "
                        "parameter of its own",
                        op.loc,
                    )
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
