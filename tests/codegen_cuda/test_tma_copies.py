"""Copies by TMA on every lane: emitted boxes bring and take what the interpreter says, and sm_90a has them."""

import re
from pathlib import Path

import numpy as np
import pytest

from tessera.compiler import compile_kernel
from tessera.dtypes import bf16
from tessera.errors import InternalError, SourceError
from tessera.ir.compare import difference
from tessera.ir.layout_shared import shared_layout
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.verify import verify
from tessera.program import Argument, Program
from tessera.runtime.check import examine_kernel
from tessera.runtime.execute import emulate
from tessera.runtime.interpreter import Machine, interpret, launch
from tessera.runtime.nvrtc import compile_cubin
from tessera.runtime.reference import reference

ADD = (Path(__file__).parent / "texts" / "tma_add.tsir").read_text(encoding="utf-8")


def edited(text, **edits):
    for old, new in edits.values():
        assert old in text, old
        text = text.replace(old, new)
    return text


def checked(text):
    module = parse_module(text)
    verify(module, barriers=True, placed=True)
    assert difference(module, parse_module(print_module(module))) is None
    return module


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(bf16.numpy)


def on_emulator(module, arguments, dims, seeds=(0, 3)):
    """The CUDA text of the module, run in place in each order."""
    compilation = compile_kernel(module, dims, "sm_90a")
    for seed in seeds:
        arguments["out"][...] = np.nan
        emulate(compilation.program, arguments, dims, seed)
    return compilation


# ---- a kernel of two roles -----------------------------------------------------------------------------------------

BY_WARPS = {
    "store": ("tma_store %wo, %os {threads", 'tma_store %wo, %os {scope = "warp", threads'),
    "wait": ("tma_store_wait {threads", 'tma_store_wait {scope = "warp", threads'),
}
OF_A_LIST = {
    "type": ("%x: view<[M, 128], bf16>", "%x: list<view<[M, 128], bf16>, 2>"),
    "element": ("%wx: view", "%one_of: view<[M, 128], bf16> = element %x, %p\n      %wx: view"),
    "window": ("window %x,", "window %one_of,"),
}


def tuple_text(values):
    return f"({', '.join(values)}{',' * (len(values) == 1)})"


def sums(rows, of_a_list):
    """Arguments, and what comes out: the tensor of a list alternates with the phase, every two tiles of a program."""
    xs, y = [numbers(rows, 128), -numbers(rows, 128)], numbers(rows, 128)
    x = xs[0]
    if of_a_list:
        chosen = np.arange(rows) // 64 // 2 // 2 % 2  # two programs take tiles in turn
        x = np.where(chosen[:, None] == 0, *xs)
    arguments = {"x": xs if of_a_list else xs[0], "y": y, "out": np.zeros((rows, 128), bf16.numpy)}
    return arguments, (x.astype(np.float32) + y.astype(np.float32)).astype(bf16.numpy)


@pytest.mark.parametrize("edits", [{}, BY_WARPS, OF_A_LIST], ids=["role", "warp", "list"])
def test_a_persistent_sum(edits):
    module = checked(edited(ADD, **edits))
    for rows in (300, 1, 0):
        arguments, expected = sums(rows, edits is OF_A_LIST)
        interpret(module.kernel(), arguments, {"M": rows}, level="target")
        np.testing.assert_array_equal(arguments["out"], expected)
        compilation = on_emulator(module, arguments, {"M": rows})
        np.testing.assert_array_equal(arguments["out"], expected)
    program = compilation.program
    assert Program.from_json(program.to_json()) == program
    kind = "maps" if edits is OF_A_LIST else "map"
    box = (64, 16) if edits is BY_WARPS else (64, 64)
    maps = [a for a in program.launches[0].arguments if a.kind in ("map", "maps")]
    assert maps == [
        Argument(kind, "x", box=(64, 64), swizzle=128),
        Argument("map", "y", box=(64, 64), swizzle=128),
        Argument("map", "out", box=box, swizzle=128),
    ]
    log = compile_cubin(program.cuda, "sm_90a", "add").log
    assert "0 bytes stack frame, 0 bytes spill stores" in log


