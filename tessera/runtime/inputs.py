"""Inputs for a kernel that is run for its own sake: dims, scalars and seeded values where the user gave none.

Outputs start as NaN, so that an element that no program writes shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tessera import dtypes
from tessera.dtypes import DType
from tessera.errors import ArgumentError, did_you_mean
from tessera.ir.dims import evaluate, symbols
from tessera.ir.types import length_name
from tessera.program import ANY_LENGTH, Parameter

DEFAULT_DIMS = {"B": 2, "S": 150, "D": 64}
OTHER_DIMS = 16
DEFAULT_INT, DEFAULT_FLOAT = 2, 1.0
DEFAULT_LENGTH = 3  # of a list of tensors
FP8_LIMIT = 56.0  # a value of both fp8 types
# Elements of all tensors of one run together; beyond it the machine would swap rather than answer.
MAX_ELEMENTS = 2**31


def dims_of(parameters: Iterable[Parameter]) -> tuple[str, ...]:
    """The dims in the shapes of tensors, in order of appearance; those of one expression by name."""
    found: dict[str, None] = {}
    for parameter in parameters:
        for size in parameter.shape:
            found.update(dict.fromkeys(sorted(symbols(size))))
    return tuple(found)


def parse_assignments(text: str, option: str, empty: bool = False) -> dict[str, str]:
    """`B=2,S=300` as a dict of texts, which can be `empty`. Raises ArgumentError TS605 for anything else and for a name
    given twice.
    """
    result: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not (name and equals and (value or empty)):
            raise ArgumentError(
                "TS605", f"{option} takes NAME=VALUE pairs separated by commas, and '{item}' is not one"
            )
        if name in result:
            raise ArgumentError("TS605", f"{option} gives {name} twice")
        result[name] = value
    return result


def parse_dims(text: str) -> dict[str, int]:
    """`B=2,S=300` as numbers. Raises ArgumentError TS605 for a size that is not an integer."""
    result: dict[str, int] = {}
    for name, value in parse_assignments(text, "--dims").items():
        try:
            size = int(value)
        except ValueError:
            raise ArgumentError("TS605", f"the dim {name} must be a positive integer, not '{value}'") from None
        result[name] = size
    return result


def choose_dims(kernel: str, names: Sequence[str], given: Mapping[str, int] | None) -> dict[str, int]:
    """A size per dim of the kernel: all defaults when `given` is None, else exactly what is given.

    Raises ArgumentError TS605 that lists the dims, for one that is missing, unknown or not positive.
    """
    if given is None:
        return {name: DEFAULT_DIMS.get(name, OTHER_DIMS) for name in names}
    listed = ", ".join(names) or "none"
    for name in given:
        if name not in names:
            raise ArgumentError(
                "TS605", f"{kernel} has no dim {name}; its dims are {listed}{did_you_mean(name, names)}"
            )
    if missing := [name for name in names if name not in given]:
        raise ArgumentError(
            "TS605", f"--dims gives no size for {', '.join(missing)}; the dims of {kernel} are {listed}"
        )
    if wrong := [name for name in names if given[name] < 1]:
        message = f"the dim {wrong[0]} must be positive, not {given[wrong[0]]}; the dims of {kernel} are {listed}"
        raise ArgumentError("TS605", message)
    return {name: given[name] for name in names}


def choose_scalars(
    kernel: str,
    parameters: Sequence[Parameter],
    given: Mapping[str, str],
    defaults: Mapping[str, Any],
    constants: Sequence[str] = (),
) -> dict[str, int | float]:
    """A value per scalar: the given text, else the signature's default, else 2 for an int and 1.0 for a float.

    Raises ArgumentError TS605 for an unknown name, which lists the scalars and the kernel's tuning `constants`, or for
    a text that is no number of the kind.
    """
    scalars = {p.name: dtypes.parse(p.dtype) for p in parameters if p.kind == "scalar"}
    for name in given:
        if name not in scalars:
            listed = ", ".join(scalars) or "none"
            hint = did_you_mean(name, [*scalars, *constants])
            tuned = f" and its constants {', '.join(constants)}" if constants else ""
            message = f"{kernel} has no scalar parameter '{name}'; its scalars are {listed}{tuned}{hint}"
            raise ArgumentError("TS605", message)
    result: dict[str, int | float] = {}
    for name, dtype in scalars.items():
        if name in given:
            result[name] = _number(name, dtype, given[name])
        elif name in defaults:
            result[name] = defaults[name]
        else:
            result[name] = DEFAULT_INT if dtype.is_int else DEFAULT_FLOAT
    return result


def _number(name: str, dtype: DType, text: str) -> int | float:
    try:
        value = int(text) if dtype.is_int else float(text)
    except ValueError:
        kind = "an integer" if dtype.is_int else "a number"
        raise ArgumentError("TS605", f"--arg {name} must be {kind}, not '{text}'") from None
    if dtype.is_int and not -(2**63) <= value < 2**63:
        raise ArgumentError("TS605", f"--arg {name} is {value}, which does not fit 64 bits")
    return value


def choose_lengths(kernel: str, parameters: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, int]:
    """The length of each list, as the dim that it is: the given one, else that of the first that is given, else 3.

    Raises ArgumentError TS605 for a text that is no length, or not that for which IR was made.
    """
    lists = {parameter.name: parameter.length for parameter in parameters if parameter.kind == "list"}
    lengths: dict[str, int] = {}
    for name, fixed in lists.items():
        if name in given:
            text = given[name]
            if not text.isascii() or not text.isdigit():
                raise ArgumentError("TS605", f"--arg {name} is the length of a list of {kernel}, not '{text}'")
            if fixed not in (ANY_LENGTH, int(text)):
                raise ArgumentError("TS605", f"'{kernel}' was made for {fixed} tensors in '{name}', not {text}")
            lengths[name] = int(text)
    default = next(iter(lengths.values()), DEFAULT_LENGTH)
    chosen = {name: lengths.get(name, default if fixed == ANY_LENGTH else fixed) for name, fixed in lists.items()}
    return {length_name(name): length for name, length in chosen.items()}


def make_arrays(parameters: Sequence[Parameter], dims: Mapping[str, int], seed: int) -> dict[str, Any]:
    """A NumPy array per tensor, a list of them per list: seeded values for what the kernel reads, NaN for the rest.

    The values of a parameter depend on the seed, its place in the signature, its shape and its place in a list alone.
    Raises ArgumentError TS605 when the arrays would hold more than 2^31 elements.
    """
    shapes = {p.name: tuple(evaluate(size, dims) for size in p.shape) for p in parameters if p.kind != "scalar"}
    lengths = {p.name: p.length for p in parameters if p.kind == "list"}
    total = sum(_count(shape) * lengths.get(name, 1) for name, shape in shapes.items())
    if total > MAX_ELEMENTS:
        raise ArgumentError(
            "TS605", f"these dims ask for {total} elements, more than {MAX_ELEMENTS}; choose smaller ones"
        )
    arrays: dict[str, Any] = {}
    for index, parameter in enumerate(parameters):
        if parameter.kind == "scalar":
            continue
        shape, dtype = shapes[parameter.name], dtypes.parse(parameter.dtype)
        if parameter.kind == "list":
            arrays[parameter.name] = [
                values(shape, dtype, np.random.default_rng((seed, index, number))) for number in range(parameter.length)
            ]
        elif parameter.role == "out":
            arrays[parameter.name] = poison(shape, dtype)
        else:
            arrays[parameter.name] = values(shape, dtype, np.random.default_rng((seed, index)))
    return arrays


def values(shape: tuple[int, ...], dtype: DType, random: np.random.Generator) -> np.ndarray:
    """Seeded values: normal floats, those of rank 2 scaled by 1/sqrt(rows) as weights are; integers from 0 to 15.

    Values of fp8 stay below 64, so that sums of a few do not saturate.
    """
    if dtype.is_float:
        normal = random.standard_normal(shape, np.float32)
        if len(shape) == 2:
            normal = normal / np.float32(np.sqrt(max(shape[0], 1)))
        if dtype.saturates:
            normal = np.clip(normal, -FP8_LIMIT, FP8_LIMIT)
        return dtypes.to_storage(dtype, normal)
    return random.integers(0, 2 if dtype.is_bool else 16, shape).astype(dtype.numpy)


def poison(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """NaN everywhere, or for integers the smallest value, which no ordinary result is."""
    if dtype.is_float:
        return np.full(shape, np.nan, dtype.numpy)
    return np.full(shape, 0 if dtype.is_bool else np.iinfo(dtype.numpy).min, dtype.numpy)


def _count(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
