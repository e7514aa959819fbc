"""Intervals of integers: where sums, products, quotients and extremes lie when their operands do."""

from __future__ import annotations

from tessera.ir import dims

Interval = tuple["int | None", "int | None"]  # least and greatest value, both possible; None where there is no limit

UNKNOWN: Interval = (None, None)


def plus(a: int | None, b: int | None) -> int | None:
    """The sum of two ends, unlimited where one of them is."""
    return None if a is None or b is None else a + b


def multiply(a: Interval, b: Interval) -> Interval:
    """All products of a number of `a` and one of `b` lie in the result."""
    if a == (0, 0) or b == (0, 0):
        return 0, 0
    (a0, a1), (b0, b1) = a, b
    if None not in (a0, a1, b0, b1):
        corners = [x * y for x in a for y in b]  # type: ignore[operator]
        return min(corners), max(corners)
    if a1 is not None and a1 <= 0:
        low, high = multiply((-a1, None if a0 is None else -a0), b)
        return None if high is None else -high, None if low is None else -low
    if b1 is not None and b1 <= 0:
        return multiply(b, a)
    if a0 is not None and b0 is not None and a0 >= 0 and b0 >= 0:
        return a0 * b0, None if a1 is None or b1 is None else a1 * b1
    return UNKNOWN


def apply(function: str, a: Interval, b: Interval) -> Interval:
    """The same for "min", "max", "floordiv", "cdiv" and "mod". Nothing is known of a division by what may be negative;
    one by zero has no result.
    """
    (a0, a1), (b0, b1) = a, b
    if function == "min":
        least = None if a0 is None or b0 is None else min(a0, b0)
        return least, min((x for x in (a1, b1) if x is not None), default=None)
    if function == "max":
        greatest = None if a1 is None or b1 is None else max(a1, b1)
        return max((x for x in (a0, b0) if x is not None), default=None), greatest
    if b0 is None or b0 < 0:
        return UNKNOWN
    b0 = max(b0, 1)
    if function == "mod":
        if a0 is not None and a0 >= 0 and a1 is not None and a1 < b0:
            return a0, a1
        return 0, None if b1 is None else b1 - 1
    divide = dims.FUNCTIONS[function]  # floordiv or cdiv: rising in a; in b falling for a >= 0 and rising for a < 0

    def quotient(x: int | None, by: int | None) -> int | None:
        if x is None:
            return None
        if by is not None:
            return int(divide(x, by))  # type: ignore[arg-type]
        return {"floordiv": 0 if x >= 0 else -1, "cdiv": 0 if x <= 0 else 1}[function]  # the limit for a large divisor

    low = quotient(a0, b1 if a0 is not None and a0 >= 0 else b0)
    high = quotient(a1, b0 if a1 is not None and a1 >= 0 else b1)
    return low, high
