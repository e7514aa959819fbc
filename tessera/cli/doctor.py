"""`tessera doctor`: what this machine has and can do, with the command that installs each thing that is missing."""

from __future__ import annotations

from typing import Any

from tessera.cli import report
from tessera.runtime.machine import OK, Check, checks


def doctor(as_json: bool) -> int:
    """Fails only when something is broken that nothing works without."""
    found = checks()
    ok = all(check.state == OK for check in found if check.required)
    lanes = _lanes(found)
    if as_json:
        body: dict[str, Any] = {"ok": ok, "lane": _automatic(lanes), "lanes": lanes}
        report.print_json(body | {"checks": [vars(check) for check in found]})
        return report.OK if ok else report.FAILED
    report.table(["", "state", ""], [[check.name, check.state, check.detail] for check in found])
    for check in found:
        if check.state != OK and check.remedy:
            print(f"{check.name}: {check.remedy}")
    print("lanes: " + ", ".join(f"{name} {'yes' if here else 'no'}" for name, here in lanes.items()))
    return report.OK if ok else report.FAILED


def _lanes(found: list[Check]) -> dict[str, bool]:
    """Which lanes run here."""
    good = {check.name for check in found if check.state == OK}
    base = all(check.state == OK for check in found if check.required)
    return {
        "interpret": base,
        "emulate": base and "c++ compiler" in good,
        "cuda": base and "nvrtc" in good and any(name.startswith("gpu ") for name in good),
    }


def _automatic(lanes: dict[str, bool]) -> str | None:
    """The lane of a call that names none."""
    return "cuda" if lanes["cuda"] else "interpret" if lanes["interpret"] else None


__all__ = ["doctor"]
