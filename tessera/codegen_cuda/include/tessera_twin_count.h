// Counters by line: wavefronts of shared memory, sectors of global memory, products and barriers.
//
// The lanes of a warp run one after another, so a warp instruction is put together from the accesses that its lanes make
// at one line in the same iteration of every loop round it (build() adds a Loop to each loop that holds accesses). It is
// complete when all 32 lanes have come by, or when the warp passes a collective, which no lane passes early.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

// SHARED_COPY_BYPASS: a cp.async that keeps out of L1.
enum Access { SHARED_READ, SHARED_WRITE, SHARED_COPY, SHARED_COPY_BYPASS, GLOBAL_READ, GLOBAL_WRITE };

struct Request {
    ts_u64 key;
    int line;
    int access;
    int bytes;  // per lane
    ts_u32 mask;
    ts_u64 address[32];
    int size[32];  // of this lane: cp.async may read less than it writes
};

inline ts_u64 mixed(ts_u64 a, ts_u64 b) {
    ts_u64 x = (a ^ (b + 0x9E3779B97F4A7C15ull + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9ull;
    return x ^ x >> 29;
}

inline ts_twin_counter* counter(int line) {
    const ts_twin_options& options = *state.options;
    return options.counters && line > 0 && line < options.lines ? options.counters + line : nullptr;
}

// Passes over the 32 banks that the words of some lanes take: the most different words in one bank.
inline int wavefronts_of(const Request& request, ts_u32 lanes) {
    ts_u64 words[32 * 4];
    int count = 0;
    for (ts_u32 left = lanes & request.mask; left; left &= left - 1) {
        const ts_u64 first = request.address[__builtin_ctz(left)];
        for (ts_u64 word = first / 4; word <= (first + request.bytes - 1) / 4; ++word) {
            bool seen = false;
            for (int i = 0; i < count && !seen; ++i) seen = words[i] == word;
            if (!seen) words[count++] = word;
        }
    }
    int bank[32] = {}, most = 0;
    for (int i = 0; i < count; ++i) {
        const int n = ++bank[words[i] % 32];
        most = n > most ? n : most;
    }
    return most;
}

// Whether each lane of a group reads what lane ^ distance reads, both or neither taking part.
inline bool pairs_agree(const Request& request, int first, int count, int distance) {
    for (int lane = first; lane < first + count; ++lane) {
        const int other = lane ^ distance;
        if ((request.mask >> lane & 1) != (request.mask >> other & 1)) return false;
        if (request.mask >> lane & 1 && request.address[lane] != request.address[other]) return false;
    }
    return true;
}

struct Served {
    int wavefronts, ideal;
};

// Lanes that the hardware serves together: all for up to 4 bytes, half a warp for 8, a quarter for 16. A read serves
// twice as many where neighbours (lane ^ 1, or lane ^ 2) read the same. Measured with Nsight Compute on an H100
// (bench/bank_conflicts.py). The ideal is one wavefront for each group served.
inline Served serve(const Request& request) {
    const int together = request.bytes == 16 ? 8 : request.bytes == 8 ? 16 : 32;
    Served served{};
    for (int first = 0; first < 32; first += together) {
        ts_u32 lanes = (together == 32 ? 0xFFFFFFFFu : (1u << together) - 1) << first;
        const bool wide = request.access == SHARED_READ && together < 32 && first % (2 * together) == 0 &&
                          (pairs_agree(request, first, 2 * together, 1) || pairs_agree(request, first, 2 * together, 2));
        if (wide) {
            lanes |= lanes << together;
            first += together;
        }
        const bool used = (lanes & request.mask) != 0;
        // What bypasses L1 comes from L2 by a path of its own, where the hardware counts no conflicts.
        served.wavefronts += request.access == SHARED_COPY_BYPASS ? used : wavefronts_of(request, lanes);
        served.ideal += used;
    }
    return served;
}

// Different blocks of `unit` bytes that the request touches; `unit` 1 gives its different bytes.
inline ts_i64 distinct(const Request& request, int unit) {
    ts_u64 blocks[32 * 16];
    int count = 0;
    for (ts_u32 left = request.mask; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (!request.size[lane]) continue;
        const ts_u64 last = (request.address[lane] + request.size[lane] - 1) / unit;
        for (ts_u64 block = request.address[lane] / unit; block <= last; ++block) {
            bool seen = count && blocks[count - 1] == block;
            for (int i = 0; i < count && !seen; ++i) seen = blocks[i] == block;
            if (!seen) blocks[count++] = block;
        }
    }
    return count;
}

inline void add(ts_twin_traffic& traffic, ts_i64 transfers, ts_i64 ideal, ts_i64 bytes) {
    ++traffic.requests;
    traffic.transfers += transfers;
    traffic.ideal += ideal;
    traffic.bytes += bytes;
}

inline void finish(Request& request) {
    if (!request.mask) return;
    ts_twin_counter& totals = *counter(request.line);
    // Granules of the access size are as good as bytes: lanes that overlap in part do not occur in aligned accesses.
    bool full = true;
    for (ts_u32 left = request.mask; left; left &= left - 1) full &= request.size[__builtin_ctz(left)] == request.bytes;
    const ts_i64 bytes = full ? distinct(request, request.bytes) * request.bytes : distinct(request, 1);
    if (request.access <= SHARED_COPY_BYPASS) {
        const Served served = serve(request);
        add(request.access == SHARED_READ ? totals.shared_read : totals.shared_write, served.wavefronts, served.ideal,
            bytes);
    } else if (bytes) {
        add(request.access == GLOBAL_WRITE ? totals.global_write : totals.global_read, distinct(request, 32),
            (bytes + 31) / 32, bytes);
    }
    request.mask = 0;
}

inline Request& request_of(Warp& warp, ts_u64 key) {
    if (2 * warp.request_count >= warp.request_capacity) {
        const int capacity = warp.request_capacity ? 2 * warp.request_capacity : 256;
        warp.requests = (Request*)__builtin_realloc(warp.requests, capacity * sizeof(Request));
        warp.request_index = (int*)__builtin_realloc(warp.request_index, capacity * sizeof(int));
        warp.request_capacity = capacity;
        __builtin_memset(warp.request_index, 0, capacity * sizeof(int));
        for (int i = 0; i < warp.request_count; ++i) {
            int slot = (int)(warp.requests[i].key % capacity);
            while (warp.request_index[slot]) slot = (slot + 1) % capacity;
            warp.request_index[slot] = i + 1;
        }
    }
    int slot = (int)(key % warp.request_capacity);
    while (warp.request_index[slot]) {
        Request& found = warp.requests[warp.request_index[slot] - 1];
        if (found.key == key) return found;
        slot = (slot + 1) % warp.request_capacity;
    }
    warp.request_index[slot] = ++warp.request_count;
    Request& fresh = warp.requests[warp.request_count - 1];
    fresh.key = key;
    fresh.mask = 0;
    return fresh;
}

// `part` tells apart the accesses that one call makes.
inline void count_access(int access, const void* address, int bytes, int size, int part) {
    if (!state.options->counters) return;
    Fiber& self = fiber();
    if (!counter(self.line)) return;
    Warp& warp = state.warp[state.thread / 32];
    const ts_u32 bit = 1u << (state.thread % 32);
    ts_u64 key = mixed(mixed(self.loops, (ts_u64)self.line * 8 + access), part);
    Request* request = &request_of(warp, key);
    // The lane comes again and nothing tells the iterations apart: each time is an instruction of its own.
    while (request->mask & bit) request = &request_of(warp, key = mixed(key, 1));
    request->line = self.line;
    request->access = access;
    request->bytes = bytes;
    request->mask |= bit;
    request->address[state.thread % 32] = (ts_u64)address;
    request->size[state.thread % 32] = size;
    if (request->mask == warp.live) {
        finish(*request);
    }
}

inline void finish_requests(Warp& warp) {
    if (!warp.request_count) return;
    for (int i = 0; i < warp.request_count; ++i) finish(warp.requests[i]);
    warp.request_count = 0;
    __builtin_memset(warp.request_index, 0, warp.request_capacity * sizeof(int));
}

// Names the iterations of a loop while its fiber is in it.
struct Loop {
    ts_u64 outside;
    ts_i64 iteration = 0;
    bool entered = false;
    Loop() : outside(fiber().loops) { fiber().loops = mixed(outside, 1); }
    ~Loop() { fiber().loops = outside; }
    bool once() {
        const bool first = !entered;
        entered = true;
        return first;
    }
    void step() { fiber().loops = mixed(outside, (ts_u64)++iteration + 1); }
};

// Uninitialised registers hold what a lane happens to leave there: NaN in the first order, anything in a random one.
template <class T>
inline void fill_with_garbage(T& variable) {
    unsigned char* bytes = (unsigned char*)&variable;
    if (!state.options->seed || (next_random() >> 20) % 4 == 0) {
        __builtin_memset(bytes, 0xFF, sizeof(T));
        return;
    }
    ts_u64 word = next_random();
    for (unsigned i = 0; i < sizeof(T); i += 8) {
        word = mixed(word, i);
        __builtin_memcpy(bytes + i, &word, sizeof(T) - i < 8 ? sizeof(T) - i : 8);
    }
}
// A bool is 0 or 1 whatever its register holds.
inline void fill_with_garbage(bool& variable) { variable = !state.options->seed || (next_random() >> 20) % 2; }
template <int N>
inline void fill_with_garbage(bool (&variables)[N]) {
    for (bool& variable : variables) fill_with_garbage(variable);
}

}  // namespace ts_twin
