"""Text and rules of roles and rings: each rule with a text that breaks only that one."""

from __future__ import annotations

import pytest

from tessera.errors import SourceError
from tessera.ir.compare import difference
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.stages import Numbers
from tessera.ir.types import RingType, dtype_of, shape_of, type_text
from tessera.ir.verify import verify
from tests import role_texts as texts

ACQUIRE = "        ring_acquire %ring, %t, %q\n"
EXPECT = "        ring_expect %ring, %t {bytes = 4096}\n"
WAIT = "        ring_wait %ring, %t, %q\n"
RELEASE = "        ring_release %ring, %t, %ta, %tb\n"
ROLES = '  roles {names = ("load", "compute"), warps = (1, 8), registers = (40, 232)} {\n'
STORE = "      store %w, %sum\n"
READ = "        %ta: tile<[16, 32], f32> = read %at\n"
RING = "  %ring: ring<3> = ring {stages = 3, arrivals = 8}\n"
A = "  %a: buffer<[16, 32], f32> = alloc_shared {shape = (16, 32), dtype = f32, stages = 3}\n"
LOAD = "        %nx: view<[16, 32], f32> = window %x, %start, %start {extents = (16, 32), kept = (true, true)}\n"


@pytest.mark.parametrize("stages", [1, 3])
def test_text_round_trip_at_every_pass(stages: int) -> None:
    for name, module in texts.target(stages).items():
        assert difference(module, parse_module(print_module(module))) is None, name


def test_ring_type() -> None:
    ring = RingType(4)
    assert type_text(ring) == "ring<4>" and ring.bytes == 64
    with pytest.raises(TypeError, match="a ring has no shape"):
        shape_of(ring)
    with pytest.raises(TypeError, match="a ring has no dtype"):
        dtype_of(ring)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (RING, RING.replace("ring<3>", "rang<3>"), "only a ring has a number alone"),
        (RING, RING.replace("ring<3>", "ring<4>"), "is written as ring<4>, but this ring gives ring<3>"),
        (RING, RING.replace("arrivals = 8", "arrivals = 0"), "must be a positive integer"),
        (EXPECT, EXPECT.replace("4096", "1048576"), "a slot takes from 1 to 1048575"),
        (WAIT, WAIT.replace("%ring", "%t"), "takes a ring, but 't_?' is none"),
        (WAIT, WAIT.replace("%t,", "%empty,"), "the slot 'empty' of ring_wait is not an integer"),
        (WAIT, WAIT.replace("%q", "%empty"), "the phase 'empty' of ring_wait is not an integer"),
        (RELEASE, RELEASE.replace("%ta", "%t"), "'t_', which ring_release waits for, is not a tile"),
        (ROLES, ROLES.replace("(40, 232)", "(40, 230)"), "multiples of 8 from 24 to 256"),
        (ROLES, ROLES.replace("(40, 232)", "(40,)"), "a name, warps and registers for each of their regions"),
        (ROLES, ROLES.replace('"compute"', '"load"'), "names that differ"),
        (STORE, STORE.replace("%sum", "%column"), "is not visible here: it is defined in a region"),
    ],
)
def test_texts_that_are_not_valid(old: str, new: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        texts.kernel(3, {old: new})
    assert caught.value.code in ("TS701", "TS703")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ACQUIRE, ACQUIRE + WAIT, "ring_wait in the region of the producer"),
        (EXPECT, EXPECT + "        ring_release %ring, %t\n", "ring_release in the region of the producer"),
        (WAIT, WAIT + ACQUIRE, "ring_acquire in the region of consumers"),
        (WAIT, WAIT + LOAD + "        tma_load %a, %nx, %ring, %t\n", "whose stages it must name one"),
        (ACQUIRE, ACQUIRE + "        barrier\n", "barrier in the region of the producer, of which one thread works"),
        (
            ACQUIRE,
            ACQUIRE + LOAD + "        %nt: tile<[16, 32], f32> = load %nx\n",
            "load in the region of the producer, of which one thread works",
        ),
        (RING, RING.replace("arrivals = 8", "arrivals = 4"), "'ring' counts 4 arrivals of 8 consumer warps"),
        (READ, READ + "        write %at, %ta\n", "write changes 'at_', which a ring fills"),
        (A, A.replace("stages = 3", "stages = 2"), "'at', which has 2 stages, for 'ring', which has 3 slots"),
        (
            "stage %b, %t\n        tma_load",
            "stage %b, %zero\n        tma_load",
            "fills another stage of 'bt' than the slot of 'ring'",
        ),
        (RING, RING + "  barrier\n", "barrier in front of roles: only scalars and windows"),
        (
            RING,
            RING + LOAD + "  %nt: tile<[16, 32], f32> = load %nx\n",
            "load in front of roles: only scalars and windows",
        ),
        (RING, RING + "  ring_wait %ring, %zero, %zero\n", "ring_wait outside roles"),
        (ROLES, ROLES + "    roles {names = (\"m\", \"n\"), warps = (1, 1), registers = (0, 0)} {\n      yield\n"
         "    } else {\n      yield\n    }\n", "a kernel has roles once, in its own block"),
    ],
)  # fmt: skip
def test_rules_of_roles(old: str, new: str, message: str) -> None:
    kernel = texts.kernel(3, {old: new})
    with pytest.raises(SourceError, match=message) as caught:
        verify(kernel)
    assert caught.value.code == "TS703" and caught.value.loc is not None


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("edits", "name"),
    [
        ({WAIT: "", RELEASE: WAIT + RELEASE}, "at_"),  # waits behind the reads
        ({RELEASE: "", READ: "        ring_release %ring, %t\n" + READ}, "at_"),
        ({RELEASE: "", "        %tb: tile": "        ring_release %ring, %t, %ta\n        %tb: tile"}, "bt_"),
    ],
)
def test_slots_are_read_while_they_are_held(stages: int, edits: dict[str, str], name: str) -> None:
    verify(texts.kernel(stages))
    with pytest.raises(SourceError, match="is read and its slot of 'ring' is not held") as caught:
        verify(texts.kernel(stages, edits))
    assert caught.value.code == "TS502" and f"'{name[: 1 if stages == 1 else None]}" in caught.value.message


