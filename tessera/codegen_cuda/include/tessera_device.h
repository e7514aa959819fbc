// Device header: every name that an emitted kernel may use, for NVRTC. It includes nothing but its own parts, which are
// put in their places before NVRTC sees it, so it costs no parse time, and it is the only text of the project that
// contains PTX. tessera_twin.h defines the same names in plain C++ for the emulator: a name added here must be added
// there.
//
// Pointers into shared memory are ordinary generic `char*`; functions that need a shared-window address convert inside.
// Base lane: sm_80 (cp.async, ldmatrix, mma.sync, bf16 conversions).
#pragma once

#define TS_DEVICE __device__ __forceinline__
#define TS_RESTRICT __restrict__
#define TS_TABLE(T, N) const __grid_constant__ ts_table<T, N>
#define TS_MAP const __grid_constant__ ts_tensor_map
#define TS_MAPS(N) const __grid_constant__ ts_tensor_maps<N>
#define TS_KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads) name
#define TS_KERNEL_OCC(name, threads, min_blocks) extern "C" __global__ void __launch_bounds__(threads, min_blocks) name
#define TS_PRAGMA(text) _Pragma(#text)
#define TS_UNROLL TS_PRAGMA(unroll)
#define TS_ROLLED TS_PRAGMA(unroll 1)
#define TS_UNROLL_N(n) TS_PRAGMA(unroll n)
// 1024 bytes is the widest alignment that a swizzled tile asks for (the 128-byte swizzle repeats every 8 rows).
#define TS_SHARED(var)                                         \
    extern __shared__ __align__(1024) char ts_dynamic_shared[]; \
    char* var = ts_dynamic_shared

typedef long long ts_i64;
typedef unsigned long long ts_u64;
typedef int ts_i32;
typedef unsigned int ts_u32;
typedef signed char ts_i8;

// Bit types: no implicit arithmetic, so that each rounding in the text is one that the compiler decided on.
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

// A list is passed by value, as its tensors' addresses: a parameter declared with TS_TABLE stays in the constant bank,
// and an index that only the run knows is one load from there. Without __grid_constant__ such an index would make each
// thread copy the parameter to local memory first.
template <class T, int N>
struct ts_table {
    T* at[N];
};

// A tensor map is passed by value, too, as the 128 bytes that the driver's encoder wrote: only TMA reads them, from where
// the launch put them. In a list they are taken at any index, by address.
struct alignas(64) ts_tensor_map {
    ts_u64 opaque[16];
};
template <int N>
struct ts_tensor_maps {
    ts_tensor_map at[N];
};

// ---- indices ---------------------------------------------------------------------------------------------------

TS_DEVICE int ts_thread() { return (int)threadIdx.x; }
TS_DEVICE int ts_lane() { return (int)(threadIdx.x & 31u); }
TS_DEVICE int ts_warp() { return (int)(threadIdx.x >> 5); }
// 64-bit, so that `ts_block_id(0) * rows * columns` cannot overflow.
TS_DEVICE ts_i64 ts_block_id(int axis) { return axis == 0 ? blockIdx.x : axis == 1 ? blockIdx.y : blockIdx.z; }
TS_DEVICE ts_i64 ts_grid(int axis) { return axis == 0 ? gridDim.x : axis == 1 ? gridDim.y : gridDim.z; }

// ---- barriers --------------------------------------------------------------------------------------------------

TS_DEVICE void ts_barrier() { __syncthreads(); }
TS_DEVICE void ts_warp_barrier() { __syncwarp(); }

// ---- asynchronous copies ---------------------------------------------------------------------------------------
// The "memory" clobbers keep the compiler from moving ordinary loads and stores across an issue or a wait.

TS_DEVICE ts_u32 ts_shared_address(const void* p) { return (ts_u32)__cvta_generic_to_shared(p); }

