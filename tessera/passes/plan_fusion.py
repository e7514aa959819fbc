"""Which ops of a function share a kernel, and why others do not.

Every op that computes rows starts as a cluster of its own. In program order, an op's cluster merges with those of its
operands, the one that saves the most bytes first; then clusters merge that read the same rows. Two merge unless a rule
refuses (`refusal`): their rows differ, one of them needs all of what the other makes in memory, something between them
would have to run in the middle of their kernel, or the cost model of `fusion_cost` says that it does not pay. At the
end a cluster is cut where storing a value would compute a product twice; one that walks over its lines never does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tessera.ir.core import Block, Kernel, Op, Value, uses
from tessera.ir.dims import Size
from tessera.ir.opdef import CONSTANT, ELEMENTWISE
from tessera.ir.types import TileType, dtype_of, shape_of, shape_text
from tessera.passes.fusion_cost import Sizes, count, row_cost, why_no_loop
from tessera.passes.graph_access import access, rows_in_place, unit
from tessera.passes.graph_attention import WIDEST_HEAD, Attention, find_attention
from tessera.passes.graph_groups import (
    Group,
    columns_of,
    is_alias,
    is_along,
    is_batched,
    is_copied,
    is_free,
    is_loaded,
    is_made_again,
    is_row_op,
    is_scalar_op,
    is_view,
    is_widening,
    one_row,
    rows_of,
    source_of,
)
from tessera.passes.line_programs import line_programs, walks, why_no_lines
from tessera.passes.sibling_products import line_of, why_apart

WIDEST_F32_PRODUCT = 128  # columns of a right operand that a program has all of where f32 is multiplied
WIDEST_ROW = 1 << 15  # that a program holds
WIDEST_CAST = 1 << 13  # elements of a right operand that is cast behind its load: registers of a program hold all of it
WIDEST_VIEW = 4096  # columns of rows that are read in place: kernels are made for their number
MOST_PRODUCTS = 16  # of a kernel: each is code of its own
MOST_TENSORS = 128  # that a kernel reads and writes: arguments of a launch
MOST_SHARED = 16  # the same, where nothing but a read brings clusters together


ROWS, MOVE, ATTENTION = "rows", "move", "attention"  # kinds of clusters


@dataclass(frozen=True)
class Edge:
    """A tensor that one op makes and another one takes. `bytes`: what it does not cost, or costs, in memory traffic."""

    producer: Op
    consumer: Op
    value: Value
    fused: bool
    bytes: Size
    why: str


@dataclass(eq=False)
class Cluster(Group):
    """A group under construction. `before`: the bits of clusters that must run before it; `kind`: of kernel; `again`:
    ops outside of it that it does once more.
    """

    number: int = 0
    before: int = 0
    kind: str = ROWS
    again: set[Op] = field(default_factory=set)

    @property
    def bit(self) -> int:
        return 1 << self.number


@dataclass
class Fusion:
    """`clusters` in an order in which they can run. `nowhere`: ops without a kernel. `fixed`: dims that decided, with
    their values.
    """

    clusters: list[Cluster] = field(default_factory=list)
    nowhere: set[Op] = field(default_factory=set)
    edges: list[Edge] = field(default_factory=list)
    fixed: dict[str, int] = field(default_factory=dict)


def plan_fusion(function: Kernel, dims: Mapping[str, int]) -> Fusion:
    """The clusters of a function: straight-line code without placement ops."""
    return _Planner(function.body, Sizes(dims)).run()


class _Planner:
    def __init__(self, body: Block, sizes: Sizes) -> None:
        self.body, self.sizes = body, sizes
        self.used = uses(body)
        self.place = {op: place for place, op in enumerate(body.ops)}
        self.clusters: dict[int, Cluster] = {}  # by number; the first op of a cluster gives it
        self.home: dict[Value, Cluster] = {}  # who computes a value
        self.nowhere: set[Op] = set()

    def run(self) -> Fusion:
        attentions = self._attentions()
        for op in self.body.ops:
            if op.name == "return" or is_scalar_op(op) or op.definition.has(CONSTANT) or op in self.nowhere:
                continue
            if op in attentions:
                if attentions[op].result.defining_op is op:
                    self._attend(attentions[op])
            elif is_alias(op) or self._nowhere(op):
                self.nowhere.add(op)
            else:
                self._add(op)
        self._sink()
        self._join()
        self._share_reads()
        for cluster in list(self.clusters.values()):
            if cluster.kind == ROWS and not walks(cluster.ops, self.sizes):
                self._cut(cluster)
        self._sink()
        clusters = self._ordered()
        for cluster in clusters:
            cluster.outputs = self.outputs(cluster)
        return Fusion(clusters, self.nowhere, self._edges(), self.sizes.fixed)

    # -- attention

    def _attentions(self) -> dict[Op, Attention]:
        """The attention that each op is part of. Masks that nothing else needs have no kernel."""
        found: dict[Op, Attention] = {}
        free: set[Op] = set()
        for op in self.body.ops:
            made = find_attention(op, self.used) if op.name == "matmul" else None
            if made is not None and self._width(made) <= WIDEST_HEAD and not any(each in found for each in made.ops):
                found.update(dict.fromkeys(made.ops, made))
                free |= made.free
        for op in reversed(self.body.ops):
            if op in free and all(user in found or user in self.nowhere for user in self.used.get(op.results[0], [])):
                self.nowhere.add(op)
        return found

    def _width(self, made: Attention) -> int:
        widths = (made.first.operands[0], made.second.operands[1])
        return max(self.sizes.decide(columns_of(shape_of(value.type))) for value in widths)

    def _attend(self, made: Attention) -> None:
        ops = sorted(made.ops, key=lambda op: self.place[op])
        cluster = Cluster(ops, rows_of(shape_of(made.scores.type)), number=self.place[ops[-1]], kind=ATTENTION)
        cluster.again = made.free
        self._place(cluster)

    def _place(self, cluster: Cluster) -> None:
        """A cluster of ops whose operands are known."""
        for op in cluster.ops:
            self.home.update(dict.fromkeys(op.results, cluster))
        for maker in (maker for op in cluster.ops for value in op.operands for maker in self.makers(value)):
            if maker is not cluster:
                cluster.before |= maker.before | maker.bit
        self.clusters[cluster.number] = cluster

    # -- ops without a kernel

    def _nowhere(self, op: Op) -> bool:
        """Whether all users of an op make its result again, or read it in place."""
        users = self.used.get(op.result, []) if len(op.results) == 1 else []
        if is_view(op):
            if users and all(self._reads_in_place(op.result, user) for user in users):
                return True
            return False
        if is_widening(op):
            return all(self._reads_in_place(op.result, user) for user in users)
        if not is_made_again(op):
            return False
        return all(
            is_copied(op) and op.result is not user.operands[1]
            if user.name == "matmul"
            else _takes_rows(user) and not (is_widening(user) and is_loaded(user.result, self.used))
            for user in users
        )

    def _reads_in_place(self, value: Value, user: Op) -> bool:
        """Whether a user of a value that is no tensor in memory reads it through windows, or makes it again."""
        if is_view(user) or unit(user) and access(value, self._through).viewed:
            after = self.used.get(user.result, [])
            return bool(after) and all(self._reads_in_place(user.result, other) for other in after)
        if user.name == "matmul":
            if value is user.operands[1] and self._computed(value) > WIDEST_CAST:
                return False
            return is_batched(user) or value is not user.operands[0] or self._is_rows(value)
        return _takes_rows(user) and self._is_rows(value)

    def _computed(self, value: Value) -> int:
        """Elements of a right operand that a kernel would cast in registers; 0 where it is loaded as it is."""
        source = value
        while (op := source.defining_op) is not None and self._through(op) and (is_view(op) or unit(op)):
            source = op.operands[0]
        if op is None or not is_widening(op) or not self._through(op):
            return 0
        depth, columns = (self.sizes.decide(size) for size in shape_of(value.type)[-2:])
        return depth * columns if columns <= WIDEST_F32_PRODUCT else 0  # of more, a few columns are computed at a time

    def _through(self, op: Op) -> bool:
        """Whether nothing has an op's result in memory, as far as is known."""
        return op.results[0] not in self.home

    def _is_rows(self, value: Value) -> bool:
        found, shape = access(value, self._through), shape_of(value.type)
        if not found.viewed:
            return True
        if not one_row(shape) and rows_in_place(value, found) is None:
            return False
        return self.sizes.decide(columns_of(shape)) <= WIDEST_VIEW

    # -- clusters

    def _add(self, op: Op) -> None:
        kind = ROWS if is_row_op(op) else MOVE
        rows = rows_of(shape_of(op.results[0].type))
        cluster = Cluster([op], rows, is_batched(op), number=self.place[op], kind=kind)
        self._place(cluster)
        if kind != ROWS:
            return
        producers = {maker.number: maker for value in op.operands for maker in self.makers(value)}
        for maker in sorted(producers.values(), key=lambda c: (-self._weight(c, op), -c.number)):
            if maker.number in self.clusters and maker is not cluster and self.refusal(maker, cluster) is None:
                cluster = self._merge(maker, cluster)

    def _weight(self, maker: Cluster, op: Op) -> int:
        """Bytes per row of what an op takes of a cluster; unknown sizes count as a few."""
        values = [source_of(v, set(maker.results)) for v in op.operands if maker in self.makers(v)]
        sizes = [columns_of(shape_of(value.type)) for value in values if isinstance(value.type, TileType)]
        return sum(self.sizes.guess(size) for size in sizes)

    def makers(self, value: Value) -> list[Cluster]:
        """The clusters that must have run before a value can be read or made again."""
        found: dict[int, Cluster] = {}
        pending = [value]
        while pending:
            current = pending.pop()
            if current in self.home:
                found[self.home[current].number] = self.home[current]
            elif current.defining_op is not None:
                pending += current.defining_op.operands
        return list(found.values())

    def _merge(self, first: Cluster, second: Cluster) -> Cluster:
        """One cluster of two, under the number of the earlier one."""
        into, gone = sorted((first, second), key=lambda c: c.number)
        into.ops = sorted([*into.ops, *gone.ops], key=lambda op: self.place[op])
        into.batched = into.batched or gone.batched
        both = into.bit | gone.bit
        into.before = (into.before | gone.before) & ~both
        del self.clusters[gone.number]
        for op in gone.ops:
            self.home.update(dict.fromkeys(op.results, into))
        for other in self.clusters.values():
            if other.before & both:
                other.before = (other.before | into.before | into.bit) & ~gone.bit
        return into

    # -- rules

    def refusal(self, first: Cluster, second: Cluster) -> str | None:
        """Why two clusters are not one kernel, in the terms of the author's ops, or None."""
        for cluster in (first, second):
            if cluster.kind == MOVE:
                return f"'{cluster.ops[0].name}' has a kernel of its own: it moves whole tensors"
            if cluster.kind == ATTENTION:
                return "attention has a kernel of its own: it walks over its keys"
        if first.rows != second.rows:
            return f"rows {shape_text(first.rows)} and {shape_text(second.rows)} are not the same"
        return self._reads(first, second) or self._between(first, second) or self._fits(first, second)

    def _reads(self, first: Cluster, second: Cluster) -> str | None:
        """Whether one needs in memory what the other makes."""
        for maker, user in ((first, second), (second, first)):
            made = maker.results
            for op in user.ops:
                for value in op.operands:
                    if maker not in self.makers(value):
                        continue
                    source = source_of(value, made)
                    if op.name == "matmul" and value is op.operands[1]:
                        return "a product reads its right operand whole: it must be in memory"
                    if source not in made:
                        return "it is read in another shape or place than it is made in: it must be in memory"
        return None

    def _between(self, first: Cluster, second: Cluster) -> str | None:
        both = first.bit | second.bit
        for number, other in self.clusters.items():
            needs, needed = other.before & both, (first.before | second.before) >> number & 1
            if needs and needed and not other.bit & both:
                return f"'{other.ops[0].name}', a kernel of its own, runs between them"
        return None

    def _fits(self, first: Cluster, second: Cluster) -> str | None:
        ops = sorted([*first.ops, *second.ops], key=lambda op: self.place[op])
        products = [op for op in ops if op.name == "matmul"]
        if len(products) > MOST_PRODUCTS:
            return f"a kernel has at most {MOST_PRODUCTS} products"
        read = self._read(ops)
        if len(read) > MOST_TENSORS:
            return f"a kernel takes at most {MOST_TENSORS} tensors"
        if not products:
            return None
        why = why_no_lines(ops, self._stored(ops), self._again, self.sizes)
        if why is not None:
            return why
        hard: set[Value] = set()
        decided = False
        for op in ops:
            behind = any(source_of(value, hard) in hard for value in op.operands)
            decided |= is_along(op) or op.name == "matmul" and behind
            if behind or op.name == "matmul":
                hard.update(op.results)
        return self._costs(first, second, ops, read) if decided else why_no_loop(products, self.sizes)

    def _again(self, op: Op) -> bool:
        """Whether a kernel does an op once more that has none of its own."""
        return op in self.nowhere

    def _cost(self, ops: list[Op], read: list[Value]) -> int:
        stored = self._stored(ops)
        return row_cost(ops, read, stored, self.sizes, line_programs(ops, stored, self._again, self.sizes))

    def _costs(self, first: Cluster, second: Cluster, ops: list[Op], read: list[Value]) -> str | None:
        apart = sum(self._cost(c.ops, self._read(c.ops)) for c in (first, second))
        together = self._cost(ops, read)
        if together <= apart:
            return None
        return f"it costs more: {together} bytes a row as one kernel, {apart} as two, since lines are held whole"

    def _read(self, ops: list[Op]) -> list[Value]:
        """The tensors of rows that ops read and do not make."""
        made = {result for op in ops for result in op.results}
        found: dict[Value, None] = {}
        for op in ops:
            for value in op.operands[:1] if op.name == "matmul" else op.operands:
                pending = [value]
                while pending:
                    current = pending.pop()
                    by = current.defining_op
                    if current in made or not isinstance(current.type, TileType):
                        continue
                    if by is not None and by in self.nowhere and not is_alias(by) and not is_view(by):
                        pending += by.operands
                    else:
                        found[current] = None
        return list(found)

    def outputs(self, cluster: Cluster) -> list[Value]:
        return self._stored(cluster.ops)

    def _stored(self, ops: Iterable[Op]) -> list[Value]:
        """The values of ops that something else needs, itself or made again from it."""
        inside = set(ops)
        return [result for op in ops for result in op.results if self._leaves(result, inside)]

    def _leaves(self, value: Value, inside: set[Op]) -> bool:
        for user in self.used.get(value, []):
            if user in inside:
                continue
            if user not in self.nowhere or not is_copied(user):
                return True
            if self._leaves(user.result, inside) or not self.used.get(user.result):
                return True
        return False

    # -- where a cluster ends

    def _sink(self) -> None:
        """Moves ops that only another cluster needs into that one where it stores less."""
        for cluster in sorted(self.clusters.values(), key=lambda c: -c.number):
            for op in reversed(list(cluster.ops)):
                target = self._sinks(cluster, op)
                if target is not None:
                    cluster.ops.remove(op)
                    target.ops = sorted([op, *target.ops], key=lambda each: self.place[each])
                    self.home.update(dict.fromkeys(op.results, target))
                    if not cluster.ops:
                        del self.clusters[cluster.number]

    def _sinks(self, cluster: Cluster, op: Op) -> Cluster | None:
        """The one cluster that needs the result of an elementwise op and would rather read its operands."""
        if cluster.kind != ROWS or not op.definition.has(ELEMENTWISE) or not self._leaves(op.result, set(cluster.ops)):
            return None
        users = self._users(op.result)
        targets = {self.home[user.results[0]].number: self.home[user.results[0]] for user in users if user.results}
        if len(targets) != 1 or any(user.name == "return" for user in users):
            return None
        (target,) = targets.values()
        if target is cluster or target.kind != ROWS or target.rows != cluster.rows or self._reads(cluster, target):
            return None
        rest = [other for other in cluster.ops if other is not op]
        old, read = {*self._stored(cluster.ops)}, {*self._read(target.ops)}
        stored = [value for value in self._stored(rest) if value not in old]
        taken = [value for value in self._read([op]) if value not in read]
        shapes = {columns_of(shape_of(value.type)) for value in (op.result, *stored, *taken) if not _one_row(value)}
        size = 1 if len(shapes) == 1 else None  # bytes are compared without looking at sizes that are the same
        less = 2 * self._row_bytes([op.result], size)
        return target if less > 2 * self._row_bytes(stored, size) + self._row_bytes(taken, size) else None

    def _users(self, value: Value) -> list[Op]:
        """The ops that need a value, itself or made again from it or in another shape."""
        found: list[Op] = []
        pending = [value]
        while pending:
            for user in self.used.get(pending.pop(), []):
                if user in self.nowhere:
                    pending += user.results
                else:
                    found.append(user)
        return found

    def _row_bytes(self, values: Iterable[Value], columns: int | None) -> int:
        """Bytes per row of tensors of so many columns; None: of as many as they have."""
        return sum(
            (columns or self.sizes.decide(columns_of(shape_of(value.type)))) * dtype_of(value.type).bytes
            for value in values
            if not _one_row(value)
        )

    def _join(self) -> None:
        """Merges clusters with those that they read, once it is known what else is in both: the whole may be cheaper
        where a part of it was not.
        """
        for number in sorted(self.clusters):
            joined = True
            while joined and number in self.clusters:
                cluster = self.clusters[number]
                makers = {m.number: m for op in cluster.ops for value in op.operands for m in self.makers(value)}
                joined = False
                for maker in sorted(makers.values(), key=lambda c: -c.number):
                    if maker is not cluster and self.refusal(maker, cluster) is None:
                        number, joined = self._merge(maker, cluster).number, True
                        break

    # -- clusters that read the same

    def _share_reads(self) -> None:
        """Merges clusters that read the same rows, where no product is involved: one reads for both."""
        readers: dict[Value, list[Cluster]] = {}
        for cluster in self.clusters.values():
            if cluster.kind == ROWS and not cluster.products:
                for value in self._read(cluster.ops):
                    if rows_of(shape_of(value.type)) == cluster.rows and not one_row(shape_of(value.type)):
                        readers.setdefault(value, []).append(cluster)
        for value, clusters in readers.items():
            into: Cluster | None = None
            for cluster in clusters:
                cluster = next((c for c in self.clusters.values() if cluster.ops[0] in c.ops), cluster)
                if into is None or into is cluster:
                    into = cluster
                elif self._may_share(into, cluster, value):
                    into = self._merge(into, cluster)

    def _may_share(self, first: Cluster, second: Cluster, value: Value) -> bool:
        ops = [*first.ops, *second.ops]
        if len({*self._read(ops), *self._stored(ops)}) > MOST_SHARED:
            return False
        shapes = {shape_of(result.type) for op in ops for result in op.results}
        if len(shapes) > 1 and max(self.sizes.decide(columns_of(shape)) for shape in shapes) > WIDEST_ROW:
            return False
        return self.refusal(first, second) is None

    # -- after clusters are known

    def _cut(self, cluster: Cluster) -> None:
        """Cuts a cluster into parts of which none computes a product more than once, as each stored tensor would: where
        a value behind a product is stored and others follow, the first part ends with the last value that alone leads
        on.
        """
        for product in cluster.products:
            end = self._end(cluster, product)
            if end is None:
                continue
            ops = cluster.ops
            cluster.ops = ops[: end + 1]
            rest = Cluster(ops[end + 1 :], cluster.rows, any(map(is_batched, ops[end + 1 :])))
            rest.number = self.place[rest.ops[0]]
            cluster.batched = any(map(is_batched, cluster.ops))
            self.clusters[rest.number] = rest
            for op in rest.ops:
                self.home.update(dict.fromkeys(op.results, rest))
            self._cut(cluster)
            self._cut(rest)
            return

    def _end(self, cluster: Cluster, product: Op) -> int | None:
        """The place of the last op of a first part, or None where nothing is to be cut."""
        made, inside = cluster.results, set(cluster.ops)
        behind = {product.result}
        end = cluster.ops.index(product)
        for place, op in enumerate(cluster.ops):
            if op is not product and not _takes(op, behind, made):
                continue
            behind.update(op.results)
            rest = cluster.ops[place + 1 :]
            follow = any(_takes(later, behind, made) for later in rest)
            if len(self._lead_on(behind, rest, inside, made)) == 1:
                end = place
            if follow and any(self._leaves(result, inside) for result in op.results):
                return end
        return None

    def _lead_on(self, behind: set[Value], rest: list[Op], inside: set[Op], made: set[Value]) -> list[Value]:
        """Those of some values that the rest of a cluster, or something outside of it, needs."""
        return [
            value for value in behind if any(_takes(op, {value}, made) for op in rest) or self._leaves(value, inside)
        ]

    def _ordered(self) -> list[Cluster]:
        """All clusters, each behind those that it needs, else in program order."""
        needs = {
            cluster: {maker for op in cluster.ops for value in op.operands for maker in self.makers(value)} - {cluster}
            for cluster in self.clusters.values()
        }
        ordered: dict[Cluster, None] = {}
        for cluster in sorted(needs, key=lambda c: self.place[c.ops[0]]):
            pending = [cluster]
            while pending:
                missing = [other for other in needs[pending[-1]] if other not in ordered]
                if missing:
                    pending += sorted(missing, key=lambda c: -self.place[c.ops[0]])
                else:
                    ordered[pending.pop()] = None
        return list(ordered)

    # -- the report

    def _edges(self) -> list[Edge]:
        found = []
        for op in self.body.ops:
            if op.name == "return" or is_scalar_op(op):
                continue
            for value in dict.fromkeys(op.operands):
                producer = value.defining_op
                if producer is not None and isinstance(value.type, TileType):
                    found.append(Edge(producer, op, value, *self._explain(producer, op, value)))
        return found

    def _explain(self, producer: Op, consumer: Op, value: Value) -> tuple[bool, Size, str]:
        bytes_ = count(shape_of(value.type)) * dtype_of(value.type).bytes
        if is_alias(producer):
            return True, 0, "the same memory in another shape"
        if is_alias(consumer):
            return True, 0, "the same memory in another shape"
        if producer in self.nowhere:
            what = "read in place" if is_view(producer) else "made where it is used"
            return True, 2 * bytes_, what
        first, second = self.home[value], self.home.get(consumer.results[0])
        if consumer in self.nowhere:
            return True, 2 * bytes_, "made where it is used" if not is_view(consumer) else "read in place"
        assert second is not None
        if first is second:
            stored = value in first.outputs
            return True, bytes_ if stored else 2 * bytes_, "one kernel" + (", which stores it too" if stored else "")
        why = self.refusal(first, second) or "storing it inside of a kernel would compute a product twice"
        return False, 2 * bytes_, why + self._beside(consumer, value)

    def _beside(self, product: Op, value: Value) -> str:
        """Why a product is no part of one with another of its left operand, if there is one in another kernel."""
        if product.name == "matmul" and value is product.operands[0]:
            for other in self.used[value]:
                apart = other.name == "matmul" and self.home[other.result] is not self.home[product.result]
                if apart and value is other.operands[0]:
                    return f"; no product with that of line {line_of(other)}: {why_apart(product, other, self.used)}"
        return ""


def _one_row(value: Value) -> bool:
    return one_row(shape_of(value.type))


def _takes_rows(op: Op) -> bool:
    """Whether an op that is no product makes rows of rows."""
    return is_row_op(op) and not is_free(op)


def _takes(op: Op, values: set[Value], made: set[Value]) -> bool:
    return any(source_of(value, made) in values for value in op.operands)


__all__ = [
    "ATTENTION", "MOST_PRODUCTS", "MOVE", "ROWS", "Cluster", "Edge", "Fusion", "plan_fusion",
]  # fmt: skip
