"""A text of Tile IR with roles, and edits of it.

Each program takes tiles of 16 rows in turn. For each the producer copies 16 x 32 blocks of `x` and of `y`, from left to
right, into the slots of a ring, and the consumers add up their products. `K` blocks make a tile; the counters of slot
and phase go on from tile to tile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np

from tessera.codegen_cuda.emit import emit
from tessera.compiler import make_program, run_pass
from tessera.ir.core import Kernel, Module
from tessera.ir.parser import parse_module
from tessera.passes import PIPELINE, Context
from tessera.program import Program
from tessera.runtime.interpreter import Machine, launch
from tessera.target.arch import arch

ROWS, COLUMNS, BLOCKS = 16, 32, 5

# The consumers move the sum through a buffer of their own, and so need barriers.
THROUGH_SHARED = (
    (
        "      store %w, %sum\n",
        """      %line: buffer<[16, 32], f32> = alloc_shared {shape = (16, 32), dtype = f32}
      write %line, %sum
      %back: tile<[8, 32], f32> = read %line, %start, %start {extents = (8, 32)}
      %eight: i64 = constant {value = 8, dtype = i64}
      %rest: tile<[8, 32], f32> = read %line, %eight, %start {extents = (8, 32)}
      %w0: view<[8, 32], f32> = window %out, %row, %start {extents = (8, 32), kept = (true, true)}
      store %w0, %back
      %below: i64 = add %row, %eight
      %w1: view<[8, 32], f32> = window %out, %below, %start {extents = (8, 32), kept = (true, true)}
      store %w1, %rest
