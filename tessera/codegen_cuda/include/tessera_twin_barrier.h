// Block, warp and named barriers, mbarriers, and when asynchronous data arrives.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

inline void pass_block_barrier() {
    state.at_barrier = 0;
    state.idle_spins = 0;
    join_block();
    if (!is_own(++state.epoch)) out_of_steps();
    if (state.warpgroups) state.warpgroups->pass_barrier();
    for (int w = 0; w < state.warps; ++w) finish_requests(state.warp[w]);
    for (int thread = 0; thread < state.threads; ++thread) wake(thread);
    if (ts_twin_counter* totals = counter(fiber().line)) ++totals->barriers;
}

inline void block_barrier() {
    const int line = fiber().line;
    if (!state.at_barrier) {
        state.barrier_line = line;
        state.barrier_thread = state.thread;
    } else if (state.barrier_line != line) {
        fail(DIVERGENT, state.thread, "enters ts_barrier while thread %d waits in the one at {line %d}",
             state.barrier_thread, state.barrier_line);
    }
    wait_for(BLOCK_BARRIER);
    if (++state.at_barrier == state.threads) pass_block_barrier();
    yield();
}

// ---- named barriers --------------------------------------------------------------------------------------------
// They order by clocks: no epoch ends, since only some threads take part.

inline ts_u32* named_clocks(int id) { return state.named_clocks + (ts_i64)id * state.agents; }

inline void reset_named_barriers() {
    for (int id = 0; id < NAMED_BARRIERS; ++id) {
        if (state.named[id].arrived) clear_clocks(named_clocks(id));
        state.named[id] = NamedBarrier{};
    }
}

inline void pass_named_barrier(int id) {
    state.named[id] = NamedBarrier{};
    state.idle_spins = 0;
    for (int thread = 0; thread < state.threads; ++thread) {
        const Fiber& waiter = state.fibers[thread];
        if (waiter.waiting != NAMED_BARRIER || waiter.mbarrier != id) continue;
        join(&known(thread, 0), named_clocks(id));
        finish_requests(state.warp[thread / 32]);
        wake(thread);
    }
    clear_clocks(named_clocks(id));
    if (ts_twin_counter* totals = counter(fiber().line)) ++totals->barriers;
}

inline void named_barrier(int id, int threads) {
    if (id < 1 || id >= NAMED_BARRIERS)
        fail(DIVERGENT, state.thread, "enters barrier %d; named barriers have the numbers 1 to %d", id, NAMED_BARRIERS - 1);
    if (threads < 32 || threads % 32 || threads > state.threads)
        fail(DIVERGENT, state.thread, "enters barrier %d of %d threads; it takes whole warps of the %d threads of the block",
             id, threads, state.threads);
    NamedBarrier& barrier = state.named[id];
    if (barrier.arrived && barrier.threads != threads)
        fail(DIVERGENT, state.thread, "enters barrier %d of %d threads, at which others wait for %d", id, threads,
             barrier.threads);
    if (!state.clocks) start_clocks();
    release(state.thread, named_clocks(id));
    barrier.threads = threads;
    fiber().mbarrier = id;
    wait_for(NAMED_BARRIER);
    if (++barrier.arrived == threads) pass_named_barrier(id);
    yield();
}

// ---- mbarriers -------------------------------------------------------------------------------------------------

inline int find_mbarrier(const char* p, const char* verb) {
    const ts_i64 offset = check_shared(state.thread, p, 8, 8, verb);
    for (int i = 0; i < state.mbarrier_count; ++i) {
        Mbarrier& barrier = state.mbarriers[i];
        if (barrier.offset != offset || !barrier.count) continue;
        const Event init{barrier.init_epoch, barrier.init_warp_epoch, barrier.init_clock, barrier.init_line,
                         (unsigned short)barrier.init_thread, false};
        if (!before(init, state.thread))
            fail(MBARRIER, state.thread, "%s the mbarrier at {shared %lld}, which thread %d initialises at {line %d} with no barrier between",
                 verb, offset, barrier.init_thread, barrier.init_line);
        return i;
    }
    fail(MBARRIER, state.thread, "%s the mbarrier at {shared %lld}, which is not initialised", verb, offset);
}

// The last time that the running thread used the mbarrier: its end must come after that.
inline void note_use(int index) { state.mbarriers[index].uses[state.thread] = event_of(state.thread); }

