#include "tessera_device.h"
// c[m, n] = sum over k of a[m, k] b[k, n] by tiles of 64 x 64, k in steps of 64: one thread loads by TMA, a warpgroup
// multiplies from shared memory, and each warp stores its 16 rows by TMA. What lies outside the tensors is zeros on
// the way in and left out on the way out.
#define STAGES 3
#define PANEL (64 * 128)
#define SLOT (2 * PANEL)
#define SLOTS_START 1024
#define OUT_START (SLOTS_START + STAGES * SLOT)
TS_WGMMA(bf16, 64)

TS_DEVICE void produce(char* shared, const ts_tensor_map& a, const ts_tensor_map& b, int tiles, int across, int steps) {
    int stage = 0, phase = 0;
    TS_ROLLED
    for (int tile = (int)ts_block_id(0); tile < tiles; tile += (int)ts_grid(0)) {
        TS_ROLLED
        for (int step = 0; step < steps; ++step) {
            char *full = shared + stage * 8, *slot = shared + SLOTS_START + stage * SLOT;
            ts_mbarrier_wait(full + 64, phase ^ 1);
            ts_mbarrier_expect(full, SLOT);
            ts_tma_load(slot, a, full, step * 64, tile / across * 64);
            ts_tma_load(slot + PANEL, b, full, tile % across * 64, step * 64);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

// A warp's 16 rows as two panels of 32 columns.
TS_DEVICE void store(char* own, const float* acc, const ts_tensor_map& c, int row, int column) {
    const int lane = ts_lane();
    if (lane == 0) ts_tma_wait_read<0>();
    ts_warp_barrier();
    TS_UNROLL
    for (int i = 0; i < 16; ++i) {
        const int r = lane / 4 + i % 2 * 8, chunk = i / 2 % 4 * 2 + lane % 4 / 2;
        ts_st_shared<float, 2>(own + i / 8 * 2048 + r * 128 + (chunk ^ r % 8) * 16 + lane % 2 * 8, acc + i * 2);
    }
    ts_fence_async();
    ts_warp_barrier();
    if (lane == 0) {
        ts_tma_store(c, own, column, row);
        ts_tma_store(c, own + 2048, column + 32, row);
        ts_tma_commit();
    }
}

TS_DEVICE void consume(char* shared, const ts_tensor_map& c, int tiles, int across, int steps) {
    int stage = 0, phase = 0;
    TS_ROLLED
    for (int tile = (int)ts_block_id(0); tile < tiles; tile += (int)ts_grid(0)) {
        float acc[32];
        TS_ROLLED
        for (int step = 0; step < steps; ++step) {
            char *full = shared + stage * 8, *slot = shared + SLOTS_START + stage * SLOT;
            ts_mbarrier_wait(full, phase);
            const ts_u64 a = ts_wgmma_descriptor(slot, 16, 1024, 128);
            const ts_u64 b = ts_wgmma_descriptor(slot + PANEL, 16, 1024, 128);
            ts_wgmma_fence();
            TS_UNROLL
            for (int i = 0; i < 4; ++i) ts_wgmma_bf16_n64_ss<0, 1>(acc, a + i * 2, b + i * 128, step > 0 || i > 0);
            ts_wgmma_commit();
            ts_wgmma_wait<0, 32>(acc);
            if (ts_lane() == 0) ts_mbarrier_arrive(full + 64);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
        store(shared + OUT_START + ts_warp() * 4096, acc, c, tile / across * 64 + ts_warp() * 16, tile % across * 64);
    }
    if (ts_lane() == 0) ts_tma_wait_read<0>();
}

TS_KERNEL(tma_product, 160)(TS_MAP a, TS_MAP b, TS_MAP c, ts_i32 tiles, ts_i32 across, ts_i32 steps) {
    TS_SHARED(shared);
    if (ts_thread() == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            ts_mbarrier_init(shared + stage * 8, 1);
            ts_mbarrier_init(shared + 64 + stage * 8, 4);
        }
        ts_mbarrier_fence();
    }
    ts_barrier();
    if (ts_warp() < 4) {
        consume(shared, c, tiles, across, steps);
    } else if (ts_lane() == 0) {
        produce(shared, a, b, tiles, across, steps);
    }
}
