"""Matches the arguments of a call with a kernel's parameters: dims, dtypes, ranks, scalars, omitted outputs.

Everything that a launch assumes about its arguments is checked here, once, whatever lane runs it, so that a wrong call
is an error that names the author's parameters and never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.errors import ArgumentError, did_you_mean
from tessera.ir.dims import Dim, Size, coefficient, evaluate, substitute, symbols, to_text
from tessera.ir.strides import stride_name, stride_symbols
from tessera.ir.types import length_name
from tessera.program import ANY_LENGTH, Parameter
from tessera.runtime.arrays import NUMPY, Adapter, ArrayInfo, describe


@dataclass
class Binding:
    """A checked call. `arrays` and `infos` hold the tensors that were passed, `scalars` Python numbers.

    The tensors of a list x are there one by one, as "x[0]", "x[1]", ...; `lengths` says how many.
    `omitted` maps each output that was left out to its shape; `allocate` makes those. `given` names the arguments in
    the order of the call. `device` is the CUDA ordinal on which the arrays live, None for the host.
    """

    kernel: str
    parameters: tuple[Parameter, ...]
    arrays: dict[str, Any] = field(default_factory=dict)
    infos: dict[str, ArrayInfo] = field(default_factory=dict)
    scalars: dict[str, int | float] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    omitted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    lengths: dict[str, int] = field(default_factory=dict)

    @property
    def library(self) -> Adapter:
        return next(iter(self.infos.values())).adapter if self.infos else NUMPY

    @property
    def device(self) -> int | None:
        return next(iter(self.infos.values())).device if self.infos else None

    @property
    def alignment(self) -> dict[str, int]:
        """Bytes, of 16, 8, 4, 2 and 1, that divide the address of each tensor, or of every one in a list; 16 for one
        still to be allocated.
        """
        return {
            p.name: min((self.infos[name].alignment for name in self.names(p) if name in self.infos), default=16)
            for p in self.parameters
            if p.kind != "scalar"
        }

    def names(self, parameter: Parameter) -> list[str]:
        """What the tensors of a parameter are called in `arrays` and `infos`."""
        if parameter.kind != "list":
            return [parameter.name]
        return [element_name(parameter.name, number) for number in range(self.lengths.get(parameter.name, 0))]

    def argument(self, parameter: Parameter) -> Any:
        """The caller's array of a parameter, the list of them, or the number."""
        if parameter.kind == "scalar":
            return self.scalars[parameter.name]
        arrays = [self.arrays[name] for name in self.names(parameter)]
        return arrays if parameter.kind == "list" else arrays[0]

    @property
    def strides(self) -> dict[str, tuple[Size, ...]]:
        """For each tensor that is not contiguous, what its kernel is to know of its strides: symbols, and 1."""
        return {
            name: stride_symbols(name, len(info.shape), _strides(info)[-1] == 1)
            for name, info in self.infos.items()
            if not info.contiguous
        }

    @property
    def stride_values(self) -> dict[str, int]:
        """The value of every symbol in `strides`."""
        return {
            size_name: value
            for name, steps in self.strides.items()
            for size_name, value in _stride_dims(name, self.infos[name]).items()
            if any(size_name in symbols(step) for step in steps)
        }

    @property
    def unmapped(self) -> list[str]:
        """Those of `stride_values` that no tensor map can hold: elements that follow one another backwards, or are one
        and the same. As of nothing else is known of a stride than what divides it, they count as odd.
        """
        return [
            stride_name(name, axis)
            for name, info in self.infos.items()
            for axis, (size, stride) in enumerate(zip(info.shape, info.strides or (), strict=False))
            if stride_name(name, axis) in self.stride_values and size > 1 and stride <= 0
        ]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that the kernel writes."""
        return tuple(p.name for p in self.parameters if p.role in ("out", "inout"))

    def allocate(self) -> Any:
        """Makes the outputs that were left out, in the caller's library and on its device, and adds them to `arrays`.

        Returns them: None, one array, or a tuple in the order of the parameters.
        """
        for parameter in self.parameters:
            if parameter.name in self.omitted:
                dtype = dtypes.parse(parameter.dtype)
                made = self.library.empty(self.omitted[parameter.name], dtype, self.device)
                info = describe(made)
                assert info is not None
                self.arrays[parameter.name], self.infos[parameter.name] = made, info.adapter.seen_as(info, dtype)
        return as_result([self.arrays[name] for name in self.omitted])

    def results(self) -> Any:
        """What the call returns once its kernels are queued: the outputs that were left out, as the caller's arrays."""
        return as_result([self.library.returned(self.arrays[name], self.device) for name in self.omitted])

    def stream(self) -> int:
        """The CUDA stream of the caller's library, on which the work of every argument is waited for."""
        assert self.device is not None
        stream = self.library.stream(self.device)
        for name, info in self.infos.items():
            info.adapter.after(self.arrays[name], stream, self.device)
        return stream


