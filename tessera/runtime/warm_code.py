"""Warm calls as Python that is written for one signature: what a plan (`plan`) finds in data, as straight lines.

A call that comes again with the same signature gets a function of its own. It asks whether the arguments are as the
signature has them, packs their addresses and queues the launches; what never changes is in the text, or in argument
memory already. Wherever anything is another way it leaves with MISSED, before it has queued anything: the call then
goes the general way, which decides or explains. `TESSERA_DUMP=host` prints the text.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from tessera.config import Config, in_force, of_environment
from tessera.frontend.definition import Definition
from tessera.program import MAP_BYTES
from tessera.runtime import workspace
from tessera.runtime.arrays import ALIGNED, Adapter
from tessera.runtime.launch import SLOT, Arguments, CupyDriver, Driver, PreparedLaunch
from tessera.runtime.warm_arrays import Arrays, Dialect, Seen, dialect_of
from tessera.runtime.warm_text import Text

if TYPE_CHECKING:
    from tessera.runtime.api import KernelState
    from tessera.runtime.plan import Plan, Signature

MOST_WRITTEN = 4  # functions that a call tries; one that fits none of them costs a comparison each
MOST_OF_A_PLAN = 2  # one that is served without its function (its device is not current, say) gets no third
UNFIT = (struct.error, OverflowError)  # what packing raises for a number that its slot cannot hold
CHANGES, FIXED_BY_BASE, CONSTANT = "changes", "fixed by base", "constant"
WIDEST_GAP = 3 * SLOT  # bytes of constants that one packing may write again to save a second one


@dataclass(frozen=True)
class Value:
    """What launches pass: an expression, and how often its value changes. `number` is that of a constant."""

    text: str
    kind: str = CHANGES
    number: Any = None

    @staticmethod
    def constant(number: Any) -> Value:
        return Value("", CONSTANT, number)


class WrittenCalls:
    """The calls that were written for one definition, by their form: what of a call is no argument and no setting.

    Those of a form of None, positional arguments alone, are `definition.written`.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._known: dict[Any, tuple[Callable[..., Any], ...]] = {}
        self._recent: Any = None

    def of(self, form: Any) -> tuple[Callable[..., Any], ...]:
        """The functions to try, those of None left out: a definition has tried them itself."""
        if form is None or not self._known:
            return ()
        try:
            return self._known.get(form, ())
        except TypeError:  # a grid that is no tuple of integers
            return ()

    def served(self, form: Any, plan: Any, settings: Config, write: Callable[[Config | None], Any]) -> None:
        """Notes that a plan, made under these settings, has served a call that none was written for.

        One that does so twice in a row gets a function, which `write` makes for the settings in force: calls that
        differ each time are not written.
        """
        if self._recent is not plan:
            self._recent = plan
            return
        if plan.written >= MOST_OF_A_PLAN:
            return
        plan.written += 1
        self._recent, chosen = None, in_force()
        if (chosen or of_environment()) is not settings:
            return
        known = self._known[form] = (write(chosen), *self._known.get(form, ()))[:MOST_WRITTEN]
        if form is None:
            self._definition.written = known


# ---- arguments -------------------------------------------------------------------------------------------------------


def write_arguments(
    text: Text, values: Sequence[Any], parts: Sequence[Any], settings: Config | None
) -> list[str | list[str]]:
    """Lines that leave unless the arguments are of the signature `parts`, as those of the call `values` are.

    Returns the expression for the address or number of each, those of a list one by one. Goes into a `try` that leaves
    with what cannot be read.
    """
    text.leave_if(f"settings is not {text.bind('known_settings', settings)} or len(values) != {len(values)}")
    names = [f"a{number}" for number in range(len(values))]
    if names:
        text.line(f"{', '.join(names)}{',' * (len(names) == 1)} = values")
    tensors: list[Seen] = []
    lists: list[tuple[str, list[Seen]]] = []
    asked: list[tuple[str, Any]] = []  # whose types are asked for
    found: list[str | list[str]] = []
    for name, value, part in zip(names, values, parts, strict=True):
        pointer = f"p{name[1:]}"
        if isinstance(value, (list, tuple)):
            pairs = enumerate(zip(value, part, strict=True))
            items = [Seen(f"{name}_{number}", f"{pointer}_{number}", *pair) for number, pair in pairs]
            lists.append((name, items))
            tensors += items
            asked.append((name, value))
            found.append([one.pointer for one in items])
        elif part is type(value):  # a number
            asked.append((name, value))
            found.append(name)
        else:
            tensors.append(Seen(name, pointer, value, part))
            asked.append((name, value))
            found.append(pointer)
    arrays = Arrays(tensors)
    _write_types(text, [one for one in asked if one[0] not in arrays.compared])
    for name, items in lists:
        text.leave_if(f"len({name}) != {len(items)}")
        if items:
            text.line(f"{', '.join(one.name for one in items)}{',' * (len(items) == 1)} = {name}")
            _write_types(text, [(one.name, one.value) for one in items if one.name not in arrays.compared])
    arrays.look(text)
    return found


