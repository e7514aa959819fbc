#include "tessera_device.h"
// One product of 64 rows by N columns and STEPS steps of k per kernel: operands lie in shared memory as `image` has
// them, and descriptors have the given fields. starts: bytes by step, of a and then of b; fields: leading, stride and
// swizzle of a and then of b; fragments: words of A by step and thread.
#define STEPS 4

template <int N, class Multiply>
TS_DEVICE void product(char* shared, const ts_u32* image, int words, const ts_i32* starts, const ts_i32* fields,
                       const ts_u32* fragments, float* out, Multiply multiply) {
    ts_i32 field[6], start[2 * STEPS];
    ts_u32 word, registers[STEPS][4];
    ts_u64 a[STEPS], b[STEPS];
    float acc[N / 2];
    TS_ROLLED
    for (int i = ts_thread(); i < words; i += 128) {
        ts_ld_global<ts_u32, 1>(&word, image + i);
        ts_st_shared<ts_u32, 1>(shared + i * 4, &word);
    }
    ts_ld_global<ts_i32, 6>(field, fields);
    ts_ld_global<ts_i32, 2 * STEPS>(start, starts);
    TS_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        ts_ld_global<ts_u32, 4>(registers[step], fragments + (step * 128 + ts_thread()) * 4);
        a[step] = ts_wgmma_descriptor(shared + start[step], field[0], field[1], field[2]);
        b[step] = ts_wgmma_descriptor(shared + start[STEPS + step], field[3], field[4], field[5]);
    }
    ts_fence_async();
    ts_barrier();
    ts_wgmma_fence();
    TS_UNROLL
    for (int step = 0; step < STEPS; ++step) multiply(acc, registers[step], a[step], b[step], step > 0);
    ts_wgmma_commit();
    ts_wgmma_wait<0, N / 2>(acc);
    TS_UNROLL
    for (int i = 0; i < N / 4; ++i) {
        const int row = ts_warp() * 16 + i % 2 * 8 + ts_lane() / 4, column = i / 2 * 8 + ts_lane() % 4 * 2;
        ts_st_global<float, 2>(out + row * N + column, acc + i * 2);
    }
}

#define FORM(name, N, ...)                                                                                          \
    TS_KERNEL(name, 128)(const ts_u32* image, ts_i32 words, const ts_i32* starts, const ts_i32* fields,              \
                         const ts_u32* fragments, float* out) {                                                     \
        TS_SHARED(shared);                                                                                          \
        product<N>(shared, image, words, starts, fields, fragments, out,                                            \
                   [](float* acc, const ts_u32* words, ts_u64 a, ts_u64 b, bool more) { __VA_ARGS__; });            \
    }
// By transposition bits, with both operands in shared memory and with A in registers.
#define FORMS_16(T, N)                                                                   \
    TS_WGMMA(T, N)                                                                       \
    FORM(T##_##N##_ss_00, N, ts_wgmma_##T##_n##N##_ss<0, 0>(acc, a, b, more))            \
    FORM(T##_##N##_ss_01, N, ts_wgmma_##T##_n##N##_ss<0, 1>(acc, a, b, more))            \
    FORM(T##_##N##_ss_10, N, ts_wgmma_##T##_n##N##_ss<1, 0>(acc, a, b, more))            \
    FORM(T##_##N##_ss_11, N, ts_wgmma_##T##_n##N##_ss<1, 1>(acc, a, b, more))            \
    FORM(T##_##N##_rs_00, N, ts_wgmma_##T##_n##N##_rs<0>(acc, words, b, more))           \
    FORM(T##_##N##_rs_01, N, ts_wgmma_##T##_n##N##_rs<1>(acc, words, b, more))
#define FORMS_8(T, N)                                                                    \
    TS_WGMMA(T, N)                                                                       \
    FORM(T##_##N##_ss_00, N, ts_wgmma_##T##_n##N##_ss<0, 0>(acc, a, b, more))            \
    FORM(T##_##N##_rs_00, N, ts_wgmma_##T##_n##N##_rs<0>(acc, words, b, more))
FORMS_16(bf16, 8)
FORMS_16(bf16, 64)
FORMS_16(bf16, 192)
FORMS_16(bf16, 256)
FORMS_16(f16, 128)
FORMS_8(e4m3, 32)
FORMS_8(e5m2, 256)
FORMS_8(e4m3_e5m2, 32)
FORMS_8(e5m2_e4m3, 64)
