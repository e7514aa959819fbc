// f32 maths and integers. For the functions of f32 this file is the definition of the bits, which the
// interpreter mirrors with NumPy:
//
//   y = f(double(x)), rounded once to f32. Two libms may differ in the last bits of y, which matters only beside a
//   midpoint of two f32 values, so: when y is within 1024 of its own units in the last place of such a midpoint, or is a
//   nonzero number below 2^-126 (f32 subnormals, whose midpoints lie elsewhere), f is computed again in long double
//   (NumPy: longdouble) and that value is rounded to f32.
//
// The 29 low fraction bits of a double are those that f32 drops, so a midpoint has exactly the highest of them set.
// +, -, *, /, sqrt, max, min, abs, neg, floor and ceil need no such rule: their f32 results are exact or correctly rounded.
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
    return -1024 <= distance && distance <= 1024;
}

template <class Double, class LongDouble>
inline float rounded_once(float x, Double f, LongDouble precise) {
    const double y = f((double)x);
    return rounding_unsure(y) ? (float)precise((long double)x) : (float)y;
}

// The activations as tessera/ir/special.py defines them: the same operations in the same order.
inline double exp_of(double x) { return __builtin_exp(x); }
inline long double exp_of(long double x) { return __builtin_expl(x); }

template <class T>
inline T sigmoid(T x) {
    const T e = exp_of(x < 0 ? x : -x);
    return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

inline long double series_of_erf(long double square) {
    long double series = 1, term = 1;
    for (int n = 1; n < 40; ++n) {
        term = term * (2 * square) / (2 * n + 1);
        series = series + term;
    }
    return series;
}

// erfc(z) for z >= 0.
inline double tail(double z, double) { return __builtin_erfc(z); }
inline long double tail(long double z, long double square) {
    const long double e = exp_of(-square);
    if (z < 1) return 1 - 1.128379167095512573896158903121545172L * z * e * series_of_erf(square);
    long double fraction = z;
    for (int n = 300; n > 0; --n) fraction = z + n / (2 * fraction);
    return 0.564189583547756286948079451560772586L * e / fraction;
}

inline long double precise_erf(long double x) {
    const long double z = __builtin_fabsl(x);
    const long double y = z < 1 ? 1.128379167095512573896158903121545172L * z * exp_of(-(z * z)) * series_of_erf(z * z)
                                : 1 - tail(z, z * z);
    return __builtin_copysignl(y, x);
}

inline double softplus(double x) { return (x > 0 ? x : 0) + __builtin_log1p(__builtin_exp(-__builtin_fabs(x))); }
inline long double softplus(long double x) {
    return (x > 0 ? x : 0) + __builtin_log1pl(__builtin_expl(-__builtin_fabsl(x)));
}

template <class T>
inline T silu(T x) {
    x = x < -256 ? T(-256) : x;
    return x * sigmoid(x);
}

template <class T>
inline T gelu(T x) {
    x = x < -16 ? T(-16) : x;
    const T z = (x < 0 ? -x : x) * T(0.707106781186547524400844362104849039L);
    const T above = tail(z, x * x / 2);
    return x < 0 ? x * above / 2 : x * (2 - above) / 2;
}

template <class T>
inline T gelu_tanh(T x) {
    x = x < -16 ? T(-16) : x;
    return x * sigmoid(T(1.595769121605730711759784239737527474L) * (x + T(0.044715L) * (x * x * x)));
}

}  // namespace ts_twin

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
TS_TWIN_ROUNDED(ts_erf, __builtin_erf(x), ts_twin::precise_erf(x))
TS_TWIN_ROUNDED(ts_sigmoid, ts_twin::sigmoid(x), ts_twin::sigmoid(x))
TS_DEVICE float ts_scaled_sigmoid(float x, float scale) { return ts_sigmoid(x * scale); }
TS_TWIN_ROUNDED(ts_softplus, ts_twin::softplus(x), ts_twin::softplus(x))
TS_TWIN_ROUNDED(ts_silu, ts_twin::silu(x), ts_twin::silu(x))
TS_TWIN_ROUNDED(ts_gelu, ts_twin::gelu(x), ts_twin::gelu(x))
TS_TWIN_ROUNDED(ts_gelu_tanh, ts_twin::gelu_tanh(x), ts_twin::gelu_tanh(x))
#undef TS_TWIN_ROUNDED

