"""The IR core: values, ops, blocks, kernels, modules, and the builder through which every op is made.

One core serves all levels. An op is its name, operands, attributes, results and regions; everything else about it is
asked of its `OpDef` (`op.definition`). Passes build new blocks and map old values to new ones (`clone_op`), so there
are no use lists to keep right.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tessera.errors import InternalError, SourceError
from tessera.ir.types import Type
from tessera.location import Loc

if TYPE_CHECKING:
    from tessera.ir.opdef import OpDef

_identifiers = itertools.count(1)

# The op table by name, which `opdef.define` fills. It is here because every pass asks every op for its definition.
DEFINITIONS: dict[str, OpDef] = {}


@dataclass(eq=False, slots=True)
class Value:
    """An SSA value: result `index` of op `owner`, or an argument of block `owner`. `name` is a hint for printing."""

    type: Type
    name: str = ""
    owner: Op | Block | None = None
    index: int = 0

    @property
    def defining_op(self) -> Op | None:
        return self.owner if isinstance(self.owner, Op) else None

    def __repr__(self) -> str:
        return f"<value %{self.name or '?'}: {self.type}>"


@dataclass(eq=False, slots=True)
class Op:
    """One operation. `origin` is the ordered union of the source locations it was made from; the first is `loc`."""

    name: str
    operands: list[Value]
    attributes: dict[str, Any]
    results: list[Value]
    regions: list[Block]
    origin: tuple[Loc, ...]
    id: int = field(default_factory=lambda: next(_identifiers))

    @property
    def definition(self) -> OpDef:
        try:  # costs nothing where nothing is raised, and this is asked more often than anything else
            return DEFINITIONS[self.name]
        except KeyError:
            return _declared(self.name)

    @property
    def loc(self) -> Loc | None:
        return self.origin[0] if self.origin else None

    @property
    def result(self) -> Value:
        if len(self.results) != 1:
            raise InternalError("TS901", f"op {self.name} has {len(self.results)} results, one was asked for", self.loc)
        return self.results[0]

    def operand(self, name: str) -> Value:
        """The operand that the op table calls `name`."""
        return self.operands[self.definition.operands.index(name)]

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def __repr__(self) -> str:
        return f"<op {self.name} #{self.id}>"


def _declared(name: str) -> OpDef:
    from tessera.ir.opdef import lookup  # which declares the ops first

    return lookup(name)


@dataclass(eq=False, slots=True)
class Block:
    """A straight list of ops with arguments; the body of a kernel or a region of an op."""

    arguments: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)

    def add_argument(self, type_: Type, name: str = "") -> Value:
        value = Value(type_, name, self, len(self.arguments))
        self.arguments.append(value)
        return value

    def walk(self) -> Iterator[Op]:
        """Every op of the block and of the regions inside it, in program order, an op before its regions."""
        for op in list(self.ops):
            yield op
            for region in op.regions:
                yield from region.walk()


@dataclass(eq=False, slots=True)
class Kernel:
    """A kernel. Its body's arguments are its parameters, in the author's order.

    Attributes: `grid` (sizes over dims; absent until inferred), `static` (dim -> int, bound by `specialise`),
    `divisors` (dim -> power of two known to divide it), `alignment` (parameter -> bytes), and at Target level `arch`,
    `warps`, `shared_bytes`.
    """

    name: str
    body: Block
    attributes: dict[str, Any] = field(default_factory=dict)
    origin: tuple[Loc, ...] = ()

    @property
    def parameters(self) -> list[Value]:
        return self.body.arguments

    @property
    def loc(self) -> Loc | None:
        return self.origin[0] if self.origin else None


@dataclass(eq=False, slots=True)
class Module:
    """Kernels of one level, "tile" or "target", or functions, of level "graph"."""

    level: str
    kernels: list[Kernel] = field(default_factory=list)

    def kernel(self, name: str | None = None) -> Kernel:
        for kernel in self.kernels:
            if name is None or kernel.name == name:
                return kernel
        raise InternalError("TS901", f"the module has no kernel '{name}'")


def merge_origins(*origins: Iterable[Loc]) -> tuple[Loc, ...]:
    """The ordered union of locations, first seen first."""
    return tuple(dict.fromkeys(itertools.chain(*origins)))


class Builder:
    """Appends ops to a block. Each op takes the location `origin` that is set at that moment.

    Passes set it with `at(op)` to the op that they replace, so no op is ever without a source location.
    """

    def __init__(self, block: Block, origin: Sequence[Loc] = ()):
        self.block = block
        self.origin: tuple[Loc, ...] = tuple(origin)

    def at(self, *ops: Op) -> Builder:
        self.origin = merge_origins(*(op.origin for op in ops))
        return self

    def op(
        self,
        name: str,
        operands: Sequence[Value] = (),
        regions: Sequence[Block] = (),
        hints: Sequence[str] = (),
        **attributes: Any,
    ) -> Op:
        """Makes an op, its result types by the op's type rule, `hints` for their names. Raises what the rule raises."""
        definition = DEFINITIONS.get(name) or _declared(name)
        if not definition.check_arity(len(operands)) or not definition.check_regions(len(regions)):
            raise SourceError(
                "TS703",
                f"op {name} takes {' '.join(definition.operands) or 'no operands'} and {definition.regions} regions, "
                f"not {len(operands)} operands and {len(regions)} regions",
                self.origin[0] if self.origin else None,
            )
        op = Op(name, list(operands), definition.complete(attributes), [], list(regions), self.origin)
        types = definition.type_rule(op)
        for index, type_ in enumerate(types):
            hint = hints[index] if index < len(hints) else ""
            op.results.append(Value(type_, hint, op, index))
        self.block.ops.append(op)
        return op

    def value(self, name: str, *operands: Value, hint: str = "", **attributes: Any) -> Value:
        """Makes an op of one result and returns that."""
        return self.op(name, operands, hints=(hint,), **attributes).result

    def inner(self, block: Block) -> Builder:
        """A builder into a region, at the same location."""
        return Builder(block, self.origin)


