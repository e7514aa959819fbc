"""Kernels made ready to run: what `run` and `check` have in common, from a target to made-up inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tessera.cli.constants import constants_of, read_args, read_shapes
from tessera.cli.functions import FunctionSubject, load_function, parameter_names
from tessera.cli.target import Target
from tessera.errors import ArgumentError, TesseraError, did_you_mean
from tessera.frontend.grid import check_coverage, launch_grid
from tessera.frontend.inference import Actual
from tessera.ir.core import Kernel
from tessera.ir.dims import symbols
from tessera.ir.opdef import TILE
from tessera.program import Parameter, Program
from tessera.runtime import api, execute, inputs
from tessera.runtime.autotune_calls import note_of
from tessera.runtime.autotune_report import Choice

if TYPE_CHECKING:
    from tessera.compiler import Compilation


@dataclass
class Subject:
    """A kernel with its ways to run: `kernel` gives its IR of `level` for dims, `program` and `compilation` compile it.

    `signature` holds the parameters, with roles that only the IR knows for certain; `constants` names what its tuning
    space leaves open. Of the two that compile, `program` takes what was compiled before and `compilation` keeps every
    stage. `choose` gives, for sizes, numbers and an architecture, the subject at the point of its tuning space that a
    call would have, and a note that says where that comes from, if there is anything to choose.
    """

    name: str
    level: str
    signature: tuple[Parameter, ...]
    defaults: Mapping[str, Any]
    kernel: Callable[[dict[str, int]], Kernel]
    program: Callable[[dict[str, int], str, dict[str, int]], Program]
    compilation: Callable[[dict[str, int], str], Compilation]
    constants: tuple[str, ...] = ()
    choose: Callable[[dict[str, int], Mapping[str, int | float], str], tuple[Subject, tuple[str, ...]]] | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        return inputs.dims_of(self.signature)


Loaded = Subject | FunctionSubject | TesseraError


@dataclass(frozen=True)
class Given:
    """What the command line says about a target's parameters; `dims` is None when it gave none."""

    dims: dict[str, int] | None
    args: dict[str, str]
    seed: int
    shapes: dict[str, Actual] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """One launch of a subject: its IR with the sizes and values that were chosen.

    `bound` are the dims with those that textual IR has bound already, and the lengths of lists; `arrays` the tensors,
    and lists of them, by name, outputs NaN.
    """

    kernel: Kernel
    parameters: tuple[Parameter, ...]
    dims: dict[str, int]
    bound: dict[str, int]
    scalars: dict[str, int | float]
    extents: tuple[int, ...]
    arrays: dict[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.kernel.attributes.get("notes", ()))


def read_given(dims: str | None, args: Sequence[str], seed: int, shapes: Sequence[str] = ()) -> Given:
    """The options `--dims`, `--arg`, `--seed` and `--shape`. Raises ArgumentError TS605."""
    return Given(None if dims is None else inputs.parse_dims(dims), read_args(args), seed, read_shapes(shapes))


def load(target: Target) -> Subject | FunctionSubject:
    """The kernel or function behind a target. Raises the error of one that did not load."""
    if target.error is not None:
        raise target.error
    if target.function is not None:
        return load_function(target)
    if target.definition is not None:
        return _of_definition(target)
    return _of_module(target)


def _of_definition(target: Target) -> Subject:
    assert target.definition is not None
    return _of_state(target.name, api.KernelState(target.definition), None)


def _of_state(name: str, state: api.KernelState, choice: Choice | None) -> Subject:
    """A kernel at a point of its tuning space."""

    def program(dims: dict[str, int], arch: str, alignment: dict[str, int]) -> Program:
        return state.program(dims, arch, None, alignment, choice=choice)

    def compilation(dims: dict[str, int], arch: str) -> Compilation:
        from tessera.compiler import compile_kernel

        divisors, schedule = api.innermost_divisors(state.signature, dims), api.schedule_of(choice)
        return compile_kernel(state.definition, dims, arch, divisors=divisors, schedule=schedule)

    def choose(dims: dict[str, int], scalars: Mapping[str, int | float], arch: str) -> tuple[Subject, tuple[str, ...]]:
        chosen, found = state.chosen(dims, arch, scalars)
        notes = () if found is None else (note_of(found),)
        return _of_state(name, chosen, found), notes

    constants = constants_of(state.definition)
    return Subject(name, TILE, state.signature, state.defaults, state.kernel, program, compilation, constants, choose)


