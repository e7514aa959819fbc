"""Parameters that no caller passes: arrays by name, made at their first use and then the store's until they are set.

A function that asks for a parameter without being given one names it by its own name, the place of the call and a
number, such as "safe_delta_computation/learnable_scale_parameter#0". The array is passed into the compiled code like
any other argument, so results depend on the arguments and on the store alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tessera.dtypes import TYPES, DType, to_storage
from tessera.errors import ArgumentError, did_you_mean

Array = np.ndarray
Copy = TypeVar("Copy")

INITS = ("zeros", "ones", "normal", "constant")
FORMAT = 1  # of the files that `save` writes
CHUNK = 1 << 16  # elements that are drawn at a time; another number would give other values


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """What a function needs to know of a parameter. Key, shape and dtype name it; the rest says how it begins.

    `init` is one of INITS: "constant" is `value` everywhere; "normal", of floats, has mean 0 and the standard deviation
    1 / sqrt(rows), where the last axis counts columns and all others rows. Raises ArgumentError TS203.
    """

    key: str
    shape: tuple[int, ...]
    dtype: DType
    init: str = "zeros"
    value: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not self.key.isprintable() or not self.key:
            raise ArgumentError("TS203", f"the key of a parameter is printable text, not {self.key!r}")
        if not isinstance(self.dtype, DType):
            raise ArgumentError("TS203", f"the dtype of '{self.key}' is one such as ts.bf16, not {self.dtype!r}")
        if not isinstance(self.shape, tuple) or not all(type(size) is int and size >= 0 for size in self.shape):
            raise ArgumentError("TS203", f"the shape of '{self.key}' is a tuple of sizes, not {self.shape!r}")
        if self.init not in INITS or self.init == "normal" and not self.dtype.is_float:
            allowed = INITS if self.dtype.is_float else [init for init in INITS if init != "normal"]
            raise ArgumentError(
                "TS203", f"'{self.key}' of {self.dtype} begins as one of {', '.join(allowed)}, not {self.init!r}"
            )

    @property
    def type_text(self) -> str:
        """As in `bf16[5, 5]`."""
        return f"{self.dtype}{list(self.shape)}"

    @property
    def name(self) -> str:
        """The key with the type behind it, which names one parameter also where others have the same key."""
        return f"{self.key}:{self.type_text}"


class ParameterStore:
    """Parameters by name. `store[name]` takes a key, a key with its type (`ParameterSpec.name`) or a ParameterSpec.

    What begins as "normal" depends on `seed`, key, shape and dtype only. A `strict` store makes nothing: a parameter
    that was neither assigned nor loaded is an error. Arrays have the storage type of their dtype and are read-only:
    assign a new one to change a parameter. Any number of threads may use a store.
    """

    def __init__(self, seed: int = 0, strict: bool = False) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ArgumentError("TS203", f"the seed of a ParameterStore is an integer from 0 to 2^64 - 1, not {seed!r}")
        self.seed = seed
        self.strict = strict
        self._arrays: dict[str, tuple[ParameterSpec, Array]] = {}  # by ParameterSpec.name
        self._copies: dict[tuple[str, Hashable], Any] = {}  # by name and device
        self._lock = threading.RLock()

    # ---- what functions call ---------------------------------------------------------------------------------------

    def get(self, spec: ParameterSpec) -> Array:
        """The parameter, made now where this is its first use; raises ArgumentError TS609 where the store is strict."""
        with self._lock:
            found = self._arrays.get(spec.name)
            if found is not None:
                return found[1]
            if self.strict:
                raise ArgumentError("TS609", f"the strict store has no parameter '{spec.key}' of {self._instead(spec)}")
            return self._put(spec, initial(spec, self.seed))

    def on_device(self, spec: ParameterSpec, device: Hashable, upload: Callable[[Array], Copy]) -> Copy:
        """What `upload` made of the parameter on `device`: called once, and again after an assignment or a load."""
        with self._lock:
            array, place = self.get(spec), (spec.name, device)
            if place not in self._copies:
                self._copies[place] = upload(array)
            return self._copies[place]

    # ---- what users call -------------------------------------------------------------------------------------------

    def __getitem__(self, name: str | ParameterSpec) -> Array:
        """Raises ArgumentError TS609 for a name that no parameter, or more than one, has."""
        with self._lock:
            return self._arrays[self._find(name).name][1]

    def __setitem__(self, name: str | ParameterSpec, value: Array | float) -> None:
        """Sets a parameter to a copy of an array of its shape and dtype; one without axes also to a Python number.

        A ParameterSpec may name one that is not there yet. Raises ArgumentError TS609, TS301 for another shape, TS604
        for another dtype or what is no NumPy array.
        """
        with self._lock:
            spec = name if isinstance(name, ParameterSpec) else self._find(name)
            self._put(spec, _checked(spec, value))

    def __contains__(self, name: object) -> bool:
        """Whether any parameter has this key, name or spec."""
        with self._lock:
            if isinstance(name, ParameterSpec):
                return name.name in self._arrays
            return name in self._arrays or any(spec.key == name for spec, _ in self._arrays.values())

    def __len__(self) -> int:
        return len(self._arrays)

    def keys(self) -> list[str]:
        """The name of every parameter, sorted: its key, with the type behind it where others have the same key."""
        return [name for name, _ in self.items()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def items(self) -> list[tuple[str, Array]]:
        """Names as of `keys`, and the arrays."""
        with self._lock:
            entries = list(self._arrays.values())
        alike = Counter(spec.key for spec, _ in entries)
        named = [(spec.key if alike[spec.key] == 1 else spec.name, array) for spec, array in entries]
        return sorted(named, key=lambda item: item[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes every parameter and the seed to one .npz file, which appears whole or not at all.

        Its members are called as `ParameterSpec.name`; those of a dtype that NumPy lacks (bf16, fp8) are bit patterns.
        """
        with self._lock:
            entries = list(self._arrays.values())
            members: dict[str, Any] = {spec.name: array.view(_file_dtype(spec.dtype)) for spec, array in entries}
            members[_HEAD] = np.array([FORMAT, self.seed], np.uint64)
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
        try:
            with open(temporary, "xb") as file:
                np.savez(file, **members)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def load(self, path: str | os.PathLike[str]) -> None:
        """Makes the store what it was when `save` wrote the file, seed included; parameters not in it are gone.

        Raises ArgumentError TS610 for a file that is not whole or holds anything else, and changes nothing then.
        """
        seed, entries = _read(Path(path))
        with self._lock:
            self.seed = seed
            self._arrays = {spec.name: (spec, array) for spec, array in entries}
            self._copies.clear()

    def __repr__(self) -> str:
        return f"ParameterStore(seed={self.seed}, strict={self.strict}): {len(self)} parameters"

    # ---- inside: the lock is held ----------------------------------------------------------------------------------

    def _put(self, spec: ParameterSpec, array: Array) -> Array:
        array.setflags(write=False)
        self._arrays[spec.name] = (spec, array)
        for place in [place for place in self._copies if place[0] == spec.name]:
            del self._copies[place]
        return array

    def _find(self, name: str | ParameterSpec) -> ParameterSpec:
        if isinstance(name, ParameterSpec):
            if name.name in self._arrays:
                return self._arrays[name.name][0]
            raise ArgumentError("TS609", f"the store has no parameter '{name.key}' of {self._instead(name)}")
        if name in self._arrays:
            return self._arrays[name][0]
        found = [spec for spec, _ in self._arrays.values() if spec.key == name]
        if len(found) > 1:
            names = " or ".join(f"store[{spec.name!r}]" for spec in found)
            raise ArgumentError("TS609", f"the store has {len(found)} parameters '{name}'; say {names}")
        if not found:
            hint = did_you_mean(str(name), self.keys())
            raise ArgumentError("TS609", f"the store has no parameter {name!r}{hint}")
        return found[0]

    def _instead(self, spec: ParameterSpec) -> str:
        """The type that was asked for, with what the store has instead."""
        types = [other.type_text for other, _ in self._arrays.values() if other.key == spec.key]
        if types:
            return f"{spec.type_text}; it has that of {' and '.join(types)}"
        return spec.type_text + did_you_mean(spec.key, self.keys())


