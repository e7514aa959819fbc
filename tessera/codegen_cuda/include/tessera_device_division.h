// A part of tessera_device.h.

// Division by a number that many share, correctly rounded. `inverse` is 1 / b, or 0 where that does not do. From 2^-90
// on, a remainder has no bits below 2^-149, so it is exact; with it, a quotient that is off by less than a unit in the last
// place becomes the correctly rounded one (tessera/ir/ops/division.py). A numerator of -0 would give +0.
constexpr float TS_LEAST_DIVIDED = 0x1p-90f, TS_MOST_DIVIDED = 0x1p126f, TS_MOST_SCALED = 0x1p60f;  // the last two: squares
TS_DEVICE float ts_divisor(float b) { return b >= 0x1p-30f && b <= 0x1p30f ? __frcp_rn(b) : 0.0f; }
TS_DEVICE float ts_least(float least, float a) { return fminf(least, fabsf(a)); }  // passes NaN over
TS_DEVICE float ts_zero_hidden(float a) { return __float_as_int(a) == 0 ? ts_infinity() : a; }
TS_DEVICE float ts_add_square(float sum, float a) { return __fmaf_rn(a, a, sum); }
// Whether multiplying by the inverse is dividing, which holds for every numerator then.
TS_DEVICE bool ts_divides_exactly(float b, float inverse) {
    return (inverse != 0.0f) & ((__float_as_uint(b) & 0x007FFFFFu) == 0);
}
TS_DEVICE float ts_remainder(float inverse, float b) {  // 1 / b is `inverse` and this
    return __fmul_rn(__fmaf_rn(-inverse, b, 1.0f), inverse);
}
TS_DEVICE float ts_div_by(float a, float b, float inverse) {
    const float quotient = __fmaf_rn(a, inverse, __fmul_rn(a, ts_remainder(inverse, b)));
    return __fmaf_rn(__fmaf_rn(-quotient, b, a), inverse, quotient);
}
// The same for numerators below 2^30, subnormal ones and zeros among them, in steps that do not branch. The quotient is
// rounded as 2^64 times as large, and `rounded` is what f32 holds of that below 2^-126. Only if what is `left` is half of
// 2^-149 can a second rounding differ from one. There the exact remainder of the first moves it, by more than half a unit
// in its last place: a remainder is no less than 2^-24 of a half, and the factor that is less than 2^-64 keeps halves, and
// remainders of normal quotients, from ever counting as more than a half.
TS_DEVICE float ts_div_scaled(float a, float b, float inverse) {
    const float scaled = __fmul_rn(a, 0x1p64f), quotient = ts_div_by(scaled, b, inverse);
    const float rounded = __fmul_rn(quotient, 0x1p-64f);
    const float left = __fmaf_rn(__fmaf_rn(-quotient, b, scaled), inverse, __fmaf_rn(rounded, -0x1p64f, quotient));
    return copysignf(__fmaf_rn(left, 0x1.fffffep-65f, rounded), a);
}
