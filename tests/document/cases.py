"""The shapes and values at which every function of the document is tested, as data, and inputs made from them.

The rule for shapes: each value of S, B, D, G and N at least once, all pairs of (D, S) and all pairs of (N, B). Large
(D, S) go with small (N, B), so the cases of one function run in seconds as NumPy. N is the number of elements of each
list; where an empty list (or, for neighbouring layers, a list of one) is an error it is in ERRORS instead.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from tests.document.error_cases import EMPTY, ERRORS, LENGTHS, VALUES, ErrorCase, SameAs, T
from tests.document.models import Array, round_to

__all__ = [
    "AMBIENT",
    "CASES",
    "EMPTY",
    "ERRORS",
    "LENGTHS",
    "SIGNATURES",
    "VALUES",
    "Case",
    "ErrorCase",
    "ListOf",
    "SameAs",
    "T",
    "arguments_of",
]

Dims = dict[str, int]

S = (1, 127, 129, 150)
B = (1, 3, 33)
B_SHARDED = (2, 6, 34)
D = (16, 60, 64, 128, 256)
N = (0, 1, 3, 8)
DISTANCES = (1, 0, 5, -3, 64)
TEMPERATURES = (1.0, 0.5, -2.0, 100.0)


@dataclass(frozen=True)
class ListOf:
    """A list parameter: `length` names the dim that says how many."""

    element: T
    length: str = "N"


@dataclass(frozen=True)
class Case:
    """One call. `magnitude` scales the activations; `fill` gives a parameter one value everywhere, `spots` NaN (or
    another value) at the index (0, 0, 0) alone. `training` draws a keep mask for dropout."""

    function: str
    dims: Dims
    scalars: dict[str, float] = field(default_factory=dict)
    magnitude: float = 1.0
    fill: dict[str, float] = field(default_factory=dict)
    spots: dict[str, float] = field(default_factory=dict)
    training: bool = False

    @property
    def id(self) -> str:
        parts = [f"{name}{value}" for name, value in (*self.dims.items(), *self.scalars.items())]
        parts += [f"x{self.magnitude:g}"] * (self.magnitude != 1)
        parts += [f"{name}={value:g}" for name, value in (*self.fill.items(), *self.spots.items())]
        parts += ["training"] * self.training
        return "-".join([self.function, *parts])


X = T(("B", "S", "D"))
W = T(("D", "D"))
A = T(("L", "L"))
X8 = T(("B", "S", "D"), "fp8_e4m3")

# Parameter -> tensor, list of tensors, or None for a Python number that the case gives (or leaves to its default).
SIGNATURES: dict[str, dict[str, T | ListOf | None]] = {
    "delta_connection": {"x_source": X, "x_target": X, "gate_params": W, "layer_distance": None},
    "gating_function_kernel": {"delta": X, "gate_params": W, "layer_distance": None},
    "adaptive_gating_mechanism": {
        "delta": X,
        "context_vector": X,
        "gate_weights": T(("D", "G")),
        "layer_distance": None,
        "temperature": None,
    },
    "distance_scaling_function": {"layer_distance": None},
    "multi_scale_delta_aggregation": {
        "source_layers": ListOf(X),
        "target_layer": X,
        "gate_networks": ListOf(W),
        "attention_weights": A,
    },
    "parallel_delta_aggregation_kernel": {
        "source_layers": ListOf(X),
        "target_layer": X,
        "gate_networks": ListOf(W),
        "attention_weights": A,
    },
    "delta_layer_with_checkpointing": {
        "x": X,
        "previous_layers": ListOf(X),
        "layer_params": T(("D", "12D")),
        "gate_params": ListOf(W),
    },
    "distributed_gdn_layer": {"x": X, "previous_layers": ListOf(X), "gate_params": ListOf(W)},
    "safe_delta_computation": {"x_source": X, "x_target": X, "epsilon": None},
    "stable_gating_computation": {"gating_input": T(("B", "S", "G")), "temperature": None, "gating_dropout": None},
    "mixed_precision_gdn_layer": {"x": X8, "previous_layers": ListOf(X), "gate_params": ListOf(W)},
    "fused_delta_gating_kernel": {
        "source_layers": ListOf(X),
        "target_layer": X,
        "gate_params": ListOf(W),
        "attention_weights": A,
    },
    "optimized_delta_memory_access": {"layer_activations": ListOf(X), "gate_parameters": ListOf(W)},
}

# Parameters that the document creates in place; the scale stands in `Case.scalars`, the mask comes of `training`.
AMBIENT: dict[str, dict[str, T]] = {
    "delta_layer_with_checkpointing": {"attention_weights": A},
    "distributed_gdn_layer": {"transformer_params": T(("D", "12D"))},
}


def _cover(left: Sequence[Dims], right: Sequence[Dims]) -> list[Dims]:
    """Few dims that hold every element of both lists, the costly of one beside the cheap of the other."""

    def cost(dims: Mapping[str, int]) -> int:
        extents = (max(dims.get(name, 1), 1) for name in ("B", "N", "S", "D", "D"))
        return math.prod(extents)

    rising = sorted(left, key=cost)
    falling = sorted(right, key=cost, reverse=True)
    cheapest = [dims for dims in falling if dims.get("N", 1)][-1]
    falling += [cheapest] * (len(rising) - len(falling))
    rising += [rising[0]] * (len(falling) - len(rising))
    return [{**b, **a} for a, b in zip(rising, falling, strict=True)]


def _grid(**axes: Sequence[int]) -> list[Dims]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def _with_l(dims: Dims, extra: int = 1) -> Dims:
    return {**dims, "L": dims["N"] + extra}


def _gates(dims: Dims) -> Dims:
    """Every D meets all four G, each at another S."""
    choices = (1, 16, dims["D"] - 1, dims["D"])
    return {**dims, "G": choices[(D.index(dims["D"]) + S.index(dims["S"])) % 4]}


def _cycled(function: str, shapes: Sequence[Dims], **values: Sequence[float]) -> list[Case]:
    """One case per shape; each scalar runs through its values, out of step with its neighbours."""
    return [
        Case(
            function,
            dims,
            {name: row[(i + i // len(row) * k) % len(row)] for k, (name, row) in enumerate(values.items())},
        )
        for i, dims in enumerate(shapes)
    ]


PLAIN = _cover(_grid(D=D, S=S), _grid(B=B))
LISTS = [_with_l(dims) for dims in _cover(_grid(D=D, S=S), _grid(N=N, B=B))]
SHARDED = _cover(_grid(D=D, S=S), _grid(N=N[1:], B=B_SHARDED))
FILLED = _cover(_grid(D=D, S=S), _grid(N=N[1:], B=B))
LAYERS = _cover(_grid(D=D, S=S), _grid(N=(2, 3, 8), B=B))
CONTEXTS = [_gates(dims) for dims in PLAIN]
GATED = _cover(_grid(G=(1, 16, 59, 60, 64, 128, 255, 256), S=S), _grid(B=B))

SMALL: Dims = {"B": 3, "S": 20, "D": 60}
SMALL_LIST: Dims = {**SMALL, "N": 3}

CASES: dict[str, list[Case]] = {
    "delta_connection": [
        *_cycled("delta_connection", PLAIN, layer_distance=DISTANCES),
        Case("delta_connection", SMALL, {"layer_distance": 1}, magnitude=30.0),
        Case("delta_connection", SMALL, {"layer_distance": -200}),
        Case("delta_connection", SMALL, {"layer_distance": 2}, spots={"x_source": math.nan}),
    ],
    "gating_function_kernel": [
        *_cycled("gating_function_kernel", PLAIN, layer_distance=DISTANCES),
        Case("gating_function_kernel", SMALL, {"layer_distance": 1}, magnitude=30.0),
        Case("gating_function_kernel", SMALL, {"layer_distance": 2}, spots={"delta": math.inf}),
    ],
    "adaptive_gating_mechanism": [
        *_cycled("adaptive_gating_mechanism", CONTEXTS, layer_distance=DISTANCES, temperature=TEMPERATURES),
        Case("adaptive_gating_mechanism", {**SMALL, "G": 16}, {"layer_distance": 1}),
        Case("adaptive_gating_mechanism", {**SMALL, "G": 16}, {"layer_distance": 1}, magnitude=1e4),
        Case("adaptive_gating_mechanism", {**SMALL, "G": 16}, {"layer_distance": 1, "temperature": 1e6}),
        Case("adaptive_gating_mechanism", {**SMALL, "G": 16}, {"layer_distance": 1}, fill={"delta": 0.0}),
    ],
    "distance_scaling_function": [
        Case("distance_scaling_function", {}, {"layer_distance": d}) for d in (*range(65), -1, -10, 1000)
    ],
    "multi_scale_delta_aggregation": [
        *(Case("multi_scale_delta_aggregation", dims) for dims in LISTS),
        Case("multi_scale_delta_aggregation", _with_l(SMALL_LIST, 0)),
        Case("multi_scale_delta_aggregation", _with_l(SMALL_LIST, 4)),
        Case("multi_scale_delta_aggregation", _with_l({"B": 1, "S": 3, "D": 16, "N": 64})),
    ],
    "parallel_delta_aggregation_kernel": [
        *(Case("parallel_delta_aggregation_kernel", dims) for dims in LISTS),
        Case("parallel_delta_aggregation_kernel", _with_l(SMALL_LIST, 0)),
        Case("parallel_delta_aggregation_kernel", _with_l(SMALL_LIST, 4)),
    ],
    "delta_layer_with_checkpointing": [Case("delta_layer_with_checkpointing", dims) for dims in LISTS],
    "distributed_gdn_layer": [Case("distributed_gdn_layer", dims) for dims in SHARDED],
    "safe_delta_computation": [
        *_cycled("safe_delta_computation", PLAIN, epsilon=(1e-8, 1e-3, 4.0)),
        Case("safe_delta_computation", SMALL),
        Case("safe_delta_computation", SMALL, {"scale": -2.5}),
        *(
            Case("safe_delta_computation", {"B": 1, "S": 3, "D": d}, fill={"x_source": 0.0, "x_target": value})
            for value, d in ((1e37, 1024), (1e37, 60), (1e-30, 64), (0.0, 64), (3e38, 60))
        ),
    ],
    "stable_gating_computation": [
        *_cycled("stable_gating_computation", GATED, temperature=TEMPERATURES),
        Case("stable_gating_computation", {"B": 3, "S": 20, "G": 60}),
        Case("stable_gating_computation", {"B": 3, "S": 20, "G": 60}, magnitude=1e4),
        *(
            Case("stable_gating_computation", {"B": 3, "S": 20, "G": 60}, {"gating_dropout": p}, training=True)
            for p in (0.0, 0.1, 0.5, 0.875)
        ),
    ],
    "mixed_precision_gdn_layer": [
        *(Case("mixed_precision_gdn_layer", dims) for dims in FILLED),
        Case("mixed_precision_gdn_layer", SMALL_LIST, magnitude=200.0),
        Case("mixed_precision_gdn_layer", SMALL_LIST, magnitude=2.0**-8),
        Case("mixed_precision_gdn_layer", SMALL_LIST, fill={"x": 448.0, "previous_layers": -448.0}),
        Case("mixed_precision_gdn_layer", SMALL_LIST, spots={"x": math.nan}),
    ],
    "fused_delta_gating_kernel": [
        *(Case("fused_delta_gating_kernel", dims) for dims in LISTS),
        Case("fused_delta_gating_kernel", _with_l(SMALL_LIST, 0)),
        Case("fused_delta_gating_kernel", _with_l(SMALL_LIST, 4)),
    ],
    "optimized_delta_memory_access": [
        *(Case("optimized_delta_memory_access", dims) for dims in LAYERS),
        Case("optimized_delta_memory_access", {"B": 1, "S": 128, "D": 16, "N": 3}),
        Case("optimized_delta_memory_access", {"B": 1, "S": 1030, "D": 16, "N": 2}),
    ],
}


def arguments_of(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and ambient parameters of a case: float64 arrays of values of their dtypes, always the same ones."""
    generator = np.random.default_rng(zlib.crc32(case.id.encode()))

    def tensor(spec: T, name: str) -> Array:
        shape = tuple(_extent(axis, case.dims) for axis in spec.shape)
        if name in case.fill:
            values = np.full(shape, case.fill[name])
        elif len(shape) == 3:
            values = case.magnitude * generator.standard_normal(shape)
        else:  # weights; products with them are about as large as what they multiply
            values = generator.standard_normal(shape) / math.sqrt(shape[0])
        if name in case.spots:
            values[0, 0, 0] = case.spots[name]
        return round_to(values, spec.dtype)

    def value(spec: T | ListOf, name: str) -> Array | list[Array]:
        if isinstance(spec, ListOf):
            return [tensor(spec.element, name) for _ in range(case.dims[spec.length])]
        return tensor(spec, name)

    signature = SIGNATURES[case.function]
    arguments: dict[str, Any] = {name: value(spec, name) for name, spec in signature.items() if spec is not None}
    arguments.update({name: number for name, number in case.scalars.items() if name in signature})
    ambient: dict[str, Any] = {name: value(spec, name) for name, spec in AMBIENT.get(case.function, {}).items()}
    ambient.update({name: number for name, number in case.scalars.items() if name not in signature})
    if case.training:
        shape = arguments["gating_input"].shape
        ambient["mask"] = (generator.random(shape) >= case.scalars["gating_dropout"]).astype(np.float64)
    return arguments, ambient


def _extent(axis: int | str, dims: Dims) -> int:
    if isinstance(axis, int):
        return axis
    return 12 * dims["D"] if axis == "12D" else dims[axis]
