"""Kernels made ready to run: what `run` and `check` have in common, from a target to made-up inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.cli.target import Target
from tessera.errors import ArgumentError, TesseraError, did_you_mean
from tessera.frontend.grid import check_coverage, launch_grid
from tessera.ir.core import Kernel
from tessera.ir.opdef import TILE
from tessera.program import Parameter, Program
from tessera.runtime import api, execute, inputs

if TYPE_CHECKING:
    from tessera.compiler import Compilation


@dataclass
class Subject:
    """A kernel with its ways to run: `kernel` gives its IR of `level` for dims, `program` and `compilation` compile it.

    `signature` holds the parameters, with roles that only the IR knows for certain. Of the two that compile, `program`
    takes what was compiled before and `compilation` keeps every stage.
    """

    name: str
    level: str
    signature: tuple[Parameter, ...]
    defaults: Mapping[str, Any]
    kernel: Callable[[dict[str, int]], Kernel]
    program: Callable[[dict[str, int], str, dict[str, int]], Program]
    compilation: Callable[[dict[str, int], str], Compilation]


@dataclass(frozen=True)
class Given:
    """What the command line says about a kernel's parameters; `dims` is None when it gave none."""

    dims: dict[str, int] | None
    args: dict[str, str]
    seed: int


@dataclass(frozen=True)
class Setup:
    """One launch of a subject: its IR with the sizes and values that were chosen.

    `bound` are the dims with those that textual IR has bound already; `arrays` the tensors by name, outputs NaN.
    """

    kernel: Kernel
    parameters: tuple[Parameter, ...]
    dims: dict[str, int]
    bound: dict[str, int]
    scalars: dict[str, int | float]
    extents: tuple[int, ...]
    arrays: dict[str, np.ndarray]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.kernel.attributes.get("notes", ()))


def read_given(dims: str | None, args: Sequence[str], seed: int) -> Given:
    """The options `--dims`, `--arg` and `--seed`. Raises ArgumentError TS605."""
    values = {name: value for text in args for name, value in inputs.parse_assignments(text, "--arg").items()}
    return Given(None if dims is None else inputs.parse_dims(dims), values, seed)


def load(target: Target) -> Subject:
    """The kernel behind a target. Raises the error of one that did not load."""
    if target.error is not None:
        raise target.error
    if target.definition is not None:
        return _of_definition(target)
    return _of_module(target)


def _of_definition(target: Target) -> Subject:
    definition = target.definition
    assert definition is not None
    state = api.KernelState(definition)

    def program(dims: dict[str, int], arch: str, alignment: dict[str, int]) -> Program:
        return state.program(dims, arch, None, alignment)

    def compilation(dims: dict[str, int], arch: str) -> Compilation:
        from tessera.compiler import compile_kernel

        return compile_kernel(definition, dims, arch, divisors=api.innermost_divisors(state.signature, dims))

    return Subject(target.name, TILE, state.signature, state.defaults, state.kernel, program, compilation)


def _of_module(target: Target) -> Subject:
    module = target.module
    assert module is not None
    kernel = module.kernel(target.name)
    parameters = execute.parameters_of(kernel)

    def compiled(dims: dict[str, int], arch: str, alignment: dict[str, int] | None = None) -> Compilation:
        from tessera.compiler import compile_kernel

        return compile_kernel(module, dims, arch, None, alignment, api.innermost_divisors(parameters, dims))

    def program(dims: dict[str, int], arch: str, alignment: dict[str, int]) -> Program:
        made = compiled(dims, arch, alignment).program
        assert made is not None
        return made

    return Subject(target.name, module.level, parameters, {}, lambda dims: kernel, program, compiled)


def set_up(subject: Subject, given: Given) -> Setup:
    """Chooses dims and scalars, checks that the grid writes every output, and makes the arrays.

    Raises ArgumentError TS605 for what was given and does not fit.
    """
    dims = inputs.choose_dims(subject.name, inputs.dims_of(subject.signature), given.dims)
    scalars = inputs.choose_scalars(subject.name, subject.signature, given.args, subject.defaults)
    kernel = subject.kernel(dims)
    parameters = execute.parameters_of(kernel)
    _check_divisors(kernel, dims)
    extents = launch_grid(kernel, dims)
    if subject.level == TILE:
        check_coverage(kernel, dims, extents)
    bound = {**(kernel.attributes.get("static") or {}), **dims}
    return Setup(kernel, parameters, dims, bound, scalars, extents, inputs.make_arrays(parameters, dims, given.seed))


def _check_divisors(kernel: Kernel, dims: Mapping[str, int]) -> None:
    """IR that was specialised assumes divisors of its dims; other sizes would be wrong answers or faults."""
    for name, divisor in (kernel.attributes.get("divisors") or {}).items():
        if name in dims and dims[name] % divisor:
            message = f"'{kernel.name}' was compiled for a {name} that {divisor} divides, and {dims[name]} is none"
            raise ArgumentError("TS605", message)


# ---- whole files -------------------------------------------------------------------------------------------------


def load_all(target: str, items: Sequence[Target], given: Given) -> list[tuple[str, Subject | TesseraError]]:
    """Every kernel of a file by name, or the error of one that cannot be read.

    Raises ArgumentError TS605 for a dim or a scalar that no kernel of the file has.
    """
    loaded: list[tuple[str, Subject | TesseraError]] = []
    for item in items:
        try:
            loaded.append((item.name, load(item)))
        except TesseraError as error:
            loaded.append((item.name, error))
    _check_names(target, [found for _, found in loaded if isinstance(found, Subject)], given)
    return loaded


def _check_names(target: str, subjects: list[Subject], given: Given) -> None:
    dims = list(dict.fromkeys(name for subject in subjects for name in inputs.dims_of(subject.signature)))
    scalars = list(dict.fromkeys(p.name for subject in subjects for p in subject.signature if p.kind == "scalar"))
    for kind, names, known in (("dim", given.dims or {}, dims), ("scalar parameter", given.args, scalars)):
        for name in names:
            if name not in known:
                listed = ", ".join(known) or "none"
                hint = did_you_mean(name, known)
                raise ArgumentError("TS605", f"no kernel of {target} has a {kind} {name} (there are {listed}){hint}")


def own(subject: Subject, given: Given) -> Given:
    """The part of what was given for a whole file that one of its kernels has."""
    dims = inputs.dims_of(subject.signature)
    scalars = {p.name for p in subject.signature if p.kind == "scalar"}
    return Given(
        None if given.dims is None else {name: size for name, size in given.dims.items() if name in dims},
        {name: value for name, value in given.args.items() if name in scalars},
        given.seed,
    )