def at_choice(
    subject: Subject, dims: dict[str, int], scalars: Mapping[str, int | float], arch: str
) -> tuple[Subject, tuple[str, ...]]:
    """`Subject.choose`; textual IR has nothing to choose."""
    return (subject, ()) if subject.choose is None else subject.choose(dims, scalars, arch)


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
    dims = inputs.choose_dims(subject.name, subject.dims, given.dims)
    lists = {p.name for p in subject.signature if p.kind == "list"}
    args = {name: text for name, text in given.args.items() if name not in (*subject.constants, *lists)}
    scalars = inputs.choose_scalars(subject.name, subject.signature, args, subject.defaults, subject.constants)
    sizes = {**dims, **inputs.choose_lengths(subject.name, subject.signature, given.args)}
    kernel = subject.kernel(sizes)
    parameters = execute.parameters_of(kernel)
    _check_divisors(kernel, dims)
    bound = {**(kernel.attributes.get("static") or {}), **sizes}
    _check_told(kernel, bound)
    extents = launch_grid(kernel, dims)
    if subject.level == TILE:
        check_coverage(kernel, dims, extents)
    return Setup(kernel, parameters, dims, bound, scalars, extents, inputs.make_arrays(parameters, dims, given.seed))


def _check_divisors(kernel: Kernel, dims: Mapping[str, int]) -> None:
    """IR that was specialised assumes divisors of its dims; other sizes would be wrong answers or faults."""
    for name, divisor in (kernel.attributes.get("divisors") or {}).items():
        if name in dims and dims[name] % divisor:
            message = f"'{kernel.name}' was compiled for a {name} that {divisor} divides, and {dims[name]} is none"
            raise ArgumentError("TS605", message)


def _check_told(kernel: Kernel, bound: Mapping[str, int]) -> None:
    """IR that was edited can have a dim that is in no shape any more, nor among the numbers that it was made for."""
    steps = (size for sizes in (kernel.attributes.get("strides") or {}).values() for size in sizes)
    told = {*bound, *(name for size in steps for name in symbols(size))}
    for name in kernel.attributes.get("dims", ()):
        if name not in told:
            message = f"'{kernel.name}' has a dim {name} that is in no shape of a parameter and has no number"
            remedy = f"write its number into the kernel's attribute, such as static = {{{name} = 64}}"
            raise ArgumentError("TS605", message, notes=(remedy,))


# ---- whole files -------------------------------------------------------------------------------------------------


def load_all(target: str, items: Sequence[Target], given: Given) -> list[tuple[str, Loaded]]:
    """Every kernel and function of a file by name, or the error of one that cannot be read.

    Raises ArgumentError TS605 for a dim or a scalar that nothing in the file has.
    """
    loaded: list[tuple[str, Loaded]] = []
    lost: list[str] = []  # parameters of functions that could not be read
    for item in items:
        try:
            loaded.append((item.name, load(item)))
        except TesseraError as error:
            if error.code == "TS605":
                raise
            loaded.append((item.name, error))
            lost += parameter_names(item)
    _check_names(target, [found for _, found in loaded if not isinstance(found, TesseraError)], given, lost)
    return loaded


def _check_names(target: str, subjects: list[Subject | FunctionSubject], given: Given, lost: Sequence[str]) -> None:
    dims = list(dict.fromkeys(name for subject in subjects for name in subject.dims))
    own_names = (name for subject in subjects for name in _argument_names(subject))
    args = list(dict.fromkeys((*own_names, *lost)))
    arguments = "scalar parameter, list or constant"
    for kind, names, known in (("dim", given.dims or {}, dims), (arguments, given.args, args)):
        for name in names:
            if name not in known:
                listed = ", ".join(known) or "none"
                hint = did_you_mean(name, known)
                raise ArgumentError("TS605", f"no kernel of {target} has a {kind} {name} (there are {listed}){hint}")


def own(subject: Subject | FunctionSubject, given: Given) -> Given:
    """The part of what was given for a whole file that one of its kernels or functions has."""
    dims = subject.dims
    args = _argument_names(subject)
    return Given(
        None if given.dims is None else {name: size for name, size in given.dims.items() if name in dims},
        {name: value for name, value in given.args.items() if name in args},
        given.seed,
    )


def _argument_names(subject: Subject | FunctionSubject) -> tuple[str, ...]:
    """What `--arg` may set: scalar parameters, the lengths of lists, and tuning constants."""
    return (*(p.name for p in subject.signature if p.kind in ("scalar", "list")), *subject.constants)
