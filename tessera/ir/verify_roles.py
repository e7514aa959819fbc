"""Roles and rings: who may use which side of a ring, and what may stand around roles. A part of `tessera.ir.verify`."""

from __future__ import annotations

from collections.abc import Iterator

from tessera.ir.clusters import cluster_of, differing, differing_blocks
from tessera.ir.core import Block, Kernel, Op, Value
from tessera.ir.opdef import COLLECTIVE, PURE, TARGET, TERMINATOR
from tessera.ir.ops.control import constant_value
from tessera.ir.ops.roles import fills_ring, shares_of, uses_ring
from tessera.ir.stages import allocation, stage_count
from tessera.ir.types import BufferType, RingType, ScalarType, TileType, ViewType
from tessera.ir.verify_order import invalid, name_of
from tessera.ir.verify_shares import check_shares

PRODUCER, CONSUMER = 0, 1  # the regions of `roles`: from the second on they are consumers
_SIDES = {"ring_acquire": PRODUCER, "ring_expect": PRODUCER, "ring_wait": CONSUMER, "ring_release": CONSUMER}
_WHO = ("the producer", "consumers")


def check_roles(kernel: Kernel, level: str, barriers: bool) -> None:
    """Raises SourceError TS703. `barriers`: those of a role are in place, so they must be its own."""
    roles = [op for op in kernel.body.walk() if op.name == "roles"]
    if not roles:
        for op in kernel.body.walk():
            if uses_ring(op):
                raise invalid(f"{op.name} outside roles", op.loc)
        return
    if len(roles) > 1 or roles[0] not in kernel.body.ops:
        raise invalid("a kernel has roles once, in its own block", roles[-1].loc)
    place = kernel.body.ops.index(roles[0])
    for op in kernel.body.ops[:place]:
        _check_before(op)
    for op in kernel.body.ops[place + 1 :]:
        if not op.definition.has(PURE):
            raise invalid(f"{op.name} behind roles: nothing that has an effect comes after them", op.loc)
    _check_warps(kernel, roles[0], level)
    for number, region in enumerate(roles[0].regions):
        _check_sides(region, min(number, CONSUMER))
    _check_producer(roles[0].regions[PRODUCER])
    _check_teams(roles[0])
    _check_buffers(roles[0])
    _check_cluster(kernel, roles[0])
    if level == TARGET:
        check_shares(roles[0])
    if barriers:
        _check_barriers(kernel, roles[0])


def _check_before(op: Op) -> None:
    """In front of roles all threads compute scalars and windows: only the warps of a role know their part of a tile."""
    inner = [op, *(other for region in op.regions for other in region.walk())]
    for each in inner:
        if uses_ring(each):
            raise invalid(f"{each.name} outside roles", each.loc)
        tiles = any(isinstance(value.type, TileType) for value in (*each.operands, *each.results))
        changes = any(effect != "reads" for effect, _ in each.definition.effects_of(each))
        if tiles or changes or _touches_buffer(each) or each.definition.has(COLLECTIVE):
            raise invalid(f"{each.name} in front of roles: only scalars and windows are made there", each.loc)


def _touches_buffer(op: Op) -> bool:
    return any(isinstance(value.type, BufferType) for _, value in op.definition.effects_of(op))


def _check_warps(kernel: Kernel, roles: Op, level: str) -> None:
    producers, consumers, *others = roles.attributes["warps"]
    if any(other != consumers for other in others):
        raise invalid(f"teams of consumers have as many warps each, not {(consumers, *others)}", roles.loc)
    for op in kernel.body.walk():
        if op.name == "ring" and op.attributes["arrivals"] != consumers:
            arrivals = op.attributes["arrivals"]
            raise invalid(f"{name_of(op.result)} counts {arrivals} arrivals of {consumers} consumer warps", op.loc)
        if op.name == "ring" and consumers % op.attributes["shares"]:
            shares = op.attributes["shares"]
            raise invalid(f"{name_of(op.result)} comes in {shares} shares for {consumers} consumer warps", op.loc)
        if "share" in op.attributes and not 0 <= op.attributes["share"] < shares_of(op.operand("ring")):
            share, ring = op.attributes["share"], op.operand("ring")
            raise invalid(f"{op.name} of share {share} of {shares_of(ring)} of {name_of(ring)}", op.loc)
    if level != TARGET:
        return
    if kernel.attributes.get("warps") != consumers:
        raise invalid(f"the kernel has {kernel.attributes.get('warps')} warps and {consumers} consumers", roles.loc)
    if kernel.attributes.get("producer_warps", 0) < producers:
        raise invalid(f"the kernel needs producer_warps of {producers} at least", roles.loc)


def _check_sides(region: Block, side: int) -> None:
    for op in region.walk():
        if not uses_ring(op):
            continue
        wanted = PRODUCER if fills_ring(op) else _SIDES.get(op.name)
        if wanted != side:
            raise invalid(f"{op.name} in the region of {_WHO[side]}", op.loc)
        for value in op.operands:
            if isinstance(value.type, RingType) and (value.defining_op is None or value.defining_op.name != "ring"):
                raise invalid(f"{op.name} of {name_of(value)}, which no ring op gives", op.loc)


def _check_producer(region: Block) -> None:
    """One thread runs it, so it moves scalars and starts copies that a ring counts, and nothing else."""
    for op in region.walk():
        effects = op.definition.effects_of(op)
        loads = bool(effects) and all(e == "reads" and isinstance(v.type, ViewType) for e, v in effects)
        allowed = op.definition.has(PURE) or op.definition.has(TERMINATOR) or op.regions or loads or uses_ring(op)
        plain = all(isinstance(value.type, (ScalarType, ViewType, BufferType)) for value in op.results)
        if not allowed or not plain or op.definition.has(COLLECTIVE):
            raise invalid(f"{op.name} in the region of the producer, of which one thread works", op.loc)


