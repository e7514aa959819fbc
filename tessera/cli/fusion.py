"""Which ops of a function share a kernel, and why each two that hand on a tensor do or do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.ir.core import Op, Value
from tessera.ir.dims import evaluate
from tessera.passes.plan_fusion import Cluster, Edge, Fusion


def fusion_text(fusion: Fusion, dims: Mapping[str, int]) -> str:
    """Comments of textual IR: a line per cluster, in the order in which they run, and per edge, in program order."""
    lines = [f"// cluster {number}: {_cluster_text(cluster)}" for number, cluster in enumerate(fusion.clusters)]
    for edge in fusion.edges:
        verb = "saves" if edge.fused else "costs"
        moved = f"{verb} {evaluate(edge.bytes, dims)} bytes" if edge.bytes else "moves nothing"
        pair = f"{_named(edge.producer)} -> {_named(edge.consumer)}"
        lines.append(f"// edge {pair}: {'fused' if edge.fused else 'not fused'}, {moved}: {edge.why}")
    return "\n".join(lines)


def _cluster_text(cluster: Cluster) -> str:
    stored = ", ".join(value.name or "a value" for value in cluster.outputs) or "nothing"
    first, *_, last = (*cluster.ops, cluster.ops[-1])
    return f"{cluster.kind}, {len(cluster.ops)} ops from {_named(first)} to {_named(last)}, stores {stored}"


def _named(op: Op) -> str:
    """An op by its name, what the author calls its result, and its line."""
    name = op.results[0].name if op.results else ""
    line = f" line {op.loc.line}" if op.loc is not None else ""
    return f"{op.name}{f' {name}' if name else ''}{line}"


def fusion_json(fusion: Fusion, dims: Mapping[str, int]) -> dict[str, Any]:
    clusters = [
        {
            "kind": cluster.kind,
            "ops": [_op(op) for op in cluster.ops],
            "stores": [value.name for value in cluster.outputs],
        }
        for cluster in fusion.clusters
    ]
    place: dict[Value, int] = {
        result: number for number, cluster in enumerate(fusion.clusters) for op in cluster.ops for result in op.results
    }
    return {"clusters": clusters, "edges": [_edge(edge, place, dims) for edge in fusion.edges]}


def _op(op: Op) -> dict[str, Any]:
    loc = op.loc
    return {
        "op": op.name,
        "value": op.results[0].name if op.results else "",
        "file": loc.file if loc is not None else None,
        "line": loc.line if loc is not None else None,
    }


def _edge(edge: Edge, place: Mapping[Value, int], dims: Mapping[str, int]) -> dict[str, Any]:
    """`clusters`: those of the producer and of the consumer, by number; None for an op without a kernel."""
    ends = (edge.value, edge.consumer.results[0])
    return {
        "producer": _op(edge.producer),
        "consumer": _op(edge.consumer),
        "clusters": [place.get(value) for value in ends],
        "fused": edge.fused,
        "bytes": evaluate(edge.bytes, dims),
        "why": edge.why,
    }


__all__ = ["fusion_json", "fusion_text"]
