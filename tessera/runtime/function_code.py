"""Warm calls of functions as Python that is written for one signature (`warm_code`): all launches of a plan one after
the other, or one graph, if the addresses and numbers are those that it was captured with.

What only a call can know is looked up by each: the mode, the stream and whether it is captured, the store's parameters,
a fresh seed, where the workspace is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tessera import modes
from tessera.config import Config
from tessera.runtime import workspace
from tessera.runtime.parameters import current_store
from tessera.runtime.warm_code import FIXED_BY_BASE, Cuda, Launches, Value, write_arguments, write_return
from tessera.runtime.warm_text import Text

if TYPE_CHECKING:
    from tessera.runtime.function_launch import DeviceCall, Warm
    from tessera.runtime.function_state import FunctionState


def write_function_call(
    warm: Warm, state: FunctionState, signature: Sequence[Any], values: Sequence[Any], settings: Config | None
) -> Callable[[tuple[Any, ...], Config | None], Any]:
    """A function that is a call of a signature, for arguments and settings in force; it may return MISSED.

    `values` are the arguments of such a call, none of them a view that has to be copied; `state` gets its `last_run`.
    """
    call, text = warm.call, Text()
    cuda = Cuda(call.driver, call.library, call.device)
    with text.inside("try"):
        found = write_arguments(text, values, signature[1:], settings)
        text.leave_if(f"{text.bind('current_frame', modes.current_frame)}().training is not {modes.is_training()}")
        cuda.check(text)
        text.line(f"stream = {cuda.dialect.stream(text, call.device)}")
        if call.asks:  # in a capture of the caller's the general way keeps what the graph uses
            text.leave_if(cuda.capturing(text, "stream"))
    with text.inside("except UNREADABLE"):
        text.line("return MISSED")
    given = [Value(one) for item in found for one in (item if isinstance(item, list) else [item])]
    given += [Value.constant(number) for number in warm.defaults]
    passed = given if warm.order is None else [given[place] for place in warm.order]
    for place, guard in call.guards:
        if passed[place].text:
            text.line(f"{text.bind('guard', guard)}.check({passed[place].text})")
    passed += _write_hidden(text, call)
    made = _write_results(text, cuda, call, passed)
    if call.workspace:
        _write_workspace(text, call)
    if call.graphs:
        _write_replay(text, cuda, call, state, passed, made)
    passed += [Value(f"base + {offset}", FIXED_BY_BASE) for offset in call.offsets]
    for numbers in call.numbers:
        passed += _write_numbers(text, numbers, passed)
    passed += [Value.constant(number) for number in call.tail]
    Launches(text, cuda, call.launches, passed).write("stream")
    text.line(f"{text.bind('state', state)}.last_run = {text.bind('queued', call.queued)}")
    write_return(text, call.library, made, call.device)
    return text.function(state.definition.name, "values, settings", call.settings)


def _write_hidden(text: Text, call: DeviceCall) -> list[Value]:
    """Lines that find the parameters of the store, and the seed."""
    from tessera.runtime.function_launch import address_of

    hidden = [f"h{number}" for number in range(len(call.specs))]
    if hidden:
        text.line(f"store = {text.bind('current_store', current_store)}()")
    for name, spec in zip(hidden, call.specs, strict=True):
        given = f"store, {text.bind('spec', spec)}, {text.bind('driver', call.driver)}, stream, {call.device}"
        text.line(f"{name} = {text.bind('address_of_parameter', address_of)}({given})")
    values = [Value(name) for name in hidden]
    if call.seeded and call.seed is None:
        text.line(f"seed = {text.bind('next_seed', modes.next_seed)}()")
        values.append(Value("seed"))
    elif call.seeded:
        values.append(Value.constant(call.seed))
    return values


def _write_results(text: Text, cuda: Cuda, call: DeviceCall, passed: list[Value]) -> list[str]:
    """Lines that make the results, whose addresses `passed` gets."""
    made = [f"made{number}" for number in range(len(call.made))]
    if made:
        with text.inside("try"):
            for name, (shape, dtype) in zip(made, call.made, strict=True):
                passed.append(Value(cuda.make(text, name, shape, dtype)))
        with text.inside("except (RuntimeError, MemoryError)"):  # what allocators raise, each its own
            text.line("return MISSED")
    return made


def _write_workspace(text: Text, call: DeviceCall) -> None:
    """Lines that set `base` to where the workspace begins."""
    if call.workspace > workspace.KEPT_BYTES:
        allocate, library = text.bind("allocate", workspace.allocate), text.bind("library", call.library)
        text.line(f"room, base = {allocate}({library}, {call.workspace}, {call.device})")
        return
    driver = text.bind("driver", call.driver)
    text.line(f"room = {text.bind('kept_block', workspace.KEPT.known)}(({driver}, {call.device}, stream))")
    with text.inside(f"if room is None or room[2] < {call.workspace}"):
        make = text.bind("new_block_of", workspace.KEPT.block)
        text.line(f"room = {make}({driver}, {call.workspace}, {call.device}, stream)")
    text.line("base = room[1]")


def _write_replay(
    text: Text, cuda: Cuda, call: DeviceCall, state: FunctionState, passed: Sequence[Value], made: Sequence[str]
) -> None:
    """Lines that replay the graph of an equal call, if there is one, and return."""
    texts = [one.text or text.bind("constant", one.number) for one in passed]
    base, owner = "base" if call.workspace else "0", text.bind("call", call)
    key = [str(call.serial), "stream", base, *texts]
    # 0.0 and -0.0 are equal, but no equal arguments.
    key += [f"{text.bind('copysign', math.copysign)}(1.0, {texts[place]})" for place in call.floats]
    text.line(f"key = ({', '.join(key)})", f"last = {owner}.last")
    with text.inside("if last is not None and last[0] == key"):
        text.line("graph = last[1]")
    with text.inside("else"):
        text.line(f"graph = {owner}.graph_of([{', '.join(texts)}], {base}, stream)")
    with text.inside("if graph is not None"):
        cuda.replay(text, "graph", "stream")
        text.line(f"{text.bind('state', state)}.last_run = {text.bind('replayed', call.replayed)}")
        write_return(text, call.library, made, call.device)


def _write_numbers(text: Text, numbers: Any, passed: Sequence[Value]) -> list[Value]:
    """Lines that compute the numbers of a launch that depend on those of the call."""
    given = [passed[place] for place in numbers.given.values()]
    if all(not one.text for one in given):
        return [Value.constant(number) for number in numbers.at(tuple([one.number for one in given]))]
    texts = [one.text or text.bind("constant", one.number) for one in given]
    names = [f"n{text.serial()}" for _ in numbers.keys]
    text.line(f"{', '.join(names)}, = {text.bind('numbers', numbers)}.at(({', '.join(texts)},))")
    return [Value(name) for name in names]


__all__ = ["write_function_call"]