// Copies src_bytes (0..BYTES) and fills the rest with zero; with src_bytes == 0 the source is not read.
// BYPASS keeps the line out of L1 (.cg); only the 16-byte form has it.
template <int BYTES, bool BYPASS = (BYTES == 16)>
TS_DEVICE void ts_cp_async(char* dst, const void* src, int src_bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    static_assert(!BYPASS || BYTES == 16, "only a 16-byte cp.async can bypass L1");
    const ts_u64 from = (ts_u64)__cvta_generic_to_global(src);
    if constexpr (BYPASS) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" ::"r"(ts_shared_address(dst)), "l"(from),
                     "n"(BYTES), "r"(src_bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(ts_shared_address(dst)), "l"(from),
                     "n"(BYTES), "r"(src_bytes)
                     : "memory");
    }
}

TS_DEVICE void ts_cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N of this thread's youngest groups are in flight. Other threads see the data after a barrier.
template <int N>
TS_DEVICE void ts_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#include "tessera_device_mbarrier.h"
#include "tessera_device_tma.h"

// ---- vector accesses -------------------------------------------------------------------------------------------
// T[N] moves in words of the largest power of two <= 16 that divides N * sizeof(T): one access for 1 to 16 bytes, a
// loop above. The address must be aligned to that word.
//
// The instructions are written out because the compiler splits a vector type into its elements, does not always join
// them again, and falls back to generic addresses for a pointer that was itself loaded. Words meet the register
// arrays through memcpy, which the compiler dissolves; a reinterpreted pointer would push the array into local memory.

template <int BYTES> struct ts_word;
template <> struct ts_word<1> { ts_u32 a; };
template <> struct ts_word<2> { unsigned short a; };
template <> struct ts_word<4> { ts_u32 a; };
template <> struct ts_word<8> { ts_u32 a, b; };
template <> struct ts_word<16> { ts_u32 a, b, c, d; };

#define TS_WORD_ACCESSES(space, address_register, address_type)                                                        \
    TS_DEVICE void ts_load_##space(ts_word<1>& w, address_type p) {                                                    \
        asm volatile("ld." #space ".u8 %0, [%1];" : "=r"(w.a) : address_register(p) : "memory");                       \
    }                                                                                                                  \
    TS_DEVICE void ts_load_##space(ts_word<2>& w, address_type p) {                                                    \
        asm volatile("ld." #space ".u16 %0, [%1];" : "=h"(w.a) : address_register(p) : "memory");                      \
    }                                                                                                                  \
    TS_DEVICE void ts_load_##space(ts_word<4>& w, address_type p) {                                                    \
        asm volatile("ld." #space ".u32 %0, [%1];" : "=r"(w.a) : address_register(p) : "memory");                      \
    }                                                                                                                  \
    TS_DEVICE void ts_load_##space(ts_word<8>& w, address_type p) {                                                    \
        asm volatile("ld." #space ".v2.u32 {%0, %1}, [%2];" : "=r"(w.a), "=r"(w.b) : address_register(p) : "memory");  \
    }                                                                                                                  \
    TS_DEVICE void ts_load_##space(ts_word<16>& w, address_type p) {                                                   \
        asm volatile("ld." #space ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                    \
                     : "=r"(w.a), "=r"(w.b), "=r"(w.c), "=r"(w.d)                                                      \
                     : address_register(p)                                                                             \
                     : "memory");                                                                                      \
    }                                                                                                                  \
    TS_DEVICE void ts_store_##space(address_type p, const ts_word<1>& w) {                                             \
        asm volatile("st." #space ".u8 [%0], %1;" ::address_register(p), "r"(w.a) : "memory");                         \
    }                                                                                                                  \
    TS_DEVICE void ts_store_##space(address_type p, const ts_word<2>& w) {                                             \
        asm volatile("st." #space ".u16 [%0], %1;" ::address_register(p), "h"(w.a) : "memory");                        \
    }                                                                                                                  \
    TS_DEVICE void ts_store_##space(address_type p, const ts_word<4>& w) {                                             \
        asm volatile("st." #space ".u32 [%0], %1;" ::address_register(p), "r"(w.a) : "memory");                        \
    }                                                                                                                  \
    TS_DEVICE void ts_store_##space(address_type p, const ts_word<8>& w) {                                             \
        asm volatile("st." #space ".v2.u32 [%0], {%1, %2};" ::address_register(p), "r"(w.a), "r"(w.b) : "memory");     \
    }                                                                                                                  \
    TS_DEVICE void ts_store_##space(address_type p, const ts_word<16>& w) {                                            \
        asm volatile("st." #space ".v4.u32 [%0], {%1, %2, %3, %4};" ::address_register(p), "r"(w.a), "r"(w.b),         \
                     "r"(w.c), "r"(w.d)                                                                                \
                     : "memory");                                                                                      \
    }
