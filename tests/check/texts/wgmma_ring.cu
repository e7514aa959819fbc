#include "tessera_device.h"
// c[m, n] = sum_k a[m, k] b[k, n] for a tile of 128 x 32, k in steps of 64: two warpgroups of consumers, and one of which
// a warp produces. Slots hold 128 x 64 of a (panels of 128 bytes along k) and 64 x 32 of b (of 64 bytes along n).
// ring_ss multiplies both from shared memory; ring_rs reads a into registers and hands the slot back at once, with b in
// a place of its own for all steps.
//
// The last argument picks a mistake, or a variant that is none: one build serves them all.
#define STAGES 3
#define A_BYTES (128 * 128)
#define B_BYTES (64 * 64)
#define SLOT (A_BYTES + B_BYTES)
#define OUT_BYTES (128 * 64)
#define SLOTS_START 1024
#define OUT_START (SLOTS_START + STAGES * SLOT)
#define B_START (OUT_START + OUT_BYTES)
TS_WGMMA(bf16, 32)

enum Edit {
    RIGHT,
    NO_FENCE_AFTER_STORES,
    FENCE_BEFORE_STORES,
    FENCE_BY_ONE_LANE,
    FENCE_AFTER_ARRIVAL,
    NO_FENCE_BEFORE_PRODUCTS,
    NO_WAIT_AT_THE_END,
    WAIT_LEAVES_THE_LAST_GROUP,
    NO_COMMIT,
    WAIT_NAMES_HALF,
    WAIT_NAMES_WHAT_IS_IN_FLIGHT,
    SLOT_BACK_BEFORE_ITS_PRODUCTS,
    WAIT_LEAVES_ONE_GROUP_TOO_MANY,
    NO_WAIT_FOR_DATA,
    ACCUMULATOR_WRITTEN,
    ACCUMULATORS_TAKEN_IN_PART,
    WORDS_OVERWRITTEN,
    NO_WAIT_FOR_WORDS,
    ONE_LANE_HANDS_BACK,
    ARRIVALS_AT_TWO_BARRIERS,
    A_WARP_WITHOUT_COMMIT,
    A_WARP_WITH_OTHER_ARGUMENTS,
    A_WARP_RETURNS,
    A_LANE_WITH_OTHER_ARGUMENTS,
    A_WARP_KEEPS_ITS_REGISTERS,
    MORE_REGISTERS_THAN_THERE_ARE,
    INCREASE_TO_FEWER_REGISTERS,
    DESCRIPTOR_BETWEEN_CHUNKS,
    DESCRIPTOR_OF_NO_SWIZZLE,
    DESCRIPTOR_OUT_OF_BLOCK,
    NO_NAMED_BARRIER,
    NAMED_BARRIER_FOR_MORE_THREADS,
    NAMED_BARRIER_FOR_DIFFERENT_THREADS,
    NAMED_BARRIER_ZERO,
    A_WARP_MISSES_NAMED_BARRIER,
    OK_WAIT_FOR_EVERY_PRODUCT,
    OK_WAIT_FOR_ACCUMULATORS_IN_EACH_STEP,
    OK_ONE_BARRIER_FOR_ALL_CONSUMERS,
};
#define UNLESS(name, ...) if (edit != name) { __VA_ARGS__; }
#define WHEN(name, ...) if (edit == name) { __VA_ARGS__; }
#define INSTEAD(name, wrong, ...) if (edit == name) { wrong; } else { __VA_ARGS__; }
#define PICK(name, wrong, right) (edit == name ? (wrong) : (right))
#define WAIT(groups, count) ts_wgmma_wait<groups, count>(acc)

// Rows of CHUNKS 16-byte chunks, swizzled; `pitch` elements apart in global memory.
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
TS_DEVICE void produce(char* shared, const ts_bf16* a, const ts_bf16* b, ts_i64 n, ts_i64 k, int edit) {
    TS_ROLLED
    for (int step = 0; step < (int)(k / 64); ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        char *slot = shared + SLOTS_START + stage * SLOT, *full = shared + stage * 8;
        ts_mbarrier_wait(shared + 64 + stage * 8, (use & 1) ^ 1);  // wait: slot free
        WHEN(FENCE_BEFORE_STORES, ts_fence_async())
        copy_rows<8>(slot, a + step * 64, 128, k);
        copy_rows<4>(SS ? slot + A_BYTES : shared + B_START + step * B_BYTES, b + step * 64 * n, 64, n);
        WHEN(FENCE_AFTER_ARRIVAL, ts_mbarrier_arrive(full))
        if (edit != NO_FENCE_AFTER_STORES && edit != FENCE_BEFORE_STORES && (edit != FENCE_BY_ONE_LANE || ts_lane() == 0))
            ts_fence_async();
        UNLESS(FENCE_AFTER_ARRIVAL, ts_mbarrier_arrive(full))
    }
}

