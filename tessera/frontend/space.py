"""What an autotuned kernel leaves open: constants with their candidates, and the sizes that a choice depends on.

    @ts.kernel.autotune(space=dict(BLOCK_S=[64, 128], num_warps=[4, 8]), key=["S", "D"])

Inside the kernel `ctx.BLOCK_S` is the chosen candidate. Every candidate must give the same result, so a choice is never
needed for a right answer: the **default point** takes the first candidate of each list. The interpreter runs it, and
the answers of the others are compared with its; where the lists ascend, as is usual, it needs the least memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tessera.errors import SourceError, did_you_mean
from tessera.frontend.annotations import Annotation, ListAnnotation, ScalarAnnotation, TensorAnnotation
from tessera.ir.dims import symbols
from tessera.target.schedules import WARPS, is_warps

Point = dict[str, Any]

NUM_LAYERS = "num_layers"  # in a key: the length of the first list parameter
BUDGET_S = 60.0  # seconds of the wall clock that tuning may take for one key
MOST_MEASURED = 24


@dataclass(frozen=True)
class Space:
    """`candidates` by name, in the author's order; `key`: what a choice is made for: dims, scalars, list lengths.

    A choice is measured for at most `budget_s` seconds, on at most `most` points.
    """

    candidates: dict[str, tuple[Any, ...]]
    key: tuple[str, ...] = ()
    budget_s: float = BUDGET_S
    most: int = MOST_MEASURED

    @property
    def default(self) -> Point:
        """The first candidate of each list."""
        return {name: values[0] for name, values in self.candidates.items()}

    def points(self) -> list[Point]:
        """Every combination of candidates; the last name varies fastest, and the first point is the default."""
        return [
            dict(zip(self.candidates, values, strict=True)) for values in itertools.product(*self.candidates.values())
        ]

    def pin(self, constants: Mapping[str, Any], chosen: Mapping[str, Any] | None = None) -> Point:
        """`chosen` (else the default point) with the values of `constants`, which need not be candidates.

        Raises SourceError TS201 for a name that the space does not have and TS203 for a value of another type.
        """
        point = dict(chosen or self.default)
        for name, value in constants.items():
            if name not in point:
                listed, hint = ", ".join(point) or "none", did_you_mean(name, point)
                raise SourceError("TS201", f"the tuning space has no constant '{name}'; it has {listed}{hint}")
            kind = type(self.candidates[name][0])
            if type(value) is not kind:
                raise SourceError("TS203", f"the constant {name} is of type {kind.__name__}, and {value!r} is not")
            _check_candidate(name, value)
            point[name] = value
        return point

    def parse(self, name: str, text: str) -> Any:
        """The value that a command line gives for a constant. Raises SourceError TS203."""
        kind = type(self.candidates[name][0])
        if kind is bool:
            found = {"true": True, "false": False}.get(text.lower())
        else:
            try:
                found = kind(text)
            except ValueError:
                found = None
        if found is None:
            raise SourceError("TS203", f"the constant {name} is of type {kind.__name__}, and '{text}' is not")
        return found

    def check(self, annotations: Mapping[str, Annotation]) -> None:
        """Raises SourceError TS201 for a key that the parameters do not decide, TS203 for a constant named like a dim.

        `annotations` are those of the parameters, by name.
        """
        known = key_names(annotations)
        for name in self.key:
            if name not in known:
                raise SourceError(
                    "TS201",
                    f"the tuning key '{name}' is no dim, scalar parameter or list length of this kernel; it has "
                    f"{', '.join(known) or 'none'}{did_you_mean(name, known)}",
                )
        dims = _dims(annotations.values())
        for name in self.candidates:
            if name in dims:
                raise SourceError("TS203", f"'{name}' is a dim of this kernel and cannot be a tuning constant too")


def make_space(space: Any, key: Any, budget_s: Any = BUDGET_S, most: Any = MOST_MEASURED) -> Space:
    """The space of a decorator's arguments. Raises SourceError TS203 for what is no space, key or budget."""
    if not isinstance(space, Mapping) or not all(isinstance(name, str) and name.isidentifier() for name in space):
        raise SourceError("TS203", "space= takes a dict from names to lists of candidates")
    if isinstance(key, str) or not isinstance(key, Iterable):
        raise SourceError("TS203", f"key= takes a list of names, not {key!r}")
    names = tuple(key)
    for name in names:
        if not isinstance(name, str):
            raise SourceError("TS203", f"key= takes a list of names, and {name!r} is none")
    if isinstance(budget_s, bool) or not isinstance(budget_s, (int, float)) or not budget_s > 0:
        raise SourceError("TS203", f"budget_s= takes a positive number of seconds, not {budget_s!r}")
    if type(most) is not int or most < 1:
        raise SourceError("TS203", f"candidates= takes how many points to measure at most, not {most!r}")
    return Space({name: _candidates(name, values) for name, values in space.items()}, names, float(budget_s), most)


def _candidates(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple, range)) or not values:
        raise SourceError("TS203", f"the candidates of {name} are a list of at least one value, not {values!r}")
    candidates = tuple(values)
    kind = type(candidates[0])
    for value in candidates:
        if type(value) not in (int, float, bool, str) or type(value) is not kind:
            raise SourceError(
                "TS203", f"the candidates of {name} are numbers, bools or texts of one type, and {value!r} is none"
            )
        _check_candidate(name, value)
    if len(set(candidates)) < len(candidates):
        raise SourceError("TS203", f"the candidates of {name} hold a value twice: {list(candidates)}")
    return candidates


def _check_candidate(name: str, value: Any) -> None:
    """Two names mean something to the compiler as well: warps of a block, and stages of its copies."""
    if name == "num_warps" and not is_warps(value):
        raise SourceError("TS203", f"num_warps is {WARPS}, not {value!r}")
    if name == "num_stages" and not (type(value) is int and value >= 1):
        raise SourceError("TS203", f"num_stages is a positive integer, not {value!r}")


def key_names(annotations: Mapping[str, Annotation]) -> tuple[str, ...]:
    """What a key may name: dims, scalar parameters, `len(x)` of each list x and `num_layers` for the first of them."""
    found = dict.fromkeys(_dims(annotations.values()))
    for name, annotation in annotations.items():
        if isinstance(annotation, ScalarAnnotation):
            found[name] = None
        elif isinstance(annotation, ListAnnotation):
            found[NUM_LAYERS] = None
            found[f"len({name})"] = None
    return tuple(found)


def _dims(annotations: Iterable[Annotation]) -> list[str]:
    found: dict[str, None] = {}
    for annotation in annotations:
        tensor = annotation.element if isinstance(annotation, ListAnnotation) else annotation
        if isinstance(tensor, TensorAnnotation):
            for size in tensor.shape or ():
                found.update(dict.fromkeys(sorted(symbols(size))))
    return list(found)


__all__ = ["BUDGET_S", "MOST_MEASURED", "NUM_LAYERS", "Point", "Space", "key_names", "make_space"]