TS_WORD_ACCESSES(global, "l", ts_u64)
TS_WORD_ACCESSES(shared, "r", ts_u32)
#undef TS_WORD_ACCESSES

// The word where `inside`, else zeros: no branch, so that loads fly together and words stay whole.
TS_DEVICE void ts_load_global_if(ts_word<4>& w, ts_u64 p, int inside) {
    asm volatile(
        "{\n.reg .pred %%inside;\nsetp.ne.s32 %%inside, %2, 0;\nmov.u32 %0, 0;\n@%%inside ld.global.u32 %0, [%1];\n}"
        : "=&r"(w.a)
        : "l"(p), "r"(inside)
        : "memory");
}
TS_DEVICE void ts_load_global_if(ts_word<8>& w, ts_u64 p, int inside) {
    asm volatile(
        "{\n.reg .pred %%inside;\nsetp.ne.s32 %%inside, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n"
        "@%%inside ld.global.v2.u32 {%0, %1}, [%2];\n}"
        : "=&r"(w.a), "=&r"(w.b)
        : "l"(p), "r"(inside)
        : "memory");
}
TS_DEVICE void ts_load_global_if(ts_word<16>& w, ts_u64 p, int inside) {
    asm volatile(
        "{\n.reg .pred %%inside;\nsetp.ne.s32 %%inside, %5, 0;\n"
        "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
        "@%%inside ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
        : "=&r"(w.a), "=&r"(w.b), "=&r"(w.c), "=&r"(w.d)
        : "l"(p), "r"(inside)
        : "memory");
}

template <int TOTAL>
constexpr int ts_word_bytes() {
    return TOTAL % 16 == 0 ? 16 : TOTAL % 8 == 0 ? 8 : TOTAL % 4 == 0 ? 4 : TOTAL % 2 == 0 ? 2 : 1;
}

template <class T, int N>
TS_DEVICE void ts_ld_shared(T* dst, const char* p) {
    constexpr int TOTAL = N * sizeof(T), BYTES = ts_word_bytes<TOTAL>();
    const ts_u32 address = ts_shared_address(p);
    TS_UNROLL
    for (int i = 0; i < TOTAL; i += BYTES) {
        ts_word<BYTES> word;
        ts_load_shared(word, address + i);
        memcpy((char*)dst + i, &word, BYTES);
    }
}

template <class T, int N>
TS_DEVICE void ts_st_shared(char* p, const T* src) {
    constexpr int TOTAL = N * sizeof(T), BYTES = ts_word_bytes<TOTAL>();
    const ts_u32 address = ts_shared_address(p);
    TS_UNROLL
    for (int i = 0; i < TOTAL; i += BYTES) {
        ts_word<BYTES> word;
        memcpy(&word, (const char*)src + i, BYTES);
        ts_store_shared(address + i, word);
    }
}

// The tensor at `index` of a list.
template <class T, int N>
TS_DEVICE auto ts_element(const ts_table<T, N>& table, ts_i64 index, int length) -> T* {
    return table.at[(int)index];
}
template <int N>
TS_DEVICE const ts_tensor_map& ts_element(const ts_tensor_maps<N>& maps, ts_i64 index, int length) {
    return maps.at[(int)index];
}

