"""What passes make of roles: the same values at every stage, and a place, barriers and an order that rings allow."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.errors import SourceError
from tessera.ir.core import Kernel, Op
from tessera.ir.parser import parse_module
from tessera.ir.printer import print_module
from tessera.ir.stages import allocated_bytes
from tessera.ir.verify import verify
from tessera.passes.canonicalise import canonicalise
from tessera.passes.insert_barriers import insert_barriers
from tessera.target.arch import arch
from tessera.target.cost import cost
from tests import role_texts as texts


def named(kernel: Kernel, name: str) -> list[Op]:
    return [op for op in kernel.body.walk() if op.name == name]


@pytest.mark.parametrize(("stages", "edits"), [(1, ()), (3, ()), (2, texts.THROUGH_SHARED)])
def test_every_stage_gives_the_same(stages: int, edits: tuple[tuple[str, str], ...]) -> None:
    for name, module in texts.target(stages, edits).items():
        for seed in (None, 1):
            got, wanted = texts.run(module.kernel(), 100, seed, module.level)
            np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_places() -> None:
    """Buffers start where the swizzles of TMA repeat; what the roles share overlaps with nothing."""
    kernel = texts.target(3, texts.THROUGH_SHARED)["interleave"].kernel()
    placed = [*named(kernel, "shared"), *named(kernel, "ring")]
    assert [op.attributes["offset"] % (16 if op.name == "ring" else 1024) for op in placed] == [0] * 4
    spans = sorted((op.attributes["offset"], op.attributes["offset"] + allocated_bytes(op)) for op in placed)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert kernel.attributes["shared_bytes"] == spans[-1][1] and spans[-1][1] - spans[-1][0] == 48


def test_barriers_are_those_of_the_consumers() -> None:
    """One between the write and the reads, one before the write of the next tile; rings need none."""
    kernel = texts.target(3, texts.THROUGH_SHARED)["interleave"].kernel()
    barriers = named(kernel, "barrier")
    assert [(op.attributes["id"], op.attributes["threads"]) for op in barriers] == [(1, 256)] * 2
    inside = {op.id for op in named(kernel, "roles")[0].regions[1].walk()}
    assert all(op.id in inside for op in barriers)
    assert not named(texts.target(3)["interleave"].kernel(), "barrier")
    for threads, message in (("128", "a barrier of 128 threads, of consumers that have 256"), ("", "no barrier lies")):
        text = print_module(texts.target(3, texts.THROUGH_SHARED)["interleave"])
        first = next(line for line in text.splitlines() if "barrier" in line)
        edited = text.replace(first + "\n", first.replace("256", threads) + "\n" if threads else "", 1)
        with pytest.raises(SourceError, match=message):
            verify(parse_module(edited), barriers=True, placed=True)


def test_an_authors_barrier_becomes_one_of_its_role() -> None:
    kernel = insert_barriers(texts.kernel(3, {"      store %w, %sum\n": "      barrier\n      store %w, %sum\n"}))
    assert [(op.attributes["id"], op.attributes["threads"]) for op in named(kernel, "barrier")] == [(1, 256)]


def test_nothing_that_a_ring_orders_is_dropped_or_moved() -> None:
    """Even a buffer that nobody reads is filled: its bytes are announced."""
    unread = {
        "        %tb: tile<[16, 32], f32> = read %bt\n": "",
        "mul %ta, %tb": "mul %ta, %ta",
        "%ta, %tb\n": "%ta\n",
    }
    kernel = canonicalise(texts.kernel(3, unread))
    assert len(named(kernel, "tma_load")) == 2 and len(named(kernel, "ring")) == 1
    for module in texts.target(3).values():
        for region, order in zip(
            named(module.kernel(), "roles")[0].regions, ("acquire expect", "wait release"), strict=True
        ):
            found = [op.name for op in region.walk() if op.name.startswith("ring_") or op.name == "tma_load"]
            first, second = (f"ring_{verb}" for verb in order.split())
            assert found == [first, second, *["tma_load"] * (2 if first == "ring_acquire" else 0)]
        consumers = [op.name for op in named(module.kernel(), "roles")[0].regions[1].walk()]
        reads = [place for place, name in enumerate(consumers) if name in ("read", "ld_shared")]
        assert consumers.index("ring_wait") < min(reads) and max(reads) < consumers.index("ring_release")


def test_rings_are_not_merged() -> None:
    second = "  %ring2: ring<3> = ring {stages = 3, arrivals = 8}\n"
    ring = "  %ring: ring<3> = ring {stages = 3, arrivals = 8}\n"
    edits = {
        ring: ring + second,
        "        tma_load %bt, %wy, %ring, %t\n": "        ring_acquire %ring2, %t, %q\n"
        "        ring_expect %ring2, %t {bytes = 2048}\n        tma_load %bt, %wy, %ring2, %t\n",
        "{bytes = 4096}": "{bytes = 2048}",
        "        ring_release %ring, %t, %ta, %tb\n": "        ring_release %ring, %t, %ta\n"
        "        ring_release %ring2, %t, %tb\n",
        "        %bt: buffer<[16, 32], f32> = stage %b, %t\n        %tb": "        ring_wait %ring2, %t, %q\n"
        "        %bt: buffer<[16, 32], f32> = stage %b, %t\n        %tb",
    }
    module = texts.target(3, tuple(edits.items()))["interleave"]
    assert len(named(module.kernel(), "ring")) == 2
    got, wanted = texts.run(module.kernel(), 100, 3, "target")
    np.testing.assert_array_equal(got, wanted)


def test_predicted_cost_counts_all_threads() -> None:
    """Roles that move registers have all of them; without, as many blocks fit as the threads of all warps allow."""
    for edits, blocks in (((), 1), ((("(40, 232)", "(0, 0)"),), 3)):
        predicted = cost(texts.target(3, edits)["interleave"].kernel(), arch("sm_90a"), {"M": 4096})
        assert 0 < predicted.seconds < 1e-3 and predicted.blocks_per_sm == blocks