inline bool awaits_load(int mbarrier);
inline void mark_mbarrier(ts_i64 offset, unsigned short mark);
inline void invalidate_mbarrier(const char* p) {
    const int index = find_mbarrier(p, "invalidates");
    Mbarrier& barrier = state.mbarriers[index];
    for (int thread = 0; thread < state.threads; ++thread) {
        const Event& use = barrier.uses[thread];
        if (use.epoch && !before(use, state.thread))
            fail(MBARRIER, state.thread, "invalidates the mbarrier at {shared %lld}, which thread %d uses at {line %d} with no barrier between",
                 barrier.offset, thread, use.line);
    }
    if (awaits_load(index))
        fail(MBARRIER, state.thread, "invalidates the mbarrier at {shared %lld} while the TMA load at {line %d} is under way",
             barrier.offset, barrier.load_line);
    mark_mbarrier(barrier.offset, 0);
    barrier.count = 0;
}

inline void mark_mbarrier(ts_i64 offset, unsigned short mark) {
    if (!state.shadow) return;
    for (int i = 0; i < 8; ++i) {
        if (mark) {
            check_free(state.thread, state.shadow[offset + i], offset + i, "initialises");
            watch_write(state.shadow[offset + i], state.thread, Place{-1, offset + i}, "initialises", false, false);
        }
        state.shadow[offset + i].copier = mark;
    }
}

inline void init_mbarrier(char* p, int count) {
    const ts_i64 offset = check_shared(state.thread, p, 8, 8, "initialises");
    for (int i = 0; i < state.mbarrier_count; ++i)
        if (state.mbarriers[i].count && state.mbarriers[i].offset == offset)
            fail(MBARRIER, state.thread, "initialises the mbarrier at {shared %lld} again; thread %d did at {line %d}",
                 offset, state.mbarriers[i].init_thread, state.mbarriers[i].init_line);
    if (count < 1 || count > 0xFFFFF)
        fail(MBARRIER, state.thread, "initialises an mbarrier for %d arrivals; it takes 1 to %d", count, 0xFFFFF);
    if (state.mbarrier_count == MAX_MBARRIERS)
        fail(MBARRIER, state.thread, "initialises more than %d mbarriers", MAX_MBARRIERS);
    if (!state.clocks) start_clocks();
    mark_mbarrier(offset, IS_MBARRIER);
    const Event now = event_of(state.thread);
    Mbarrier& barrier = state.mbarriers[state.mbarrier_count++];
    barrier = Mbarrier{offset, count, count, 0, state.thread, now.line, now.epoch, now.warp_epoch, now.clock,
                       new_clocks(1), new_clocks(1), (Event*)__builtin_calloc(MAX_THREADS, sizeof(Event))};
}

// The open phase completes when all arrivals and all bytes have come.
inline void complete_phase(int index) {
    Mbarrier& barrier = state.mbarriers[index];
    state.idle_spins = 0;
    if (barrier.missing || barrier.expected != barrier.landed) return;
    barrier.expected = barrier.landed = 0;
    join(barrier.released, barrier.arrived);
    clear_clocks(barrier.arrived);
    ++barrier.completed;
    barrier.missing = barrier.count;
    for (int thread = 0; thread < state.threads; ++thread) {
        const Fiber& waiter = state.fibers[thread];
        if (waiter.waiting == PHASE && waiter.mbarrier == index && (barrier.completed & 1) != waiter.parity) wake(thread);
    }
}

inline void arrive_at(int index) {
    Mbarrier& barrier = state.mbarriers[index];
    if (!barrier.missing)
        fail(MBARRIER, state.thread, "arrives at the mbarrier at {shared %lld}, whose phase has its %d arrivals and waits for bytes (%lld of %lld)",
             barrier.offset, barrier.count, barrier.landed, barrier.expected);
    --barrier.missing;
    complete_phase(index);
}

inline void arrive_mbarrier(char* p) {
    const int index = find_mbarrier(p, "arrives at");
    note_use(index);
    release(state.thread, state.mbarriers[index].arrived);
    arrive_at(index);
}

constexpr int MAX_EXPECTED = (1 << 20) - 1;  // bytes under way in one phase

