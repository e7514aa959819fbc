"""The kernels of the gated delta rule (`tessera.gdn`) at plain settings, for the command line to look at.

    tessera run examples/gdn/gated_delta_rule/kernels.py::delta_recurrent --dims B=1,T=8,H=1,HV=2,K=64,V=64,N=1
    tessera check examples/gdn/gated_delta_rule/kernels.py::delta_prepare --dims B=1,T=64,H=1,HV=2,K=64,S=1
    tessera ir examples/gdn/gated_delta_rule/kernels.py::delta_chunks --schedule --arch sm_90a \
        --dims B=1,T=8192,H=16,HV=32,K=128,V=128,S=128

bf16, keys normalised by the caller, batches that are not packed, states [N, HV, K, V] in and out. What is None here
(`A_log`, `cu_seqlens`, ...) a call need not have; `gated_delta_rule` calls the same kernels with whatever it is given.
"""

import tessera as ts
from tessera.gdn.delta_kernels import Variant, chunk_kernel, prepare_kernel, recurrent_kernel

variant = Variant(dtype=ts.bf16, gate=ts.f32, beta=ts.f32, chunk=64, block=32, warps=2)

delta_prepare = prepare_kernel(variant).without(["A_log", "dt_bias", "cu_seqlens"])
delta_chunks = chunk_kernel(variant).without(["cu_seqlens"])
delta_recurrent = recurrent_kernel(variant).without(["A_log", "dt_bias", "cu_seqlens"])