def test_any_order_of_roles_and_the_reference():
    kernel = checked(ADD).kernel()
    for seed in range(3):
        arguments, expected = sums(300, False)
        launch(lambda *given, seed=seed: Machine(*given, seed=seed), kernel, arguments, {"M": 300}, None, "target")
        np.testing.assert_array_equal(arguments["out"], expected)
    arguments, expected = sums(300, False)
    bar = reference(kernel, arguments, {"M": 300}, level="target")["out"]
    assert np.all(np.abs(bar.r - expected.astype(np.float64)) <= bar.e)


def test_nobody_needs_the_address_of_a_window_that_is_mapped():
    text = compile_kernel(checked(ADD), {"M": 64}, "sm_90a").cuda[0].text
    assert "window" not in text and "TS_MAP x_map, TS_MAP y_map, TS_MAP out_map, ts_i64 dim_M" in text


def test_an_examination_finds_nothing():
    arguments, _ = sums(150, False)
    report = examine_kernel(compile_kernel(checked(ADD), {"M": 150}, "sm_90a"), arguments, {"M": 150})
    assert report.ok and report.compared, [str(seen.finding) for seen in report.findings]


def test_an_index_outside_a_list():
    text = edited(
        ADD,
        **{**OF_A_LIST, "element": ("%wx: view", "%one_of: view<[M, 128], bf16> = element %x, %i\n      %wx: view")},
    )
    compilation = compile_kernel(checked(text), {"M": 300}, "sm_90a")
    with pytest.raises(InternalError, match="takes the tensor at index 2 from a list of 2 tensors"):
        emulate(compilation.program, sums(300, True)[0], {"M": 300})


