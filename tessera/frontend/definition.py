"""What the decorators make: kernels and functions as data, before anything is compiled.

A definition keeps the Python function and what the decorator was told. Its source is parsed when it is first asked
for, so a module with a kernel imports as fast as one without.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property, update_wrapper
from types import FunctionType
from typing import TYPE_CHECKING, Any, overload

from tessera.config import in_force
from tessera.errors import InternalError, SourceError
from tessera.frontend.annotations import Annotation, ListAnnotation, TensorAnnotation, read_annotation
from tessera.frontend.space import BUDGET_S, MOST_MEASURED, Point, Space, make_space
from tessera.location import Loc

if TYPE_CHECKING:
    from tessera.frontend.document import FunctionSource

REQUIRED = inspect.Parameter.empty

# Called as launcher(definition, grid, args, kwargs) when a kernel is called. The package sets it: the front end
# itself knows nothing about running.
launcher: Callable[..., Any] | None = None

# Whether torch is tracing the caller; None until a definition is made in a process that has imported torch. It then
# sees a call as one of an operator: torch can neither trace what a launch does nor run it on tensors without memory.
tracing: Callable[[], bool] | None = None
# What a written call returns where the arguments or settings are not those that it was written for.
MISSED: Any = object()

# Makes the operator of a definition. The package sets it.
operator_maker: Callable[[Any], Callable[..., Any]] | None = None
_numbers = itertools.count()
_numbered: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def numbered(callee: Any) -> int:
    """A number for a definition or a callable around one, by which `make_operator` finds it."""
    number = next(_numbers)
    _numbered[number] = callee
    return number


def make_operator(number: int) -> int:
    """Gives the definition of this number its `operator`, which a traced call of it is."""
    if operator_maker is None:
        raise InternalError("TS901", "a call was traced, but nothing is there to make an operator of it")
    definition = _numbered[number]
    definition.operator = operator_maker(definition)
    return number


# torch runs such a function while it traces, for which it takes and returns numbers alone.
make_operator._dynamo_marked_constant = True  # type: ignore[attr-defined]


def notice_torch() -> None:
    """Asks torch from now on whether it traces, if the process has imported it."""
    global tracing
    torch = sys.modules.get("torch")
    if tracing is None and hasattr(torch, "compiler"):
        tracing = torch.compiler.is_compiling  # type: ignore[union-attr]


@dataclass(frozen=True)
class ParameterDefinition:
    """A parameter as written; `default` is `REQUIRED` where there is none."""

    name: str
    annotation: Annotation
    default: Any = REQUIRED


class Definition:
    """A decorated function. `options` is what the decorator was told beside the function.

    `written` are calls that were written for the signatures of calls with positional arguments alone: each takes the
    arguments and `config.in_force()`. The package sets it.
    """

    kind = "function"
    operator: Callable[..., Any]
    written: tuple[Callable[[tuple[Any, ...], Any], Any], ...] = ()

    def __init__(
        self, function: Callable[..., Any], options: Mapping[str, Any] | None = None, name: str | None = None
    ) -> None:
        if not isinstance(function, FunctionType):
            raise SourceError("TS102", f"@ts.{self.kind} decorates a function, not {function!r}")
        if name is not None and not (isinstance(name, str) and name.isascii() and name.isidentifier()):
            raise SourceError("TS203", f"name= takes an identifier, not {name!r}")
        self.function = function
        self.name: str = name or function.__name__
        self.options: dict[str, Any] = dict(options or {})
        self.number = numbered(self)
        notice_torch()
        # Also sets __wrapped__, through which the source of the definition is the source of its function.
        update_wrapper(self, function)  # type: ignore[arg-type]

    def __copy__(self) -> Definition:
        """The same with nothing that was made for its calls."""
        made = object.__new__(type(self))
        own = ("operator", "written", "_function_state", "_runtime_state")
        vars(made).update({name: value for name, value in vars(self).items() if name not in own})
        made.number = numbered(made)
        return made

    @cached_property
    def source(self) -> FunctionSource:
        """The parsed definition; raises SourceError TS107 when its text is not available."""
        from tessera.frontend.document import function_source  # here, so that importing the package stays light

        return function_source(self.function)

    @cached_property
    def loc(self) -> Loc:
        """Where the author wrote `def name`."""
        node = self.source.node
        column = node.col_offset + 1
        return Loc(self.source.file, node.lineno, column, node.lineno, column + len(f"def {node.name}"))

    @cached_property
    def parameters(self) -> tuple[ParameterDefinition, ...]:
        """The parameters in order. Raises SourceError TS206 at an annotation that is missing or not understood."""
        signature = inspect.signature(self.function)
        nodes = {
            argument.arg: argument for argument in ast.walk(self.source.node.args) if isinstance(argument, ast.arg)
        }
        annotations = self._annotations()
        result = []
        for name, parameter in signature.parameters.items():
            node = nodes[name]
            loc = self.source.loc(node.annotation or node)
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise SourceError("TS206", f"'{name}' of '{self.name}' takes any number of arguments", loc)
            if name not in annotations:
                raise SourceError("TS206", f"'{name}' of '{self.name}' has no annotation", loc)
            try:
                annotation = read_annotation(self._evaluated(annotations[name], name), name)
            except SourceError as error:
                raise error.at(loc) from None
            result.append(ParameterDefinition(name, annotation, parameter.default))
        return tuple(result)

    @cached_property
    def returns(self) -> Annotation | None:
        """The return annotation; None where there is none. Raises SourceError TS206 for one that is not understood."""
        annotation = self._annotations().get("return")
        if annotation is None:
            return None
        node = self.source.node.returns
        loc = self.source.loc(node) if node is not None else self.loc
        try:
            return read_annotation(self._evaluated(annotation, "the result"), "the result")
        except SourceError as error:
            raise error.at(loc) from None

    def _annotations(self) -> dict[str, Any]:
        try:
            return dict(inspect.get_annotations(self.function))
        except NameError as error:  # Python 3.14 evaluates annotations when they are asked for
            raise SourceError(
                "TS206", f"an annotation of '{self.name}' uses the unknown name '{error.name}'", self.loc
            ) from None

    def _evaluated(self, annotation: Any, owner: str) -> Any:
        """An annotation that is text (`from __future__ import annotations`), evaluated in the place of its function."""
        if not isinstance(annotation, str):
            return annotation
        closure = inspect.getclosurevars(self.function).nonlocals
        try:
            return eval(annotation, self.function.__globals__, dict(closure))
        except SourceError:
            raise
        except Exception as error:  # the author's expression may raise anything
            raise SourceError(
                "TS206",
                f"the annotation '{annotation}' of '{owner}' cannot be evaluated: {type(error).__name__}: {error}",
            ) from None

    def __repr__(self) -> str:
        return f"<tessera {self.kind} {self.name}>"


class Wrapper:
    """A callable around a definition or a plain function; a call of it inside of a function is one of `wrapped`."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped


