"""The default point of warpgroups: what it asks for kernels of each kind, and which kernels it leaves alone."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import CHOICE, compile_kernel, find_arch
from tessera.errors import SourceError
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.runtime.nvrtc import compile_cubin
from tessera.search import choose
from tessera.target.cost import cost
from tessera.target.schedule import default_schedule
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES, make_gemm, triangle
from tests.passes.lane_running import Ready, emulate, keeps_every_bit
from tests.passes.test_pipeline import assert_same_bits, emulated, outputs_of
from tests.suite import load
from tests.target.test_schedules import prepared

ARCH = find_arch("sm_90a")
LANE = {"family": "wgmma", "copies": "tma", "persistent": True, "panels": 64}
WIDE = {"B": 16, "S": 2048, "D": 2048, "L": 3, "len(source_layers)": 2, "len(gate_networks)": 2}
LARGE = {"M": 4096, "N": 4096, "K": 4096}


def point(definition, dims, **constants):
    return default_schedule(prepared(definition, dims, **constants), ARCH, "sm_90a")


def fields(schedule, *names):
    return tuple(getattr(schedule, name) for name in names)


@pytest.mark.parametrize(
    ("tiles", "warps", "stages", "blocks"),
    [
        ((64, 64, 32), 4, 6, 2),
        ((64, 64, 64), 4, 6, 2),
        ((64, 128, 64), 4, 6, 1),
        ((128, 64, 64), 8, 6, 1),
        ((128, 128, 64), 8, 6, 1),
        ((128, 256, 64), 8, 4, 1),
        ((64, 256, 64), 4, 5, 1),
        ((192, 64, 64), 12, 6, 1),
        ((192, 128, 64), 12, 4, 1),
        ((192, 256, 64), 12, 3, 1),
    ],
)
def test_tiles_of_the_author(tiles, warps, stages, blocks):
    """As many slots as fit beside the buffers through which panels are stored, and two blocks of a warpgroup each where
    all of that fits twice.
    """
    found = point(make_gemm(tiles=tiles), LARGE)
    assert {name: getattr(found, name) for name in LANE} == LANE
    assert fields(found, "warps", "stages", "blocks") == (warps, stages, blocks)


@pytest.mark.parametrize("tiles", [(64, 64, 32), (64, 64, 64), (64, 128, 64), (128, 64, 64), (128, 128, 64)], ids=str)
def test_it_is_predicted_to_be_faster_than_the_base_lane(tiles):
    dims = {"M": 2048, "N": 2048, "K": 2048}
    lane, base = (
        compile_kernel(make_gemm(tiles=tiles).scheduled(pins), dims, "sm_90a") for pins in ({}, {"family": ""})
    )
    assert lane.schedule.family == "wgmma" and len(lane.program.notes) == 0
    lane, base = (cost(found.target.kernel(), ARCH, dims).seconds for found in (lane, base))
    assert lane < 0.8 * base


def test_constants_of_the_author_decide():
    found = point(load("gemm_nn"), LARGE, BLOCK_M=128, BLOCK_N=128, num_warps=4, num_stages=2)
    assert fields(found, "family", "warps", "stages") == ("wgmma", 4, 2)
    found = point(load("gemm_nn"), LARGE, BLOCK_M=192, BLOCK_N=128, num_warps=12, num_stages=3)
    assert fields(found, "family", "warps", "rows", "stages") == ("wgmma", 12, 0, 3)


def test_rows_that_three_warpgroups_share_out():
    """192 at a time where 128 do not divide them; they are not cut where they are no more, in a loop or beside one."""

    def product(rows, columns=128):
        @ts.kernel
        def rows_of(a: Tensor["M", 128, ts.bf16], b: Tensor[128, 128, ts.bf16], out: Tensor["M", 128, ts.bf16]):
            m = tile.program_id(0) * rows
            tile.store(tile.mma(a[m : m + rows], b, transpose_b=columns != 128), out[m : m + rows])

        return fields(point(rows_of, LARGE), "family", "warps", "rows")

    assert product(384) == ("wgmma", 8, 128)
    assert product(576) == ("wgmma", 12, 192)
    assert product(192) == ("wgmma", 12, 192)
    assert product(192, columns=0) == ("wgmma", 12, 192)  # of a transposed operand too
    assert product(320)[0] == ""
    assert fields(point(make_gemm(tiles=(192, 128, 64)), LARGE), "warps", "rows", "group") == (12, 0, 8)


def test_few_rows_of_many_columns():
    """128 rows, of which shared memory does not hold all operands at once, are taken as those of a large store are."""

    @ts.kernel
    def gated(a: Tensor["M", 256, ts.bf16], b: Tensor["M", 256, ts.bf16], w: Tensor[256, 256, ts.bf16],
              out: Tensor["M", 256, ts.bf16]):  # fmt: skip
        m = tile.program_id(0) * 128
        delta = tile.cast(tile.cast(b[m : m + 128], ts.f32) - tile.cast(a[m : m + 128], ts.f32), ts.bf16)
        tile.store(delta * tile.sigmoid(tile.mma(delta, w)), out[m : m + 128])

    found = compile_kernel(gated, LARGE, "sm_90a")
    assert fields(found.schedule, "family", "warps", "rows", "subtile") == ("wgmma", 8, 128, 256)
    resources = compile_cubin(found.program.cuda, "sm_90a", found.program.name).resources[found.program.name]
    assert resources.spill_stores == resources.spill_loads == 0


def test_a_store_of_one_axis_beside_products():
    """Of a tile of f32, which no registers hold whole: on the base lane, whatever else is stored."""

    @ts.kernel
    def both(a: Tensor["M", 256, ts.f32], w: Tensor[256, 512, ts.f32], out: Tensor["M", 512, ts.f32],
             total: Tensor["M", ts.f32]):  # fmt: skip
        m = tile.program_id(0) * 128
        product = tile.mma(a[m : m + 128], w)
        tile.store(tile.sum(product, axis=1), total[m : m + 128])
        tile.store(product, out[m : m + 128])

    assert point(both, LARGE).family == ""


def test_two_products_that_are_added_have_half_of_the_columns():
    """The sums of one are kept while the other is computed: at 128 columns registers spill."""

    @ts.kernel
    def pair(a: Tensor["M", 512, ts.bf16], b: Tensor["M", 512, ts.bf16], w: Tensor[512, 512, ts.bf16],
             v: Tensor[512, 512, ts.bf16], out: Tensor["M", 512, ts.bf16]):  # fmt: skip
        m = tile.program_id(0) * 256
        first = tile.sigmoid(tile.mma(a[m : m + 256], w))
        tile.store(first + tile.sigmoid(tile.mma(b[m : m + 256], v)), out[m : m + 256])

    found = compile_kernel(pair, LARGE, "sm_90a")
    assert fields(found.schedule, "family", "warps", "rows", "subtile") == ("wgmma", 8, 128, 64)
    resources = compile_cubin(found.program.cuda, "sm_90a", found.program.name).resources[found.program.name]
    assert resources.spill_stores == resources.spill_loads == 0
    small = compile_kernel(pair.scheduled({"family": "wgmma"}), {"M": 140}, "sm_90a")
    assert small.schedule.family == "wgmma"
    emulate([Ready(small, {"M": 140}, keeps_every_bit(small, {"M": 140}))])


def layered(width, layers):
    dims = {"B": 16, "S": 2048, "D": width, "L": layers + 1}
    return point(
        load("fused_delta_gating_kernel"),
        {**dims, "len(source_layers)": layers, "len(gate_params)": layers},
        BLOCK_B=16,
        BLOCK_S=128,
        num_warps=8,
        num_stages=2,
    )


def test_rows_of_a_large_store():
    """A right operand stays where shared memory holds all of its depth; sums that are carried take registers."""
    assert fields(layered(128, 1), "rows", "subtile", "block_k") == (128, 128, 128)
    assert fields(layered(256, 1), "rows", "subtile", "block_k") == (128, 256, 256)
    assert fields(layered(512, 1), "rows", "subtile", "block_k") == (128, 256, 64)
    assert fields(layered(1024, 1), "rows", "subtile", "block_k") == (128, 256, 64)
    assert fields(layered(128, 4), "rows", "subtile", "block_k") == (128, 128, 128)
    assert fields(layered(256, 4), "rows", "subtile", "block_k") == (128, 128, 64)
    assert fields(layered(512, 4), "rows", "subtile", "block_k") == (128, 128, 64)


def test_what_many_tiles_of_columns_compute_is_computed_once():
    """By a launch in front, where each would load several tensors for it."""

    @ts.kernel
    def doubled(a: Tensor["M", 4096, ts.bf16], w: Tensor[4096, 4096, ts.bf16], out: Tensor["M", 4096, ts.bf16]):
        m = tile.program_id(0) * 256
        tile.store(tile.mma(a[m : m + 256] * 2.0, w), out[m : m + 256])

    assert fields(layered(1024, 4), "subtile", "prologue") == (128, "")
    assert fields(layered(2048, 4), "subtile", "prologue") == (192, "launch")
    assert fields(layered(2048, 1), "subtile", "prologue") == (256, "")
    assert fields(layered(4096, 1), "subtile", "prologue") == (256, "launch")
    assert fields(point(doubled, LARGE), "rows", "subtile", "prologue") == (128, 256, "")
    found = compile_kernel(load("parallel_delta_aggregation_kernel"), WIDE, "sm_90a")
    assert fields(found.schedule, "prologue", "subtile", "stages") == ("launch", 192, 4)
    assert len(found.program.launches) == 2
    slots = [op.attributes["stages"] for op in found.target.kernels[-1].body.walk() if op.name == "ring"]
    assert slots == [4, 2]  # those around the loop over K give way
    made = compile_cubin(found.program.cuda, "sm_90a", found.program.name)
    assert all(kernel.spill_stores == 0 for kernel in made.resources.values())


def test_a_reduction_between_takes_the_columns_that_it_took():
    """Sums of 192 columns leave no registers to it."""

    def gated(by_row):
        @ts.kernel
        def kernel(x: Tensor["M", 2048, ts.bf16], y: Tensor[2, "M", 2048, ts.bf16], w: Tensor[2, 2048, 2048, ts.bf16],
                   out: Tensor["M", 2048, ts.bf16]):  # fmt: skip
            m = tile.program_id(0) * 256
            total = tile.zeros([256, 2048], ts.f32)
            for i in tile.range(2):
                delta = x[m : m + 256] - y[i, m : m + 256]
                gate = tile.max(delta, axis=1, keepdims=True) if by_row else delta
                total = total + gate * tile.mma(delta, w[i])
            tile.store(total, out[m : m + 256])

        return kernel

    assert fields(point(gated(False), LARGE), "subtile", "prologue") == (192, "launch")
    assert fields(point(gated(True), LARGE), "subtile", "prologue") == (128, "launch")


WHOLE = ("smem_delta", "smem_params")


@pytest.mark.parametrize(("columns", "block_k", "stages"), [(256, 256, 4), (512, 64, 3), (2048, 64, 3)])
def test_whole_copies_of_the_author_come_panel_by_panel(columns, block_k, stages):
    """Where shared memory does not hold them and the panels of a store: at 256 columns the weights stay."""
    gating = load("gating_function_kernel")
    found = compile_kernel(gating, {"B": 16, "S": 2048, "D": columns}, "sm_90a")
    assert fields(found.schedule, "family", "streamed", "rows", "subtile") == ("wgmma", WHOLE, 128, 256)
    assert fields(found.schedule, "block_k", "stages") == (block_k, stages)
    resources = compile_cubin(found.program.cuda, "sm_90a", found.program.name).resources[found.program.name]
    assert resources.spill_stores == resources.spill_loads == 0


def test_whole_copies_that_fit_stay_whole():
    found = point(load("gating_function_kernel"), {"B": 16, "S": 2048, "D": 128})
    assert fields(found, "family", "streamed", "rows", "stages") == ("wgmma", (), 0, 6)


def test_every_bit_of_streamed_copies_stays():
    dims = {"B": 2, "S": 150, "D": 256}
    made = compile_kernel(load("gating_function_kernel"), dims, "sm_90a")
    assert made.schedule.streamed == WHOLE
    emulate([Ready(made, dims, keeps_every_bit(made, dims))])


def test_what_else_is_in_a_buffer_stays_there():
    """An operand that the program writes into a buffer is no copy of a tensor."""

    @ts.kernel
    def written(a: Tensor["M", 512, ts.bf16], w: Tensor[512, 512, ts.bf16], out: Tensor["M", 512, ts.bf16]):
        m = tile.program_id(0) * 128
        left = tile.alloc_shared([128, 512], ts.bf16)
        right = tile.alloc_shared([512, 512], ts.bf16)
        tile.copy_async(right, w)
        tile.cp_commit_group()
        tile.fill(left, 1.0)
        tile.cp_wait_group(0)
        tile.store(tile.mma(left, right), out[m : m + 128])

    found = point(written, LARGE)
    assert fields(found, "family", "streamed") == ("", ("right",))


@ts.kernel
def own_buffers(a: Tensor["M", "K", ts.bf16], b: Tensor["K", 128, ts.bf16], out: Tensor["M", 128, ts.bf16]):
    ctx = tile.context()
    m = tile.program_id(0) * 128
    left, right = tile.alloc_shared([128, 128], ts.bf16), tile.alloc_shared([128, 128], ts.bf16)
    acc = tile.zeros([128, 128], ts.f32)
    for k in tile.range(0, ctx.K, 128):
        tile.copy_async(left, a[m : m + 128, k : k + 128])
        tile.copy_async(right, b[k : k + 128])
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        acc = tile.mma(left, right, acc)
    tile.store(acc, out[m : m + 128])


def test_copies_of_the_author_fill_slots():
    """64 KiB a slot, beside 32 KiB through which panels are stored."""
    assert fields(point(own_buffers, LARGE), "family", "warps", "stages") == ("wgmma", 8, 3)


@pytest.mark.parametrize(
    ("definition", "dims", "persistent"),
    [
        (triangle, {"M": 4096}, False),
        (load("causal_attention"), {"B": 2, "H": 16, "T": 4096, "D": 128}, False),
        (load("attention"), {"B": 2, "H": 16, "T": 4096, "D": 128}, True),
        (make_gemm(), LARGE, True),
    ],
    ids=["triangle", "causal attention", "attention", "gemm"],
)
def test_programs_that_differ_in_how_long_they_loop_are_not_persistent(definition, dims, persistent):
    found = point(definition, dims)
    assert {name: getattr(found, name) for name in LANE} == {**LANE, "persistent": persistent}
    assert persistent or found.blocks == 1


@ts.kernel
def unequal(a: Tensor["M", 64, ts.bf16], b: Tensor[64, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
    """Products of 64 and of 32 rows: no number of warpgroups suits both."""
    m = tile.program_id(0) * 64
    tile.store(tile.mma(a[m : m + 64], b), out[m : m + 64])
    tile.store(tile.mma(a[m : m + 32], b), out[m : m + 32])


@pytest.mark.parametrize(
    ("depth", "rows", "keys", "warps", "family"),
    [(64, 128, 128, 8, "wgmma"), (64, 128, 128, 4, ""), (128, 64, 128, 4, "wgmma"), (256, 64, 64, 4, "wgmma")],
)
def test_sums_beside_those_that_a_loop_carries(depth, rows, keys, warps, family):
    """Of attention: 128 registers of scores beside 64 of what is added up spill."""
    dims = {"B": 2, "H": 16, "T": 4096, "D": depth}
    found = point(load("attention"), dims, BLOCK_M=rows, BLOCK_N=keys, num_warps=warps, num_stages=2)
    assert found.family == family


@pytest.mark.parametrize(
    ("definition", "dims"),
    [
        (make_gemm(dtype=ts.f32), LARGE),
        (make_gemm(dtype=ts.f32, out=ts.bf16), LARGE),
        (make_gemm(), {"M": 512, "N": 512, "K": 511}),  # rows that no tensor map describes
        (make_gemm(tiles=(32, 64, 64)), LARGE),
        (unequal, {"M": 512}),
        (load("softmax"), {"M": 512, "N": 512}),
        (lane_kernels.scaled_sum, CASES["scaled_sum"]),
    ],
    ids=["f32", "f32 to bf16", "stride", "rows", "unequal", "softmax", "sum"],
)
def test_kernels_that_are_not_for_warpgroups(definition, dims):
    kernel = prepared(definition, dims)
    assert default_schedule(kernel, ARCH, "sm_90a") == default_schedule(kernel, ARCH, "sm_80")


def scaled(rows, depth):
    """A product of one block, of an operand that the author changes where it lies."""

    @ts.kernel
    def scaled(a: Tensor["M", depth, ts.bf16], b: Tensor[depth, 64, ts.bf16], out: Tensor["M", 64, ts.bf16]):
        m = tile.program_id(0) * rows
        left, right = tile.alloc_shared([rows, depth], ts.bf16), tile.alloc_shared([depth, 64], ts.bf16)
        tile.copy_async(left, a[m : m + rows])
        tile.copy_async(right, b)
        tile.cp_commit_group()
        tile.cp_wait_group(0)
        tile.add(left, 1.0, left)
        tile.store(tile.mma(left, right), out[m : m + rows])

    return scaled


NOT_HELD = [
    (make_gemm("tt", tiles=(128, 256, 128)), {"M": 40, "N": 264, "K": 136}, {}, "shared memory does not hold 2 slots"),
    (scaled(64, 64), {"M": 150}, {}, "'left' is used otherwise than by reading it after its copy"),
    (make_gemm(tiles=(128, 128, 64)), {"M": 40, "N": 136, "K": 72}, {"rows": 32}, "its 32 rows are not shared out"),
]


@pytest.mark.parametrize(("definition", "dims", "pins", "reason"), NOT_HELD, ids=["memory", "copies", "rows"])
def test_a_kernel_that_the_lane_does_not_hold_is_on_the_base_lane(definition, dims, pins, reason):
    """A note says why, and answers are those of the interpreter."""
    found, base = (
        compile_kernel(definition.scheduled({**pins, **more}), dims, "sm_90a") for more in ({}, {"family": ""})
    )
    assert point(definition.scheduled(pins), dims).family == "wgmma"
    assert found.schedule == base.schedule and found.program.cuda == base.program.cuda
    assert [stage.name for stage in found.stages] == [stage.name for stage in base.stages]
    (note,) = found.program.notes
    assert note.startswith("not on the lane of sm_90a: ") and reason in note and base.program.notes == ()
    expected = outputs_of(found.stages[0].module.kernel(), dims, "tile")
    assert_same_bits(expected, outputs_of(found.target.kernel(), dims, "target"), "the base lane")
    assert_same_bits(expected, emulated(found, dims), "the emitted CUDA")
    again = compile_kernel(parse_module(print_module(found.stages[CHOICE + 1].module)), dims, "sm_90a")
    assert again.program.cuda == base.program.cuda and again.program.notes == (note,)  # a dump says it too
    resources = compile_cubin(found.program.cuda, "sm_90a", found.program.name).resources[found.program.name]
    assert resources.spill_stores == resources.spill_loads == 0


def test_who_asks_for_the_lane_gets_what_can_be_had_of_it():
    definition, dims, _, reason = NOT_HELD[0]
    for pins in ({"family": "wgmma"}, {"copies": "tma"}):
        found = compile_kernel(definition.scheduled(pins), dims, "sm_90a")
        assert found.schedule.family == "wgmma" and reason in found.program.notes[0]
    with pytest.raises(SourceError, match="TS501.*pinned to 6 stages"):
        compile_kernel(make_gemm(tiles=(128, 256, 64)).scheduled({"family": "wgmma", "stages": 6}), LARGE, "sm_90a")
    found = compile_kernel(make_gemm(tiles=(128, 256, 64)).scheduled({"stages": 4}), LARGE, "sm_90a")
    assert (found.schedule.family, found.schedule.stages) == ("wgmma", 4)


def test_a_search_is_on_the_lane_that_holds_the_kernel():
    definition, dims, _, reason = NOT_HELD[0]
    chosen = choose(definition, dims, "sm_90a", pins={"warps": 8})
    assert (chosen.schedule.family, chosen.schedule.copies, chosen.schedule.persistent) == ("", "", False)
    assert any(reason in note for note in chosen.program.notes)


def test_the_point_is_that_of_kernels_that_do_not_ask_for_another():
    dims = {"M": 72, "N": 72, "K": 72}
    for pins in ({}, {"family": "wgmma"}, {"copies": "tma"}, {"cluster": 2}):
        found = compile_kernel(make_gemm().scheduled(pins), dims, "sm_90a").schedule
        assert {name: getattr(found, name) for name in LANE} == LANE
    base = compile_kernel(make_gemm().scheduled({"family": ""}), dims, "sm_90a").schedule
    assert base == compile_kernel(make_gemm(), dims, "sm_80").schedule and base.family == base.copies == ""
    assert compile_kernel(make_gemm(), dims, "sm_90").schedule == base  # its machine code has no wgmma
    both = compile_kernel(make_gemm().scheduled({"family": "", "copies": "tma"}), dims, "sm_90a").schedule
    assert (both.family, both.copies, both.persistent) == ("", "tma", True)
