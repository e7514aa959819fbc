"""Copies by TMA: a box of a tensor map each, and who starts them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tessera.codegen_cuda.statements.common import index_text, known_number
from tessera.codegen_cuda.statements.registry import statement
from tessera.codegen_cuda.statements.roles import full_barrier
from tessera.ir.core import Op, Value
from tessera.ir.ops.roles import shares_of
from tessera.ir.ops.tma import WARP_ROWS
from tessera.ir.types import BufferType
from tessera.target.tensor_maps import Step, Transfer, rows_of_part, transfer_of

if TYPE_CHECKING:
    from tessera.codegen_cuda.emit import Emitter

MOST_IN_LINE = 4  # boxes that are said one by one; more make loops
STORE_BARRIER = 15  # the named barrier of stores by a whole role; the first ones are those of teams of consumers

Place = list[tuple[Step, int | str]]  # how many steps of each kind from the first box


@statement("tma_load")
def _load(emitter: Emitter, op: Op) -> dict[str, Any]:
    """The producer is one thread already."""
    programs, share, ring = op.attributes["multicast"], op.attributes["share"], op.operand("ring")
    barrier = full_barrier(emitter, ring, op.operand("stage"), share)
    buffer = op.operand("buffer").type
    assert isinstance(buffer, BufferType)
    parts = max(programs, shares_of(ring))  # no more than one of them is several
    if parts == 1:
        return {**_boxes(emitter, op, _transfer(emitter, op, None), []), "barrier": barrier}
    transfer = _transfer(emitter, op, rows_of_part(buffer, parts))
    down = next(step for step in transfer.steps if step.axis)
    if programs == 1:
        return {**_boxes_of_share(emitter, op, transfer, down, parts), "barrier": barrier}
    loops = [_part(emitter, down, programs)]
    return {**_boxes(emitter, op, transfer, loops), "barrier": barrier, "mask": (1 << programs) - 1}


def _boxes_of_share(emitter: Emitter, op: Op, transfer: Transfer, down: Step, shares: int) -> dict[str, Any]:
    """The boxes of the rows of one share: they follow one another `down` the buffer."""
    rows = replace(down, count=down.count // shares)
    steps = tuple(rows if step is down else step for step in transfer.steps)
    start: Place = [(down, op.attributes["share"] * rows.count)]
    return _boxes(emitter, op, replace(transfer, steps=steps), [], start)


def _part(emitter: Emitter, step: Step, programs: int) -> dict[str, Any]:
    """The boxes of a program's part of a buffer: every so many-th one, as its number in the cluster says."""
    return {**_loop(emitter, step), "first": "ts_cluster_rank()", "by": programs}


@statement("tma_store")
def _store(emitter: Emitter, op: Op) -> dict[str, Any]:
    if op.attributes["scope"] == "role":
        return {
            **_boxes(emitter, op, _transfer(emitter, op, None), []),
            **_meeting(op),
            "elected": f"{emitter.thread} == 0",
        }
    transfer = _transfer(emitter, op, WARP_ROWS)
    down = next((step for step in transfer.steps if step.axis), None)
    return {**_boxes(emitter, op, transfer, _by_warps(emitter, op, down)), **_meeting(op), "elected": "ts_lane() == 0"}


@statement("tma_store_wait")
def _store_wait(emitter: Emitter, op: Op) -> dict[str, Any]:
    """Threads that have started nothing pass at once, and meet those that have."""
    return {"pending": op.attributes["pending"], "read": op.attributes["read"], **_meeting(op)}


def _meeting(op: Op) -> dict[str, str]:
    if op.attributes["scope"] == "warp":
        return {"meet": "ts_warp_barrier()"}
    threads = op.attributes["threads"]
    return {"meet": f"ts_barrier_of({STORE_BARRIER}, {threads})" if threads else "ts_barrier()"}


def _transfer(emitter: Emitter, op: Op, rows: int | None) -> Transfer:
    buffer = op.operand("buffer").type
    assert isinstance(buffer, BufferType)
    return transfer_of(op.operand("view"), buffer, emitter.kernel, rows)


def _loop(emitter: Emitter, step: Step) -> dict[str, Any]:
    return {"name": emitter.fresh("box"), "first": 0, "count": step.count, "by": 1, "step": step}


def _by_warps(emitter: Emitter, op: Op, down: Step | None) -> list[dict[str, Any]]:
    """The rows of a warp: it has every so many-th box of those that follow one another down a buffer."""
    warps = (op.attributes["threads"] or emitter.threads) // 32
    step = down or Step(1, 1, WARP_ROWS, 0)
    return [{**_loop(emitter, step), "first": emitter.warp, "by": warps}]


def _boxes(
    emitter: Emitter, op: Op, transfer: Transfer, loops: list[dict[str, Any]], start: Place | None = None
) -> dict[str, Any]:
    """`loops` say where the boxes of some steps are; the others follow one another in the text where they are few. The
    first box is so many steps away as `start` says.
    """
    steps = [step for step in transfer.steps if all(step is not loop["step"] for loop in loops)]
    count = 1
    for step in steps:
        count *= step.count
    if count > MOST_IN_LINE:
        loops = loops + [_loop(emitter, step) for step in steps]
        steps = []
    outer: Place = [*(start or []), *((loop["step"], loop["name"]) for loop in loops)]
    places = itertools.product(*(range(step.count) for step in steps))
    buffer = emitter.name(op.operand("buffer"))
    return {
        "map": _map(emitter, transfer),
        "loops": loops,
        "barrier": "",
        "mask": 0,
        "boxes": [_box(emitter, transfer, buffer, [*outer, *zip(steps, place, strict=True)]) for place in places],
    }


def _map(emitter: Emitter, transfer: Transfer) -> str:
    name, length = emitter.map_name(transfer.map, transfer.length), transfer.length
    if length is None or transfer.index is None:
        return name
    number = known_number(transfer.index)
    if number is not None and 0 <= number < length:
        return f"{name}.at[{number}]"
    return f"ts_element({name}, {index_text(emitter, transfer.index)}, {length})"


def _box(emitter: Emitter, transfer: Transfer, buffer: str, place: Place) -> dict[str, str]:
    coordinates = [
        _sum(emitter, operands, [(number, step.elements) for step, number in place if step.axis == axis])
        for axis, operands in enumerate(transfer.origin)
    ]
    target = _sum(emitter, (), [(number, step.bytes) for step, number in place])
    return {
        "memory": buffer if target == "0" else f"{buffer} + {target}",
        "coordinates": ", ".join(coordinates),
    }


def _sum(emitter: Emitter, operands: tuple[Value, ...], products: list[tuple[int | str, int]]) -> str:
    """The sum of scalars and of products as 32-bit text, its constants in one."""
    fixed, terms = 0, []
    for value in operands:
        number = known_number(value)
        fixed += number or 0
        terms += [f"(int){emitter.name(value)}"] if number is None else []
    for number, factor in products:
        fixed += number * factor if isinstance(number, int) else 0
        terms += [f"{number} * {factor}"] if isinstance(number, str) and factor else []
    return " + ".join([*terms, *([str(fixed)] if fixed or not terms else [])])