def test_a_ring_outside_of_roles() -> None:
    text = "tessera 1 tile\nkernel @k() attributes {grid = (1,)} {\n  %z: i64 = constant {value = 0, dtype = i64}\n"
    text += "  %r: ring<2> = ring {stages = 2, arrivals = 4}\n  ring_wait %r, %z, %z\n}\n"
    with pytest.raises(SourceError, match="ring_wait outside roles"):
        verify(parse_module(text))


def test_nothing_happens_behind_roles() -> None:
    text = texts.text()
    text = text[: text.rindex("}")] + "  barrier\n}\n"
    with pytest.raises(SourceError, match="barrier behind roles"):
        verify(parse_module(text))


def test_warps_of_target_kernels() -> None:
    text = print_module(texts.target()["interleave"])
    verify(parse_module(text), barriers=True, placed=True)
    for old, new, message in (
        ("producer_warps = 4, ", "", "needs producer_warps of 1 at least"),
        (", warps = 8,", ", warps = 4,", "the layout of tile 'empty' is of 8 warps, and the kernel has 4"),
        ("offset = 12288}", "offset = 12280}", "lies at byte 12280, which is no multiple of 16"),
        ("offset = 12288}", "offset = 8192}", "share bytes while both are in use"),
    ):
        assert old in text
        with pytest.raises(SourceError, match=message):
            verify(parse_module(text.replace(old, new)), barriers=True, placed=True)
    fewer = text.replace(", warps = (1, 8)", ", warps = (1, 4)").replace("arrivals = 8", "arrivals = 4")
    with pytest.raises(SourceError, match="the kernel has 8 warps and 4 consumers"):
        verify(parse_module(fewer), barriers=True, placed=True)


def test_slots_and_phases_are_followed() -> None:
    """The form of counters: the slots in turn, the phase flips where they come round."""
    kernel = texts.kernel(3)
    roles = kernel.body.ops[-1]
    (inner,) = [op for op in roles.regions[0].ops[0].regions[0].ops if op.regions]
    (body,) = inner.regions
    numbers, seen = Numbers(), []
    for op in kernel.body.ops[:-1]:
        numbers.step(op)
    _, slot, phase = body.arguments
    numbers.rename([slot, phase], inner.operands[3:][:0] + [kernel.body.ops[0].result] * 2)
    for _ in range(7):
        seen.append((numbers.known[slot], numbers.known[phase]))
        for op in body.ops[:-1]:
            numbers.step(op)
        numbers.rename([slot, phase], body.ops[-1].operands)
    assert seen == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 0)]