# ---- the store of a call -------------------------------------------------------------------------------------------

_default = ParameterStore()
_current: ContextVar[ParameterStore | None] = ContextVar("tessera_parameters", default=None)


def default_store() -> ParameterStore:
    """The store of this process, which functions use where no `use_store` says otherwise."""
    return _default


def current_store() -> ParameterStore:
    """The store that functions called here use."""
    store = _current.get()
    return _default if store is None else store  # an empty store is falsy


@contextlib.contextmanager
def use_store(store: ParameterStore) -> Iterator[ParameterStore]:
    """Functions called inside of the block, in this thread or asyncio task, use `store`."""
    if not isinstance(store, ParameterStore):
        raise ArgumentError("TS203", f"use_store takes a ParameterStore, not {store!r}")
    token = _current.set(store)
    try:
        yield store
    finally:
        _current.reset(token)


# ---- first values --------------------------------------------------------------------------------------------------


def initial(spec: ParameterSpec, seed: int) -> Array:
    """The array with which a parameter begins, in the storage type of its dtype."""
    if spec.init == "normal":
        rows = max(math.prod(spec.shape[:-1]), 1)
        return to_storage(spec.dtype, _normal(spec, seed) / np.sqrt(np.float64(rows)))
    value = {"zeros": 0.0, "ones": 1.0}.get(spec.init, spec.value)
    return to_storage(spec.dtype, np.full(spec.shape, value))


