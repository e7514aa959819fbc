"""Linear layouts: maps over GF(2) from the bits of a place (register, lane, warp, offset) to tile coordinates.

The formalism is that of "Linear Layouts" (2025).  Because the map is linear, questions that are usually answered by
case analysis become algebra on a few basis vectors.  Register layouts (`layout.py`), shared-memory swizzles
(`layout_shared.py`) and instruction fragments (`target/fragments.py`) are all written in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Basis", "LinearLayout", "bit_count", "compact", "parse_groups", "power_of_two_above"]

Basis = tuple[int, ...]

_GROUP = re.compile(r"([A-Za-z_]\w*)(\[(?:[\d,\s]|\[[\d,\s]*\])*\])")


def bit_count(value: int) -> int:
    """log2 of a power of two."""
    if value < 1 or value & (value - 1):
        raise ValueError(f"{value} is not a power of two")
    return value.bit_length() - 1


def power_of_two_above(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def parse_groups(text: str) -> list[tuple[str, list]]:
    """`a[[0,1]] b[] c[1,2]` as [("a", [[0, 1]]), ("b", []), ("c", [1, 2])]."""
    if _GROUP.sub("", text).strip():
        raise ValueError(f"not a layout: {text!r}")
    return [(match[1], json.loads(match[2])) for match in _GROUP.finditer(text)]


@dataclass(frozen=True)
class LinearLayout:
    """A linear map over GF(2) from named groups of input bits to coordinates on `axes` axes.

    `bases` holds, for each input in order, one basis vector per bit, lowest bit first; the image of an input value is
    the XOR of the basis vectors of its set bits.  A zero basis vector is a broadcast: both values of the bit name the
    same element.
    """

    bases: tuple[tuple[str, tuple[Basis, ...]], ...]
    axes: int

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"input names repeat: {self.names}")
        for name, vectors in self.bases:
            for vector in vectors:
                if len(vector) != self.axes or min(vector, default=0) < 0:
                    raise ValueError(f"basis {vector} of {name!r} is not {self.axes} non-negative coordinates")

    @staticmethod
    def of(axes: int, **bases: Sequence[Sequence[int]]) -> LinearLayout:
        """Build from `name=[[...], ...]` pairs; the order of the keywords is the order of the inputs."""
        return LinearLayout(tuple((name, tuple(tuple(v) for v in vectors)) for name, vectors in bases.items()), axes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.bases)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The smallest power-of-two box that holds every coordinate."""
        vectors = [vector for _, group in self.bases for vector in group]
        return tuple(1 << max((v[axis].bit_length() for v in vectors), default=0) for axis in range(self.axes))

    def group(self, name: str) -> tuple[Basis, ...]:
        """The basis vectors of one input."""
        for candidate, vectors in self.bases:
            if candidate == name:
                return vectors
        raise ValueError(f"no input {name!r}; the inputs are {', '.join(self.names)}")

    def size(self, name: str) -> int:
        """How many values the input takes: 2 to the number of its bits."""
        return 1 << len(self.group(name))

    def apply(self, **inputs: int) -> tuple[int, ...]:
        """The coordinates of one place; an input left out is zero."""
        coordinates = [0] * self.axes
        for name, value in inputs.items():
            if not 0 <= value < self.size(name):
                raise ValueError(f"{name}={value} is outside 0..{self.size(name) - 1}")
            for bit, vector in enumerate(self.group(name)):
                if value >> bit & 1:
                    coordinates = [a ^ b for a, b in zip(coordinates, vector, strict=True)]
        return tuple(coordinates)

    def apply_array(self, **inputs: np.ndarray) -> np.ndarray:
        """`apply` on broadcastable integer arrays; the result is int64 with one more axis, of length `axes`."""
        arrays = {name: np.asarray(value, dtype=np.int64) for name, value in inputs.items()}
        result = np.zeros((*np.broadcast_shapes(*(a.shape for a in arrays.values())), self.axes), dtype=np.int64)
        for name, value in arrays.items():
            for bit, vector in enumerate(self.group(name)):
                result ^= (value >> bit & 1)[..., None] * np.array(vector, dtype=np.int64)
        return result

    def compose(self, inner: LinearLayout) -> LinearLayout:
        """self after `inner`: axis i of `inner` feeds input i of self."""
        if inner.axes != len(self.names):
            raise ValueError(f"the inner layout has {inner.axes} axes, the outer one {len(self.names)} inputs")
        for name, extent in zip(self.names, inner.shape, strict=True):
            if extent > self.size(name):
                raise ValueError(f"the inner layout reaches {extent} values of {name!r}, which has {self.size(name)}")
        return LinearLayout(
            tuple(
                (name, tuple(self.apply(**dict(zip(self.names, vector, strict=True))) for vector in vectors))
                for name, vectors in inner.bases
            ),
            self.axes,
        )

    def product(self, outer: LinearLayout) -> LinearLayout:
        """Tile self by `outer`: the bits of `outer` follow those of self and step in whole blocks of self."""
        if outer.axes != self.axes:
            raise ValueError(f"a product needs equal axes, not {self.axes} and {outer.axes}")
        groups = dict(self.bases)
        for name, vectors in outer.bases:
            scaled = tuple(tuple(c * e for c, e in zip(v, self.shape, strict=True)) for v in vectors)
            groups[name] = groups.get(name, ()) + scaled
        return LinearLayout(tuple(groups.items()), self.axes)

    @cached_property
    def _echelon(self) -> tuple[dict[int, tuple[int, int]], tuple[int, ...]]:
        """Gaussian elimination: ({pivot: (image, inputs)} fully reduced, null space), vectors packed as integers.

        Inputs are taken in order, so among places of one element the pivots are those with the lowest inputs.
        """
        pivots: dict[int, tuple[int, int]] = {}
        null_space: list[int] = []
        columns = [_pack(vector, self.shape) for _, group in self.bases for vector in group]
        for index, column in enumerate(columns):
            image, inputs = column, 1 << index
            while image and (pivot := image.bit_length() - 1) in pivots:
                image ^= pivots[pivot][0]
                inputs ^= pivots[pivot][1]
            if image:
                pivots[image.bit_length() - 1] = (image, inputs)
            else:
                null_space.append(inputs)
        for pivot in sorted(pivots):
            image, inputs = pivots[pivot]
            for lower in sorted(pivots):
                if lower < pivot and image >> lower & 1:
                    image ^= pivots[lower][0]
                    inputs ^= pivots[lower][1]
            pivots[pivot] = (image, inputs)
        return pivots, tuple(null_space)

    @property
    def rank(self) -> int:
        """The dimension of the image: 2**rank elements are named."""
        return len(self._echelon[0])

    @property
    def is_injective(self) -> bool:
        """No element is held twice."""
        return not self._echelon[1]

    @property
    def is_surjective(self) -> bool:
        """Every element of `shape` is held."""
        return 1 << self.rank == math.prod(self.shape)

    @property
    def _input_sizes(self) -> tuple[int, ...]:
        return tuple(1 << len(group) for _, group in self.bases)

    def kernel(self) -> tuple[tuple[int, ...], ...]:
        """A basis of the inputs that map to zero, each as one integer per input, in the order of `names`."""
        return tuple(_unpack(vector, self._input_sizes) for vector in self._echelon[1])

    def broadcast_bits(self, name: str) -> tuple[int, ...]:
        """The bits of an input whose two values hold the same element."""
        return tuple(bit for bit, vector in enumerate(self.group(name)) if not any(vector))

    def inverse(self) -> LinearLayout:
        """A layout from coordinates (inputs axis0, axis1, ...) to places (one axis per input of self).

        A right inverse where self is surjective, with zeros in the broadcast bits; else a generalised inverse:
        self . inverse . self == self.
        """
        pivots, _ = self._echelon
        bases, position = [], 0
        for axis, extent in enumerate(self.shape):
            bits = range(position, position := position + bit_count(extent))
            places = tuple(_unpack(pivots[bit][1] if bit in pivots else 0, self._input_sizes) for bit in bits)
            bases.append((f"axis{axis}", places))
        return LinearLayout(tuple(bases), len(self.names))

    def __str__(self) -> str:
        return " ".join(f"{name}{compact(vectors)}" for name, vectors in (*self.bases, ("axes", (self.axes,))))

    @staticmethod
    def parse(text: str) -> LinearLayout:
        """The inverse of `str`."""
        *groups, (last, axes) = parse_groups(text) or [("", [])]
        if last != "axes" or len(axes) != 1:
            raise ValueError(f"a linear layout ends in axes[n]: {text!r}")
        return LinearLayout.of(axes[0], **dict(groups))


def _pack(values: Sequence[int], sizes: Sequence[int]) -> int:
    """Concatenate bit fields, the first one lowest."""
    packed, position = 0, 0
    for value, size in zip(values, sizes, strict=True):
        packed |= value << position
        position += bit_count(size)
    return packed


def _unpack(packed: int, sizes: Sequence[int]) -> tuple[int, ...]:
    values = []
    for size in sizes:
        values.append(packed & (size - 1))
        packed >>= bit_count(size)
    return tuple(values)
