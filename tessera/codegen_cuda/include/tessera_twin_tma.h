// TMA: copies of whole boxes of a tensor between global and shared memory.
//
// A copy is checked when it is issued, by what its thread knows then, and from that moment on counts as an access of its
// agent: whoever touches its bytes must have learnt from a wait that it is done. The bytes themselves move at a random
// moment between the issue and that wait, and with seed 0 at the last one.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

struct Box {
    const ts_tensor_map* map;
    ts_i64 first[5];  // coordinates
    int bytes;
};
struct TmaLoad {
    Box box;
    ts_i64 offset;  // of its place in the shared block
    int thread, line, mbarrier;
    ts_i64 phase;  // of the mbarrier, at the issue
    ts_u32 clock;
};
struct TmaStore {
    Box box;
    ts_i64 offset;
    int thread, group;
};
// Of one thread. The clocks are those of the last store up to here.
struct BulkGroup {
    int line;  // of its last store; 0: it has none
    ts_u32 read_clock, write_clock;
};

// ---- boxes -----------------------------------------------------------------------------------------------------

// What the driver's encoder and the hardware ask of a map. A box narrower than its swizzle leaves gaps between its rows
// by rules that nothing here relies on, so it is refused.
inline void check_map(const ts_tensor_map& map) {
    const int thread = state.thread;
    if (map.rank < 2 || map.rank > 5) fail(BAD_LAUNCH, thread, "uses a tensor map of rank %d; it is 2 to 5", map.rank);
    if (map.item != 1 && map.item != 2 && map.item != 4 && map.item != 8)
        fail(BAD_LAUNCH, thread, "uses a tensor map of elements of %d bytes", map.item);
    if (map.swizzle != 0 && map.swizzle != 32 && map.swizzle != 64 && map.swizzle != 128)
        fail(BAD_LAUNCH, thread, "uses a tensor map with a swizzle of %d bytes; it is 0, 32, 64 or 128", map.swizzle);
    if ((ts_u64)map.base % 16)
        fail(MISALIGNED, thread, "%s", "uses a map of a tensor whose address is not a multiple of 16");
    if (map.strides[0] != map.item)
        fail(BAD_LAUNCH, thread, "uses a tensor map whose innermost stride is %lld bytes, not the %d of an element",
             map.strides[0], map.item);
    for (int axis = 0; axis < map.rank; ++axis) {
        if (map.sizes[axis] < 1 || map.sizes[axis] > 1ll << 32)
            fail(BAD_LAUNCH, thread, "uses a tensor map of %lld elements on axis %d; it is 1 to 2^32", map.sizes[axis], axis);
        if (map.box[axis] < 1 || map.box[axis] > 256)
            fail(BAD_LAUNCH, thread, "uses a tensor map with a box of %d elements on axis %d; it is 1 to 256",
                 map.box[axis], axis);
        if (axis && map.strides[axis] % 16)
            fail(MISALIGNED, thread, "uses a tensor map whose stride on axis %d is %lld bytes, which is not a multiple of 16",
                 axis, map.strides[axis]);
        if (map.strides[axis] < 0 || map.strides[axis] >= 1ll << 40)
            fail(BAD_LAUNCH, thread, "uses a tensor map whose stride on axis %d is %lld bytes; it is 0 to 2^40 - 1", axis,
                 map.strides[axis]);
    }
    const int row = map.box[0] * map.item;
    if (row % 16) fail(MISALIGNED, thread, "uses a tensor map whose box has rows of %d bytes, not of a multiple of 16", row);
    if (map.swizzle && row != map.swizzle)
        fail(BAD_LAUNCH, thread, "uses a tensor map with rows of %d bytes in its box and a swizzle of %d; they must be equal",
             row, map.swizzle);
}

template <int RANK>
inline Box box_at(const ts_tensor_map& map, const int (&first)[RANK]) {
    check_map(map);
    if (map.rank != RANK)
        fail(BAD_LAUNCH, state.thread, "gives %d coordinates to a tensor map of rank %d", RANK, map.rank);
    Box box{&map, {}, map.item};
    for (int axis = 0; axis < RANK; ++axis) {
        box.first[axis] = first[axis];
        box.bytes *= map.box[axis];
    }
    return box;
}

// A row of a box, along the innermost axis: `inside` of its bytes, from `skipped` on, are the tensor's, at `global`.
struct Row {
    int start;  // in the box, in bytes
    int skipped, inside;
    const char* global;
};
constexpr int MAX_ROW_BYTES = 256 * 8;

