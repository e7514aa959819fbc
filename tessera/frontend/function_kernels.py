"""Kernels that a function calls: what a kernel writes becomes a value, so each call is one op without effects.

The kernel is traced for the call and kept beside the function (`Collected.kernels`); the op `launch` has its name, the
values that it reads in the order of its parameters, and its dims over those of the function. Outputs are left out and
are what the call gives. An in-out parameter starts as a copy of the tensor that is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.dtypes import DType
from tessera.errors import SourceError, did_you_mean
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.frontend.definition import REQUIRED, KernelDefinition, ParameterDefinition
from tessera.frontend.evaluator import trace
from tessera.frontend.evaluator_values import Handle, is_number, plain
from tessera.frontend.function_binding import Binder
from tessera.frontend.function_emit import TensorEmitter
from tessera.frontend.grid import apply_grid
from tessera.frontend.inference import LENGTH, Actual, is_bare, resolve
from tessera.frontend.library_parameters import DeferredParameter
from tessera.ir import dims
from tessera.ir.core import Kernel, Value
from tessera.ir.dims import Dim, Size
from tessera.ir.printer import print_kernel
from tessera.ir.types import ListType, ScalarType, length_name, tensor_type
from tessera.location import Loc


def launch_kernel(
    emit: TensorEmitter,
    callee: KernelDefinition,
    arguments: Mapping[str, Any],
    grid: Sequence[Any] | None = None,
    partial: bool = False,
) -> Any:
    """The tensor, or the tuple of tensors, that `callee` writes: outputs and in-out parameters in their order.

    `arguments` by parameter, without the outputs; `grid` is that of `kernel[grid]`, and `partial` says that it may
    leave elements unwritten. Raises SourceError TS202 for a missing argument, TS203 for an output that is passed, what
    `Binder` raises, and what tracing the kernel raises.
    """
    passed = {name: value for name, value in arguments.items() if value is not None or name not in callee.optional}
    return _Call(emit, callee.without(callee.optional - passed.keys()), passed).launch(grid, partial)


def kernel_arguments(
    callee: KernelDefinition, args: Sequence[Any], kwargs: Mapping[str, Any], site: Loc
) -> dict[str, Any]:
    """The arguments of a call by parameter name, defaults filled in; outputs may be missing. Raises SourceError TS202.

    Positional arguments are the inputs in order.
    """
    parameters = callee.parameters
    names = [parameter.name for parameter in parameters]
    listed = ", ".join(names)
    for name in kwargs:
        if name not in names:
            hint = did_you_mean(name, names)
            raise SourceError("TS202", f"{callee.name} has no parameter '{name}' (it has {listed}){hint}", site)
    if len(args) > len(names):
        message = f"{callee.name} takes {len(names)} arguments ({listed}) but {len(args)} were given"
        raise SourceError("TS202", message, site)
    roles = _roles(callee)
    inputs = [parameter for parameter in parameters if roles.get(parameter.name) != "out"]
    # Outputs are not passed; where someone does, the message is about them.
    passes_outputs = len(args) > len(inputs) or (not _fit(inputs, args) and _fit(parameters, args))
    order = parameters if passes_outputs else inputs
    given = {parameter.name: value for parameter, value in zip(order, args, strict=False)}
    twice = next((name for name in given if name in kwargs), None)
    if twice is not None:
        raise SourceError("TS202", f"{callee.name} got the argument '{twice}' twice, by position and by name", site)
    defaults = {p.name: p.default for p in parameters if p.default is not REQUIRED}
    return {**defaults, **given, **kwargs}


def _roles(callee: KernelDefinition) -> dict[str, str]:
    """What the kernel does to each parameter; empty where only the sizes of a call tell."""
    known = vars(callee).get("_roles")
    if known is None:
        lengths = {length_name(p.name): LENGTH for p in callee.parameters if isinstance(p.annotation, ListAnnotation)}
        try:
            known = dict(trace(callee, lengths).kernel().attributes["parameters"])
        except SourceError:  # tracing it for the call says what is wrong, if anything is
            known = {}
        vars(callee)["_roles"] = known
    return known


def _fit(parameters: Sequence[ParameterDefinition], args: Sequence[Any]) -> bool:
    """Whether each positional argument is of its parameter's kind."""
    return all(_kind(value) is type(p.annotation) for p, value in zip(parameters, args, strict=False))


def _kind(value: Any) -> type[Annotation]:
    """The kind of parameter that takes a value."""
    if isinstance(value, (list, tuple)):
        return ListAnnotation
    number = is_number(plain(value)) or isinstance(value, Dim) or (isinstance(value, Handle) and value.is_scalar)
    return ScalarAnnotation if number else TensorAnnotation


