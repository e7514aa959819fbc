"""A machine without a GPU on which benchmarks run: a clock that entrants turn themselves, and entrants of all kinds."""

from pathlib import Path

import numpy as np

from tessera.runtime.autotune_report import settings_text
from tessera.runtime.bench_case import (
    FLOOR,
    OURS,
    RIVAL,
    UNTUNED,
    Case,
    Entrant,
    Prepared,
    Problem,
    Searched,
    WrongAnswer,
)
from tessera.runtime.bench_device import Peaks

SCHEDULES = tuple({"tile": tile, "group": 1} for tile in (16, 32, 64, 128))
RIVAL_FILE = Path(__file__).with_name("fake_rival.py")


class Device:
    """Time passes only through `spend`. `order` is who ran inside of `timed`, by the microseconds that each took."""

    def __init__(self, **facts):
        self.facts = {"gpu": "Pretend 100", "maker": "1.0", **facts}
        self.now, self.order, self.fatal = 0.0, [], None

    def spend(self, us):
        self.now += us

    def timed(self, calls, repeats, warm=3):
        samples = [[] for _ in calls]
        for index in range(-warm, repeats):
            for kept, call in zip(samples, calls, strict=True):
                before = self.now
                call()
                self.order.append(self.now - before)
                if index >= 0:
                    kept.append(self.now - before)
        return samples

    def synchronize(self):
        if self.fatal is not None:
            raise self.fatal

    def peaks(self):
        return Peaks(1e12, 100e12, "a pretended product")


class Compilers:
    """Writes down what it is asked to compile."""

    def __init__(self):
        self.queued, self.compiled = [], []

    def queue(self, searched):
        self.queued.append(searched.key)

    def compile(self, searched):
        self.compiled.append((searched.key, searched.schedules))
        return len(searched.schedules)

    def close(self):
        pass


def entrant(device, name, kind, us, factor=1.0, **options):
    """One that gives `factor` times the right answer after `us` microseconds, or raises `us` when it is called."""
    out = np.zeros(4)

    def call():
        if isinstance(us, Exception):
            raise us
        device.spend(us() if callable(us) else us)
        out[:] = np.arange(1.0, 5.0) * factor
        return out

    return Entrant(name, kind, lambda: Prepared(call, lambda: out.fill(np.nan)), **options)


def times_of(schedule):
    """Larger tiles are faster, and so is a group of 4; the fastest of all gives a wrong answer."""
    return 400.0 / schedule["tile"] / (2 if schedule["group"] == 4 else 1)


def searched_rival(device, wrong=(128,), impossible=(16,), log=None, d=4):
    """A rival over `SCHEDULES`; `wrong` and `impossible` are tiles."""
    out = np.zeros(4)

    def call(schedule):
        if schedule["tile"] in impossible:
            raise RuntimeError("out of resources\nmore")
        device.spend(times_of(schedule))
        if log is not None:
            log.append(dict(schedule))
        if schedule["tile"] not in wrong:  # one that is wrong leaves what was there before
            out[:] = np.arange(1.0, 5.0)
        return out

    return Entrant("searched", RIVAL, lambda: Prepared(call, lambda: out.fill(np.nan)), searched=searched(d))


def searched(d=4):
    return Searched(
        "searched",
        f"pretended D={d}",
        RIVAL_FILE,
        {"D": d},
        SCHEDULES,
        lambda schedule: [{**schedule, "group": 4}],
        ("maker",),
    )


def problem(*entrants, flops=2_000_000_000, rate=1.0):
    return Problem(entrants, lambda: np.arange(1.0, 5.0), 10_000_000, flops, rate)


def pinned(device, pins):
    """Ours with fields of its schedule fixed: warpgroups are faster."""
    return entrant(device, f"own {settings_text(pins)}", OURS, 80.0 if pins.get("family") == "wgmma" else 120.0)


def ordinary(device, dims):
    """Ours, its untuned variant, rivals of both kinds and a floor; D = 13 cannot be made."""
    if dims["D"] == 13:
        raise MemoryError("no room for D = 13")
    return problem(
        entrant(device, "own", OURS, 100.0, pinned=lambda pins: pinned(device, pins)),
        entrant(device, "own untuned", UNTUNED, 150.0, of="own"),
        entrant(device, "eager", RIVAL, 300.0),
        entrant(device, "compile", RIVAL, 200.0),
        entrant(device, "cheat", RIVAL, 1.0, factor=1.1),
        searched_rival(device, wrong=(64, 128), d=dims["D"]),
        entrant(device, "stream", FLOOR, 20.0, factor=7.0, scale=2.5),
    )


def case(device, rows=({"D": 4, "stored": "nn"}, {"D": 8, "stored": "nn"}, {"D": 4, "stored": "nt"}), make=ordinary):
    return Case(
        "pretended",
        "a case without a GPU",
        rows,
        lambda dims: make(device, dims),
        ("eager", "compile", "cheat", "searched", "stream"),
        lambda dims: [searched(dims["D"])],
    )


__all__ = ["Compilers", "Device", "WrongAnswer", "case", "entrant", "ordinary", "problem", "searched_rival"]