template <class T, int N>
TS_DEVICE void ts_ld_global(T* dst, const T* p) {
    constexpr int TOTAL = N * sizeof(T), BYTES = ts_word_bytes<TOTAL>();
    const ts_u64 address = (ts_u64)__cvta_generic_to_global(p);
    TS_UNROLL
    for (int i = 0; i < TOTAL; i += BYTES) {
        ts_word<BYTES> word;
        ts_load_global(word, address + i);
        memcpy((char*)dst + i, &word, BYTES);
    }
}

template <class T, int N>
TS_DEVICE void ts_st_global(T* p, const T* src) {
    constexpr int TOTAL = N * sizeof(T), BYTES = ts_word_bytes<TOTAL>();
    const ts_u64 address = (ts_u64)__cvta_generic_to_global(p);
    TS_UNROLL
    for (int i = 0; i < TOTAL; i += BYTES) {
        ts_word<BYTES> word;
        memcpy(&word, (const char*)src + i, BYTES);
        ts_store_global(address + i, word);
    }
}

// The same bits, of which the compiler no longer knows where they come from: what is computed of them is computed again.
TS_DEVICE void ts_hide(ts_word<1>& w) { asm volatile("" : "+r"(w.a)); }
TS_DEVICE void ts_hide(ts_word<2>& w) { asm volatile("" : "+h"(w.a)); }
TS_DEVICE void ts_hide(ts_word<4>& w) { asm volatile("" : "+r"(w.a)); }
template <class T, int N>
TS_DEVICE void ts_hold(T* dst, const T* src) {
    ts_word<N * sizeof(T)> word;
    memcpy(&word, src, sizeof(T) * N);
    ts_hide(word);
    memcpy(dst, &word, sizeof(T) * N);
}

// All elements, in words of at least 4 bytes, or zero bits.
template <class T, int N>
TS_DEVICE void ts_ld_global_if(T* dst, const T* p, bool inside) {
    constexpr int TOTAL = N * sizeof(T), BYTES = ts_word_bytes<TOTAL>();
    const ts_u64 address = (ts_u64)__cvta_generic_to_global(p);
    TS_UNROLL
    for (int i = 0; i < TOTAL; i += BYTES) {
        ts_word<BYTES> word;
        ts_load_global_if(word, address + i, inside);
        memcpy((char*)dst + i, &word, BYTES);
    }
}

// First `valid` elements (any int; clamped to 0..N), the rest zero bits; touches no address past them.
template <class T, int N>
TS_DEVICE void ts_ld_global_n(T* dst, const T* p, int valid) {
    TS_UNROLL
    for (int i = 0; i < N; ++i) {
        dst[i] = T();
        if (i < valid) ts_ld_global<T, 1>(dst + i, p + i);
    }
}

template <class T, int N>
TS_DEVICE void ts_st_global_n(T* p, const T* src, int valid) {
    TS_UNROLL
    for (int i = 0; i < N; ++i) {
        if (i < valid) ts_st_global<T, 1>(p + i, src + i);
    }
}

// ---- ldmatrix --------------------------------------------------------------------------------------------------
// Matrix j (8 rows of 16 bytes) takes its row addresses from lanes 8j..8j+7. Lane l receives in r[j] the elements
// (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1); with _trans the two indices swap.

