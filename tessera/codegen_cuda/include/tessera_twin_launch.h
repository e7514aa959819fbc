// Runs a grid: TS_TWIN_ENTRY(name) after the emitted text defines
//   ts_twin_run_<name>        runs the kernel, returns the number of faults
//   ts_twin_signature_<name>  one letter per parameter: p pointer, l int64, i int32, f float32, b bool, m tensor map,
//                             and for a list t (m) with the number of its pointers (maps)
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

template <char LETTER, int N = 0> struct Letter {
    static constexpr char value = LETTER;
    static constexpr int count = N;
};
template <class T> struct letter;
template <class T> struct letter<T*> : Letter<'p'> {};
template <class T, int N> struct letter<ts_table<T, N>> : Letter<'t', N> {};
template <> struct letter<ts_tensor_map> : Letter<'m'> {};
template <int N> struct letter<ts_tensor_maps<N>> : Letter<'m', N> {};
template <> struct letter<ts_i64> : Letter<'l'> {};
template <> struct letter<ts_i32> : Letter<'i'> {};
template <> struct letter<float> : Letter<'f'> {};
template <> struct letter<bool> : Letter<'b'> {};

template <class T> struct unqualified { typedef T type; };
template <class T> struct unqualified<const T> { typedef T type; };
template <class T> struct unqualified<const T&> { typedef T type; };

inline void** arguments;

// Unpacks void* arguments by the kernel's own parameter types, one at a time.
template <class... Parameters> struct Unpack;
template <> struct Unpack<> {
    template <class Kernel, class... Done> static void call(Kernel kernel, void**, Done&... done) { kernel(done...); }
    static void letters(char* out) { *out = 0; }
};
template <class First, class... Rest> struct Unpack<First, Rest...> {
    typedef typename unqualified<First>::type type;
    template <class Kernel, class... Done> static void call(Kernel kernel, void** next, Done&... done) {
        Unpack<Rest...>::call(kernel, next + 1, done..., *(type*)*next);
    }
    static void letters(char* out) {
        *out++ = letter<type>::value;
        if (letter<type>::count) out += __builtin_sprintf(out, "%d", letter<type>::count);
        Unpack<Rest...>::letters(out);
    }
};

template <auto KERNEL> struct Call;
template <class... Parameters, void (*KERNEL)(Parameters...)> struct Call<KERNEL> {
    static void body() { Unpack<Parameters...>::call(KERNEL, arguments); }
    static const char* signature() {
        static char text[12 * sizeof...(Parameters) + 1];
        Unpack<Parameters...>::letters(text);
        return text;
    }
};

inline void check_guards(const char* guard, const char* side) {
    for (int i = 0; i < GUARD_BYTES; ++i) {
        if ((unsigned char)guard[i] == GUARD_BYTE) continue;
        char message[128];
        __builtin_snprintf(message, sizeof message, "wrote %s the shared block through an unchecked pointer", side);
        record(GUARD, -1, 0, message);
        return;
    }
}

// Copies in flight when a block ended, and its mbarriers, must not trouble the next one.
inline void clear_marks() {
    for (ts_i64 i = 0; state.shadow && i < state.shared_bytes; ++i) state.shadow[i].copier = 0;
}

// Which granules the launch wrote.
inline void report_written() {
    for (int i = 0; i < state.options->region_count; ++i) {
        const ts_twin_region& region = state.options->regions[i];
        if (!region.written || !state.regions[i]) continue;
        for (ts_i64 j = 0; j < (region.bytes + region.granule - 1) / region.granule; ++j)
            region.written[j] = state.regions[i][j].write.epoch != 0;
    }
}

inline void begin_block() {
    __builtin_memset(state.shared - GUARD_BYTES, GUARD_BYTE, GUARD_BYTES);
    __builtin_memset(state.shared, POISON_BYTE, state.shared_bytes);
    __builtin_memset(state.shared + state.shared_bytes, GUARD_BYTE, GUARD_BYTES);
    // What shadows say of older blocks stays: their epochs lie before the first of this one.
    state.first_epoch = ++state.epoch;
    if (state.mbarrier_count || state.shadow) clear_marks();
    reset_clocks();
    reset_named_barriers();
    if (state.warpgroups) state.warpgroups->begin_block();
    for (int w = 0; w < state.warps; ++w) {
        const int lanes = state.threads - w * 32;
        Warp& warp = state.warp[w];
        warp.live = warp.runnable = lanes >= 32 ? 0xFFFFFFFFu : (1u << lanes) - 1;
        warp.arrived = warp.epoch = 0;
        warp.collective = NOTHING;
    }
    for (int thread = 0; thread < state.threads; ++thread) prepare_fiber(thread);
    state.exited = state.at_barrier = state.idle_spins = 0;
    state.steps = 0;
    state.unwritten_thread = -1;
}

