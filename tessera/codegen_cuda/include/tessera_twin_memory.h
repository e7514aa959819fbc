// Checked accesses to shared and global memory, and asynchronous copies.
//
// Shared memory starts as NaN (all bits one, in each floating type) between guards; reading what nobody wrote is a
// finding all the same.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

constexpr int GUARD_BYTES = 4096;
constexpr unsigned char GUARD_BYTE = 0xA5;
constexpr unsigned char POISON_BYTE = 0xFF;

// ---- shared memory ---------------------------------------------------------------------------------------------

inline void check_free(int thread, const Shadow& byte, ts_i64 offset, const char* verb) {
    if (byte.copier == IS_MBARRIER)
        fail(MBARRIER, thread_of(thread), "%s {shared %lld}, which is part of an mbarrier", verb, offset);
    if (byte.copier)
        fail(IN_FLIGHT, thread_of(thread), "%s {shared %lld} while the cp.async of thread %d at {line %d} into it is not waited for",
             verb, offset, byte.copier - 1, byte.write.line);
}

inline void suspect(int thread, const char* verb, Place place) {
    if (state.unwritten_thread >= 0) return;
    state.unwritten_thread = thread_of(thread);
    state.unwritten_line = state.fibers[state.unwritten_thread].line;
    __builtin_snprintf(state.unwritten_message, sizeof state.unwritten_message, "%s %s, which nobody wrote", verb,
                       PlaceText(place).data);
}

inline void shadow_read(int thread, ts_i64 offset, int bytes) {
    Repeated last;
    for (int i = 0; i < bytes; ++i) {
        Shadow& byte = state.shadow[offset + i];
        if (last.repeats(byte)) continue;
        last.begin(byte);
        check_free(thread, byte, offset + i, "reads");
        if (!is_written(byte, false)) suspect(thread, "reads", Place{-1, offset + i});
        watch_read(byte, thread, Place{-1, offset + i}, "reads", false);
        last.end(byte);
    }
}

// `data` is what is about to be written, or null when no equal value can excuse it.
inline void shadow_write(int thread, ts_i64 offset, int bytes, const char* data, const char* verb = "writes") {
    Repeated last;
    bool excused = false;  // the last byte was checked as one that keeps its value
    for (int i = 0; i < bytes; ++i) {
        Shadow& byte = state.shadow[offset + i];
        const bool same = data && data[i] == state.shared[offset + i];
        if ((same || !excused) && last.repeats(byte)) continue;
        last.begin(byte);
        excused = same;
        check_free(thread, byte, offset + i, verb);
        watch_write(byte, thread, Place{-1, offset + i}, verb, same, false);
        mark_generic(byte, thread);
        last.end(byte);
    }
}

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

// `count`: whether this access is a warp instruction of its own (a row of ldmatrix is not).
inline const char* read_shared(int thread, const char* p, int bytes, int alignment) {
    const ts_i64 offset = check_shared(thread, p, bytes, alignment, "reads");
    if (state.shadow) shadow_read(thread, offset, bytes);
    return p;
}

inline void write_shared(int thread, char* p, const char* data, int bytes) {
    const ts_i64 offset = check_shared(thread, p, bytes, bytes, "writes");
    if (state.shadow) shadow_write(thread, offset, bytes, data);
    __builtin_memcpy(p, data, bytes);
}

// ---- global memory ---------------------------------------------------------------------------------------------