class KernelDefinition(Definition):
    """A kernel. `grid` is a function of the dims that gives the number of programs per axis, or None to infer it.

    `kernel(*arguments)` runs it on the grid of its definition, `kernel[grid](*arguments)` on the one given. `space` is
    that of an autotuned kernel, `constants` the point of it that `ctx` shows: the default one, unless it is pinned;
    `fixed` names the constants that are. `absent` names the optional tensors that it does without. `schedule` holds the
    fields of the schedule that are not the compiler's to choose, by name. `static` names dims whose values go into the
    code, besides those that shapes of tiles need.
    """

    kind = "kernel"

    def __init__(
        self,
        function: Callable[..., Any],
        grid: Callable[[Any], Any] | None = None,
        options: Mapping[str, Any] | None = None,
        name: str | None = None,
        space: Space | None = None,
        constants: Point | None = None,
        schedule: Mapping[str, Any] | None = None,
        static: Iterable[str] = (),
    ) -> None:
        super().__init__(function, options, name)
        if grid is not None and not callable(grid):
            raise SourceError("TS203", f"grid= takes a function of the dims, as in grid=lambda d: (d.B,), not {grid!r}")
        self.grid = grid
        self.space = space
        self.constants: Point = constants if constants is not None else space.default if space else {}
        self.fixed: frozenset[str] = frozenset()
        self.schedule: dict[str, Any] = self._checked(schedule) if schedule else {}
        self.static = self._dim_names(static)
        self.absent: frozenset[str] = frozenset()
        self._inferred: dict[str, TensorAnnotation] = {}

    @cached_property
    def parameters(self) -> tuple[ParameterDefinition, ...]:
        """As of every definition, without those that are absent, and with the annotations that were inferred."""
        return tuple(
            replace(parameter, annotation=_refined(parameter.annotation, self._inferred.get(parameter.name)))
            for parameter in super().parameters
            if parameter.name not in self.absent
        )

    @cached_property
    def optional(self) -> frozenset[str]:
        """The tensors with the default None: a call need not have them, the kernel is then compiled without them."""
        return frozenset(
            p.name for p in self.parameters if p.default is None and isinstance(p.annotation, TensorAnnotation)
        )

    def without(self, names: Iterable[str]) -> KernelDefinition:
        """This kernel for calls that have none of these optional tensors: in its body they are None.

        Raises SourceError TS201 for a name that is no optional tensor.
        """
        for name in (left_out := frozenset(names)):
            if name not in self.optional:
                message = f"'{name}' is no optional tensor of '{self.name}': those have the default None"
                raise SourceError("TS201", message, self.loc)
        return self._with(absent=self.absent | left_out) if left_out else self

    def annotated(self, tensors: Mapping[str, TensorAnnotation]) -> KernelDefinition:
        """This kernel with other annotations of the tensors, or of lists' tensors, of these names."""
        if not tensors:
            return self
        return self._with(_inferred={**self._inferred, **tensors})

    def _with(self, **changed: Any) -> KernelDefinition:
        made = KernelDefinition(self.function, self.grid, self.options, self.name, self.space, self.constants)
        made.fixed, made.schedule, made._inferred = self.fixed, self.schedule, self._inferred
        made.absent, made.static = self.absent, self.static
        for name, value in changed.items():
            setattr(made, name, value)
        return made

    def points(self) -> list[Point]:
        """Every point of the tuning space, the default one first; one empty point for a kernel that has no space."""
        return self.space.points() if self.space else [{}]

    def pinned(self, constants: Mapping[str, Any]) -> KernelDefinition:
        """This kernel with tuning constants of the caller's choice: candidates of the space, or other values.

        Raises SourceError TS201 for a name that the space does not have and TS203 for a value of another type.
        """
        if not constants:
            return self
        try:
            point = (self.space or Space({})).pin(constants, self.constants)
        except SourceError as error:
            raise error.at(self.loc) from None
        return self._with(constants=point, fixed=self.fixed | set(constants))

    @property
    def pins(self) -> Point:
        """The constants that are fixed, with their values; of the others a choice is made when the kernel is called."""
        return {name: value for name, value in self.constants.items() if name in self.fixed}

    def at(self, point: Point) -> KernelDefinition:
        """This kernel at a point of its space that was chosen for a call; that fixes no constant."""
        return self._with(constants=point)

    def scheduled(self, schedule: Mapping[str, Any]) -> KernelDefinition:
        """This kernel with fields of its schedule fixed, in addition to those that are.

        A field that a tuning constant decides, as num_warps does warps, fixes that constant. Raises SourceError TS201
        for a field that a schedule does not have and TS203 for a value that it cannot have.
        """
        from tessera.target.schedules import check_pins, decided_by

        try:
            pins = check_pins(schedule)
        except SourceError as error:
            raise error.at(self.loc) from None
        names = self.space.candidates if self.space else ()
        constants = {decided_by(field): pins.pop(field) for field in tuple(pins) if decided_by(field) in names}
        made = self.pinned(constants)
        return made._with(schedule={**made.schedule, **pins}) if pins else made

    def _dim_names(self, static: Any) -> tuple[str, ...]:
        """The option `static=` of a decorator. Raises SourceError TS203 for anything but names."""
        if isinstance(static, str) or not all(isinstance(name, str) for name in static):
            message = f'static= takes the names of dims, as in static=("H", "D"), not {static!r}'
            raise SourceError("TS203", message, self.loc)
        return tuple(static)

    def _checked(self, schedule: Any) -> dict[str, Any]:
        """The option `schedule=` of a decorator. Raises SourceError TS201 or TS203 at what it names."""
        from tessera.target.schedule import Schedule  # here, so that importing the package stays light
        from tessera.target.schedules import check_pins, decided_by

        if isinstance(schedule, Schedule):
            schedule = asdict(schedule)
        if not isinstance(schedule, Mapping):
            raise SourceError("TS203", "schedule= takes a dict from fields of the schedule to values", self.loc)
        try:
            for field in schedule:
                if self.space and decided_by(field) in self.space.candidates:
                    message = f"the field '{field}' is decided by the tuning constant {decided_by(field)}"
                    raise SourceError("TS203", f"{message}: give that one candidate")
            return check_pins(schedule)
        except SourceError as error:
            raise error.at(self._place_of_key(error.message)) from None

    def check_space(self) -> None:
        """Raises SourceError TS201 or TS203 at a key or a constant that does not go with the parameters.

        Annotations that cannot be read yet, as text that names what is defined later, are left for the first trace.
        """
        if self.space is None:
            return
        try:
            annotations = {
                name: read_annotation(self._evaluated(annotation, name), name)
                for name, annotation in self._annotations().items()
                if name != "return"
            }
        except SourceError:
            return
        try:
            self.space.check(annotations)
        except SourceError as error:
            raise error.at(self._place_of_key(error.message)) from None

    def _place_of_key(self, message: str) -> Loc:
        """Where the decorator names what a message quotes, else the definition."""
        for decorator in self.source.node.decorator_list:
            for node in ast.walk(decorator):
                named = isinstance(node, ast.Constant) and isinstance(node.value, str) and f"'{node.value}'" in message
                if named or isinstance(node, ast.keyword) and f"'{node.arg}'" in message:
                    return self.source.loc(node)
        return self.loc

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tracing is not None and tracing():
            make_operator(self.number)
            return self.operator(*args, **kwargs)
        if not kwargs:
            for written in self.written:
                result = written(args, in_force())
                if result is not MISSED:
                    return result
        run = launcher
        return _launch(self, None, args, kwargs) if run is None else run(self, None, args, kwargs)

    def __getitem__(self, grid: Any) -> LaunchOn:
        return LaunchOn(self, grid if isinstance(grid, tuple) else (grid,))


