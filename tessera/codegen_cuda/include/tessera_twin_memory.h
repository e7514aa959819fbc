// Checked accesses to shared and global memory, races, and asynchronous copies.
//
// Shared memory starts as NaN (all bits one, in each floating type) between guards. Two rules find races: within one
// block-barrier phase an access conflicts with another thread's access to the same byte when one of them writes,
// unless both threads are of one warp and a warp barrier lies between. Two threads that write the same bytes with the
// same value do not conflict (a reduced value is often written by each lane that holds it).
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

constexpr int GUARD_BYTES = 4096;
constexpr unsigned char GUARD_BYTE = 0xA5;
constexpr unsigned char POISON_BYTE = 0xFF;
constexpr unsigned short MANY_WARPS = 0xFFFF;
constexpr unsigned short MANY_LANES = 0x8000;  // or-ed with the warp

// The last accesses to one byte of shared memory.
struct Shadow {
    ts_u32 write_epoch, write_warp_epoch;
    ts_u32 read_epoch, read_warp_epoch;
    unsigned short writer, reader;
    unsigned short copier;  // thread + 1 whose asynchronous copy into this byte is in flight
};

[[noreturn]] __attribute__((noinline, cold)) inline void fail_race(const char* verb, int thread, ts_i64 offset,
                                                                   const char* other_verb, int other) {
    if (other == MANY_WARPS)
        fail(RACE, thread, "%s shared byte %lld, which threads of several warps %s with no barrier between", verb,
             offset, other_verb);
    if (other & MANY_LANES)
        fail(RACE, thread, "%s shared byte %lld, which lanes of warp %d %s with no barrier between", verb, offset,
             other & ~MANY_LANES, other_verb);
    fail(RACE, thread, "%s shared byte %lld, which thread %d %s with no %s between", verb, offset, other, other_verb,
         other / 32 == thread / 32 ? "ts_warp_barrier" : "ts_barrier");
}

[[noreturn]] __attribute__((noinline, cold)) inline void fail_unwaited(const char* verb, int thread, ts_i64 offset,
                                                                       int copier) {
    fail(UNWAITED_COPY, thread, "%s shared byte %lld while the cp.async of thread %d into it is not waited for", verb,
         offset, copier);
}

inline void shadow_read(int thread, ts_i64 offset, int bytes) {
    const int warp = thread / 32;
    const ts_u32 warp_epoch = state.warp[warp].epoch;
    for (int i = 0; i < bytes; ++i) {
        Shadow& byte = state.shadow[offset + i];
        if (byte.copier) fail_unwaited("reads", thread, offset + i, byte.copier - 1);
        if (byte.write_epoch == state.epoch && byte.writer != thread &&
            (byte.writer / 32 != warp || byte.write_warp_epoch == warp_epoch))
            fail_race("reads", thread, offset + i, "wrote", byte.writer);
        const int reader_warp = byte.reader & MANY_LANES ? byte.reader & ~MANY_LANES : byte.reader / 32;
        if (byte.read_epoch != state.epoch) {
            byte.reader = (unsigned short)thread;
        } else if (byte.reader == MANY_WARPS || byte.reader == thread) {
        } else if (reader_warp != warp) {
            byte.reader = MANY_WARPS;
        } else {  // an older read of this warp that a warp barrier follows is ordered before whatever comes next
            byte.reader = byte.read_warp_epoch == warp_epoch ? (unsigned short)(MANY_LANES | warp) : (unsigned short)thread;
        }
        byte.read_epoch = state.epoch;
        byte.read_warp_epoch = warp_epoch;
    }
}

// `data` is what is about to be written, or null when no equal value can excuse it.
inline void shadow_write(int thread, ts_i64 offset, int bytes, const char* data) {
    const int warp = thread / 32;
    const ts_u32 warp_epoch = state.warp[warp].epoch;
    for (int i = 0; i < bytes; ++i) {
        Shadow& byte = state.shadow[offset + i];
        if (byte.copier) fail_unwaited("writes", thread, offset + i, byte.copier - 1);
        if (byte.write_epoch == state.epoch && byte.writer != thread &&
            (byte.writer / 32 != warp || byte.write_warp_epoch == warp_epoch) &&
            !(data && data[i] == state.shared[offset + i]))
            fail_race("writes", thread, offset + i, "wrote", byte.writer);
        if (byte.read_epoch == state.epoch && byte.reader != thread) {
            const bool several = byte.reader == MANY_WARPS;
            const int reader_warp = byte.reader & MANY_LANES ? byte.reader & ~MANY_LANES : byte.reader / 32;
            if (several || reader_warp != warp || byte.read_warp_epoch == warp_epoch)
                fail_race("writes", thread, offset + i, "read", byte.reader);
        }
        byte.write_epoch = state.epoch;
        byte.write_warp_epoch = warp_epoch;
        byte.writer = (unsigned short)thread;
    }
}