template <class Visit>
inline void each_row(const Box& box, Visit visit) {
    const ts_tensor_map& map = *box.map;
    const ts_i64 before = box.first[0] < 0 ? -box.first[0] : 0, left = map.sizes[0] - box.first[0];
    const ts_i64 end = left < map.box[0] ? left : map.box[0];
    int index[5] = {};
    for (int start = 0; start < box.bytes; start += map.box[0] * map.item) {
        ts_i64 distance = (box.first[0] + before) * map.item;
        bool inside = before < end;
        for (int axis = 1; axis < map.rank; ++axis) {
            const ts_i64 at = box.first[axis] + index[axis];
            inside = inside && at >= 0 && at < map.sizes[axis];
            distance += at * map.strides[axis];
        }
        if (inside)
            visit(Row{start, (int)before * map.item, (int)(end - before) * map.item, map.base + distance});
        else
            visit(Row{start, 0, 0, map.base});
        for (int axis = 1; axis < map.rank && ++index[axis] == map.box[axis]; ++axis) index[axis] = 0;
    }
}

// Where a byte of the shared block lies under a swizzle: XOR of address bits, in chunks of 16 bytes. 128: bits 4-6 with
// 7-9; 64: 4-5 with 7-8; 32: 4 with 7.
inline ts_i64 swizzled(ts_i64 offset, int swizzle) {
    return swizzle ? offset ^ (offset >> 3 & (swizzle - 16)) : offset;
}

// Calls visit(offset in the shared block, byte of the row, bytes) for the stretches of a row's inside.
template <class Visit>
inline void each_chunk(const Box& box, ts_i64 offset, const Row& row, Visit visit) {
    for (int i = row.skipped; i < row.skipped + row.inside;) {
        const int end = (i / 16 + 1) * 16, stop = end < row.skipped + row.inside ? end : row.skipped + row.inside;
        visit(swizzled(offset + row.start + i, box.map->swizzle), i, stop - i);
        i = stop;
    }
}

inline ts_i64 check_place(const char* p, const Box& box, const char* verb) {
    return check_shared(state.thread, p, box.bytes, box.map->swizzle ? 8 * box.map->swizzle : 128, verb);
}

// Bytes that a copy touches: no ordinary store of them may still be on its way to where TMA sees it.
inline void check_proxy(ts_i64 offset, int bytes, const char* verb) {
    for (int i = 0; i < bytes; ++i) check_fenced(state.thread, state.shadow[offset + i], offset + i, verb);
}

// Sectors of the rows of one copy; rows that follow each other in memory share theirs.
struct Sectors {
    ts_u64 next;
    ts_i64 count, bytes;
    void add(const Row& row) {
        if (!row.inside) return;
        const ts_u64 first = (ts_u64)row.global / 32, end = ((ts_u64)row.global + row.inside - 1) / 32 + 1;
        count += end - (bytes && first == next - 1 ? next : first);
        bytes += row.inside;
        next = end;
    }
    void report(ts_twin_traffic ts_twin_counter::* traffic) const {
        ts_twin_counter* totals = counter(fiber().line);
        if (totals && bytes) ts_twin::add(totals->*traffic, count, (bytes + 31) / 32, bytes);
    }
};

// ---- loads -----------------------------------------------------------------------------------------------------

inline void start_tma();

// The reads of a load, once for all blocks that it goes to; `agent` makes them.
inline void read_box(int agent, const Box& box) {
    Sectors sectors{};
    each_row(box, [&](const Row& row) {
        if (row.inside) read_global(agent, row.global, row.inside, 1, "copies from");
        sectors.add(row);
    });
    sectors.report(&ts_twin_counter::global_read);
}

// What a load leaves in the block where it arrives, from its issue on.
inline void start_load(int index, ts_i64 offset, const Box& box, int line) {
    Mbarrier& barrier = state.mbarriers[index];
    char* dst = state.shared + offset;
    for (int i = 0; state.shadow && i < box.bytes; ++i) mark_async(state.shadow[offset + i]);
    if (!one_in(2)) __builtin_memset(dst, POISON_BYTE, box.bytes);
    barrier.load_line = line;
    barrier.load_thread = state.thread;
    append(state.loads, state.load_count, state.load_capacity) =
        TmaLoad{box, offset, state.thread, line, index, barrier.completed, state.own_clock[LOAD_AGENTS + index]++};
}

