#include "tessera_device.h"
// out[tile, r, c] = sum over steps of x[tile, step, r, c] * y[step, r, c], tiles of 16 rows of 32 columns. The blocks of a
// cluster have a tile each at a time and share y: each loads a part of its rows for all. The ring of slots is theirs
// together: a slot of any block is filled by all of them, and so is empty when the consumers of all have read theirs.
#define STAGES 2
#define HALF (16 * 128)
#define SLOT (2 * HALF)
#define SLOTS_START 1024
#define PART(blocks) (16 / blocks)

template <int BLOCKS>
TS_DEVICE void produce(char* full, char* slots, const ts_tensor_map& x, const ts_tensor_map& y, int rounds, int steps) {
    char* empty = full + 64;
    const int rank = ts_cluster_rank();
    int stage = 0, phase = 0;
    for (int round = 0; round < rounds; ++round) {
        for (int step = 0; step < steps; ++step) {
            char *slot = slots + stage * SLOT, *part = slot + HALF + rank * PART(BLOCKS) * 128;
            ts_mbarrier_wait(empty + stage * 8, phase ^ 1);  // wait: slot free
            ts_mbarrier_expect(full + stage * 8, SLOT);  // expect
            ts_tma_load(slot, x, full + stage * 8, 0, 0, round * (int)ts_grid(0) + (int)ts_block_id(0), step);  // load: own
            ts_tma_load_multicast(part, y, full + stage * 8, (1 << BLOCKS) - 1, 0, rank * PART(BLOCKS), step);  // load: shared
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

template <int BLOCKS>
TS_DEVICE void consume(char* full, char* slots, float* out, int rounds, int steps) {
    char* empty = full + 64;
    int stage = 0, phase = 0;
    for (int round = 0; round < rounds; ++round) {
        float acc[8] = {0};
        for (int step = 0; step < steps; ++step) {
            char *slot = slots + stage * SLOT, *own = slot + ts_thread() * 32;
            float a[8], b[8];
            ts_mbarrier_wait(full + stage * 8, phase);  // wait: data
            ts_ld_shared<float, 8>(a, own);  // read: own
            ts_ld_shared<float, 8>(b, own + HALF);  // read: shared
            for (int i = 0; i < 8; ++i) acc[i] += a[i] * b[i];
            ts_mbarrier_arrive_cluster_after(empty + stage * 8, ts_register_word(a[7]) ^ ts_register_word(b[7]), BLOCKS);  // arrive
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
        ts_st_global<float, 8>(out + ((round * ts_grid(0) + ts_block_id(0)) * 64 + ts_thread()) * 8, acc);
    }
}

template <int BLOCKS>
TS_DEVICE void run(char* shared, const ts_tensor_map& x, const ts_tensor_map& y, float* out, int rounds, int steps) {
    char *full = shared, *slots = shared + SLOTS_START;
    if (ts_thread() == 0) {
        for (int i = 0; i < STAGES; ++i) {
            ts_mbarrier_init(full + i * 8, 1);
            ts_mbarrier_init(full + 64 + i * 8, 2 * BLOCKS);  // init: empty
        }
        ts_mbarrier_fence();
    }
    ts_barrier();
    ts_cluster_barrier();  // order: every block has its barriers
    if (ts_warp() < 2) consume<BLOCKS>(full, slots, out, rounds, steps);
    else if (ts_thread() == 64) produce<BLOCKS>(full, slots, x, y, rounds, steps);
    ts_cluster_barrier();  // order: no block is needed any more
}

#define CLUSTER_RING(name, blocks) \
    TS_KERNEL_CLUSTER(name, 96, 1, blocks)(TS_MAP x, TS_MAP y, float* TS_RESTRICT out, ts_i32 rounds, ts_i32 steps) { \
        TS_SHARED(shared); \
        run<blocks>(shared, x, y, out, rounds, steps); \
    }

CLUSTER_RING(ring_of_2, 2)
CLUSTER_RING(ring_of_4, 4)
