// What happened before what: the shadow of watched memory, vector clocks, and mbarriers.
//
// Two accesses to one byte, of which one writes, must be ordered. Inside a block four things order them: the thread, a
// block barrier (a new epoch), a warp barrier between lanes of a warp (a new epoch of the warp), and an mbarrier phase
// whose arrival follows the first and whose wait precedes the second. The last one needs vector clocks (a row per thread:
// the clock of each other thread up to which everything is known to have happened), which exist from the first mbarrier
// of a launch on. Blocks are never ordered. Two threads that write the same value do not conflict (a reduced value is
// often written by each lane that holds it), and neither do two atomic updates.
//
// What happens in no thread is an event of an agent, which acts after what its thread did. A landing of cp.async that only
// an mbarrier announces is one of agent MAX_THREADS + thread; what wgmma reads, of agent WARP_AGENTS + warp, which acts for
// the first thread of its warp. A TMA load belongs to an agent of its mbarrier, the reads and the writes of a TMA store to
// one of its warp each: these count from the issue on, and only what a wait tells (never a block barrier, which waits for
// no TMA) orders anything behind them.
//
// The asynchronous units see shared memory through a proxy of their own. What ordinary stores wrote they see when its
// writer has executed ts_fence_async since, before whoever starts them goes on; mark_generic, mark_async and check_fenced
// keep account of it.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

constexpr int WARP_AGENTS = 2 * MAX_THREADS;
constexpr int LOAD_AGENTS = WARP_AGENTS + MAX_WARPS;      // by mbarrier
constexpr int READ_AGENTS = LOAD_AGENTS + MAX_MBARRIERS;  // by warp
constexpr int WRITE_AGENTS = READ_AGENTS + MAX_WARPS;
constexpr int AGENTS = WRITE_AGENTS + MAX_WARPS;
constexpr unsigned short MANY_WARPS = 0xFFFF;
constexpr unsigned short MANY_LANES = 0x8000;  // or-ed with the warp
constexpr unsigned short IS_MBARRIER = 0xFFFF;

struct Event {
    ts_u32 epoch, warp_epoch, clock;  // epoch 0: never
    int line;
    unsigned short thread;
    bool atomic;
};
// What is known of one granule: a byte of shared memory, an element of global memory.
struct Shadow {
    Event write, read;
    int readers;             // with clocks: a list of all reads since the write, index + 1, shared by many granules
    ts_u32 fences;           // of the writer when it wrote by an ordinary store, + 1; 0: an asynchronous unit wrote
    unsigned short copier;   // thread + 1 whose asynchronous copy into this byte is in flight, or IS_MBARRIER
    bool many_blocks;        // read by several blocks
};
struct Reader {
    Event event;
    int next;
    int references;  // granules whose list begins here, and readers that are followed by this one
};
struct Readers {
    Reader* nodes;
    int count, capacity;
    int free;  // a list as well
};
inline Readers readers;

inline ts_u32& known(int thread, int other) { return state.clocks[(ts_i64)thread * state.agents + other]; }

// Whether an epoch is of the running block. (Blocks of a cluster have theirs at the same time.)
inline bool is_own(ts_u32 epoch) { return epoch - state.first_epoch < state.epochs; }

// The thread that an agent acts for; a thread acts for itself. TMA's agents act when a copy is issued, by the running thread.
inline int thread_of(int agent) {
    if (agent >= LOAD_AGENTS) return state.thread;
    return agent < WARP_AGENTS ? agent % MAX_THREADS : (agent - WARP_AGENTS) * 32;
}

inline Event event_of(int thread, bool atomic = false) {
    const bool agent = thread >= MAX_THREADS;
    return Event{state.epoch, agent ? 0 : state.warp[thread / 32].epoch, state.clocks ? state.own_clock[thread] : 1,
                 state.fibers[thread_of(thread)].line, (unsigned short)thread, atomic};
}

// Whether an event of this block happened before what `thread` does now.
inline bool before(const Event& event, int thread) {
    thread = thread_of(thread);
    if (event.thread >= LOAD_AGENTS && is_own(event.epoch))
        return known(thread, event.thread) >= event.clock;
    if (event.epoch != state.epoch || event.thread == thread) return true;
    if (event.thread / 32 == thread / 32 && event.warp_epoch < state.warp[thread / 32].epoch) return true;
    return state.clocks && known(thread, event.thread) >= event.clock;
}

// Where a watched granule lies, for messages.
struct Place {
    int argument;  // -1: shared memory
    ts_i64 offset;
};
struct PlaceText {
    char data[48];
    explicit PlaceText(Place place) {
        if (place.argument < 0) __builtin_snprintf(data, sizeof data, "{shared %lld}", place.offset);
        else __builtin_snprintf(data, sizeof data, "{global %d %lld}", place.argument, place.offset);
    }
};

