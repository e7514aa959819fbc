"""The evaluator of functions with unknown parameters: what ops and annotations ask of those is found on the way.

See `function_inference`. Sizes that nothing tells are symbols of their own; a decision at compile time takes them for
a number, and a `range` over one is entered once.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.dtypes import DType, bf16
from tessera.errors import SourceError
from tessera.frontend.annotations import Annotation, TensorAnnotation
from tessera.frontend.definition import (
    Definition,
    FunctionDefinition,
    KernelDefinition,
    LaunchOn,
    ParameterDefinition,
)
from tessera.frontend.evaluator_arithmetic import unary
from tessera.frontend.evaluator_lists import NamedTensors
from tessera.frontend.evaluator_values import RUN_TIME, Handle, TensorHandle
from tessera.frontend.evaluator_windows import Slice, Subscript
from tessera.frontend.function import (
    MAX_UNIFICATIONS,
    Attempt,
    free_shape,
    substituted,
)
from tessera.frontend.function_binding import Binder
from tessera.frontend.function_emit import TensorEmitter, Unify
from tessera.frontend.function_evaluator import FunctionStatements, bind_arguments
from tessera.frontend.function_unknown import (
    ALIKE,
    ANY,
    HINTS,
    REQUIREMENTS,
    Alike,
    Axes,
    Axis,
    Chosen,
    Unknown,
    UnknownShape,
    fail,
    known_axes,
    parameter_of,
    part_of,
    siblings,
    undetermined,
    unknowns,
    whole,
)
from tessera.frontend.inference import resolve
from tessera.frontend.language import EVERYWHERE, Intrinsic
from tessera.frontend.language_scopes import on_mesh
from tessera.frontend.language_tensor_shapes import subscript_tensor
from tessera.frontend.library_parameters import DeferredParameter
from tessera.ir import dims
from tessera.ir.dims import Dim, Size
from tessera.ir.opdef import ELEMENTWISE, lookup
from tessera.ir.types import Shape, TileType
from tessera.location import Loc

TRIAL = 16  # what decisions at compile time take a size for that nothing tells

# How likely the axes are that are asked of a tensor, the likeliest first.
LIKE_ANOTHER, OF_A_PRODUCT, AS_INDEXED = range(3)


@dataclass(frozen=True)
class Likely:
    """Axes that a parameter has if nothing else tells."""

    level: int
    axes: Axes


@dataclass
class Findings:
    """What is known of the bare parameters so far; `needs` and `likely` are of the last evaluation."""

    found: dict[str, TensorAnnotation]
    names: dict[str, str] = field(default_factory=dict)  # of open dims, in the annotation that asked for them
    asked: dict[str, Shape] = field(default_factory=dict)  # the shape that was found first
    aliases: dict[str, Size] = field(default_factory=dict)  # of sizes that nothing tells, but that equal others
    needs: dict[str, SourceError] = field(default_factory=dict)
    likely: dict[str, Likely] = field(default_factory=dict)

    def add(self, name: str, axes: Axes, dtype: DType | None) -> TensorAnnotation:
        own = free_shape(name, len(axes))
        shape: list[Size] = []
        for axis, open_ in zip(axes, own, strict=True):
            told = axis.size is not None and not any(s.startswith(RUN_TIME) for s in dims.symbols(axis.size))
            shape.append(axis.size if told and axis.size is not None else open_)
            if not told and axis.name:
                self.names.setdefault(str(open_), axis.name)
        self.asked[name] = tuple(shape)
        self.found[name] = TensorAnnotation(self._as_before(name, tuple(shape)), dtype or bf16)
        return self.found[name]

    def _as_before(self, name: str, shape: Shape) -> Shape:
        """What became of the same demand on another tensor of the list."""
        for other, before in self.asked.items():
            if other == name or parameter_of(other) != parameter_of(name) or len(before) != len(shape):
                continue
            own = dict(zip(map(str, free_shape(other, len(shape))), free_shape(name, len(shape)), strict=True))
            became = self.found[other].shape
            if became is not None and tuple(dims.substitute(size, own) for size in before) == shape:
                return tuple(dims.substitute(size, own) for size in became)
        return shape

    def unify(self, unified: Unify) -> None:
        if unified.name.startswith(RUN_TIME):
            self.aliases[unified.name] = unified.size
            return
        replaced = {unified.name: unified.size}
        self.found.update({name: substituted(a, unified) for name, a in self.found.items()})
        for name, shape in self.asked.items():
            if parameter_of(unified.name) != parameter_of(name):  # else it is what became of the demand
                self.asked[name] = tuple(dims.substitute(size, replaced) for size in shape)
        self.aliases = {name: dims.substitute(size, replaced) for name, size in self.aliases.items()}
        if unified.name in self.names:
            self.names.setdefault(str(unified.size), self.names[unified.name])

    def adopt(self) -> bool:
        """Takes the likeliest axes of one parameter, or of the tensors of one list, for its axes."""
        if not self.likely:
            return False
        first = min(self.likely, key=lambda name: self.likely[name].level)
        level = self.likely[first].level
        for name, likely in self.likely.items():
            if parameter_of(name) == parameter_of(first) and likely.level == level:
                self.add(name, likely.axes, None)
        return True


class InferenceEmitter(TensorEmitter):
    """Makes IR that is thrown away. `state` is set right after it is made."""

    state: Findings

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wild: dict[str, tuple[Size, str]] = {}  # a size that nothing tells: the size it is cut from, and how
        self._made: dict[str, TensorHandle] = {}  # parameters that this evaluation has found

    # -- unknown tensors

    def settle(self, value: Any) -> Any:
        """An unknown tensor as a tensor, if that much is known by now; any other value as it is."""
        if not isinstance(value, Unknown) or value.steps is None or value.name not in self._made:
            return value
        tensor: Handle = self._made[value.name]
        for step in value.steps:
            tensor = step.forward(self, tensor)
        return tensor

    def settled(self, value: Any) -> Any:
        """A value in which every unknown tensor that is known by now is one."""
        if isinstance(value, Unknown):
            return self.settle(value)
        if isinstance(value, UnknownShape):
            return value.tensor.shape
        if not any(True for _ in unknowns(value)):
            return value
        if isinstance(value, NamedTensors):
            return NamedTensors(map(self.settled, value), value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.settled, value))
        if isinstance(value, dict):
            return {key: self.settled(item) for key, item in value.items()}
        return value

    def ask(self, unknown: Unknown, axes: Axes, where: str, dtype: DType | None = None) -> Any:
        """The tensor, now that its axes are told; still unknown where that does not tell those of the parameter."""
        asked: Axes | None = axes if unknown.steps is not None else None
        for step in reversed(unknown.steps or ()):
            asked = None if asked is None else step.back(self, asked)
            dtype = None if isinstance(step, Alike) and step.dtype is not None else dtype
        if asked is None or not unknown.sure:
            self.need(unknown, where, axes)
            return unknown
        annotation = self.state.add(unknown.name, asked, dtype)
        assert annotation.shape is not None and annotation.dtype is not None
        self.free |= {str(size) for size in free_shape(unknown.name, len(asked))}
        self._made[unknown.name] = self.placeholder(annotation.shape, annotation.dtype)
        return self.settle(unknown)

    def need(self, unknown: Unknown, where: str, axes: Axes | None = None, level: int = LIKE_ANOTHER) -> None:
        """Notes that an op has to know the axes, and which are likely."""
        self.state.needs.setdefault(unknown.name, undetermined(unknown.name, where, self.place))
        for step in reversed(unknown.steps or ()):
            axes = None if axes is None else step.back(self, axes)
        known = self.state.likely.get(unknown.name)
        if axes is not None and unknown.steps is not None and (known is None or level < known.level):
            self.state.likely[unknown.name] = Likely(level, axes)

    def placeholder(self, shape: Shape, dtype: DType) -> TensorHandle:
        """A tensor of which only shape and dtype matter."""
        return TensorHandle(self.body.add_argument(TileType(shape, dtype), ""), self.body)

    def choose(self, tensor: Handle, text: str, items: Sequence[Subscript]) -> Handle:
        """A subscript, also of axes whose size nothing tells."""
        gaps = [place for place, item in enumerate(items) if item.value is Ellipsis]
        missing = len(tensor.shape) - len(items) + len(gaps)
        if missing < 0 or len(gaps) > 1:
            return subscript_tensor(self, tensor, text, items)
        place = gaps[0] if gaps else len(items)
        rest = [Subscript(Slice(None, None), ":", self.place)] * missing
        filled = [*items[:place], *rest, *items[place + len(gaps) :]]
        shape = list(tensor.shape)
        for axis, (size, item) in enumerate(zip(shape, filled, strict=True)):
            if dims.symbols(size) <= self.static.keys():
                continue
            if isinstance(item.value, Slice):
                if not whole(item.value):
                    part = part_of(item.value)
                    shape[axis] = self.wild(f"{size}[{part}]", size, part)
                    filled[axis] = Subscript(Slice(None, None), item.text, item.loc)
            elif type(item.value) is int or isinstance(item.value, Dim):
                shape[axis], filled[axis] = 1, Subscript(0, item.text, item.loc)
        if tuple(shape) != tensor.shape:
            tensor = self.placeholder(tuple(shape), tensor.dtype)
        return subscript_tensor(self, tensor, text, filled)

    # -- sizes that nothing tells

    def wild(self, text: str, size: Size | None = None, part: str = "") -> Size:
        """A size of which nothing is known, the same one for the same text. `part`: how it is cut from `size`."""
        name = f"{RUN_TIME}{text}"
        if size is not None:
            self._wild[name] = (size, part)
        else:
            self._wild.setdefault(name, (0, ""))
        found: Size = dims.symbol(name)
        for _ in range(MAX_UNIFICATIONS):
            after = dims.substitute(found, self.state.aliases)
            if after == found:
                break
            found = after
        return found

    def cut_from(self, size: Size | None, part: str) -> Size | None:
        """The size of an axis of which `part` has the size `size`, where that is cut from another axis alike."""
        origin, how = self._wild.get(str(size), (0, ""))
        return origin if how == part and part else None

    def unify(self, a: Size, b: Size) -> bool:
        if a == b:
            return True
        first, second = self._wild.get(str(a)), self._wild.get(str(b))
        if first and second and first[1] and first[1] == second[1]:
            super().unify(first[0], second[0])
        wild = sorted((dims.symbols(a) | dims.symbols(b)) & self._wild.keys())
        for name in wild:
            solved = dims.coefficient(a - b, name)
            if solved is not None and solved[0] in (1, -1):
                raise Unify(name, solved[1] * -solved[0])
        return bool(wild) or super().unify(a, b)

    def concrete(self, value: Any, text: str, why: str) -> int:
        if isinstance(value, Dim):
            return dims.evaluate(value, {name: self.static.get(name, TRIAL) for name in dims.symbols(value)})
        return super().concrete(value, text, why)

    # -- what must be a tensor, in places that know nothing of unknown ones

    def operand(self, value: Any, text: str) -> Handle:
        return super().operand(self._known(value), text)

    def tile(self, value: Any, argument: str) -> Handle:
        return super().tile(self._known(value), argument)

    def _known(self, value: Any) -> Any:
        known = self.settle(value)
        if isinstance(known, Unknown):
            fail(known, "this", self.place)
        return known


class InferenceBinder(Binder):
    """Also asks unknown tensors for the axes that annotations tell: dims that are bound, others by their names."""

    emit: InferenceEmitter

    def bind_all(self, given: Mapping[str, Any]) -> dict[str, Any]:
        settled = {name: self.emit.settled(value) for name, value in given.items()}

        def rank(parameter: ParameterDefinition) -> int:
            value = settled[parameter.name]
            return 2 if isinstance(value, DeferredParameter) else any(True for _ in unknowns(value))

        order = sorted((p for p in self.callee.parameters if p.name in settled), key=rank)
        bound = {p.name: self.bind(p.name, p.annotation, settled[p.name]) for p in order}
        return {p.name: bound[p.name] for p in self.callee.parameters if p.name in bound}

    def tensor(self, name: str, annotation: TensorAnnotation, value: Any) -> Any:
        value = self.emit.settle(value)
        if isinstance(value, Unknown) and annotation.shape is not None:
            axes = tuple(map(self._axis, annotation.shape))
            value = self.emit.ask(value, axes, f"'{name}' of {self.callee.name}", annotation.dtype)
        return value if isinstance(value, Unknown) else super().tensor(name, annotation, value)

    def _axis(self, size: Size) -> Axis:
        name = str(size) if dims.symbols(size) == {str(size)} else ""
        return Axis(None if dims.symbols(size) - self.sizes.keys() else dims.substitute(size, self.sizes), name)

    def result(self, annotation: Annotation | None, value: Any) -> Any:
        value = self.emit.settle(value)
        if not isinstance(value, Unknown):
            return super().result(annotation, value)
        if not isinstance(annotation, TensorAnnotation) or annotation.shape is None:
            return value
        axes = tuple(map(self._axis, annotation.shape))
        known = self.emit.ask(value, axes, f"the result of {self.callee.name}")
        if isinstance(known, Handle):
            return super().result(annotation, known)
        sizes = [axis.size for axis in axes if axis.size is not None]
        return self.emit.placeholder(tuple(sizes), annotation.dtype or bf16) if len(sizes) == len(axes) else known


class InferenceStatements(FunctionStatements):
    """Evaluates a function whose parameters may be unknown."""

    emit: InferenceEmitter

    def binder(self, callee: Definition) -> Binder:
        return InferenceBinder(self.emit, callee)

    def call_definition(
        self, node: ast.Call, callee: Definition | LaunchOn, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        args, kwargs = self.emit.settled(args), self.emit.settled(kwargs)
        kernel = callee.definition if isinstance(callee, LaunchOn) else callee
        if isinstance(kernel, KernelDefinition) and any(True for _ in unknowns((args, kwargs))):
            given = bind_arguments(kernel, args, kwargs, self.emit.place)
            given = InferenceBinder(self.emit, resolve(kernel)).bind_all(given)
            left = list(unknowns(given))
            for unknown in left:
                self.emit.need(unknown, kernel.name)
            if left:
                return left[0].lost()
            args, kwargs = self.emit.settled(args), self.emit.settled(kwargs)
        return super().call_definition(node, callee, args, kwargs)

    def _call_intrinsic(
        self,
        node: ast.Call,
        callee: Intrinsic,
        args: list[Any],
        kwargs: dict[str, Any],
        nodes: list[ast.expr | None],
        named: dict[str, ast.expr],
    ) -> Any:
        args, kwargs = self.emit.settled(args), self.emit.settled(kwargs)
        if callee.scope in (self.scope, EVERYWHERE) and any(True for _ in unknowns((args, kwargs))):
            bound = callee.bind(args, kwargs)
            for argument, value in bound.items():
                requirement = REQUIREMENTS.get((callee.name, argument)) if isinstance(value, Unknown) else None
                axes = requirement(bound) if requirement is not None else None
                if axes is not None:
                    self.emit.ask(value, axes, callee.name)
            args, kwargs = self.emit.settled(args), self.emit.settled(kwargs)
            if any(True for _ in unknowns((args, kwargs))):
                return self._of_unknown(callee, callee.bind(args, kwargs))
        return super()._call_intrinsic(node, callee, args, kwargs, nodes, named)

    def _of_unknown(self, callee: Intrinsic, arguments: Mapping[str, Any]) -> Any:
        """What a call gives some of whose arguments are unknown."""
        if callee.name in HINTS:
            return None
        if callee.name == "ts.where" or (callee.op is not None and lookup(callee.op).has(ELEMENTWISE)):
            return self._elementwise(list(arguments.values()), callee.name)
        if callee.name in ("ts.gemm", "ts.matmul"):
            return self._product(arguments["a"], arguments["b"], callee.name)
        first = arguments.get(ALIKE.get(callee.name, ""))
        if isinstance(first, Unknown):
            return first.then(Alike(self.emit.dtype(arguments["dtype"]) if callee.name == "ts.cast" else None))
        found = list(unknowns(list(arguments.values())))
        for unknown in found:
            self.emit.need(unknown, callee.name, siblings(callee.name, arguments))
        return found[0].lost()

    def _elementwise(self, operands: Sequence[Any], where: str) -> Unknown:
        """All are likely to have one shape: that of the largest known one, whose axes of size 1 say nothing."""
        found = list(unknowns(operands))
        shapes = [axes for axes in map(known_axes, operands) if axes]
        if not shapes:
            alone = len({unknown.name for unknown in found}) == 1
            for unknown in found[1:] if not alone else ():
                self.emit.need(unknown, where)
            return found[0].then(Alike(), alone)
        axes = tuple(ANY if axis.size == 1 else axis for axis in max(shapes, key=len))
        for unknown in found:
            self.emit.need(unknown, where, axes)
        return found[0].lost()

    def _product(self, a: Any, b: Any, where: str) -> Any:
        left, right = known_axes(a), known_axes(b)
        if isinstance(b, Unknown):
            if left:
                return self._multiplied(a, self.emit.ask(b, (left[-1], ANY), where), where)
            self.emit.need(b, where, (ANY, ANY), OF_A_PRODUCT)
        if isinstance(a, Unknown):
            self.emit.need(a, where, (ANY, right[-2] if right and len(right) > 1 else ANY), OF_A_PRODUCT)
        return next(unknowns((a, b))).lost()

    def _multiplied(self, a: Handle, b: Any, where: str) -> Any:
        if isinstance(b, Unknown):
            return b.lost()
        from tessera.frontend.language_tensor_products import matmul_of

        return matmul_of(self.emit, a, b, ("a", "b"))

    # -- expressions

    def combine(self, node: ast.AST, kind: type[ast.operator], left: Any, right: Any, texts: tuple[str, str]) -> Any:
        left, right = self.emit.settle(left), self.emit.settle(right)
        if isinstance(left, Unknown) or isinstance(right, Unknown):
            self.at(node)
            if kind is ast.MatMult:
                return self._product(left, right, "this product")
            return self._elementwise((left, right), "this operator")
        return super().combine(node, kind, left, right, texts)

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.emit.settle(self.evaluate(node.operand))
        self.at(node)
        if isinstance(value, Unknown):
            return value.then(Alike())
        return unary(self.emit, type(node.op), value, self.frame.text(node.operand))

    def chosen(self, node: ast.Subscript, owner: Any) -> Any:
        owner, text = self.emit.settle(owner), self.frame.text(node.value)
        if isinstance(owner, Unknown):
            items = tuple(self.subscripts(node.slice))
            self.at(node)
            if not any(item.value is Ellipsis for item in items):
                self.emit.need(owner, "this subscript", (ANY,) * len(items), AS_INDEXED)
            return owner.then(Chosen(items, text))
        if isinstance(owner, Handle) and owner.is_tile:
            items = tuple(self.subscripts(node.slice))
            self.at(node)
            return self.emit.choose(owner, text, items)
        return super().chosen(node, owner)

    def _unpack(self, target: ast.Tuple | ast.List, value: Any) -> None:
        if isinstance(value, UnknownShape) and not any(isinstance(part, ast.Starred) for part in target.elts):
            rank = len(target.elts)
            self.emit.ask(value.tensor, (ANY,) * rank, "this")
            shape = value.tensor.shape
            value = tuple(map(shape.size, range(rank))) if isinstance(shape, UnknownShape) else shape
        super()._unpack(target, value)

    def _call_python(
        self, node: ast.Call, callee: Any, args: list[Any], kwargs: dict[str, Any], nodes: list[ast.expr | None]
    ) -> Any:
        if callee is range and any(isinstance(a, Dim) and dims.symbols(a) - self.emit.static.keys() for a in args):
            start, step = args[0] if len(args) > 1 else 0, args[2] if len(args) > 2 else 1
            start, step = (self.emit.concrete(number, "range", "a range") for number in (start, step))
            return range(start, start + step, step)
        return super()._call_python(node, callee, args, kwargs, nodes)


class InferenceAttempt(Attempt):
    """One evaluation with what is known so far."""

    emitter = InferenceEmitter
    statements = InferenceStatements
    emit: InferenceEmitter

    def __init__(self, definition: FunctionDefinition, static: dict[str, int], state: Findings) -> None:
        super().__init__(definition, static, state.found)
        state.needs.clear()
        state.likely.clear()
        self.emit.state = state

    def tensor(self, name: str, annotation: TensorAnnotation, loc: Loc) -> Any:
        if annotation.shape is None and name not in self.bare:
            return Unknown(self.emit, name)
        return super().tensor(name, annotation, loc)

    def look(self) -> None:
        """Evaluates the function for the sake of what it asks of its parameters."""
        statements = self.open()
        with on_mesh(self.emit, self.definition):
            result = self.run(statements)
        for unknown in unknowns(self.emit.settled(result)):
            self.emit.need(unknown, "returning it")
