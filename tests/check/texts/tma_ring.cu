#include "tessera_device.h"
// out[r, c] = sum over s of x[s, r, c], by tiles of 16 x 32 that a block takes in turn. One thread loads a tile of x per
// step into a ring of STAGES slots, whose rows of 128 bytes are swizzled. Warps 0 and 1 add 8 rows each, a lane a column,
// and store them through a place of their own. Two mbarriers per slot: `full` counts the loading thread and the bytes,
// `empty` the two warps when they have read.
#define ROWS 16
#define SLOT (ROWS * 128)
#define SLOTS_START 1024
#define STAGING 1024

struct Tiles {
    int first, next, count, columns;
};

template <int STAGES>
TS_DEVICE void produce(char* full, char* empty, char* slots, const ts_tensor_map& x, Tiles tiles, int steps) {
    int use = 0;
    TS_ROLLED
    for (int tile = tiles.first; tile < tiles.count; tile += tiles.next) {
        const int row = tile / tiles.columns * ROWS, column = tile % tiles.columns * 32;
        TS_ROLLED
        for (int step = 0; step < steps; ++step, ++use) {
            const int stage = use % STAGES, round = use / STAGES;
            ts_mbarrier_wait(empty + stage * 8, (round & 1) ^ 1);  // wait: slot free
            ts_mbarrier_expect(full + stage * 8, SLOT);  // expect
            ts_tma_load(slots + stage * SLOT, x, full + stage * 8, column, row, step);  // load
        }
    }
    ;  // end of the producer
}

template <int STAGES>
TS_DEVICE void consume(char* full, char* empty, const char* slots, char* staging, const ts_tensor_map& out, Tiles tiles,
                       int steps) {
    const int lane = ts_lane(), warp = ts_warp();
    int use = 0;
    TS_ROLLED
    for (int tile = tiles.first; tile < tiles.count; tile += tiles.next) {
        float acc[8];
        TS_UNROLL
        for (int i = 0; i < 8; ++i) acc[i] = 0.0f;
        TS_ROLLED
        for (int step = 0; step < steps; ++step, ++use) {
            const int stage = use % STAGES, round = use / STAGES;
            const char* own = slots + stage * SLOT + warp * 1024 + lane % 4 * 4;
            ts_mbarrier_wait(full + stage * 8, round & 1);  // wait: data of the step
            TS_UNROLL
            for (int i = 0; i < 8; ++i) {
                float value[1];
                ts_ld_shared<float, 1>(value, own + i * 128 + (lane / 4 ^ i) * 16);  // read: slot
                acc[i] += value[0];
            }
            ts_warp_barrier();  // order: every lane has read
            if (lane == 0) ts_mbarrier_arrive(empty + stage * 8);  // arrive: slot read
        }
        if (lane == 0) ts_tma_wait_read<0>();  // wait: staging free
        ts_warp_barrier();  // order: every lane knows
        TS_UNROLL
        for (int i = 0; i < 8; ++i) {
            ts_st_shared<float, 1>(staging + i * 128 + (lane / 4 ^ i) * 16 + lane % 4 * 4, acc + i);  // write: staging
        }
        ts_fence_async();
        ts_warp_barrier();  // order: every lane has written
        if (lane == 0) {
            ts_tma_store(out, staging, tile % tiles.columns * 32, tile / tiles.columns * ROWS + warp * 8);  // store
            ts_tma_commit();
        }
    }
    if (lane == 0) ts_tma_wait_read<0>();  // wait: at the end
}

template <int STAGES>
TS_DEVICE void ring(char* shared, const ts_tensor_map& x, const ts_tensor_map& out, Tiles tiles, int steps) {
    char *full = shared, *empty = shared + STAGES * 8, *slots = shared + SLOTS_START;
    char* staging = slots + STAGES * SLOT;
    if (ts_thread() == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            ts_mbarrier_init(full + stage * 8, 1);
            ts_mbarrier_init(empty + stage * 8, 2);
        }
        ts_mbarrier_fence();  // fence: mbarriers
    }
    ts_barrier();  // barrier: mbarriers initialised
    if (ts_warp() < 2) {
        consume<STAGES>(full, empty, slots, staging + ts_warp() * STAGING, out, tiles, steps);
    } else if (ts_lane() == 0) {
        ts_prefetch_map(x);
        produce<STAGES>(full, empty, slots, x, tiles, steps);
    }
}

#define RING(name, stages)                                                                         \
    TS_KERNEL(name, 96)(TS_MAP x, TS_MAP out, ts_i32 tiles, ts_i32 columns, ts_i32 steps) {        \
        TS_SHARED(shared);                                                                         \
        const Tiles mine = {(int)ts_block_id(0), (int)ts_grid(0), tiles, columns};                 \
        ring<stages>(shared, x, out, mine, steps);                                                 \
    }
RING(tma_1, 1)
RING(tma_2, 2)
RING(tma_5, 5)