def _check_buffers(roles: Op) -> None:
    """A slot is a stage of each buffer that its copies fill; consumers only read it."""
    filled: dict[Value, Value] = {}
    for op in roles.regions[PRODUCER].walk():
        if fills_ring(op):
            buffer, ring = op.operand("buffer"), op.operand("ring")
            _check_slot(op, buffer, ring)
            if filled.setdefault(allocation(buffer), ring) is not ring:
                raise invalid(f"{name_of(buffer)} is filled by two rings", op.loc)
    for op in _of_consumers(roles):
        for effect, value in op.definition.effects_of(op):
            if effect != "reads" and isinstance(value.type, BufferType) and allocation(value) in filled:
                raise invalid(f"{op.name} changes {name_of(value)}, which a ring fills", op.loc)


def _of_consumers(roles: Op) -> Iterator[Op]:
    return (op for region in roles.regions[CONSUMER:] for op in region.walk())


def _check_teams(roles: Op) -> None:
    """Teams meet nobody: what one writes is its own, and what several wait for is filled once and stays."""
    waiting: dict[Value, set[int]] = {}
    writing: dict[Value, set[int]] = {}
    touching: dict[Value, set[int]] = {}
    for team, region in enumerate(roles.regions[CONSUMER:]):
        for op in region.walk():
            if op.name == "ring_wait":
                waiting.setdefault(op.operand("ring"), set()).add(team)
            for effect, value in op.definition.effects_of(op):
                if isinstance(value.type, BufferType):
                    touching.setdefault(allocation(value), set()).add(team)
                    if effect != "reads":
                        writing.setdefault(allocation(value), set()).add(team)
    for ring, teams in waiting.items():
        made = ring.defining_op
        if made is not None and made.attributes["readers"] != len(teams):
            count = made.attributes["readers"]
            raise invalid(f"{name_of(ring)} is for {count} readers, and {len(teams)} teams wait for it", made.loc)
    for op in _of_consumers(roles):
        if op.name == "ring_release" and len(waiting.get(op.operand("ring"), ())) > 1:
            raise invalid(f"{name_of(op.operand('ring'))} is released, and several teams read its slots", op.loc)
    for buffer in writing:
        if len(touching[buffer]) > 1:
            raise invalid(f"{name_of(buffer)} is written by one team of consumers and used by another", roles.loc)


def _check_slot(op: Op, buffer: Value, ring: Value) -> None:
    assert isinstance(ring.type, RingType), "its type rule has checked it"
    if stage_count(buffer) != ring.type.stages:
        raise invalid(
            f"{op.name} of {name_of(buffer)}, which has {stage_count(buffer)} stages, for {name_of(ring)}, which has "
            f"{ring.type.stages} slots",
            op.loc,
        )
    stage, slot = buffer.defining_op, op.operand("stage")
    if stage is None or stage.name != "stage" or _same(stage.operands[1], slot):
        return
    raise invalid(f"{op.name} fills another stage of {name_of(buffer)} than the slot of {name_of(ring)}", op.loc)


def _same(a: Value, b: Value) -> bool:
    number = constant_value(a)
    return a is b or number is not None and number == constant_value(b)


def _check_cluster(kernel: Kernel, roles: Op) -> None:
    """What is alike in all programs of a cluster is loaded for all of them, in turn, into slots that all hand back."""
    cluster = roles.attributes["cluster"]
    joined: set[Value] = set()
    for op in kernel.body.walk():
        for name in ("cluster", "multicast"):
            if op.attributes.get(name, 1) not in (1, cluster) or cluster not in (1, cluster_of(kernel)):
                raise invalid(f"{op.name} of a cluster of {op.attributes.get(name, 1)}, and roles of {cluster}", op.loc)
        if op.name == "ring" and op.attributes["cluster"] > 1:
            joined.add(op.result)
    if cluster == 1:
        return
    values = differing(kernel)
    apart = differing_blocks(kernel, values)
    for block in _blocks(roles.regions[PRODUCER]):
        for op in filter(uses_ring, block.ops):
            if op.operand("ring") in joined and id(block) in apart:
                raise invalid(f"{op.name} where the programs of a cluster need not come in turn", op.loc)
            if op.attributes.get("multicast", 1) == 1:
                continue
            if op.operand("ring") not in joined:
                raise invalid(f"{op.name} for several programs, into a slot that one hands back", op.loc)
            if op.operand("view") in values:
                raise invalid(f"{op.name} for several programs, of a window that differs between them", op.loc)


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for op in block.ops:
        for region in op.regions:
            yield from _blocks(region)


def _check_barriers(kernel: Kernel, roles: Op) -> None:
    threads = 32 * roles.attributes["warps"][CONSUMER]
    team = {op.id: n for n, region in enumerate(roles.regions[CONSUMER:], CONSUMER) for op in region.walk()}
    for op in kernel.body.walk():
        if op.name != "barrier":
            continue
        if op.attributes["threads"] != (threads if op.id in team else 0):
            raise invalid(f"a barrier of {op.attributes['threads']} threads, of consumers that have {threads}", op.loc)
        if op.id in team and op.attributes["id"] != team[op.id]:
            raise invalid(f"barrier {op.attributes['id']} among consumers whose own is {team[op.id]}", op.loc)


__all__ = ["CONSUMER", "PRODUCER", "check_roles"]
