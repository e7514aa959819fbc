"""From Graph IR to a plan: which kernels run, in which order, on which buffers.

The function is straight-line: scopes are inlined, placement ops are gone. Each `fused` region becomes one kernel, every
other op its own; equal kernels are one. A reshape is another name of a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera.errors import InternalError
from tessera.ir.core import Kernel, Op, Value, clone_kernel, is_strict, uses
from tessera.ir.opdef import CONSTANT
from tessera.ir.printer import print_kernel
from tessera.ir.types import ListType, ScalarType, TileType, dtype_of, shape_of
from tessera.passes.fuse import fuse
from tessera.passes.graph_attention import attention_kernel
from tessera.passes.graph_groups import Group, is_alias, is_batched, is_made_again, is_scalar_op, rows_of
from tessera.passes.graph_held import held_kernel
from tessera.passes.graph_kernels import KernelMaker, Sizes, row_kernel
from tessera.passes.graph_lines import line_kernel
from tessera.passes.graph_movers import copy_kernel, mover_kernels
from tessera.passes.graph_scalars import host_scalar
from tessera.passes.graph_walks import walks_of
from tessera.passes.line_programs import held_lines
from tessera.passes.plan_fusion import ATTENTION
from tessera.plan import GraphPlan, PlanBuffer, PlanLaunch, Rounding, Scalar


def lower_graph(function: Kernel, dims: Mapping[str, int], kernels: Mapping[str, Kernel] | None = None) -> GraphPlan:
    """The plan of a function for a call with these dims; `GraphPlan.static` says which of them it is made for.

    A function that was not fused yet is. `kernels`: those that its `launch` ops name. Raises SourceError TS501 for a
    row that no program can hold.
    """
    if any(op.regions and op.name != "fused" for op in function.body.ops):
        raise InternalError("TS901", f"'{function.name}' still has regions", function.loc)
    return _Lowering(fuse(function, dims), dims, kernels or {}).plan()


class _Lowering:
    def __init__(self, function: Kernel, dims: Mapping[str, int], callees: Mapping[str, Kernel]) -> None:
        self.function, self.sizes, self.callees = function, Sizes(dims), callees
        self.sizes.fixed.update(function.attributes.get("fixed", {}))
        self.used = uses(function.body)
        self.buffers: dict[str, PlanBuffer] = {}
        self.names: dict[Value, str] = {}
        self.kernels: list[Kernel] = []
        self.known: dict[str, int] = {}  # text of a kernel without its name -> its place
        self.launches: list[PlanLaunch] = []
        self.roundings: list[Rounding] = []
        self.reordered: list[str] = []
        self.inner: dict[Value, Value] = {}  # values that a region ends with, and its results

    def plan(self) -> GraphPlan:
        body = self.function.body
        for parameter in self.function.parameters:
            if isinstance(parameter.type, TileType):
                self._buffer(parameter, parameter.name, "parameter")
        for op in body.ops[:-1]:
            if op.name == "fused":
                self._region(op)
            elif op.name == "launch":
                self._authored(op)
            elif not (is_alias(op) or is_scalar_op(op) or op.definition.has(CONSTANT)):
                for maker in mover_kernels(op, self.sizes):
                    self._launch(maker, op.name)
        results = self._results(body.ops[-1])
        attributes = self.function.attributes
        return GraphPlan(
            self.function.name,
            tuple(self.kernels),
            tuple(self.launches),
            dict(self.buffers),
            results,
            dict(self.sizes.fixed),
            tuple(attributes.get("notes", ())),
            tuple(self.roundings),
            tuple(dict.fromkeys(self.reordered)),
        )

    # -- buffers

    def _buffer(self, value: Value, name: str, role: str, index: int = 0) -> None:
        type_ = value.type
        assert isinstance(type_, TileType)
        self.buffers[name] = PlanBuffer(name, type_.shape, type_.dtype, role, index)
        self.names[value] = name

    def _name(self, value: Value) -> str:
        """The buffer of a value; a reshape gets one when it is first asked for."""
        value = self.inner.get(value, value)
        if value in self.names:
            return self.names[value]
        op = value.defining_op
        if op is not None and is_alias(op):
            root = self.buffers[self._name(op.operands[0])]
            type_ = value.type
            assert isinstance(type_, TileType)
            name = f"t{len(self.buffers)}"
            alias = root.alias or root.name
            self.buffers[name] = PlanBuffer(name, type_.shape, type_.dtype, root.role, root.index, alias)
            self.names[value] = name
        else:
            self._buffer(value, f"t{len(self.buffers)}", "temporary")
        return self.names[value]

    # -- launches

    def _region(self, op: Op) -> None:
        *ops, end = op.regions[0].ops
        for value, result in zip(end.operands, op.results, strict=True):
            self.inner[value] = result
        outputs = list(dict.fromkeys(end.operands))
        group = Group(ops, rows_of(shape_of(outputs[0].type)), any(map(is_batched, ops)), outputs)
        attends = op.attributes["region"] == ATTENTION
        inside = set(ops)
        held = None if attends else held_lines(ops, self.sizes)
        walks = None if attends or held else walks_of(ops, outputs, lambda each: each in inside, self.sizes)
        skipped = self._skipped(group, set(outputs), set(walks.kept if walks is not None else ()))
        exact = not attends or is_strict(self.function)
        if attends:
            maker = attention_kernel(group, self.sizes, skipped, exact)
        elif held is not None:
            maker = held_kernel(group, held, self.sizes, skipped)
        elif walks is not None:
            maker = line_kernel(group, walks, self.sizes, skipped)
        else:
            maker = row_kernel(group, self.sizes, skipped)
        named = [each for each in ops if not is_made_again(each)] or ops
        self._launch(maker, named[-1].name)
        if not exact:
            self.reordered.append(self.kernels[self.launches[-1].kernel].name)

    def _skipped(self, group: Group, outputs: set[Value], kept: set[Value]) -> frozenset[Op]:
        """The implicit casts of a group that it does without, all of them reported.

        One whose result leaves the kernel, is kept in a buffer (`kept`) or is multiplied on tensor cores stays, for
        every user, so that the value is one value.
        """
        found = set()
        for op in group.ops:
            if op.name != "cast" or isinstance(op.result.type, ScalarType):
                continue
            wide, narrow = dtype_of(op.operands[0].type), op.attributes["dtype"]
            if not (wide.is_float and narrow.is_float and narrow.bits < wide.bits):
                continue
            why = self._why_kept(op, outputs, kept)
            if not why:
                found.add(op)
            name = op.result.name or op.operands[0].name or "a value"
            explicit = not op.attributes["implicit"]
            why = why or "its kernel goes on with the wider value"
            self.roundings.append(Rounding(name, wide, narrow, explicit, op in found, why, op.loc))
        return frozenset(found)

    def _why_kept(self, op: Op, outputs: set[Value], kept: set[Value]) -> str:
        if not op.attributes["implicit"]:
            return "it is written in the program"
        if is_strict(self.function):
            return "the function is strict"
        if op.result in outputs:
            return "the value is stored"
        if op.result in kept:
            return "a buffer of its kernel holds it"
        if any(user.name == "matmul" for user in self.used.get(op.result, [])):
            return "a product takes it"
        if not all(user.name == "cast" and user.attributes["implicit"] for user in self.used.get(op.result, [])):
            return "an op takes it as it is"
        return ""

    def _launch(self, maker: KernelMaker, what: str) -> None:
        made = maker.kernel("kernel")
        if is_strict(self.function):
            made.attributes["precision"] = "strict"
        number = self._kernel(made, what)
        tensors = {
            name: tuple(map(self._name, given)) if isinstance(given, tuple) else self._name(given)
            for name, given in maker.tensors.items()
        }
        scalars = {name: value.name for name, value in maker.scalars.items()}
        self.launches.append(PlanLaunch(number, tensors, scalars, dict(maker.dims)))

    def _kernel(self, kernel: Kernel, what: str) -> int:
        """The place of a kernel in the plan; equal ones are one."""
        kernel = Kernel("kernel", kernel.body, kernel.attributes, kernel.origin)
        text = _code(kernel)
        if text not in self.known:
            self.known[text] = len(self.kernels)
            kernel.name = f"{self.function.name}_{len(self.kernels)}_{what}"
            self.kernels.append(kernel)
        return self.known[text]

    def _authored(self, op: Op) -> None:
        """The launch of a kernel that the function calls. What is in-out begins as a copy."""
        name = op.attributes["callee"]
        kernel = self.callees.get(name)
        if kernel is None:
            raise InternalError("TS901", f"the kernel '{name}' was not given beside the function", op.loc)
        roles = dict(kernel.attributes["parameters"])
        operands, results = iter(op.operands), iter(op.results)
        tensors: dict[str, str | tuple[str, ...]] = {}
        scalars: dict[str, Scalar] = {}
        for parameter in kernel.parameters:
            role = roles[parameter.name]
            if isinstance(parameter.type, ScalarType):
                scalars[parameter.name] = host_scalar(next(operands))
            elif isinstance(parameter.type, ListType):
                values = [next(operands) for _ in range(parameter.type.length)]
                tensors[parameter.name] = tuple(self._name(value) for value in values)
            elif role == "in":
                tensors[parameter.name] = self._name(next(operands))
            else:
                result = next(results)
                if role == "inout":
                    self._launch(copy_kernel(next(operands), result, self.sizes, op), "copy")
                tensors[parameter.name] = self._name(result)
        number = self._kernel(kernel, name)
        self.launches.append(PlanLaunch(number, tensors, scalars, op.attributes["dims"], authored=True))

    # -- results

    def _results(self, last: Op) -> tuple[str, ...]:
        """The buffers that are returned: each has memory of its own, so a parameter, or a second name, is copied."""
        taken: set[str] = set()
        results = []
        for index, value in enumerate(last.operands):
            name = self._name(value)
            buffer = self.buffers[name]
            root = self.buffers[buffer.alias] if buffer.alias else buffer
            if root.role == "parameter" or root.name in taken:
                name = self._copied(value, last, index)
                root = self.buffers[name]
            taken.add(root.name)
            for other in (root.name, *(n for n, b in self.buffers.items() if b.alias == root.name)):
                old = self.buffers[other]
                self.buffers[other] = PlanBuffer(other, old.shape, old.dtype, "result", index, old.alias)
            results.append(name)
        return tuple(results)

    def _copied(self, value: Value, last: Op, index: int) -> str:
        copy = Value(value.type, value.name)
        self._buffer(copy, f"t{len(self.buffers)}", "result", index)
        self._launch(copy_kernel(value, copy, self.sizes, last), "copy")
        return self.names[copy]


def _code(kernel: Kernel) -> str:
    """What a kernel does, without what the author called the values."""
    copy, _ = clone_kernel(kernel)
    for op in copy.body.walk():
        for value in (*op.results, *(argument for region in op.regions for argument in region.arguments)):
            value.name = ""
    return print_kernel(copy, locations=False)


__all__ = ["lower_graph"]
