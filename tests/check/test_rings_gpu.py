"""The hand-written pipelines on a GPU: what the twin calls right is right there, too."""

from __future__ import annotations

import numpy as np
import pytest

from tests.check.rings import KERNELS, text
from tests.runtime.test_api import GPU


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", KERNELS)
def test_a_ring_computes_the_same(name: str) -> None:
    import cupy

    from tessera.runtime.api import device_arch
    from tessera.runtime.nvrtc import compile_cubin

    kernel = KERNELS[name]
    grid, arguments, output, expected = kernel.run(kernel.large)
    module = cupy.cuda.function.Module()
    module.load(compile_cubin(text(kernel.text), device_arch(0), name).cubin)
    function = module.get_function(name)
    on_device = [
        cupy.asarray(a.view(np.uint8)) if isinstance(a, np.ndarray) else np.int64(a) for a in arguments
    ]  # CuPy knows no bf16
    for _ in range(20):  # a race may well pass once
        on_device[output][...] = 0xFF
        function((*grid, 1, 1)[:3], (kernel.threads, 1, 1), on_device, shared_mem=kernel.shared_bytes)
        found = cupy.asnumpy(on_device[output]).view(np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
