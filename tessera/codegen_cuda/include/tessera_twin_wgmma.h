// Products of a warpgroup, and what else its four warps do together. Each warp multiplies its 16 rows on its own; that
// all four take the same steps is checked.
//
// A product happens at some moment between its issue and the wait that covers it: with seed 0 at the wait. From the
// issue on its accumulators are poison, until a wait names them; its operands in shared memory are read by the agent of
// its warp, an event that the warp learns of in the wait; its words of A are compared there with what they were. So the
// arrays of both must live until then.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

constexpr int MAX_WARPGROUPS = MAX_WARPS / 4;
constexpr ts_u32 IN_FLIGHT_BITS = 0x7FE5B00Fu;  // a NaN that no computation gives

// ---- steps of a warpgroup --------------------------------------------------------------------------------------

struct Step {
    const char* what;
    ts_u64 arguments;
    int line, warp;  // the warp that came first
};
struct Warpgroup {
    Step* steps;  // those that not every warp has taken: [first_step, step_count)
    int first_step, step_count, step_capacity;
    ts_i64 step_base;  // steps before steps[0]
    int registers, registers_line;
};

// Registers of a thread at the launch: an equal share of a multiprocessor's among the blocks that it must hold, in steps
// of 8.
inline int launch_registers() {
    const int share = 65536 / ((state.threads + 127) / 128 * 128 * state.min_blocks) / 8 * 8;
    return share < 256 ? share : 256;
}

// ---- products in flight ----------------------------------------------------------------------------------------

struct Accumulators {  // of one shape at one place, from their first product to the wait that names them
    Accumulators* next;
    float* at[32];
    float (*values)[32];  // by register and lane
    int registers, in_flight, line;
};
struct Product {
    void (*multiply)(const Product&);
    Accumulators* accumulators;
    Matrix a, b;
    const ts_u32* words[32];  // of A by lane, or null: A lies in shared memory
    ts_u32 issued_words[32][4];
    ts_u32 clock;
    int warp, columns, group, line;
    bool accumulate, done;
};
struct ProductQueue {
    Product* products;  // in issue order: [first, count)
    int first, count, capacity;
    Accumulators* accumulators;
    ts_i64 steps;
    int committed;
    bool fenced;  // ts_wgmma_fence since the last wait
};
// Of one block: of a cluster, of the running one.
struct BlockProducts {
    Warpgroup warpgroups[MAX_WARPGROUPS];
    ProductQueue queues[MAX_WARPS];
    int in_flight;
};
inline BlockProducts products;
inline auto& warpgroups = products.warpgroups;
inline auto& queues = products.queues;
inline int& products_in_flight = products.in_flight;

inline int warp_index(const Warp& warp) { return (int)(&warp - state.warp); }

inline void reset_warpgroups();
inline void check_warpgroups();
inline void free_warpgroups();
inline void multiply_early();
inline void renew_reads();
inline constexpr WarpgroupHooks warpgroup_hooks{reset_warpgroups, check_warpgroups, free_warpgroups, multiply_early,
                                                renew_reads};

// The next step of a warp, whose thread runs.
inline void take_step(int warp, const char* what, ts_u64 arguments) {
    if (!state.warpgroups) {
        state.warpgroups = &warpgroup_hooks;
        reset_warpgroups();
    }
    if (warp / 4 * 4 + 4 > state.threads / 32)
        fail(DIVERGENT, warp * 32, "executes %s in a warpgroup of %d threads; it takes four warps", what,
             state.threads - warp / 4 * 128);
    Warpgroup& group = warpgroups[warp / 4];
    const ts_i64 index = queues[warp].steps++ - group.step_base;
    if (index == group.step_count) {
        append(group.steps, group.step_count, group.step_capacity) = Step{what, arguments, fiber().line, warp};
        return;
    }
    const Step& step = group.steps[index];
    if (__builtin_strcmp(step.what, what) || step.line != fiber().line)
        fail(DIVERGENT, warp * 32, "executes %s where warp %d of the same warpgroup executes %s at {line %d}", what,
             step.warp, step.what, step.line);
    if (step.arguments != arguments)
        fail(DIVERGENT, warp * 32, "executes %s with other arguments than warp %d of the same warpgroup", what, step.warp);
    ts_i64 slowest = queues[warp].steps;
    for (int other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other)
        slowest = queues[other].steps < slowest ? queues[other].steps : slowest;
    group.first_step = (int)(slowest - group.step_base);
    if (group.first_step < group.step_count) return;
    group.step_base += group.step_count;
    group.first_step = group.step_count = 0;
}