MUTATIONS = [
    ("      tma_store_wait {threads = 128}\n", "", "TS703", "no barrier lies between the tma_store that reads 'os'"),
    ("      tma_store_wait {threads = 128}\n", "      tma_store_wait {pending = 1, threads = 128}\n", "TS502",
     "a buffer is overwritten while an asynchronous store may still read it"),
    ("{bytes = 32768}", "{bytes = 16384}", "TS514", "bring 32768 bytes, and 16384 are announced"),
    ("      ring_wait %ring, %t, %q\n", "", "TS502", "no ring_wait for it comes before"),
    ("tma_store %wo, %os {threads = 128}", "tma_store %wo, %os {threads = 100}", "TS703", "by 100 threads"),
    ('tma_store %wo, %os {threads', 'tma_store %wo, %os {scope = "all", threads', "TS703", '"role" or "warp"'),
    ("tma_store_wait {threads", "tma_store_wait {pending = 64, threads", "TS703", "leaves 64 stores in flight"),
    ("%wx: view<[64, 128], bf16> = window %x, %row, %zero {extents = (64",
     "%wx: view<[32, 128], bf16> = window %x, %row, %zero {extents = (32", "TS703",
     "the shapes [64, 128] and [32, 128] differ"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "message"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_what_is_refused(old, new, code, message):
    arguments, _ = sums(300, False)
    with pytest.raises(SourceError) as caught:
        interpret(checked(edited(ADD, one=(old, new))).kernel(), arguments, {"M": 300}, level="target")
    assert caught.value.code == code and message in str(caught.value)


# ---- copies of many kinds of windows -------------------------------------------------------------------------------

COPY = """tessera 1 target
layout #S0 = LAYOUT

kernel @copy(
  %x: view<SHAPE, bf16>,
  %out: view<SHAPE, bf16>
) attributes {parameters = (("x", "in"), ("out", "out")), dims = DIMS} {
  %zero: i64 = constant {value = 0, dtype = i64}
OFFSETS
  %buffer: buffer<INNER, bf16, #S0> = shared {shape = (INNER), dtype = bf16, layout = #S0, offset = 0}
  %ring: ring<1> = ring {stages = 1, arrivals = 1, offset = 65536}
  %from: view<INNER, bf16> = window %x, PLACE {extents = EXTENTS, kept = KEPT}
  %to: view<INNER, bf16> = window %out, PLACE {extents = EXTENTS, kept = KEPT}
  roles {names = ("load", "store"), warps = (1, 1), registers = (0, 0)} {
    ring_acquire %ring, %zero, %zero
    ring_expect %ring, %zero {bytes = BYTES}
    tma_load %buffer, %from, %ring, %zero
    yield
  } else {
    ring_wait %ring, %zero, %zero
    tma_store %to, %buffer {scope = "SCOPE", threads = 32}
    tma_store_wait {read = false, scope = "SCOPE", threads = 32}
    ring_release %ring, %zero
    yield
  }
}
"""


def copy(shape, grid, offsets, extents, kept, scope, dims='("M",)'):
    """A program for each place of the grid copies its window; an offset is a program id times a number, or 0."""
    inner = [size for size, keep in zip(extents, kept, strict=True) if keep]
    names, lines = [], []
    for axis, scale in enumerate(offsets):
        names.append("%zero" if not scale else f"%at{axis}")
        if scale:
            lines.append(f"  %at{axis}: i64 = program_id {{axis = {len(lines)}, scale = {scale}}}")
    texts = {
        "LAYOUT": str(shared_layout(int(np.prod(inner[:-1], dtype=int)), inner[-1], 2)),
        "SHAPE": f"[{', '.join(map(str, shape))}]",
        "DIMS": f"{dims}, grid = {grid}, warps = 1, producer_warps = 1, shared_bytes = 66560",
        "OFFSETS": "\n".join(lines),
        "(INNER)": tuple_text(list(map(str, inner))),
        "INNER": f"[{', '.join(map(str, inner))}]",
        "PLACE": ", ".join(names),
        "EXTENTS": tuple_text(list(map(str, extents))),
        "KEPT": tuple_text(["true" if keep else "false" for keep in kept]),
        "BYTES": str(2 * int(np.prod(inner))),
        "SCOPE": scope,
    }
    return edited(COPY, **{name: (name, text) for name, text in texts.items()})


CASES = {
    "one axis": (("M",), "(cdiv(M, 256),)", (256,), (256,), (True,), "role"),
    "eight panels": (("M", 512), "(cdiv(M, 32),)", (32, 0), (32, 512), (True, True), "role"),
    "by warps": (("M", 512), "(cdiv(M, 32),)", (32, 0), (32, 512), (True, True), "warp"),
    "heads": (("M", 40, 3, 64), "(M, 2, 3)", (1, 32, 1, 0), (1, 32, 1, 64), (False, True, False, True), "role"),
    "a block of rows": ((2, "M", 3, 2, 32), "(cdiv(M, 4),)", (0, 4, 0, 0, 0), (2, 4, 3, 2, 32), (True,) * 5, "role"),
}


@pytest.mark.parametrize("name", CASES)
def test_windows_of_every_kind(name):
    shape, grid, *rest = CASES[name]
    module = checked(copy(shape, grid, *rest))
    x = numbers(*(5 if size == "M" and name != "one axis" else 1000 if size == "M" else size for size in shape))
    dims = {"M": x.shape[shape.index("M")]}
    arguments = {"x": x, "out": np.zeros_like(x)}
    interpret(module.kernel(), arguments, dims, level="target")
    np.testing.assert_array_equal(arguments["out"], x)
    text = on_emulator(module, arguments, dims, (5,)).cuda[0].text
    np.testing.assert_array_equal(arguments["out"], x)
    rolled = name in ("eight panels", "by warps")
    assert len(re.findall(r"ts_tma_load\(", text)) == 1 and ("TS_ROLLED for (int box" in text) == rolled


def test_a_tensor_with_strides():
    dims = '("M", "x.stride0"), strides = {x = ($"x.stride0", 1)}, divisors = {"x.stride0" = 8}'
    module = checked(copy(("M", 64), "(cdiv(M, 32),)", (32, 0), (32, 64), (True, True), "role", dims))
    x = numbers(50, 192)[:, 64:128]
    arguments = {"x": x, "out": np.zeros((50, 64), bf16.numpy)}
    on_emulator(module, arguments, {"M": 50}, (0,))
    np.testing.assert_array_equal(arguments["out"], x)