// Until its threads have returned, or one has failed.
inline void run_threads() {
    state.aborted = false;
    state.thread = pick_warp(0) * 32;
    switch_fibers(state.main, state.fibers[state.thread]);
}

inline void end_block() {
    for (int w = 0; w < state.warps; ++w) finish_requests(state.warp[w]);
    if (!state.aborted && state.unwritten_thread >= 0)
        record(UNINITIALISED, state.unwritten_thread, state.unwritten_line, state.unwritten_message);
    if (!state.aborted && (!state.tma.finish_loads || state.tma.finish_loads())) check_bytes();
    if (!state.aborted && state.warpgroups) state.warpgroups->end_block();
    check_guards(state.shared - GUARD_BYTES, "before");
    check_guards(state.shared + state.shared_bytes, "past the end of");
}

inline void place_block(ts_i64 number) {
    state.block[0] = number % state.grid[0];
    state.block[1] = number / state.grid[0] % state.grid[1];
    state.block[2] = number / state.grid[0] / state.grid[1];
}

inline void run_block(ts_i64 number) {
    place_block(number);
    begin_block();
    run_threads();
    end_block();
}

// Memory of the blocks that run at the same time: one, or those of a cluster.
struct Memory {
    char *stacks, *arena, *shadow;
    Fiber* fibers;
    ts_i64 stack_bytes, arena_bytes, shadow_bytes;  // of a block
};

inline void open_block(const Memory& memory, int rank) {
    state.shared = memory.arena + rank * memory.arena_bytes + GUARD_BYTES;
    state.shadow = memory.shadow ? (Shadow*)(memory.shadow + rank * memory.shadow_bytes) : nullptr;
    state.stacks = memory.stacks + rank * memory.stack_bytes;
    state.fibers = memory.fibers + rank * state.threads;
    state.agents_before = rank * AGENTS;
}

inline void close_block() {
    for (int thread = 0; thread < state.threads; ++thread) {
        __builtin_free(state.fibers[thread].copies);
        __builtin_free(state.fibers[thread].arrivals);
        __builtin_free(state.fibers[thread].groups);
    }
    for (Warp& warp : state.warp) {
        __builtin_free(warp.requests);
        __builtin_free(warp.request_index);
    }
    reset_clocks();
    __builtin_free(state.loads);
    __builtin_free(state.stores);
    if (state.warpgroups) state.warpgroups->end_launch();
    free_clocks(state.clocks);
    free_clocks(state.named_clocks);
    __builtin_free(state.own_clock);
    __builtin_free(state.fence_events);
}

// What tessera_twin_cluster.h does for a launch of clusters.
struct ClusterLaunch {
    int blocks;  // of a cluster
    void (*open)(const Memory& memory);
    void (*run)(ts_i64 number);  // the cluster that has the block of this number
    void (*close)();
};

inline char* map(ts_i64 bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? nullptr : (char*)p;
}

