"""Each rule of the verifier with IR that breaks only that rule, and its neighbour that does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tessera.dtypes import f32
from tessera.errors import SourceError
from tessera.ir.core import Block, Builder, Kernel, Module, Op, Value
from tessera.ir.dims import symbol
from tessera.ir.layout import blocked, shared_layout
from tessera.ir.opdef import table
from tessera.ir.parser import parse_module
from tessera.ir.types import ScalarType, TileType, ViewType
from tessera.ir.verify import ATTRIBUTE_KINDS, verify
from tessera.location import Loc

AT = Loc("doc.md", 7, 3)


def small_kernel() -> tuple[Kernel, Builder]:
    kernel = Kernel("k", Block(), {}, (AT,))
    kernel.body.add_argument(ViewType((8,), f32), "x")
    build = Builder(kernel.body, (AT,))
    tile = build.value("load", kernel.parameters[0], hint="t")
    build.op("store", [kernel.parameters[0], build.value("neg", tile, hint="u")])
    return kernel, build


def fails(kernel: Kernel | Module, message: str, code: str = "TS703", **options: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        verify(kernel, **options)  # type: ignore[arg-type]
    assert caught.value.code == code and message in caught.value.message, caught.value
    return caught.value


def ops(kernel: Kernel) -> list[Op]:
    return kernel.body.ops


def set_name(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[1].name = "nge"


def drop_operand(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[2].operands.pop()


def add_region(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[1].regions.append(Block())


def drop_attribute(kernel: Kernel, build: Builder) -> None:
    del build.op("program_id", axis=0).attributes["scale"]


def add_attribute(kernel: Kernel, build: Builder) -> None:
    build.op("program_id", axis=0).attributes["speed"] = 3


def wrong_attribute(kernel: Kernel, build: Builder) -> None:
    build.op("program_id", axis=0).attributes["scale"] = 0


def swap(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[0], ops(kernel)[1] = ops(kernel)[1], ops(kernel)[0]


def wrong_type(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[1].result.type = TileType((8, 8), f32)


def no_result(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[2].operands[1] = ops(kernel)[0].result
    ops(kernel)[1].results.clear()


def twice(kernel: Kernel, build: Builder) -> None:
    ops(kernel).append(ops(kernel)[1])


def foreign_owner(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[1].result.owner = ops(kernel)[0]


def no_origin(kernel: Kernel, build: Builder) -> None:
    ops(kernel)[1].origin = ()


def stray_yield(kernel: Kernel, build: Builder) -> None:
    build.op("yield")


def nameless(kernel: Kernel, build: Builder) -> None:
    kernel.body.add_argument(ScalarType(f32))


def open_region(kernel: Kernel, build: Builder) -> None:
    condition = build.value("lt", build.value("program_id", axis=0), build.value("program_id", axis=1))
    regions = [Block(), Block()]
    for region in regions:
        build.inner(region).op("yield")
    build.op("if", [condition], regions)
    regions[1].ops.clear()


def escaped(kernel: Kernel, build: Builder) -> None:
    condition = build.value("lt", build.value("program_id", axis=0), build.value("program_id", axis=1))
    regions = [Block(), Block()]
    inside = build.inner(regions[0]).value("program_id", hint="p", axis=0)
    for region in regions:
        build.inner(region).op("yield")
    build.op("if", [condition], regions)
    build.op("neg", [inside])


def bad_grid(kernel: Kernel, build: Builder) -> None:
    kernel.attributes["grid"] = 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (set_name, "there is no op 'nge'"),
        (drop_operand, "op store takes view, value, *mask, not 1 operands"),
        (add_region, "op neg has 0 regions, not 1"),
        (drop_attribute, "op program_id needs the attribute 'scale'"),
        (add_attribute, "op program_id has no attribute 'speed'"),
        (wrong_attribute, "'scale' of op program_id must be a positive"),
        (swap, "op neg uses 't' before it is defined"),
        (no_result, "op neg has 0 results where its rule gives 1"),
        (wrong_type, "result 'u' of neg is tile<[8, 8], f32>, but its rule gives tile<[8], f32>"),
        (twice, "the value 'u' is defined twice"),
        (foreign_owner, "the value 'u' does not know that it is defined here"),
        (no_origin, "op neg has no source location"),
        (stray_yield, "yield can only end a region"),
        (nameless, "the parameters of k need a name each"),
        (open_region, "a region of if does not end in yield"),
        (escaped, "op neg uses 'p' outside the region that defines it"),
        (bad_grid, "'grid' must be a tuple of sizes, not 4"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_structure(damage: Callable[[Kernel, Builder], None], message: str) -> None:
    kernel, build = small_kernel()
    verify(kernel)
    damage(kernel, build)
    fails(kernel, message, level="tile")


def test_level_and_kernel_names() -> None:
    kernel, _ = small_kernel()
    fails(
        Module("target", [kernel]),
        "the tile 't' has no layout" if "target" in table()["load"].levels else "op load is not of the target level",
    )
    fails(Module("tile", [kernel, small_kernel()[0]]), "there are two kernels named 'k'")


def test_errors_have_the_place_of_the_op() -> None:
    kernel, build = small_kernel()
    build.origin = (Loc("other.md", 12, 5),)
    build.op("yield")
    assert fails(kernel, "yield").loc == Loc("other.md", 12, 5)


def test_every_attribute_of_the_op_table_has_a_kind() -> None:
    for definition in table().values():
        assert set(definition.attributes) <= set(ATTRIBUTE_KINDS), definition.name


# Order at Tile level -------------------------------------------------------------------------------------------------

TILE = """tessera 1 tile
kernel @k(%x: view<[8], f32>, %n: i64) {
  %a: buffer<[8], f32> = alloc_shared {shape = (8,), dtype = f32}
  %b: buffer<[8], f32> = alloc_shared {shape = (8,), dtype = f32}
  %l: bool = lt %n, %n
  %v: tile<[8], f32> = load %x
"""
COPY = "%{0}: token = copy_async %a, %x\n"
READ = "%{0}: tile<[8], f32> = read %a\n"


def tile(body: str) -> Module:
    return parse_module(TILE + body + "}\n", "k.tsir")


def loop(body: str, carried: str = "", results: str = "", arguments: str = "") -> str:
    return f"{results}for %n, %n, %n{carried} (%i: i64{arguments}) {{\n{body}\n}}\n"


def when(then: str, otherwise: str = "yield", results: str = "") -> str:
    return f"{results}if %l {{\n{then}\n}} else {{\n{otherwise}\n}}\n"


DOUBLE_BUFFER = COPY.format("t") + loop(
    "wait %c\n" + READ.format("r") + COPY.format("u") + "yield %u", ", %t", "%e: token = ", ", %c: token"
)

GOOD = {
    "waited": COPY.format("t") + "wait %t\n" + READ.format("r"),
    "written": "write %a, %v\n" + READ.format("r"),
    "other buffer": COPY.format("t") + "write %b, %v\nwait %t\n" + READ.format("r"),
    "in the same body": loop(COPY.format("t") + "wait %t\n" + READ.format("r") + "yield"),
    "carried": DOUBLE_BUFFER + "wait %e\n",
    "token of a branch": when(COPY.format("t") + "yield %t", COPY.format("u") + "yield %u", "%e: token = ")
    + "wait %e\n"
    + READ.format("r"),
    "written on one path": when("write %a, %v\nyield") + READ.format("r"),
    "written in a loop": loop("write %a, %v\nyield") + READ.format("r"),
    "waited in a loop only": COPY.format("t") + loop("wait %t\nyield"),
}
BAD = {
    "read before the wait": (COPY.format("t") + READ.format("r") + "wait %t\n", "TS502", "'a' is read while"),
    "write before the wait": (COPY.format("t") + "write %a, %v\nwait %t\n", "TS502", "'a' is written while"),
    "second copy": (COPY.format("t") + COPY.format("u") + "wait %t, %u\n", "TS502", "'a' is written while"),
    "wait in a branch": (COPY.format("t") + when("wait %t\nyield") + READ.format("r"), "TS502", "'a' is read while"),
    "wait in a loop": (COPY.format("t") + loop("wait %t\nyield") + READ.format("r"), "TS502", "'a' is read while"),
    "never waited": (COPY.format("t"), "TS502", "nothing waits for the copy into 'a'"),
    "copied in a branch": (when(COPY.format("t") + "yield"), "TS502", "nothing waits for the copy into 'a'"),
    "last one never waited": (DOUBLE_BUFFER, "TS502", "nothing waits for the copy into 'a'"),
    "next iteration": (
        "write %a, %v\n" + loop(READ.format("r") + COPY.format("t") + "yield"),
        "TS502",
        "'a' is read while",
    ),
    "wrong token": (
        COPY.format("t") + "%s: token = copy_async %b, %x\nwait %s\n" + READ.format("r") + "wait %t\n",
        "TS502",
        "'a' is read while",
    ),
    "unwritten": (READ.format("r"), "TS503", "'a' is read before anything is written to it"),
    "written later": (READ.format("r") + "write %a, %v\n", "TS503", "'a' is read before"),
    "other written": ("write %b, %v\n" + READ.format("r"), "TS503", "'a' is read before"),
    "exchanged tokens": (
        COPY.format("t")
        + "%s: token = copy_async %b, %x\n"
        + loop(
            "wait %c\n" + READ.format("r") + COPY.format("u") + "yield %d, %u",
            ", %t, %s",
            "%e: token, %f: token = ",
            ", %c: token, %d: token",
        )
        + "wait %e, %f\n",
        "TS502",
        "'a' is read while",
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_order(case: str) -> None:
    verify(tile(GOOD[case]))


@pytest.mark.parametrize("case", BAD)
def test_bad_order(case: str) -> None:
    body, code, message = BAD[case]
    assert fails(tile(body), message, code).loc is not None


def test_a_bad_read_is_reported_at_the_read() -> None:
    error = fails(tile(COPY.format("t") + READ.format("r") + "wait %t\n"), "'a'", "TS502")
    assert error.loc == Loc("k.tsir", 8, 22, 8, 26)


# Target level --------------------------------------------------------------------------------------------------------

TARGET = f"""tessera 1 target
layout #L0 = {blocked((64, 64), 4, 8)}
layout #L1 = {blocked((16, 16), 1, 1)}
layout #S0 = {shared_layout(64, 64, 2)}
layout #S1 = {shared_layout(64, 64, 4)}
kernel @k(%x: view<[64, 64], bf16>, %n: i64) attributes {{shared_bytes = 16384}} {{
  %z: i64 = constant {{value = 0, dtype = i64}}
"""
SHARED = "%{0}: buffer<[64, 64], bf16, #S0> = shared {{shape = (64, 64), dtype = bf16, layout = #S0, offset = {1}}}\n"
A, B = SHARED.format("a", 0), SHARED.format("b", 8192)
LOAD = "%{1}: tile<[64, 64], bf16, #L0> = ld_shared %{0}, %z, %z {{shape = (64, 64), layout = #L0, vector = 16}}\n"
STORE = "st_shared %{0}, %v, %z, %z {{vector = 16}}\n"
GLOBAL = "%v: tile<[64, 64], bf16, #L0> = ld_global %x {layout = #L0, vector = 16}\n"
START = "%c{1}: token = cp_async %{0}, %x {{vector = 16}}\n%g{1}: token = async_commit %c{1}\n"


def target(body: str) -> Module:
    return parse_module(TARGET + GLOBAL + body + "}\n")


STAGED = A + START.format("a", 0) + "async_wait %g0\n"
TARGET_GOOD = {
    "copy": STAGED + "barrier\n" + LOAD.format("a", "r"),
    "store": A + STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + "barrier\n" + STORE.format("a"),
    "loop": A + loop(STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + "barrier\nyield"),
    "newest group stays": A
    + B
    + START.format("a", 0)
    + START.format("b", 1)
    + "async_wait %g0 {pending = 1}\nbarrier\n"
    + LOAD.format("a", "r")
    + "async_wait %g1\n",
    "same bytes, one after the other": A
    + STORE.format("a")
    + "barrier\n"
    + LOAD.format("a", "r")
    + "barrier\n"
    + SHARED.format("b", 4096)
    + STORE.format("b")
    + "barrier\n"
    + LOAD.format("b", "s"),
}
TARGET_BAD = {
    "no barrier after the wait": (
        STAGED + LOAD.format("a", "r"),
        "TS703",
        "between the cp_async that writes 'a' and this ld",
    ),
    "barrier before the wait": (
        A + START.format("a", 0) + "barrier\nasync_wait %g0\n" + LOAD.format("a", "r"),
        "TS703",
        "no barrier lies between",
    ),
    "no barrier after a store": (
        A + STORE.format("a") + LOAD.format("a", "r"),
        "TS703",
        "between the st_shared that writes",
    ),
    "no barrier before the next store": (
        A + STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + STORE.format("a"),
        "TS703",
        "between the ld_shared that reads 'a' and this st_shared",
    ),
    "no barrier at the end of a body": (
        A + loop(STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + "yield"),
        "TS703",
        "between the ld_shared that reads 'a' and this st_shared",
    ),
    "no barrier before a copy": (
        STAGED + "barrier\n" + LOAD.format("a", "r") + START.format("a", 1) + "async_wait %g1\n",
        "TS703",
        "between the ld_shared that reads 'a' and this cp_async",
    ),
    "no barrier between owners of the bytes": (
        A + STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + SHARED.format("b", 4096) + STORE.format("b"),
        "TS703",
        "writes 'b' over it",
    ),
    "not committed": (A + "%c: token = cp_async %a, %x {vector = 16}\nasync_wait %c\n", "TS703", "that no group holds"),
    "group may be pending": (
        A + B + START.format("a", 0) + START.format("b", 1) + "async_wait %g0, %g1 {pending = 1}\n",
        "TS502",
        "leaves 1 groups in flight, and 'g1'",
    ),
    "no wait": (
        A + START.format("a", 0) + "barrier\n" + LOAD.format("a", "r") + "async_wait %g0\n",
        "TS502",
        "is read while",
    ),
    "no layout": ("%f: tile<[8], f32> = full %z {shape = (8,), dtype = f32}\n", "TS703", "the tile 'f' has no layout"),
    "small layout": (
        "%f: tile<[64, 64], bf16, #L1> = ld_global %x {layout = #L1, vector = 0}\n",
        "TS703",
        "the layout of tile 'f' does not cover its shape",
    ),
    "other element": (A.replace("#S0", "#S1"), "TS703", "is for elements of 4 bytes, not bf16"),
    "no place": (SHARED.format("a", -1) + STORE.format("a"), "TS703", "'a' has no place in shared memory"),
    "misaligned": (SHARED.format("a", 8) + STORE.format("a"), "TS703", "which is no multiple of 16"),
    "beyond the end": (SHARED.format("a", 8208) + STORE.format("a"), "TS703", "ends at byte 16400 of 16384 bytes"),
    "both alive": (
        A
        + SHARED.format("b", 4096)
        + STORE.format("a")
        + "barrier\n"
        + STORE.format("b")
        + "barrier\n"
        + LOAD.format("a", "r"),
        "TS703",
        "'a' and 'b' share bytes while both are in use",
    ),
    "both alive in a loop": (
        A
        + SHARED.format("b", 4096)
        + loop(
            STORE.format("a") + "barrier\n" + LOAD.format("a", "r") + "barrier\n" + STORE.format("b") + "barrier\nyield"
        ),
        "TS703",
        "share bytes while both are in use",
    ),
    "alive until its wait": (
        A + START.format("a", 0) + SHARED.format("b", 4096) + STORE.format("b") + "async_wait %g0\n",
        "TS703",
        "share bytes while both are in use",
    ),
}


@pytest.mark.parametrize("case", TARGET_GOOD)
def test_good_target(case: str) -> None:
    verify(target(TARGET_GOOD[case]), barriers=True, placed=True)


@pytest.mark.parametrize("case", TARGET_BAD)
def test_bad_target(case: str) -> None:
    body, code, message = TARGET_BAD[case]
    fails(target(body), message, code, barriers=True, placed=True)


def test_barriers_and_places_are_checked_on_request() -> None:
    for case in ("no barrier after a store", "no place", "both alive"):
        verify(target(TARGET_BAD[case][0]))
    kernel = target(TARGET_BAD["no barrier after a store"][0]).kernel()
    fails(kernel, "no barrier lies between", barriers=True)


def test_sizes_are_static_at_target_level() -> None:
    kernel = Kernel("k", Block(), {}, (AT,))
    kernel.body.add_argument(ViewType((symbol("S"),), f32), "x")
    build = Builder(kernel.body, (AT,))
    build.op("ld_global", kernel.parameters, layout=blocked((8,), 1, 1))
    fails(kernel, "has no static shape")


def test_divisors_of_a_kernel_are_positive() -> None:
    kernel, _ = small_kernel()
    kernel.attributes["divisors"] = {"D": 0}
    fails(kernel, "the attribute 'divisors' must be positive integers by dim")


def test_a_value_of_another_kernel_is_not_visible() -> None:
    kernel, build = small_kernel()
    build.op("neg", [Value(TileType((8,), f32), "q")])
    fails(kernel, "op neg uses 'q' before it is defined")