// ---- bounds and alignment --------------------------------------------------------------------------------------

inline ts_i64 check_shared(int thread, const void* p, int bytes, int alignment, const char* verb) {
    const ts_i64 offset = (const char*)p - state.shared;
    if (offset < 0 || offset + bytes > state.shared_bytes)
        fail(SHARED_BOUNDS, thread, "%s %d bytes at offset %lld of a shared block of %lld bytes", verb, bytes, offset,
             state.shared_bytes);
    if (offset % alignment)
        fail(MISALIGNED, thread, "%s %d bytes at shared offset %lld, which is not a multiple of %d", verb, bytes,
             offset, alignment);
    return offset;
}

inline void check_global(int thread, const void* p, int bytes, int alignment, bool write, const char* verb) {
    const ts_twin_options& options = *state.options;
    const char* address = (const char*)p;
    const ts_twin_allocation* read_only = nullptr;
    // The last allocation hit comes first: accesses go to one array for long stretches.
    for (int i = -1; i < options.allocation_count; ++i) {
        const int index = i < 0 ? state.last_allocation : i;
        if (index >= options.allocation_count) continue;
        const ts_twin_allocation& allocation = options.allocations[index];
        if (address < allocation.base || address + bytes > allocation.base + allocation.bytes) continue;
        state.last_allocation = index;
        if ((ts_u64)address % alignment)
            fail(MISALIGNED, thread, "%s %d bytes at byte %lld of argument %d, whose address is not a multiple of %d",
                 verb, bytes, (ts_i64)(address - allocation.base), allocation.argument, alignment);
        if (!write || allocation.writable) return;
        read_only = &allocation;  // another argument may share this memory and be writable
    }
    if (read_only)
        fail(READ_ONLY, thread, "%s %d bytes at byte %lld of argument %d, which is read-only", verb, bytes,
             (ts_i64)(address - read_only->base), read_only->argument);
    // Name the array whose border is nearest.
    const ts_twin_allocation* nearest = nullptr;
    ts_u64 best = 1ull << 40;
    for (int i = 0; i < options.allocation_count; ++i) {
        const ts_twin_allocation& allocation = options.allocations[i];
        const ts_u64 distance = address < allocation.base ? (ts_u64)(allocation.base - address)
                                                          : (ts_u64)(address - allocation.base);
        if (distance < best) {
            best = distance;
            nearest = &allocation;
        }
    }
    if (!nearest) fail(GLOBAL_BOUNDS, thread, "%s %d bytes at an address in no argument", verb, bytes);
    fail(GLOBAL_BOUNDS, thread, "%s %d bytes at byte %lld of argument %d, which has %lld bytes", verb, bytes,
         (ts_i64)(address - nearest->base), nearest->argument, nearest->bytes);
}

inline const char* read_shared(int thread, const char* p, int bytes, int alignment) {
    const ts_i64 offset = check_shared(thread, p, bytes, alignment, "reads");
    if (state.shadow) shadow_read(thread, offset, bytes);
    return p;
}

inline void write_shared(char* p, const char* data, int bytes) {
    const ts_i64 offset = check_shared(state.thread, p, bytes, bytes, "writes");
    if (state.shadow) shadow_write(state.thread, offset, bytes, data);
    __builtin_memcpy(p, data, bytes);
}

