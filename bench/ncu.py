"""Runs a process under Nsight Compute and reads what it measured, as numbers per launch and per machine instruction.

Collection and printing are two calls: a report is written once, and its pages are read from the file.
"""

from __future__ import annotations

import csv
import glob
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

NUMBER = re.compile(r"-?[\d,]*\.?\d+(?:[eE][+-]?\d+)?")
METRIC = re.compile(r'^"?((?:smsp|sm|l1tex|lts|idc)__\w+)"?[\s,]*"?(Counter|Ratio|Throughput)?', re.MULTILINE)

# Facts about the machine and samples of where warps wait: nothing that this project compares.
_IGNORED = ("device__", "launch__", "nvlink__", "numa__", "pcie__", "profiler__", "smsp__pcsamp", "pmsampling")

# Columns of the source page, and the names that sums over instructions of one opcode get.
SOURCE_COLUMNS = {
    "Instructions Executed": "executed",
    "L1 Wavefronts Shared": "wavefronts",
    "L1 Wavefronts Shared Ideal": "ideal",
    "L1 Tag Requests Global": "tag_requests",
    "L2 Theoretical Sectors Global": "sectors",
    "L2 Theoretical Sectors Global Ideal": "sectors_ideal",
}
# LDS and LDSM are loads from shared memory, LDGSTS is cp.async, HMMA and IMMA are mma.sync.
OPCODES = ("LDS", "LDSM", "STS", "STSM", "LDGSTS", "LDG", "STG", "RED", "ATOMG", "ATOMS", "HMMA", "IMMA", "QMMA", "BAR")


class NcuError(RuntimeError):
    """Nsight Compute is missing, or ended without a report. The message holds the end of its output."""


def find(path: str | None = None) -> str:
    """Where Nsight Compute's command is: `path`, or on the PATH, or where its packages put it. Raises NcuError."""
    places = [path] if path else ["ncu", "/usr/local/cuda/bin/ncu", *sorted(glob.glob("/opt/nvidia/*/*/ncu"))[::-1]]
    for place in places:
        found = shutil.which(place)
        if found:
            return found
    raise NcuError(f"Nsight Compute is not installed ({', '.join(places)})")


def query(ncu: str) -> list[str]:
    """The counters that this machine's GPU has, without a suffix; ratios are left out."""
    output = subprocess.run([ncu, "--query-metrics"], capture_output=True, text=True, timeout=120).stdout
    return metric_names(output)


def metric_names(output: str) -> list[str]:
    """The counters in what `--query-metrics` prints."""
    return sorted({name for name, kind in METRIC.findall(output) if kind in ("", "Counter")})


def collect(
    ncu: str,
    command: Sequence[str],
    report: Path,
    metrics: Iterable[str],
    options: Sequence[str] = (),
    timeout: float = 240,
) -> str:
    """Runs `command` with every launch of it measured, into the file `report`; returns what was printed.

    Clocks stay as they are: counts do not depend on them. Raises NcuError.
    """
    arguments = [ncu, "--clock-control", "none", "--cache-control", "none", "-f", "-o", str(report)]
    arguments += ["--metrics", ",".join(metrics), *options, *command]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise NcuError(f"no end after {timeout:.0f} s: {' '.join(arguments)}") from late
    printed = done.stdout + done.stderr
    if done.returncode != 0 or not report.exists() or "==ERROR==" in printed:
        raise NcuError(f"exit status {done.returncode}: {printed[-3000:]}")
    return printed


def page(ncu: str, report: Path, name: str, options: Sequence[str] = ()) -> str:
    """A page ("raw" or "source") of a report as CSV text. Raises NcuError."""
    arguments = [ncu, "--import", str(report), "--csv", "--page", name, "--print-units", "base", *options]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        raise NcuError(f"the page '{name}' of {report}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def number(text: str) -> float | int | None:
    """The number that a field starts with; None where there is none. Thousands may be set apart by commas."""
    match = NUMBER.match(text.strip())
    if match is None:
        return None
    value = float(match[0].replace(",", ""))
    return int(value) if value.is_integer() else value


def parse_raw(text: str) -> list[dict[str, float | int | str]]:
    """One dict per launch, in order: its "Kernel Name", "Block Size" and "Grid Size" as texts, its metrics as numbers.

    Raises ValueError for a text without a table.
    """
    rows = list(csv.reader(text.splitlines()))
    start = next((i for i, row in enumerate(rows) if "Kernel Name" in row and "ID" in row), None)
    if start is None:
        raise ValueError(f"no table in what Nsight Compute printed: {text[:500]!r}")
    header, launches = rows[start], []
    for row in rows[start + 1 :]:
        if len(row) != len(header) or not row[header.index("ID")].strip().isdigit():
            continue  # the row of units
        launch: dict[str, float | int | str] = {}
        for name, field in zip(header, row, strict=True):
            metric = name.startswith("memory_") or ("__" in name and not name.startswith(_IGNORED))
            value = number(field) if metric else None
            if name in ("Kernel Name", "Block Size", "Grid Size"):
                launch[name] = field
            elif value is not None:
                launch[name] = value
        launches.append(launch)
    return launches


def parse_source(text: str) -> list[list[dict[str, float | int | str]]]:
    """One list per launch, in order: of each machine instruction its text ("Source") and the `SOURCE_COLUMNS`.

    Columns of a name that occurs twice count once.
    """
    tables: list[list[dict[str, float | int | str]]] = []
    header: list[str] = []
    for row in csv.reader(text.splitlines()):
        if "Source" in row and "Address" in row:
            header = row
            tables.append([])
        elif header and len(row) == len(header):
            instruction: dict[str, float | int | str] = {"Source": row[header.index("Source")].strip()}
            for column in SOURCE_COLUMNS:
                if column in header:
                    instruction[column] = number(row[header.index(column)]) or 0
            tables[-1].append(instruction)
    return tables


def opcode(instruction: str) -> str:
    """`@!P0 LDS.U.128 R4, [R8]` -> `LDS`; empty for one that never acts.

    The assembler puts loads under `@!PT` before cp.async on Hopper: they are executed and touch nothing.
    """
    if instruction.startswith("@!PT "):
        return ""
    words = [word for word in instruction.replace("{", " ").split() if not word.startswith("@")]
    return words[0].split(".")[0].rstrip(";") if words else ""


def sum_by_opcode(instructions: Iterable[dict[str, float | int | str]]) -> dict[str, int]:
    """`{"sass:LDS.wavefronts": ...}`: the columns of the source page summed over the instructions of one opcode."""
    sums: dict[str, int] = {}
    for instruction in instructions:
        name = opcode(str(instruction["Source"]))
        if name in OPCODES:
            for column, short in SOURCE_COLUMNS.items():
                key = f"sass:{name}.{short}"
                sums[key] = sums.get(key, 0) + int(instruction.get(column, 0))
    return sums