inline void expect_bytes(char* p, int bytes) {
    const int index = find_mbarrier(p, "arrives at");
    Mbarrier& barrier = state.mbarriers[index];
    if (bytes < 0 || barrier.expected - barrier.landed + bytes > MAX_EXPECTED)
        fail(MBARRIER, state.thread, "announces %d bytes at the mbarrier at {shared %lld}, where %lld are announced; a phase takes 0 to %d",
             bytes, barrier.offset, barrier.expected - barrier.landed, MAX_EXPECTED);
    barrier.expected += bytes;
    arrive_mbarrier(p);
}

// At the end of a block: bytes that were announced have come.
inline void check_bytes() {
    for (int i = 0; i < state.mbarrier_count; ++i) {
        const Mbarrier& barrier = state.mbarriers[i];
        if (!barrier.count || barrier.expected == barrier.landed) continue;
        char message[160];
        __builtin_snprintf(message, sizeof message,
                           "ends with the mbarrier at {shared %lld} in a phase that expects %lld bytes and has %lld",
                           barrier.offset, barrier.expected, barrier.landed);
        return record(MBARRIER, barrier.init_thread, barrier.init_line, message);
    }
}

// What this thread has initialised exists for TMA.
inline void fence_mbarriers() {
    for (int i = 0; i < state.mbarrier_count; ++i)
        if (state.mbarriers[i].init_thread == state.thread) state.mbarriers[i].fenced = true;
}

// One arrival of a warp, which releases what all its lanes have done. Deposits: first = the mbarrier.
inline void arrive_for_warp(Warp& warp) {
    const int first_thread = (int)(&warp - state.warp) * 32;
    if (ts_twin_counter* totals = counter(fiber().line)) ++totals->warp_collectives;
    for (int lane = 1; lane < 32; ++lane)
        if (warp.deposits[lane].first != warp.deposits[0].first)
            fail(MBARRIER, first_thread + lane, "arrives at another mbarrier than lane 0 of its warp");
    const int index = find_mbarrier((const char*)warp.deposits[0].first, "arrives at");
    note_use(index);
    join(state.mbarriers[index].arrived, released_by(first_thread));
    arrive_at(index);
}

inline bool phase_is_over(int index, int parity) { return (state.mbarriers[index].completed & 1) != parity; }
inline void acquire(int index) {
    note_use(index);
    join(&known(state.thread, 0), state.mbarriers[index].released);
}

inline void check_parity(int parity) {
    if (parity != 0 && parity != 1) fail(MBARRIER, state.thread, "waits for parity %d; a parity is 0 or 1", parity);
}

inline void wait_mbarrier(char* p, int parity) {
    check_parity(parity);
    const int index = find_mbarrier(p, "waits for");
    note_use(index);
    Fiber& self = fiber();
    while (!phase_is_over(index, parity)) {
        self.mbarrier = index;
        self.parity = parity;
        wait_for(PHASE);
        yield();
    }
    acquire(index);
}

// A thread that only asks must let the others go on, or what it asks for never happens.
inline bool test_mbarrier(char* p, int parity) {
    check_parity(parity);
    const int index = find_mbarrier(p, "tests");
    if (phase_is_over(index, parity)) {
        acquire(index);
        return true;
    }
    if (++state.idle_spins > 64 * state.threads) {
        state.idle_spins = 0;
        if (state.cluster && state.cluster->go_elsewhere()) return false;
        if (!fire_oldest_arrival() && !(state.cluster && state.cluster->await_data())) {
            Fiber& self = fiber();
            self.mbarrier = index;
            self.parity = parity;
            self.waiting = PHASE;
            fail_stuck();
        }
    }
    const int current = state.thread / 32, lane = state.thread % 32;
    // In order: the later lanes of the warp, then the other warps, so that nobody who polls starves another.
    const bool later = state.warp[current].runnable & ~((2u << lane) - 1);
    const int warp = later && !state.options->seed ? current : pick_warp((current + 1) % state.warps);
    switch_to_thread(warp * 32 + pick_lane(state.warp[warp], warp == current ? lane : 31));
    return false;
}

// The arrival is one of the expected ones (.noinc); it comes when the copies of this thread so far have landed.
inline void arrive_after_copies(char* p) {
    Fiber& self = fiber();
    const int index = find_mbarrier(p, "arrives at");
    append(self.arrivals, self.arrival_count, self.arrival_capacity) =
        AsyncArrival{index, self.line, self.copy_base + self.copy_count};
    ++state.pending_arrivals;
}