inline int run_grid(void (*body)(), void** args, long gx, long gy, long gz, int threads, int max_threads, int min_blocks,
                    long shared_bytes, const ClusterLaunch* clusters, const ts_twin_options* options,
                    ts_twin_report* report) {
    const int cluster = clusters ? clusters->blocks : 1;
    report->count = 0;
    report->output_bytes = output.length = 0;
    state = State{};
    state.report = report;
    state.options = options;
    char message[160];
    if (threads < 1 || threads > max_threads || max_threads > MAX_THREADS) {
        __builtin_snprintf(message, sizeof message, "a block of %d threads; the kernel is built for 1 to %d", threads,
                           max_threads);
        record(BAD_LAUNCH, -1, 0, message);
        return report->count;
    }
    if (gx < 1 || gy < 1 || gz < 1 || shared_bytes < 0 || shared_bytes > 227 * 1024) {
        __builtin_snprintf(message, sizeof message,
                           "a grid of %ld x %ld x %ld blocks with %ld shared bytes; each side must be positive and "
                           "shared memory at most 232448 bytes",
                           gx, gy, gz, shared_bytes);
        record(BAD_LAUNCH, -1, 0, message);
        return report->count;
    }
    if (gx % cluster) {
        __builtin_snprintf(message, sizeof message, "a grid of %ld blocks along axis 0 in clusters of %d", gx, cluster);
        record(BAD_LAUNCH, -1, 0, message);
        return report->count;
    }
    const ts_i64 grid_blocks = (ts_i64)gx * gy * gz / cluster;
    const ts_i64 blocks = options->blocks ? options->block_count : grid_blocks;
    // Page-aligned, so that the dynamic block has its alignment of 1024 behind a guard of one page.
    Memory memory{};
    memory.stack_bytes = threads * STACK_BYTES;
    memory.arena_bytes = (shared_bytes + 1023) / 1024 * 1024 + 2 * GUARD_BYTES;
    memory.shadow_bytes = options->check_races && shared_bytes ? shared_bytes * (ts_i64)sizeof(Shadow) : 0;
    memory.stacks = map(cluster * memory.stack_bytes);
    memory.arena = map(cluster * memory.arena_bytes);
    memory.shadow = memory.shadow_bytes ? map(cluster * memory.shadow_bytes) : nullptr;
    memory.fibers = (Fiber*)__builtin_calloc(cluster * threads, sizeof(Fiber));
    ts_i64* order = options->seed ? (ts_i64*)__builtin_malloc(blocks * sizeof(ts_i64) + 8) : nullptr;
    bool enough = memory.stacks && memory.arena && memory.fibers && (memory.shadow || !memory.shadow_bytes) &&
                  (order || !options->seed);
    Shadow** regions = (Shadow**)__builtin_calloc(options->region_count + 1, sizeof(Shadow*));
    for (int i = 0; i < options->region_count && options->check_races; ++i) {
        const ts_twin_region& region = options->regions[i];
        const ts_i64 bytes = (region.bytes + region.granule - 1) / region.granule * (ts_i64)sizeof(Shadow);
        regions[i] = bytes ? (Shadow*)map(bytes) : nullptr;
        enough = enough && (regions[i] || !bytes);
    }
    if (!enough) {
        record(BAD_LAUNCH, -1, 0, "not enough memory for the fibers of a block");
    } else {
        arguments = args;
        state.body = body;
        state.threads = threads;
        state.min_blocks = min_blocks;
        state.warps = (threads + 31) / 32;
        state.grid[0] = gx, state.grid[1] = gy, state.grid[2] = gz;
        state.shared_bytes = shared_bytes;
        state.regions = options->check_races ? regions : nullptr;
        state.agents = cluster * AGENTS;
        state.epochs = (ts_u32)((1u << 31) / (clusters ? grid_blocks * cluster : 1));
        state.random = options->seed * 0x9E3779B97F4A7C15ull | 1;
        for (ts_i64 i = 0; order && i < blocks; ++i) {
            const ts_i64 j = (ts_i64)((next_random() >> 20) % (ts_u64)(i + 1));
            order[i] = order[j];
            order[j] = i;
        }
        clusters ? clusters->open(memory) : open_block(memory, 0);
        for (ts_i64 i = 0; i < blocks; ++i) {
            const ts_i64 chosen = order ? order[i] : i;
            const ts_i64 block = options->blocks ? options->blocks[chosen] : chosen * cluster;
            clusters ? clusters->run(block) : run_block(block);
        }
        if (state.regions) report_written();
        clusters ? clusters->close() : close_block();
        report->output = output.text;
        report->output_bytes = output.length;
    }
    for (int i = 0; i < options->region_count; ++i) {
        const ts_twin_region& region = options->regions[i];
        if (regions[i]) munmap(regions[i], (region.bytes + region.granule - 1) / region.granule * (ts_i64)sizeof(Shadow));
    }
    if (memory.stacks) munmap(memory.stacks, cluster * memory.stack_bytes);
    if (memory.arena) munmap(memory.arena, cluster * memory.arena_bytes);
    if (memory.shadow) munmap(memory.shadow, cluster * memory.shadow_bytes);
    __builtin_free(regions);
    __builtin_free(memory.fibers);
    __builtin_free(order);
    return report->count;
}

}  // namespace ts_twin

#define TS_TWIN_ENTRY(name)                                                                                        \
    extern "C" __attribute__((visibility("default"))) const char* ts_twin_signature_##name() {                    \
        return ts_twin::Call<name>::signature();                                                                   \
    }                                                                                                              \
    extern "C" __attribute__((visibility("default"))) int ts_twin_run_##name(                                      \
        void** args, long gx, long gy, long gz, int threads, long shared_bytes, const ts_twin_options* options,    \
        ts_twin_report* report) {                                                                                  \
        return ts_twin::run_grid(ts_twin::Call<name>::body, args, gx, gy, gz, threads, ts_twin_max_threads_##name, \
                                 ts_twin_min_blocks_##name,                                             \
                                 shared_bytes, ts_twin::cluster_launch<ts_twin_cluster_##name>(), options, report); \
    }