#define TS_LDMATRIX_X1(name, qualifier)                                                                         \
    TS_DEVICE void name(ts_u32* r, const char* row) {                                                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" qualifier ".shared.b16 {%0}, [%1];"                        \
                     : "=r"(r[0])                                                                               \
                     : "r"(ts_shared_address(row))                                                              \
                     : "memory");                                                                               \
    }
#define TS_LDMATRIX_X2(name, qualifier)                                                                         \
    TS_DEVICE void name(ts_u32* r, const char* row) {                                                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" qualifier ".shared.b16 {%0, %1}, [%2];"                    \
                     : "=r"(r[0]), "=r"(r[1])                                                                   \
                     : "r"(ts_shared_address(row))                                                              \
                     : "memory");                                                                               \
    }
#define TS_LDMATRIX_X4(name, qualifier)                                                                         \
    TS_DEVICE void name(ts_u32* r, const char* row) {                                                           \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" qualifier ".shared.b16 {%0, %1, %2, %3}, [%4];"            \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                           \
                     : "r"(ts_shared_address(row))                                                              \
                     : "memory");                                                                               \
    }
TS_LDMATRIX_X1(ts_ldmatrix_x1, "")
TS_LDMATRIX_X2(ts_ldmatrix_x2, "")
TS_LDMATRIX_X4(ts_ldmatrix_x4, "")
TS_LDMATRIX_X1(ts_ldmatrix_x1_trans, ".trans")
TS_LDMATRIX_X2(ts_ldmatrix_x2_trans, ".trans")
TS_LDMATRIX_X4(ts_ldmatrix_x4_trans, ".trans")
#undef TS_LDMATRIX_X1
#undef TS_LDMATRIX_X2
#undef TS_LDMATRIX_X4

// ---- products --------------------------------------------------------------------------------------------------

// c[4] += a[4] (16 x k, row) * b[2] (k x 8, column), f32 accumulators; a word of a or b holds two 16-bit operands or
// one tf32 operand.
#define TS_MMA(name, shape, operand)                                                                               \
    TS_DEVICE void name(float* c, const ts_u32* a, const ts_u32* b) {                                              \
        asm volatile("mma.sync.aligned." shape ".row.col.f32." operand "." operand                                 \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                        \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                          \
    }
TS_MMA(ts_mma_m16n8k16_bf16, "m16n8k16", "bf16")
TS_MMA(ts_mma_m16n8k16_f16, "m16n8k16", "f16")
TS_MMA(ts_mma_m16n8k8_tf32, "m16n8k8", "tf32")  // operands rounded to tf32 before: other bits are ignored
#undef TS_MMA

#include "tessera_device_wgmma.h"
#include "tessera_device_cluster.h"

// f32 to tf32, to nearest, ties away from zero.
TS_DEVICE ts_u32 ts_round_tf32(float x) {
    ts_u32 result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
    return result;
}
TS_DEVICE ts_u32 ts_round_tf32(ts_u32 bits) { return ts_round_tf32(__uint_as_float(bits)); }

// acc + a[0] b[0] + ... + a[7] b[7] in true f32: eight fused multiply-adds in ascending order. Strides in elements.
TS_DEVICE float ts_fma_block8(float acc, const float* a, int a_stride, const float* b, int b_stride) {
    TS_UNROLL
    for (int k = 0; k < 8; ++k) acc = fmaf(a[k * a_stride], b[k * b_stride], acc);
    return acc;
}

#include "tessera_device_convert.h"
#include "tessera_device_pairs.h"

// ---- f32 maths -------------------------------------------------------------------------------------------------
// Maximum errors in units in the last place, from the CUDA C++ Programming Guide's table of single-precision functions
// (full range, no fast maths, no flush to zero). tessera.codegen_cuda.include.CUDA_ULP holds the same numbers.

TS_DEVICE float ts_infinity() { return __uint_as_float(0x7F800000u); }
TS_DEVICE float ts_exp(float x) { return expf(x); }      // 2
// One instruction where exp2f takes four, with the same error (PTX ISA); a result below 2^-126 is zero.
TS_DEVICE float ts_exp2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }  // 2
TS_DEVICE float ts_log(float x) { return logf(x); }      // 1
TS_DEVICE float ts_log2(float x) { return log2f(x); }    // 1
TS_DEVICE float ts_tanh(float x) { return tanhf(x); }    // 2
TS_DEVICE float ts_sqrt(float x) { return sqrtf(x); }    // 0.5: correctly rounded
TS_DEVICE float ts_rsqrt(float x) { return rsqrtf(x); }  // 2
TS_DEVICE float ts_div(float a, float b) { return a / b; }  // 0.5: correctly rounded
#include "tessera_device_division.h"

// 1 / (1 + 2^t) with t = -x log2(e). In relative units of 2^-23: t is off by half a unit, and by 0.11 that the constant
// lacks, of |t| ln 2 <= |x|, which 2^t multiplies into its result, off by 2 more (PTX ISA, ex2.approx.ftz.f32); the sum
// takes 0.5, the reciprocal 1 (rcp.approx.ftz.f32). What 2^t is off by reaches the quotient as 2^t / (1 + 2^t): below
// 4 + 0.62 |x| for x < 0, and 4 for x >= 0. A result below 2^-126 is zero. On an H100 the branch-wise form, with expf,
// took 20 of the 31 instructions of an element behind the products of gated deltas.
TS_DEVICE float ts_sigmoid(float x) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.44269504f * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
    return result;
}
// The same of x * scale, for 2^-100 <= |scale| <= 2^100. The scale times the constant is a number for all elements, whose
// rounding takes the place of that of x * scale: t is off by no more.
TS_DEVICE float ts_scaled_sigmoid(float x, float scale) {
    float power, result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * (-1.44269504f * scale)));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(1.0f + power));
    return result;
}
TS_DEVICE float ts_erf(float x) { return erff(x); }      // 2
// Exact. max and min give NaN when either operand is NaN, and order -0 below +0.
TS_DEVICE float ts_max(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
TS_DEVICE float ts_min(float a, float b) {
    float result;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
TS_DEVICE float ts_nan() { return __uint_as_float(0x7FFFFFFFu); }
TS_DEVICE float ts_abs(float x) { return fabsf(x); }
TS_DEVICE float ts_neg(float x) { return -x; }
TS_DEVICE float ts_floor(float x) { return floorf(x); }
TS_DEVICE float ts_ceil(float x) { return ceilf(x); }

// Off by 2 for expf, which log1pf makes no larger, 1 for log1pf, 0.5 for the sum.
TS_DEVICE float ts_softplus(float x) { return ts_max(x, 0.0f) + log1pf(expf(-fabsf(x))); }  // 4

// The activations, in an order in which nothing overflows and no intermediate is a subnormal whose bits are missed.
// Errors are sums of relative units of 2^-23: exp 2, erfcx 4, an addition, a product or a quotient 0.5. The smallest
// arguments are clamped to some whose result is zero already, so that -infinity gives zero and not NaN.

// The errors of ts_sigmoid and 0.5 for the product: below 5 + 0.62 |x| for x < 0, and 5 for x >= 0. Where the sigmoid is
// below 2^-126 the result, below 2^-119, is zero. With expf and a quotient a chain of elementwise ops was bound by its
// instructions at 2.8 TB/s.
TS_DEVICE float ts_silu(float x) {
    x = ts_max(x, -256.0f);
    return x * ts_sigmoid(x);
}
// For x < 0: x / 2 erfcx(-x / sqrt 2) exp(-x^2 / 2), with the square in two parts and its exponential as a square. 4
// for erfcx, 2 of its argument, 2 * 2 for exp, 2 for the products, 1 for the last correction: 13.
TS_DEVICE float ts_gelu(float x) {
    x = ts_max(x, -16.0f);
    const float z = 0.707106781f * x;
    if (x >= 0.0f) return 0.5f * x * (1.0f + erff(z));
    const float square = x * x, rest = fmaf(x, x, -square);
    const float h = expf(-0.25f * square);
    return 0.5f * x * erfcxf(-z) * h * (h - 0.5f * rest * h);
}
// x times the sigmoid of u = 2 sqrt(2 / pi) (x + 0.044715 x^3), whose 2 units become 2 |u| in the exponential: 5 and
// those, and for x < 0 the 0.62 |u| of the sigmoid (the op's bound adds both by argument). Zero below 2^-122.
TS_DEVICE float ts_gelu_tanh(float x) {
    x = ts_max(x, -16.0f);
    return x * ts_sigmoid(x * fmaf(0.0713548163f * x, x, 1.59576912f));
}

#include "tessera_device_random.h"

// ---- shuffles: all 32 lanes take part --------------------------------------------------------------------------

template <class T>
TS_DEVICE T ts_shfl_xor(T value, int mask) {
    if constexpr (sizeof(T) < 4) return (T)__shfl_xor_sync(0xFFFFFFFFu, (int)value, mask);  // small integers
    else return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
template <class T>
TS_DEVICE T ts_shfl(T value, int lane) {
    if constexpr (sizeof(T) < 4) return (T)__shfl_sync(0xFFFFFFFFu, (int)value, lane);
    else return __shfl_sync(0xFFFFFFFFu, value, lane);
}

// ---- integers: division and remainder round towards minus infinity, as in Python ------------------------------

TS_DEVICE ts_i64 ts_floordiv(ts_i64 a, ts_i64 b) {
    const ts_i64 quotient = a / b;
    return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}
TS_DEVICE ts_i64 ts_floormod(ts_i64 a, ts_i64 b) {
    const ts_i64 remainder = a % b;
    return remainder != 0 && ((remainder < 0) != (b < 0)) ? remainder + b : remainder;
}
TS_DEVICE ts_i64 ts_cdiv(ts_i64 a, ts_i64 b) { return -ts_floordiv(-a, b); }
TS_DEVICE ts_i64 ts_iabs(ts_i64 a) { return a < 0 ? -a : a; }
TS_DEVICE ts_i64 ts_imin(ts_i64 a, ts_i64 b) { return a < b ? a : b; }
TS_DEVICE ts_i64 ts_imax(ts_i64 a, ts_i64 b) { return a > b ? a : b; }
// The number of iterations of a loop from lower to upper, which is left out; 0 for a step of 0.
TS_DEVICE ts_i64 ts_trip_count(ts_i64 lower, ts_i64 upper, ts_i64 step) {
    return step == 0 ? 0 : ts_imax(-ts_floordiv(lower - upper, step), 0);
}

// ---- atomic updates of global memory ---------------------------------------------------------------------------

TS_DEVICE void ts_atomic_add(ts_i32* p, ts_i32 x) { atomicAdd(p, x); }
TS_DEVICE void ts_atomic_add(ts_i64* p, ts_i64 x) { atomicAdd((ts_u64*)p, (ts_u64)x); }
TS_DEVICE void ts_atomic_add(float* p, float x) { atomicAdd(p, x); }
TS_DEVICE void ts_atomic_max(ts_i32* p, ts_i32 x) { atomicMax(p, x); }
TS_DEVICE void ts_atomic_max(ts_i64* p, ts_i64 x) { atomicMax(p, x); }
// In the order of the bits: -0 below +0, NaN above everything. Among negative floats larger bits are smaller numbers.
TS_DEVICE void ts_atomic_max(float* p, float x) {
    const ts_u32 bits = x != x ? 0x7FFFFFFFu : __float_as_uint(x);
    if (bits >> 31)
        atomicMin((ts_u32*)p, bits);
    else
        atomicMax((ts_i32*)p, (ts_i32)bits);
}

// ---- prints and assertions -------------------------------------------------------------------------------------

extern "C" __device__ int printf(const char* format, ...);
extern "C" __device__ void __assertfail(const char* message, const char* file, ts_u32 line, const char* function,
                                        decltype(sizeof(0)) character_bytes);

TS_DEVICE const char* ts_printed(bool x) { return x ? "True" : "False"; }
TS_DEVICE ts_i64 ts_printed(ts_i64 x) { return x; }
TS_DEVICE ts_i64 ts_printed(ts_i32 x) { return x; }
template <class T>
TS_DEVICE double ts_printed(T x) {
    const float value = ts_to_f32(x);
    return value != value ? ts_nan() : value;  // one sign for all NaN
}
template <class... Values>
TS_DEVICE void ts_print(const char* format, Values... values) {
    printf(format, values...);
}
// Reports and stops the launch; the driver names the block. `rank` ids of the program follow.
TS_DEVICE void ts_fail(const char* file, int line, const char* message, int rank, ts_i64 x, ts_i64 y, ts_i64 z) {
    __assertfail(message, file, (ts_u32)line, "kernel", 1);
    asm volatile("trap;");
}
