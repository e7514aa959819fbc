// Fibers, scheduling and reports. One block runs at a time, on one OS thread: a fiber runs until it must wait for
// others, then the next runnable lane of its warp goes on, then the next warp. A fault records a report and abandons
// the block (kernels own nothing that would need a destructor).
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
    char message[256];
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
};
struct ts_twin_options {
    ts_u64 seed;  // 0: blocks and warps in order; otherwise the seed of a random order
    int check_races;
    int allocation_count;
    const ts_twin_allocation* allocations;
};

namespace ts_twin __attribute__((visibility("hidden"))) {

// Same order as KINDS in tessera/runtime/emulator.py.
enum Kind {
    SHARED_BOUNDS,
    GLOBAL_BOUNDS,
    MISALIGNED,
    READ_ONLY,
    DIVERGENT,
    RACE,
    UNWAITED_COPY,
    GUARD,
    DIVISION_BY_ZERO,
    BAD_LAUNCH,
    ASSERTION,
};

constexpr int MAX_THREADS = 1024;
constexpr int MAX_WARPS = MAX_THREADS / 32;
// A kernel has at most 255 registers per thread, so its frame is a few KiB; the rest is head room for libm and
// snprintf. Pages are committed when touched.
constexpr long STACK_BYTES = 128 * 1024;

enum Collective { NO_COLLECTIVE, WARP_BARRIER, SHUFFLE, LDMATRIX, MMA };
inline const char* const collective_names[] = {"nothing", "ts_warp_barrier", "a shuffle", "ldmatrix", "mma"};

// What a lane brings to a collective: where its result goes and where its operands are. They lie on the lane's own
// stack, which stays alive while the lane waits.
struct Deposit {
    int detail;
    void* out;
    const void* first;
    const void* second;
};

struct Warp {
    ts_u32 live;      // lanes that exist and have not returned
    ts_u32 runnable;
    ts_u32 arrived;   // lanes waiting in the collective
    int collective;
    ts_u32 epoch;     // warp barriers passed; orders accesses within the warp
    Deposit deposits[32];
};

struct AsyncCopy {
    char* dst;
    const void* src;
    int bytes, src_bytes;
    int group;
};

struct Fiber {
#ifdef TS_TWIN_UCONTEXT
    ucontext_t context;
#else
    void* stack_pointer;
#endif
    AsyncCopy* copies;  // a queue in issue order: [first_copy, copy_count)
    int first_copy, copy_count, copy_capacity;
    int committed_groups;
};

struct Shadow;

struct State {
    int thread;  // running fiber
    int threads, warps;
    ts_i64 block[3], grid[3];
    int exited, at_barrier;
    ts_u32 epoch;  // block barriers passed, plus one
    bool aborted;
    char* shared;
    ts_i64 shared_bytes;
    Shadow* shadow;  // null when races are not checked
    const ts_twin_options* options;
    ts_twin_report* report;
    int last_allocation;
    ts_u64 random;
    void (*body)();
    char* stacks;
    Fiber main;
    Fiber* fibers;
    Warp warp[MAX_WARPS];
};
inline State state;

// ---- reports ---------------------------------------------------------------------------------------------------

void switch_to_main();

inline void record(int kind, int thread, const char* message) {
    ts_twin_report& report = *state.report;
    if (report.count < report.capacity) {
        ts_twin_error& error = report.errors[report.count];
        error.kind = kind;
        error.thread = thread;
        for (int axis = 0; axis < 3; ++axis) error.block[axis] = state.block[axis];
        __builtin_snprintf(error.message, sizeof error.message, "%s", message);
    }
    ++report.count;
}

template <class... Values>
[[noreturn]] __attribute__((noinline, cold)) void fail(int kind, int thread, const char* format, Values... values) {
    char message[256];
    __builtin_snprintf(message, sizeof message, format, values...);
    record(kind, thread, message);
    state.aborted = true;
    switch_to_main();
    __builtin_unreachable();
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

inline int pick_warp(int current) {
    int candidates[MAX_WARPS], count = 0;
    for (int i = 0; i < state.warps; ++i) {
        const int warp = (current + i) % state.warps;
        if (!state.warp[warp].runnable) continue;
        if (!state.options->seed) return warp;
        candidates[count++] = warp;
    }
    return count ? candidates[next_random() % count] : -1;
}

// Everybody waits and nobody can run: some threads left a barrier or a collective out.
[[noreturn]] __attribute__((noinline, cold)) inline void fail_stuck() {
    for (int w = 0; w < state.warps; ++w) {
        const Warp& warp = state.warp[w];
        if (!warp.arrived) continue;
        fail(DIVERGENT, w * 32 + __builtin_ctz(warp.arrived),
             "%d of 32 lanes of warp %d wait in %s (lane mask %#010x); the others have returned or wait in ts_barrier",
             __builtin_popcount(warp.arrived), w, collective_names[warp.collective], warp.arrived);
    }
    fail(DIVERGENT, state.thread, "%d of %d threads wait in ts_barrier; the other %d have returned", state.at_barrier,
         state.threads, state.exited);
}

// Leaves the running fiber, which has recorded what it waits for, and returns when that has happened.
inline void yield() {
    const int current = state.thread / 32, lane = state.thread % 32;
    if (const ts_u32 runnable = state.warp[current].runnable) {
        const ts_u32 later = runnable & ~((2u << lane) - 1);  // lane 31: 2u << 31 is 0, the mask is empty
        switch_to_thread(current * 32 + __builtin_ctz(later ? later : runnable));
        return;
    }
    const int warp = pick_warp(current);
    if (warp < 0) fail_stuck();
    switch_to_thread(warp * 32 + __builtin_ctz(state.warp[warp].runnable));
}

inline void fiber_main() {
    state.body();
    Warp& warp = state.warp[state.thread / 32];
    const ts_u32 bit = 1u << (state.thread % 32);
    warp.live &= ~bit;
    warp.runnable &= ~bit;
    if (++state.exited == state.threads) switch_to_main();
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
}

// ---- rendezvous ------------------------------------------------------------------------------------------------

// Brings a deposit to the warp. The last of the 32 lanes runs `perform(warp)` for all and goes on; the others wake later.
template <class Perform>
inline void rendezvous(int collective, const Deposit& deposit, Perform perform) {
    Warp& warp = state.warp[state.thread / 32];
    const ts_u32 bit = 1u << (state.thread % 32);
    if (!warp.arrived) {
        warp.collective = collective;
    } else if (warp.collective != collective) {
        fail(DIVERGENT, state.thread, "a lane enters %s while other lanes of warp %d wait in %s",
             collective_names[collective], state.thread / 32, collective_names[warp.collective]);
    }
    warp.deposits[state.thread % 32] = deposit;
    warp.arrived |= bit;
    warp.runnable &= ~bit;
    if (warp.arrived != 0xFFFFFFFFu) {
        yield();
        return;
    }
    perform(warp);
    warp.arrived = 0;
    warp.runnable = 0xFFFFFFFFu;
}

}  // namespace ts_twin

TS_DEVICE int ts_thread() { return ts_twin::state.thread; }
TS_DEVICE int ts_lane() { return ts_twin::state.thread % 32; }
TS_DEVICE int ts_warp() { return ts_twin::state.thread / 32; }
TS_DEVICE ts_i64 ts_block_id(int axis) { return ts_twin::state.block[axis]; }
TS_DEVICE ts_i64 ts_grid(int axis) { return ts_twin::state.grid[axis]; }

TS_DEVICE void ts_barrier() {
    using namespace ts_twin;
    state.warp[state.thread / 32].runnable &= ~(1u << (state.thread % 32));
    if (++state.at_barrier == state.threads) {
        state.at_barrier = 0;
        ++state.epoch;
        for (int w = 0; w < state.warps; ++w) state.warp[w].runnable = state.warp[w].live;
        // Everybody is at the barrier, so every warp is whole again; a new phase starts with a newly chosen warp.
        switch_to_thread(pick_warp(0) * 32);
        return;
    }
    yield();
}

TS_DEVICE void ts_warp_barrier() {
    using namespace ts_twin;
    rendezvous(WARP_BARRIER, Deposit{}, [](Warp& warp) { ++warp.epoch; });
}
