// Atomic updates, prints and assertions. One fiber runs at a time, so a plain update is atomic.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

template <class T> inline T* updated(T* p, int line) {
    at(line);
    update_global(p, sizeof(T));
    return p;
}

// What kernels printed in this launch; the memory is kept for the next one.
struct Output {
    char* text;
    ts_i64 length, capacity;
};
inline Output output;

}  // namespace ts_twin

TS_DEVICE ts_i64 ts_trip_count(ts_i64 lower, ts_i64 upper, ts_i64 step, TS_TWIN_LINE) {
    ts_twin::at(line);
    if (step == 0) ts_twin::fail(ts_twin::DIVISION_BY_ZERO, ts_twin::state.thread, "%s", "runs a loop whose step is zero");
    return ts_imax(-ts_floordiv(lower - upper, step, line), 0);
}

// Through unsigned numbers: integers wrap, as on the device.
TS_DEVICE void ts_atomic_add(ts_i32* p, ts_i32 x, TS_TWIN_LINE) { *ts_twin::updated(p, line) = (ts_i32)((ts_u32)*p + (ts_u32)x); }
TS_DEVICE void ts_atomic_add(ts_i64* p, ts_i64 x, TS_TWIN_LINE) { *ts_twin::updated(p, line) = (ts_i64)((ts_u64)*p + (ts_u64)x); }
TS_DEVICE void ts_atomic_add(float* p, float x, TS_TWIN_LINE) { *ts_twin::updated(p, line) = *p + x; }
TS_DEVICE void ts_atomic_max(ts_i32* p, ts_i32 x, TS_TWIN_LINE) { *ts_twin::updated(p, line) = *p > x ? *p : x; }
TS_DEVICE void ts_atomic_max(ts_i64* p, ts_i64 x, TS_TWIN_LINE) { *ts_twin::updated(p, line) = *p > x ? *p : x; }
TS_DEVICE void ts_atomic_max(float* p, float x, TS_TWIN_LINE) {
    ts_i32 bits, current;
    __builtin_memcpy(&bits, &x, 4);
    if (x != x) bits = 0x7FFFFFFF;
    __builtin_memcpy(&current, ts_twin::updated(p, line), 4);
    const bool above = bits < 0 ? (ts_u32)bits < (ts_u32)current : bits > current;
    if (above) __builtin_memcpy(p, &bits, 4);
}

TS_DEVICE const char* ts_printed(bool x) { return x ? "True" : "False"; }
TS_DEVICE ts_i64 ts_printed(ts_i64 x) { return x; }
TS_DEVICE ts_i64 ts_printed(ts_i32 x) { return x; }
template <class T>
TS_DEVICE double ts_printed(T x) {
    const float value = ts_to_f32(x);
    return value != value ? __builtin_nan("") : value;
}

template <class... Values>
TS_DEVICE void ts_print(const char* format, Values... values) {
    ts_twin::Output& output = ts_twin::output;
    const ts_i64 length = __builtin_snprintf(nullptr, 0, format, values...);
    if (output.length + length >= output.capacity) {
        output.capacity = 2 * (output.length + length) + 1024;
        output.text = (char*)__builtin_realloc(output.text, output.capacity);
    }
    __builtin_snprintf(output.text + output.length, output.capacity - output.length, format, values...);
    output.length += length;
}

TS_DEVICE void ts_fail(const char* file, int line, const char* message, int rank, ts_i64 x, ts_i64 y, ts_i64 z,
                       int here = __builtin_LINE()) {
    using namespace ts_twin;
    at(here);
    if (rank == 1) fail(ASSERTION, state.thread, "%s:%d: assertion failed in program (%lld): %s", file, line, x, message);
    if (rank == 2)
        fail(ASSERTION, state.thread, "%s:%d: assertion failed in program (%lld, %lld): %s", file, line, x, y, message);
    fail(ASSERTION, state.thread, "%s:%d: assertion failed in program (%lld, %lld, %lld): %s", file, line, x, y, z,
         message);
}
