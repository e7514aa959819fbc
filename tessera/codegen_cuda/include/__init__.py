"""The names that emitted kernels are written in: a device header for NVRTC and its CPU twin for a host compiler.

An emitted kernel starts with ``#include "tessera_device.h"``. NVRTC is handed :func:`device_header` under that name;
a host compiler finds ``twin/tessera_device.h`` when :func:`twin_include_directory` is on its include path.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

DEVICE_HEADER_NAME = "tessera_device.h"

# Largest error of each device function in units in the last place of its f32 result, over the whole range of its
# argument (CUDA C++ Programming Guide, "Mathematical Functions", single precision, without -use_fast_math; sigmoid,
# softplus, silu, gelu and gelu_tanh as the header says, which adds errors that grow with the argument). A normal result
# y is off by at most ulp * 2^-23 * |y|. 0.5 means correctly rounded, 0 exact.
CUDA_ULP: dict[str, float] = {
    "exp": 2,
    "exp2": 2,
    "log": 1,
    "log2": 1,
    "tanh": 2,
    "sigmoid": 4,
    "softplus": 4,
    "erf": 2,
    "silu": 5,
    "gelu": 13,
    "gelu_tanh": 5,
    "sqrt": 0.5,
    "rsqrt": 2,
    "div": 0.5,
    "max": 0,
    "min": 0,
    "abs": 0,
    "neg": 0,
    "floor": 0,
    "ceil": 0,
}

_DIRECTORY = Path(__file__).parent

# Of the twin, a function that is no template: it begins a line, and the brace at its end does where it has several.
_TWIN_FUNCTION = re.compile(
    r"(?<!>\n)^(?:inline|TS_DEVICE) (?!constexpr)([^;{}=(]*\([^;{}]*\)(?: const)?)"
    r"(;| \{(?:[^\n]*\}|(?:  //[^\n]*)?\n(?:.*\n)*?\})$)",
    re.MULTILINE,
)


@cache
def device_header() -> str:
    """Text of the device header, its parts in their places: nothing is left to include."""
    return _whole(DEVICE_HEADER_NAME)


def _whole(name: str) -> str:
    """A header with its parts in their places."""
    text = (_DIRECTORY / name).read_text(encoding="utf-8")
    part = rf'#include "({Path(name).stem}_\w+\.h)"\n'
    return re.sub(part, lambda m: (_DIRECTORY / m[1]).read_text("utf-8"), text)


def twin_header_path() -> Path:
    """The CPU twin's main header."""
    return _DIRECTORY / "tessera_twin.h"


def twin_include_directory() -> Path:
    """Directory for a host compiler's include path: holds a ``tessera_device.h`` that is the twin."""
    return _DIRECTORY / "twin"


@cache
def twin_text() -> str:
    """All twin headers in one string, in a fixed order: what a cache of built kernels must depend on."""
    files = sorted(_DIRECTORY.glob("tessera_twin*.h")) + [twin_include_directory() / DEVICE_HEADER_NAME]
    return "\n".join(f"// {file.name}\n{file.read_text(encoding='utf-8')}" for file in files)


@cache
def twin_parts() -> tuple[str, str]:
    """The twin where it is compiled once for many kernels: what each of them includes, and the functions.

    Kernels see functions declared. Templates, types and variables are in both texts; the linker takes one of each.
    """
    whole = _whole("tessera_twin.h").replace("#pragma once\n", "")
    return (
        _TWIN_FUNCTION.sub(lambda m: f"{m[1]};", whole),
        _TWIN_FUNCTION.sub(lambda m: f"__attribute__((used)) inline {m[1]}{m[2]}", whole),
    )
