"""From a function's definition to Graph IR.

The body is evaluated once per shape of its decisions: Python values are computed, tensor operations become ops, calls
of other functions are inlined. A traced function has one parameter per tensor (those of a list one by one), one per
scalar, and hidden ones for what no call passes: parameters of the store, and the seed of random ops.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tessera.errors import SourceError, TesseraError
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import FunctionDefinition, ParameterDefinition
from tessera.frontend.evaluator_frames import open_function
from tessera.frontend.evaluator_lists import NamedTensors
from tessera.frontend.evaluator_values import TensorHandle
from tessera.frontend.function_emit import Collected, TensorEmitter, Unify
from tessera.frontend.function_evaluator import FunctionStatements, flat_results
from tessera.frontend.function_unused import drop_and_explain
from tessera.frontend.inference import tensor_of
from tessera.frontend.language_scopes import on_mesh
from tessera.ir import dims
from tessera.ir.core import Block, Kernel, Module
from tessera.ir.dims import Size
from tessera.ir.opdef import GRAPH
from tessera.ir.types import ScalarType, TileType, length_name
from tessera.location import Loc

MAX_UNIFICATIONS = 1000
_ELEMENT_AXIS = re.compile(r"(.+)\[\d+\]\.(\d+)")  # of `free_shape` and `element_name`


@dataclass(frozen=True)
class FunctionTrace:
    """A traced function. `module` holds its Graph IR; `bare` the annotations that its bare parameters ended with;
    `parameters` are the author's.
    """

    module: Module
    collected: Collected
    bare: Mapping[str, TensorAnnotation]
    parameters: tuple[ParameterDefinition, ...] = ()

    @property
    def function(self) -> Kernel:
        return self.module.kernel()


def element_name(name: str, index: int) -> str:
    """The parameter that is a tensor of a list."""
    return f"{name}[{index}]"


def trace_function(
    definition: FunctionDefinition,
    static: Mapping[str, int],
    bare: Mapping[str, TensorAnnotation] | None = None,
) -> FunctionTrace:
    """The Graph IR of a function, its dims symbolic where no decision needs their values.

    `static`: values of dims that decisions at compile time may use, and the lengths of lists as "len(x)"; those used
    are the attribute `shape_dims`. `bare`: annotations of bare parameters and of elements of bare lists, by name; their
    dims that no annotation has are free to be unified. Attributes: `dims`, `shape_dims`, `results` (names), `lists`
    (length by name), `checkpoint`, `mesh` (size by axis) and `notes`.
    """
    found = dict(bare or {})
    values = dict(static)
    for _ in range(MAX_UNIFICATIONS):
        attempt = Attempt(definition, values, found)
        try:
            return attempt.trace()
        except Unify as unified:
            for one in (unified, *_alike(unified, found, values)):
                found = {name: substituted(annotation, one) for name, annotation in found.items()}
            if unified.name in values and isinstance(unified.size, dims.Dim):
                text = str(unified.size)
                if dims.symbols(unified.size) == {text}:
                    values.setdefault(text, values[unified.name])
    raise SourceError("TS302", f"the sizes of '{definition.name}' cannot be unified", definition.loc)


def _alike(unified: Unify, bare: Mapping[str, TensorAnnotation], values: Mapping[str, int]) -> list[Unify]:
    """The same for the other tensors of a bare list that are of that size in this call: each would cost an attempt of
    its own. A call in which they differ is traced by itself.
    """
    match = _ELEMENT_AXIS.fullmatch(unified.name)
    if match is None or unified.name not in values:
        return []
    prefix, axis = match.groups()
    names = [f"{name}.{axis}" for name in bare if name.startswith(f"{prefix}[")]
    taken = {unified.name, *dims.symbols(unified.size)}
    return [
        Unify(name, unified.size) for name in names if name not in taken and values.get(name) == values[unified.name]
    ]


def substituted(annotation: TensorAnnotation, unified: Unify) -> TensorAnnotation:
    """An annotation in which the dim that was unified is what it was unified with."""
    if annotation.shape is None:
        return annotation
    shape = tuple(dims.substitute(size, {unified.name: unified.size}) for size in annotation.shape)
    return replace(annotation, shape=shape)


class Attempt:
    """One evaluation of a function from its start. The classes are what inference replaces."""

    emitter: type[TensorEmitter] = TensorEmitter
    statements: type[FunctionStatements] = FunctionStatements

    def __init__(
        self, definition: FunctionDefinition, static: dict[str, int], bare: Mapping[str, TensorAnnotation]
    ) -> None:
        self.definition, self.static, self.bare = definition, static, bare
        self.names: dict[str, None] = {}
        self.lists: dict[str, int] = {}
        self.body = Block()
        fixed: set[str] = set()
        for parameter in definition.parameters:
            tensor = tensor_of(parameter.annotation)
            for size in (tensor.shape or ()) if tensor is not None else ():
                fixed |= dims.symbols(size)
        free = {name for a in bare.values() for size in a.shape or () for name in dims.symbols(size)} - fixed
        self.emit = self.emitter(self.body, (), static, frozenset(free), definition.loc)
        self.emit.callers.append(definition.name)

    def trace(self) -> FunctionTrace:
        emit, statements = self.emit, self.open()
        with on_mesh(emit, self.definition):
            handles = flat_results(self.run(statements), emit)
            emit.make("return", *handles)
        for note in drop_and_explain(self.body, statements.calls, statements.frame.locals):
            emit.note(note)
        module = Module(GRAPH, [self._kernel(len(handles))])
        return FunctionTrace(module, emit.collected, self.bare, self.definition.parameters)

    def open(self) -> FunctionStatements:
        """The evaluator, at the first statement of the function."""
        definition, emit = self.definition, self.emit
        statements = self.statements(emit)
        self.binder = binder = statements.binder(definition)
        arguments = {p.name: self._argument(p.name, p.annotation, self._loc(p.name)) for p in definition.parameters}
        for parameter in definition.parameters:
            if not isinstance(parameter.annotation, ScalarAnnotation):
                binder.bind(parameter.name, parameter.annotation, arguments[parameter.name])
        emit.dim_names = tuple(self.names)
        statements.rerolls = False
        statements.frames.append(open_function(definition.function, arguments, self.body))
        return statements

    def run(self, statements: FunctionStatements) -> Any:
        """What the function returns, as its annotation wants it."""
        definition = self.definition
        result = statements.run_body(statements.frame.source.node.body)
        if result is None:
            raise SourceError("TS102", f"'{definition.name}' returns nothing", definition.loc)
        self.emit.place = definition.loc
        try:
            return self.binder.result(definition.returns, result)
        except TesseraError as error:
            raise error.at(definition.loc) from None

    def _loc(self, name: str) -> Loc:
        from tessera.frontend.evaluator import parameter_loc

        return parameter_loc(self.definition, name)

    def _argument(self, name: str, annotation: Annotation, loc: Loc) -> Any:
        if isinstance(annotation, ScalarAnnotation):
            # Weak, as the Python number that a call passes: it widens no dtype.
            return self.emit.handle(self.body.add_argument(ScalarType(annotation.dtype, weak=True), name))
        if isinstance(annotation, ListAnnotation):
            length = self.static.get(length_name(name))
            if length is None:
                raise SourceError("TS205", f"the length of the list '{name}' must be known", loc)
            self.lists[name] = length
            self.emit.decided.add(length_name(name))
            tensors = (self.tensor(element_name(name, i), annotation.element, loc) for i in range(length))
            return NamedTensors(tensors, name)
        return self.tensor(name, annotation, loc)

    def tensor(self, name: str, annotation: TensorAnnotation, loc: Loc) -> Any:
        """The argument that stands for a tensor parameter, or for one tensor of a list."""
        known = self.bare.get(name, annotation)
        shape = annotation.shape if annotation.shape is not None else known.shape
        dtype = annotation.dtype or known.dtype
        if shape is None or dtype is None:
            raise SourceError("TS206", f"the axes and the dtype of '{name}' are not known", loc)
        for size in shape:
            self.names.update(dict.fromkeys(sorted(dims.symbols(size))))
        return TensorHandle(self.body.add_argument(TileType(shape, dtype), name), self.body)

    def _kernel(self, results: int) -> Kernel:
        definition, emit = self.definition, self.emit
        kernel = Kernel(definition.name, self.body, {}, (definition.loc,))
        lengths = tuple(length_name(name) for name in self.lists)
        kernel.attributes["dims"] = tuple(self.names)
        kernel.attributes["shape_dims"] = tuple(n for n in (*self.names, *lengths) if n in emit.decided)
        kernel.attributes["results"] = ("result",) if results == 1 else tuple(f"result{i}" for i in range(results))
        if "precision" in definition.options:
            kernel.attributes["precision"] = definition.options["precision"]
        if self.lists:
            kernel.attributes["lists"] = dict(self.lists)
        if definition.options.get("checkpoint"):
            kernel.attributes["checkpoint"] = True
        if emit.mesh is not None:
            kernel.attributes["mesh"] = dict(zip(emit.mesh.axes, emit.mesh.shape, strict=True))
        if emit.collected.notes:
            kernel.attributes["notes"] = tuple(emit.collected.notes)
        return kernel


def free_shape(name: str, rank: int) -> tuple[Size, ...]:
    """Dims of its own for a bare parameter of `rank` axes."""
    return tuple(dims.symbol(f"{name}.{axis}") for axis in range(rank))


__all__ = ["Attempt", "FunctionTrace", "element_name", "free_shape", "substituted", "trace_function"]
