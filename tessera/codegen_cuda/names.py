"""C names, types and integer expressions of an emitted kernel."""

from __future__ import annotations

import math
import re
from typing import Any

from tessera.dtypes import DType, round_to, to_storage
from tessera.ir.core import Value
from tessera.ir.dims import Atom, Dim, Size

_CALLS = {"floordiv": "ts_floordiv", "mod": "ts_floormod", "cdiv": "ts_cdiv", "min": "ts_imin", "max": "ts_imax"}
# C++17's, the words for operators among them.
_KEYWORDS = frozenset(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl const "
    "const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern "
    "false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or "
    "or_eq private protected public register reinterpret_cast return short signed sizeof static static_assert "
    "static_cast struct switch template this thread_local throw true try typedef typeid typename union unsigned using "
    "virtual void volatile wchar_t while xor xor_eq".split()
)

# Names of layouts and of the parts of reductions and coordinates.
_NUMBERED = re.compile(r"[cx]\d+|[LS]\d+\w*|total")


def identifier(hint: str) -> str:
    """A C identifier near `hint`, never one that starts with `ts_` or `TS_` as the device header's names do, nor one
    of the numbered names of emitted text."""
    text = re.sub(r"\W", "_", hint, flags=re.ASCII) or "v"
    if text[0].isdigit() or text.lower().startswith("ts_") or text in _KEYWORDS or _NUMBERED.fullmatch(text):
        text = "v_" + text
    return text


# What NVRTC or g++ declare on their own: a kernel is extern "C" and cannot be another function of that name.
_FUNCTIONS = frozenset(
    "abort abs acos acosh alloca asin asinh assert atan atan2 atanh bcmp bzero calloc cbrt ceil clock "
    "copysign cos cosh div erf erfc exit exp exp2 expm1 fabs fdim floor fma fmax fmin fmod free frexp gamma "
    "hypot ilogb index isalpha isdigit isfinite isinf isnan isnormal j0 j1 jn labs ldexp lgamma llabs log "
    "log10 log1p log2 logb lrint lround main malloc max memcmp memcpy memmove memset min modf nan nearbyint "
    "nextafter norm normcdf pow printf puts rand realloc remainder remquo rint round rsqrt scalbn signbit sin "
    "sincos sinh sqrt strcmp strlen tan tanh tgamma trunc y0 y1 yn".split()
)


def function_name(name: str) -> str:
    """The C name of a kernel: its own, unless C++ or CUDA has a keyword or a function of that name."""
    text = identifier(name)
    return f"{text}_kernel" if text in _FUNCTIONS or f"{text[:-1]}" in _FUNCTIONS and text[-1] in "fl" else text


class Names:
    """Unique C names per value."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.of_value: dict[Value, str] = {}

    def fresh(self, hint: str) -> str:
        base = identifier(hint)
        name, number = base, 1
        while name in self.taken:
            number += 1
            name = f"{base}_{number}"
        self.taken.add(name)
        return name

    def value(self, value: Value) -> str:
        if value not in self.of_value:
            op = value.defining_op
            self.of_value[value] = self.fresh(value.name or (op.name if op is not None else "index"))
        return self.of_value[value]


def c_string(text: str) -> str:
    """A C string literal; what is not plain ASCII goes by its UTF-8 bytes."""
    plain = {ord(c) for c in map(chr, range(32, 127))} - {ord('"'), ord("\\"), ord("?")}
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def integer_text(number: int) -> str:
    """An integer constant wide enough for its value, so that arithmetic with it is 64-bit where it must be."""
    return f"{number}" if abs(number) < 1 << 31 else f"{number}LL"


def dim_name(symbol: str) -> str:
    """The kernel argument that carries a dim."""
    return "dim_" + re.sub(r"\W", "_", symbol, flags=re.ASCII)


def size_text(size: Size) -> str:
    """A size as an int64 expression over the dim arguments."""
    if isinstance(size, int):
        return str(size)
    terms = []
    for monomial, number in size.terms:
        factors = [_atom(atom) for atom, power in monomial for _ in range(power)]
        if number != 1 or not factors:
            factors.insert(0, str(number))
        terms.append(" * ".join(factors))
    return terms[0] if len(terms) == 1 and isinstance(size, Dim) else "(" + " + ".join(terms) + ")"


def _atom(atom: Atom) -> str:
    if not atom.function:
        return dim_name(atom.name)
    left, right = (size_text(argument) for argument in atom.arguments)
    number = atom.arguments[1]
    shifted = by_power(atom.function, left, number) if isinstance(number, int) else None
    return shifted or f"{_CALLS[atom.function]}({left}, {right})"


def by_power(function: str, left: str, number: int) -> str | None:
    """A division by a positive power of two as a shift, its remainder as a mask: they round down as they are, negative
    numbers too. None where the function or the number is another.

    The compiler cannot leave out what rounds a quotient down, not knowing its sign; and a producer divides before it
    starts its first copy.
    """
    if number <= 0 or number & (number - 1) or number >= 1 << 31:
        return None
    shift = number.bit_length() - 1
    texts = {
        "floordiv": f"({left} >> {shift})",
        "mod": f"({left} & {number - 1})",
        "cdiv": f"(({left} + {number - 1}) >> {shift})",
    }
    return texts.get(function)


def literal(value: Any, dtype: DType) -> str:
    """A constant of `dtype`, rounded to it here, so that a compiler rounds nothing; a bit type is given by its bits."""
    if dtype.is_bool:
        return "true" if value else "false"
    if dtype.is_int:
        number = int(round_to(dtype, value))
        return "(-9223372036854775807LL - 1)" if number == -(1 << 63) else f"{number}LL"
    stored = to_storage(dtype, value)
    if dtype.bits < 32:
        return f"{{0x{int(stored.view(f'u{dtype.bytes}')):0{dtype.bits // 4}X}}}"
    number = float(stored)
    if math.isnan(number):
        return "ts_nan()"
    if math.isinf(number):
        return "ts_infinity()" if number > 0 else "(-ts_infinity())"
    return f"{stored!s}f"  # the shortest text that rounds to this f32
