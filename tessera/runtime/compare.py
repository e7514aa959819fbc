"""The one rule that says whether an answer is right, for `run`, tests, fuzzers and the tuner.

An element is right when it lies within its error bar; NaN and infinity must match. Where a bar is wider than 5 % of the
reference's RMS, as after long chains, bars say little: then the whole array must also pass the RMS rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tessera.dtypes import from_numpy, from_storage
from tessera.errors import ArgumentError
from tessera.ir.bounds import Bar

WIDE_BAR = 0.05
# Largest RMS(x - r) / (RMS(r) + 1e-8) of a right answer: twice what operand rounding gives on the longest chains (the
# gated delta rule in bf16 over 1024 steps reaches 0.0047). A float32 result of bf16 operands is no better than those.
RMS_LIMIT = 0.008


@dataclass(frozen=True)
class Comparison:
    """`max_error` and `bound` are |x - r| and e of the element `worst_index`, the one with the largest |x - r| / e.

    An error that has no size (NaN or infinity that does not match) is infinite. `fraction_bad` counts elements outside
    their bars. `rms_rule`: whether the RMS rule had a say; `rms_ratio` is then RMS(x - r) / (RMS(r) + 1e-8).
    """

    ok: bool
    max_error: float
    bound: float
    worst_index: tuple[int, ...]
    fraction_bad: float
    rms_rule: bool
    rms_ratio: float = 0.0


def check(actual: np.ndarray, reference: Bar) -> Comparison:
    """Compares an array of a storage dtype with the bars of the same shape. Raises ArgumentError TS604 or TS302."""
    dtype = from_numpy(actual.dtype)
    if dtype is None:
        raise ArgumentError("TS604", f"an array of {actual.dtype} cannot be compared: it is no storage type")
    if actual.shape != reference.shape:
        raise ArgumentError("TS302", f"the shapes {list(actual.shape)} and {list(reference.shape)} differ")
    if actual.size == 0:
        return Comparison(True, 0.0, 0.0, (), 0.0, False)
    x, r, e = np.asarray(from_storage(dtype, actual), np.float64), reference.r, reference.e
    error = distance(x, r)
    worst = np.unravel_index(int(np.argmax(_in_bars(error, e))), error.shape)
    bad = ~(error <= e) | (np.isinf(error) & (np.isnan(x) | np.isnan(r) | np.isinf(r)))
    uses_rms, ratio = _rms(error, r, e)
    ok = not bad.any() and (not uses_rms or ratio <= RMS_LIMIT)
    return Comparison(
        bool(ok), float(error[worst]), float(e[worst]), tuple(int(i) for i in worst), float(bad.mean()), uses_rms, ratio
    )


def distance(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """|x - r|: 0 where both are NaN or the same infinity, infinite where only one is."""
    same = (x == r) | (np.isnan(x) & np.isnan(r))
    with np.errstate(all="ignore"):
        error = np.abs(x - r)
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def _in_bars(error: np.ndarray, e: np.ndarray) -> np.ndarray:
    """error / e; 0 where there is no error, infinite where the bar is exact or the error is."""
    with np.errstate(all="ignore"):
        ratio = np.where(np.isinf(error), np.inf, error / e)
    return np.where(error == 0, 0.0, np.where(np.isnan(ratio), np.inf, ratio))


def _rms(error: np.ndarray, r: np.ndarray, e: np.ndarray) -> tuple[bool, float]:
    """Whether some bar is wide, and the RMS ratio then; elements whose reference is not finite take no part."""
    finite = np.isfinite(r)
    if not finite.any():
        return False, 0.0
    scale = _root_mean_square(r[finite])
    if not np.any(e[finite] > WIDE_BAR * scale):
        return False, 0.0
    return True, _root_mean_square(error[finite]) / (scale + 1e-8)


def _root_mean_square(values: np.ndarray) -> float:
    largest = float(np.max(np.abs(values)))
    if largest == 0 or not np.isfinite(largest):
        return largest
    return largest * float(np.sqrt(np.mean(np.square(values / largest))))
