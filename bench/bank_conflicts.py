"""Shows that the counters of `tessera check` are those of Nsight Compute: bank conflicts, sectors, instructions.

Usage: python -m bench.bank_conflicts [--json RESULT.json] [--folder FOLDER] [--only kernels|micro] [--cpu-only]

Kernels of the test suite, and kernels of one memory instruction each with chosen addresses (bench/access_patterns.py),
are counted by the emulator and measured on the GPU, from the same text. `--cpu-only` prints the emulator's counts;
`--recount RESULT.json` compares measurements of before with what the emulator counts now, without a GPU, and writes
them back. `--folder` keeps what Nsight Compute printed and the names of the metrics that it has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import access_patterns, ncu  # noqa: E402

LANE = "sm_80"  # the text; machine code is for the GPU that is there
ALIGNMENT = 256  # of arrays on both sides: which sectors an access touches depends on addresses
KERNELS = {
    "matmul_nt_bf16": ({"M": 64, "N": 64, "K": 64}, {"M": 33, "N": 100, "K": 129}),
    "matmul_tn_bf16": ({"M": 64, "N": 64, "K": 64}, {"M": 33, "N": 100, "K": 129}),
    "matmul_nn_f32": ({"M": 64, "N": 64, "K": 64}, {"M": 33, "N": 100, "K": 129}),
    "transpose": ({"M": 64, "N": 32}, {"M": 33, "N": 100}),
    "softmax_bf16": ({"M": 40, "N": 64}, {"M": 17, "N": 25}),
    "column_sum": ({"M": 200, "N": 64}, {"M": 70, "N": 100}),
    "gating_function_kernel": ({"B": 1, "S": 128, "D": 64}, {"B": 3, "S": 129, "D": 100}),
    "layer_norm": ({"M": 16, "N": 1024}, {"M": 33, "N": 100}),
}

# Counters of the hardware; each is asked for where the GPU has it.
_SHARED = "l1tex__data_pipe_lsu_wavefronts_mem_shared"
_CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared"
_GLOBAL = "pipe_lsu_mem_global"
HARDWARE = [
    *(_SHARED + suffix for suffix in ("", "_op_ld", "_op_st", "_op_ldgsts")),
    *(_CONFLICTS + suffix for suffix in ("", "_op_ld", "_op_st", "_op_ldgsts")),
    *(f"l1tex__t_{unit}_{_GLOBAL}_op_{op}" for unit in ("requests", "sectors") for op in ("ld", "st", "ldgsts")),
    *(f"smsp__inst_executed_op_{op}" for op in ("shared_ld", "shared_st", "ldsm", "ldgsts", "global_ld", "global_st")),
]
# Always there, and enough to go on with where a longer list is refused.
CORE = [name for name in HARDWARE if name.startswith("l1tex") and "ldgsts" not in name]
# What the tool derives per instruction from addresses; they have no suffix, and no query lists them.
SOURCE = [
    *("memory_l1_wavefronts_shared", "memory_l1_wavefronts_shared_ideal", "memory_l1_tag_requests_global"),
    *("memory_l2_theoretical_sectors_global", "memory_l2_theoretical_sectors_global_ideal"),
]
WIDE = (
    "shared",
    "ldsm",
    "ldgsts",
    "mem_global",
    "pipe_tensor",
    "mma",
)  # parts of the names of what else is of interest
WIDE_LIMIT = 90

# Sums of the emulator's counters, and the measurement that each should equal. `sass:` are sums of the source page.
_LOADS = ("ld_shared", "ldmatrix")
_ALL_SHARED = (*_LOADS, "st_shared", "cp_async")
PAIRS: list[tuple[tuple[str, ...], str]] = [
    *((tuple(f"{kind}.wavefronts" for kind in kinds), _SHARED + op + ".sum") for kinds, op in (
        (_LOADS, "_op_ld"), (("st_shared",), "_op_st"), (("cp_async",), "_op_ldgsts"), (_ALL_SHARED, ""),
    )),
    *((tuple(f"{kind}.excess" for kind in kinds), _CONFLICTS + op + ".sum") for kinds, op in (
        (_LOADS, "_op_ld"), (("st_shared",), "_op_st"), (("cp_async",), "_op_ldgsts"), (_ALL_SHARED, ""),
    )),
    *(((f"{kind}.requests",), f"smsp__inst_executed_op_{op}.sum") for kind, op in (
        ("ld_shared", "shared_ld"), ("ldmatrix", "ldsm"), ("st_shared", "shared_st"), ("cp_async", "ldgsts"),
        ("ld_global", "global_ld"), ("st_global", "global_st"),
    )),
    *(((f"{kind}.{unit}",), f"l1tex__t_{unit}_{_GLOBAL}_op_{op}.sum") for unit in ("requests", "sectors")
      for kind, op in (("ld_global", "ld"), ("st_global", "st"), ("cp_async_global", "ldgsts"))),
    *(((f"{kind}.{ours}",), f"sass:{opcode}.{theirs}")
      for ours, theirs in (("requests", "executed"), ("wavefronts", "wavefronts"), ("ideal", "ideal"))
      for kind, opcode in (("ld_shared", "LDS"), ("ldmatrix", "LDSM"), ("st_shared", "STS"), ("cp_async", "LDGSTS"))),
    *(((f"{kind}.{ours}",), f"sass:{opcode}.{theirs}")
      for ours, theirs in (("requests", "tag_requests"), ("sectors", "sectors"), ("ideal", "sectors_ideal"))
      for kind, opcode in (("ld_global", "LDG"), ("st_global", "STG"), ("cp_async_global", "LDGSTS"))),
    (("ld_global.requests",), "sass:LDG.executed"),
    (("st_global.requests",), "sass:STG.executed"),
    (("mma",), "sass:HMMA.executed"),
    (tuple(f"{kind}.wavefronts" for kind in _ALL_SHARED), "memory_l1_wavefronts_shared"),
    (tuple(f"{kind}.ideal" for kind in _ALL_SHARED), "memory_l1_wavefronts_shared_ideal"),
    (tuple(f"{kind}.sectors" for kind in ("ld_global", "st_global", "cp_async_global")),
     "memory_l2_theoretical_sectors_global"),
]  # fmt: skip


@dataclass
class Case:
    """One launch of one kernel. `codes` say how `struct` packs the arguments; `facts` describe it in the results."""

    group: str
    name: str
    kernel: str
    text: str
    entries: tuple[str, ...]
    grid: tuple[int, ...]
    threads: int
    shared_bytes: int
    arguments: list[Any]
    codes: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:  # kept, since an array that travels to another process comes out writeable
        self.written = [i for i, a in enumerate(self.arguments) if isinstance(a, np.ndarray) and a.flags.writeable]

    def copies(self) -> list[Any]:
        return [aligned(a) if isinstance(a, np.ndarray) else a for a in self.arguments]


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address like those on the GPU, as writeable as `array` is."""
    memory = np.zeros(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    copy.flags.writeable = array.flags.writeable
    return copy


# ---- cases ---------------------------------------------------------------------------------------------------------


def kernel_cases() -> Iterator[Case]:
    from bench.first_light import scaled
    from tessera.compiler import compile_kernel
    from tessera.runtime.execute import emulated_arguments
    from tessera.runtime.launch import SCALAR_CODES
    from tests.passes.test_pipeline import arguments_of
    from tests.suite import load

    for name, shapes in KERNELS.items():
        for dims in shapes:
            compilation = compile_kernel(load(name), dims, LANE)
            program = compilation.program
            assert program is not None
            arguments = scaled(arguments_of(compilation.stages[0].module.kernel(), dims))
            scalars = {p.name: p.dtype for p in program.parameters if p.kind == "scalar"}
            for step in program.launches:
                codes = ["Q" if a.kind == "pointer" else "q" if a.kind == "size" else SCALAR_CODES[scalars[a.name]]
                         for a in step.arguments]  # fmt: skip
                title = f"{step.kernel} {' '.join(f'{key}={value}' for key, value in dims.items())}"
                values = emulated_arguments(program, step, arguments, dims)
                yield Case(
                    "kernels", title, step.kernel, program.cuda, tuple(s.kernel for s in program.launches),
                    step.extents(dims), step.threads, step.shared_bytes, values, codes, {"dims": dims},
                )  # fmt: skip


def micro_cases() -> list[Case]:
    """Every pattern of every kind, kinds taking turns: a run that is out of time has seen something of each."""
    text = access_patterns.text()
    entries = tuple(kind.kernel for kind in access_patterns.KINDS)
    ranked = []
    for kind in access_patterns.KINDS:
        found = access_patterns.patterns(kind)
        for number, (pattern, offsets) in enumerate(found.items()):
            offsets.flags.writeable = False
            # The emulator holds writes of two threads to one element for a conflict, so elements are what is written.
            width = min(kind.size, 4)
            data = np.arange(access_patterns.REGION // width).astype(f"u{width}")
            data.flags.writeable = kind.written
            used = offsets if kind.name.startswith("cp_async") else offsets[:32]
            case = Case(
                "micro", f"{kind.name}: {pattern}", kind.kernel, text, entries, (1,), 32, access_patterns.REGION,
                [offsets, data], ["Q", "Q"], {"kind": kind.name, "pattern": pattern, "offsets": used.tolist()},
            )  # fmt: skip
            ranked.append((number / len(found), case))
    return [case for _, case in sorted(ranked, key=lambda item: item[0])]


# ---- what the emulator counts --------------------------------------------------------------------------------------


def count(case: Case) -> tuple[dict[str, int], list[str], list[np.ndarray]]:
    """The emulator's counters of a launch by kind of access, its faults, and the arrays that the kernel wrote."""
    from tessera.runtime import emulator

    library = emulator.build(case.text, case.entries, counted=True)
    arguments = case.copies()
    seen = library.examine(case.kernel, case.grid, case.threads, case.shared_bytes, arguments, count=True)
    faults = [f"{fault.kind}: {fault.message}" for fault in seen.faults]
    return totals(seen.lines, case.text), faults, [arguments[i] for i in case.written]


def totals(lines: dict[int, Any], text: str) -> dict[str, int]:
    """Counters by CUDA line, summed by kind of access; a line's text says whether it is ldmatrix or cp.async.

    `excess` is wavefronts beyond the ideal. Sums that are zero are left out.
    """
    source, sums = text.splitlines(), defaultdict(int)
    for number, counters in lines.items():
        line = source[number - 1]
        copy = "ts_cp_async<" in line
        kinds = {
            "ldmatrix" if "ts_ldmatrix" in line else "ld_shared": counters.shared_read,
            "cp_async" if copy else "st_shared": counters.shared_write,
            "cp_async_global" if copy else "ld_global": counters.global_read,
            "st_global": counters.global_write,
        }
        for kind, counted in kinds.items():
            shared = hasattr(counted, "wavefronts")
            for unit in ("requests", "wavefronts" if shared else "sectors", "ideal", "bytes"):
                sums[f"{kind}.{unit}"] += getattr(counted, unit)
            if shared:
                sums[f"{kind}.excess"] += counted.wavefronts - counted.ideal
        for name in ("mma", "barriers", "warp_collectives"):
            sums[name] += getattr(counters, name)
    return {name: value for name, value in sorted(sums.items()) if value}


def count_all(cases: Sequence[Case]) -> tuple[list[dict[str, Any]], list[list[np.ndarray]]]:
    """A row per case: its facts and what the emulator counts; without a host compiler the facts alone."""
    from tessera.runtime.emulator import EmulatorUnavailable

    rows, outputs = [], []
    for case in cases:
        digest = hashlib.sha256(case.text.encode()).hexdigest()[:16]
        row: dict[str, Any] = {"group": case.group, "name": case.name, **case.facts, "text": digest}
        written: list[np.ndarray] = []
        try:
            row["ours"], faults, written = count(case)
            if faults:
                row["faults"] = faults
        except EmulatorUnavailable as missing:
            print(f"not counted: {missing}")
        rows.append(row)
        outputs.append(written)
    return rows, outputs


# ---- what the GPU counts -------------------------------------------------------------------------------------------


def launch_all(plan: Path, seconds: float) -> None:
    """Launches the cases of a plan in order, until the time is up, and writes their outputs: the profiled process."""
    import cupy

    from tessera.runtime.launch import Arguments, CupyDriver

    cases, cubins = pickle.loads(plan.read_bytes())
    driver, modules, outputs, start = CupyDriver(), {}, [], time.monotonic()
    cupy.empty(1, cupy.uint8)  # makes the context that a module is loaded into
    for case in cases:
        if time.monotonic() - start > seconds:
            break
        if case.text not in modules:
            modules[case.text] = driver.load(cubins[case.text], 0)
        function = driver.function(modules[case.text], case.kernel, case.shared_bytes, 0)
        # A copy from the host is no kernel: nothing but the cases is launched here.
        arrays = {i: cupy.asarray(np.ascontiguousarray(a).reshape(-1).view(np.uint8))
                  for i, a in enumerate(case.arguments) if isinstance(a, np.ndarray)}  # fmt: skip
        values = [arrays[i].data.ptr if i in arrays else value for i, value in enumerate(case.arguments)]
        layout = struct.Struct("<" + "".join(case.codes))
        arguments = Arguments(layout, range(len(case.codes)))
        layout.pack_into(arguments.slots, 0, *values)
        x, y, z = (*case.grid, 1, 1)[:3]
        driver.launch(function, (x, y, z), case.threads, arguments, case.shared_bytes, 0, 0)
        cupy.cuda.runtime.deviceSynchronize()
        outputs.append([arrays[i].get().tobytes() for i in case.written])
    plan.with_suffix(".outputs").write_bytes(pickle.dumps(outputs))


class Profiler:
    """Nsight Compute on this machine. `folder` keeps its output."""

    def __init__(self, path: str | None, folder: Path):
        from tessera.runtime.api import device_arch

        self.ncu = ncu.find(path)
        self.folder = folder
        self.arch = device_arch(0)
        self.known = ncu.query(self.ncu)
        wide = [name for name in self.known if any(part in name for part in WIDE)]
        (folder / "metrics.txt").write_text("\n".join(wide) + "\n")
        print(f"{self.ncu}, {self.arch}, {len(self.known)} counters, {len(wide)} of interest", flush=True)

    def hardware(self) -> list[str]:
        return [f"{name}.sum" for name in HARDWARE if name in self.known or not self.known]

    def wide(self) -> list[str]:
        """All counters of the SM that may be of interest, one of `smsp__` and `sm__` where both have it."""
        per_quarter = {name.removeprefix("smsp__") for name in self.known if name.startswith("smsp__")}
        names = [name for name in self.known if any(part in name for part in WIDE) and name not in HARDWARE]
        names = [
            n for n in names if n.startswith(("l1tex", "smsp", "sm__")) and n.removeprefix("sm__") not in per_quarter
        ]
        names = [name for name in names if not any(part in name for part in ("bytes", "cycles", "average", "pred_on"))]
        names.sort(key=lambda name: ("inst_executed_pipe" not in name, "sass" not in name, "shared" not in name, name))
        return [f"{name}.sum" for name in names[:WIDE_LIMIT]]

    def measure(
        self, title: str, cases: Sequence[Case], lists: Sequence[Sequence[str]], seconds: float, source: bool = False
    ) -> tuple[list[dict[str, Any]], list[list[bytes]]]:
        """What each launch measured and wrote, for as many cases as the time allows; the lists are tried in turn."""
        from tessera.runtime.nvrtc import compile_cubin

        start = time.monotonic()
        texts = {case.text: case.kernel for case in cases}
        cubins = {text: compile_cubin(text, self.arch, name).cubin for text, name in texts.items()}
        with tempfile.TemporaryDirectory() as place:
            plan, report = Path(place) / "plan", Path(place) / "report.ncu-rep"
            plan.write_bytes(pickle.dumps((list(cases), cubins)))
            command = [sys.executable, str(Path(__file__)), "--launch", str(plan), "--micro-seconds", str(seconds)]
            options = ["--section", "SourceCounters"] if source else []
            for number, metrics in enumerate(lists):
                try:
                    printed = ncu.collect(self.ncu, command, report, metrics, options, timeout=seconds + 100)
                    break
                except ncu.NcuError as refused:
                    (self.folder / f"{title}_refused_{number}.txt").write_text(str(refused))
                    print(f"{title}: a list of {len(metrics)} metrics was refused: {str(refused)[-600:]}", flush=True)
            else:
                return [], []
            raw = ncu.page(self.ncu, report, "raw")
            (self.folder / f"{title}_raw.csv").write_text(raw)
            measured: list[dict[str, Any]] = [dict(row) for row in ncu.parse_raw(raw)]
            if source:
                self._add_source(title, report, measured)
            outputs = pickle.loads(plan.with_suffix(".outputs").read_bytes())
        names = [(case.kernel, str(row.pop("Kernel Name"))) for case, row in zip(cases, measured, strict=False)]
        if len(measured) != len(outputs) or any(not seen.startswith(wanted) for wanted, seen in names):
            raise ncu.NcuError(
                f"{title}: {len(outputs)} launches, {len(measured)} measured: {names[:5]}\n{printed[-2000:]}"
            )
        print(f"{title}: {len(measured)} of {len(cases)} launches in {time.monotonic() - start:.0f} s", flush=True)
        return measured, outputs

    def _add_source(self, title: str, report: Path, measured: list[dict[str, Any]]) -> None:
        text = ncu.page(self.ncu, report, "source")
        (self.folder / f"{title}_source.csv").write_text(text)
        tables = ncu.parse_source(text)
        if len(tables) != len(measured):
            print(f"{title}: {len(tables)} tables of instructions for {len(measured)} launches; see the folder")
            return
        for row, table in zip(measured, tables, strict=True):
            row |= ncu.sum_by_opcode(table)
            row["instructions"] = [
                [line["Source"], *(line.get(column, 0) for column in ncu.SOURCE_COLUMNS)]
                for line in table
                if ncu.opcode(str(line["Source"])) in ncu.OPCODES
            ]


def measure_all(
    rows: list[dict[str, Any]], cases: Sequence[Case], outputs: list[list[np.ndarray]], arguments: Any
) -> None:
    """Adds `measured` to the rows, and `output` where the GPU wrote something else than the emulator."""
    profiler = Profiler(arguments.ncu, arguments.folder)
    hardware, core = profiler.hardware(), [f"{name}.sum" for name in CORE]
    limit = arguments.micro_seconds
    runs = [
        ("kernels", [[*hardware, *SOURCE, *profiler.wide()], [*hardware, *SOURCE], hardware, core], 60.0, True),
        ("micro", [hardware, core], limit, False),
        ("micro", [SOURCE], limit / 2, False),
    ]
    for number, (group, lists, seconds, source) in enumerate(runs):
        places = [i for i, case in enumerate(cases) if case.group == group]
        if not places:
            continue
        measured, written = profiler.measure(f"{number}_{group}", [cases[i] for i in places], lists, seconds, source)
        for i, values, data in zip(places, measured, written, strict=False):
            if "instructions" in values:
                rows[i]["instructions"] = values.pop("instructions")
            numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
            rows[i]["measured"] = rows[i].get("measured", {}) | numbers
            difference = different(outputs[i], data)
            if difference:
                rows[i]["output"] = difference


def different(ours: Sequence[np.ndarray], theirs: Sequence[bytes]) -> str:
    """How far the GPU's arrays are from the emulator's; empty where every bit is the same, or nothing was emulated."""
    for mine, data in zip(ours, theirs, strict=False):
        other = np.frombuffer(data, mine.dtype).reshape(mine.shape)
        if mine.tobytes() != other.tobytes():
            away = np.abs(mine.astype(np.float64) - other.astype(np.float64))
            return f"{np.count_nonzero(away)} of {away.size} elements differ, by at most {away.max():.3g}"
    return ""


# ---- results -------------------------------------------------------------------------------------------------------


def compare(row: dict[str, Any]) -> Iterator[tuple[str, int, int | float]]:
    """(title, ours, measured) for each pair of which a row has both and one is not zero."""
    if "ours" not in row:
        return
    ours, measured = row["ours"], row.get("measured", {})
    for keys, metric in PAIRS:
        if metric in measured:
            mine = sum(ours.get(key, 0) for key in keys)
            if mine or measured[metric]:
                yield f"{' + '.join(keys)} = {metric}", mine, measured[metric]


def show(rows: Sequence[dict[str, Any]]) -> int:
    """Prints how often the numbers of each part are equal, and where they are not; returns how many are not."""
    agreed: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    unequal: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        part = row["kind"] if row["group"] == "micro" else row["name"]
        for title, mine, measured in compare(row):
            agreed[part][0] += mine == measured
            agreed[part][1] += 1
            if mine != measured:
                where = row["pattern"] if row["group"] == "micro" else row["name"]
                unequal[row.get("kind", "kernels"), title].append(f"{where}: {mine}, GPU {measured}")
        for name in ("faults", "output"):
            if name in row and (row["group"] == "kernels" or name == "faults"):
                print(f"{row['name']}: {name}: {row[name]}")
    for (part, title), found in sorted(unequal.items()):
        print(f"{part}: {title}: {len(found)} not equal: {'; '.join(found[:3])}")
    for part, (equal, total) in sorted(agreed.items()):
        print(f"{part:45s} {equal:5d} of {total:5d} equal")
    odd = sum("output" in row for row in rows if row["group"] == "micro")
    wrong = sum(len(values) for values in unequal.values())
    total = sum(total for _, total in agreed.values())
    print(f"{total - wrong} of {total} numbers equal; {odd} kernels of one instruction computed something else")
    return wrong


def show_ours(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        numbers = " ".join(f"{name} {value}" for name, value in row.get("ours", {}).items() if "bytes" not in name)
        print(f"{row['name']:60s} {numbers} {' '.join(row.get('faults', ()))}")


def save(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """One line per row; the names of what was measured are kept once per group, the values in their order."""
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        names[row["group"]].update(dict.fromkeys(row.get("measured", {})))
    packed = []
    for row in rows:
        if "measured" in row:
            row = row | {"measured": [row["measured"].get(name) for name in names[row["group"]]]}
        packed.append(json.dumps(row, separators=(",", ":")))
    head = json.dumps({"machine": facts, "measured": {group: list(keys) for group, keys in names.items()}})
    path.write_text(head[:-1] + ', "rows": [\n' + ",\n".join(packed) + "\n]}\n")


def restore(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows and the facts about the machine that `save` wrote."""
    data = json.loads(path.read_text())
    for row in data["rows"]:
        if "measured" in row:
            pairs = zip(data["measured"][row["group"]], row["measured"], strict=True)
            row["measured"] = {name: value for name, value in pairs if value is not None}
    return data["rows"], data["machine"]


SUMMARY = {  # what `tessera check` promises of a kernel: name -> ours, the hardware's counter
    "shared reads: wavefronts": (_LOADS, _SHARED + "_op_ld.sum"),
    "shared reads: bank conflicts": (_LOADS, _CONFLICTS + "_op_ld.sum"),
    "shared writes: wavefronts": (("st_shared",), _SHARED + "_op_st.sum"),
    "shared writes: bank conflicts": (("st_shared",), _CONFLICTS + "_op_st.sum"),
    "ldmatrix": (("ldmatrix",), "smsp__inst_executed_op_ldsm.sum"),
    "mma": (("mma",), "sass:HMMA.executed"),
}


def summary(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """By kernel, each number of SUMMARY as [ours, the GPU's]."""
    kernels: dict[str, dict[str, list[int | float]]] = {}
    for row in rows:
        if row["group"] != "kernels" or "ours" not in row:
            continue
        kernels[row["name"]] = found = {}
        for title, (kinds, metric) in SUMMARY.items():
            if metric in row.get("measured", {}):
                suffix = ".excess" if "conflicts" in title else ".wavefronts" if "wavefronts" in title else ""
                keys = [f"{kind}{suffix or '.requests' if kind != 'mma' else ''}" for kind in kinds]
                found[title] = [sum(row["ours"].get(key, 0) for key in keys), row["measured"][metric]]
    return {"machine": facts, "kernels": kernels}


def recount(path: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The measurements of a file with what the emulator counts now; texts that have changed since are named."""
    before, facts = restore(path)
    rows, _ = count_all(cases)
    known = {(row["group"], row["name"]): row for row in before}
    for row in rows:
        old = known.pop((row["group"], row["name"]), None)
        if old is None:
            print(f"never measured: {row['name']}")
        elif old["text"] != row["text"] or old.get("offsets") != row.get("offsets"):
            print(f"not what was measured any more, so left out: {row['name']}")
        else:
            row |= {name: old[name] for name in ("measured", "instructions", "output") if name in old}
    save(path, [*rows, *known.values()], facts)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--folder", type=Path, help="where what Nsight Compute printed goes")
    parser.add_argument("--only", choices=("kernels", "micro"), help="one of the two parts")
    parser.add_argument("--cpu-only", action="store_true", help="prints what the emulator counts, without a GPU")
    parser.add_argument("--summary", type=Path, help="where the numbers of the kernels go, with --recount")
    parser.add_argument("--recount", type=Path, metavar="RESULT.json", help="counts again for measurements of before")
    parser.add_argument("--ncu", help="Nsight Compute's command")
    parser.add_argument("--micro-seconds", type=float, default=80, help="time for the launches of one instruction")
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)  # what this script starts under Nsight Compute
    arguments = parser.parse_args()
    if arguments.launch:
        launch_all(arguments.launch, arguments.micro_seconds)
        return 0
    cases = [
        *([] if arguments.only == "micro" else kernel_cases()),
        *([] if arguments.only == "kernels" else micro_cases()),
    ]
    if arguments.recount:
        wrong = show(recount(arguments.recount, cases))
        if arguments.summary:
            arguments.summary.write_text(json.dumps(summary(*restore(arguments.recount)), indent=1) + "\n")
        return 1 if wrong else 0
    start = time.monotonic()
    rows, outputs = count_all(cases)
    print(f"the emulator counted {len(rows)} launches in {time.monotonic() - start:.0f} s", flush=True)
    facts: dict[str, Any] = {}
    if arguments.cpu_only:
        show_ours(rows)
    else:
        from tessera.runtime.bench_machine import facts as machine

        facts = machine()
        arguments.folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bank-conflicts-"))
        arguments.folder.mkdir(parents=True, exist_ok=True)
        measure_all(rows, cases, outputs, arguments)
    if arguments.json:
        save(arguments.json, rows, facts)
    return 0 if arguments.cpu_only else 1 if show(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
