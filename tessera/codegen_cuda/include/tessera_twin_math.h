// Conversions, f32 maths and integers. For the functions of f32 this file is the definition of the bits, which the
// interpreter mirrors with NumPy:
//
//   y = f(double(x)), rounded once to f32. Two libms may differ in the last bits of y, which matters only beside a
//   midpoint of two f32 values, so: when y is within 4 of its own units in the last place of such a midpoint, or is a
//   nonzero number below 2^-126 (f32 subnormals, whose midpoints lie elsewhere), f is computed again in long double
//   (NumPy: longdouble) and that value is rounded to f32.
//
// The 29 low fraction bits of a double are those that f32 drops, so a midpoint has exactly the highest of them set.
// +, -, *, /, sqrt, max, min, abs, neg and floor need no such rule: their f32 results are exact or correctly rounded.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

// Whether y must be computed again in long double.
inline bool rounding_unsure(double y) {
    const double magnitude = __builtin_fabs(y);
    if (!(magnitude > 0.0) || magnitude == __builtin_inf()) return false;
    if (magnitude < 0x1p-126) return true;
    ts_u64 bits;
    __builtin_memcpy(&bits, &y, 8);
    const ts_i64 distance = (ts_i64)(bits & 0x1FFFFFFF) - 0x10000000;
    return -4 <= distance && distance <= 4;
}

template <class Double, class LongDouble>
inline float rounded_once(float x, Double f, LongDouble precise) {
    const double y = f((double)x);
    return rounding_unsure(y) ? (float)precise((long double)x) : (float)y;
}

}  // namespace ts_twin

// ---- conversions -----------------------------------------------------------------------------------------------

TS_DEVICE float ts_to_f32(float x) { return x; }
TS_DEVICE float ts_to_f32(ts_bf16 x) {
    const ts_u32 bits = (ts_u32)x.bits << 16;
    float result;
    __builtin_memcpy(&result, &bits, 4);
    return result;
}
TS_DEVICE float ts_to_f32(ts_i64 x) { return (float)x; }
TS_DEVICE float ts_to_f32(ts_i32 x) { return (float)x; }
TS_DEVICE float ts_to_f32(bool x) { return x ? 1.0f : 0.0f; }

// Round to nearest even; NaN gives 0x7FFF, as cvt.rn.bf16.f32 does.
TS_DEVICE ts_bf16 ts_to_bf16(float x) {
    ts_bf16 result;
    ts_u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    result.bits = x != x ? 0x7FFF : (unsigned short)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    return result;
}

template <class To> struct ts_convert;
template <> struct ts_convert<float> {
    template <class From> static float from(From x) { return ts_to_f32(x); }
};
template <> struct ts_convert<ts_bf16> {
    static ts_bf16 from(ts_bf16 x) { return x; }
    template <class From> static ts_bf16 from(From x) { return ts_to_bf16(ts_to_f32(x)); }
};
template <> struct ts_convert<bool> {
    static bool from(ts_i64 x) { return x != 0; }
    static bool from(ts_i32 x) { return x != 0; }
    template <class From> static bool from(From x) { return ts_to_f32(x) != 0.0f; }
};
template <> struct ts_convert<ts_i64> {
    template <class From> static ts_i64 from(From x) { return (ts_i64)x; }
};
template <> struct ts_convert<ts_i32> {
    template <class From> static ts_i32 from(From x) { return (ts_i32)x; }
};
template <class To, class From> TS_DEVICE To ts_cast(From x) { return ts_convert<To>::from(x); }

TS_DEVICE ts_u32 ts_pack_bf16x2(ts_bf16 low, ts_bf16 high) { return (ts_u32)low.bits | ((ts_u32)high.bits << 16); }
TS_DEVICE ts_bf16 ts_low_bf16(ts_u32 pair) {
    ts_bf16 result;
    result.bits = (unsigned short)(pair & 0xFFFFu);
    return result;
}
TS_DEVICE ts_bf16 ts_high_bf16(ts_u32 pair) {
    ts_bf16 result;
    result.bits = (unsigned short)(pair >> 16);
    return result;
}

