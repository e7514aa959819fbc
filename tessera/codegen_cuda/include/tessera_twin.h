// CPU twin of tessera_device.h: the same names in plain C++17 (g++ or clang++), so that an emitted kernel runs, checked,
// on a CPU. Threads of a block are fibers, warp operations are collectives of 32 fibers, memory accesses are checked.
// Nothing from the C++ library is included: parsing this costs milliseconds, which each kernel of the tests pays.
//
//   tessera_twin_fiber.h    fibers, scheduling, error reports
//   tessera_twin_order.h    what happened before what: shadows, clocks
//   tessera_twin_count.h    counters by line
//   tessera_twin_memory.h   checked accesses, asynchronous copies
//   tessera_twin_barrier.h  barriers, mbarriers
//   tessera_twin_tma.h      copies of boxes of a tensor
//   tessera_twin_convert.h  conversions
//   tessera_twin_math.h     f32 maths (the definition of its bits), integers
//   tessera_twin_random.h   random numbers by counter
//   tessera_twin_warp.h     shuffles, ldmatrix, stmatrix, mma
//   tessera_twin_descriptor.h  operands of wgmma in shared memory
//   tessera_twin_wgmma.h    products of a warpgroup
//   tessera_twin_effects.h  atomic updates, prints, assertions
//   tessera_twin_launch.h   TS_TWIN_ENTRY: runs a grid
//   tessera_twin_cluster.h  blocks that run at the same time
#pragma once

typedef long long ts_i64;
typedef unsigned long long ts_u64;
typedef int ts_i32;
typedef unsigned int ts_u32;
typedef signed char ts_i8;

struct ts_bf16 {
    unsigned short bits;
};
struct ts_f16 {
    unsigned short bits;
};
struct ts_fp8_e4m3 {
    unsigned char bits;
};
struct ts_fp8_e5m2 {
    unsigned char bits;
};
template <class T, int N>
struct ts_table {
    T* at[N];
};

// What the hardware's 128 bytes say. Axes innermost first; strides in bytes, the first one the element's. Layout shared
// with tessera/runtime/emulator_maps.py; change both together.
struct ts_tensor_map {
    const char* base;
    ts_i64 sizes[5], strides[5];
    int box[5];
    int rank, item, swizzle;  // swizzle: 0, 32, 64 or 128 bytes
};
template <int N>
struct ts_tensor_maps {
    ts_tensor_map at[N];
};

#define TS_DEVICE static inline
#define TS_RESTRICT __restrict__
// A reference: as on a GPU, all threads read the one that the launch passes.
#define TS_TABLE(T, N) const ts_table<T, N>&
#define TS_MAP const ts_tensor_map&
#define TS_MAPS(N) const ts_tensor_maps<N>&
// The launch bound and the size of a cluster become constants beside the kernel, which the entry checks as a driver would.
#define TS_KERNEL(name, threads) TS_KERNEL_CLUSTER(name, threads, 1, 1)
#define TS_KERNEL_OCC(name, threads, min_blocks) TS_KERNEL_CLUSTER(name, threads, min_blocks, 1)
#define TS_KERNEL_CLUSTER(name, threads, min_blocks, cluster)                                            \
    static constexpr int ts_twin_max_threads_##name = threads, ts_twin_min_blocks_##name = min_blocks,   \
                         ts_twin_cluster_##name = cluster;                                           \
    static void name
#define TS_UNROLL
#define TS_ROLLED
#define TS_UNROLL_N(n)
#define TS_SHARED(var) char* var = ts_twin::state.shared

#include "tessera_twin_fiber.h"
#include "tessera_twin_order.h"
#include "tessera_twin_count.h"
#include "tessera_twin_memory.h"
#include "tessera_twin_barrier.h"
#include "tessera_twin_tma.h"
#include "tessera_twin_convert.h"
#include "tessera_twin_math.h"
#include "tessera_twin_random.h"
#include "tessera_twin_warp.h"
#include "tessera_twin_descriptor.h"
#include "tessera_twin_wgmma.h"
#include "tessera_twin_effects.h"
#include "tessera_twin_launch.h"
#include "tessera_twin_cluster.h"