template <class Left, class Right>
struct Operands {
    typedef Left A;
    typedef Right B;
    static constexpr int COUNT = Left::COUNT;  // in a word, of either
};

template <class Types>
inline void multiply(const Product& product) {
    constexpr int DEPTH = 8 * Types::COUNT;
    static double a[16][DEPTH], b[256][DEPTH];  // too much for the stack of a fiber
    if (product.words[0]) {
        for (int lane = 0; lane < 32; ++lane) unpack_a<typename Types::A>(a, lane, product.issued_words[lane]);
    } else {
        gather<typename Types::A>(a, product.a, product.warp % 4 * 16, 16);
    }
    gather<typename Types::B>(b, product.b, 0, product.columns);
    for (int i = 0; i < product.columns / 2; ++i) {
        float* values = product.accumulators->values[i];
        for (int lane = 0; lane < 32; ++lane)
            values[lane] = add_block<DEPTH>(product.accumulate ? values[lane] : 0.0f, a[lane / 4 + 8 * (i / 2 % 2)],
                                            b[i / 4 * 8 + lane % 4 * 2 + i % 2]);
    }
}

inline void finish_product(Product& product) {
    if (!product.done) product.multiply(product);
    product.done = true;
}

// The products of a warp go in order.
inline void multiply_early() {
    if (!products_in_flight) return;
    ProductQueue& queue = queues[(next_random() >> 20) % state.warps];
    for (int i = queue.first; i < queue.count && one_in(2); ++i) finish_product(queue.products[i]);
}

inline void renew_reads() {
    for (int warp = 0; warp < state.warps; ++warp) {
        for (int i = queues[warp].first; i < queues[warp].count; ++i) {
            const Product& product = queues[warp].products[i];
            const Event event{state.epoch, 0, product.clock, product.line, (unsigned short)(WARP_AGENTS + warp), false};
            watch_on(event, product.b, 0, product.columns);
            if (!product.words[0]) watch_on(event, product.a, warp % 4 * 16, 16);
        }
    }
}

// ---- accumulators ----------------------------------------------------------------------------------------------

inline void check_untouched(const Accumulators& accumulators, int warp) {
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < accumulators.registers; ++i)
            if (bits_of(accumulators.at[lane][i]) != IN_FLIGHT_BITS)
                fail(IN_FLIGHT, warp * 32 + lane, "has changed accumulator %d of the wgmma at {line %d}, which no wait has given back",
                     i, accumulators.line);
}

// Those at a place of lane 0 that are not given back; null for none.
inline Accumulators* accumulators_at(const ProductQueue& queue, const float* first, int count) {
    Accumulators* found = queue.accumulators;
    while (found && (found->at[0] >= first + count || found->at[0] + found->registers <= first)) found = found->next;
    return found;
}

