"""Host time of warm calls on a machine without a GPU: CUDA does nothing (`stub_cuda`), so what is left is ours and that
of the array library. Beside each row the same call where nothing is written for it, which looks at data instead.

    python bench/warm_call.py [report.json]

Kernel calls with outputs given and left out, and functions of 1 and 8 launches, queued and replayed, with arrays of
CuPy and, where it is installed, torch. Best of 7 rounds of 2,000 calls, the rows taking turns.
"""
# ruff: noqa: F821  names of dims are strings in annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import tessera as ts  # noqa: E402
from bench import stub_cuda  # noqa: E402
from bench.function_overhead import COLUMNS, FUNCTIONS, ROWS  # noqa: E402
from bench.host_overhead import scale  # noqa: E402
from bench.overhead import best_of_each  # noqa: E402
from tessera.runtime.warm_code import WrittenCalls  # noqa: E402

CALLS, ROUNDS = 2000, 7


def kernel_calls(new: Callable[[], Any]) -> dict[str, Callable[[], object]]:
    x, y, out, given = new(), new(), new(), scale._with()
    left_out = scale._with()
    return {"kernel": lambda: given(x, y, out, 3), "kernel, output left out": lambda: left_out(x, y, 3)}


def function_calls(new: Callable[[], Any]) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {}
    for count in (1, 8):
        for how in ("queued", "replayed")[: 1 + (count > 1)]:
            x, compiled = new(), ts.compile(FUNCTIONS[count], graphs=how == "replayed")
            calls[f"function of {count}, {how}"] = lambda compiled=compiled, x=x: compiled(x)
    return calls


def measured(device: int, new: Callable[[], Any]) -> dict[str, float]:
    with stub_cuda.stubbed(device):
        calls = {**kernel_calls(new), **function_calls(new)}
        for call in calls.values():
            for _ in range(6):
                call()
        return best_of_each(calls, lambda: None, CALLS, ROUNDS)


def main() -> int:
    libraries: dict[str, tuple[int, Callable[[], Any]]] = {
        "cupy": (stub_cuda.CUPY_DEVICE, lambda: stub_cuda.cupy_array((ROWS, COLUMNS)))
    }
    try:
        import torch
    except ImportError:
        print("torch is not installed: its rows are missing")
    else:
        libraries["torch"] = stub_cuda.TORCH_DEVICE, lambda: torch.ones(ROWS, COLUMNS)
    table = []
    print(f"{'arrays':8}{'call':28}{'written us':>12}{'general us':>12}")
    for library, (device, new) in libraries.items():
        written = measured(device, new)
        with mock.patch.object(WrittenCalls, "served", lambda *given: None):
            general = measured(device, new)
        for name, microseconds in written.items():
            print(f"{library:8}{name:28}{microseconds:12.2f}{general[name]:12.2f}")
            table.append({"arrays": library, "call": name, "written": microseconds, "general": general[name]})
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
