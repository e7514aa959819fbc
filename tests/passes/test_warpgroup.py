"""Which products warpgroups compute, and in which words a note says why not."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tests.passes.lane_kernels import make_gemm
from tests.passes.lane_running import ops, reached

DIMS = {"M": 72, "N": 72, "K": 72}
NOTE = "family = 'wgmma' has no effect on a product: "
ROWS = "its {} rows are not shared out by {} warps, 4 at a time with 64 rows"


def lowered(definition, dims, **fields):
    """How many products warpgroups compute, how many mma.sync does, and why."""
    (kernel,) = reached(definition, dims, "lower_to_target", **fields)
    reasons = [note[len(NOTE) :] for note in kernel.attributes["notes"] if note.startswith(NOTE)]
    return len(ops(kernel, "wgmma")), len(ops(kernel, "mma_sync")), reasons


@pytest.mark.parametrize("tiles", [(64, 8, 16), (64, 64, 64), (128, 40, 48), (64, 256, 32), (64, 104, 16)])
def test_products_of_warpgroups(tiles):
    assert lowered(make_gemm("nt", tiles=tiles), DIMS, panels=0, warps=4) == (1, 0, [])


@pytest.mark.parametrize(
    ("definition", "fields", "reason"),
    [
        (make_gemm(tiles=(32, 64, 64)), {}, ROWS.format(32, 4)),
        (make_gemm(tiles=(64, 64, 64)), {"warps": 8}, ROWS.format(64, 8) + "; 4 warps would"),
        (make_gemm(tiles=(64, 64, 64)), {"warps": 2}, ROWS.format(64, 2) + "; 4 warps would"),
        (make_gemm(tiles=(128, 64, 64)), {"warps": 12}, ROWS.format(128, 12) + "; 4 or 8 warps would"),
        (make_gemm(tiles=(192, 64, 64)), {"warps": 8}, ROWS.format(192, 8) + "; 4 or 12 warps would"),
        (make_gemm(tiles=(64, 20, 64)), {}, "there are no instructions for its 20 columns or its depth of 64"),
        (make_gemm(tiles=(64, 64, 24)), {}, "there are no instructions for its 64 columns or its depth of 24"),
        (make_gemm(dtype=ts.f32, tiles=(64, 64, 32)), {}, "it multiplies operands that they do not take"),
        (make_gemm(tiles=(64, 64, 576)), {"panels": 0}, "it takes more than 32 instructions in a straight line"),
    ],
)
def test_why_not(definition, fields, reason):
    products, _, reasons = lowered(definition, DIMS, **{"warps": 4, **fields})
    assert products == 0 and reasons == [reason]


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

        return lowered(part, {"M": 72}, panels=0)

    assert parts(64, 64) == (1, 0, [])
    reason = "its operands are parts of buffers that begin at no multiple of 8 rows and 64 columns"
    assert parts(32, 64) == (0, 1, [reason])
    assert parts(64, 128) == (0, 1, ["192 columns are not a multiple of 128"])


def test_no_note_where_nothing_is_asked():
    assert lowered(make_gemm(tiles=(32, 64, 64)), DIMS, family="") == (0, 1, [])
