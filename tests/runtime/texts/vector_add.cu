#include "tessera_device.h"
TS_KERNEL(vadd, 128)(const float* TS_RESTRICT x, const float* TS_RESTRICT y, float* TS_RESTRICT out, ts_i64 n) {
    const ts_i64 start = (ts_block_id(0) * 128 + ts_thread()) * 4;
    float a[4], b[4], c[4];
    ts_ld_global_n<float, 4>(a, x + start, (int)ts_imin(n - start, 4));
    ts_ld_global_n<float, 4>(b, y + start, (int)ts_imin(n - start, 4));
    TS_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = a[i] + b[i];
    ts_st_global_n<float, 4>(out + start, c, (int)ts_imin(n - start, 4));
}