""",
    ),
)

TEXT = """tessera 1 tile
kernel @added(
  %x: view<[M, 160], f32>,
  %y: view<[M, 160], f32>,
  %out: view<[M, 32], f32>
) attributes {ATTRIBUTES} {
  %zero: i32 = constant {value = 0, dtype = i32}
  %one: i32 = constant {value = 1, dtype = i32}
  %last: i32 = constant {value = LAST, dtype = i32}
  %start: i64 = constant {value = 0, dtype = i64}
  %step: i64 = constant {value = 1, dtype = i64}
  %rows: i64 = constant {value = 16, dtype = i64}
  %columns: i64 = constant {value = 32, dtype = i64}
  %blocks: i64 = constant {value = 5, dtype = i64}
  %tiles: i64 = size {size = cdiv(M, 16)}
  %first: i64 = program_id {axis = 0}
  %programs: i64 = num_programs {axis = 0}
  %a: buffer<[16, 32], f32> = alloc_shared {shape = (16, 32), dtype = f32, stages = STAGES}
  %b: buffer<[16, 32], f32> = alloc_shared {shape = (16, 32), dtype = f32, stages = STAGES}
  %ring: ring<STAGES> = ring {stages = STAGES, arrivals = 8}
  roles {names = ("load", "compute"), warps = (1, 8), registers = (40, 232)} {
    %s0: i32, %p0: i32 = for %first, %tiles, %programs, %zero, %zero (%tile: i64, %s: i32, %p: i32) {
      %row: i64 = mul %tile, %rows
      %s1: i32, %p1: i32 = for %start, %blocks, %step, %s, %p (%k: i64, %t: i32, %q: i32) {
        %column: i64 = mul %k, %columns
        ring_acquire %ring, %t, %q
        ring_expect %ring, %t {bytes = 4096}
        %wx: view<[16, 32], f32> = window %x, %row, %column {extents = (16, 32), kept = (true, true)}
        %wy: view<[16, 32], f32> = window %y, %row, %column {extents = (16, 32), kept = (true, true)}
        %at: buffer<[16, 32], f32> = stage %a, %t
        tma_load %at, %wx, %ring, %t
        %bt: buffer<[16, 32], f32> = stage %b, %t
        tma_load %bt, %wy, %ring, %t
        NEXT %t %q
        yield %next, %flip
      }
      yield %s1, %p1
    }
    yield
  } else {
    %s0: i32, %p0: i32 = for %first, %tiles, %programs, %zero, %zero (%tile: i64, %s: i32, %p: i32) {
      %row: i64 = mul %tile, %rows
      %none: f32 = constant {value = 0.0}
      %empty: tile<[16, 32], f32> = full %none {shape = (16, 32), dtype = f32}
      %sum: tile<[16, 32], f32>,
      %s1: i32, %p1: i32 = for %start, %blocks, %step, %empty, %s, %p (%k: i64,
          %acc: tile<[16, 32], f32>, %t: i32, %q: i32) {
        ring_wait %ring, %t, %q
        %at: buffer<[16, 32], f32> = stage %a, %t
        %ta: tile<[16, 32], f32> = read %at
        %bt: buffer<[16, 32], f32> = stage %b, %t
        %tb: tile<[16, 32], f32> = read %bt
        ring_release %ring, %t, %ta, %tb
        %product: tile<[16, 32], f32> = mul %ta, %tb
        %more: tile<[16, 32], f32> = add %acc, %product
        NEXT %t %q
        yield %more, %next, %flip
      }
      %w: view<[16, 32], f32> = window %out, %row, %start {extents = (16, 32), kept = (true, true)}
      store %w, %sum
      yield %s1, %p1
    }
    yield
  }
}
"""

# The slot after this one, and its phase, which flips where the slots come round.
NEXT = """%end: bool = eq %t, %last
        %after: i32 = add %t, %one
        %next: i32 = where %end, %zero, %after
        %other: i32 = sub %one, %q
        %flip: i32 = where %end, %other, %q"""


ATTRIBUTES = (
    'grid = (3,), producer_warps = 4, schedule = {warps = 8}, dims = ("M",), '
    'parameters = (("x", "in"), ("y", "in"), ("out", "out"))'
)


def text(stages: int = 3, edits: Mapping[str, str] | None = None) -> str:
    """The text for a ring of so many slots. Each key of `edits` occurs once in it, and is replaced.

    The two roles call their values alike above; here those of the consumers end in "_".
    """
    source = TEXT.replace("NEXT %t %q", NEXT).replace("STAGES", str(stages)).replace("LAST", str(stages - 1))
    source = source.replace("ATTRIBUTES", ATTRIBUTES)
    for old, new in (edits or {}).items():
        assert source.count(old) == 1, (old, source.count(old))
        source = source.replace(old, new)
    if stages == 1:
        source = source.replace(", stages = 1}\n  %ring", "}\n  %ring").replace(", stages = 1}\n  %b", "}\n  %b")
        for name in "ab":
            source = source.replace(f"        %{name}t: buffer<[16, 32], f32> = stage %{name}, %t\n", "")
            source = source.replace(f"%{name}t,", f"%{name},").replace(f"read %{name}t", f"read %{name}")
    head, _, consumers = source.partition("\n  } else {\n")
    again = set(re.findall(r"%(\w+):", head)) & set(re.findall(r"%(\w+):", consumers))
    return f"{head}\n  }} else {{\n" + re.sub(r"%(\w+)", lambda m: m[0] + "_" * (m[1] in again), consumers)


def kernel(stages: int = 3, edits: Mapping[str, str] | None = None) -> Kernel:
    return parse_module(text(stages, edits)).kernel()


@cache
def target(stages: int = 3, edits: tuple[tuple[str, str], ...] = ()) -> dict[str, Module]:
    """What each pass from the lowering on makes of the kernel, by name, in their order."""
    module, found = Module("tile", [kernel(stages, dict(edits))]), {}
    context = Context(arch("sm_90a"))
    names = [step.name for step in PIPELINE]
    for step in PIPELINE[names.index("canonicalise_slices") :]:
        found[step.name] = module = run_pass(step, module, context)
    return found


def compiled(stages: int = 3, edits: tuple[tuple[str, str], ...] = ()) -> Program:
    kernel = target(stages, edits)["interleave"].kernel()
    return make_program("added", [kernel], emit([kernel]), "sm_90a")


def arguments(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    x, y = (rng.standard_normal((rows, COLUMNS * BLOCKS), np.float32) for _ in range(2))
    return {"x": x, "y": y, "out": np.full((rows, COLUMNS), np.nan, np.float32)}


def expected(given: Mapping[str, np.ndarray]) -> np.ndarray:
    total = np.zeros_like(given["out"])
    for start in range(0, COLUMNS * BLOCKS, COLUMNS):
        total += given["x"][:, start : start + COLUMNS] * given["y"][:, start : start + COLUMNS]
    return total


def run(kernel: Kernel, rows: int, seed: int | None = None, level: str = "tile") -> tuple[np.ndarray, np.ndarray]:
    """What the kernel writes on the interpreter, with roles in an order drawn by `seed`, and what it should."""
    given = arguments(rows)
    launch(lambda *parts: Machine(*parts, seed=seed), kernel, given, {"M": rows}, None, level)
    return given["out"], expected(given)
