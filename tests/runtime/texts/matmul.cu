#include "tessera_device.h"
// c[m, n] = sum_k a[m, k] b[k, n]: 64 x 64 tiles by 4 warps, k in two stages of 32, rows padded against bank conflicts.
#define A_ROW 80
#define B_ROW 144
#define B_START (64 * A_ROW)
#define STAGE (B_START + 32 * B_ROW)

TS_DEVICE void load_stage(char* stage, const ts_bf16* a, const ts_bf16* b, ts_i64 n, ts_i64 k, ts_i64 row, ts_i64 column,
                          ts_i64 start) {
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int item = ts_thread() + i * 128;
        const int a_row = item / 4, a_chunk = item % 4, b_row = item / 8, b_chunk = item % 8;
        ts_cp_async<16>(stage + a_row * A_ROW + a_chunk * 16, a + (row + a_row) * k + start + a_chunk * 8, 16);
        ts_cp_async<16, false>(stage + B_START + b_row * B_ROW + b_chunk * 16,
                               b + (start + b_row) * n + column + b_chunk * 8, 16);
    }
    ts_cp_async_commit();
}

TS_KERNEL(matmul, 128)(const ts_bf16* TS_RESTRICT a, const ts_bf16* TS_RESTRICT b, float* TS_RESTRICT c, ts_i64 n,
                       ts_i64 k) {
    TS_SHARED(shared);
    const ts_i64 row = ts_block_id(0) * 64, column = ts_block_id(1) * 64;
    const int lane = ts_lane(), warp_row = ts_warp() / 2 * 32, warp_column = ts_warp() % 2 * 32;
    float acc[2][4][4];
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        TS_UNROLL
        for (int j = 0; j < 4; ++j) {
            TS_UNROLL
            for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.0f;
        }
    }
    load_stage(shared, a, b, n, k, row, column, 0);
    TS_ROLLED
    for (ts_i64 start = 0; start < k; start += 32) {
        const char* stage = shared + (start / 32 % 2) * STAGE;
        if (start + 32 < k) {
            load_stage(shared + ((start / 32 + 1) % 2) * STAGE, a, b, n, k, row, column, start + 32);
            ts_cp_async_wait<1>();  // WAIT
        } else {
            ts_cp_async_wait<0>();  // WAIT
        }
        ts_barrier();  // ARRIVED
        TS_UNROLL
        for (int step = 0; step < 2; ++step) {
            ts_u32 fragment_a[2][4], fragment_b[2][4];
            TS_UNROLL
            for (int i = 0; i < 2; ++i) {
                ts_ldmatrix_x4(fragment_a[i], stage + (warp_row + i * 16 + lane % 16) * A_ROW + (step * 2 + lane / 16) * 16);
                ts_ldmatrix_x4_trans(fragment_b[i], stage + B_START + (step * 16 + lane % 16) * B_ROW +
                                                        (warp_column / 8 + i * 2 + lane / 16) * 16);
            }
            TS_UNROLL
            for (int i = 0; i < 2; ++i) {
                TS_UNROLL
                for (int j = 0; j < 4; ++j) ts_mma_m16n8k16_bf16(acc[i][j], fragment_a[i], fragment_b[j / 2] + j % 2 * 2);
            }
        }
        ts_barrier();  // CONSUMED
    }
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        TS_UNROLL
        for (int j = 0; j < 4; ++j) {
            TS_UNROLL
            for (int half = 0; half < 2; ++half) {
                const ts_i64 c_row = row + warp_row + i * 16 + half * 8 + lane / 4;
                ts_st_global<float, 2>(c + c_row * n + column + warp_column + j * 8 + lane % 4 * 2, acc[i][j] + half * 2);
            }
        }
    }
}