def _normal(spec: ParameterSpec, seed: int) -> Array:
    """float64, mean 0 and variance 1: sums of twelve 16-bit numbers, which reach six standard deviations at most.

    Integers up to the last division: the same bits on every machine, whatever its logarithm and cosine.
    """
    digest = hashlib.sha256(f"{seed}\n{spec.name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    drawn = np.empty(math.prod(spec.shape))
    for start in range(0, drawn.size, CHUNK):
        part = drawn[start : start + CHUNK]
        words = generator.random_raw(3 * part.size).astype("<u8", copy=False)
        sums = words.view("<u2").reshape(12, part.size).sum(axis=0, dtype=np.int64)
        part[:] = (sums - 6 * 65535) / 65536
    return drawn.reshape(spec.shape)


def _checked(spec: ParameterSpec, value: Any) -> Array:
    """A copy of `value`, which must have the shape and the storage type of the parameter."""
    number = type(value) in (int, float, bool) and (spec.dtype.is_float or isinstance(value, int))
    if number and spec.shape == ():
        return to_storage(spec.dtype, np.asarray(value))
    if not isinstance(value, (np.ndarray, np.generic)):
        raise ArgumentError(
            "TS604", f"the parameter '{spec.key}' is {spec.type_text}; assign a NumPy array, not {_shown(value)}"
        )
    if value.shape != spec.shape:
        raise ArgumentError(
            "TS301", f"the parameter '{spec.key}' is {spec.type_text}, but the array has the shape {list(value.shape)}"
        )
    if value.dtype != spec.dtype.numpy:
        raise ArgumentError(
            "TS604",
            f"the parameter '{spec.key}' is {spec.type_text}, but the array is {value.dtype}; "
            f"convert it with array.astype({_numpy_name(spec.dtype)})",
        )
    return np.array(value, order="C")


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}" if isinstance(value, (bool, int, float, str)) else type(value).__name__


def _numpy_name(dtype: DType) -> str:
    return f"{'np' if dtype.numpy.isbuiltin == 1 else 'ml_dtypes'}.{dtype.numpy.name}"


# ---- files -----------------------------------------------------------------------------------------------------------

_HEAD = "tessera"  # the member with format and seed; no parameter's name is without a type
_NAME = re.compile(r"(.+):(\w+)\[([\d, ]*)\]")


def _file_dtype(dtype: DType) -> np.dtype:
    return dtype.numpy if dtype.numpy.isbuiltin == 1 else np.dtype(f"u{dtype.bytes}")


def _read(path: Path) -> tuple[int, list[tuple[ParameterSpec, Array]]]:
    """Seed and parameters of a file. Raises ArgumentError TS610."""
    try:
        # Files that are no archive are refused before NumPy guesses what they are.
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if len(set(names)) != len(names):
                raise ValueError("two members have one name")
            members = {}
            for name in names:
                with archive.open(f"{name}.npy") as file:
                    members[name] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):
                        raise ValueError(f"the member '{name}' is longer than its array")
        if _HEAD not in members:
            raise ValueError("it was not written by ParameterStore.save")
        return _seed(members.pop(_HEAD)), [_entry(name, array) for name, array in members.items()]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: how zipfile refuses what is encrypted, or compressed in a way that it does not know.
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        raise ArgumentError("TS610", f"the parameters in {path} cannot be loaded: {why}") from error


def _seed(head: Array) -> int:
    if head.dtype != np.uint64 or head.shape != (2,):
        raise ValueError("its head is not that of a file of parameters")
    if head[0] != FORMAT:
        raise ValueError(f"it has the format {head[0]}, and this version reads {FORMAT}")
    return int(head[1])


def _entry(name: str, array: Array) -> tuple[ParameterSpec, Array]:
    match = _NAME.fullmatch(name)
    dtype = TYPES.get(match[2]) if match else None
    if match is None or dtype is None:
        raise ValueError(f"'{name}' is not the name and type of a parameter")
    shape = tuple(int(size) for size in match[3].split(",") if size.strip())
    if not match[1].isprintable():
        raise ValueError(f"{match[1]!r} is not the key of a parameter")
    spec, wanted = ParameterSpec(match[1], shape, dtype), _file_dtype(dtype)
    if array.dtype != wanted or array.shape != shape or spec.name != name:
        raise ValueError(f"the member '{name}' holds {array.dtype}{list(array.shape)}, not {wanted}{list(shape)}")
    array = np.ascontiguousarray(array).reshape(shape).view(dtype.numpy)
    array.setflags(write=False)
    return spec, array
