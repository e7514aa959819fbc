"""What decides how functions run besides their arguments: the training mode, and the seed of random numbers.

The mode belongs to the thread (or asyncio task) that sets it: every new thread starts in evaluation mode. The seed
belongs to the process, so that no two threads draw the same numbers; without `manual_seed` it is 0, and every run draws
alike.
"""

from __future__ import annotations

import operator
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from tessera.errors import ArgumentError

# ---- training or evaluation ------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """The mode in force, what the end of the innermost `with` returns to, and the switch that set the mode last."""

    training: bool
    outer: _Frame | None = None
    by: Switch | None = None


_START = _Frame(False)
_frame: ContextVar[_Frame] = ContextVar("tessera_mode", default=_START)
current_frame = _frame.get  # for what cannot wait for `is_training`


class Switch:
    """What `train()` and `eval()` return: the mode is switched already, and a `with` switches it back at its end."""

    __slots__ = ("_before", "_training")

    def __init__(self, training: bool) -> None:
        frame = _frame.get()
        self._before = frame.training
        self._training = training
        _frame.set(_Frame(training, frame.outer, self))

    def __enter__(self) -> None:
        frame = _frame.get()
        if frame.by is self:  # `with train():`, whose call has switched just now: the end undoes the call as well
            frame = _Frame(self._before, frame.outer)
        _frame.set(_Frame(self._training, frame))

    def __exit__(self, *raised: object) -> None:
        # Calls inside of the block have replaced the frame but kept what it returns to.
        _frame.set(_frame.get().outer or _START)


def is_training() -> bool:
    """Whether functions run as in training, where they may drop elements; False until `train()` is called."""
    return _frame.get().training


def train() -> Switch:
    """Switches to training mode: `train()` from here on, `with train():` inside of the block only."""
    return Switch(True)


def eval() -> Switch:
    """Switches to evaluation mode: `eval()` from here on, `with eval():` inside of the block only."""
    return Switch(False)


def mode_key() -> str:
    """The mode as a part of the key under which a compiled function is kept: "train" or "eval"."""
    return "train" if is_training() else "eval"


# ---- seeds -----------------------------------------------------------------------------------------------------------

_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class SeedState:
    """The seed that was set, without a sign, and how many were drawn since: all that the next one needs."""

    seed: int
    count: int = 0


_state = SeedState(0)
_drawing = threading.Lock()


def manual_seed(seed: int) -> None:
    """Starts the random numbers of this process over. `seed`: an integer of 64 bits, with or without a sign.

    Raises ArgumentError TS203 for anything else.
    """
    _set(SeedState(_checked("manual_seed", seed, -(1 << 63), _WORD) & _WORD))


def next_seed() -> int:
    """A fresh seed, in [0, 2^53): a function of the manual seed and of how many were drawn since it was set.

    53 bits, so that a float64 holds it: reference mode computes with such numbers.
    """
    global _state
    with _drawing:
        _state = state = SeedState(_state.seed, _state.count + 1)
    return _mix((_mix(state.seed + _GAMMA) + state.count * _GAMMA) & _WORD) >> 11


def get_state() -> SeedState:
    """Where the random numbers of this process stand: `set_state` continues from there."""
    return _state


def set_state(state: SeedState) -> None:
    """Returns to what `get_state` gave; raises ArgumentError TS203 for anything else."""
    if not isinstance(state, SeedState):
        raise ArgumentError("TS203", f"set_state takes what get_state returned, not {state!r}")
    seed = _checked("set_state", state.seed, 0, _WORD)
    _set(SeedState(seed, _checked("set_state", state.count, 0, _WORD)))


def _set(state: SeedState) -> None:
    global _state
    with _drawing:
        _state = state


def _checked(function: str, value: Any, lowest: int, highest: int) -> int:
    """`value` as an int, also from an integer type of NumPy; a bool is none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ArgumentError("TS203", f"{function} takes an integer, not {value!r}")
    if not lowest <= number <= highest:
        raise ArgumentError("TS203", f"{function} takes an integer of 64 bits, not {number}")
    return number


def _mix(z: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a well mixed permutation of 64 bits."""
    z &= _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
