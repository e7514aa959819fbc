#include "tessera_device.h"
// Each f32 function of one argument, row by row of out[10, n]; then the conversions.
TS_KERNEL(functions, 128)(const float* TS_RESTRICT x, float* TS_RESTRICT out, ts_i64 n) {
    const ts_i64 i = ts_block_id(0) * 128 + ts_thread();
    if (i >= n) return;
    float value[1], result[10];
    ts_ld_global<float, 1>(value, x + i);
    result[0] = ts_exp(value[0]);
    result[1] = ts_exp2(value[0]);
    result[2] = ts_log(value[0]);
    result[3] = ts_log2(value[0]);
    result[4] = ts_tanh(value[0]);
    result[5] = ts_sigmoid(value[0]);
    result[6] = ts_sqrt(value[0]);
    result[7] = ts_rsqrt(value[0]);
    result[8] = ts_floor(value[0]);
    result[9] = ts_abs(ts_neg(value[0]));
    TS_UNROLL
    for (int row = 0; row < 10; ++row) ts_st_global<float, 1>(out + row * n + i, result + row);
}

// out[4, n]: max, min, quotient, block of eight products x[i] * x[i] added to y[i].
TS_KERNEL(pairs, 128)(const float* TS_RESTRICT x, const float* TS_RESTRICT y, float* TS_RESTRICT out, ts_i64 n) {
    const ts_i64 i = ts_block_id(0) * 128 + ts_thread();
    if (i >= n) return;
    float a[1], b[1], result[4], many[8];
    ts_ld_global<float, 1>(a, x + i);
    ts_ld_global<float, 1>(b, y + i);
    result[0] = ts_max(a[0], b[0]);
    result[1] = ts_min(a[0], b[0]);
    result[2] = ts_div(a[0], b[0]);
    ts_ld_global<float, 8>(many, x);
    result[3] = ts_fma_block8(b[0], many, 1, many + 7, -1);
    TS_UNROLL
    for (int row = 0; row < 4; ++row) ts_st_global<float, 1>(out + row * n + i, result + row);
}

TS_KERNEL(narrow, 128)(const float* TS_RESTRICT x, ts_bf16* TS_RESTRICT out, float* TS_RESTRICT back, ts_i64 n) {
    const ts_i64 i = ts_block_id(0) * 128 + ts_thread();
    if (i >= n) return;
    float value[1];
    ts_ld_global<float, 1>(value, x + i);
    const ts_bf16 rounded = ts_cast<ts_bf16>(value[0]);
    const ts_u32 pair = ts_pack_bf16x2(rounded, ts_cast<ts_bf16>(1.0f));
    const ts_bf16 low = ts_low_bf16(pair);
    value[0] = ts_cast<float>(low) * ts_to_f32(ts_high_bf16(pair));
    ts_st_global<ts_bf16, 1>(out + i, &low);
    ts_st_global<float, 1>(back + i, value);
}

// Floor division, modulo, ceiling division, and f32(x) of 64-bit integers; the divisor is a parameter.
TS_KERNEL(integers, 32)(const ts_i64* TS_RESTRICT x, ts_i64* TS_RESTRICT out, float* TS_RESTRICT converted, ts_i64 n,
                        ts_i64 divisor) {
    const ts_i64 i = ts_thread();
    if (i >= n) return;
    ts_i64 value[1], result[3];
    ts_ld_global<ts_i64, 1>(value, x + i);
    result[0] = ts_floordiv(value[0], divisor);
    result[1] = ts_floormod(value[0], divisor);
    result[2] = ts_cdiv(value[0], divisor);
    TS_UNROLL
    for (int row = 0; row < 3; ++row) ts_st_global<ts_i64, 1>(out + row * n + i, result + row);
    const float as_float = ts_cast<bool>(value[0]) ? ts_cast<float>(value[0]) : -1.0f;
    ts_st_global<float, 1>(converted + i, &as_float);
}
