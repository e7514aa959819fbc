"""Asynchronous copies in CUDA: what a turn adds to the one before is a constant where the threads share out rows."""

import re

from tessera.compiler import compile_kernel
from tests.lanes import define
from tests.suite import load

STEP = re.compile(r"ts_cp_async<\d+, \w+>\(.*, (source \+ turn \* \(\(ts_i64\)\d+ \* \w+\)), ")


def copies(name, dims):
    return [line for line in compile_kernel(load(name), dims).cuda[0].text.split("\n") if "ts_cp_async<" in line]


def test_turns_of_a_copy_are_steps_from_the_first():
    lines = copies("difference_matmul", {"M": 130, "N": 72, "K": 104})
    assert lines and all(STEP.search(line) for line in lines)


def test_one_axis_of_many_rows_needs_no_division():
    text = compile_kernel(load("batched_matmul"), {"B": 2, "M": 64, "N": 64, "K": 64}).cuda[0].text
    assert "ts_cp_async<" in text and "= row /" not in text


def gating_text(size):
    dims = {"B": 16, "S": 2048, "D": size, "L": 2, "len(source_layers)": 1, "len(gate_params)": 1}
    base = load("fused_delta_gating_kernel").scheduled({"family": ""})  # the other lane has no copies by cp.async
    return compile_kernel(base, dims, "sm_90a").cuda[0].text


def test_windows_inside_a_static_axis_have_no_masks():
    """W is [256, 256] and loops over it have constant bounds: its copies count nothing, and no column is masked."""
    text = gating_text(256)
    assert re.search(r"ts_cp_async<16, true>\(right_operand .*, 16\);", text)
    assert not re.search(r"_(left|first|valid)2 = ", text)


def test_an_axis_that_is_not_whole_blocks_keeps_one_comparison():
    """64 columns at a time of 200: the last ones are masked, by a number of 32 bits."""
    kernel = define(
        """
        @ts.kernel(grid=lambda d: (1,))
        def k(x: Tensor[64, 200, ts.f32], out: Tensor[64, 64, ts.f32]):
            total = tile.zeros([64, 64], ts.f32)
            for i in tile.range(0, 200, 64):
                total = total + x[0:64, i : i + 64]
            tile.store(total, out[0:64, 0:64])
        """
    )
    text = compile_kernel(kernel, {}).cuda[0].text
    declared = re.findall(r"const (\w+) window\w*_(left|valid|first)1 = (.*);", text)
    assert [(type_, name) for type_, name, _ in declared] == [("int", "left"), ("int", "valid")]
    assert re.fullmatch(r"(\w+) < 64 \? \1 : 64", declared[1][2])


def test_a_store_that_is_inside_has_no_branch_but_that_of_its_owner():
    kernel = define(
        """
        @ts.kernel(grid=lambda d: (4,))
        def k(x: Tensor[128, 64, ts.f32], out: Tensor[128, 64, ts.f32]):
            i = tile.program_id(0)
            tile.store(x[i * 32 : i * 32 + 32, 0:64], out[i * 32 : i * 32 + 32, 0:64])
        """
    )
    text = compile_kernel(kernel, {}).cuda[0].text
    assert "ts_st_global<" in text and "valid" not in text and "ts_ld_global_n" not in text


def test_the_turns_of_a_copy_are_constants_from_the_first():
    """8 rows further on the swizzle is as it was: 128 threads at 16 chunks a row; 512 at 128 chunks move by 4 rows."""
    assert re.search(r"ts_cp_async<16, true>\(\w+ \+ target \+ turn \* 1024, ", gating_text(128))
    crossed = compile_kernel(define(WIDE), {}).cuda[0].text
    assert re.search(r"\+ \(target \^ S\d_x\(turn \* 4, 0\)\) \+ S\d_a\(turn \* 4, 0\), ", crossed)


WIDE = """
@ts.kernel(grid=lambda d: (1,))
def k(x: Tensor[16, 1024, ts.bf16], out: Tensor[16, 1024, ts.bf16]):
    staged = tile.alloc_shared([16, 1024], ts.bf16)
    tile.copy_async(staged, x[0:16, 0:1024])
    tile.cp_commit_group()
    tile.cp_wait_group(0)
    tile.store(staged[0:16, 0:1024], out[0:16, 0:1024])
"""
