#include "tessera_device.h"
// c[m, n] = sum_k a[m, k] b[k, n] by 32 x 32 tiles of two warps, k in steps of 16 through a ring of STAGES slots.
// Copies run STAGES - 1 steps ahead, one group per step; one block barrier per step says both that the step's data is
// visible to all and that the slot of the step before is free. Rows are an odd number of 16-byte chunks long, which
// spares ldmatrix all bank conflicts.
#define STAGES 3
#define AHEAD (STAGES - 1)
#define STEP 16
#define A_ROW 48
#define B_ROW 80
#define B_START (32 * A_ROW)
#define SLOT (B_START + STEP * B_ROW)

TS_DEVICE void issue_copies(char* slot, const ts_bf16* a, const ts_bf16* b, ts_i64 n, ts_i64 k, ts_i64 start) {
    const int a_row = ts_thread() / 2, a_chunk = ts_thread() % 2;
    const int b_row = ts_thread() / 4, b_chunk = ts_thread() % 4;
    ts_cp_async<16>(slot + a_row * A_ROW + a_chunk * 16, a + a_row * k + start + a_chunk * 8, 16);  // copy: a
    const ts_bf16* from_b = b + (start + b_row) * n + b_chunk * 8;
    ts_cp_async<16>(slot + B_START + b_row * B_ROW + b_chunk * 16, from_b, 16);  // copy: b
}

TS_KERNEL(ring_groups, 64)(const ts_bf16* TS_RESTRICT a, const ts_bf16* TS_RESTRICT b, float* TS_RESTRICT c, ts_i64 n,
                           ts_i64 k) {
    TS_SHARED(shared);
    const int lane = ts_lane(), warp_row = ts_warp() * 16;
    const int steps = (int)(k / STEP);
    a += ts_block_id(0) * 32 * k;
    b += ts_block_id(1) * 32;
    c += ts_block_id(0) * 32 * n + ts_block_id(1) * 32;
    float acc[4][4];
    TS_UNROLL
    for (int i = 0; i < 16; ++i) acc[i / 4][i % 4] = 0.0f;
    TS_UNROLL
    for (int step = 0; step < AHEAD; ++step) {
        if (step < steps) issue_copies(shared + step * SLOT, a, b, n, k, step * STEP);  // prologue
        ts_cp_async_commit();  // commit: prologue
    }
    TS_ROLLED
    for (int step = 0; step < steps; ++step) {
        const char* slot = shared + step % STAGES * SLOT;
        char* refill = shared + (step + AHEAD) % STAGES * SLOT;  // slot to refill
        ts_cp_async_wait<AHEAD - 1>();  // wait: data of the step
        ts_barrier();  // barrier: data visible, slot free
        if (step + AHEAD < steps) issue_copies(refill, a, b, n, k, (step + AHEAD) * STEP);  // refill
        ts_cp_async_commit();  // commit: empty groups in the last steps keep the count
        ts_u32 fragment_a[4], fragment_b[2][4];
        ts_ldmatrix_x4(fragment_a, slot + (warp_row + lane % 16) * A_ROW + lane / 16 * 16);  // read: a
        TS_UNROLL
        for (int j = 0; j < 2; ++j) {
            const char* row = slot + B_START + lane % 16 * B_ROW + (j * 2 + lane / 16) * 16;
            ts_ldmatrix_x4_trans(fragment_b[j], row);  // read: b
        }
        TS_UNROLL
        for (int j = 0; j < 4; ++j) ts_mma_m16n8k16_bf16(acc[j], fragment_a, fragment_b[j / 2] + j % 2 * 2);
    }
    TS_UNROLL
    for (int j = 0; j < 8; ++j) {
        float* out = c + (warp_row + j % 2 * 8 + lane / 4) * n + j / 2 * 8 + lane % 4 * 2;
        ts_st_global<float, 2>(out, acc[j / 2] + j % 2 * 2);  // store: c
    }
}
