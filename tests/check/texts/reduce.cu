#include "tessera_device.h"
// out[row] = sum of x[row, 0..127], rows one after the other: a butterfly in each of four warps, whose first exchange
// goes through shared memory and the others through shuffles, then a butterfly over the partial sums of the warps.
#define PARTIALS 512

TS_KERNEL(reduce, 128)(const float* TS_RESTRICT x, float* TS_RESTRICT out, ts_i64 rows) {
    TS_SHARED(shared);
    const int lane = ts_lane(), warp = ts_warp();
    char* scratch = shared + warp * 128;  // place: scratch of the warp
    TS_ROLLED
    for (ts_i64 row = 0; row < rows; ++row) {
        float value[1], other[1];
        ts_ld_global<float, 1>(value, x + row * 128 + ts_thread());  // load: x
        ts_st_shared<float, 1>(scratch + lane * 4, value);  // write: own value
        ts_warp_barrier();  // order: values written
        ts_ld_shared<float, 1>(other, scratch + (lane ^ 16) * 4);  // read: partner's value
        value[0] += other[0];
        TS_UNROLL
        for (int mask = 8; mask > 0; mask /= 2) {
            value[0] += ts_shfl_xor(value[0], mask);  // shuffle: within the warp
        }
        if (lane == 0) ts_st_shared<float, 1>(shared + PARTIALS + warp * 4, value);  // write: partial sum
        ts_barrier();  // barrier: partial sums visible
        if (warp == 0) {
            value[0] = 0.0f;
            if (lane < 4) ts_ld_shared<float, 1>(value, shared + PARTIALS + lane * 4);  // read: partial sums
            for (int mask = 2; mask > 0; mask /= 2) {
                value[0] += ts_shfl_xor(value[0], mask);  // shuffle: over the warps
            }
            if (lane == 0) ts_st_global<float, 1>(out + row, value);  // store: out
        }
        ts_barrier();  // barrier: partial sums read
    }
}