inline void fire_arrival(int thread) {
    Fiber& owner = state.fibers[thread];
    const AsyncArrival arrival = owner.arrivals[owner.first_arrival++];
    if (owner.first_arrival == owner.arrival_count) owner.first_arrival = owner.arrival_count = 0;
    --state.pending_arrivals;
    const int agent = MAX_THREADS + thread;
    while (owner.first_copy < owner.copy_count && owner.copy_base + owner.first_copy < arrival.end)
        land_copy(thread, agent);
    // Copies that wait_group made known before are events of the thread itself, and come before as well. What else the
    // thread did is not released: an asynchronous arrival orders its copies only.
    ts_u32* arrived = state.mbarriers[arrival.mbarrier].arrived;
    arrived[agent] = state.own_clock[agent]++;
    arrive_at(arrival.mbarrier);
}

inline bool fire_oldest_arrival() {
    if (!state.pending_arrivals) return state.tma.land_oldest_load && state.tma.land_oldest_load();
    for (int thread = 0; thread < state.threads; ++thread) {
        const Fiber& owner = state.fibers[thread];
        if (owner.first_arrival == owner.arrival_count) continue;
        fire_arrival(thread);
        return true;
    }
    return false;
}

inline void let_data_arrive() {
    move_early();
    if (state.tma.go_on) state.tma.go_on();
    if (state.warpgroups) state.warpgroups->pass_time();
    if (!state.pending_arrivals || !one_in(2)) return;
    const int first = (int)((next_random() >> 20) % state.threads);
    for (int i = 0; i < state.threads; ++i) {
        const int thread = (first + i) % state.threads;
        if (state.fibers[thread].first_arrival == state.fibers[thread].arrival_count) continue;
        fire_arrival(thread);
        return;
    }
}

}  // namespace ts_twin

TS_DEVICE void ts_barrier(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::block_barrier();
}

TS_DEVICE void ts_warp_barrier(TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    rendezvous(WARP_BARRIER, Deposit{}, [](Warp& warp) {
        join_warp((int)(&warp - state.warp) * 32);
        ++warp.epoch;
        if (ts_twin_counter* totals = counter(fiber().line)) ++totals->warp_collectives;
    });
}

TS_DEVICE void ts_barrier_of(int id, int threads, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::named_barrier(id, threads);
}

TS_DEVICE void ts_fence_async(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::fence_async();
}

TS_DEVICE void ts_mbarrier_init(char* barrier, int arrivals, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::init_mbarrier(barrier, arrivals);
}
TS_DEVICE void ts_mbarrier_invalidate(char* barrier, TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    invalidate_mbarrier(barrier);
}
TS_DEVICE void ts_mbarrier_arrive(char* barrier, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::arrive_mbarrier(barrier);
}
TS_DEVICE void ts_mbarrier_fence(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::fence_mbarriers();
}
TS_DEVICE void ts_mbarrier_expect(char* barrier, int bytes, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::expect_bytes(barrier, bytes);
}
TS_DEVICE void ts_mbarrier_arrive_after(char* barrier, ts_u32 word, TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    rendezvous(VOTE, Deposit{0, nullptr, barrier, nullptr}, arrive_for_warp);
}
TS_DEVICE ts_u32 ts_register_word(float x) {
    ts_u32 word;
    __builtin_memcpy(&word, &x, sizeof word);
    return word;
}
TS_DEVICE ts_u32 ts_register_word(bool x) { return x; }
TS_DEVICE ts_u32 ts_register_word(ts_i8 x) { return (ts_u32)x; }
TS_DEVICE ts_u32 ts_register_word(ts_i32 x) { return (ts_u32)x; }
TS_DEVICE ts_u32 ts_register_word(ts_i64 x) { return (ts_u32)(x ^ x >> 32); }
template <class T>
TS_DEVICE ts_u32 ts_register_word(T x) {
    return x.bits;
}
TS_DEVICE bool ts_mbarrier_test(char* barrier, int parity, TS_TWIN_LINE) {
    ts_twin::at(line);
    return ts_twin::test_mbarrier(barrier, parity);
}
TS_DEVICE void ts_mbarrier_wait(char* barrier, int parity, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::wait_mbarrier(barrier, parity);
}
TS_DEVICE void ts_cp_async_mbarrier_arrive(char* barrier, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::arrive_after_copies(barrier);
}
