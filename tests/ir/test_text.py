"""The text of IR: `parse(print(m)) == m` at both levels, and SourceError with a place for any other text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dtypes import bf16, boolean, f32, i64
from tessera.errors import InternalError, SourceError
from tessera.ir.compare import difference
from tessera.ir.core import Block, Builder, Kernel, Module
from tessera.ir.dims import cdiv, symbol
from tessera.ir.layout import blocked, shared_layout
from tessera.ir.opdef import table
from tessera.ir.parser import MAX_NESTING, parse_module
from tessera.ir.printer import print_kernel, print_module
from tessera.ir.types import BufferType, ScalarType, TileType, ViewType
from tessera.ir.verify import verify
from tessera.location import Loc
from tests.pace import within

B, S, D = symbol("B"), symbol("S"), symbol("D")


def tile_module() -> Module:
    """A loop with a condition inside, copies, and names that collide."""
    at = Loc("doc.md", 74, 1, 80, 30)
    call = Loc("other file.py", 3, 5, call_site=Loc("doc.md", 9, 1, 9, 12, call_site=Loc("doc.md", 2, 2, 3)))
    attributes = {"grid": (B, cdiv(S, 128)), "static": {"D": 64}, "divisors": {"S": 16}, "alignment": {"delta": 16}}
    kernel = Kernel("gate", Block(), attributes, (at,))
    delta = kernel.body.add_argument(ViewType((B, S, D), bf16), "delta")
    count = kernel.body.add_argument(ScalarType(i64), "count")
    out = kernel.body.add_argument(ViewType((B, S, D), bf16), "out")
    build = Builder(kernel.body, (at,))
    batch = build.value("program_id", hint="batch", axis=0)
    row = build.value("program_id", axis=1, scale=128)
    zero = build.value("constant", value=0, dtype=i64)
    window = {"extents": (1, 128, D), "kept": (False, True, True)}
    source = build.value("window", delta, batch, row, zero, hint="x", **window)
    buffer = build.value("alloc_shared", hint="smem_delta", shape=(128, D), dtype=bf16, swizzle="none")
    build.origin = (call, at)
    token = build.value("copy_async", buffer, source, bypass_l1=True)
    build.op("wait", [token])
    x = build.value("read", buffer, hint="x")
    scale = build.value("constant", hint="x", value=-0.1, dtype=f32, weak=True)
    body = Block()
    index = body.add_argument(ScalarType(i64), "k")
    carried = body.add_argument(x.type, "acc")
    inner = build.inner(body)
    condition = inner.value("lt", index, count)
    branches = []
    for value in (inner.value("mul", carried, scale), carried):
        branches.append(Block())
        inner.inner(branches[-1]).op("yield", [value])
    chosen = inner.op("if", [condition], branches, hints=("acc",)).result
    inner.op("yield", [chosen])
    result = build.op("for", [zero, count, zero, x], [body], hints=("acc",), unroll=2).result
    build.op("barrier")
    build.op("store", [build.value("window", out, batch, row, zero, **window), result])
    return Module("tile", [kernel])


def target_module() -> Module:
    registers, shared = blocked((64, 64), 4, 8), shared_layout(64, 64, 2)
    at = Loc("doc.md", 1)
    kernel = Kernel("copy", Block(), {"arch": "sm_80", "warps": 4, "shared_bytes": 8192, "grid": ()}, (at,))
    x = kernel.body.add_argument(ViewType((64, 64), bf16), "x")
    build = Builder(kernel.body, (at,))
    buffer = build.value("shared", hint="smem", shape=(64, 64), dtype=bf16, layout=shared, offset=0)
    token = build.value("cp_async", buffer, x, vector=16)
    build.op("async_wait", [build.value("async_commit", token)])
    build.op("barrier")
    zero = build.value("constant", value=0, dtype=i64)
    tile = build.value("ld_shared", buffer, zero, zero, shape=(64, 64), layout=registers, vector=16)
    nan = build.value("constant", value=math.nan, dtype=f32)
    full = build.value("full", nan, shape=(64, 64), dtype=bf16, layout=registers)
    build.op("st_global", [x, build.value("add", tile, full)], vector=16)
    return Module("target", [kernel, Kernel("second", Block(), {}, (at,))])


MODULES = {"tile": tile_module, "target": target_module}
TEXTS = {level: print_module(make()) for level, make in MODULES.items()}


def read(text: str) -> SourceError:
    """The error of a text that must not parse; its place must lie inside the text."""
    with pytest.raises(SourceError) as caught:
        parse_module(text, "x.tsir")
    error = caught.value
    assert error.code in ("TS701", "TS702", "TS703")
    assert error.loc is not None and error.loc.file == "x.tsir" and error.loc.column >= 1
    assert 1 <= error.loc.line <= text.count("\n") + 2
    assert error.message and "\n" not in error.message
    return error


@pytest.mark.parametrize("level", MODULES)
def test_round_trip(level: str) -> None:
    module = MODULES[level]()
    text = print_module(module)
    again = parse_module(text)
    assert difference(module, again) is None
    assert print_module(again) == text
    verify(again, barriers=True, placed=True)


def test_text_reads_as_intended() -> None:
    lines = TEXTS["tile"].splitlines()
    assert lines[0] == "tessera 1 tile"
    assert lines[1] == 'file 0 "doc.md"'
    assert "  %batch: i64 = program_id {axis = 0} @0:74:1-80:30" in lines
    assert any(
        "%x.1: tile<[128, D], bf16> = read %smem_delta @1:3:5 < 0:9:1-9:12 < 0:2:2-3:?, 0:74:1-80:30" in line
        for line in lines
    )
    assert any(
        line.startswith("  %acc: tile<[128, D], bf16> = for %1, %count, %1, %x.1 {unroll = 2} (%k: i64, ")
        for line in lines
    )
    assert "layout #S0 = shared rows=64 cols=64 item=2 w=8 swizzle=1" in TEXTS["target"]
    assert "buffer<[64, 64], bf16, #S0>" in TEXTS["target"]


def test_display_without_locations() -> None:
    text = print_module(tile_module(), locations=False)
    assert "@0:" not in text and "file" not in text
    module = parse_module(text, "x.tsir")
    assert module.kernels[0].body.ops[0].loc == Loc("x.tsir", 8, 17, 8, 27)
    assert print_kernel(tile_module().kernels[0]) in TEXTS["tile"].replace("\n\n", "\n")


def test_difference_names_what_differs() -> None:
    module, other = tile_module(), tile_module()
    assert difference(module, other) is None
    other.kernels[0].body.ops[1].attributes["scale"] = True
    assert "op 1 (program_id): the attributes" in str(difference(module, other))
    other = tile_module()
    other.kernels[0].body.ops[2].origin = ()
    assert "op 2 (constant): the origins" in str(difference(module, other))
    other = tile_module()
    other.kernels[0].body.ops[-1].operands.reverse()
    assert "(store): the operands" in str(difference(module, other))
    other = tile_module()
    other.kernels[0].body.ops[3].result.name = "y"
    assert "the names are 'x' and 'y'" in str(difference(module, other))
    other = tile_module()
    loop = next(op for op in other.kernels[0].body.ops if op.name == "for")
    loop.regions[0].ops[1].operands.reverse()
    assert "region 0, op 1" in str(difference(module, other))
    other.kernels.clear()
    assert difference(module, other) == "the modules have 1 and 0 kernels"
    assert "levels" in str(difference(module, target_module()))


def numbers(values: list[object]) -> Module:
    kernel = Kernel("k", Block(), {}, (Loc("a", 1),))
    build = Builder(kernel.body, kernel.origin)
    for value in values:
        build.op("constant", value=value)
    return Module("tile", [kernel])


ATTRIBUTES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            bf16,
            f32,
            boolean,
            D,
            S + 1,
            cdiv(S, 8) * D - 3,
            symbol("f32"),
            symbol("none"),
            symbol("a b"),
            symbol('"'),
            symbol("k") * -1,
            blocked((8, 8), 1, 1),
            shared_layout(8, 8, 2),
        ]
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), ATTRIBUTES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_every_attribute_value_round_trips(attributes: dict) -> None:
    named = {f"x{key}": value for key, value in attributes.items()}
    module = Module("tile", [Kernel("k", Block(), named, (Loc("a", 1),))])
    text = print_module(module)
    assert difference(module, parse_module(text)) is None
    assert print_module(parse_module(text)) == text


@given(st.lists(st.floats(), max_size=5))
@settings(max_examples=50, deadline=None)
def test_floats_are_exact(values: list[float]) -> None:
    module = numbers([*values, 0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324])
    assert difference(module, parse_module(print_module(module))) is None


@given(st.lists(st.text(max_size=6), min_size=1, max_size=6), st.text(min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_name_round_trips(names: list[str], kernel_name: str) -> None:
    kernel = Kernel(kernel_name, Block(), {}, (Loc(kernel_name, 1),))
    values = [kernel.body.add_argument(ScalarType(f32), name) for name in names]
    build = Builder(kernel.body, kernel.origin)
    for value in values:
        build.op("add", [value, values[0]], hints=(value.name,))
    module = Module("tile", [kernel])
    text = print_module(module)
    assert difference(module, parse_module(text)) is None
    assert print_module(parse_module(text)) == text


def test_a_value_without_text_is_named() -> None:
    with pytest.raises(InternalError, match="of type list has no text"):
        print_module(Module("tile", [Kernel("k", Block(), {"grid": [1, 2]}, (Loc("a", 1),))]))


HEAD = 'tessera 1 tile\nfile 0 "a"\nkernel @k(%x: view<[8], f32>, %n: i64) {\n'


@pytest.mark.parametrize(
    ("body", "code", "message", "column"),
    [
        ("  %y: tile<[8], f32> = lode %x\n}", "TS702", "there is no op 'lode'; did you mean 'load'?", 24),
        ("  barrier\n", "TS701", "the text ends where", 10),
        ("  %y: tile<[8], f32> = load %z\n}", "TS703", "%z is not defined above", 29),
        ("  %y: tile<[8], bf16> = load %x\n}", "TS703", "written as tile<[8], bf16>, but this load gives tile", 7),
        ("  %y: tile<[8], f17> = load %x\n}", "TS702", "there is no dtype 'f17'; did you mean", 17),
        ("  %x: tile<[8], f32> = load %x\n}", "TS703", "%x is defined twice", 3),
        ("  %y: tile<[8], f32> = load %x, %x\n}", "TS703", "op load takes view, not 2 operands", 24),
        ("  %y: tile<[8], f32> = load %n\n}", "TS703", "must be a tensor in global memory", 24),
        ("  load %x\n}", "TS703", "this load gives 1 results, not 0", 3),
        ("  barrier {width = 3}\n}", "TS702", "op barrier has no attribute 'width'", 3),
        ("  %p: i64 = program_id\n}", "TS703", "op program_id needs the attribute 'axis'", 13),
        ('  %p: i64 = program_id {axis = "0"}\n}', "TS703", "'axis' of op program_id must be an integer, not 0", 13),
        ("  %p: i64 = program_id {axis = 0, axis = 1}\n}", "TS703", "'axis' is given twice", 35),
        ("  %p: i64 = program_id {axis = 1 + f32}\n}", "TS703", "a size is made of integers and symbols", 36),
        ("  %p: i64 = program_id {axis = floor(n, 2)}\n}", "TS703", "'floor' is not a function of sizes", 32),
        ("  %p: i64 = program_id {axis = floordiv(n, 0)}\n}", "TS703", "floordiv by zero", 32),
        ("  %p: i64 = program_id {axis = 123456789012345678901}\n}", "TS701", "has more than 20 digits", 32),
        ('  %b: buffer<[8], f32> = alloc_shared {shape = (8,), dtype = f32, swizzle = "\\x"}\n}', "TS701", "JSON", 77),
        ("  %s: buffer<[8], f32> = shared {shape = (8,), dtype = f32}\n}", "TS702", "op shared is not of the tile", 26),
        ("  yield\n}", "TS703", "yield can only end a region", 3),
        ("  for %n, %n, %n (%i: i64) {\n  }\n}", "TS703", "a region of for does not end in yield", 3),
        ("  for %n, %n, %n (%i: i64) {\n    yield %n\n  }\n}", "TS703", "yields as many values", 3),
        ("  for %n, %n, %n {\n    yield\n  }\n}", "TS703", "a loop body takes the index", 3),
        ("  for %n, %n, %n\n}", "TS703", "op for has 1 regions, not 0", 3),
        ("  barrier @7:1:1\n}", "TS703", "file 7 of the location is not declared above", 11),
        ("  %y: tile<[8], f32, #L0> = load %x\n}", "TS703", "layout #L0 is not declared above", 22),
        ("  %y: view<[8], f32, #L0> = load %x\n}", "TS703", "a view has no layout", 22),
        ("  %y: heap<[8], f32> = load %x\n}", "TS701", "'heap' is not a kind of type", 7),
        ("  barrier ;\n}", "TS701", "the character ';' cannot stand here", 11),
        ("  barrier\n}\nkernel @k() {\n}", "TS703", "there are two kernels named 'k'", 8),
        ("  barrier\n}\nkernel @j() attributes {grid = 3} {\n}", "TS703", "'grid' must be a tuple of sizes, not 3", 8),
        ("  barrier\n}\nlayout #L0 = regs[[0]] lanes[] warps[] rep[1]", "TS703", "layout #L0 cannot be read", 14),
    ],
)
def test_errors_say_what_and_where(body: str, code: str, message: str, column: int) -> None:
    error = read(HEAD + body)
    assert (error.code, error.loc.column) == (code, column) and message in error.message, error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "IR text begins with a line such as 'tessera 1 tile'"),
        ("kernel @f() {\n}", "IR text begins with"),
        ("tessera 2 tile\n", "the text has version 2, but this Tessera reads version 1"),
        ("tessera " + "9" * 5000 + " tile\n", "the text has version 9999"),
        ("// a comment\n\n tessera 1 thread\n", "the level 'thread' is neither graph, tile nor target"),
    ],
)
def test_version_and_level(text: str, message: str) -> None:
    error = read(text)
    assert error.code == "TS702" and message in error.message


def test_values_of_a_region_end_with_it() -> None:
    body = "  for %n, %n, %n (%i: i64) {\n    %y: i64 = add %i, %n\n    yield\n  }\n  %z: i64 = add %y, %n\n}"
    assert "%y is not visible here: it is defined in a region" in read(HEAD + body).message


@pytest.mark.parametrize(
    "value",
    [
        "(" * 100_000,
        "(" * 30 + ")" * 30,
        "{a = " * 100_000,
        "min(a, " * 50_000,
        "[" * (MAX_NESTING + 1),
        "*".join(f"floordiv(2*a{i} + 2*b{i}, 2)" for i in range(60)),
        "a" + "*a" * 100_000,
        " + ".join(f"a{i}" for i in range(9999)),
        "-" * 100_000,
        "1e999999999",
        "9" * 100_000,
        '"' + "\\" * 9999,
        "cdiv(a, 0)",
        "mod(a, 0 - 1)",
        "%" * 9999,
        "@" + "1:" * 9999,
    ],
    ids=lambda value: value[:12],
)
def test_hostile_text_ends_soon(value: str) -> None:
    with within(5):
        try:
            parse_module(HEAD + f"  %p: i64 = program_id {{axis = {value}}}\n}}")
        except SourceError as error:
            assert error.code in ("TS701", "TS703") and len(error.message) < 600


def test_deep_regions() -> None:
    opening = "".join(f"for %n, %n, %n (%i{k}: i64) {{\n" for k in range(MAX_NESTING - 3))
    closing = "yield\n}\n" * (MAX_NESTING - 3)
    module = parse_module(HEAD + opening + closing + "}")
    assert difference(module, parse_module(print_module(module))) is None
    with pytest.raises(SourceError, match="loops nest more than 10 deep"):
        verify(module)
    assert "nest" in read(HEAD + opening * 2 + closing * 2 + "}").message


SPANS = st.tuples(st.sampled_from(sorted(TEXTS)), st.floats(0, 1), st.integers(0, 12))
PIECES = st.sampled_from(
    [
        "",
        "\n",
        "{",
        "}",
        "(",
        ")",
        "%x",
        "%",
        "@0:1:1",
        "yield",
        " = ",
        ", ",
        "f32",
        "none",
        "0",
        "-",
        "99",
        "inf",
        '"',
        "S",
        "#L0",
        "tile<[8], f32>",
        "token",
        "layout",
        "\x00",
        "é",
        "//",
    ]
)


def survives(text: str) -> None:
    """A text either gives a module that prints and reads back, or one SourceError about the text."""
    try:
        module = parse_module(text)
    except SourceError as error:
        assert error.code in ("TS701", "TS702", "TS703") and error.loc is not None
        return
    assert difference(module, parse_module(print_module(module))) is None


@given(st.lists(st.tuples(SPANS, PIECES | st.text(max_size=3)), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_edited_text(edits: list) -> None:
    text = TEXTS[edits[0][0][0]]
    for (_, where, length), piece in edits:
        start = int(where * len(text))
        text = text[:start] + piece + text[start + length :]
    survives(text)


@given(SPANS, SPANS, st.booleans())
@settings(max_examples=150, deadline=None)
def test_truncated_and_shuffled_text(first: tuple, second: tuple, cut: bool) -> None:
    text, other = TEXTS[first[0]], TEXTS[second[0]]
    head = text[: int(first[1] * len(text))]
    survives(head if cut else head + other[int(second[1] * len(other)) :])


@given(st.text(max_size=60), st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_garbage(text: str, data: bytes) -> None:
    read(text + "\x00")
    survives("tessera 1 tile\n" + text)
    survives(HEAD + data.decode("latin-1"))


def test_every_op_of_the_table_has_a_syntax() -> None:
    """No op name is taken by the grammar where an op may stand."""
    for name in table():
        error = read(f"tessera 1 {sorted(table()[name].levels)[0]}\nkernel @k() {{\n  {name} %missing\n}}")
        assert error.message in ("%missing is not defined above", "yield can only end a region")


def test_reading_is_fast() -> None:
    op = "  %y{0}: tile<[8], f32> = add %y, %y @0:{0}:1-{0}:9 < 0:1:1-2:2, 0:3:3\n"
    text = HEAD + "  %y: tile<[8], f32> = load %x\n" + "".join(op.format(i + 10) for i in range(400)) + "}"
    parse_module(HEAD + "}")
    with within(0.5):  # 0.04 s
        assert len(parse_module(text).kernels[0].body.ops) == 401


def test_types_in_text() -> None:
    module = target_module()
    tiles = [v.type for op in module.kernels[0].body.ops for v in op.results if isinstance(v.type, TileType)]
    assert all(t.layout == blocked((64, 64), 4, 8) for t in tiles)
    assert isinstance(module.kernels[0].body.ops[0].result.type, BufferType)