class _KernelBinder(Binder):
    """Sizes such as `2*D` are solved for the one dim that no other argument gives."""

    def __init__(self, emit: TensorEmitter, callee: KernelDefinition) -> None:
        super().__init__(emit, callee)
        self.open: list[tuple[str, tuple[Size, ...], tuple[Size, ...]]] = []

    def match(self, name: str, wanted: tuple[Size, ...], given: tuple[Size, ...]) -> None:
        super().match(name, wanted, given)
        if any(dims.symbols(size) - self.sizes.keys() for size in wanted):
            self.open.append((name, wanted, given))

    def close(self) -> None:
        """Solves what is open, when every argument is bound. Raises SourceError TS302."""
        for name, wanted, given in self.open:
            for axis, (size, actual) in enumerate(zip(wanted, given, strict=True)):
                self._solve(name, axis, size, actual)
        for name, wanted, given in self.open:
            self.match(name, wanted, given)

    def _solve(self, name: str, axis: int, size: Size, actual: Size) -> None:
        known = dims.substitute(size, {n: s for n, s in self.sizes.items() if n in dims.symbols(size)})
        unknown = dims.symbols(size) - self.sizes.keys()
        if len(unknown) != 1 or not isinstance(known, Dim):
            return
        (own,) = unknown
        affine = dims.coefficient(known, own)
        if affine is None or not isinstance(affine[0], int) or affine[0] == 0:
            return
        value = dims.floordiv(actual - affine[1], affine[0])
        if value * affine[0] + affine[1] != actual:
            self.fail(
                "TS302",
                f"'{name}' axis {axis} is {actual}, of which nothing shows that it is {size} for some {own}; write it "
                f"like that in the annotation of the function",
            )
        self.sizes[own], self.seen[own] = value, (name, axis)

    def size(self, own: str) -> Size:
        """The size of a dim. Raises SourceError TS302 for one that no argument gives."""
        if own not in self.sizes:
            self.fail("TS302", f"the dim {own} is known from no argument")
        return self.sizes[own]

    def shape(self, wanted: tuple[Size, ...]) -> tuple[Size, ...]:
        return tuple(dims.substitute(size, {own: self.size(own) for own in dims.symbols(size)}) for size in wanted)