// The argument that holds all bytes; reports what is wrong otherwise.
inline const ts_twin_allocation& find_global(int thread, const void* p, int bytes, int alignment, bool write,
                                             const char* verb) {
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
            fail(MISALIGNED, thread, "%s %d bytes at {global %d %lld}, whose address is not a multiple of %d", verb,
                 bytes, allocation.argument, (ts_i64)(address - allocation.base), alignment);
        if (!write || allocation.writable) return allocation;
        read_only = &allocation;  // another argument may share this memory and be writable
    }
    if (read_only)
        fail(READ_ONLY, thread, "%s %d bytes at {global %d %lld}, which is read-only", verb, bytes, read_only->argument,
             (ts_i64)(address - read_only->base));
    // Name the array whose border is nearest.
    const ts_twin_allocation* nearest = nullptr;
    ts_u64 best = 1ull << 40;
    for (int i = 0; i < options.allocation_count; ++i) {
        const ts_twin_allocation& allocation = options.allocations[i];
        const char* end = allocation.base + allocation.bytes;
        const ts_u64 distance = address < allocation.base ? (ts_u64)(allocation.base - address)
                                : address >= end          ? (ts_u64)(address - end)
                                                          : 0;
        if (distance >= best) continue;
        best = distance;
        nearest = &allocation;
    }
    if (!nearest) fail(GLOBAL_BOUNDS, thread, "%s %d bytes at an address in no argument", verb, bytes);
    fail(GLOBAL_BOUNDS, thread, "%s %d bytes at byte %lld of {argument %d}, which has %lld bytes", verb, bytes,
         (ts_i64)(address - nearest->base), nearest->argument, nearest->bytes);
}

// The shadow of the granules of an access, when somebody may write there.
struct Watched {
    Shadow* shadow;
    int count, granule;
    Place place;
};
inline Watched watched(const ts_twin_allocation& allocation, const void* p, int bytes) {
    if (!state.regions || allocation.region < 0 || !state.regions[allocation.region]) return Watched{};
    const ts_twin_region& region = state.options->regions[allocation.region];
    const ts_i64 first = ((const char*)p - region.base) / region.granule;
    const ts_i64 last = ((const char*)p + bytes - 1 - region.base) / region.granule;
    return Watched{state.regions[allocation.region] + first, (int)(last - first + 1), region.granule,
                   Place{allocation.argument, (const char*)p - allocation.base}};
}

// `thread` may be an agent, here and below.
inline void read_global(int thread, const void* p, int bytes, int alignment, const char* verb) {
    const ts_twin_allocation& allocation = find_global(thread_of(thread), p, bytes, alignment, false, verb);
    Watched watch = watched(allocation, p, bytes);
    for (int i = 0; i < watch.count; ++i, watch.place.offset += watch.granule) {
        if (allocation.output && !is_written(watch.shadow[i], true)) suspect(thread, verb, watch.place);
        watch_read(watch.shadow[i], thread, watch.place, verb, true);
    }
}

inline void watch_global_write(int thread, const void* p, const void* data, int bytes, int alignment) {
    const ts_twin_allocation& allocation = find_global(thread_of(thread), p, bytes, alignment, true, "writes");
    Watched watch = watched(allocation, p, bytes);
    for (int i = 0; i < watch.count; ++i, watch.place.offset += watch.granule) {
        const int step = i * watch.granule;
        const bool same = !__builtin_memcmp((const char*)p + step, (const char*)data + step,
                                            bytes - step < watch.granule ? bytes - step : watch.granule);
        watch_write(watch.shadow[i], thread, watch.place, "writes", same, true);
    }
}

inline void write_global(const void* p, const void* data, int bytes, int alignment) {
    watch_global_write(state.thread, p, data, bytes, alignment);
    __builtin_memcpy((void*)p, data, bytes);
}

inline void update_global(const void* p, int bytes) {
    const ts_twin_allocation& allocation = find_global(state.thread, p, bytes, bytes, true, "updates");
    Watched watch = watched(allocation, p, bytes);
    for (int i = 0; i < watch.count; ++i, watch.place.offset += watch.granule) {
        if (allocation.output && !is_written(watch.shadow[i], true)) suspect(state.thread, "updates", watch.place);
        watch_read(watch.shadow[i], state.thread, watch.place, "updates", true, true);
        watch_write(watch.shadow[i], state.thread, watch.place, "updates", false, true, true);
    }
    count_access(GLOBAL_WRITE, p, bytes, bytes, 0);
}