TS_DEVICE void consume_ss(char* shared, float* acc, int steps, int edit) {
    TS_ROLLED
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        const int before = PICK(SLOT_BACK_BEFORE_ITS_PRODUCTS, stage, (step + STAGES - 1) % STAGES);
        char* slot = shared + SLOTS_START + stage * SLOT;
        UNLESS(NO_WAIT_FOR_DATA, ts_mbarrier_wait(shared + stage * 8, use & 1))
        const int far = PICK(DESCRIPTOR_OUT_OF_BLOCK, 131072, 1024), off = PICK(DESCRIPTOR_BETWEEN_CHUNKS, 8, 0);
        const ts_u64 a = ts_wgmma_descriptor(slot + ts_warp() / 4 * 8192, 16, far, 128);
        ts_u64 b = ts_wgmma_descriptor(slot + A_BYTES + off, B_BYTES, 512, PICK(DESCRIPTOR_OF_NO_SWIZZLE, 16, 64));  // describe
        WHEN(A_WARP_WITH_OTHER_ARGUMENTS, if (ts_warp() == 2) b += 32)
        WHEN(A_LANE_WITH_OTHER_ARGUMENTS, if (ts_lane() == 2) b += 32)
        WHEN(A_WARP_RETURNS, if (ts_warp() == 1 && step == 4) return)
        UNLESS(NO_FENCE_BEFORE_PRODUCTS, ts_wgmma_fence())  // fence: ss
        TS_UNROLL
        for (int i = 0; i < 4; ++i) ts_wgmma_bf16_n32_ss<0, 1>(acc, a + i * 2, b + i * 64, step > 0 || i > 0);  // multiply: ss
        WHEN(ACCUMULATORS_TAKEN_IN_PART, ts_wgmma_bf16_n32_ss<0, 1>(acc + 4, a, b, true))  // multiply: part
        if (edit != NO_COMMIT && (edit != A_WARP_WITHOUT_COMMIT || ts_warp() != 5)) ts_wgmma_commit();  // commit
        WHEN(ACCUMULATOR_WRITTEN, acc[3] = 0.0f)
        WHEN(OK_WAIT_FOR_EVERY_PRODUCT, WAIT(0, 0))
        WHEN(OK_WAIT_FOR_ACCUMULATORS_IN_EACH_STEP, WAIT(0, 16))
        WHEN(WAIT_NAMES_WHAT_IS_IN_FLIGHT, WAIT(1, 16))  // wait: in flight
        INSTEAD(WAIT_LEAVES_ONE_GROUP_TOO_MANY, WAIT(2, 0), WAIT(1, 0))  // wait: the step before
        if ((step > 0 || edit == SLOT_BACK_BEFORE_ITS_PRODUCTS) && ts_lane() == 0) ts_mbarrier_arrive(shared + 64 + before * 8);
    }
    if (edit == NO_WAIT_AT_THE_END) return;
    WHEN(WAIT_LEAVES_THE_LAST_GROUP, WAIT(1, 16))  // wait: too little
    INSTEAD(WAIT_NAMES_HALF, WAIT(0, 8), WAIT(0, 16))  // wait: ss
}

