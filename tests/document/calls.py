"""Calls of the document's functions: arguments as arrays, parameters of the store, lanes, and what is right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera import dist, dtypes, modes, tile
from tessera.compiler import trace_kernel
from tessera.config import Config
from tessera.frontend.definition import KernelDefinition
from tessera.ir.types import length_name
from tessera.runtime import api, emulator, execute, function_launch, functions, launch
from tessera.runtime.compare import Comparison, check
from tessera.runtime.function_plans import PlanPrograms, interpret_plan
from tessera.runtime.parameters import ParameterSpec, ParameterStore, use_store
from tests.document.cases import AMBIENT, SIGNATURES, Case, ListOf, T, arguments_of
from tests.suite import load

SEED = 5  # of dropout
PRELUDE = {"ts": ts, "tile": tile, "Tensor": ts.Tensor, "dist": dist}  # of a block of the document's kind

needs_compiler = pytest.mark.skipif(not emulator.shutil.which("g++"), reason="needs a C++ compiler")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not launch.device_count(), reason="needs a GPU")]

# The store's names of what the document creates in place.
KEYS = {
    "attention_weights": "delta_layer_with_checkpointing/learned_attention_weights#0",
    "transformer_params": "distributed_gdn_layer/transformer_layer#0",
    "scale": "safe_delta_computation/learnable_scale_parameter#0",
}


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Calls run on this lane."""
    chosen = replace(Config(), backend=name)
    with pytest.MonkeyPatch.context() as patch:
        for module in (api, functions, function_launch):
            patch.setattr(module, "config", lambda: chosen)
        yield


def to_array(values: Any, dtype: str) -> np.ndarray:
    """Float64 values, each one of the dtype, as its storage type."""
    kind = dtypes.parse(dtype)
    return np.asarray(dtypes.to_storage(kind, np.asarray(values, np.float64))).reshape(np.shape(values))


def to_values(array: np.ndarray) -> np.ndarray:
    kind = dtypes.from_numpy(array.dtype)
    assert kind is not None
    return np.asarray(dtypes.from_storage(kind, array), np.float64)


def of_spec(spec: T | ListOf | None, value: Any) -> Any:
    """An argument of a case as arrays of the declared dtype."""
    if isinstance(spec, ListOf):
        return [to_array(item, spec.element.dtype) for item in value]
    return to_array(value, spec.dtype) if isinstance(spec, T) else value


@dataclass
class Given:
    """A case with its arguments as arrays; `store` has the parameters that the document creates in place."""

    case: Case
    arguments: dict[str, Any]
    store: ParameterStore

    @property
    def definition(self) -> Any:
        return load(self.case.function)

    @property
    def is_kernel(self) -> bool:
        return isinstance(self.definition, KernelDefinition)

    @contextlib.contextmanager
    def setting(self) -> Iterator[None]:
        """The store, the mode and the random numbers of the call."""
        with use_store(self.store), ts.train() if self.case.training else ts.eval():
            ts.manual_seed(SEED)
            yield

    def call(self, lane: str) -> np.ndarray:
        """What the function returns, or the kernel allocates and returns, on a lane."""
        with backend(lane), self.setting():
            result = self.definition(**self.arguments)
        run = api.last_run(self.definition) if self.is_kernel else functions.last_run(self.definition)
        assert run is not None and run.lane == lane
        return result

    def prepared(self) -> Any:
        """The call, checked; its seed is the one that `call` draws."""
        ts.manual_seed(SEED)
        made = functions.state_of(self.definition).prepare((), self.arguments)
        made.seed = modes.next_seed()
        return made

    def comparison(self, result: np.ndarray) -> Comparison:
        """Whether a result is right, by the bars of the reference."""
        with self.setting():
            if self.is_kernel:
                return check(result, self._kernel_bars(result))
            (found,) = functions.verify_results(self.prepared(), [result]).values()
            return found

    def _kernel_bars(self, result: np.ndarray) -> Any:
        dims = {name: size for name, size in self.case.dims.items() if name != "N"}
        lengths = {length_name(name): len(v) for name, v in self.arguments.items() if isinstance(v, list)}
        kernel = trace_kernel(self.definition, lengths).kernel()
        return execute.reference_bars(kernel, {**self.arguments, "output": result}, dims)["output"]

    def interpreted_plan(self) -> tuple[np.ndarray, PlanPrograms]:
        """The result of the plan's kernels on the interpreter of kernels."""
        with self.setting():
            made = self.prepared()
            plan = made.state.plan(made.dims)
            results = plan.empty_results(made.dims)
            values = functions.host_arguments(made) | dict(zip(plan.result_roots(), results, strict=True))
            interpret_plan(plan, values, made.dims)
        return results[0], plan


def given(case: Case) -> Given:
    arguments, ambient = arguments_of(case)
    signature, hidden = SIGNATURES[case.function], AMBIENT.get(case.function, {})
    store = ParameterStore()
    for name, value in ambient.items():
        if name != "mask":
            store[spec_of(name, np.shape(value))] = to_array(value, hidden[name].dtype if name in hidden else "bf16")
    return Given(case, {name: of_spec(signature[name], value) for name, value in arguments.items()}, store)


def spec_of(name: str, shape: tuple[int, ...]) -> ParameterSpec:
    return ParameterSpec(KEYS[name], shape, ts.bf16)


__all__ = [
    "KEYS", "PRELUDE", "SEED", "Given", "backend", "given", "needs_compiler", "needs_gpu", "of_spec", "spec_of",
    "to_array", "to_values",
]  # fmt: skip
