#include "tessera_device.h"
// out[0..127]: the warp's sum by a butterfly; out[128..255]: lane 5's value.
TS_KERNEL(shuffles, 128)(const float* TS_RESTRICT x, float* TS_RESTRICT out) {
    float value[1];
    ts_ld_global<float, 1>(value, x + ts_thread());
    const float broadcast = ts_shfl(value[0], 5);
    TS_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) value[0] += ts_shfl_xor(value[0], mask);
    ts_st_global<float, 1>(out + ts_thread(), value);
    ts_st_global<float, 1>(out + 128 + ts_thread(), &broadcast);
}

// Reverses each row of 128 floats through shared memory and sums the rows of a list.
TS_KERNEL_OCC(reverse_sum, 128, 2)(TS_TABLE(const float, 3) rows, ts_i64 count, float* TS_RESTRICT out, float scale) {
    TS_SHARED(shared);
    float total[1] = {0.0f};
    TS_ROLLED
    for (ts_i64 i = 0; i < count; ++i) {
        float value[1];
        ts_ld_global<float, 1>(value, ts_element(rows, i, 3) + ts_thread());
        ts_st_shared<float, 1>(shared + ts_thread() * 4, value);
        ts_barrier();
        ts_ld_shared<float, 1>(value, shared + (127 - ts_thread()) * 4);
        total[0] += scale * value[0];
        ts_barrier();
    }
    ts_st_global<float, 1>(out + ts_thread(), total);
}

// Two 16-byte words per lane through shared memory, ordered by a warp barrier only.
TS_KERNEL(rotate, 64)(const ts_bf16* TS_RESTRICT x, ts_bf16* TS_RESTRICT out) {
    TS_SHARED(shared);
    char* mine = shared + ts_warp() * 1024;
    ts_bf16 values[16];
    ts_ld_global<ts_bf16, 16>(values, x + ts_thread() * 16);
    ts_st_shared<ts_bf16, 16>(mine + ts_lane() * 32, values);
    ts_warp_barrier();  // WRITTEN
    ts_ld_shared<ts_bf16, 16>(values, mine + (ts_lane() + 1) % 32 * 32);
    ts_st_global<ts_bf16, 16>(out + ts_thread() * 16, values);
}

// Matrices of 8 x 8 through each form of ldmatrix: out[form, register, lane].
TS_KERNEL(matrices, 32)(const ts_bf16* TS_RESTRICT x, ts_u32* TS_RESTRICT out) {
    TS_SHARED(shared);
    ts_cp_async<16>(shared + ts_lane() * 16, x + ts_lane() * 8, 16);
    ts_cp_async_commit();
    ts_cp_async_wait<0>();
    ts_warp_barrier();
    const char* row = shared + ts_lane() * 16;
    ts_u32 r[6][4];
    TS_UNROLL
    for (int i = 0; i < 24; ++i) r[i / 4][i % 4] = 0;
    ts_ldmatrix_x1(r[0], row);
    ts_ldmatrix_x2(r[1], row);
    ts_ldmatrix_x4(r[2], row);
    ts_ldmatrix_x1_trans(r[3], row);
    ts_ldmatrix_x2_trans(r[4], row);
    ts_ldmatrix_x4_trans(r[5], row);
    TS_UNROLL
    for (int i = 0; i < 24; ++i) ts_st_global<ts_u32, 1>(out + i * 32 + ts_lane(), &r[i / 4][i % 4]);
}

// cp.async of 4, 8 and 16 bytes with partial and empty sources.
TS_KERNEL(partial_copies, 32)(const float* TS_RESTRICT x, float* TS_RESTRICT out, ts_i64 valid) {
    TS_SHARED(shared);
    if (ts_thread() == 0) {
        ts_cp_async<16>(shared, x, (int)valid * 4);
        ts_cp_async<8>(shared + 16, x, (int)ts_imin(valid, 2) * 4);
        ts_cp_async<4>(shared + 24, x - 1000000, 0);
        ts_cp_async_commit();
        ts_cp_async_wait<0>();
    }
    ts_barrier();
    if (ts_thread() < 7) {
        float value[1];
        ts_ld_shared<float, 1>(value, shared + ts_thread() * 4);
        ts_st_global<float, 1>(out + ts_thread(), value);
    }
}