TS_DEVICE float ts_sqrt(float x) { return __builtin_sqrtf(x); }
TS_DEVICE float ts_div(float a, float b) { return a / b; }
// The very steps of the device, so what they round is what the division of the interpreter is compared with.
constexpr float TS_LEAST_DIVIDED = 0x1p-90f, TS_MOST_DIVIDED = 0x1p126f, TS_MOST_SCALED = 0x1p60f;
TS_DEVICE float ts_divisor(float b) { return b >= 0x1p-30f && b <= 0x1p30f ? 1.0f / b : 0.0f; }
TS_DEVICE float ts_least(float least, float a) { return __builtin_fminf(least, __builtin_fabsf(a)); }
TS_DEVICE float ts_zero_hidden(float a) { return a == 0.0f && !__builtin_signbit(a) ? __builtin_inff() : a; }
TS_DEVICE float ts_add_square(float sum, float a) { return __builtin_fmaf(a, a, sum); }
TS_DEVICE bool ts_divides_exactly(float b, float inverse) {
    return inverse != 0.0f && (ts_twin::bits_of(b) & 0x007FFFFFu) == 0;
}
TS_DEVICE float ts_remainder(float inverse, float b) { return __builtin_fmaf(-inverse, b, 1.0f) * inverse; }
TS_DEVICE float ts_div_by(float a, float b, float inverse) {
    const float quotient = __builtin_fmaf(a, inverse, a * ts_remainder(inverse, b));
    return __builtin_fmaf(__builtin_fmaf(-quotient, b, a), inverse, quotient);
}
TS_DEVICE float ts_div_scaled(float a, float b, float inverse) {
    const float scaled = a * 0x1p64f, quotient = ts_div_by(scaled, b, inverse), rounded = quotient * 0x1p-64f;
    const float remainder = __builtin_fmaf(-quotient, b, scaled), rest = __builtin_fmaf(rounded, -0x1p64f, quotient);
    return __builtin_copysignf(__builtin_fmaf(__builtin_fmaf(remainder, inverse, rest), 0x1.fffffep-65f, rounded), a);
}
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
TS_DEVICE float ts_ceil(float x) { return __builtin_ceilf(x); }

// ---- integers --------------------------------------------------------------------------------------------------

TS_DEVICE ts_i64 ts_floordiv(ts_i64 a, ts_i64 b, TS_TWIN_LINE) {
    ts_twin::at(line);
    if (b == 0) ts_twin::fail(ts_twin::DIVISION_BY_ZERO, ts_twin::state.thread, "divides the integer %lld by zero", a);
    if (b == -1) return (ts_i64)(0 - (ts_u64)a);  // the one quotient that traps on this CPU: the lowest integer by -1
    const ts_i64 quotient = a / b;
    return quotient - ((a % b != 0) && ((a < 0) != (b < 0)));
}
TS_DEVICE ts_i64 ts_floormod(ts_i64 a, ts_i64 b, TS_TWIN_LINE) {
    ts_twin::at(line);
    if (b == 0) ts_twin::fail(ts_twin::DIVISION_BY_ZERO, ts_twin::state.thread, "takes %lld modulo zero", a);
    if (b == -1) return 0;
    const ts_i64 remainder = a % b;
    return remainder != 0 && ((remainder < 0) != (b < 0)) ? remainder + b : remainder;
}
TS_DEVICE ts_i64 ts_cdiv(ts_i64 a, ts_i64 b, TS_TWIN_LINE) { return -ts_floordiv(-a, b, line); }
TS_DEVICE ts_i64 ts_iabs(ts_i64 a) { return a < 0 ? -a : a; }
TS_DEVICE ts_i64 ts_imin(ts_i64 a, ts_i64 b) { return a < b ? a : b; }
TS_DEVICE ts_i64 ts_imax(ts_i64 a, ts_i64 b) { return a > b ? a : b; }