def _refined(annotation: Annotation, tensor: TensorAnnotation | None) -> Annotation:
    if tensor is None:
        return annotation
    return ListAnnotation(tensor) if isinstance(annotation, ListAnnotation) else tensor


@dataclass(frozen=True)
class LaunchOn:
    """A kernel with an explicit grid, `kernel[grid]`. `whole`: the grid is to write every element of the outputs."""

    definition: KernelDefinition
    grid: tuple[Any, ...]
    whole: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = launcher
        if run is None or not self.whole:
            return _launch(self.definition, self.grid, args, kwargs, **({} if self.whole else {"partial": True}))
        return run(self.definition, self.grid, args, kwargs)

    @property
    def partial(self) -> LaunchOn:
        """The same for a grid that leaves part of an output unwritten on purpose."""
        return replace(self, whole=False)


def _launch(
    definition: KernelDefinition,
    grid: tuple[Any, ...] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    **options: Any,
) -> Any:
    if launcher is None:
        raise InternalError("TS901", f"'{definition.name}' was called, but nothing is there to run it")
    return launcher(definition, grid, args, kwargs, **options)


# The functions that were decorated, by name: `ts.ops.<name>` finds them after the built-in ones.
FUNCTIONS: dict[str, FunctionDefinition] = {}


class FunctionDefinition(Definition):
    """A function over tensors."""

    kind = "function"

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any] | None = None) -> None:
        super().__init__(function, options)
        FUNCTIONS[self.name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if tracing is not None and tracing():
            make_operator(self.number)
            return self.operator(*args, **kwargs)
        if not kwargs:
            for written in self.written:
                result = written(args, in_force())
                if result is not MISSED:
                    return result
        if launcher is None:
            raise InternalError("TS901", f"'{self.name}' was called, but nothing is there to run it")
        return launcher(self, None, args, kwargs)


Grid = Callable[[Any], Any]


class KernelDecorator:
    """`@ts.kernel`, `@ts.kernel(grid=lambda d: (...), name="...", schedule=...)` and
    `@ts.kernel.autotune(space=..., key=...)`.
    """

    @overload
    def __call__(self, function: Callable[..., Any]) -> KernelDefinition: ...

    @overload
    def __call__(
        self,
        function: None = None,
        *,
        grid: Grid | None = None,
        name: str | None = None,
        schedule: Mapping[str, Any] | None = None,
        static: Iterable[str] = (),
    ) -> Callable[[Callable[..., Any]], KernelDefinition]: ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        grid: Grid | None = None,
        name: str | None = None,
        schedule: Mapping[str, Any] | None = None,
        static: Iterable[str] = (),
    ) -> Any:
        """`name` replaces the function's own name: for kernels that one factory makes. `schedule` fixes fields of the
        schedule, as in `schedule=dict(warps=8, stages=3)`; the compiler chooses the others. `static` names dims that
        are compiled in: offsets, masks and loops get their numbers, and each value of them a kernel of its own.
        """
        if function is None:
            return lambda decorated: KernelDefinition(decorated, grid, name=name, schedule=schedule, static=static)
        return KernelDefinition(function, grid, name=name, schedule=schedule, static=static)

    def autotune(
        self,
        *,
        space: Mapping[str, Any],
        key: Any = (),
        grid: Grid | None = None,
        schedule: Mapping[str, Any] | None = None,
        budget_s: float = BUDGET_S,
        candidates: int = MOST_MEASURED,
    ) -> Any:
        """A kernel whose `ctx` constants are chosen from `space` (name -> candidates), once per value of `key`.

        On a GPU the first call with a new key measures, for at most `budget_s` seconds and on at most so many
        `candidates`, and what it finds is kept on disk. On the interpreter `ctx` shows the first candidate of each
        list. `num_warps` and `num_stages` also fix the warps of a block and the stages of its copies. `schedule` fixes
        other fields of the schedule.
        """
        chosen = make_space(space, key, budget_s, candidates)

        def decorate(decorated: Callable[..., Any]) -> KernelDefinition:
            definition = KernelDefinition(decorated, grid, space=chosen, schedule=schedule)
            definition.check_space()
            return definition

        return decorate

    def __repr__(self) -> str:
        return "<tessera decorator kernel>"