// The word of one vector access: the device header's ts_word_bytes.
constexpr int word_bytes(int total) {
    return total % 16 == 0 ? 16 : total % 8 == 0 ? 8 : total % 4 == 0 ? 4 : total % 2 == 0 ? 2 : 1;
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------
// The destination turns to poison at the issue (or keeps what it had), and data arrives in the wait, or at a random
// moment before, when nobody may look yet.

template <class T>
inline T& append(T*& items, int& count, int& capacity) {
    if (count == capacity) {
        capacity = capacity ? 2 * capacity : 64;
        items = (T*)__builtin_realloc(items, capacity * sizeof(T));
    }
    return items[count++];
}

inline void issue_copy(char* dst, const void* src, int bytes, int src_bytes, bool bypass) {
    const ts_i64 offset = check_shared(state.thread, dst, bytes, bytes, "copies to");
    if (src_bytes < 0 || src_bytes > bytes)
        fail(GLOBAL_BOUNDS, state.thread, "asks for %d source bytes in a cp.async of %d", src_bytes, bytes);
    if (src_bytes) {
        read_global(state.thread, src, src_bytes, 1, "copies from");
        if ((ts_u64)src % bytes)
            fail(MISALIGNED, state.thread, "copies %d bytes from an address that is not a multiple of %d", bytes, bytes);
    }
    count_access(bypass ? SHARED_COPY_BYPASS : SHARED_COPY, dst, bytes, bytes, 0);
    if (src_bytes) count_access(GLOBAL_READ, src, bytes, src_bytes, 1);
    if (state.shadow) {
        shadow_write(state.thread, offset, bytes, nullptr, "copies to");
        for (int i = 0; i < bytes; ++i) state.shadow[offset + i].copier = (unsigned short)(state.thread + 1);
    }
    if (!one_in(2)) __builtin_memset(dst, POISON_BYTE, bytes);
    Fiber& self = fiber();
    append(self.copies, self.copy_count, self.copy_capacity) =
        AsyncCopy{dst, src, bytes, src_bytes, self.committed_groups, self.line, false};
}

inline void move(AsyncCopy& copy) {
    if (copy.moved) return;
    __builtin_memset(copy.dst, 0, copy.bytes);
    if (copy.src_bytes) __builtin_memcpy(copy.dst, copy.src, copy.src_bytes);
    copy.moved = true;
}

// The oldest copy of a thread lands: `who` (the thread, or its agent) makes it known.
inline void land_copy(int thread, int who) {
    Fiber& owner = state.fibers[thread];
    AsyncCopy& copy = owner.copies[owner.first_copy++];
    const int line = owner.line;
    owner.line = copy.line;  // what is found now, is found at the copy
    if (copy.src_bytes && state.regions) read_global(thread, copy.src, copy.src_bytes, 1, "copies from");
    if (state.shadow) {
        const ts_i64 offset = copy.dst - state.shared;
        for (int i = 0; i < copy.bytes; ++i) state.shadow[offset + i].copier = 0;
        shadow_write(who, offset, copy.bytes, nullptr, "copies to");
    }
    move(copy);
    owner.line = line;
    if (owner.first_copy == owner.copy_count) {
        owner.copy_base += owner.copy_count;
        owner.first_copy = owner.copy_count = 0;
    }
}

// With clocks a landing is an event of the agent, of which the thread learns: an arrival that is still to come may
// announce the same copy to others.
inline void land_known_copy() {
    if (!state.clocks) return land_copy(state.thread, state.thread);
    const int agent = MAX_THREADS + state.thread;
    land_copy(state.thread, agent);
    known(state.thread, agent) = state.own_clock[agent]++;
}

inline void wait_copies(int groups_in_flight) {
    Fiber& self = fiber();
    while (self.first_copy < self.copy_count &&
           self.copies[self.first_copy].group < self.committed_groups - groups_in_flight)
        land_known_copy();
}

// Some copy's data is there early; that may happen, but nobody may count on it.
inline void move_early() {
    Fiber& owner = state.fibers[(next_random() >> 20) % state.threads];
    for (int i = owner.first_copy; i < owner.copy_count; ++i) {
        if (!one_in(2)) continue;
        move(owner.copies[i]);
    }
}

}  // namespace ts_twin