// Something touches what a TMA copy works on, and has not learnt that the copy is done.
[[noreturn]] inline void fail_tma_order(int kind, int self, const char* verb, Place place, const Event& copy) {
    const PlaceText where(place);
    const bool in_shared = place.argument < 0;
    if (copy.thread < READ_AGENTS)
        fail(in_shared ? IN_FLIGHT : kind, self,
             "%s %s, %s the TMA load at {line %d} copies, and has not waited for its phase of the mbarrier at {shared %lld}",
             verb, where.data, in_shared ? "into which" : "which", copy.line,
             state.mbarriers[copy.thread - LOAD_AGENTS].offset);
    if (in_shared)
        fail(IN_FLIGHT, self, "%s %s, which the TMA store at {line %d} reads, with no ts_tma_wait_read that covers it before",
             verb, where.data, copy.line);
    fail(kind, self, "%s %s, which the TMA store at {line %d} writes, with no ts_tma_wait that covers it before", verb,
         where.data, copy.line);
}

[[noreturn]] __attribute__((noinline, cold)) inline void fail_order(int kind, int thread, const char* verb, Place place,
                                                                    const char* other_verb, const Event& other) {
    const PlaceText where(place);
    const int self = thread_of(thread);
    if (!is_own(other.epoch))
        fail(kind, self, "%s %s, which another block %s at {line %d}: blocks run in any order", verb, where.data,
             other_verb, other.line);
    if (other.thread == MANY_WARPS)
        fail(kind, self, "%s %s, which threads of several warps %s at {line %d} with no barrier between", verb,
             where.data, other_verb, other.line);
    if (other.thread & MANY_LANES)
        fail(kind, self, "%s %s, which lanes of warp %d %s at {line %d} with no barrier between", verb, where.data,
             other.thread & ~MANY_LANES, other_verb, other.line);
    if (other.thread >= LOAD_AGENTS) fail_tma_order(kind, self, verb, place, other);
    if (other.thread >= WARP_AGENTS)
        fail(kind, self, "%s %s, which the wgmma of warp %d at {line %d} reads, with nothing between that follows its wait",
             verb, where.data, other.thread - WARP_AGENTS, other.line);
    if (other.thread >= MAX_THREADS)
        fail(kind, self, "%s %s, into which the cp.async of thread %d at {line %d} copied, and waited for no phase of its mbarrier",
             verb, where.data, other.thread - MAX_THREADS, other.line);
    fail(kind, self, "%s %s, which thread %d %s at {line %d} with no barrier between", verb, where.data, other.thread,
         other_verb, other.line);
}

// Returns its index + 1; it takes over one reference to `next`.
inline int new_reader(const Event& event, int next) {
    if (const int reused = readers.free) {
        readers.free = readers.nodes[reused - 1].next;
        readers.nodes[reused - 1] = Reader{event, next, 1};
        return reused;
    }
    if (readers.count == readers.capacity) {
        readers.capacity = readers.capacity ? 2 * readers.capacity : 4096;
        readers.nodes = (Reader*)__builtin_realloc(readers.nodes, readers.capacity * sizeof(Reader));
    }
    readers.nodes[readers.count++] = Reader{event, next, 1};
    return readers.count;
}

inline void release_readers(int list) {
    while (list && !--readers.nodes[list - 1].references) {
        const int next = readers.nodes[list - 1].next;
        readers.nodes[list - 1].next = readers.free;
        readers.free = list;
        list = next;
    }
}

// The list with the event at `place` replaced; the granules that share it keep theirs.
inline int copy_readers(int list, int place, const Event& event) {
    int first = 0, last = 0;
    for (int i = list;; i = readers.nodes[i - 1].next) {
        const int made = new_reader(i == place ? event : Event(readers.nodes[i - 1].event), 0);
        if (last) readers.nodes[last - 1].next = made;
        else first = made;
        last = made;
        if (i == place) break;
    }
    const int rest = readers.nodes[place - 1].next;
    readers.nodes[last - 1].next = rest;
    if (rest) ++readers.nodes[rest - 1].references;
    release_readers(list);
    return first;
}

inline void add_reader(Shadow& shadow, const Event& event) {
    bool alone = true;
    for (int i = shadow.readers; i; i = readers.nodes[i - 1].next) {
        alone = alone && readers.nodes[i - 1].references == 1;
        if (readers.nodes[i - 1].event.thread != event.thread) continue;
        if (alone) readers.nodes[i - 1].event = event;
        else shadow.readers = copy_readers(shadow.readers, i, event);
        return;
    }
    shadow.readers = new_reader(event, shadow.readers);
}

inline void forget_readers(Shadow& shadow) {
    release_readers(shadow.readers);
    shadow.readers = 0;
}

