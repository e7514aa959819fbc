// Fibers, scheduling and reports. One block runs at a time (or one cluster, tessera_twin_cluster.h), on one OS thread: a
// fiber runs until it must wait for others, then the next runnable lane of its warp goes on, then the next warp. A fault
// records a report and abandons the block (kernels own nothing that would need a destructor).
//
// Two notions of time: with seed 0 warps and lanes go in order and asynchronous data comes at the last legal moment;
// with another seed everything that may happen in any order does.
#pragma once
#include <sys/mman.h>

// The switch is written in assembly where it can be: ucontext makes a system call for the signal mask at each one.
#if !(defined(__x86_64__) && defined(__linux__)) && !defined(TS_TWIN_UCONTEXT)
#define TS_TWIN_UCONTEXT 1
#endif
#ifdef TS_TWIN_UCONTEXT
#include <ucontext.h>
#endif

// Layouts shared with tessera/runtime/emulator.py (ctypes); change both together.
struct ts_twin_error {
    int kind;
    int thread;
    ts_i64 block[3];
    int line;  // of the emitted text, 0 when unknown
    char message[1024];
};
struct ts_twin_report {
    int count;     // faults seen; only the first `capacity` are kept
    int capacity;
    ts_twin_error* errors;
    const char* output;  // what the launch printed, valid until the next one
    ts_i64 output_bytes;
};
struct ts_twin_allocation {
    const char* base;
    ts_i64 bytes;
    int writable;
    int argument;  // position in the kernel's parameter list, for messages
    int output;    // 1: holds nothing before the launch
    int region;    // the region of its memory, or -1 when no argument may write there
};
// Memory of one or several arguments that a kernel may write.
struct ts_twin_region {
    const char* base;
    ts_i64 bytes;
    int granule;             // the smallest element: what is watched as one
    unsigned char* written;  // an entry per granule: 1 when the launch wrote it
};
struct ts_twin_traffic {
    ts_i64 requests;  // warp instructions
    ts_i64 transfers; // wavefronts of shared memory, sectors of global memory
    ts_i64 ideal;     // the fewest transfers that move these bytes
    ts_i64 bytes;     // distinct bytes of each request, added up
};
struct ts_twin_counter {
    ts_twin_traffic shared_read, shared_write, global_read, global_write;
    ts_i64 mma, barriers, warp_collectives;
};
struct ts_twin_probes {
    char* data;
    ts_i64 length, capacity;
};
struct ts_twin_options {
    ts_u64 seed;  // 0: blocks and warps in order; otherwise the seed of a random order
    int check_races;
    int allocation_count;
    const ts_twin_allocation* allocations;
    int region_count;
    int lines;  // of `counters`
    const ts_twin_region* regions;
    const ts_i64* blocks;  // linear ids of the blocks to run, or null for all
    ts_i64 block_count;
    ts_twin_counter* counters;  // one per line of the emitted text, or null
    ts_twin_probes* probes;     // or null
};