// `reads`: a load to several blocks has read what it copies already.
inline void issue_load(char* dst, const Box& box, const char* p, bool reads = true) {
    const int index = find_mbarrier(p, "copies with"), agent = LOAD_AGENTS + index;
    Mbarrier& barrier = state.mbarriers[index];
    if (!barrier.fenced)
        fail(MBARRIER, state.thread, "copies with the mbarrier at {shared %lld}, which thread %d initialises at {line %d} with no ts_mbarrier_fence after that",
             barrier.offset, barrier.init_thread, barrier.init_line);
    const ts_i64 offset = check_place(dst, box, "copies to");
    start_tma();
    note_use(index);
    if (reads) read_box(agent, box);
    // (A swizzle moves chunks within the box.)
    if (state.shadow) {
        check_proxy(offset, box.bytes, "copies to");
        shadow_write(agent, offset, box.bytes, nullptr, "copies to");
    }
    start_load(index, offset, box, fiber().line);
}

inline void move(const TmaLoad& load) {
    const ts_tensor_map& map = *load.box.map;
    each_row(load.box, [&](const Row& row) {
        char bytes[MAX_ROW_BYTES] = {};
        __builtin_memcpy(bytes + row.skipped, row.global, row.inside);
        for (int i = 0; i < map.box[0] * map.item; i += 16)
            __builtin_memcpy(state.shared + swizzled(load.offset + row.start + i, map.swizzle), bytes + i, 16);
    });
}

template <class T>
inline T taken(T* items, int& count, int index) {
    const T item = items[index];
    __builtin_memmove(items + index, items + index + 1, (--count - index) * sizeof(T));
    return item;
}

inline void land_load(int which) {
    const TmaLoad load = taken(state.loads, state.load_count, which);
    Mbarrier& barrier = state.mbarriers[load.mbarrier];
    if (barrier.completed != load.phase) {
        state.fibers[load.thread].line = load.line;
        fail(MBARRIER, load.thread, "copies %d bytes by TMA with the mbarrier at {shared %lld}, whose phase completes before they are there: it expects fewer bytes than it gets",
             load.box.bytes, barrier.offset);
    }
    move(load);
    ts_u32& clock = barrier.arrived[LOAD_AGENTS + load.mbarrier];
    clock = load.clock > clock ? load.clock : clock;
    barrier.landed += load.box.bytes;
    complete_phase(load.mbarrier);
}

inline bool land_oldest_load() {
    if (!state.load_count) return false;
    land_load(0);
    return true;
}

inline bool awaits_load(int mbarrier) {
    for (int i = 0; i < state.load_count; ++i)
        if (state.loads[i].mbarrier == mbarrier) return true;
    return false;
}

// At the end of a block: whoever loads must also wait, or the copy may still write when the memory is another block's.
inline bool finish_loads() {
    for (int index = 0; index < state.mbarrier_count; ++index) {
        const Mbarrier& barrier = state.mbarriers[index];
        const ts_u32 last = state.own_clock[LOAD_AGENTS + index] - 1;
        bool waited = last == 0;
        for (int thread = 0; thread < state.threads && !waited; ++thread)
            waited = known(thread, LOAD_AGENTS + index) >= last;
        if (waited) continue;
        char message[200];
        __builtin_snprintf(message, sizeof message,
                           "ends while the TMA load at {line %d} may be under way: no thread has waited for its phase of "
                           "the mbarrier at {shared %lld}",
                           barrier.load_line, barrier.offset);
        record(IN_FLIGHT, barrier.load_thread, barrier.load_line, message);
        return false;
    }
    return true;
}

// ---- stores ----------------------------------------------------------------------------------------------------

inline void begin_group() {
    Fiber& self = fiber();
    const BulkGroup last = self.group_count ? self.groups[self.group_count - 1] : BulkGroup{};
    append(self.groups, self.group_count, self.group_capacity) = BulkGroup{0, last.read_clock, last.write_clock};
}

// Bytes of a row that a store writes.
inline void collect(char* bytes, const Box& box, ts_i64 offset, const Row& row) {
    each_chunk(box, offset, row, [&](ts_i64 from, int i, int count) { __builtin_memcpy(bytes + i, state.shared + from, count); });
}

