"""Roles as CUDA: the text, what the assembler makes of it, and its values on the emulator."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from tessera.codegen_cuda.emit import emit
from tessera.codegen_cuda.layouts import LayoutNames
from tessera.errors import InternalError
from tessera.ir.layout import RegisterLayout, blocked
from tessera.program import Program
from tessera.runtime.execute import emulate
from tessera.runtime.findings import Places
from tessera.target.fragments import accumulator_layout, operand_b_layout
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


TWELVE = [  # of a part of the warps, of groups that share out rows or columns, and of groups that hold the same
    blocked((16, 32), 4, 4),
    blocked((192, 64), 12, 8),
    blocked((8, 384), 12, 8),
    blocked((8, 64), 12, 8),
    blocked((3, 5), 12, 1),
    accumulator_layout((384, 64), (12, 1)),
    accumulator_layout((96, 32), (6, 1)),
    accumulator_layout((32, 96), (2, 6)),
    operand_b_layout((16, 96), (4, 3)),
    operand_b_layout((16, 96), (12, 1)),
]


@pytest.mark.parametrize("first", [0, 12])
@pytest.mark.parametrize("layout", TWELVE, ids=str)
def test_places_and_owners_among_twelve_warps(layout: RegisterLayout, first: int) -> None:
    """What the text computes of a thread of a team, evaluated: its place, and that each element has one owner."""
    names, python = LayoutNames(), {"/": "//", "&&": "and", "true": "True", "ts_lane()": "lane", "ts_warp()": "warp"}
    name, axes = names.tile(layout), range(len(layout.shape))
    assigned = dict(re.findall(r"(\w+) = (.*?)(?=, L|;)", " ".join(names.variables(12))))
    spelled = re.compile("|".join(map(re.escape, python)))
    owned: list[tuple[int, ...]] = []
    for warp, lane in itertools.product(range(12), range(32)):
        values: dict[str, int] = {"lane": lane, "warp": first + warp}
        for key, text in assigned.items():
            values[key] = eval(spelled.sub(lambda match: python[match[0]], text), {}, values)
        place = tuple(values[f"{name}_t{axis}"] for axis in axes)
        assert place == layout.coordinates(0, lane, warp % layout.warps)
        owned += [place] * values[f"{name}_owner"]
    assert len(set(owned)) == len(owned)
    held = layout.all_coordinates()[:, :, 0].reshape(-1, len(layout.shape))
    assert set(owned) == {tuple(place) for place in held.tolist()}


def test_findings_name_the_barriers_of_rings() -> None:
    kernel = texts.target(2)["interleave"].kernel()
    (ring,) = [op for op in kernel.body.ops if op.name == "ring"]
    places = Places(emit([kernel])[0], kernel)
    names = [places.shared_name(ring.attributes["offset"] + 8 * number, None) for number in range(4)]
    assert names == [f"'ring' ({side}, slot {slot})" for side in ("full", "empty") for slot in range(2)]
    assert places.shared_name(ring.attributes["offset"] + 32, None).startswith("shared byte")
