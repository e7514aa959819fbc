"""Roles as CUDA: the text, what the assembler makes of it, and its values on the emulator."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tessera.codegen_cuda.emit import emit
from tessera.codegen_cuda.layouts import LayoutNames
from tessera.errors import InternalError
from tessera.ir.layout import blocked
from tessera.program import Program
from tessera.runtime.execute import emulate
from tessera.runtime.findings import Places
from tests import role_texts as texts
from tests.runtime.test_programs import needs_nvrtc


def emulated(program: Program, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    given = texts.arguments(rows)
    emulate(program, given, {"M": rows}, seed)
    return given["out"], texts.expected(given)


def test_text() -> None:
    text = texts.compiled(3).cuda
    assert "TS_KERNEL_OCC(added, 384, 1)" in text
    before, producer, consumers = re.split(r"\{  // load\n|\} else \{  // compute\n", text)
    assert re.search(r"if \(ts_warp\(\) >= 8\) $", before) and "ts_mbarrier_fence();\n    ts_barrier();\n" in before
    assert before.count("ts_mbarrier_init") == 2
    assert producer.lstrip().startswith("ts_registers_decrease<40>();\n        if (ts_thread() == 256) {")
    assert "ts_mbarrier_wait(ring + (int)s1 * 8 + 24, (int)p1 ^ 1);" in producer
    assert "ts_mbarrier_expect(ring + (int)s1 * 8, 4096);" in producer
    assert consumers.lstrip().startswith("ts_registers_increase<232>();")
    assert "ts_mbarrier_wait(ring + (int)s1_ * 8, (int)p1_);" in consumers
    assert "ts_mbarrier_arrive_after(ring + (int)s1_ * 8 + 24, word);" in consumers
    assert "ts_i64 s1" not in text and "ts_i64 p1" not in text


def test_a_release_without_values_and_no_moves_of_registers() -> None:
    edits = (("%t, %ta, %tb", "%t"), ("(40, 232)", "(0, 0)"))
    program = texts.compiled(3, edits)
    assert "ts_registers" not in program.cuda and "TS_KERNEL(added, 384)" in program.cuda
    assert "ts_warp_barrier();" in program.cuda
    assert "if (ts_lane() == 0) ts_mbarrier_arrive(ring + (int)s1_ * 8 + 24);" in program.cuda
    got, wanted = emulated(program, 50, 1)
    np.testing.assert_array_equal(got, wanted)


def test_constant_slots() -> None:
    """A ring of one slot whose number is known."""
    edits = {
        "ring_wait %ring, %t, %q": "ring_wait %ring, %zero, %q",
        "ring_expect %ring, %t": "ring_expect %ring, %zero",
    }
    text = texts.compiled(1, tuple(edits.items())).cuda
    assert "ts_mbarrier_wait(ring, (int)p1_);" in text and "ts_mbarrier_expect(ring, 4096);" in text


@pytest.mark.parametrize(("stages", "edits"), [(1, ()), (2, texts.THROUGH_SHARED)])
def test_emulator(stages: int, edits: tuple[tuple[str, str], ...]) -> None:
    program = texts.compiled(stages, edits)
    assert program.launches[0].threads == 384
    for seed in range(4):
        got, wanted = emulated(program, 100, seed)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ts_mbarrier_wait(ring + (int)s1_ * 8, (int)p1_);", "in flight|race|uninitialised"),
        ("ts_mbarrier_arrive_after(ring + (int)s1_ * 8 + 16, word);", "deadlock"),
        ("ts_mbarrier_wait(ring + (int)s1 * 8 + 16, (int)p1 ^ 1);", "mbarrier|race|in flight"),
    ],
)
def test_a_missing_line_is_found(line: str, found: str) -> None:
    program = texts.compiled(2, texts.THROUGH_SHARED)
    assert line in program.cuda
    with pytest.raises(InternalError, match=found):
        emulated(replace(program, cuda=program.cuda.replace(line, ";")), 100, 1)


@needs_nvrtc
@pytest.mark.parametrize("edits", [(), texts.THROUGH_SHARED])
def test_assembler(edits: tuple[tuple[str, str], ...]) -> None:
    """Registers move, none spills."""
    from tessera.runtime.nvrtc import compile_cubin

    program = texts.compiled(3, edits)
    made = compile_cubin(program.cuda, "sm_90a", "added")
    used = made.resources["added"]
    assert used.registers == 168 and not used.spill_stores and not used.stack
    assert "C75" not in made.log


def test_owners_of_warps_that_are_no_power_of_two() -> None:
    """Of twelve warps and a layout of four, the first four own what they hold."""
    names = LayoutNames()
    names.tile(blocked((16, 32), 4, 4))
    assert any("_owner = (ts_warp() & 12) == 0;" in line for line in names.variables(12))


def test_findings_name_the_barriers_of_rings() -> None:
    kernel = texts.target(2)["interleave"].kernel()
    (ring,) = [op for op in kernel.body.ops if op.name == "ring"]
    places = Places(emit([kernel])[0], kernel)
    names = [places.shared_name(ring.attributes["offset"] + 8 * number, None) for number in range(4)]
    assert names == [f"'ring' ({side}, slot {slot})" for side in ("full", "empty") for slot in range(2)]
    assert places.shared_name(ring.attributes["offset"] + 32, None).startswith("shared byte")