// Whether the granule holds something that this block, or any with `any_block`, wrote.
inline bool is_written(const Shadow& shadow, bool any_block) {
    return any_block ? shadow.write.epoch != 0 : is_own(shadow.write.epoch);
}

inline void watch_read(Shadow& shadow, int thread, Place place, const char* verb, bool blocks, bool atomic = false) {
    const Event event = event_of(thread, atomic);
    const Event& write = shadow.write;
    if (is_own(write.epoch) ? !before(write, thread) && !(atomic && write.atomic)
                            : blocks && write.epoch && !(atomic && write.atomic))
        fail_order(RACE, thread, verb, place, "wrote", write);
    Event& read = shadow.read;
    if (blocks && read.epoch && !is_own(read.epoch)) shadow.many_blocks = true;
    if (state.clocks) {
        if (shadow.readers && !is_own(read.epoch)) shadow.readers = 0;
        add_reader(shadow, event);
        read = event;
        return;
    }
    const int warp = thread / 32;
    const int reader_warp = read.thread & MANY_LANES ? read.thread & ~MANY_LANES : read.thread / 32;
    unsigned short reader = (unsigned short)thread;
    if (read.epoch != state.epoch || read.thread == thread) {
    } else if (read.thread == MANY_WARPS || reader_warp != warp) {
        reader = MANY_WARPS;
    } else if (read.warp_epoch == event.warp_epoch) {
        // (An older read of this warp that a warp barrier follows is ordered before whatever comes next.)
        reader = (unsigned short)(MANY_LANES | warp);
    }
    read = event;
    read.thread = reader;
}

// `same`: the granule holds already what is written.
inline void watch_write(Shadow& shadow, int thread, Place place, const char* verb, bool same, bool blocks,
                        bool atomic = false) {
    const Event event = event_of(thread, atomic);
    const Event &write = shadow.write, &read = shadow.read;
    const int conflict = blocks && !atomic && !write.atomic ? CONFLICTING_WRITES : RACE;
    if (!same && !(atomic && write.atomic) &&
        (is_own(write.epoch) ? !before(write, thread) : blocks && write.epoch))
        fail_order(conflict, thread, verb, place, "wrote", write);
    if (is_own(read.epoch)) {
        if (state.clocks) {
            for (int i = shadow.readers; i; i = readers.nodes[i - 1].next) {
                const Event& reader = readers.nodes[i - 1].event;
                if (!before(reader, thread) && !(atomic && reader.atomic))
                    fail_order(RACE, thread, verb, place, "read", reader);
            }
            forget_readers(shadow);
        } else if (read.epoch == state.epoch && read.thread != thread && !(atomic && read.atomic)) {
            const bool several = read.thread == MANY_WARPS;
            const int reader_warp = read.thread & MANY_LANES ? read.thread & ~MANY_LANES : read.thread / 32;
            if (several || reader_warp != thread / 32 || read.warp_epoch == event.warp_epoch)
                fail_order(RACE, thread, verb, place, "read", read);
        }
        if (blocks && shadow.many_blocks && !(atomic && read.atomic))
            fail(RACE, thread_of(thread), "%s %s, which other blocks read", verb, PlaceText(place).data);
    } else if (blocks && read.epoch && !(atomic && read.atomic)) {
        fail_order(RACE, thread, verb, place, "read", read);
    }
    shadow.write = event;
}

// Granules side by side mostly have one history: what an access makes of one it makes of the next that is the same.
struct Repeated {
    Shadow before, after;
    bool known = false;
    int old_list, new_list;  // of readers; what a block that is done has left is none

    bool repeats(Shadow& granule) const {
        if (!known || __builtin_memcmp(&granule, &before, sizeof(Shadow))) return false;
        if (new_list != old_list) {
            if (new_list) ++readers.nodes[new_list - 1].references;
            release_readers(old_list);
        }
        __builtin_memcpy(&granule, &after, sizeof(Shadow));
        return true;
    }
    void begin(const Shadow& granule) {
        __builtin_memcpy(&before, &granule, sizeof(Shadow));
        old_list = is_own(granule.read.epoch) ? granule.readers : 0;
    }
    void end(const Shadow& granule) {
        __builtin_memcpy(&after, &granule, sizeof(Shadow));
        new_list = is_own(granule.read.epoch) ? granule.readers : 0;
        known = true;
    }
};

// ---- proxies ---------------------------------------------------------------------------------------------------

// An ordinary store, or a copy that goes the same way (cp.async), of `thread` or its agent.
inline void mark_generic(Shadow& byte, int thread) { byte.fences = state.fences[thread_of(thread)] + 1; }
inline void mark_async(Shadow& byte) { byte.fences = 0; }