def element_name(name: str, number: int) -> str:
    """What messages, and `Binding`, call a tensor of a list."""
    return f"{name}[{number}]"


def expand(parameters: Sequence[Parameter], lengths: Mapping[str, int] | None = None) -> list[Parameter]:
    """The parameters with a tensor of its own for each one in a list; `lengths` where the call decides them."""
    result: list[Parameter] = []
    for parameter in parameters:
        if parameter.kind == "list":
            count = (lengths or {}).get(parameter.name, parameter.length)
            names = [element_name(parameter.name, number) for number in range(count)]
            result += [replace(parameter, name=name, kind="tensor", length=0) for name in names]
        elif parameter.kind == "tensor":
            result.append(parameter)
    return result


def as_result(made: Sequence[Any]) -> Any:
    """What a call that made these arrays returns: None, one array, or a tuple."""
    return None if not made else made[0] if len(made) == 1 else tuple(made)


def stride_values(parameters: Sequence[Parameter], infos: Mapping[str, ArrayInfo]) -> dict[str, int]:
    """The value of every stride symbol of a program with these parameters.

    Raises ArgumentError TS603 for a view where the program takes only contiguous tensors, or neighbours in rows.
    """
    values: dict[str, int] = {}
    for parameter in parameters:
        info = infos.get(parameter.name)
        if info is None or (info.contiguous and not parameter.strides):
            continue
        if not parameter.strides:
            raise ArgumentError("TS603", f"'{parameter.name}' is not contiguous, and this program was compiled for one")
        strides = _strides(info)
        if parameter.strides[-1] == 1 != strides[-1]:
            message = f"the rows of '{parameter.name}' have a stride of {strides[-1]}, where this program needs 1"
            raise ArgumentError("TS603", message)
        values.update(_stride_dims(parameter.name, info))
    return values


def _stride_dims(name: str, info: ArrayInfo) -> dict[str, int]:
    return {stride_name(name, axis): stride for axis, stride in enumerate(_strides(info))}


def _strides(info: ArrayInfo) -> tuple[int, ...]:
    """Strides of a view in elements; along an axis of size 1, where they say nothing, the least troublesome ones."""
    assert info.strides is not None
    last = len(info.shape) - 1
    return tuple(
        stride if size != 1 else 1 if axis == last else 0
        for axis, (size, stride) in enumerate(zip(info.shape, info.strides, strict=True))
    )


