// Clusters: blocks that run at the same time and reach into each other's shared memory.
//
// The state of one block of the cluster is in place, that of the others is parked: a fiber always finds its own block's.
// Blocks take turns where the running one cannot go on, and at random moments. Reaching into another block is a visit: its
// state comes into place for as long, and what is wrong there is reported by the visiting thread.
//
// Clocks order the blocks of a cluster. A row has those of all their agents, a phase of an mbarrier passes on what arrivals
// from other blocks release, and a copy into another block's memory must know of all that touched it there. The barrier of
// the cluster orders nothing but initialisations of mbarriers, as its arrivals are relaxed. Global memory is ordered
// between blocks of a cluster as little as between others.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

struct ClusterBlock {
    BlockState state;
    BlockProducts products;
    bool returned;
};
struct Cluster {
    ClusterBlock* blocks;  // parked: that of the running block is out of date
    int count, running, arrived;
    ts_u32 epoch;
    ts_i64* done;  // numbers of the first blocks of clusters that have run
    int done_count, done_capacity;
};
inline Cluster cluster;

// Brings the state of a block into place.
inline void load_block(int rank) {
    if (rank == cluster.running) return;
    ClusterBlock& old = cluster.blocks[cluster.running];
    const ClusterBlock& next = cluster.blocks[rank];
    old.state = state;
    old.products = products;
    static_cast<BlockState&>(state) = next.state;
    products = next.products;
    cluster.running = rank;
}

// ---- turns -----------------------------------------------------------------------------------------------------

inline bool can_run(const BlockState& block) {
    for (int warp = 0; warp < state.warps; ++warp)
        if (block.warp[warp].runnable) return true;
    return false;
}

// From a fiber, of whatever block, to one of the block in place; until somebody comes back.
inline void enter_block(Fiber& from) {
    const int warp = pick_warp(state.thread / 32);
    state.thread = warp * 32 + pick_lane(state.warp[warp], 31);
    switch_fibers(from, fiber());
}

inline bool go_elsewhere() {
    int candidates[MAX_CLUSTER], count = 0;
    for (int i = 1; i < cluster.count; ++i) {
        const int rank = (cluster.running + i) % cluster.count;
        if (can_run(cluster.blocks[rank].state)) candidates[count++] = rank;
    }
    if (!count) return false;
    Fiber& from = fiber();
    load_block(candidates[state.options->seed ? (next_random() >> 20) % count : 0]);
    enter_block(from);
    return true;
}

inline bool await_data() {
    Fiber& from = fiber();
    const int home = cluster.running;
    for (int i = 1; i < cluster.count; ++i) {
        load_block((home + i) % cluster.count);
        while (!can_run(state) && fire_oldest_arrival()) {
        }
        if (!can_run(state)) continue;
        enter_block(from);
        return true;
    }
    load_block(home);
    return false;
}

inline void leave_block() {
    cluster.blocks[cluster.running].returned = true;
    int left = 0;
    for (int rank = 0; rank < cluster.count; ++rank) left += !cluster.blocks[rank].returned;
    if (left && !go_elsewhere() && !await_data()) fail_stuck();
}

inline void find_stuck() {
    int best = cluster.running, best_rank = -1;
    for (int i = 0; i < cluster.count; ++i) {
        load_block((cluster.running + (i > 0)) % cluster.count);
        for (int thread = 0; thread < state.threads; ++thread) {
            const int waiting = state.fibers[thread].waiting, rank = waiting == PHASE ? 2 : waiting != NOTHING;
            if (rank > best_rank) best_rank = rank, best = cluster.running;
        }
    }
    load_block(best);
}

// ---- visits ----------------------------------------------------------------------------------------------------

// A thread in another block.
struct Visitor {
    const ts_u32* row;  // all that it knows, from the clocks of the first block on
    int line;
    // Whether what an agent of the visited block did happened before.
    bool knows(int agent, ts_u32 clock) const { return row[state.agents_before + agent] >= clock; }
    bool knows(const Event& event) const { return !is_own(event.epoch) || knows(event.thread, event.clock); }
};

