"""The host side of a warm call: what a first call found out, kept for every later call that looks the same.

A cold call reads shapes, unifies dims, checks and compiles; it costs far more than a launch. So it leaves a plan under
the signature of its arguments (dtype, shape, strides, device, alignment of each), and a warm call compares that
signature, checks what it cannot hold (which bytes the arrays occupy, what the numbers are) and queues the launches.
Calls that repeat do the same in a function that `warm_code` writes for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.config import Config
from tessera.runtime.arrays import ALIGNED, Reader, adapter
from tessera.runtime.bind import Binding, as_result
from tessera.runtime.launch import Driver, Prepared

LARGEST = 4096  # plans per kernel; a caller with more shapes than that starts over


def _number(value: Any) -> tuple[Hashable, Any]:
    return type(value), value


def _list(values: Sequence[Any]) -> tuple[Hashable, Any]:
    """What holds of each tensor in a list, and the addresses of all."""
    read = [READERS[type(value)](value) for value in values]
    return tuple([part for part, _ in read]), tuple([number for _, number in read])


# How to read an argument, by its exact type; filled by cold calls.
READERS: dict[type, Callable[[Any], tuple[Hashable, Any]]] = {
    int: _number,
    float: _number,
    list: _list,
    tuple: _list,
    **{scalar: _number for scalar in (np.int32, np.int64, np.float32, np.float64)},
}

Signature = tuple[Hashable, ...]
# What reading a foreign object raises where it is no dense array with memory: the cold call says why.
UNREADABLE = (KeyError, RuntimeError, AttributeError, TypeError)


def read(call: Hashable, values: Sequence[Any]) -> tuple[Signature, list[Any]] | None:
    """The signature of a call, and the address or number of each argument; None where one has no quick reader.

    `call` is the rest of what decides: names of keyword arguments, grid.
    """
    key: list[Hashable] = [call]
    found = []
    try:
        for value in values:
            part, number = READERS[type(value)](value)
            key.append(part)
            found.append(number)
    except UNREADABLE:
        return None
    return tuple(key), found


def learn(values: Sequence[Any]) -> bool:
    """Chooses a reader for the type of every argument; False where one has none."""
    for value in values:
        kind = type(value)
        if kind in (list, tuple):
            if not learn(value):
                return False
        elif kind not in READERS:
            library = adapter(value)
            if library is None or library.read is None:
                return False
            READERS[kind] = library.read
    return True


class Plan:
    """Everything that calls of one signature have in common. `record` is what `last_run` says of each, `written` how
    many functions were written for it (`warm_code`).
    """

    __slots__ = (
        "apart", "defaults", "device", "disjoint", "driver", "library", "made", "makers", "order", "prepared", "record",
        "settings", "written",
    )  # fmt: skip

    def __init__(self, driver: Driver, prepared: Prepared, binding: Binding, settings: Config, record: Any) -> None:
        assert binding.device is not None
        self.driver, self.prepared, self.settings, self.record = driver, prepared, settings, record
        self.library, self.device, self.written = binding.library, binding.device, 0
        types = {p.name: p.dtype for p in binding.parameters}
        self.made = tuple((shape, dtypes.parse(types[name])) for name, shape in binding.omitted.items())
        self.makers = tuple(
            (partial(binding.library.empty, *made, binding.device), _reader(binding, name))
            for made, name in zip(self.made, binding.omitted, strict=True)
        )
        defaults = [p.name for p in binding.parameters if p.name not in binding.given and p.kind == "scalar"]
        self.defaults = [binding.scalars[name] for name in defaults]
        # A call's values: its own arguments, the outputs made for it, defaults. `order` makes parameters of them.
        places = {name: number for number, name in enumerate((*binding.given, *binding.omitted, *defaults))}
        order = [places[parameter.name] for parameter in binding.parameters]
        self.order = None if order == sorted(order) else order
        self.disjoint = _disjoint(binding)
        self.apart = _apart(binding)

    def run(self, found: list[Any]) -> tuple[bool, Any]:
        """Queues the call whose arguments are `found`: whether it could, and what the call returns.

        It cannot where arrays come near one another, where a fresh output is aligned less than the code needs, and
        where a number does not fit: a cold call then decides or explains.
        """
        for written, low, high, other, other_low, other_high in self.disjoint:
            a, b = found[written], found[other]
            if a + low < b + other_high and b + other_low < a + high:
                return False, None
        for written, low, high, tensors, other_low, other_high in self.apart:
            a = found[written]
            for b in found[tensors]:
                if a + low < b + other_high and b + other_low < a + high:
                    return False, None
        device = self.device
        made = []
        if self.makers:
            for make, reader in self.makers:
                array = make()
                pointer = reader(array)[1]
                if pointer & ALIGNED:
                    return False, None
                made.append(array)
                found.append(pointer)
        if self.defaults:
            found += self.defaults
        if self.order is not None:
            found = [found[place] for place in self.order]
        try:
            self.prepared.queue(self.driver, found, self.library.stream(device), device, self.library)
        except (struct.error, OverflowError):
            return False, None
        if not made:
            return True, None
        return True, as_result([self.library.returned(array, device) for array in made])


def _reader(binding: Binding, name: str) -> Reader:
    """How an output that was left out is read."""
    reader = binding.infos[name].adapter.read
    assert reader is not None
    return reader


def _disjoint(binding: Binding) -> tuple[tuple[int, int, int, int, int, int], ...]:
    """Pairs of arguments, one of them written, that must not share memory.

    Each as its place among the arguments and its first and last byte from its address.
    """
    tensors = [(place, name) for place, name in enumerate(binding.given) if name in binding.infos]
    pairs = []
    for number, (place, name) in enumerate(tensors):
        for other_place, other in tensors[:number]:
            extents = binding.infos[name].extent, binding.infos[other].extent
            if (name in binding.outputs or other in binding.outputs) and all(low < high for low, high in extents):
                pairs.append((place, *extents[0], other_place, *extents[1]))
    return tuple(pairs)


def _apart(binding: Binding) -> tuple[tuple[int, int, int, int, int, int], ...]:
    """Pairs of a written argument and a list of tensors that must not share memory with it, as `_disjoint` has them."""
    places = {name: place for place, name in enumerate(binding.given)}
    pairs = []
    for parameter in binding.parameters:
        names = binding.names(parameter) if parameter.kind == "list" else []
        for written in binding.outputs if names else ():
            if written in places:
                extents = binding.infos[written].extent, binding.infos[names[0]].extent
                if all(low < high for low, high in extents):
                    pairs.append((places[written], *extents[0], places[parameter.name], *extents[1]))
    return tuple(pairs)


def can_plan(binding: Binding) -> bool:
    """Whether later calls may skip what this one checked: no number may have decided about the code."""
    return all(binding.infos[name].adapter.read is not None for name in binding.omitted) and not (
        binding.scalars.keys() & binding.dims.keys()
    )