// ---- f32 maths -------------------------------------------------------------------------------------------------

#define TS_TWIN_ROUNDED(name, in_double, in_long_double)                                          \
    TS_DEVICE float name(float argument) {                                                        \
        return ts_twin::rounded_once(                                                             \
            argument, [](double x) -> double { return in_double; },                               \
            [](long double x) -> long double { return in_long_double; });                         \
    }
TS_TWIN_ROUNDED(ts_exp, __builtin_exp(x), __builtin_expl(x))
TS_TWIN_ROUNDED(ts_exp2, __builtin_exp2(x), __builtin_exp2l(x))
TS_TWIN_ROUNDED(ts_log, __builtin_log(x), __builtin_logl(x))
TS_TWIN_ROUNDED(ts_log2, __builtin_log2(x), __builtin_log2l(x))
TS_TWIN_ROUNDED(ts_tanh, __builtin_tanh(x), __builtin_tanhl(x))
TS_TWIN_ROUNDED(ts_rsqrt, 1.0 / __builtin_sqrt(x), 1.0L / __builtin_sqrtl(x))
TS_DEVICE float ts_reciprocal_in_1_2(float x) { return (float)(1.0 / (double)x); }
TS_TWIN_ROUNDED(ts_sigmoid, x >= 0 ? 1.0 / (1.0 + __builtin_exp(-x)) : __builtin_exp(x) / (1.0 + __builtin_exp(x)),
                x >= 0 ? 1.0L / (1.0L + __builtin_expl(-x)) : __builtin_expl(x) / (1.0L + __builtin_expl(x)))
#undef TS_TWIN_ROUNDED

TS_DEVICE float ts_sqrt(float x) { return __builtin_sqrtf(x); }
TS_DEVICE float ts_div(float a, float b) { return a / b; }
TS_DEVICE float ts_max(float a, float b) {
    if (a != a || b != b) return __builtin_nanf("");
    if (a == b) return __builtin_signbit(a) ? b : a;  // -0 is below +0
    return a > b ? a : b;
}
TS_DEVICE float ts_min(float a, float b) {
    if (a != a || b != b) return __builtin_nanf("");
    if (a == b) return __builtin_signbit(a) ? a : b;
    return a < b ? a : b;
}
TS_DEVICE float ts_nan() { return __builtin_nanf(""); }
TS_DEVICE float ts_infinity() { return __builtin_inff(); }
TS_DEVICE float ts_abs(float x) { return __builtin_fabsf(x); }
TS_DEVICE float ts_neg(float x) { return -x; }
TS_DEVICE float ts_floor(float x) { return __builtin_floorf(x); }

// ---- integers --------------------------------------------------------------------------------------------------

TS_DEVICE ts_i64 ts_floordiv(ts_i64 a, ts_i64 b) {
    if (b == 0) ts_twin::fail(ts_twin::DIVISION_BY_ZERO, ts_twin::state.thread, "divides the integer %lld by zero", a);
    if (b == -1) return (ts_i64)(0 - (ts_u64)a);  // the one quotient that traps on this CPU: the lowest integer by -1
    const ts_i64 quotient = a / b;
    return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}
TS_DEVICE ts_i64 ts_floormod(ts_i64 a, ts_i64 b) {
    if (b == 0) ts_twin::fail(ts_twin::DIVISION_BY_ZERO, ts_twin::state.thread, "takes %lld modulo zero", a);
    if (b == -1) return 0;
    const ts_i64 remainder = a % b;
    return remainder != 0 && ((remainder < 0) != (b < 0)) ? remainder + b : remainder;
}
TS_DEVICE ts_i64 ts_cdiv(ts_i64 a, ts_i64 b) { return -ts_floordiv(-a, b); }
TS_DEVICE ts_i64 ts_iabs(ts_i64 a) { return a < 0 ? -a : a; }
TS_DEVICE ts_i64 ts_imin(ts_i64 a, ts_i64 b) { return a < b ? a : b; }
TS_DEVICE ts_i64 ts_imax(ts_i64 a, ts_i64 b) { return a > b ? a : b; }