struct Problem : Text {
    int kind;
};

// Calls act(visitor, problem) in the state of another block; what it writes into the problem's text is what is wrong.
template <class Act>
inline void visit(int rank, const char* verb, Act act) {
    if (rank < 0 || rank >= cluster.count)
        fail(SHARED_BOUNDS, state.thread, "%s block %d of a cluster of %d blocks", verb, rank, cluster.count);
    if (cluster.blocks[rank].returned)
        fail(IN_FLIGHT, state.thread, "%s block %d of the cluster, which has returned: no ts_cluster_barrier keeps it", verb,
             rank);
    if (!state.clocks) start_clocks();
    const Visitor visitor{&known(state.thread, 0) - state.agents_before, fiber().line};
    const int home = cluster.running;
    Problem problem{{}, MBARRIER};
    load_block(rank);
    act(visitor, problem);
    load_block(home);
    if (problem.length) fail(problem.kind, state.thread, "%s block %d of the cluster%s", verb, rank, problem.data);
}

// An mbarrier of the visited block; -1 with a text where there is none.
inline int find_visited(ts_i64 offset, Problem& problem) {
    for (int i = 0; i < state.mbarrier_count; ++i) {
        const Mbarrier& barrier = state.mbarriers[i];
        if (barrier.offset != offset || !barrier.count) continue;
        if (barrier.shared) return i;
        problem.add(", whose mbarrier at {shared %lld} is initialised at {line %d} with no ts_mbarrier_fence and ts_cluster_barrier after that",
                    offset, barrier.init_line);
        return -1;
    }
    problem.add(", which has no mbarrier at {shared %lld}", offset);
    return -1;
}

// ---- arrivals --------------------------------------------------------------------------------------------------

// `released`: what the arriving threads did and know, a row as the visitor's.
inline void arrive_elsewhere(const char* p, int rank, const ts_u32* released) {
    const ts_i64 offset = check_shared(state.thread, p, 8, 8, "arrives at");
    visit(rank, "arrives at", [&](const Visitor&, Problem& problem) {
        const int index = find_visited(offset, problem);
        if (index < 0) return;
        Mbarrier& barrier = state.mbarriers[index];
        if (!barrier.missing)
            return problem.add(", whose mbarrier at {shared %lld} has its %d arrivals and waits for bytes (%lld of %lld)", offset,
                               barrier.count, barrier.landed, barrier.expected);
        join(barrier.arrived, released + state.agents_before);
        --barrier.missing;
        complete_phase(index);
    });
    if (rank != cluster.running) fiber().remote_line = fiber().line;
}

inline void finish_remote() {
    if (!fiber().remote_line) return;
    fiber().line = fiber().remote_line;
    fail(IN_FLIGHT, state.thread, "%s",
         "arrives at another block of the cluster, and no ts_cluster_barrier follows: that block may have returned");
}

// ---- loads -----------------------------------------------------------------------------------------------------

struct AgentText {
    char data[64];
    explicit AgentText(int agent, const char* verb) {
        if (agent >= READ_AGENTS) __builtin_snprintf(data, sizeof data, "a TMA store reads");
        else if (agent >= LOAD_AGENTS) __builtin_snprintf(data, sizeof data, "a TMA load copies");
        else if (agent >= WARP_AGENTS) __builtin_snprintf(data, sizeof data, "the wgmma of its warp %d reads", agent - WARP_AGENTS);
        else __builtin_snprintf(data, sizeof data, "its thread %d %s", agent % MAX_THREADS, verb);
    }
};

