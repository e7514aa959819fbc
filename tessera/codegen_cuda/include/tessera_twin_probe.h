// Probes: what threads hold in registers and what lies in shared buffers at places of a kernel, recorded while it runs.
// tessera/runtime/probes_text.py writes the calls into a copy of emitted text, probes_records.py reads what they left.
// Records of one thread are in the order in which it made them.
#pragma once

// Layout shared with tessera/runtime/probes_records.py; change both together.
struct ts_twin_probe_record {
    int probe, thread;
    ts_i64 bytes;  // of the data that follows, which is padded to a multiple of 8
};

namespace ts_twin __attribute__((visibility("hidden"))) {

// A block that leaves more is abandoned, and its last record is one of probe -1. Loops that never end come here.
constexpr ts_i64 PROBE_BYTES = 256ll << 20;
constexpr int PROBE_RECORDS = 1 << 16;  // of one thread
constexpr int CUT_SHORT = -1;
inline int probe_records[MAX_THREADS];

inline void append_record(ts_twin_probes& sink, int probe, const void* data, ts_i64 bytes) {
    const ts_i64 padded = (bytes + 7) / 8 * 8, end = sink.length + (ts_i64)sizeof(ts_twin_probe_record) + padded;
    if (end > sink.capacity) {
        const ts_i64 capacity = end < 1 << 20 ? 1 << 20 : end * 2;
        char* grown = (char*)__builtin_realloc(sink.data, capacity);
        if (!grown) return;
        sink.data = grown;
        sink.capacity = capacity;
    }
    char* at = sink.data + sink.length;
    const ts_twin_probe_record record{probe, state.thread, bytes};
    __builtin_memcpy(at, &record, sizeof record);
    __builtin_memset(at + sizeof record, 0, padded);
    __builtin_memcpy(at + sizeof record, data, bytes);
    sink.length = end;
}

inline void record_probe(int probe, const void* data, ts_i64 bytes) {
    if (!state.options->probes) return;
    ts_twin_probes& sink = *state.options->probes;
    if (sink.length == 0) __builtin_memset(probe_records, 0, sizeof probe_records);
    append_record(sink, probe, data, bytes);
    if (sink.length < PROBE_BYTES && ++probe_records[state.thread] < PROBE_RECORDS) return;
    append_record(sink, CUT_SHORT, data, 0);
    state.aborted = true;
    switch_to_main();
}

}  // namespace ts_twin

// A register tile (an array) or a scalar, of each thread.
template <class T>
TS_DEVICE void ts_probe(int probe, const T& value) {
    ts_twin::record_probe(probe, &value, sizeof value);
}

// The bytes of a shared buffer, once for the block: what orders a read for all threads orders it for thread 0.
TS_DEVICE void ts_probe_buffer(int probe, const char* buffer, int bytes) {
    if (ts_thread() != 0) return;
    const ts_i64 left = ts_twin::state.shared + ts_twin::state.shared_bytes - buffer;
    if (buffer < ts_twin::state.shared || left <= 0) return;
    ts_twin::record_probe(probe, buffer, bytes < left ? bytes : left);
}

// How many elements of T a pointer lies behind another.
template <class T>
TS_DEVICE void ts_probe_distance(int probe, const T* pointer, const T* base) {
    const ts_i64 distance = pointer - base;
    ts_twin::record_probe(probe, &distance, sizeof distance);
}