Mapping = dict[Value, Value]


def clone_op(builder: Builder, op: Op, mapping: Mapping, **changed: Any) -> Op:
    """Copies `op` (regions included) through `builder`, operands by `mapping`; extends `mapping` with its results.

    Result types are computed afresh, so a copy of an op follows a change of its operands' types. Block arguments keep
    their types: a pass that changes those builds the region itself.
    """
    saved = builder.origin
    builder.origin = op.origin
    regions = [clone_block(builder, region, mapping) for region in op.regions]
    new = builder.op(
        op.name,
        [mapping.get(value, value) for value in op.operands],
        regions,
        [value.name for value in op.results],
        **{**op.attributes, **changed},
    )
    builder.origin = saved
    mapping.update(zip(op.results, new.results, strict=True))
    return new


def clone_block(builder: Builder, block: Block, mapping: Mapping) -> Block:
    """Copies a region's block: its arguments, then its ops."""
    new = Block()
    for argument in block.arguments:
        mapping[argument] = new.add_argument(argument.type, argument.name)
    inner = builder.inner(new)
    for op in block.ops:
        clone_op(inner, op, mapping)
    return new


def clone_with_regions(builder: Builder, op: Op, mapping: Mapping, fill: Callable[[Block, Builder], None]) -> Op:
    """Copies an op whose regions a pass rewrites: `fill` copies each old region through the builder it gets."""
    regions = []
    for region in op.regions:
        copy = Block()
        for argument in region.arguments:
            mapping[argument] = copy.add_argument(argument.type, argument.name)
        fill(region, builder.inner(copy))
        regions.append(copy)
    names = [result.name for result in op.results]
    new = builder.op(op.name, [mapping[value] for value in op.operands], regions, names, **op.attributes)
    mapping.update(zip(op.results, new.results, strict=True))
    return new


def new_kernel_like(kernel: Kernel) -> tuple[Kernel, Builder, Mapping]:
    """An empty kernel of the same name, parameters, attributes and origin, its builder, and the parameter mapping."""
    new = Kernel(kernel.name, Block(), dict(kernel.attributes), kernel.origin)
    mapping: Mapping = {p: new.body.add_argument(p.type, p.name) for p in kernel.parameters}
    return new, Builder(new.body, kernel.origin), mapping


def clone_kernel(kernel: Kernel) -> tuple[Kernel, Mapping]:
    new, builder, mapping = new_kernel_like(kernel)
    for op in kernel.body.ops:
        clone_op(builder, op, mapping)
    return new, mapping


def is_strict(kernel: Kernel) -> bool:
    """Whether a function, or a kernel of one, keeps every rounding and every order of sums that it is written with."""
    return kernel.attributes.get("precision") == "strict"


def add_notes(kernel: Kernel, *notes: str) -> None:
    """What a pass tells the author of a kernel that it has made, behind what others told."""
    kernel.attributes["notes"] = (*kernel.attributes.get("notes", ()), *notes)


def uses(block: Block) -> dict[Value, list[Op]]:
    """Every value used inside `block` (regions included) with the ops that use it, in program order."""
    found: dict[Value, list[Op]] = {}
    for op in block.walk():
        for value in op.operands:
            found.setdefault(value, []).append(op)
    return found