inline Accumulators* take_accumulators(const Warp& warp, int registers) {
    const int index = warp_index(warp);
    ProductQueue& queue = queues[index];
    float* first = (float*)warp.deposits[0].out;
    Accumulators* found = accumulators_at(queue, first, registers);
    if (found) {
        if (found->at[0] != first || found->registers != registers)
            fail(IN_FLIGHT, index * 32, "takes accumulators that the wgmma of another shape at {line %d} has, which no wait has given back",
                 found->line);
        check_untouched(*found, index);
    } else {
        found = (Accumulators*)__builtin_calloc(1, sizeof(Accumulators));
        found->values = (float(*)[32])__builtin_malloc(registers * sizeof *found->values);
        found->registers = registers;
        found->next = queue.accumulators;
        queue.accumulators = found;
        for (int lane = 0; lane < 32; ++lane) {
            found->at[lane] = (float*)warp.deposits[lane].out;
            for (int i = 0; i < registers; ++i) {
                found->values[i][lane] = found->at[lane][i];
                __builtin_memcpy(&found->at[lane][i], &IN_FLIGHT_BITS, 4);
            }
        }
    }
    ++found->in_flight;
    found->line = fiber().line;
    return found;
}

inline void free_accumulators(ProductQueue& queue, Accumulators* accumulators) {
    Accumulators** link = &queue.accumulators;
    while (*link != accumulators) link = &(*link)->next;
    *link = accumulators->next;
    __builtin_free(accumulators->values);
    __builtin_free(accumulators);
}

// A wait says that the registers from `first` on are valid.
inline void give_back(int warp, const float* first, int count) {
    ProductQueue& queue = queues[warp];
    while (Accumulators* found = accumulators_at(queue, first, count)) {
        if (found->in_flight)
            fail(IN_FLIGHT, warp * 32, "waits for accumulators that the wgmma at {line %d} goes on computing", found->line);
        if (found->at[0] < first || found->at[0] + found->registers > first + count)
            fail(IN_FLIGHT, warp * 32, "waits for a part of the %d accumulators of the wgmma at {line %d}", found->registers,
                 found->line);
        check_untouched(*found, warp);
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < found->registers; ++i) found->at[lane][i] = found->values[i][lane];
        free_accumulators(queue, found);
    }
}

// ---- issue and wait --------------------------------------------------------------------------------------------

struct ProductCall {
    const ts_u32* words;
    ts_u64 a, b;
    int columns;
    bool transposed_a, transposed_b, accumulate;
};

inline ts_u64 arguments_of(const ProductCall& call) { return mixed(mixed(call.words ? 0 : call.a, call.b), call.accumulate); }

// Deposits: out = float acc[columns / 2], first = ProductCall.
template <class Types>
inline void issue_product(Warp& warp) {
    const int index = warp_index(warp);
    ProductQueue& queue = queues[index];
    const ProductCall& call = *(const ProductCall*)warp.deposits[0].first;
    for (int lane = 1; lane < 32; ++lane)
        if (arguments_of(*(const ProductCall*)warp.deposits[lane].first) != arguments_of(call))
            fail(DIVERGENT, index * 32 + lane, "executes wgmma with other arguments than lane 0 of its warp");
    take_step(index, "wgmma", arguments_of(call));
    if (!queue.fenced)
        fail(UNFENCED, index * 32, "executes wgmma with no ts_wgmma_fence since %s", queue.committed ? "the last wait" : "the start");
    if (!state.clocks) start_clocks();
    if (ts_twin_counter* totals = counter_here()) ++totals->mma;
    Product product{};
    product.multiply = multiply<Types>;
    product.b = decoded(call.b, call.transposed_b);
    product.warp = index;
    product.columns = call.columns;
    product.group = queue.committed;
    product.line = fiber().line;
    product.accumulate = call.accumulate;
    for (int lane = 0; lane < 32 && call.words; ++lane) {
        product.words[lane] = ((const ProductCall*)warp.deposits[lane].first)->words;
        __builtin_memcpy(product.issued_words[lane], product.words[lane], 16);
    }
    const int agent = WARP_AGENTS + index;
    if (!call.words) {
        product.a = decoded(call.a, call.transposed_a);
        watch_operand(agent, product.a, index % 4 * 16, 16);
    }
    watch_operand(agent, product.b, 0, call.columns);
    product.clock = state.own_clock[agent]++;
    product.accumulators = take_accumulators(warp, call.columns / 2);
    append(queue.products, queue.count, queue.capacity) = product;
    ++products_in_flight;
}