class _Call:
    """One call of a kernel."""

    def __init__(self, emit: TensorEmitter, callee: KernelDefinition, arguments: Mapping[str, Any]) -> None:
        self.emit, self.callee, self.arguments = emit, callee, arguments
        self.site = emit.place
        self.binder = _KernelBinder(emit, callee)
        self.bound: dict[str, Any] = {}

    def launch(self, grid: Sequence[Any] | None, partial: bool) -> Any:
        self._refuse_outputs(_roles(self.callee))
        kernel = self._traced(self._bind())
        if grid is not None:
            kernel = self._on_grid(kernel, grid)
        if partial:
            kernel.attributes["partial"] = True
        for note in kernel.attributes["notes"]:
            self.emit.note(f"{self.callee.name}: {note}")
        return self._emit(kernel, self._keep(kernel))

    # -- arguments

    def _refuse_outputs(self, roles: Mapping[str, str]) -> None:
        name = next((name for name in self.arguments if roles.get(name) == "out"), None)
        if name is not None:
            self.binder.fail(
                "TS203",
                f"it writes '{name}', and tensors of a function never change; leave '{name}' out, and the call returns "
                "it",
            )

    def _bind(self) -> KernelDefinition:
        """Binds the arguments; the kernel with annotations for its bare parameters."""
        parameters = [p for p in self.callee.parameters if p.name in self.arguments]
        self._bind_those([p for p in parameters if not is_bare(p.annotation)])
        bare = [p for p in parameters if is_bare(p.annotation)]
        if not any(is_bare(p.annotation) for p in self.callee.parameters):
            self.binder.close()
            return self.callee
        actual = {}
        for parameter in bare:
            value = self.arguments[parameter.name]
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(first, Handle) and first.is_tile:
                actual[parameter.name] = Actual(first.shape, first.dtype)
        definition = self._resolved(actual)
        names = {parameter.name for parameter in bare}
        self._bind_those([p for p in definition.parameters if p.name in names])
        self.binder.close()
        return definition

    def _bind_those(self, parameters: Sequence[ParameterDefinition]) -> None:
        # A parameter without a shape of its own takes that of its annotation, once the others have said what that is.
        for parameter in sorted(parameters, key=lambda p: isinstance(self.arguments[p.name], DeferredParameter)):
            value = plain(self.arguments[parameter.name])
            self.bound[parameter.name] = self.binder.bind(parameter.name, parameter.annotation, value)

    def _resolved(self, actual: Mapping[str, Actual]) -> KernelDefinition:
        sizes, lengths = self.binder.sizes, self._lengths()
        try:
            return resolve(self.callee, lengths, actual, sizes, self.emit.may_unify)
        except SourceError as error:
            if error.code != "TS205":
                raise
        return resolve(self.callee, {**lengths, **self._concrete()}, actual, sizes, self.emit.may_unify)

    def _lengths(self) -> dict[str, int]:
        lists = (p.name for p in self.callee.parameters if isinstance(p.annotation, ListAnnotation))
        return {length_name(n): len(v) for n in lists if isinstance(v := self.arguments.get(n), (list, tuple))}

    # -- the kernel

    def _traced(self, definition: KernelDefinition) -> Kernel:
        """The kernel, its dims symbolic where its author decides nothing by them."""
        lengths = self._lengths()
        try:
            kernel = trace(definition, lengths).kernel()
        except SourceError as error:
            if error.code != "TS205":
                raise
            return trace(definition, {**lengths, **self._concrete()}).kernel()
        static, sizes = self.emit.static, self.binder.sizes
        known = {n: dims.evaluate(s, static) for n, s in sizes.items() if dims.symbols(s) <= static.keys()}
        if known.keys() != sizes.keys():
            return kernel
        # The sizes of this call may show that it goes wrong; what that depends on makes other calls ask again.
        exact = trace(definition, {**lengths, **known}).kernel()
        asked = set(exact.attributes["shape_dims"]) - set(kernel.attributes["shape_dims"])
        if not asked:
            return kernel
        for name in asked & sizes.keys():
            self.emit.decided |= dims.symbols(sizes[name])
        return exact

    def _concrete(self) -> dict[str, int]:
        """The values of all dims: the author of the kernel decides by some."""
        why = f"{self.callee.name} decides by its sizes at compile time"
        return {name: self.emit.concrete(size, name, why) for name, size in self.binder.sizes.items()}

    def _on_grid(self, kernel: Kernel, grid: Sequence[Any]) -> Kernel:
        why = "the grid of a call inside a function is known at compile time"
        extents = [self.emit.concrete(size, "the grid", why) for size in grid]
        try:
            return apply_grid(kernel, extents)
        except SourceError as error:
            raise error.at(self.site) from None

    def _keep(self, kernel: Kernel) -> str:
        """Puts the kernel under a name of its own beside the function; an equal one is shared."""
        kept = self.emit.collected.kernels
        name, number, base = kernel.name, 1, kernel.name
        while name in kept:
            kernel.name = name
            if print_kernel(kernel) == print_kernel(kept[name]):
                return name
            number += 1
            name = f"{base}_{number}"
        kernel.name, kept[name] = name, kernel
        return name

    # -- the op

    def _emit(self, kernel: Kernel, name: str) -> Any:
        roles = dict(kernel.attributes["parameters"])
        self._refuse_outputs(roles)  # also where only the sizes of this call tell what is one
        operands: list[Handle] = []
        for parameter in kernel.parameters:
            operands += self._operands(parameter, roles)
        written = [tensor for p in kernel.parameters if roles[p.name] != "in" if (tensor := tensor_type(p.type))]
        if not written:
            self.binder.fail("TS203", "it writes no tensor, so a call of it inside a function gives nothing")
        results = self.emit.make(
            "launch",
            *operands,
            callee=name,
            dims={own: self.binder.size(own) for own in kernel.attributes["dims"]},
            shapes=tuple(self.binder.shape(tensor.shape) for tensor in written),
            dtypes=tuple(tensor.dtype for tensor in written),
        )
        handles = [self.emit.handle(value) for value in results]
        return handles[0] if len(handles) == 1 else tuple(handles)

    def _operands(self, parameter: Value, roles: Mapping[str, str]) -> list[Handle]:
        name = parameter.name
        if roles[name] == "out":
            return []
        if name not in self.bound:
            needed = ", ".join(p.name for p in self.callee.parameters if roles[p.name] != "out")
            self.binder.fail("TS202", f"the argument '{name}' is missing (it takes {needed})")
        value = self.bound[name]
        if isinstance(parameter.type, ScalarType):
            return [self._scalar(value, parameter.type.dtype)]
        return list(value) if isinstance(parameter.type, ListType) else [value]

    def _scalar(self, value: Any, dtype: DType) -> Handle:
        """A number, a size or a scalar as the kernel takes it."""
        if is_number(value):
            return self.emit.number(int(value) if dtype.is_int else float(value), dtype)
        handle: Handle = self.emit.emit("size", size=value, known=value) if isinstance(value, Dim) else value
        # A number that a call of the function passes is weak; it has the dtype that the kernel wants all the same.
        return handle if handle.dtype == dtype else self.emit.cast(handle, dtype)


__all__ = ["kernel_arguments", "launch_kernel"]
