#include "tessera_device.h"
// c[m, n] = sum_k a[m, k] b[k, n] for a tile of 128 x 32, k in steps of 64: two warpgroups of consumers, and one of which
// a warp produces. Slots hold 128 x 64 of a (panels of 128 bytes along k) and 64 x 32 of b (of 64 bytes along n).
// ring_ss multiplies both from shared memory; ring_rs reads a into registers and hands the slot back at once, with b in
// a place of its own for all steps.
#define STAGES 3
#define A_BYTES (128 * 128)
#define B_BYTES (64 * 64)
#define SLOT (A_BYTES + B_BYTES)
#define OUT_BYTES (128 * 64)
#define SLOTS_START 1024
#define OUT_START (SLOTS_START + STAGES * SLOT)
#define B_START (OUT_START + OUT_BYTES)
TS_WGMMA(bf16, 32)

// Rows of `chunks` 16-byte chunks, swizzled; `pitch` elements apart in global memory.
template <int CHUNKS>
TS_DEVICE void copy_rows(char* dst, const ts_bf16* src, int rows, ts_i64 pitch) {
    ts_bf16 chunk[8];
    TS_ROLLED
    for (int i = ts_lane(); i < rows * CHUNKS; i += 32) {
        const int row = i / CHUNKS, column = i % CHUNKS;
        ts_ld_global<ts_bf16, 8>(chunk, src + row * pitch + column * 8);
        ts_st_shared<ts_bf16, 8>(dst + row * CHUNKS * 16 + (column ^ row / (8 / CHUNKS) % CHUNKS) * 16, chunk);  // fill
    }
}

template <bool SS>
TS_DEVICE void produce(char* shared, const ts_bf16* a, const ts_bf16* b, ts_i64 n, ts_i64 k) {
    TS_ROLLED
    for (int step = 0; step < (int)(k / 64); ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        char* slot = shared + SLOTS_START + stage * SLOT;  // slot: producer
        ts_mbarrier_wait(shared + 64 + stage * 8, (use & 1) ^ 1);  // wait: slot free
        copy_rows<8>(slot, a + step * 64, 128, k);
        copy_rows<4>(SS ? slot + A_BYTES : shared + B_START + step * B_BYTES, b + step * 64 * n, 64, n);
        ts_fence_async();  // fence: filled
        ts_mbarrier_arrive(shared + stage * 8);  // arrive: filled
    }
}

TS_DEVICE void consume_ss(char* shared, float* acc, int steps) {
    TS_ROLLED
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        char* slot = shared + SLOTS_START + stage * SLOT;  // slot: consumer
        ts_mbarrier_wait(shared + stage * 8, use & 1);  // wait: data
        const ts_u64 a = ts_wgmma_descriptor(slot + ts_warp() / 4 * 8192, 16, 1024, 128);  // descriptor: a
        const ts_u64 b = ts_wgmma_descriptor(slot + A_BYTES, B_BYTES, 512, 64);  // descriptor: b
        ts_wgmma_fence();  // fence: ss
        TS_UNROLL
        for (int i = 0; i < 4; ++i) ts_wgmma_bf16_n32_ss<0, 1>(acc, a + i * 2, b + i * 64, step > 0 || i > 0);  // multiply: ss
        ts_wgmma_commit();  // commit: ss
        ts_wgmma_wait<1, 0>(acc);  // wait: the step before
        const int before = (step + STAGES - 1) % STAGES;
        if (step > 0 && ts_lane() == 0) ts_mbarrier_arrive(shared + 64 + before * 8);  // arrive: read
    }
    ts_wgmma_wait<0, 16>(acc);  // wait: ss
}

TS_DEVICE void consume_rs(char* shared, float* acc, int steps) {
    ts_u32 a[4][4];
    const int lane = ts_lane(), row = ts_warp() * 16 + lane % 16;
    TS_ROLLED
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        const char* slot = shared + SLOTS_START + stage * SLOT;
        ts_mbarrier_wait(shared + stage * 8, use & 1);  // wait: data for registers
        ts_u32 word = 0;
        TS_UNROLL
        for (int i = 0; i < 4; ++i) {
            ts_ldmatrix_x4(a[i], slot + row * 128 + ((2 * i + lane / 16) ^ row % 8) * 16);  // read: a
            word ^= a[i][0] ^ a[i][1] ^ a[i][2] ^ a[i][3];
        }
        ts_mbarrier_arrive_after(shared + 64 + stage * 8, word);  // arrive: read into registers
        const ts_u64 b = ts_wgmma_descriptor(shared + B_START + step * B_BYTES, B_BYTES, 512, 64);
        ts_wgmma_fence();  // fence: rs
        TS_UNROLL
        for (int i = 0; i < 4; ++i) ts_wgmma_bf16_n32_rs<1>(acc, a[i], b + i * 64, step > 0 || i > 0);  // multiply: rs
        ts_wgmma_commit();
        ts_wgmma_wait<0, 0>(acc);  // wait: words of a
    }
    ts_wgmma_wait<0, 16>(acc);  // wait: rs
}

// 64 rows of 32 bf16 through shared memory, each warpgroup by itself.
TS_DEVICE void store(char* shared, const float* acc, ts_bf16* c, ts_i64 n) {
    const int group = ts_warp() / 4, thread = ts_thread() % 128, lane = ts_lane();
    char* out = shared + OUT_START + group * 4096;
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        ts_u32 words[4];
        TS_UNROLL
        for (int j = 0; j < 4; ++j)
            words[j] = ts_pack_bf16x2(ts_to_bf16(acc[8 * i + 2 * j]), ts_to_bf16(acc[8 * i + 2 * j + 1]));
        ts_stmatrix_x4(out + (ts_warp() % 4 * 16 + lane % 16) * 64 + (2 * i + lane / 16) * 16, words);  // stage: c
    }
    ts_barrier_of(1 + group, 128);  // barrier: c
    ts_bf16 chunk[8];
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = i * 32 + thread / 4;
        ts_ld_shared<ts_bf16, 8>(chunk, out + row * 64 + thread % 4 * 16);  // read: c
        ts_st_global<ts_bf16, 8>(c + (group * 64 + row) * n + thread % 4 * 8, chunk);  // store: c
    }
}

template <bool SS>
TS_DEVICE void ring(const ts_bf16* a, const ts_bf16* b, ts_bf16* c, ts_i64 n, ts_i64 k) {
    TS_SHARED(shared);
    if (ts_thread() == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            ts_mbarrier_init(shared + stage * 8, 32);
            ts_mbarrier_init(shared + 64 + stage * 8, 8);
        }
    }
    ts_barrier();
    a += ts_block_id(0) * 128 * k;
    b += ts_block_id(1) * 32;
    c += ts_block_id(0) * 128 * n + ts_block_id(1) * 32;
    if (ts_warp() >= 8) {
        ts_registers_decrease<40>();  // registers: fewer
        if (ts_warp() == 8) produce<SS>(shared, a, b, n, k);
    } else {
        ts_registers_increase<232>();  // registers: more
        float acc[16];
        if (SS) consume_ss(shared, acc, (int)(k / 64));
        else consume_rs(shared, acc, (int)(k / 64));
        store(shared, acc, c, n);
    }
}

#define RING(name, SS)                                                                                       \
    TS_KERNEL_OCC(name, 384, 1)(const ts_bf16* TS_RESTRICT a, const ts_bf16* TS_RESTRICT b, ts_bf16* TS_RESTRICT c, \
                               ts_i64 n, ts_i64 k) {                                                         \
        ring<SS>(a, b, c, n, k);                                                                             \
    }
RING(ring_ss, true)
RING(ring_rs, false)