inline void issue_store(const Box& box, const char* src) {
    start_tma();
    Fiber& self = fiber();
    const ts_i64 offset = check_place(src, box, "copies from");
    const int reader = READ_AGENTS + state.thread / 32, writer = WRITE_AGENTS + state.thread / 32;
    Sectors sectors{};
    each_row(box, [&](const Row& row) {
        if (!row.inside) return;
        each_chunk(box, offset, row, [&](ts_i64 from, int, int count) {
            if (!state.shadow) return;
            shadow_read(reader, from, count);
            check_proxy(from, count, "copies from");
        });
        char bytes[MAX_ROW_BYTES];
        collect(bytes, box, offset, row);
        watch_global_write(writer, row.global, bytes + row.skipped, row.inside, 1);
        sectors.add(row);
    });
    sectors.report(&ts_twin_counter::global_write);
    if (!self.group_count) begin_group();
    self.groups[self.group_count - 1] = BulkGroup{self.line, state.own_clock[reader]++, state.own_clock[writer]++};
    append(state.stores, state.store_count, state.store_capacity) =
        TmaStore{box, offset, state.thread, self.group_count - 1};
}

inline void move_store(int which) {
    const TmaStore store = taken(state.stores, state.store_count, which);
    each_row(store.box, [&](const Row& row) {
        char bytes[MAX_ROW_BYTES];
        collect(bytes, store.box, store.offset, row);
        __builtin_memcpy((char*)row.global, bytes + row.skipped, row.inside);
    });
}

inline void commit_stores() {
    if (!fiber().group_count) begin_group();
    begin_group();
}

// All committed groups but the youngest `in_flight` have read their sources, and with `written` reached their tensors.
inline void wait_stores(int in_flight, bool written) {
    Fiber& self = fiber();
    const int done = self.group_count - 1 - in_flight;
    if (done <= 0) return;
    for (int i = 0; i < state.store_count;)
        if (state.stores[i].thread == state.thread && state.stores[i].group < done) move_store(i);
        else ++i;
    self.groups_read = done > self.groups_read ? done : self.groups_read;
    if (!state.clocks) return;
    const BulkGroup& last = self.groups[done - 1];
    ts_u32& read = known(state.thread, READ_AGENTS + state.thread / 32);
    read = last.read_clock > read ? last.read_clock : read;
    ts_u32& write = known(state.thread, WRITE_AGENTS + state.thread / 32);
    if (written && last.write_clock > write) write = last.write_clock;
}

inline void finish_stores() {
    Fiber& self = fiber();
    for (int i = self.groups_read; i < self.group_count; ++i) {
        if (!self.groups[i].line) continue;
        self.line = self.groups[i].line;
        fail(IN_FLIGHT, state.thread, "returns while its TMA store may still read shared memory: %s is missing",
             i == self.group_count - 1 ? "ts_tma_commit" : "ts_tma_wait_read<0>");
    }
}

// Any of what is under way goes on, at a random moment.
inline void go_on() {
    if (state.load_count && one_in(2)) land_load((int)((next_random() >> 20) % state.load_count));
    if (state.store_count && one_in(2)) move_store((int)((next_random() >> 20) % state.store_count));
}

inline void start_tma() {
    if (!state.clocks) start_clocks();
    state.tma = TmaSteps{land_oldest_load, go_on, finish_stores, finish_loads};
}

// A line that no coordinate can be taken for: the functions below are overloaded by the number of coordinates.
struct Line {
    int number;
};
#define TS_TWIN_TMA_LINE ts_twin::Line line = {__builtin_LINE()}

}  // namespace ts_twin

TS_DEVICE void ts_prefetch_map(const ts_tensor_map& map, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::check_map(map);
}

TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_load(dst, ts_twin::box_at(map, {c0, c1}), barrier);
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2,
                            TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_load(dst, ts_twin::box_at(map, {c0, c1, c2}), barrier);
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2, int c3,
                            TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_load(dst, ts_twin::box_at(map, {c0, c1, c2, c3}), barrier);
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2, int c3, int c4,
                            TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_load(dst, ts_twin::box_at(map, {c0, c1, c2, c3, c4}), barrier);
}

TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_store(ts_twin::box_at(map, {c0, c1}), src);
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2, TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_store(ts_twin::box_at(map, {c0, c1, c2}), src);
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2, int c3,
                             TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_store(ts_twin::box_at(map, {c0, c1, c2, c3}), src);
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2, int c3, int c4,
                             TS_TWIN_TMA_LINE) {
    ts_twin::at(line.number);
    ts_twin::issue_store(ts_twin::box_at(map, {c0, c1, c2, c3, c4}), src);
}
TS_DEVICE void ts_tma_commit(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::commit_stores();
}
template <int N>
TS_DEVICE void ts_tma_wait_read(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::wait_stores(N, false);
}
template <int N>
TS_DEVICE void ts_tma_wait(TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_twin::wait_stores(N, true);
}