// A byte of the visited block that a copy is about to write, by what the visitor knows.
inline void check_visited(const Visitor& visitor, ts_i64 offset, Problem& problem) {
    Shadow& byte = state.shadow[offset];
    if (byte.copier) return problem.add(", at {shared %lld}, which is an mbarrier or waits for cp.async", offset);
    const Event* other = visitor.knows(byte.write) ? nullptr : &byte.write;
    const char* verb = other ? "writes" : "reads";
    const bool reads = is_own(byte.read.epoch);
    for (int i = reads ? byte.readers : 0; i && !other; i = readers.nodes[i - 1].next)
        if (!visitor.knows(readers.nodes[i - 1].event)) other = &readers.nodes[i - 1].event;
    if (other)
        return problem.add(", over {shared %lld}, which %s at {line %d}: nothing tells the copying thread that it is done",
                           offset, AgentText(other->thread, verb).data, other->line);
    if (byte.fences && is_own(byte.write.epoch)) {
        const int writer = thread_of(byte.write.thread);
        const ts_u32 first = byte.fences - 1, count = state.fences[writer];
        if (count == first || (count - first <= FENCES_KEPT && !visitor.knows(fence_event(writer, first))))
            return problem.add(", over {shared %lld}, which its thread %d wrote at {line %d} with no ts_fence_async since",
                               offset, writer, byte.write.line);
    }
    if (reads) forget_readers(byte);
}

inline void load_elsewhere(int rank, ts_i64 offset, const Box& box, ts_i64 barrier) {
    visit(rank, "copies to", [&](const Visitor& visitor, Problem& problem) {
        const int index = find_visited(barrier, problem);
        problem.kind = index < 0 ? MBARRIER : RACE;
        for (int i = 0; i < box.bytes && state.shadow && !problem.length; ++i) check_visited(visitor, offset + i, problem);
        if (problem.length) return;
        const int agent = LOAD_AGENTS + index;
        const Event write{state.epoch, 0, state.own_clock[agent], visitor.line, (unsigned short)agent, false};
        for (int i = 0; i < box.bytes && state.shadow; ++i) state.shadow[offset + i].write = write;
        start_load(index, offset, box, visitor.line);
    });
}

inline void issue_multicast(char* dst, const Box& box, const char* p, int mask) {
    if (mask <= 0 || mask > 0xFFFF) fail(SHARED_BOUNDS, state.thread, "copies to the blocks of the mask %d", mask);
    const ts_i64 barrier = check_shared(state.thread, p, 8, 8, "copies with");
    const ts_i64 offset = check_place(dst, box, "copies to");
    start_tma();
    // (A copy that does not come here as well has no barrier of this block: its thread is named for it.)
    read_box(mask >> cluster.running & 1 ? LOAD_AGENTS + find_mbarrier(p, "copies with") : state.thread, box);
    for (int rank = 0; rank < 16; ++rank) {
        if (!(mask >> rank & 1)) continue;
        if (rank == cluster.running) issue_load(dst, box, p, false);
        else load_elsewhere(rank, offset, box, barrier);
    }
}

// ---- the barrier of the cluster --------------------------------------------------------------------------------

inline void pass_cluster_barrier() {
    const int home = cluster.running;
    cluster.arrived = 0;
    for (int rank = 0; rank < cluster.count; ++rank) {
        load_block(rank);
        state.idle_spins = 0;
        for (int i = 0; i < state.mbarrier_count; ++i) state.mbarriers[i].shared |= state.mbarriers[i].fenced;
        for (int thread = 0; thread < state.threads; ++thread) {
            state.fibers[thread].remote_line = 0;
            wake(thread);
        }
    }
    load_block(home);
    if (ts_twin_counter* totals = counter(fiber().line)) ++totals->barriers;
}

inline void cluster_barrier() {
    wait_for(CLUSTER_BARRIER);
    if (++cluster.arrived == cluster.count * state.threads) pass_cluster_barrier();
    yield();
}

// ---- launches --------------------------------------------------------------------------------------------------

inline constexpr ClusterSteps cluster_steps{go_elsewhere, await_data, leave_block, finish_remote, find_stuck};

inline void open_clusters(const Memory& memory) {
    cluster.blocks = (ClusterBlock*)__builtin_calloc(cluster.count, sizeof(ClusterBlock));
    cluster.running = 0;
    state.cluster = &cluster_steps;
    for (int rank = cluster.count - 1; rank >= 0; --rank) {
        load_block(rank);
        open_block(memory, rank);
    }
}

