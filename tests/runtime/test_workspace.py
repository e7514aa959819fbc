"""Workspaces of programs: one block a call from the caller's library, on the cuda lane of kernels and of functions."""
# ruff: noqa: F821  (the names of dims)

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

import tessera as ts
from tessera import Tensor, tile
from tessera.errors import InternalError
from tessera.ir.dims import symbol
from tessera.program import Argument, Launch, Parameter, Program, Workspace
from tessera.runtime import api, functions, launch, workspace
from tessera.target.schedule import default_schedule
from tests.runtime import fake_cuda
from tests.runtime.test_functions_cuda import gpu, on_host, pytestmark, values  # noqa: F401

M = symbol("M")


@pytest.fixture
def splitting(monkeypatch):
    """A compiler that cuts the products of all kernels that have a loop over K."""

    def chosen(kernel, arch, lane=""):
        found = default_schedule(kernel, arch, lane)
        return replace(found, split_k=2) if any(op.name == "mma" for op in kernel.body.walk()) else found

    monkeypatch.setattr(import_module("tessera.target.schedules"), "default_schedule", chosen)


def make_product():
    @ts.kernel
    def product(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "N", ts.bf16], out: Tensor["M", "N", ts.f32]):
        ctx = tile.context()
        m, n = tile.program_id(0) * 16, tile.program_id(1) * 16
        acc = tile.zeros([16, 16], ts.f32)
        for k in tile.range(0, ctx.K, 16):
            acc = tile.mma(a[m : m + 16, k : k + 16], b[k : k + 16, n : n + 16], acc)
        tile.store(acc, out[m : m + 16, n : n + 16])

    return product


def test_cold_and_warm_calls_of_a_kernel(gpu, splitting):  # noqa: F811
    product, b = make_product(), values(64, 24, seed=9)
    for seed in range(3):
        a = values(20, 64, seed=seed)
        before = gpu.made
        result = product(gpu.array(a), gpu.array(b))
        assert gpu.made == before + 2, "the output, and a block that the call does not outlive"
        expected = a.astype(np.float64) @ b.astype(np.float64)
        assert np.abs(result.memory - expected).max() < 1e-4 * np.abs(expected).max()
    names = [kernel for kernel, *_ in gpu.driver.launches]
    assert names == ["product_parts", "product_sum"] * 3 and len(gpu.driver.loaded) == 1
    run = api.last_run(product)
    assert [(found.name, found.grid) for found in run.kernels] == [
        ("product_parts", (2, 2, 2)),
        ("product_sum", (2, 2)),
    ]


def test_a_function_has_its_launches_workspaces_in_its_own(gpu, splitting):  # noqa: F811
    product = make_product()

    @ts.function
    def twice(a: Tensor["M", "K", ts.bf16], b: Tensor["K", "K", ts.bf16]) -> Tensor["M", "K", ts.f32]:
        first = product(a, b)
        return product(ts.cast(first, ts.bf16), b) + first

    a, b = values(20, 48), values(48, 48, seed=1)
    (expected,) = on_host(twice, a, b)
    for blocks in (1, 1):  # the stream's, from the first call on
        before = gpu.made
        result = twice(gpu.array(a), gpu.array(b))
        assert gpu.made == before + 1 and len(gpu.driver.blocks) == blocks
        assert result.memory.tobytes() == expected.tobytes()
    assert len(gpu.cold) == 1
    assert [name for name, *_ in gpu.driver.launches].count("twice_0_product_parts") == 4
    partials = 2 * 2 * 3 * 16 * 16 * 4
    assert functions.last_run(twice).workspace >= partials + 2 * 20 * 48 * 4


def two_launches(sizes):
    """A program whose second launch reads what the first one leaves in workspaces."""
    spaces = tuple(Workspace(f"w{number}", "f32", size) for number, size in enumerate(sizes))
    pointers = tuple(Argument("pointer", name) for name in ("x", *(space.name for space in spaces)))
    steps = tuple(Launch(name, (M,), 32, 0, (*pointers, Argument("size", size=M))) for name in ("first", "second"))
    parameters = (Parameter("x", "tensor", "f32", (M,), "inout"),)
    return Program("two", "sm_80", parameters, ("M",), {}, {}, steps, "", b"cubin", workspaces=spaces)


def test_workspaces_lie_apart_in_one_aligned_block(monkeypatch):
    program = two_launches([(3, M), (M, 5)])
    assert workspace.offsets_of(program, {"M": 7}) == ({"w0": 0, "w1": 256}, 512)
    library, driver = fake_cuda.Library(), fake_cuda.Driver()
    made = []
    monkeypatch.setattr(workspace.arrays, "ADAPTERS", [library, *workspace.arrays.ADAPTERS])
    monkeypatch.setattr(fake_cuda.Library, "empty", lambda self, *given: made.append(given) or block)
    block, x = fake_cuda.aligned((512,), np.int8), fake_cuda.aligned((7,))
    binding = launch.Binding("two", program.parameters, {"x": x}, {"x": library.describe(x)}, dims={"M": 7})
    launcher = launch.Launcher(driver)
    for stream in (0, 7):
        driver.captured.update({7} if stream else ())  # once the code is loaded, a graph may be captured
        launcher.launch(program, binding, stream)
    assert [(shape, device) for shape, _, device in made] == [((512,), 0)] * 2
    arguments = (x.pointer, block.pointer, block.pointer + 256, 7)
    assert driver.launches == [(name, (7, 1, 1), arguments, s, 0) for s in (0, 7) for name in ("first", "second")]


def test_memory_that_is_not_aligned_is_no_workspace(monkeypatch):
    library = fake_cuda.Library()
    monkeypatch.setattr(workspace.arrays, "ADAPTERS", [library, *workspace.arrays.ADAPTERS])
    with pytest.raises(InternalError, match="not aligned to 16"):
        workspace.address_of(fake_cuda.aligned((4,), shift=8))
