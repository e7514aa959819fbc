#include "tessera_device.h"
// c[m, n] = sum_k a[m, k] b[k, n] by 32 x 32 tiles, k in steps of 16 through a ring of STAGES slots. Warp 0 copies,
// warps 1 and 2 multiply. Two mbarriers per slot: `full` counts the 32 lanes of the producer when their copies have
// landed, `empty` counts the two consumer warps when they have read. The uses of a slot are the phases of both.
#define STEP 16
#define A_ROW 48
#define B_ROW 80
#define B_START (32 * A_ROW)
#define SLOT (B_START + STEP * B_ROW)
#define SLOTS_START 64

template <int STAGES>
TS_DEVICE void produce(char* full, char* empty, char* slots, const ts_bf16* a, const ts_bf16* b, ts_i64 n, ts_i64 k) {
    TS_ROLLED
    for (int step = 0; step < (int)(k / STEP); ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        char* slot = slots + stage * SLOT;  // slot: producer
        ts_mbarrier_wait(empty + stage * 8, (use & 1) ^ 1);  // wait: slot free
        TS_UNROLL
        for (int i = ts_lane(); i < 64; i += 32) {
            const ts_bf16* from = a + i / 2 * k + step * STEP + i % 2 * 8;
            ts_cp_async<16>(slot + i / 2 * A_ROW + i % 2 * 16, from, 16);  // copy: a
        }
        TS_UNROLL
        for (int i = ts_lane(); i < 64; i += 32) {
            const ts_bf16* from = b + (step * STEP + i / 4) * n + i % 4 * 8;
            ts_cp_async<16>(slot + B_START + i / 4 * B_ROW + i % 4 * 16, from, 16);  // copy: b
        }
        ts_cp_async_mbarrier_arrive(full + stage * 8);  // arrive: when the copies have landed
    }
    ts_cp_async_commit();
    ts_cp_async_wait<0>();
}

template <int STAGES>
TS_DEVICE void consume(char* full, char* empty, const char* slots, float* c, ts_i64 n, ts_i64 k) {
    const int lane = ts_lane(), warp_row = (ts_warp() - 1) * 16;
    float acc[4][4];
    TS_UNROLL
    for (int i = 0; i < 16; ++i) acc[i / 4][i % 4] = 0.0f;
    TS_ROLLED
    for (int step = 0; step < (int)(k / STEP); ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        const char* slot = slots + stage * SLOT;  // slot: consumer
        ts_mbarrier_wait(full + stage * 8, use & 1);  // wait: data of the step
        ts_u32 fragment_a[4], fragment_b[2][4];
        ts_ldmatrix_x4(fragment_a, slot + (warp_row + lane % 16) * A_ROW + lane / 16 * 16);  // read: a
        TS_UNROLL
        for (int j = 0; j < 2; ++j) {
            const char* row = slot + B_START + lane % 16 * B_ROW + (j * 2 + lane / 16) * 16;
            ts_ldmatrix_x4_trans(fragment_b[j], row);  // read: b
        }
        TS_UNROLL
        for (int j = 0; j < 4; ++j) ts_mma_m16n8k16_bf16(acc[j], fragment_a, fragment_b[j / 2] + j % 2 * 2);
        ts_warp_barrier();  // order: every lane has read
        if (lane == 0) ts_mbarrier_arrive(empty + stage * 8);  // arrive: slot read, after the mma that use its data
    }
    TS_UNROLL
    for (int j = 0; j < 8; ++j) {
        float* out = c + (warp_row + j % 2 * 8 + lane / 4) * n + j / 2 * 8 + lane % 4 * 2;
        ts_st_global<float, 2>(out, acc[j / 2] + j % 2 * 2);  // store: c
    }
}

template <int STAGES>
TS_DEVICE void ring(char* shared, const ts_bf16* a, const ts_bf16* b, float* c, ts_i64 n, ts_i64 k) {
    char *full = shared, *empty = shared + STAGES * 8, *slots = shared + SLOTS_START;  // places
    if (ts_thread() == 0) {  // one thread initialises
        for (int stage = 0; stage < STAGES; ++stage) {
            ts_mbarrier_init(full + stage * 8, 32);  // init: full
            ts_mbarrier_init(empty + stage * 8, 2);  // init: empty
        }
    }
    ts_barrier();  // barrier: mbarriers initialised
    a += ts_block_id(0) * 32 * k;
    b += ts_block_id(1) * 32;
    c += ts_block_id(0) * 32 * n + ts_block_id(1) * 32;
    if (ts_warp() == 0) {
        produce<STAGES>(full, empty, slots, a, b, n, k);
    } else {
        consume<STAGES>(full, empty, slots, c, n, k);
    }
}

#define RING(name, stages)                                                                               \
    TS_KERNEL(name, 96)(const ts_bf16* TS_RESTRICT a, const ts_bf16* TS_RESTRICT b, float* TS_RESTRICT c, \
                        ts_i64 n, ts_i64 k) {                                                            \
        TS_SHARED(shared);                                                                               \
        ring<stages>(shared, a, b, c, n, k);                                                             \
    }
RING(ring_2, 2)
RING(ring_3, 3)
RING(ring_4, 4)
