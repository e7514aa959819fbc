"""The search: every author's point is a candidate or has a reason, equal code is kept once, pins hold, and the untuned
choice is quick and always the same.
"""
# ruff: noqa: F821  (the names of dims)

from collections import Counter
from dataclasses import asdict

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.compiler import compile_kernel, trace_kernel
from tessera.errors import SourceError
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.search import CLEARLY, LIMIT_OF_SLOWER, SHORT, choose, search
from tessera.search.engine import Engine
from tessera.search.points import Points, pinned
from tests.suite import load

DIMS = {"B": 16, "S": 2048, "D": 256, "L": 5, "len(source_layers)": 4, "len(gate_params)": 4}
SPACE = {"BLOCK": [64, 256, 1024, 4096], "factor": [2, 3], "num_warps": [4, 8], "unused": [False, True]}


@ts.kernel.autotune(space=SPACE, key=["M"])
def scale(x: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):
    ctx = tile.context()
    row = tile.program_id(0)
    for column in tile.range(0, ctx.N, ctx.BLOCK):
        tile.store(
            x[row, column : column + ctx.BLOCK] * (ctx.factor - ctx.factor + 2.0), out[row, column : column + ctx.BLOCK]
        )


@ts.kernel.autotune(space=dict(ROWS=[1024, 8, 16], num_warps=[4, 8]), key=["M"])
def both_ways(x: Tensor["M", "N", ts.f32], out: Tensor["M", "N", ts.f32]):
    """Every element needs its whole row and its whole column: a block that is too large cannot be taken in parts."""
    ctx = tile.context()
    row = tile.program_id(0) * ctx.ROWS
    block = x[row : row + ctx.ROWS, 0 : ctx.N]
    block = block - tile.max(block, axis=-1, keepdims=True)
    tile.store(block - tile.max(block, axis=0, keepdims=True), out[row : row + ctx.ROWS, 0 : ctx.N])


BOTH = {"M": 1 << 14, "N": 256}
SCALE = {"M": 4096, "N": 8192}


def test_every_point_is_accounted_for():
    found = search(scale, SCALE, "sm_90a")
    every = {tuple(point.items()) for point in scale.points()}
    assert {tuple(item.constants.items()) for item in (*found.candidates, *found.pruned)} == every and len(every) == 32
    assert all(item.reason for item in found.pruned)
    # `unused` decides nothing, `factor` only numbers that fold: one of each is kept.
    assert {(c.constants["factor"], c.constants["unused"]) for c in found.candidates} == {(2, False)}
    same = [item for item in found.pruned if item.reason.startswith("same code as BLOCK=")]
    assert len(same) >= 3 * 8 and "same code as BLOCK=64 factor=2 num_warps=4 unused=False" in {p.reason for p in same}


def test_candidates_are_ranked_and_differ():
    found = search(scale, SCALE, "sm_90a")
    seconds = [candidate.cost.seconds for candidate in found.candidates]
    assert seconds == sorted(seconds) and seconds[-1] <= LIMIT_OF_SLOWER * seconds[0]
    texts = {(candidate.program.cuda, candidate.schedule.blocks) for candidate in found.candidates}
    assert len(texts) == len(found.candidates) > 4
    for candidate in found.candidates[:3]:
        compiled = compile_kernel(scale, SCALE, "sm_90a", schedule=candidate.schedule, constants=candidate.constants)
        assert compiled.program == candidate.program and compiled.schedule == candidate.schedule
        assert candidate.program.cubin == b""


def test_the_document_kernel_is_a_few_schedules():
    found = search(load("fused_delta_gating_kernel"), DIMS, "sm_90a", pins={"num_stages": 2, "num_warps": 4}, limit=5)
    assert len(found.candidates) == 5
    assert {candidate.constants["num_stages"] for candidate in found.candidates} == {2}
    reasons = Counter(item.reason.split(" BLOCK")[0] for item in found.pruned if not item.reason.startswith("pred"))
    # Rows are programs of their own, whatever block the author took them from.
    assert reasons["same accesses as"] == 8
    worse = [item.reason for item in found.pruned if item.reason.startswith("predicted")]
    assert worse and all(reason.endswith("x slower than the best") for reason in worse)


def test_limit():
    whole, two = search(scale, SCALE, "sm_90a"), search(scale, SCALE, "sm_90a", limit=2)
    assert two.candidates == whole.candidates[:2]
    assert len(two.pruned) == len(whole.pruned) + len(whole.candidates) - 2
    assert sum(item.reason.startswith("predicted 1.") for item in two.pruned) >= 2