inline void check_words(const Product& product) {
    for (int lane = 0; lane < 32 && product.words[0]; ++lane)
        if (__builtin_memcmp(product.words[lane], product.issued_words[lane], 16))
            fail(IN_FLIGHT, product.warp * 32 + lane, "has changed the words of A of the wgmma at {line %d} before it waits for it",
                 product.line);
}

// Groups before `end` are over, and what they read is free for those who follow this wait.
inline void retire(int warp, int end) {
    ProductQueue& queue = queues[warp];
    for (; queue.first < queue.count && queue.products[queue.first].group < end; ++queue.first) {
        Product& product = queue.products[queue.first];
        finish_product(product);
        check_words(product);
        --product.accumulators->in_flight;
        --products_in_flight;
        for (int lane = 0; lane < 32; ++lane) known(warp * 32 + lane, WARP_AGENTS + warp) = product.clock;
    }
    if (queue.first == queue.count) queue.first = queue.count = 0;
}

// Deposits: out = the accumulators that are valid after it, detail = how many.
template <int GROUPS>
inline void wait_products(Warp& warp) {
    const int index = warp_index(warp);
    take_step(index, "ts_wgmma_wait", GROUPS);
    queues[index].fenced = false;
    retire(index, queues[index].committed - GROUPS);
    give_back(index, (const float*)warp.deposits[0].out, warp.deposits[0].detail);
}

inline void set_registers(int warp, int registers, bool more) {
    Warpgroup& group = warpgroups[warp / 4];
    take_step(warp, more ? "ts_registers_increase" : "ts_registers_decrease", registers);
    if (more ? registers < group.registers : registers > group.registers)
        fail(BAD_LAUNCH, warp * 32, "%s the registers of a thread from %d to %d", more ? "increases" : "decreases",
             group.registers, registers);
    group.registers = registers;
    group.registers_line = fiber().line;
}

// ---- blocks ----------------------------------------------------------------------------------------------------

inline void reset_warpgroups() {
    products_in_flight = 0;
    for (ProductQueue& queue : queues) {
        while (queue.accumulators) free_accumulators(queue, queue.accumulators);
        queue = ProductQueue{queue.products, 0, 0, queue.capacity};
    }
    for (Warpgroup& group : warpgroups) group = Warpgroup{group.steps, 0, 0, group.step_capacity, 0, launch_registers(), 0};
}

inline void free_warpgroups() {
    for (ProductQueue& queue : queues) {
        while (queue.accumulators) free_accumulators(queue, queue.accumulators);
        __builtin_free(queue.products);
        queue = ProductQueue{};
    }
    for (Warpgroup& group : warpgroups) {
        __builtin_free(group.steps);
        group = Warpgroup{};
    }
}

// What a block leaves that has come to its end: a step that a warp did not take, a product that nobody waited for, more
// registers than there are.
inline void check_warpgroups() {
    Text text{};
    int registers = 0, line = 0;
    for (int warp = 0; warp < state.warps; ++warp) {
        const Warpgroup& group = warpgroups[warp / 4];
        const ProductQueue& queue = queues[warp];
        const ts_i64 index = queue.steps - group.step_base;
        if (index < group.step_count) {
            const Step& step = group.steps[index];
            text.add("returns without the %s that warp %d of its warpgroup executes", step.what, step.warp);
            return record(DIVERGENT, warp * 32, step.line, text.data);
        }
        if (queue.first < queue.count)
            return record(IN_FLIGHT, warp * 32, queue.products[queue.first].line, "returns and has not waited for this wgmma");
        registers += 32 * group.registers;
        if (group.registers > launch_registers()) line = group.registers_line;
    }
    if (!line || registers <= state.warps * 32 * launch_registers()) return;
    text.add("waits for ever: the warpgroups ask for %d registers, and the block has %d", registers,
             state.warps * 32 * launch_registers());
    record(DEADLOCK, -1, line, text.data);
}