template <int BYTES, bool BYPASS = (BYTES == 16)>
TS_DEVICE void ts_cp_async(char* dst, const void* src, int src_bytes, TS_TWIN_LINE) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
    static_assert(!BYPASS || BYTES == 16, "only a 16-byte cp.async can bypass L1");
    ts_twin::at(line);
    ts_twin::issue_copy(dst, src, BYTES, src_bytes, BYPASS);
}
TS_DEVICE void ts_cp_async_commit(TS_TWIN_LINE) {
    ts_twin::at(line);
    ++ts_twin::fiber().committed_groups;
}
template <int N>
TS_DEVICE void ts_cp_async_wait(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::wait_copies(N);
}

template <class T, int N>
TS_DEVICE void ts_ld_shared(T* dst, const char* p, TS_TWIN_LINE) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::at(line);
    for (int i = 0; i < TOTAL; i += WORD) {
        __builtin_memcpy((char*)dst + i, ts_twin::read_shared(ts_twin::state.thread, p + i, WORD, WORD), WORD);
        ts_twin::count_access(ts_twin::SHARED_READ, p + i, WORD, WORD, i);
    }
}

template <class T, int N>
TS_DEVICE void ts_st_shared(char* p, const T* src, TS_TWIN_LINE) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::at(line);
    for (int i = 0; i < TOTAL; i += WORD) {
        ts_twin::write_shared(ts_twin::state.thread, p + i, (const char*)src + i, WORD);
        ts_twin::count_access(ts_twin::SHARED_WRITE, p + i, WORD, WORD, i);
    }
}

namespace ts_twin {
inline void check_element(ts_i64 index, int length) {
    if (index < 0 || index >= length)
        fail(GLOBAL_BOUNDS, state.thread, "takes the tensor at index %lld from a list of %d tensors", index, length);
}
}  // namespace ts_twin

template <class T, int N>
TS_DEVICE auto ts_element(const ts_table<T, N>& table, ts_i64 index, int length, TS_TWIN_LINE) -> T* {
    ts_twin::at(line);
    ts_twin::check_element(index, length);
    return table.at[index];
}
template <int N>
TS_DEVICE const ts_tensor_map& ts_element(const ts_tensor_maps<N>& maps, ts_i64 index, int length, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::check_element(index, length);
    return maps.at[index];
}

template <class T, int N>
TS_DEVICE void ts_ld_global(T* dst, const T* p, TS_TWIN_LINE, int part = 0) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::at(line);
    ts_twin::read_global(ts_twin::state.thread, p, TOTAL, WORD, "reads");
    __builtin_memcpy((void*)dst, (const void*)p, TOTAL);
    for (int i = 0; i < TOTAL; i += WORD)
        ts_twin::count_access(ts_twin::GLOBAL_READ, (const char*)p + i, WORD, WORD, part + i);
}

template <class T, int N>
TS_DEVICE void ts_st_global(T* p, const T* src, TS_TWIN_LINE, int part = 0) {
    constexpr int TOTAL = N * (int)sizeof(T), WORD = ts_twin::word_bytes(TOTAL);
    ts_twin::at(line);
    ts_twin::write_global(p, src, TOTAL, WORD);
    for (int i = 0; i < TOTAL; i += WORD)
        ts_twin::count_access(ts_twin::GLOBAL_WRITE, (const char*)p + i, WORD, WORD, part + i);
}

template <class T, int N>
TS_DEVICE void ts_hold(T* dst, const T* src) {
    __builtin_memcpy((void*)dst, (const void*)src, N * sizeof(T));
}

template <class T, int N>
TS_DEVICE void ts_ld_global_if(T* dst, const T* p, bool inside, TS_TWIN_LINE) {
    if (inside) return ts_ld_global<T, N>(dst, p, line);
    for (int i = 0; i < N; ++i) dst[i] = T();
}

template <class T, int N>
TS_DEVICE void ts_ld_global_n(T* dst, const T* p, int valid, TS_TWIN_LINE) {
    for (int i = 0; i < N; ++i) {
        dst[i] = T();
        if (i < valid) ts_ld_global<T, 1>(dst + i, p + i, line, i * (int)sizeof(T));
    }
}

template <class T, int N>
TS_DEVICE void ts_st_global_n(T* p, const T* src, int valid, TS_TWIN_LINE) {
    for (int i = 0; i < N && i < valid; ++i) ts_st_global<T, 1>(p + i, src + i, line, i * (int)sizeof(T));
}
