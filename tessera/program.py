"""A compiled kernel as plain data: what a launcher, a cache or another process needs, and nothing that executes.

A launch passes its kernel, in this order: a pointer per tensor parameter and workspace, and for a list of tensors a
struct of their pointers by value (of one null pointer where the list is empty); tensor maps by value, 128 bytes each
at multiples of 64, and a struct of them for a list; the value of every dynamic size the kernel reads as int64; then
run-time scalars (`int` as int64, `float` as f32). Launches run one after the other, in order.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera.dtypes import parse as parse_dtype
from tessera.errors import SourceError
from tessera.ir.dims import Size, evaluate, parse, to_text
from tessera.ir.programs import EMULATED_MULTIPROCESSORS, counts_multiprocessors, grid_extents

SCHEMA = 4
MAP_BYTES, MAP_ALIGNMENT = 128, 64  # of a tensor map among the arguments of a launch
MAP_KINDS = ("map", "maps")
ANY_LENGTH = -1  # of a list parameter whose length a call decides


@dataclass(frozen=True)
class Parameter:
    """A parameter of the kernel as the author declared it. `kind`: "tensor", "list" or "scalar"; `role`: "in", "out",
    "inout".

    `shape` holds sizes over dim symbols (named dims, or `<parameter>.<axis>` for undeclared ones). `alignment` is the
    least byte alignment of the base address that the code was compiled for. `strides`, in elements, are empty for a
    tensor that must be contiguous; else its dims `<parameter>.stride<axis>` are arguments of the launch. Of a list, all
    of that holds for each of its `length` tensors.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[Size, ...] = ()
    role: str = "in"
    alignment: int = 16
    strides: tuple[Size, ...] = ()
    length: int = 0


@dataclass(frozen=True)
class Workspace:
    """A contiguous tensor that launches hand to later ones of the same call. Its sizes are over the program's dims."""

    name: str
    dtype: str
    shape: tuple[Size, ...]

    def bytes(self, dims: Mapping[str, int]) -> int:
        total = parse_dtype(self.dtype).bytes
        for size in self.shape:
            total *= evaluate(size, dims)
        return total


@dataclass(frozen=True)
class Argument:
    """One argument of a launch: "pointer", "pointers" (of a list) or "scalar" of the parameter `name`, "pointer" of the
    workspace `name`, or the "size" `size`; or the "map" of a parameter or workspace, "maps" of a list, for TMA.

    Of a map, `box` holds elements per axis, the innermost first, and `swizzle` bytes (0, 32, 64, 128). A tensor of one
    axis is mapped as one row.
    """

    kind: str
    name: str = ""
    size: Size = 0
    box: tuple[int, ...] = ()
    swizzle: int = 0


@dataclass(frozen=True)
class Launch:
    """`writes`: the tensors and workspaces that it changes."""

    kernel: str
    grid: tuple[Size, ...]
    threads: int
    shared_bytes: int
    arguments: tuple[Argument, ...]
    writes: tuple[str, ...] = ()

    @property
    def persistent(self) -> bool:
        """Whether the grid depends on the number of multiprocessors."""
        return counts_multiprocessors(self.grid)

    def extents(self, dims: Mapping[str, int], multiprocessors: int = EMULATED_MULTIPROCESSORS) -> tuple[int, ...]:
        """The grid in numbers. Without blocks, as for a dim of size 0, nothing is launched."""
        return grid_extents(self.grid, dims, multiprocessors)


@dataclass(frozen=True)
class Program:
    """`static` binds dims compiled into the code, `divisors` what the code assumes to divide a dynamic dim (guards)."""

    name: str
    arch: str
    parameters: tuple[Parameter, ...]
    dims: tuple[str, ...]
    static: dict[str, int]
    divisors: dict[str, int]
    launches: tuple[Launch, ...]
    cuda: str
    cubin: bytes = b""
    notes: tuple[str, ...] = field(default=())
    workspaces: tuple[Workspace, ...] = ()

    def to_json(self) -> str:
        data = {name: getattr(self, name) for name in ("name", "arch", "dims", "static", "divisors", "cuda", "notes")}
        data["schema"] = SCHEMA
        data["cubin"] = base64.b64encode(self.cubin).decode()
        data["parameters"] = [
            {**vars(p), "shape": [to_text(s) for s in p.shape], "strides": [to_text(s) for s in p.strides]}
            for p in self.parameters
        ]
        data["workspaces"] = [{**vars(w), "shape": [to_text(s) for s in w.shape]} for w in self.workspaces]
        data["launches"] = [
            {
                **vars(x),
                "grid": [to_text(s) for s in x.grid],
                "arguments": [{**vars(a), "size": to_text(a.size)} for a in x.arguments],
            }
            for x in self.launches
        ]
        return json.dumps(data, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Program:
        """Raises SourceError TS702 for text of another schema or no program at all."""
        try:
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            launches = tuple(
                Launch(
                    x["kernel"],
                    _sizes(x["grid"]),
                    x["threads"],
                    x["shared_bytes"],
                    tuple(_argument(a) for a in x["arguments"]),
                    tuple(x["writes"]),
                )
                for x in data.pop("launches")
            )
            parameters = tuple(
                Parameter(**{**p, "shape": _sizes(p["shape"]), "strides": _sizes(p["strides"])})
                for p in data.pop("parameters")
            )
            workspaces = tuple(Workspace(**{**w, "shape": _sizes(w["shape"])}) for w in data.pop("workspaces"))
            cubin = base64.b64decode(data.pop("cubin"))
            return Program(
                **{**data, "dims": tuple(data["dims"]), "notes": tuple(data["notes"])},
                parameters=parameters,
                launches=launches,
                cubin=cubin,
                workspaces=workspaces,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError("TS702", f"this is not a Tessera program of schema {SCHEMA}: {error}") from None


def _argument(data: dict[str, Any]) -> Argument:
    return Argument(data["kind"], data["name"], parse(str(data["size"])), tuple(data["box"]), data["swizzle"])


def _sizes(texts: list[Any]) -> tuple[Size, ...]:
    return tuple(parse(str(text)) for text in texts)