template <class Types>
inline void wgmma(float* acc, const ProductCall& call, int line) {
    at(line);
    rendezvous(WARPGROUP, Deposit{0, acc, &call, nullptr}, issue_product<Types>);
}

// The names of types in those of device functions.
typedef Operands<Bf16Pair, Bf16Pair> wgmma_bf16;
typedef Operands<F16Pair, F16Pair> wgmma_f16;
typedef Operands<E4m3Quad, E4m3Quad> wgmma_e4m3;
typedef Operands<E5m2Quad, E5m2Quad> wgmma_e5m2;
typedef Operands<E4m3Quad, E5m2Quad> wgmma_e4m3_e5m2;
typedef Operands<E5m2Quad, E4m3Quad> wgmma_e5m2_e4m3;

template <class Types, int N, int TRANS_A, int TRANS_B>
constexpr void check_wgmma() {
    constexpr int MOST = Types::COUNT == 2;
    static_assert(N % 8 == 0 && 8 <= N && N <= 256, "N is a multiple of 8 up to 256");
    static_assert(0 <= TRANS_A && TRANS_A <= MOST && 0 <= TRANS_B && TRANS_B <= MOST, "no such transposition");
}

}  // namespace ts_twin

#define TS_WGMMA(T, N)                                                                                                \
    template <int TRANS_A, int TRANS_B>                                                                               \
    TS_DEVICE void ts_wgmma_##T##_n##N##_ss(float* acc, ts_u64 a, ts_u64 b, bool accumulate, TS_TWIN_LINE) {          \
        ts_twin::check_wgmma<ts_twin::wgmma_##T, N, TRANS_A, TRANS_B>();                                              \
        ts_twin::wgmma<ts_twin::wgmma_##T>(acc, {nullptr, a, b, N, TRANS_A == 1, TRANS_B == 1, accumulate}, line);    \
    }                                                                                                                 \
    template <int TRANS_B>                                                                                            \
    TS_DEVICE void ts_wgmma_##T##_n##N##_rs(float* acc, const ts_u32* a, ts_u64 b, bool accumulate, TS_TWIN_LINE) {   \
        ts_twin::check_wgmma<ts_twin::wgmma_##T, N, 0, TRANS_B>();                                                    \
        ts_twin::wgmma<ts_twin::wgmma_##T>(acc, {a, 0, b, N, false, TRANS_B == 1, accumulate}, line);                 \
    }

TS_DEVICE void ts_wgmma_fence(TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    rendezvous(WARPGROUP, Deposit{}, [](Warp& warp) {
        take_step(warp_index(warp), "ts_wgmma_fence", 0);
        queues[warp_index(warp)].fenced = true;
    });
}
TS_DEVICE void ts_wgmma_commit(TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    rendezvous(WARPGROUP, Deposit{}, [](Warp& warp) {
        take_step(warp_index(warp), "ts_wgmma_commit", 0);
        ++queues[warp_index(warp)].committed;
    });
}
template <int N, int COUNT>
TS_DEVICE void ts_wgmma_wait(float* acc, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::rendezvous(ts_twin::WARPGROUP, ts_twin::Deposit{COUNT, acc, nullptr, nullptr}, ts_twin::wait_products<N>);
}

template <int N>
TS_DEVICE void ts_registers_increase(TS_TWIN_LINE) {
    using namespace ts_twin;
    static_assert(N % 8 == 0 && 24 <= N && N <= 256, "registers come in multiples of 8, from 24 to 256");
    at(line);
    rendezvous(WARPGROUP, Deposit{}, [](Warp& warp) { set_registers(warp_index(warp), N, true); });
}
template <int N>
TS_DEVICE void ts_registers_decrease(TS_TWIN_LINE) {
    using namespace ts_twin;
    static_assert(N % 8 == 0 && 24 <= N && N <= 256, "registers come in multiples of 8, from 24 to 256");
    at(line);
    rendezvous(WARPGROUP, Deposit{}, [](Warp& warp) { set_registers(warp_index(warp), N, false); });
}