// The word of one vector access: the device header's ts_word_bytes.
constexpr int word_bytes(int total) {
    return total % 16 == 0 ? 16 : total % 8 == 0 ? 8 : total % 4 == 0 ? 4 : total % 2 == 0 ? 2 : 1;
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------
// The worst legal hardware: the destination turns to poison at the issue, and data arrives only in the wait.

inline void issue_copy(char* dst, const void* src, int bytes, int src_bytes) {
    const ts_i64 offset = check_shared(state.thread, dst, bytes, bytes, "copies to");
    if (src_bytes < 0 || src_bytes > bytes)
        fail(GLOBAL_BOUNDS, state.thread, "cp.async of %d bytes asks for %d source bytes", bytes, src_bytes);
    if (src_bytes) {
        check_global(state.thread, src, src_bytes, 1, false, "copies from");
        if ((ts_u64)src % bytes)
            fail(MISALIGNED, state.thread, "cp.async of %d bytes from an address that is not a multiple of %d", bytes,
                 bytes);
    }
    if (state.shadow) {
        shadow_write(state.thread, offset, bytes, nullptr);
        for (int i = 0; i < bytes; ++i) state.shadow[offset + i].copier = (unsigned short)(state.thread + 1);
    }
    __builtin_memset(dst, POISON_BYTE, bytes);
    Fiber& fiber = state.fibers[state.thread];
    if (fiber.copy_count == fiber.copy_capacity) {
        fiber.copy_capacity = fiber.copy_capacity ? 2 * fiber.copy_capacity : 64;
        fiber.copies = (AsyncCopy*)__builtin_realloc(fiber.copies, fiber.copy_capacity * sizeof(AsyncCopy));
    }
    fiber.copies[fiber.copy_count++] = AsyncCopy{dst, src, bytes, src_bytes, fiber.committed_groups};
}

inline void wait_copies(int groups_in_flight) {
    Fiber& fiber = state.fibers[state.thread];
    while (fiber.first_copy < fiber.copy_count &&
           fiber.copies[fiber.first_copy].group < fiber.committed_groups - groups_in_flight) {
        const AsyncCopy& copy = fiber.copies[fiber.first_copy++];
        if (state.shadow) {
            const ts_i64 offset = copy.dst - state.shared;
            for (int i = 0; i < copy.bytes; ++i) state.shadow[offset + i].copier = 0;
            shadow_write(state.thread, offset, copy.bytes, nullptr);
        }
        __builtin_memset(copy.dst, 0, copy.bytes);
        if (copy.src_bytes) __builtin_memcpy(copy.dst, copy.src, copy.src_bytes);
    }
    if (fiber.first_copy == fiber.copy_count) fiber.first_copy = fiber.copy_count = 0;
}

}  // namespace ts_twin

template <int BYTES, bool BYPASS = (BYTES == 16)>
TS_DEVICE void ts_cp_async(char* dst, const void* src, int src_bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    static_assert(!BYPASS || BYTES == 16, "only a 16-byte cp.async can bypass L1");
    ts_twin::issue_copy(dst, src, BYTES, src_bytes);
}
TS_DEVICE void ts_cp_async_commit() { ++ts_twin::state.fibers[ts_twin::state.thread].committed_groups; }
template <int N>
TS_DEVICE void ts_cp_async_wait() {
    ts_twin::wait_copies(N);
}

template <class T, int N>
TS_DEVICE void ts_ld_shared(T* dst, const char* p) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    for (int i = 0; i < TOTAL; i += WORD)
        __builtin_memcpy((char*)dst + i, ts_twin::read_shared(ts_twin::state.thread, p + i, WORD, WORD), WORD);
}

template <class T, int N>
TS_DEVICE void ts_st_shared(char* p, const T* src) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    for (int i = 0; i < TOTAL; i += WORD) ts_twin::write_shared(p + i, (const char*)src + i, WORD);
}

template <class T, int N>
TS_DEVICE void ts_ld_global(T* dst, const T* p) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::check_global(ts_twin::state.thread, p, TOTAL, WORD, false, "reads");
    __builtin_memcpy((void*)dst, (const void*)p, TOTAL);
}

template <class T, int N>
TS_DEVICE void ts_st_global(T* p, const T* src) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::check_global(ts_twin::state.thread, p, TOTAL, WORD, true, "writes");
    __builtin_memcpy((void*)p, (const void*)src, TOTAL);
}

template <class T, int N>
TS_DEVICE void ts_ld_global_n(T* dst, const T* p, int valid) {
    for (int i = 0; i < N; ++i) {
        dst[i] = T();
        if (i < valid) ts_ld_global<T, 1>(dst + i, p + i);
    }
}

template <class T, int N>
TS_DEVICE void ts_st_global_n(T* p, const T* src, int valid) {
    for (int i = 0; i < N && i < valid; ++i) ts_st_global<T, 1>(p + i, src + i);
}