kernel = KernelDecorator()


PRECISIONS = ("default", "strict")


@overload
def function(decorated: Callable[..., Any]) -> FunctionDefinition: ...


@overload
def function(
    decorated: None = None, *, precision: str = "default"
) -> Callable[[Callable[..., Any]], FunctionDefinition]: ...


def function(decorated: Callable[..., Any] | None = None, *, precision: str = "default") -> Any:
    """`@ts.function`: a function over tensors.

    With `precision="strict"` every op's result is rounded to its dtype, as it is between kernels; else a kernel that
    computes several ops may go on with the wider value. Raises SourceError TS402 for another precision.
    """
    if precision not in PRECISIONS:
        raise SourceError("TS402", f"the precision of a function is 'default' or 'strict', not {precision!r}")
    options = {} if precision == "default" else {"precision": precision}
    if decorated is None:
        return lambda found: FunctionDefinition(found, options)
    return FunctionDefinition(decorated, options)


class CheckpointDecorator:
    """`@ts.checkpoint`: a function of which a backward pass keeps the inputs alone and computes the rest again.

    It implies `@ts.function`, and takes a function that is decorated already. `ts.checkpoint.scope` is
    `ts.checkpoint_scope`, the same for a block.
    """

    def __call__(self, decorated: FunctionDefinition | Callable[..., Any]) -> FunctionDefinition:
        """Raises SourceError TS203 for a kernel and TS102 for what is no function."""
        if isinstance(decorated, KernelDefinition):
            raise SourceError("TS203", f"@ts.checkpoint decorates a function, and '{decorated.name}' is a kernel")
        definition = decorated if isinstance(decorated, FunctionDefinition) else function(decorated)
        made = copy(definition)  # the function that was passed stays as it is
        made.options = {**definition.options, "checkpoint": True}
        FUNCTIONS[made.name] = made
        return made

    @property
    def scope(self) -> Any:
        from tessera.frontend.language_scopes import checkpoint_scope  # which is built on definitions

        return checkpoint_scope

    def __repr__(self) -> str:
        return "<tessera decorator checkpoint>"


checkpoint = CheckpointDecorator()
