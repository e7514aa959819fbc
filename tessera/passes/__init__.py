"""The pass pipeline, in order, with the reason for each place.

A pass takes a kernel and a `Context` and returns a new kernel of the same meaning, or several that are launched one
after the other. The IR verifies before and after each one. Passes that are `exact` change no bit of any output, and no
pass does where it leaves a kernel as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tessera.ir.core import Kernel
from tessera.ir.opdef import GRAPH, TARGET, TILE
from tessera.passes.canonicalise import canonicalise
from tessera.passes.choose_formats import choose_formats
from tessera.passes.choose_schedule import choose_schedule
from tessera.passes.defer_sums import defer_sums
from tessera.passes.distribute import distribute
from tessera.passes.fold_scales import fold_scales
from tessera.passes.form_clusters import form_clusters
from tessera.passes.fuse import fuse
from tessera.passes.graph_simplify import drop_placement, inline_scopes, simplify
from tessera.passes.hoist_invariants import hoist_invariants
from tessera.passes.hoist_loads import hoist_loads
from tessera.passes.hoist_tiles import hoist_tiles
from tessera.passes.insert_barriers import insert_barriers
from tessera.passes.interleave import interleave
from tessera.passes.lower_to_target import lower_to_target
from tessera.passes.merge_products import merge_products
from tessera.passes.merge_slices import merge_slices
from tessera.passes.order_copies import order_copies
from tessera.passes.order_programs import order_programs
from tessera.passes.persist import persist
from tessera.passes.pipeline import pipeline
from tessera.passes.place_shared import place_shared
from tessera.passes.place_sums import place_sums
from tessera.passes.precision import precision
from tessera.passes.prefetch_loads import prefetch_loads
from tessera.passes.promote_buffers import buffers_to_promote, promote_buffers
from tessera.passes.rematerialise import rematerialise
from tessera.passes.share_barriers import share_barriers
from tessera.passes.share_divisors import share_divisors
from tessera.passes.specialise import bind_decisions, specialise
from tessera.passes.split_k import split_k
from tessera.passes.split_panels import split_panels
from tessera.passes.split_prologue import split_prologue
from tessera.passes.split_roles import split_roles
from tessera.passes.squeeze_loads import squeeze_loads
from tessera.passes.stack_invariants import stack_invariants
from tessera.passes.stage_operands import stage_operands
from tessera.passes.subtile import subtile
from tessera.target.arch import Arch
from tessera.target.schedule import Schedule, schedule_of


@dataclass
class Context:
    """What passes may ask. `schedule` overrides the default point for the kernel. `sizes` are the dims that it is
    compiled for; no code may depend on those that are not `static`.
    """

    arch: Arch
    static: dict[str, int] = field(default_factory=dict)
    divisors: dict[str, int] = field(default_factory=dict)
    alignment: dict[str, int] = field(default_factory=dict)
    schedule: Schedule | None = None
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """`level` is that of the kernel it returns; `exact` says that outputs keep every bit."""

    name: str
    run: Callable[[Kernel, Context], Kernel | list[Kernel]]
    level: str = TILE
    exact: bool = True


PIPELINE: tuple[Pass, ...] = (
    # First: every later pass reads integer shapes.
    Pass("specialise", lambda k, c: specialise(k, c.static, c.divisors, c.alignment)),
    # Dead buffers must not count when the schedule is chosen.
    Pass("canonicalise", lambda k, c: canonicalise(k)),
    # Buffers that become tiles ask for registers, or for slices, when the schedule is chosen.
    Pass("promote_buffers", lambda k, c: promote_buffers(k, buffers_to_promote(k, c.arch))),
    # Before the schedule is chosen: the sums have more registers behind it. Schedules that slice columns see it done.
    Pass("defer_sums", lambda k, c: defer_sums(k), exact=False),
    # The choice is written into the IR, where every later pass reads it and a reader sees it.
    Pass("choose_schedule", lambda k, c: choose_schedule(k, c.arch, c.schedule)),
    # While an operand is one value; what it leaves is cut and staged like any other kernel.
    Pass("split_prologue", lambda k, c: split_prologue(k, schedule_of(k))),
    # Before operands are staged: a streamed operand becomes a load in a K loop, which staging turns into a copy.
    Pass("subtile", lambda k, c: subtile(k, schedule_of(k))),
    # Before anything is shared between iterations: loops over rows that are programs of their own.
    Pass("distribute", lambda k, c: distribute(k)),
    # After the loop over K is there (`subtile` may make it) and the grid counts all programs that share its products.
    Pass("split_k", lambda k, c: split_k(k, schedule_of(k), c.sizes), exact=False),
    # After the grid has its last shape; before programs are put in order, which then are whole clusters.
    Pass("form_clusters", lambda k, c: form_clusters(k, schedule_of(k))),
    # Loads of parts are made by now; before these are cut and staged.
    Pass("squeeze_loads", lambda k, c: squeeze_loads(k)),
    # After the grid has its last shape.
    Pass("order_programs", lambda k, c: order_programs(k, schedule_of(k))),
    # Before tiles are cut, while a load is one.
    Pass("hoist_tiles", lambda k, c: hoist_tiles(k, schedule_of(k))),
    # Before staging, which decides what is copied: each panel is a copy of its own.
    Pass("split_panels", lambda k, c: split_panels(k, schedule_of(k))),
    # After programs are in order, whose ids it replaces.
    Pass("persist", lambda k, c: persist(k, schedule_of(k), c.arch)),
    # Before staging and pipelining, which look for loops by what these carry.
    Pass("place_sums", lambda k, c: place_sums(k, schedule_of(k))),
    # After the last pass that cuts products, whose shape decides; before staging, which asks who computes them.
    Pass("choose_formats", lambda k, c: choose_formats(k, schedule_of(k)), exact=False),
    Pass("stage_operands", lambda k, c: stage_operands(k)),
    # After staging, when operands that do not change from program to program are copies; before stages are shared out.
    Pass("hoist_invariants", lambda k, c: hoist_invariants(k, schedule_of(k), c.arch)),
    # After what all programs load alike, which is loaded first; by iteration of a loop there is more of it.
    Pass("stack_invariants", lambda k, c: stack_invariants(k, schedule_of(k), c.arch)),
    # After staging, which makes copies of other loads; before pipelining, which makes the loops inside harder to see.
    Pass("prefetch_loads", lambda k, c: prefetch_loads(k, schedule_of(k))),
    # Once it is known what is copied and what waits for it. Where roles do the copying there is nothing to pipeline.
    Pass("split_roles", lambda k, c: split_roles(k, schedule_of(k), c.arch)),
    # After staging, which makes the copies of operands; what windows ahead need is folded by the next pass.
    Pass("pipeline", lambda k, c: pipeline(k, schedule_of(k), c.arch)),
    # Offsets that slicing made fold to constants, which widens accesses.
    Pass("canonicalise_slices", lambda k, c: canonicalise(k)),
    Pass("lower_to_target", lambda k, c: lower_to_target(k, schedule_of(k), c.arch), TARGET),
    # Layouts say how many registers share a divisor; reciprocals that are made twice are merged by the next pass.
    Pass("share_divisors", lambda k, c: share_divisors(k), TARGET),
    # Numbers are numbers still, and tiles parts of products; the products that are left over go with the next pass.
    Pass("fold_scales", lambda k, c: fold_scales(k), TARGET),
    # A layout change or a fragment loop leaves unused values and repeated constants behind.
    Pass("canonicalise_target", lambda k, c: canonicalise(k), TARGET),
    # Before loads are hoisted, which would stand in front of copies.
    Pass("order_copies", lambda k, c: order_copies(k), TARGET),
    # After merging, when every load that stays is known; before barriers, which would hold loads back.
    Pass("hoist_loads", lambda k, c: hoist_loads(k), TARGET),
    # After loads are hoisted, which nothing moves past; before placement, which asks how long buffers are used.
    Pass("share_barriers", lambda k, c: share_barriers(k), TARGET),
    # Placement before barriers: buffers that share bytes need barriers between them.
    Pass("place_shared", lambda k, c: place_shared(k, c.arch), TARGET),
    Pass("insert_barriers", lambda k, c: insert_barriers(k), TARGET),
    # Where barriers are tells what waits; before tiles are cut, which takes fewer parts where less is live.
    Pass("rematerialise", lambda k, c: rematerialise(k), TARGET),
    # Last: loads lie where they start, and what no barrier separates may be done in another order.
    Pass("interleave", lambda k, c: interleave(k, c.arch), TARGET),
)


GRAPH_PIPELINE: tuple[Pass, ...] = (
    # First: a slice of all of an axis whose size a decision has used is the tensor itself.
    Pass("bind_decisions", lambda k, c: bind_decisions(k, c.static), GRAPH),
    # Regions and placement are for a backward pass and for several devices; one device runs straight-line code.
    Pass("inline_scopes", lambda k, c: inline_scopes(k), GRAPH),
    Pass("drop_placement", lambda k, c: drop_placement(k), GRAPH),
    # Sums of stacked tensors become additions, which merging sees through; equal computations become one.
    Pass("simplify", lambda k, c: simplify(k), GRAPH),
    # While slices are still computed alike, op by op.
    Pass("merge_slices", lambda k, c: merge_slices(k), GRAPH),
    # Before lowering, which decides which implicit roundings a kernel does without. Products of operands that were cast
    # to f32 are multiplied as what they were cast from: their sums are in another order.
    Pass("precision", lambda k, c: precision(k), GRAPH, exact=False),
    # Casts that cancel, and what merging left.
    Pass("simplify_casts", lambda k, c: simplify(k), GRAPH),
    # Behind casts, which products of the same kind have alike; what shares a kernel is decided on what is left.
    Pass("merge_products", lambda k, c: merge_products(k, c.static), GRAPH),
    # Last: what shares a kernel is decided once, on the ops that are left.
    Pass("fuse", lambda k, c: fuse(k, c.static), GRAPH),
)


def pass_named(name: str) -> Pass | None:
    return next((p for p in (*GRAPH_PIPELINE, *PIPELINE) if p.name == name), None)
