"""Which products warpgroups compute, and in which words a note says why not."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tests.passes.lane_kernels import make_gemm
from tests.passes.lane_running import compiled, count

DIMS = {"M": 72, "N": 72, "K": 72}
NOTE = "family = 'wgmma' has no effect on a product: "
ROWS = "its {} rows are not shared out by {} warps, 4 at a time with 64 rows"


def notes(compilation):
    return [note[len(NOTE) :] for note in compilation.program.notes if note.startswith(NOTE)]


@pytest.mark.parametrize("tiles", [(64, 8, 16), (64, 64, 64), (128, 40, 48), (64, 256, 32), (64, 104, 16)])
def test_products_of_warpgroups(tiles):
    compilation = compiled(make_gemm("nt", tiles=tiles), DIMS, panels=0, warps=4)
    assert count(compilation, "wgmma", "mma_sync") == (1, 0) and not notes(compilation)


@pytest.mark.parametrize(
    ("definition", "fields", "reason"),
    [
        (make_gemm(tiles=(32, 64, 64)), {}, ROWS.format(32, 4)),
        (make_gemm(tiles=(64, 64, 64)), {"warps": 8}, ROWS.format(64, 8)),
        (make_gemm(tiles=(64, 64, 64)), {"warps": 2}, ROWS.format(64, 2)),
        (make_gemm(tiles=(64, 20, 64)), {}, "there are no instructions for its 20 columns or its depth of 64"),
        (make_gemm(tiles=(64, 64, 24)), {}, "there are no instructions for its 64 columns or its depth of 24"),
        (make_gemm(dtype=ts.f32, tiles=(64, 64, 32)), {}, "it multiplies operands that they do not take"),
        (make_gemm(tiles=(64, 64, 576)), {"panels": 0}, "it takes more than 32 instructions in a straight line"),
    ],
)
def test_why_not(definition, fields, reason):
    compilation = compiled(definition, DIMS, **{"warps": 4, **fields})
    assert count(compilation, "wgmma") == (0,)
    assert notes(compilation) == [reason]


def test_parts_of_buffers():
    """A descriptor says where a part begins only at whole panels, and counts the columns of the buffer."""

    def parts(start, columns):
        @ts.kernel
        def part(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 192, ts.bf16], out: Tensor["M", columns, ts.bf16]):
            m = tile.program_id(0) * 64
            weights = tile.alloc_shared([64, 192], ts.bf16)
            tile.copy_async(weights, b)
            tile.cp_commit_group()
            tile.cp_wait_group(0)
            tile.store(tile.mma(a[m : m + 64], weights[0:64, start : start + columns]), out[m : m + 64])

        return compiled(part, {"M": 72}, panels=0)

    assert count(parts(64, 64), "wgmma") == (1,) and not notes(parts(64, 64))
    (reason,) = notes(parts(32, 64))
    assert reason == "its operands are parts of buffers that begin at no multiple of 8 rows and 64 columns"
    (reason,) = notes(parts(64, 128))
    assert reason == "192 columns are not a multiple of 128"


def test_no_note_where_nothing_is_asked():
    compilation = compiled(make_gemm(tiles=(32, 64, 64)), DIMS, family="")
    assert count(compilation, "mma_sync") == (1,) and not notes(compilation)