// The latest fences of each thread; that an older one came before everything asked about is taken for granted.
constexpr int FENCES_KEPT = 32;
inline Event& fence_event(int thread, ts_u32 number) {
    return state.fence_events[thread * FENCES_KEPT + number % FENCES_KEPT];
}
inline void fence_async() {
    if (!state.fence_events) state.fence_events = (Event*)__builtin_malloc(state.threads * FENCES_KEPT * sizeof(Event));
    fence_event(state.thread, state.fences[state.thread]++) = event_of(state.thread);
}

// An asynchronous unit reads a byte on behalf of `thread`.
inline void check_fenced(int thread, const Shadow& byte, ts_i64 offset, const char* verb) {
    if (!byte.fences || !is_written(byte, false)) return;
    const int writer = thread_of(byte.write.thread);
    const ts_u32 first = byte.fences - 1, count = state.fences[writer];  // of its fences, the first since the write
    if (count == first)
        fail(UNFENCED, thread_of(thread), "%s {shared %lld}, which thread %d wrote at {line %d} with no ts_fence_async of its own since",
             verb, offset, writer, byte.write.line);
    const Event& fence = fence_event(writer, first);
    if (count - first <= FENCES_KEPT && !before(fence, thread))
        fail(UNFENCED, thread_of(thread), "%s {shared %lld}, which thread %d wrote at {line %d}; nothing orders its ts_fence_async at {line %d} before",
             verb, offset, writer, byte.write.line, fence.line);
}

// ---- clocks ----------------------------------------------------------------------------------------------------

constexpr int MAX_CLUSTER = 8;  // blocks

// Rows of clocks, all zero.
inline ts_u32* new_clocks(int rows) {
    return (ts_u32*)__builtin_calloc((ts_i64)rows * state.agents, sizeof(ts_u32)) + state.agents_before;
}
inline void clear_clocks(ts_u32* clocks, int rows = 1) {
    __builtin_memset(clocks - state.agents_before, 0, (ts_i64)rows * state.agents * sizeof(ts_u32));
}
inline void free_clocks(ts_u32* clocks) {
    if (clocks) __builtin_free(clocks - state.agents_before);
}
inline void copy_clocks(ts_u32* into, const ts_u32* from) {
    __builtin_memcpy(into - state.agents_before, from - state.agents_before, state.agents * sizeof(ts_u32));
}

inline void join(ts_u32* into, const ts_u32* from) {
    const int end = state.agents - state.agents_before;
    for (int i = -state.agents_before; i < end; ++i) into[i] = into[i] > from[i] ? into[i] : from[i];
}

// Everything that the thread did and knows goes into `into`.
inline void release(int thread, ts_u32* into) {
    join(into, &known(thread, 0));
    into[thread] = state.own_clock[thread]++;
}

// What some threads (the lanes of a warp) did and know, until the next call.
inline ts_u32* released_by(int first_thread, int threads = 32) {
    static ts_u32 row[MAX_CLUSTER * AGENTS];
    ts_u32* all = row + state.agents_before;
    clear_clocks(all);
    for (int i = 0; i < threads; ++i) release(first_thread + i, all);
    return all;
}

// A warp barrier: each lane knows what all lanes know.
inline void join_warp(int first_thread) {
    if (!state.clocks) return;
    const ts_u32* all = released_by(first_thread);
    for (int lane = 0; lane < 32; ++lane) copy_clocks(&known(first_thread + lane, 0), all);
}

// A block barrier: everybody knows everything. Epochs say so of accesses; arrivals pass it on by clocks.
inline void join_block() {
    if (!state.clocks) return;
    for (int thread = 0; thread < state.threads; ++thread) {
        for (int other = 0; other < state.threads; ++other) known(thread, other) = state.own_clock[other];
        if (thread) join(&known(0, 0), &known(thread, 0));
    }
    for (int thread = 1; thread < state.threads; ++thread) copy_clocks(&known(thread, 0), &known(0, 0));
    for (int thread = 0; thread < state.threads; ++thread) ++state.own_clock[thread];
}

inline void start_clocks() {
    if (!state.clocks) {
        state.clocks = new_clocks(state.threads);
        state.named_clocks = new_clocks(NAMED_BARRIERS);
        state.own_clock = (ts_u32*)__builtin_malloc(AGENTS * sizeof(ts_u32));
    }
    for (int i = 0; i < AGENTS; ++i) state.own_clock[i] = 1;
}

inline void reset_clocks() {  // a new block
    readers.count = readers.free = 0;
    for (int i = 0; i < state.mbarrier_count; ++i) {
        free_clocks(state.mbarriers[i].arrived);
        free_clocks(state.mbarriers[i].released);
        __builtin_free(state.mbarriers[i].uses);
    }
    state.mbarrier_count = state.pending_arrivals = state.load_count = state.store_count = 0;
    if (!state.clocks) return;
    clear_clocks(state.clocks, state.threads);
    start_clocks();
}

}  // namespace ts_twin