def _write_types(text: Text, asked: Sequence[tuple[str, Any]]) -> None:
    if asked:
        types = [(name, text.bind(type(value).__name__, type(value))) for name, value in asked]
        text.leave_if(" or ".join(f"type({name}) is not {kind}" for name, kind in types))


def write_apart(text: Text, a: str, a_low: int, a_high: int, b: str, b_low: int, b_high: int) -> None:
    """Lines that leave where the bytes of two arrays meet; their extents count from their addresses."""
    text.leave_if(f"{b_low - a_high} < {a} - {b} < {b_high - a_low}")


# ---- CUDA ------------------------------------------------------------------------------------------------------------


class Cuda:
    """How a written call speaks to a driver: CuPy's bindings without a detour, any other through its methods."""

    def __init__(self, driver: Driver, library: Adapter, device: int) -> None:
        self.driver, self.device = driver, device
        self.calls = driver.calls() if isinstance(driver, CupyDriver) else None
        self.dialect = dialect_of(library)
        # Only behind the question for the current device may an array be made on that.
        self.maker = self.dialect if self.calls else Dialect(library)

    def check(self, text: Text) -> None:
        """Lines that leave unless launches go to the device from this thread as it is; goes into a `try`."""
        if self.calls is None:
            return
        assert isinstance(self.driver, CupyDriver)
        text.leave_if(f"{text.bind('current_device', self.calls.current_device)}() != {self.device}")
        text.line(f"{text.bind('threads', self.driver.threads)}.ready")

    def capturing(self, text: Text, stream: str) -> str:
        """The expression for whether a stream is captured; it may raise, where the general way knows why."""
        if self.calls is None:
            return f"{text.bind('driver', self.driver)}.capturing({stream}, {self.device})"
        return f"{text.bind('capturing', self.calls.capturing)}({stream})"

    def replay(self, text: Text, graph: str, stream: str) -> None:
        if self.calls is None:
            text.line(f"{graph}.replay({stream})")
        else:
            text.line(f"{text.bind('replay', self.calls.replay)}({graph}.handle, {stream})")

    def launch(self, text: Text, one: PreparedLaunch, number: int, stream: str) -> None:
        arguments = f"block.arguments{number}"
        if self.calls is None:
            function, driver = text.bind("function", one.function), text.bind("driver", self.driver)
            rest = f"{one.grid!r}, {one.threads}, {arguments}, {one.shared_bytes}, {stream}, {self.device}"
            text.line(f"{driver}.launch({function}, {rest})")
        else:
            x, y, z = one.grid
            shape = f"{x}, {y}, {z}, {one.threads}, 1, 1, {one.shared_bytes}"
            launch, function = text.bind("launch", self.calls.launch), text.bind("function", one.function.ptr)
            text.line(f"{launch}({function}, {shape}, {stream}, block.address{number}, 0)")

    def make(self, text: Text, name: str, shape: tuple[int, ...], dtype: Any) -> str:
        """Lines that make an array and leave where it is aligned less than code assumes; returns its address."""
        pointer = f"r{name.removeprefix('made')}"
        text.line(f"{pointer} = {self.maker.make(text, name, shape, dtype, self.device)}")
        text.leave_if(f"{pointer} & {ALIGNED}")
        return pointer


# ---- launches --------------------------------------------------------------------------------------------------------


class Block:
    """Argument memory of all launches of a call. `base` is where the workspace was when it was last written."""

    base: Any = None