def test_other_processes_find_the_same():
    pins = {"factor": 2, "unused": False}
    here, there = (search(scale, SCALE, "sm_90a", pins=pins, workers=workers) for workers in (1, 2))
    assert there.candidates == here.candidates and there.pruned == here.pruned


def test_a_point_that_does_not_fit_has_its_reason():
    found = search(both_ways, BOTH, "sm_86", wide=True)
    lost = [item for item in found.pruned if item.constants["ROWS"] == 1024]
    assert len(lost) == 2 and all("is too large for the registers" in item.reason for item in lost)
    assert found.candidates and {c.constants["ROWS"] for c in found.candidates} <= {8, 16}
    assert choose(both_ways, BOTH, "sm_86").constants["ROWS"] in (8, 16)


def test_where_nothing_fits_the_first_error_is_raised():
    with pytest.raises(SourceError, match="TS501") as caught:
        search(both_ways, BOTH, "sm_86", pins={"ROWS": 1024})
    assert caught.value.loc is not None
    with pytest.raises(SourceError, match="TS501"):
        choose(both_ways, BOTH, "sm_86", pins={"ROWS": 1024})
    with pytest.raises(SourceError, match="TS508"):
        search(scale, SCALE, "hopper")


# ---- pins ------------------------------------------------------------------------------------------------------------


def test_pins_hold():
    kernel, dims = load("matmul_nn_bf16"), {"M": 512, "N": 512, "K": 512}
    found = search(kernel, dims, "sm_90a", pins={"warps": 8, "stages": 2})
    assert {(c.schedule.warps, c.schedule.stages) for c in found.candidates} == {(8, 2)}
    assert all(p.schedule["warps"] == 8 for p in found.pruned)
    point = search(scale, SCALE, "sm_90a", pins={"BLOCK": 512, "warps": 8, "factor": 2, "unused": False})
    assert [c.constants for c in point.candidates] == [{"BLOCK": 512, "factor": 2, "num_warps": 8, "unused": False}]


@pytest.mark.parametrize(
    ("pins", "code", "sentence"),
    [
        ({"wraps": 8}, "TS201", "did you mean 'warps'?"),
        ({"warps": 5}, "TS203", "a power of two from 1 to 32, or 12, not 5"),
        ({"BLOCK": "large"}, "TS203", "the constant BLOCK is of type int"),
        ({"num_warps": 5}, "TS203", "num_warps is a power of two"),
    ],
)
def test_pins_that_are_none(pins, code, sentence):
    with pytest.raises(SourceError, match=code) as caught:
        search(scale, SCALE, "sm_90a", pins=pins)
    assert sentence in caught.value.message


def test_text_is_searched_as_its_definition_is():
    kernel, dims = load("matmul_nn_bf16"), {"M": 512, "N": 512, "K": 512}
    module = parse_module(print_module(trace_kernel(kernel, dims)))
    own, text = (search(subject, dims, "sm_90a", pins={"warps": 8}) for subject in (kernel, module))
    assert [c.schedule for c in text.candidates] == [c.schedule for c in own.candidates]
    with pytest.raises(SourceError, match="TS702"):
        choose(compile_kernel(kernel, dims).target, dims, "sm_90a")


def test_what_the_caller_knows_of_the_arrays_reaches_the_code():
    dims = {"N": 1 << 20}
    wide, narrow = (choose(load("vector_add"), dims, "sm_90a", alignment={"x": n}) for n in (16, 4))
    assert wide.program.cuda != narrow.program.cuda
    assert wide.program == compile_kernel(load("vector_add"), dims, "sm_90a").program
    on_grid = choose(load("vector_add"), dims, "sm_90a", grid=(7,))
    assert on_grid.program.launches[0].grid == (7,)


# ---- the untuned choice ----------------------------------------------------------------------------------------------


def test_a_plain_kernel_takes_its_default_schedule():
    dims = {"M": 512, "N": 512, "K": 512}
    chosen, compiled = (make(load("matmul_nn_bf16"), dims, "sm_90a") for make in (choose, compile_kernel))
    assert (chosen.constants, chosen.schedule, chosen.program) == ({}, compiled.schedule, compiled.program)


def test_the_choice_of_a_space_is_quick_and_always_the_same():
    subject = load("fused_delta_gating_kernel")
    with Engine(Points(subject, DIMS, None, None), "sm_90a", None, None) as engine:
        from tessera.search import _look

        entry = _look(engine, engine.points)
        assert engine.tried <= SHORT
    chosen = choose(subject, DIMS, "sm_90a")
    assert chosen.constants == entry.constants
    narrow = search(subject, DIMS, "sm_90a", wide=False)
    assert len(narrow.candidates) + len(narrow.pruned) <= SHORT
    assert narrow.candidates[0].cost.seconds >= CLEARLY * chosen.cost.seconds


