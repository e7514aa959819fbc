"""The plan of a function as text: its buffers, and its launches in order."""

from __future__ import annotations

from typing import Any

from tessera.cli import report
from tessera.compiler import FunctionCompilation
from tessera.ir.dims import to_text
from tessera.ir.types import shape_text
from tessera.plan import GraphPlan, PlanLaunch


def plan_text(plan: GraphPlan) -> str:
    """Comments of textual IR: a line per buffer and per launch."""
    lines = []
    for buffer in plan.buffers.values():
        place = f"reshapes {buffer.alias}" if buffer.alias else buffer.role
        lines.append(f"// buffer {buffer.name}: {buffer.dtype.name}{shape_text(buffer.shape)}, {place}")
    lines += [f"// launch {_launch_text(plan, launch)}" for launch in plan.launches]
    lines.append(f"// returns {', '.join(plan.results)}")
    return "\n".join(lines)


def _launch_text(plan: GraphPlan, launch: PlanLaunch) -> str:
    scalars = {name: _scalar(value) for name, value in launch.scalars.items()}
    arguments = [f"{name}={value}" for name, value in {**launch.tensors, **scalars}.items()]
    sizes = [f"{name}={to_text(size)}" for name, size in launch.dims.items()]
    where = f" with {', '.join(sizes)}" if sizes else ""
    return f"{plan.kernels[launch.kernel].name}({', '.join(arguments)}){where}"


def _scalar(value: Any) -> str | int | float:
    """A parameter of the function or a number; `computed` for what the host computes before the launch."""
    return value if isinstance(value, (str, int, float)) else "computed"


def roundings_table(plan: GraphPlan) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the rounding report: every place where a value may lose bits, and what decides."""
    rows = [
        [
            entry.value,
            f"{entry.wide.name} to {entry.narrow.name}",
            "explicit" if entry.explicit else "implicit",
            "skipped" if entry.skipped else "rounded",
            entry.why,
            str(entry.loc.line) if entry.loc is not None else "-",
        ]
        for entry in plan.roundings
    ]
    return ["value", "rounding", "", "", "why", "line"], rows


def roundings_json(plan: GraphPlan) -> list[dict[str, Any]]:
    return [
        {
            "value": entry.value,
            "from": entry.wide.name,
            "to": entry.narrow.name,
            "explicit": entry.explicit,
            "skipped": entry.skipped,
            "why": entry.why,
            "file": entry.loc.file if entry.loc is not None else None,
            "line": entry.loc.line if entry.loc is not None else None,
        }
        for entry in plan.roundings
    ]


def plan_json(compilation: FunctionCompilation) -> dict[str, Any]:
    """The launches, and the bytes of memory that a call needs."""
    plan = compilation.plan
    launches = [
        {
            "kernel": plan.kernels[launch.kernel].name,
            "tensors": dict(launch.tensors),
            "scalars": {name: _scalar(value) for name, value in launch.scalars.items()},
            "dims": {name: to_text(size) for name, size in launch.dims.items()},
        }
        for launch in plan.launches
    ]
    return {"launches": launches, "results": list(plan.results), **report.memory_json(compilation.footprint)}


__all__ = ["plan_json", "plan_text", "roundings_json", "roundings_table"]