class Launches:
    """The launches of a written call, which pick what they pass from `values`.

    Blocks of argument memory that nobody uses just now are in a list, as `PreparedLaunch` has it.
    """

    def __init__(self, text: Text, cuda: Cuda, prepared: Sequence[PreparedLaunch], values: Sequence[Value]) -> None:
        self.text, self.cuda, self.prepared = text, cuda, prepared
        self._constants: list[tuple[int, int, str, Any]] = []  # launch, offset, format, number
        self._by_base: list[str] = []
        self._by_call: list[str] = []
        for number, one in enumerate(prepared):
            self._pack(number, one, values)

    def write(self, stream: str) -> None:
        """Lines that take a block, write what has changed into it, queue the launches, and give the block back."""
        text = self.text
        free: list[Block] = []
        with text.inside("try"):
            text.line(f"block = {text.bind('free', free)}.pop()")
        with text.inside("except IndexError"):
            text.line(f"block = {text.bind('new_block', self._new)}()")
        if self._by_base:
            with text.inside("if block.base != base"):
                text.line(*self._by_base, "block.base = base")
        if self._by_call:
            with text.inside("try"):
                text.line(*self._by_call)
            with text.inside(f"except {text.bind('UNFIT', UNFIT)}"):
                text.line("return MISSED")
        for number, one in enumerate(self.prepared):
            self.cuda.launch(text, one, number, stream)
        text.line(f"{text.bind('free', free)}.append(block)")

    def _new(self) -> Block:
        block = Block()
        for number, one in enumerate(self.prepared):
            made = Arguments(one.layout, one.starts)
            setattr(block, f"arguments{number}", made)
            setattr(block, f"slots{number}", made.slots)
            setattr(block, f"words{number}", memoryview(made.slots).cast("B").cast("Q"))
            setattr(block, f"address{number}", made.address)
            setattr(block, f"maps{number}", None)
        for number, offset, code, value in self._constants:
            struct.pack_into(f"<{code}", getattr(block, f"arguments{number}").slots, offset, value)
        return block

    def _pack(self, number: int, one: PreparedLaunch, values: Sequence[Value]) -> None:
        """Notes how the slots of one launch are written."""
        fields = list(_fields(one.layout.format))
        maps = [offset for offset, code in fields if code.endswith("s")]
        if one.maps is not None:
            self._pack_maps(number, one, maps, [values[place] for place in one.maps.places])
        slots = [field for field in fields if not field[1].endswith("s")]
        picked = list(zip(slots, one.pick(values), strict=True))
        self._constants += [(number, *field, value.number) for field, value in picked if value.kind == CONSTANT]
        for kind, lines in ((FIXED_BY_BASE, self._by_base), (CHANGES, self._by_call)):
            for run in _runs(picked, kind):
                offset, formats = run[0][0][0], [code for (_, code), _ in run]
                passed = [self._expression(value) for _, value in run]
                if formats == ["Q"]:
                    lines.append(f"block.words{number}[{offset // SLOT}] = {passed[0]}")
                else:
                    pack = self.text.bind("pack", _packer(f"<{''.join(formats)}"))
                    lines.append(f"{pack}(block.slots{number}, {offset}, {', '.join(passed)})")

    def _pack_maps(self, number: int, one: PreparedLaunch, offsets: Sequence[int], values: Sequence[Value]) -> None:
        assert one.maps is not None and len(offsets) == len(values)
        pack = self.text.bind("pack", _packer(_format_of_maps(offsets)))
        at = self.text.bind("maps_at", one.maps.at)
        passed = ", ".join(self._expression(value) for value in values)
        line = f"{pack}(block.slots{number}, {offsets[0]}, *{at}(({passed},)))"
        kinds = {value.kind for value in values}
        if CHANGES in kinds:
            self._by_call += [
                f"at = ({passed},)",
                f"if block.maps{number} != at:",
                f"    {pack}(block.slots{number}, {offsets[0]}, *{at}(at))",
                f"    block.maps{number} = at",
            ]
        else:
            self._by_base.append(line)

    def _expression(self, value: Value) -> str:
        return value.text if value.kind != CONSTANT else self.text.bind("constant", value.number)


@cache
def _packer(layout: str) -> Callable[..., None]:
    return struct.Struct(layout).pack_into


def _format_of_maps(offsets: Sequence[int]) -> str:
    """A layout of tensor maps at these offsets from the first."""
    gaps = [later - earlier - MAP_BYTES for earlier, later in zip(offsets, offsets[1:], strict=False)]
    return "<" + "".join(f"{MAP_BYTES}s" + f"{gap}x" * bool(gap) for gap in (*gaps, 0))