inline void run_cluster(ts_i64 number) {
    const ts_i64 first = number / cluster.count * cluster.count;
    for (int i = 0; i < cluster.done_count; ++i)
        if (cluster.done[i] == first) return;
    if (state.options->blocks) append(cluster.done, cluster.done_count, cluster.done_capacity) = first;
    cluster.arrived = 0;
    for (int rank = 0; rank < cluster.count; ++rank) {
        load_block(rank);
        cluster.blocks[rank].returned = false;
        state.epoch = cluster.epoch;
        cluster.epoch += state.epochs;
        place_block(first + rank);
        begin_block();
    }
    load_block(state.options->seed ? (next_random() >> 20) % cluster.count : 0);
    run_threads();
    for (int rank = 0; rank < cluster.count; ++rank) {
        load_block(rank);
        end_block();
    }
}

inline void close_clusters() {
    for (int rank = 0; rank < cluster.count; ++rank) {
        load_block(rank);
        close_block();
    }
    __builtin_free(cluster.blocks);
    __builtin_free(cluster.done);
    cluster = Cluster{};
}

template <int BLOCKS>
inline const ClusterLaunch* cluster_launch() {
    static_assert(1 <= BLOCKS && BLOCKS <= MAX_CLUSTER, "a cluster has 1 to 8 blocks");
    cluster.count = BLOCKS;
    if constexpr (BLOCKS == 1) return nullptr;
    else {
        static constexpr ClusterLaunch launch{BLOCKS, open_clusters, run_cluster, close_clusters};
        return &launch;
    }
}

}  // namespace ts_twin

TS_DEVICE int ts_cluster_rank(TS_TWIN_LINE) {
    ts_twin::at(line);
    return ts_twin::cluster.running;
}
TS_DEVICE void ts_cluster_barrier(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::cluster_barrier();
}
TS_DEVICE void ts_mbarrier_arrive_cluster(char* barrier, int rank, TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    if (rank == cluster.running) return arrive_mbarrier(barrier);
    if (!state.clocks) start_clocks();
    arrive_elsewhere(barrier, rank, released_by(state.thread, 1) - state.agents_before);
}
// Deposits: detail = blocks, first = the mbarrier.
TS_DEVICE void ts_mbarrier_arrive_cluster_after(char* barrier, ts_u32 word, int blocks, TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    rendezvous(VOTE, Deposit{blocks, nullptr, barrier, nullptr}, [](Warp& warp) {
        const int first_thread = (int)(&warp - state.warp) * 32, count = warp.deposits[0].detail;
        const char* p = (const char*)warp.deposits[0].first;
        if (ts_twin_counter* totals = counter(fiber().line)) ++totals->warp_collectives;
        for (int lane = 1; lane < 32; ++lane)
            if (warp.deposits[lane].first != p || warp.deposits[lane].detail != count)
                fail(MBARRIER, first_thread + lane, "arrives at another mbarrier than lane 0 of its warp");
        if (!state.clocks) start_clocks();
        const ts_u32* released = released_by(first_thread);
        for (int rank = 0; rank < count; ++rank) {
            if (rank != cluster.running) {
                arrive_elsewhere(p, rank, released - state.agents_before);
                continue;
            }
            const int index = find_mbarrier(p, "arrives at");
            note_use(index);
            join(state.mbarriers[index].arrived, released);
            arrive_at(index);
        }
    });
}

TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0, int c1,
                                     TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_multicast(dst, ts_twin::box_at(map, {c0, c1}), barrier, mask);
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0, int c1,
                                     int c2, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_multicast(dst, ts_twin::box_at(map, {c0, c1, c2}), barrier, mask);
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0, int c1,
                                     int c2, int c3, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_multicast(dst, ts_twin::box_at(map, {c0, c1, c2, c3}), barrier, mask);
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0, int c1,
                                     int c2, int c3, int c4, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_multicast(dst, ts_twin::box_at(map, {c0, c1, c2, c3, c4}), barrier, mask);
}