namespace ts_twin __attribute__((visibility("hidden"))) {

// Same order as KINDS in tessera/runtime/emulator.py.
enum Kind {
    RACE,
    IN_FLIGHT,
    UNINITIALISED,
    SHARED_BOUNDS,
    GLOBAL_BOUNDS,
    MISALIGNED,
    READ_ONLY,
    DIVERGENT,
    DEADLOCK,
    CONFLICTING_WRITES,
    UNWRITTEN,
    MBARRIER,
    GUARD,
    DIVISION_BY_ZERO,
    BAD_LAUNCH,
    ASSERTION,
    UNFENCED,
};

constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
// A kernel has at most 255 registers per thread, so its frame is a few KiB; the rest is head room for libm and
// snprintf. Pages are committed when touched.
constexpr long STACK_BYTES = 128 * 1024;

enum Waiting {
    NOTHING,
    WARP_BARRIER,
    SHUFFLE,
    LDMATRIX,
    MMA,
    BLOCK_BARRIER,
    PHASE,
    STMATRIX,
    VOTE,
    WARPGROUP,
    NAMED_BARRIER,
    CLUSTER_BARRIER,
};
inline const char* const waiting_names[] = {"nothing",    "ts_warp_barrier",
                                            "a shuffle",  "ldmatrix",
                                            "mma",        "ts_barrier",
                                            "ts_mbarrier_wait", "stmatrix",
                                            "ts_mbarrier_arrive_after", "a warpgroup instruction",
                                            "ts_barrier_of", "ts_cluster_barrier"};

// What a lane brings to a collective: where its result goes and where its operands are. They lie on the lane's own
// stack, which stays alive while the lane waits.
struct Deposit {
    int detail;
    void* out;
    const void* first;
    const void* second;
};

struct Request;
struct Warp {
    ts_u32 live;      // lanes that exist and have not returned
    ts_u32 runnable;
    ts_u32 arrived;   // lanes waiting in the collective
    int collective;
    ts_u32 epoch;     // warp barriers passed; orders accesses within the warp
    Deposit deposits[32];
    Request* requests;  // accesses of which not every lane has been seen yet
    int request_count, request_capacity;
    int* request_index;
};

struct NamedBarrier {
    int threads, arrived;
};
constexpr int NAMED_BARRIERS = 16;

struct AsyncCopy {
    char* dst;
    const void* src;
    int bytes, src_bytes;
    int group;
    int line;
    bool moved;  // the data is there, but nobody may count on it
};
struct AsyncArrival {  // of cp.async.mbarrier.arrive: due when the copies before `end` have landed
    int mbarrier;
    int line;
    ts_i64 end;
};

struct BulkGroup;  // of TMA stores
struct Fiber {
#ifdef TS_TWIN_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
    AsyncCopy* copies;  // a queue in issue order: [first_copy, copy_count)
    int first_copy, copy_count, copy_capacity;
    ts_i64 copy_base;  // copies issued before copies[0]
    int committed_groups;
    AsyncArrival* arrivals;  // a queue likewise
    int first_arrival, arrival_count, arrival_capacity;
    BulkGroup* groups;   // all that it has begun; the last one is open
    int group_count, group_capacity;
    int groups_read;     // how many of them have certainly read their sources
    int line;            // of the emitted text, where it is
    int waiting;         // a Waiting
    int mbarrier;        // when waiting == PHASE; the number of the barrier when waiting == NAMED_BARRIER
    int parity;
    int remote_line;     // of its last arrival at another block since the last barrier of the cluster; 0: none
    ts_u64 loops;        // names the current iteration of every loop round this place
};

struct TmaLoad;
struct TmaStore;
struct Shadow;
struct Clocks;
struct Event;
struct Mbarrier {
    ts_i64 offset;
    int count, missing;
    ts_i64 completed;       // phases
    int init_thread, init_line;
    ts_u32 init_epoch, init_warp_epoch, init_clock;
    ts_u32 *arrived, *released;  // clocks of the arrivals in this phase, and in all completed ones
    Event* uses;                 // by thread: its last arrival or wait
    ts_i64 expected, landed;     // bytes of copies in this phase: those announced, those that are there
    bool fenced, shared;         // exists for TMA, and for the other blocks of the cluster
    int load_line, load_thread;  // its last load
};
// What tessera_twin_wgmma.h does for the others, through pointers: a text without warpgroups need not compile it.
struct WarpgroupHooks {
    void (*begin_block)();
    void (*end_block)();
    void (*end_launch)();
    void (*pass_time)();     // a random moment
    void (*pass_barrier)();  // of the block: a new epoch
};
constexpr int MAX_MBARRIERS = 256;
// What tessera_twin_tma.h does at the right moments, from the first copy of a launch on. (A kernel without TMA compiles
// faster for not holding it.)
struct TmaSteps {
    bool (*land_oldest_load)();  // false when nothing is under way
    void (*go_on)();             // something, at a random moment
    void (*finish_stores)();     // of a thread that returns
    bool (*finish_loads)();      // of a block at its end; false when there is a finding
};
// What tessera_twin_cluster.h does for the others, in a launch of clusters.
struct ClusterSteps {
    bool (*go_elsewhere)();   // lets another block run that can, and comes back; false when there is none
    bool (*await_data)();     // the same at the last moment for asynchronous data, which lands where somebody waits
    void (*leave)();          // the block that runs has returned
    void (*finish_thread)();  // of a thread that returns
    void (*find_stuck)();     // brings the block that shows best why nothing can go on
};
constexpr ts_i64 MAX_STEPS = 1 << 26;  // device functions that one block, or cluster, may call: a few seconds

// What belongs to a block. Of the blocks of a cluster it is that of the running one.
struct BlockState {
    int thread;  // running fiber
    ts_i64 block[3];
    int exited, at_barrier;
    int barrier_line, barrier_thread;
    ts_u32 epoch;        // grows with each block barrier and each block
    ts_u32 first_epoch;  // of this block
    char* shared;
    Shadow* shadow;  // of shared memory; null when races are not checked
    // Vector clocks, a row per thread; null until the block meets an mbarrier. A row has the clocks of the agents of all
    // blocks of the cluster, and a pointer into it leads to those of this block: `agents_before` belong to earlier ones.
    ts_u32* clocks;
    ts_u32* own_clock;
    ts_u32* named_clocks;  // of those who wait at a named barrier, a row each
    int agents_before;
    ts_u32 fences[MAX_THREADS];  // ts_fence_async executed by each thread
    Event* fence_events;         // the latest of each
    Mbarrier mbarriers[MAX_MBARRIERS];
    int mbarrier_count;
    NamedBarrier named[NAMED_BARRIERS];
    // The first read in this block of what nobody wrote. It is a race when somebody writes there later, unordered; when
    // the block ends without that, it is what it seems.
    int unwritten_thread, unwritten_line;  // thread -1: none
    char unwritten_message[160];
    const WarpgroupHooks* warpgroups;  // null until the block meets one
    int pending_arrivals;
    TmaLoad* loads;  // on their way, in the order of issue
    int load_count, load_capacity;
    TmaStore* stores;  // of which the data has not moved
    int store_count, store_capacity;
    int idle_spins;
    char* stacks;
    Fiber* fibers;
    Warp warp[MAX_WARPS];
};
struct State : BlockState {
    int threads, warps, min_blocks;
    ts_i64 grid[3];
    ts_i64 shared_bytes;
    ts_u32 epochs;     // that a block may have: another one's lie beyond
    int agents;        // in a row of clocks
    Shadow** regions;  // of each region of global memory
    bool aborted;
    ts_i64 steps;  // device functions called
    TmaSteps tma;
    const ClusterSteps* cluster;  // null in a launch without clusters
    const ts_twin_options* options;
    ts_twin_report* report;
    int last_allocation;
    ts_u64 random;
    void (*body)();
    Fiber main;
};
inline State state;

inline Fiber& fiber() { return state.fibers[state.thread]; }
// Each device function says first at which line it was called: __builtin_LINE() as a default argument is the caller's.
inline void out_of_steps();
inline void at(int line) {
    fiber().line = line;
    if (++state.steps > MAX_STEPS) out_of_steps();
}
#define TS_TWIN_LINE int line = __builtin_LINE()

// ---- reports ---------------------------------------------------------------------------------------------------

void switch_to_main();

inline void record(int kind, int thread, int line, const char* message) {
    ts_twin_report& report = *state.report;
    if (report.count < report.capacity) {
        ts_twin_error& error = report.errors[report.count];
        error.kind = kind;
        error.thread = thread;
        error.line = line;
        for (int axis = 0; axis < 3; ++axis) error.block[axis] = state.block[axis];
        __builtin_snprintf(error.message, sizeof error.message, "%s", message);
    }
    ++report.count;
}

// In a message `{line 12}`, `{shared 640}` and `{global 2 16}` (argument, byte) stand for what the reader names them.
template <class... Values>
[[noreturn]] __attribute__((noinline, cold)) void fail(int kind, int thread, const char* format, Values... values) {
    char message[1024];
    __builtin_snprintf(message, sizeof message, format, values...);
    record(kind, thread, state.fibers[thread].line, message);
    state.aborted = true;
    switch_to_main();
    __builtin_unreachable();
}

inline void out_of_steps() {
    fail(DEADLOCK, state.thread, "goes on without end: the block has called %lld device functions", MAX_STEPS);
}

// ---- context switch --------------------------------------------------------------------------------------------

#ifdef TS_TWIN_UCONTEXT
inline void switch_fibers(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#else
// Saves the callee-saved registers of the System V ABI on the old stack and takes them from the new one.
extern "C" __attribute__((visibility("hidden"))) void ts_twin_switch(void** save_stack_pointer, void* stack_pointer);
asm(".text\n"
    ".p2align 4\n"
    ".type ts_twin_switch, @function\n"
    "ts_twin_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size ts_twin_switch, .-ts_twin_switch\n");
inline void switch_fibers(Fiber& from, Fiber& to) { ts_twin_switch(&from.stack_pointer, to.stack_pointer); }
#endif

inline void switch_to_main() { switch_fibers(state.fibers[state.thread], state.main); }

inline void switch_to_thread(int thread) {
    const int from = state.thread;
    if (from == thread) return;
    state.thread = thread;
    switch_fibers(state.fibers[from], state.fibers[thread]);
}

// ---- scheduling ------------------------------------------------------------------------------------------------

inline ts_u64 next_random() {  // xorshift64*
    state.random ^= state.random >> 12;
    state.random ^= state.random << 25;
    state.random ^= state.random >> 27;
    return state.random * 2685821657736338717ull;
}
inline bool one_in(int n) { return state.options->seed && (next_random() >> 20) % n == 0; }

inline int pick_warp(int current) {
    int candidates[MAX_WARPS], count = 0;
    for (int i = 0; i < state.warps; ++i) {
        const int warp = (current + i) % state.warps;
        if (!state.warp[warp].runnable) continue;
        if (!state.options->seed) return warp;
        candidates[count++] = warp;
    }
    return count ? candidates[(next_random() >> 20) % count] : -1;
}

// The next runnable lane after `lane`, or a random one.
inline int pick_lane(const Warp& warp, int lane) {
    const ts_u32 runnable = warp.runnable;
    if (state.options->seed) {
        ts_u32 left = runnable;
        for (int skip = (int)((next_random() >> 20) % __builtin_popcount(runnable)); skip > 0; --skip) left &= left - 1;
        return __builtin_ctz(left);
    }
    const ts_u32 later = runnable & ~((2u << lane) - 1);  // lane 31: 2u << 31 is 0, the mask is empty
    return __builtin_ctz(later ? later : runnable);
}

[[noreturn]] inline void fail_stuck();
inline void let_data_arrive();      // some of the asynchronous data, at a random moment
inline bool fire_oldest_arrival();  // false when nothing asynchronous is under way
inline void finish_requests(Warp& warp);

// Leaves the running fiber, which has recorded what it waits for (or is ready to go on), and returns when it is picked.
inline void yield() {
    const int current = state.thread / 32, lane = state.thread % 32;
    if (one_in(4)) let_data_arrive();
    if (state.warp[current].runnable && !one_in(8)) {
        switch_to_thread(current * 32 + pick_lane(state.warp[current], lane));
        return;
    }
    int warp = pick_warp(current);
    if (state.cluster && (warp < 0 || one_in(4)) && state.cluster->go_elsewhere()) return;
    // The last legal moment for asynchronous data: everybody waits for it.
    while (warp < 0 && fire_oldest_arrival()) warp = pick_warp(current);
    if (state.cluster && warp < 0 && state.cluster->await_data()) return;
    if (warp < 0) fail_stuck();
    switch_to_thread(warp * 32 + pick_lane(state.warp[warp], 31));
}

// Marks the running fiber as waiting; the caller yields.
inline void wait_for(int what) {
    fiber().waiting = what;
    state.warp[state.thread / 32].runnable &= ~(1u << (state.thread % 32));
}
inline void wake(int thread) {
    state.fibers[thread].waiting = NOTHING;
    state.warp[thread / 32].runnable |= 1u << (thread % 32);
}

inline void fiber_main() {
    state.body();
    if (state.tma.finish_stores) state.tma.finish_stores();
    if (state.cluster) state.cluster->finish_thread();
    Warp& warp = state.warp[state.thread / 32];
    const ts_u32 bit = 1u << (state.thread % 32);
    warp.live &= ~bit;
    warp.runnable &= ~bit;
    if (!warp.live) finish_requests(warp);
    if (++state.exited == state.threads) {
        if (state.cluster) state.cluster->leave();
        switch_to_main();
    }
    yield();
    __builtin_unreachable();
}

inline void prepare_fiber(int thread) {
    Fiber& fiber = state.fibers[thread];
    char* stack = state.stacks + (ts_i64)thread * STACK_BYTES;
#ifdef TS_TWIN_UCONTEXT
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#else
    // Six registers, the entry, and a null return address: at the entry the stack is 16 n + 8, as after a call.
    void** top = (void**)(stack + STACK_BYTES - 8);
    top[0] = nullptr;
    top[-1] = (void*)fiber_main;
    for (int i = 2; i <= 7; ++i) top[-i] = nullptr;
    fiber.stack_pointer = top - 7;
#endif
    fiber.first_copy = fiber.copy_count = fiber.committed_groups = 0;
    fiber.copy_base = 0;
    fiber.first_arrival = fiber.arrival_count = 0;
    fiber.group_count = fiber.groups_read = 0;
    fiber.waiting = NOTHING;
    fiber.line = fiber.remote_line = 0;
    fiber.loops = 0;
}

// ---- who waits where -------------------------------------------------------------------------------------------

struct Text {
    char data[1000];
    int length;
    template <class... Values> void add(const char* format, Values... values) {
        if (length < (int)sizeof data - 1)
            length += __builtin_snprintf(data + length, sizeof data - length, format, values...);
        if (length > (int)sizeof data - 1) length = sizeof data - 1;
    }
};

inline bool waits_alike(const Fiber& a, const Fiber& b) {
    if (a.waiting != b.waiting || a.line != b.line) return false;
    if (a.waiting == PHASE) return a.mbarrier == b.mbarrier && a.parity == b.parity;
    return a.waiting != NAMED_BARRIER || a.mbarrier == b.mbarrier;
}

// Warps of the threads that wait as `model` does, as ranges.
inline void add_waiters(Text& text, const Fiber& model) {
    int count = 0, first = -1, last = -2;
    Text warps{};
    for (int w = 0; w <= state.warps; ++w) {
        int here = 0;
        for (int thread = w * 32; w < state.warps && thread < w * 32 + 32 && thread < state.threads; ++thread)
            here += waits_alike(state.fibers[thread], model);
        count += here;
        if (here && w != last + 1) first = w;
        if (here) last = w;
        else if (last == w - 1 && last >= 0) {
            warps.add(warps.length ? ", %d" : "%d", first);
            if (last > first) warps.add("-%d", last);
        }
    }
    text.add("%d thread%s (warp%s %s) wait%s in %s at {line %d}", count, count == 1 ? "" : "s",
             __builtin_strpbrk(warps.data, ",-") ? "s" : "", warps.data, count == 1 ? "s" : "",
             waiting_names[model.waiting], model.line);
    if (model.waiting == NAMED_BARRIER) {
        const NamedBarrier& barrier = state.named[model.mbarrier];
        text.add(" for barrier %d, which misses %d of %d threads", model.mbarrier, barrier.threads - barrier.arrived,
                 barrier.threads);
    }
    if (model.waiting == PHASE) {
        const Mbarrier& barrier = state.mbarriers[model.mbarrier];
        text.add(" for parity %d of the mbarrier at {shared %lld}, which has completed %lld phase%s and misses %d of %d arrivals",
                 model.parity, barrier.offset, barrier.completed, barrier.completed == 1 ? "" : "s", barrier.missing,
                 barrier.count);
        if (barrier.expected || barrier.landed)
            text.add(" and has %lld of the %lld bytes that it expects", barrier.landed, barrier.expected);
    }
}

// Everybody waits and nobody can run. It is a matter of divergence when a collective lacks threads, a deadlock when
// somebody waits for a phase.
[[noreturn]] __attribute__((noinline, cold)) inline void fail_stuck() {
    if (state.cluster) state.cluster->find_stuck();
    Text text{};
    int culprit = -1, rank = 0;
    for (int thread = 0; thread < state.threads; ++thread) {
        const Fiber& fiber = state.fibers[thread];
        if (fiber.waiting == NOTHING) continue;
        const int own = fiber.waiting == PHASE ? 3 : fiber.waiting == BLOCK_BARRIER ? 1 : 2;
        if (own > rank) rank = own, culprit = thread;
        bool seen = false;
        for (int other = 0; other < thread && !seen; ++other) seen = waits_alike(state.fibers[other], fiber);
        if (seen) continue;
        text.add(text.length ? "; " : "");
        add_waiters(text, fiber);
    }
    if (state.exited) text.add("; %d thread%s returned", state.exited, state.exited == 1 ? " has" : "s have");
    fail(rank == 3 ? DEADLOCK : DIVERGENT, culprit < 0 ? state.thread : culprit, "cannot go on: %s", text.data);
}

// ---- rendezvous ------------------------------------------------------------------------------------------------

// Brings a deposit to the warp. The last of the 32 lanes runs `perform(warp)` for all and goes on; the others wake later.
template <class Perform>
inline void rendezvous(int collective, const Deposit& deposit, Perform perform) {
    Warp& warp = state.warp[state.thread / 32];
    if (!warp.arrived) {
        warp.collective = collective;
    } else {
        const int other = state.thread / 32 * 32 + __builtin_ctz(warp.arrived);
        if (warp.collective != collective || state.fibers[other].line != fiber().line)
            fail(DIVERGENT, state.thread, "enters %s while thread %d of the same warp waits in %s at {line %d}",
                 waiting_names[collective], other, waiting_names[warp.collective], state.fibers[other].line);
    }
    warp.deposits[state.thread % 32] = deposit;
    warp.arrived |= 1u << (state.thread % 32);
    if (warp.arrived != 0xFFFFFFFFu) {
        wait_for(collective);
        yield();
        return;
    }
    finish_requests(warp);
    state.idle_spins = 0;
    perform(warp);
    warp.arrived = 0;
    warp.runnable = 0xFFFFFFFFu;
    for (int lane = 0; lane < 32; ++lane) state.fibers[state.thread / 32 * 32 + lane].waiting = NOTHING;
}

}  // namespace ts_twin

TS_DEVICE int ts_thread() { return ts_twin::state.thread; }
TS_DEVICE int ts_lane() { return ts_twin::state.thread % 32; }
TS_DEVICE int ts_warp() { return ts_twin::state.thread / 32; }
TS_DEVICE ts_i64 ts_block_id(int axis) { return ts_twin::state.block[axis]; }
TS_DEVICE ts_i64 ts_grid(int axis) { return ts_twin::state.grid[axis]; }