def _fields(layout: str) -> Iterator[tuple[int, str]]:
    """Offset and format of each value of a layout, with the padding that fills its slot."""
    offset, pending = 0, None
    for digits, code in re.findall(r"(\d*)([a-zA-Z?])", layout):
        count = int(digits or 1)
        if code == "x":
            if pending is not None and offset % SLOT:
                pending = pending[0], f"{pending[1]}{count}x"
            offset += count
            continue
        for one in [f"{count}s"] if code == "s" else [code] * count:
            if pending is not None:
                yield pending
            pending = offset, one
            offset += struct.calcsize(f"<{one}")
    if pending is not None:
        yield pending


Picked = tuple[tuple[int, str], Value]


def _runs(picked: Sequence[Picked], kind: str) -> list[list[Picked]]:
    """The values of a kind, as runs that one packing writes, with the constants in between."""
    runs: list[list[Picked]] = []
    between: list[Picked] = []
    for one in picked:
        (offset, _), value = one
        if value.kind == kind:
            if runs and _joins(runs[-1][-1], between, offset):
                runs[-1] += [*between, one]
            else:
                runs.append([one])
            between = []
        else:
            between.append(one)
    return runs


def _joins(last: Picked, between: Sequence[Picked], offset: int) -> bool:
    """Whether a value at `offset` is written with the last one: all slots in between are those of a few constants."""
    end = last[0][0] + SLOT
    return (
        offset - end <= WIDEST_GAP
        and offset - end == SLOT * len(between)
        and all(value.kind == CONSTANT for _, value in between)
    )


# ---- calls of a kernel -----------------------------------------------------------------------------------------------


def write_kernel_call(
    plan: Plan, state: KernelState, signature: Signature, values: Sequence[Any], settings: Config | None
) -> Callable[[tuple[Any, ...], Config | None], Any]:
    """A function that is a call of a plan's signature, for arguments and settings in force; it may return MISSED.

    `values` are the arguments of such a call; `state` gets its `last_run`.
    """
    text, device = Text(), plan.device
    cuda = Cuda(plan.driver, plan.library, device)
    with text.inside("try"):
        found = write_arguments(text, values, signature[1:], settings)
        cuda.check(text)
    with text.inside("except UNREADABLE"):
        text.line("return MISSED")
    for written, low, high, other, other_low, other_high in plan.disjoint:
        write_apart(text, str(found[written]), low, high, str(found[other]), other_low, other_high)
    for written, low, high, tensors, other_low, other_high in plan.apart:
        for one in found[tensors]:
            write_apart(text, str(found[written]), low, high, one, other_low, other_high)
    passed: list[Any] = [[Value(one) for one in item] if isinstance(item, list) else Value(item) for item in found]
    made = []
    if plan.makers:
        with text.inside("try"):
            for number, (shape, dtype) in enumerate(plan.made):
                made.append(f"made{number}")
                passed.append(Value(cuda.make(text, made[-1], shape, dtype)))
        with text.inside("except (RuntimeError, MemoryError)"):
            text.line("return MISSED")
    passed += [Value.constant(number) for number in plan.defaults]
    if plan.order is not None:
        passed = [passed[place] for place in plan.order]
    prepared = plan.prepared
    if prepared.offsets:
        allocate, library = text.bind("allocate", workspace.allocate), text.bind("library", plan.library)
        text.line(f"room, base = {allocate}({library}, {prepared.workspace}, {device})")
        passed += [Value(f"base + {offset}", FIXED_BY_BASE) for offset in prepared.offsets]
    for place in prepared.lists:
        passed += passed[place]
    passed += [Value.constant(number) for number in prepared.constants]
    Launches(text, cuda, prepared.launches, passed).write(cuda.dialect.stream(text, device))
    text.line(f"{text.bind('state', state)}.last_run = {text.bind('record', plan.record)}")
    write_return(text, plan.library, made, device)
    return text.function(state.definition.name, "values, settings", plan.settings)


def write_return(text: Text, library: Adapter, made: Sequence[str], device: int) -> None:
    """The end of a call that made these arrays."""
    if type(library).returned is not Adapter.returned:
        made = [f"{text.bind('library', library)}.returned({one}, {device})" for one in made]
    text.line(f"return {', '.join(made) or None}")


__all__ = [
    "FIXED_BY_BASE", "Cuda", "Launches", "Value", "WrittenCalls", "write_arguments", "write_kernel_call",
    "write_return",
]  # fmt: skip
