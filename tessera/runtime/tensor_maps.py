"""Tensor maps of a call: what a launch tells TMA about each of its tensors, encoded once for each address.

A map of the hardware is 128 bytes that only the driver can write. The shapes of the calls of one signature are equal,
so a map depends on the address alone, and the maps of the last call are kept as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from operator import itemgetter
from typing import Any

from tessera.dtypes import parse as parse_dtype
from tessera.errors import ArgumentError, EnvironmentProblem, InternalError
from tessera.ir.dims import evaluate
from tessera.program import MAP_BYTES, Argument, Launch, Program
from tessera.runtime.arrays import ArrayInfo, contiguous_strides
from tessera.runtime.bind import Binding, element_name

STRIDE_MULTIPLE = 16  # bytes
# What a map can hold; coordinates are 32-bit numbers with a sign.
LARGEST_SIZE, LARGEST_STRIDE = 2**31 - 1, 2**40 - 1
MOST_KNOWN = 256  # addresses whose map is kept, of each tensor


@dataclass(frozen=True)
class TensorShape:
    """How the elements of a mapped tensor lie, innermost axis first; `strides` in bytes, the first the element's."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @staticmethod
    def of(shape: Sequence[int], steps: Sequence[int], item: int) -> TensorShape:
        """Of a shape and strides in elements as arrays have them. One axis is one row of two.

        The step of an axis of size 1 is never taken and becomes one that a map can hold.
        """
        sizes = (*reversed(shape), *[1] * (len(shape) == 1))
        given = (*reversed(steps), *[0] * (len(shape) == 1))
        strides = [item]
        for axis in range(1, len(sizes)):
            least = -(-strides[-1] * max(sizes[axis - 1], 1) // STRIDE_MULTIPLE) * STRIDE_MULTIPLE
            strides.append(given[axis] * item if sizes[axis] > 1 and 0 not in shape else least)
        return TensorShape(sizes, tuple(strides))

    @property
    def empty(self) -> bool:
        return 0 in self.sizes

    def check(self, name: str) -> None:
        """Raises ArgumentError TS611 for a tensor that no map describes."""
        for axis, (size, stride) in enumerate(zip(self.sizes, self.strides, strict=True)):
            where = f"axis {len(self.sizes) - 1 - axis} of '{name}'"
            if size > LARGEST_SIZE:
                raise ArgumentError("TS611", f"{where} has {size} elements, and TMA reaches {LARGEST_SIZE}")
            if not 0 < stride <= LARGEST_STRIDE:
                raise ArgumentError("TS611", f"{where} has a stride of {stride} bytes, which TMA cannot take")


@dataclass(frozen=True)
class Encoding:
    """A map but for the address: `box` in elements, `swizzle` in bytes, `item` bytes an element."""

    shape: TensorShape
    box: tuple[int, ...]
    swizzle: int
    item: int


# Makes the 128 bytes of a map of the tensor at an address.
Encoder = Callable[[Encoding, int], bytes]


class Maps:
    """The maps of one launch. `places`: where the address of each tensor is among the values of a call."""

    def __init__(self, tensors: Sequence[Known], places: Sequence[int]) -> None:
        self._tensors, self.places = tensors, tuple(places)
        pick = itemgetter(*places)
        self._pick: Callable[[Sequence[Any]], Any] = pick
        self._last: tuple[Any, tuple[bytes, ...]] = (None, ())

    def of(self, values: Sequence[Any]) -> tuple[bytes, ...]:
        """The maps of a call, in order."""
        addresses = self._pick(values)
        known = self._last  # one tuple: another thread may put another one here
        if known[0] == addresses:
            return known[1]
        made = self.at(addresses if len(self.places) > 1 else (addresses,))
        self._last = addresses, made
        return made

    def at(self, addresses: Sequence[int]) -> tuple[bytes, ...]:
        """The maps of tensors at these addresses, in order."""
        return tuple([tensor.at(address) for tensor, address in zip(self._tensors, addresses, strict=True)])

    def moved(self, chosen: Sequence[int]) -> Maps:
        """The same maps of calls whose values lie elsewhere: value `n` at the place `chosen[n]`."""
        return Maps(self._tensors, [chosen[place] for place in self.places])


class Known:
    """The maps of one tensor by address, the last ones used."""

    def __init__(self, encode: Callable[[int], bytes]) -> None:
        self._encode = encode
        self._maps: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def at(self, address: int) -> bytes:
        with self._lock:
            found = self._maps.pop(address, None)
            if found is None:
                found = self._encode(address)
                if len(self._maps) >= MOST_KNOWN:
                    del self._maps[next(iter(self._maps))]
            self._maps[address] = found
        return found


def maps_of(
    program: Program,
    step: Launch,
    binding: Binding,
    places: Mapping[str, int],
    encode: Encoder,
    nothing: Callable[[], int],
) -> Maps | None:
    """The maps that a launch passes, those of a list one by one; None where there are none, as of an empty list.

    `places` has the tensors of a list under their own names. `nothing` gives the address of a zero, and 64 bytes on of
    memory that may be written, for tensors without elements. Raises ArgumentError TS611 for a tensor without a map.
    """
    shapes = tensor_shapes(program, binding.infos, binding.dims)
    tensors, chosen = [], []
    for argument in step.arguments:
        for name in mapped_names(program, argument):
            shape, item = shapes[name]
            if shape.empty:
                where = nothing() + (64 if argument.name in step.writes else 0)
                one = TensorShape.of([1] * len(argument.box), [1] * len(argument.box), item)
                made = partial(_elsewhere, encode, Encoding(one, argument.box, argument.swizzle, item), where)
            else:
                shape.check(name)
                made = partial(encode, Encoding(shape, argument.box, argument.swizzle, item))
            tensors.append(Known(made))
            chosen.append(places[name])
    return Maps(tensors, chosen) if tensors else None


def _elsewhere(encode: Encoder, encoding: Encoding, address: int, _: int) -> bytes:
    return encode(encoding, address)


def mapped_names(program: Program, argument: Argument) -> list[str]:
    """The tensors whose maps an argument is, as `Binding` calls them; none for other arguments."""
    if argument.kind == "map":
        return [argument.name]
    if argument.kind == "maps":
        length = next(p.length for p in program.parameters if p.name == argument.name)
        return [element_name(argument.name, number) for number in range(length)]
    return []


def tensor_shapes(
    program: Program, infos: Mapping[str, ArrayInfo], dims: Mapping[str, int]
) -> dict[str, tuple[TensorShape, int]]:
    """How every tensor and workspace of a call lies, with the bytes of an element."""
    found = {}
    for name, info in infos.items():
        if info.dtype is not None and info.strides is not None:
            found[name] = TensorShape.of(info.shape, info.strides, info.dtype.bytes), info.dtype.bytes
    for space in program.workspaces:
        shape = tuple(evaluate(size, dims) for size in space.shape)
        item = parse_dtype(space.dtype).bytes
        found[space.name] = TensorShape.of(shape, contiguous_strides(shape), item), item
    return found


# ---- the driver's encoder ------------------------------------------------------------------------------------------


def encode(encoding: Encoding, address: int) -> bytes:
    """The 128 bytes of a map. Raises EnvironmentProblem TS515 without cuda-bindings."""
    import ctypes

    driver, shape = _bindings(), encoding.shape
    rank = len(shape.sizes)
    type_ = getattr(driver.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_UINT{8 * encoding.item}")
    swizzle = f"CU_TENSOR_MAP_SWIZZLE_{f'{encoding.swizzle}B' if encoding.swizzle else 'NONE'}"
    status, made = driver.cuTensorMapEncodeTiled(
        type_,
        rank,
        address,
        [driver.cuuint64_t(size) for size in shape.sizes],
        [driver.cuuint64_t(stride) for stride in shape.strides[1:]],
        [driver.cuuint32_t(size) for size in encoding.box],
        [driver.cuuint32_t(1)] * rank,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        getattr(driver.CUtensorMapSwizzle, swizzle),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )
    if int(status) != 0:
        raise InternalError("TS901", f"the driver makes no tensor map of {encoding} at {address:#x}: {status}")
    return ctypes.string_at(made.getPtr(), MAP_BYTES)


@cache
def _bindings() -> Any:
    try:
        return import_module("cuda.bindings.driver")
    except ImportError:
        raise EnvironmentProblem(
            "TS515", "this program copies by TMA, and the package cuda-bindings, which makes tensor maps, is missing"
        ) from None