TS_DEVICE void consume_rs(char* shared, float* acc, int steps, int edit) {
    ts_u32 a[4][4];
    const int lane = ts_lane(), row = ts_warp() * 16 + lane % 16;
    TS_ROLLED
    for (int step = 0; step < steps; ++step) {
        const int stage = step % STAGES, use = step / STAGES;
        char *slot = shared + SLOTS_START + stage * SLOT, *empty = shared + 64 + stage * 8;
        ts_mbarrier_wait(shared + stage * 8, use & 1);
        ts_u32 word = 0;
        TS_UNROLL
        for (int i = 0; i < 4; ++i) {
            ts_ldmatrix_x4(a[i], slot + row * 128 + ((2 * i + lane / 16) ^ row % 8) * 16);
            word ^= a[i][0] ^ a[i][1] ^ a[i][2] ^ a[i][3];
        }
        WHEN(ARRIVALS_AT_TWO_BARRIERS, empty = shared + 64 + (ts_lane() == 7 ? (stage + 1) % STAGES : stage) * 8)
        INSTEAD(ONE_LANE_HANDS_BACK, if (lane == 0) ts_mbarrier_arrive(empty), ts_mbarrier_arrive_after(empty, word))  // arrive: read
        const ts_u64 b = ts_wgmma_descriptor(shared + B_START + step * B_BYTES, B_BYTES, 512, 64);
        UNLESS(NO_FENCE_BEFORE_PRODUCTS, ts_wgmma_fence())
        TS_UNROLL
        for (int i = 0; i < 4; ++i) ts_wgmma_bf16_n32_rs<1>(acc, a[i], b + i * 64, step > 0 || i > 0);  // multiply: rs
        ts_wgmma_commit();
        WHEN(WORDS_OVERWRITTEN, a[1][2] ^= 1)
        WHEN(OK_WAIT_FOR_ACCUMULATORS_IN_EACH_STEP, WAIT(0, 16))
        UNLESS(NO_WAIT_FOR_WORDS, WAIT(0, 0))  // wait: words
    }
    ts_wgmma_wait<0, 16>(acc);  // wait: rs
}

// 64 rows of 32 bf16 through shared memory, each warpgroup by itself.
TS_DEVICE void store(char* shared, const float* acc, ts_bf16* c, ts_i64 n, int edit) {
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
    int id = PICK(OK_ONE_BARRIER_FOR_ALL_CONSUMERS, 1, 1 + group), threads = PICK(NAMED_BARRIER_FOR_MORE_THREADS, 160, 128);
    WHEN(OK_ONE_BARRIER_FOR_ALL_CONSUMERS, threads = 256)
    WHEN(NAMED_BARRIER_FOR_DIFFERENT_THREADS, if (ts_warp() == 3) threads = 96)
    WHEN(NAMED_BARRIER_ZERO, id = 0)
    if (edit != NO_NAMED_BARRIER && (edit != A_WARP_MISSES_NAMED_BARRIER || ts_warp() != 2)) ts_barrier_of(id, threads);  // barrier: c
    ts_bf16 chunk[8];
    TS_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = i * 32 + thread / 4;
        ts_ld_shared<ts_bf16, 8>(chunk, out + row * 64 + thread % 4 * 16);  // read: c
        ts_st_global<ts_bf16, 8>(c + (group * 64 + row) * n + thread % 4 * 8, chunk);
    }
}

template <bool SS>
TS_DEVICE void ring(const ts_bf16* a, const ts_bf16* b, ts_bf16* c, ts_i64 n, ts_i64 k, int edit) {
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
        if (edit != A_WARP_KEEPS_ITS_REGISTERS || ts_warp() != 9) ts_registers_decrease<40>();  // registers: fewer
        if (ts_warp() == 8) produce<SS>(shared, a, b, n, k, edit);
    } else {
        WHEN(MORE_REGISTERS_THAN_THERE_ARE, ts_registers_increase<240>())  // registers: too many
        WHEN(INCREASE_TO_FEWER_REGISTERS, ts_registers_increase<160>())  // registers: no increase
        if (edit != MORE_REGISTERS_THAN_THERE_ARE) ts_registers_increase<232>();
        float acc[16];
        if (SS) consume_ss(shared, acc, (int)(k / 64), edit);
        else consume_rs(shared, acc, (int)(k / 64), edit);
        store(shared, acc, c, n, edit);
    }
}

#ifdef ONLY_RIGHT  // the edits vanish
#define CHOSEN RIGHT
#else
#define CHOSEN edit
#endif
#define RING(name, SS)                                                                                       \
    TS_KERNEL_OCC(name, 384, 1)(const ts_bf16* TS_RESTRICT a, const ts_bf16* TS_RESTRICT b,                  \
                                ts_bf16* TS_RESTRICT c, ts_i64 n, ts_i64 k, ts_i32 edit) {                   \
        ring<SS>(a, b, c, n, k, CHOSEN);                                                                     \
    }
RING(ring_ss, true)
RING(ring_rs, false)