def bind(
    kernel: str,
    parameters: Sequence[Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Binding:
    """Checks a call of `kernel`; `defaults` holds the values of scalars that have one in the signature.

    Raises ArgumentError: TS601 missing or unexpected argument, TS203 wrong kind, TS204 dtype, TS304 rank, TS301 and
    TS302 sizes, TS602 an output that shares memory, TS603 strides that no launch can pass, TS604 unusable array or
    mixed devices.
    """
    binding = Binding(kernel, tuple(parameters))
    given = _match(kernel, parameters, args, kwargs, defaults or {})
    binding.given = tuple(given)
    for parameter in parameters:
        name = parameter.name
        if name in given:
            _take(binding, parameter, given[name])
        elif parameter.kind == "scalar" and defaults is not None and name in defaults:
            _take(binding, parameter, defaults[name])
        elif parameter.role != "out":
            needed = ", ".join(p.name for p in parameters if p.role != "out")
            raise ArgumentError("TS601", f"{kernel} needs the argument '{name}' (it takes {needed})")
    _check_devices(binding)
    tensors = expand(parameters, binding.lengths)
    binding.dims = unify(tensors, {name: info.shape for name, info in binding.infos.items()})
    binding.dims |= {length_name(name): length for name, length in binding.lengths.items()}
    for parameter in parameters:
        if parameter.kind == "tensor" and parameter.name not in binding.infos:
            binding.omitted[parameter.name] = _shape_of_omitted(kernel, parameter, binding.dims)
    _check_aliases(binding)
    return binding


def _match(
    kernel: str,
    parameters: Sequence[Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    optional: Container[str],
) -> dict[str, Any]:
    """Arguments by parameter name; `optional` holds the scalars that may be missing.

    Positional arguments fill the parameters in order. Where that leaves an input without its argument, or puts a number
    where an array belongs, and filling the inputs alone does not, they are the inputs and the outputs were left out.
    """
    names = [p.name for p in parameters]
    for name in kwargs:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ArgumentError("TS601", f"{kernel} has no parameter '{name}' (it has {', '.join(names)}){hint}")
    if len(args) > len(names):
        listed = ", ".join(names)
        raise ArgumentError("TS601", f"{kernel} takes {len(names)} arguments ({listed}) but {len(args)} were given")
    inputs = [p for p in parameters if p.role != "out"]
    order = list(parameters)
    if not _fits(order, inputs, args, kwargs, optional) and _fits(inputs, inputs, args, kwargs, optional):
        order = inputs
    given = {parameter.name: value for parameter, value in zip(order, args, strict=False)}
    for name in given:
        if name in kwargs:
            raise ArgumentError("TS601", f"{kernel} got the argument '{name}' twice, by position and by name")
    return {**given, **kwargs}


def _fits(
    order: Sequence[Parameter],
    inputs: Sequence[Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    optional: Container[str],
) -> bool:
    """Whether `args` in this order give each input one argument of its kind."""
    given = {parameter.name for parameter, _ in zip(order, args, strict=False)}
    complete = all(p.name in given or p.name in kwargs or p.name in optional for p in inputs)
    kinds = all(p.kind == _kind(value) for p, value in zip(order, args, strict=False))
    return len(args) <= len(order) and complete and kinds and not given & kwargs.keys()


def _kind(value: Any) -> str:
    """The kind of parameter that takes an argument."""
    return "scalar" if _is_number(value) else "list" if isinstance(value, (list, tuple)) else "tensor"


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.generic))


def _take(binding: Binding, parameter: Parameter, value: Any) -> None:
    if parameter.kind == "scalar":
        binding.scalars[parameter.name] = scalar(parameter, value)
    elif parameter.kind == "list":
        _take_list(binding, parameter, value)
    else:
        _take_tensor(binding, parameter, value)


def _take_list(binding: Binding, parameter: Parameter, value: Any) -> None:
    name = parameter.name
    if not isinstance(value, (list, tuple)):
        kind = f"the number {value}" if _is_number(value) else f"a {type(value).__name__}"
        raise ArgumentError("TS203", f"'{name}' is a list of tensors, but {kind} was passed")
    binding.lengths[name] = len(value)
    if parameter.length not in (ANY_LENGTH, len(value)):
        message = f"'{name}' has {len(value)} tensors, and this program was compiled for {parameter.length}"
        raise ArgumentError("TS302", message)
    for element, item in zip(expand([parameter], binding.lengths), value, strict=True):
        _take_tensor(binding, element, item)
        info = binding.infos[element.name]
        if not info.contiguous:
            raise ArgumentError(
                "TS603",
                f"'{element.name}' has the strides {list(info.strides or ())}; the tensors of a list are contiguous, "
                "so pass a copy",
            )
        first = binding.infos[element_name(name, 0)]
        if info.shape != first.shape:
            raise ArgumentError(
                "TS302",
                f"'{element.name}' has the shape {list(info.shape)} and '{element_name(name, 0)}' "
                f"{list(first.shape)}; the tensors of a list have one shape",
            )


def _take_tensor(binding: Binding, parameter: Parameter, value: Any) -> None:
    info = describe(value)
    if info is None:
        if isinstance(value, (list, tuple)):
            message = f"'{parameter.name}' is one tensor, but a {type(value).__name__} of {len(value)} was passed"
            raise ArgumentError("TS203", message)
        if _is_number(value):
            raise ArgumentError(
                "TS203", f"'{parameter.name}' is a tensor of {parameter.dtype}, but the number {value} was passed"
            )
        raise ArgumentError(
            "TS604",
            f"'{parameter.name}' must be an array of NumPy, CuPy, torch or JAX, or have __cuda_array_interface__ or "
            f"__dlpack__, which {type(value).__name__} has not",
        )
    info = info.adapter.seen_as(info, dtypes.parse(parameter.dtype))
    _check_array(parameter, info)
    binding.arrays[parameter.name], binding.infos[parameter.name] = value, info


def scalar(parameter: Parameter, value: Any) -> int | float:
    """The value of a scalar parameter as a Python number; raises ArgumentError TS203, or TS401 beyond 64 bits."""
    wants_int = dtypes.parse(parameter.dtype).is_int
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not -(2**63) <= int(value) < 2**63:
            raise ArgumentError("TS401", f"'{parameter.name}' is {value}, which does not fit 64 bits")
        return int(value) if wants_int else float(value)
    if isinstance(value, (float, np.floating)) and not wants_int:
        return float(value)
    kind = "an int" if wants_int else "a number"
    shown = f" {value!r}" if isinstance(value, (bool, int, float, str)) else f" {value}" if np.isscalar(value) else ""
    raise ArgumentError("TS203", f"'{parameter.name}' takes {kind}, but the {type(value).__name__}{shown} was passed")


def _check_array(parameter: Parameter, info: ArrayInfo) -> None:
    name, wanted = parameter.name, dtypes.parse(parameter.dtype)
    if info.dtype != wanted:
        raise ArgumentError(
            "TS204",
            f"'{name}' must have dtype {wanted.name}, but the array that was passed has "
            f"{info.dtype.name if info.dtype else info.dtype_text}",
        )
    if len(info.shape) != len(parameter.shape):
        declared = ", ".join(_axis_text(parameter, axis) for axis in range(len(parameter.shape)))
        raise ArgumentError(
            "TS304",
            f"'{name}' has {len(parameter.shape)} axes [{declared}], but an array of "
            f"{len(info.shape)} axes was passed, {list(info.shape)}",
        )
    if info.strides is None:
        raise ArgumentError(
            "TS603", f"'{name}' has strides that are no whole number of its {wanted.bytes}-byte elements"
        )
    if parameter.role != "in" and info.writable and info.folded:
        message = f"'{name}' is written by the kernel, but elements of the array that was passed share memory"
        raise ArgumentError(
            "TS602", f"{message}: its strides are {list(info.strides)} for the shape {list(info.shape)}"
        )
    if 0 not in info.shape and info.pointer % wanted.bytes:
        raise ArgumentError(
            "TS604",
            f"'{name}' starts at an address that is not a multiple of its {wanted.bytes}-byte element; pass a copy",
        )
    if parameter.role != "in" and info.adapter.immutable:
        remedy = (
            "leave it out, and a new one is returned" if parameter.role == "out" else "pass another library's array"
        )
        raise ArgumentError("TS604", f"'{name}' is written by the kernel, but {info.adapter.immutable}; {remedy}")
    if parameter.role != "in" and not info.writable:
        raise ArgumentError("TS604", f"'{name}' is written by the kernel, but the array that was passed is read-only")


def _axis_text(parameter: Parameter, axis: int) -> str:
    text = to_text(parameter.shape[axis])
    return "?" if text.startswith(f"{parameter.name}.") else text  # an undeclared dim has a name of our making


def _check_devices(binding: Binding) -> None:
    first: tuple[str, ArrayInfo] | None = None
    for name, info in binding.infos.items():
        if first is None:
            first = name, info
        elif info.device != first[1].device:
            raise ArgumentError(
                "TS604",
                f"'{first[0]}' is {_place(first[1])} but '{name}' is {_place(info)}; all "
                "arrays of a call must live in one place",
            )


def _place(info: ArrayInfo) -> str:
    return "on the host" if info.device is None else f"on GPU {info.device}"


def unify(parameters: Sequence[Parameter], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The value of every dim from the shapes of the tensors in `shapes`, which have the right ranks.

    A dim that stands alone on an axis takes that axis's size; one that occurs only in an expression such as `2*D` is
    solved for; then every expression is checked. Raises ArgumentError TS302 where a dim would have two values or none
    and TS301 where an axis must have a constant size and has another.
    """
    dims: dict[str, int] = {}
    source: dict[str, str] = {}
    axes = [
        (p, axis, size, shapes[p.name][axis])
        for p in parameters
        if p.name in shapes
        for axis, size in enumerate(p.shape)
    ]
    rest: list[tuple[Parameter, int, Size, int]] = []
    for parameter, axis, size, actual in axes:
        name = _plain_symbol(size)
        if name is None:
            rest.append((parameter, axis, size, actual))
        elif name not in dims:
            dims[name], source[name] = actual, f"on axis {axis} of '{parameter.name}'"
        elif dims[name] != actual:
            raise ArgumentError(
                "TS302",
                f"the dim {name} is {dims[name]} {source[name]} but {actual} on axis {axis} of '{parameter.name}'",
            )
    for parameter, axis, size, actual in rest:
        _solve(parameter, axis, size, actual, dims, source)
    for parameter, axis, size, actual in rest:
        if unknown := sorted(symbols(size) - dims.keys()):
            raise ArgumentError(
                "TS302",
                f"axis {axis} of '{parameter.name}' is {to_text(size)}, where the dim {unknown[0]} "
                "is known from no argument",
            )
        if (expected := evaluate(size, dims)) != actual:
            if isinstance(size, int):
                raise ArgumentError(
                    "TS301", f"axis {axis} of '{parameter.name}' must have size {size} but has {actual}"
                )
            known = ", ".join(f"{name} is {dims[name]} {source[name]}" for name in sorted(symbols(size)))
            raise ArgumentError(
                "TS302",
                f"axis {axis} of '{parameter.name}' has size {actual}, but {to_text(size)} is "
                f"{expected} because {known}",
            )
    return dims


def _plain_symbol(size: Size) -> str | None:
    names = symbols(size)
    if len(names) != 1:
        return None
    name = next(iter(names))
    return name if coefficient(size, name) == (1, 0) else None


def _solve(
    parameter: Parameter, axis: int, size: Size, actual: int, dims: dict[str, int], source: dict[str, str]
) -> None:
    """Binds the one unknown dim of an affine expression where that is possible."""
    known = substitute(size, dims)
    names = symbols(known)
    if not isinstance(known, Dim) or len(names) != 1:
        return
    name = next(iter(names))
    affine = coefficient(known, name)
    if affine is None or not isinstance(affine[0], int) or not isinstance(affine[1], int) or affine[0] == 0:
        return
    value, remainder = divmod(actual - affine[1], affine[0])
    if remainder or value < 0:
        raise ArgumentError(
            "TS302",
            f"axis {axis} of '{parameter.name}' has size {actual}, which {to_text(size)} is for no integer {name}",
        )
    dims[name], source[name] = value, f"by {to_text(size)} on axis {axis} of '{parameter.name}'"


def _shape_of_omitted(kernel: str, parameter: Parameter, dims: Mapping[str, int]) -> tuple[int, ...]:
    try:
        return tuple(evaluate(size, dims) for size in parameter.shape)
    except KeyError as error:
        raise ArgumentError(
            "TS601",
            f"{kernel} needs the argument '{parameter.name}': it is an output, but its dim "
            f"{error.args[0]} is known from no other argument",
        ) from None


def _check_aliases(binding: Binding) -> None:
    for name in binding.outputs:
        if name not in binding.infos:
            continue
        for other, info in binding.infos.items():
            if other != name and info.overlaps(binding.infos[name]):
                raise ArgumentError(
                    "TS602", f"'{name}' is written by {binding.kernel} and shares memory with '{other}'"
                )