@ts.kernel.autotune(space=dict(BLOCK=[32, 256, 2048], num_warps=[1, 4]), key=["N"])
def small_first(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
    ctx = tile.context()
    start = tile.program_id(0) * ctx.BLOCK
    tile.store(x[start : start + ctx.BLOCK] * 2.0, out[start : start + ctx.BLOCK])


def test_a_point_that_is_clearly_better_is_chosen():
    dims = {"N": 1 << 24}
    chosen, own = choose(small_first, dims, "sm_90a"), choose(small_first.pinned(small_first.constants), dims, "sm_90a")
    assert own.constants == {"BLOCK": 32, "num_warps": 1}
    assert chosen.cost.seconds < CLEARLY * own.cost.seconds and chosen.constants["BLOCK"] > 32
    few = choose(small_first, {"N": 64}, "sm_90a")
    assert few.constants == own.constants  # nothing to gain: the author's first point


def test_the_choice_among_warpgroups_gives_each_its_rows():
    """Two warpgroups take 128 rows, which not every block of the author's has; sums of the choice do not spill."""
    dims = {"B": 16, "S": 2048, "D": 128, "L": 1, "len(source_layers)": 1, "len(gate_params)": 1}
    chosen = choose(load("fused_delta_gating_kernel"), dims, "sm_90a", pins={"family": "wgmma"})
    assert (chosen.schedule.family, chosen.schedule.warps, chosen.schedule.rows) == ("wgmma", 8, 128)
    assert chosen.constants["BLOCK_S"] >= 128 and chosen.cost.registers <= 1.1 * chosen.cost.registers_left


def test_of_predictions_alike_the_one_with_the_most_slots_is_chosen():
    """Where shared memory holds them, which it does not beside weights of 128 KB, and a program uses them."""
    for columns, layers, stages in ((128, 1, 2), (128, 4, 4), (256, 1, 2)):
        dims = {"B": 16, "S": 2048, "D": columns, "L": layers, "len(source_layers)": layers, "len(gate_params)": layers}
        chosen = choose(load("fused_delta_gating_kernel"), dims, "sm_90a")
        assert chosen.schedule.copies == "tma" and chosen.schedule.stages == stages


def test_a_choice_holds_when_it_is_pinned():
    """Shared memory holds fewer slots than the point asks for: the choice has those that there are."""
    kernel = load("parallel_delta_aggregation_kernel")
    dims = {"B": 16, "S": 2048, "D": 256, "L": 4, "len(source_layers)": 4, "len(gate_networks)": 4}
    chosen = choose(kernel, dims, "sm_90a")
    fields = asdict(chosen.schedule)
    assert fields["family"] == "wgmma" and fields["stages"] < 6
    again = choose(kernel.scheduled(fields), dims, "sm_90a")
    assert again.schedule == chosen.schedule and again.program == chosen.program


def test_sums_of_warpgroups_that_would_spill_are_left_out():
    pins = {"family": "wgmma", "BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2}
    found = search(load("gemm_nn"), {"M": 4096, "N": 4096, "K": 512}, "sm_90a", pins=pins)
    assert all(one.cost.registers <= 1.1 * one.cost.registers_left for one in found.candidates)
    lost = [item.reason for item in found.pruned if item.schedule["blocks"] == 2]
    assert lost == ["needs about 194 registers a thread, and 2 blocks of 8 warps leave 128"]


def test_how_many_persistent_programs_a_multiprocessor_runs_is_tried():
    """Where more fit than are asked for too: the field says how many there are, and no more than bounds registers."""
    found = search(load("matmul_nn_bf16"), {"M": 2048, "N": 2048, "K": 2048}, "sm_90a", pins={"stages": 6})
    found = [one for one in found.candidates if one.schedule.persistent]
    best = {blocks: min(one.cost.seconds for one in found if one.schedule.blocks == blocks) for blocks in (1, 2)}
    assert best[1] > 1.5 * best[2]


def test_pinned_subjects():
    assert pinned(scale, {}) is scale
    assert pinned(scale, {"BLOCK": 64, "stages": 2}).schedule == {"stages": 2}
    assert Points(pinned(scale, {"warps": 8}), SCALE, None, None).candidates["num_warps"] == (8,)
    assert asdict(choose(scale.pinned({"BLOCK": 256}), SCALE, "sm_90a").schedule)["warps"] in (4, 8)
