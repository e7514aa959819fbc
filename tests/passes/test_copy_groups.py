"""Copies that one wait waits for: which they are, until when their slot is held, and why some form no groups."""
# ruff: noqa: F821  (the names of dims)

import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.ir.parser import parse_module
from tessera.passes.copy_groups import copy_groups
from tests.passes import lane_kernels
from tests.passes.lane_kernels import CASES
from tests.passes.lane_running import reached


def groups_of(name, **fields):
    return copy_groups(*reached(getattr(lane_kernels, name), CASES[name], "prefetch_loads", **fields))


def summary(group):
    return len(group.copies), group.bytes, group.in_loop, group.in_turn, group.kept, group.last.name, len(group.read)


def test_operands_of_a_product_arrive_together():
    (group,) = groups_of("gemm_nn")
    assert summary(group) == (2, 2 * 64 * 64 * 2, True, True, 0, "mma", 0)
    assert [buffer.defining_op.name for buffer in group.buffers] == ["alloc_shared"] * 2


def test_what_is_read_into_registers_is_there_before_the_slot_is_released():
    (weights, others, *panels) = groups_of("differences")
    for group in (weights, others):  # in front of the persistent loop: nobody needs the slots again
        assert summary(group)[:5] == (1, 64 * 128 * 2, False, False, 0)
    assert [summary(panel) for panel in panels] == [(2, 2 * 64 * 64 * 2, True, True, 0, "read", 2)] * 2
    assert panels[0].signature == panels[1].signature != weights.signature


def test_stages_that_a_loop_fills_stay():
    kept, inputs = groups_of("layers")
    assert summary(kept) == (1, 64 * 64 * 2, True, False, 4, "wait", 0)
    assert summary(inputs)[2:5] == (True, True, 0)


def test_copies_in_branches_and_of_authors():
    for name in ("in_branches", "own_buffers"):
        assert [summary(group)[2:6] for group in groups_of(name, persistent=False)] == [(True, True, 0, "mma")]


COPIES = """
kernel @k(
  %x: view<[64, 64], bf16>,
  %out: view<[64, 64], bf16>
) attributes {parameters = (("x", "in"), ("out", "out")), grid = (1,)} {
  %a: buffer<[64, 64], bf16> = alloc_shared {shape = (64, 64), dtype = bf16}
  %b: buffer<[64, 64], bf16> = alloc_shared {shape = (64, 64), dtype = bf16}
  %0: i64 = constant {value = 0, dtype = i64}
  %4: i64 = constant {value = 4, dtype = i64}
  %1: i64 = constant {value = 1, dtype = i64}
  for %0, %4, %1 (%i: i64) {
    %s: token = copy_async %a, %x
    %t: token = copy_async %b, %x
    wait %s, %t
    %v: tile<[64, 64], bf16> = read %a
    %w: tile<[64, 64], bf16> = read %b
    %sum: tile<[64, 64], bf16> = add %v, %w
    store %out, %sum
    yield
  }
}
"""


def groups_of_text(*edits):
    text = "tessera 1 tile\n" + COPIES
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return copy_groups(parse_module(text).kernel())


def test_a_text():
    (group,) = groups_of_text()
    assert summary(group) == (2, 2 * 64 * 64 * 2, True, True, 0, "read", 2)
    apart = groups_of_text(("    wait %s, %t\n", "    wait %s\n    wait %t\n"))
    assert [len(group.copies) for group in apart] == [1, 1]
    unread = groups_of_text(("    %w: tile<[64, 64], bf16> = read %b\n", ""), ("%v, %w", "%v, %v"))
    assert summary(unread[0])[5:] == ("read", 1)


WAIT, TILE = "    wait %s, %t\n", "tile<[64, 64], bf16>"
READ_A, READ_B = f"    %v: {TILE} = read %a\n", f"    %w: {TILE} = read %b\n"
USE = f"    %sum: {TILE} = add %v, %w\n    store %out, %sum\n"
FIRST = "    %s: token = copy_async %a, %x\n"
STAGE = "    %as: buffer<[64, 64], bf16> = stage %a, %i\n"
REASONS = {
    "'b' is used otherwise than by reading it after its copy": [(READ_B, f"{READ_B}    write %b, %w\n")],
    "'a' is used otherwise than by reading it after its copy": [(WAIT + READ_A, READ_A + WAIT)],
    "a copy is waited for twice": [(WAIT, f"{WAIT}    wait %s\n")],
    "a copy is waited for in another block than it is started in": [
        (WAIT, "    wait %s\n"),
        (READ_B, ""),
        ("%w\n", "%v\n"),
    ],
    "its copies are in groups of the author's": [(WAIT, "    %g: token = async_commit %s, %t\n    wait %g\n")],
    "a wait is for copies of another block": [
        ("  for %0", "  %u: token = copy_async %a, %x\n  for %0"),
        (WAIT, "    wait %u, %t\n"),
        (FIRST, ""),
    ],
    "a copy fills a stage of a buffer": [
        ("bf16}\n  %b", "bf16, stages = 2}\n  %b"),
        (FIRST, STAGE + FIRST.replace("%a", "%as")),
        ("read %a", "read %as"),
    ],
    "a part of 'a' is read in a loop that its copy is not in": [
        (READ_A, ""),
        (USE, f"    for %0, %4, %1 (%j: i64) {{\n{READ_A}{USE}      yield\n    }}\n"),
    ],
}


def test_two_copies_of_one_buffer_form_none():
    edits = [("copy_async %b", "copy_async %a"), (WAIT, "    wait %s\n    wait %t\n"), ("read %b", "read %a")]
    assert groups_of_text(*edits) == "'a' is used otherwise than by reading it after its copy"


@pytest.mark.parametrize("reason", REASONS)
def test_what_forms_no_groups(reason):
    assert groups_of_text(*REASONS[reason]) == reason


def test_no_copies_are_no_groups():
    @ts.kernel
    def plain(x: Tensor["N", ts.f32], out: Tensor["N", ts.f32]):
        n = tile.program_id(0) * 64
        tile.store(x[n : n + 64], out[n : n + 64])

    assert copy_groups(*reached(plain, {"N": 100}, "prefetch_loads")) == []
