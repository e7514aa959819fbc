// Conversions: the language's own roundings, which are those of tessera.dtypes.round_to, in plain C++. See the device
// header for what ts_cast does; what an integer type cannot hold becomes its nearest value here too.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

inline ts_u32 bits_of(float x) {
    ts_u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(ts_u32 bits) {
    float result;
    __builtin_memcpy(&result, &bits, 4);
    return result;
}

// The finite values of a narrow type, given by the exponent and mantissa bits of one.
template <int MANTISSA, int BIAS>
inline float widen(ts_u32 bits) {
    const int exponent = (int)(bits >> MANTISSA);
    const float fraction = (float)(bits & ((1u << MANTISSA) - 1)), one = (float)(1u << MANTISSA);
    return exponent ? __builtin_ldexpf(one + fraction, exponent - BIAS - MANTISSA)
                    : __builtin_ldexpf(fraction, 1 - BIAS - MANTISSA);
}

}  // namespace ts_twin

TS_DEVICE float ts_to_f32(float x) { return x; }
TS_DEVICE float ts_to_f32(ts_bf16 x) { return ts_twin::float_of((ts_u32)x.bits << 16); }
TS_DEVICE float ts_to_f32(ts_f16 x) {
    const ts_u32 magnitude = x.bits & 0x7FFFu;
    const float result = magnitude > 0x7C00u    ? __builtin_nanf("")
                         : magnitude == 0x7C00u ? __builtin_inff()
                                                : ts_twin::widen<10, 15>(magnitude);
    return x.bits & 0x8000u ? -result : result;
}
TS_DEVICE float ts_to_f32(ts_fp8_e5m2 x) { return ts_to_f32(ts_f16{(unsigned short)(x.bits << 8)}); }
TS_DEVICE float ts_to_f32(ts_fp8_e4m3 x) {
    const ts_u32 magnitude = x.bits & 0x7Fu;
    const float result = magnitude == 0x7Fu ? __builtin_nanf("") : ts_twin::widen<3, 7>(magnitude);
    return x.bits & 0x80u ? -result : result;
}
TS_DEVICE float ts_to_f32(ts_i64 x) { return (float)x; }
TS_DEVICE float ts_to_f32(ts_i32 x) { return (float)x; }
TS_DEVICE float ts_to_f32(ts_i8 x) { return (float)x; }
TS_DEVICE float ts_to_f32(bool x) { return x ? 1.0f : 0.0f; }

TS_DEVICE float ts_to_f32_odd(ts_i64 x) {
    ts_u64 magnitude = x < 0 ? 0 - (ts_u64)x : (ts_u64)x;
    int shift = 0;
    bool dropped = false;
    for (; magnitude >> 24; ++shift, magnitude >>= 1) dropped |= magnitude & 1;
    const float result = __builtin_ldexpf((float)(magnitude | dropped), shift);
    return x < 0 ? -result : result;
}

// NaN gives what the device's instructions give.
TS_DEVICE ts_bf16 ts_to_bf16(float x) {
    const ts_u32 bits = ts_twin::bits_of(x);
    return {(unsigned short)(x != x ? 0x7FFFu : (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

// The device header's function.
template <int MANTISSA, int BIAS>
TS_DEVICE ts_u32 ts_narrow_bits(float x) {
    const ts_u32 bits = ts_twin::bits_of(x) & 0x7FFFFFFFu;
    const int shift = 23 - MANTISSA;
    const ts_u32 magic = (ts_u32)(127 + 24 - BIAS - MANTISSA) << 23;
    if (bits < (ts_u32)(128 - BIAS) << 23)
        return ts_twin::bits_of(ts_twin::float_of(bits) + ts_twin::float_of(magic)) - magic;
    return (bits - ((ts_u32)(127 - BIAS) << 23) + (1u << (shift - 1)) - 1 + ((bits >> shift) & 1u)) >> shift;
}
TS_DEVICE ts_f16 ts_to_f16(float x) {
    const ts_u32 sign = (ts_twin::bits_of(x) >> 16) & 0x8000u;
    // 65520 lies half way between the largest f16 and what would follow it.
    const ts_u32 magnitude = __builtin_fabsf(x) < 65520.0f ? ts_narrow_bits<10, 15>(x) : 0x7C00u;
    return {(unsigned short)(x != x ? 0x7FFFu : sign | magnitude)};
}
TS_DEVICE ts_fp8_e4m3 ts_to_fp8_e4m3(float x) {
    const ts_u32 sign = (ts_twin::bits_of(x) >> 24) & 0x80u;
    const ts_u32 magnitude = __builtin_fabsf(x) < 448.0f ? ts_narrow_bits<3, 7>(x) : 0x7Eu;
    return {(unsigned char)(x != x ? 0x7Fu : sign | magnitude)};
}
TS_DEVICE ts_fp8_e5m2 ts_to_fp8_e5m2(float x) {
    const ts_u32 sign = (ts_twin::bits_of(x) >> 24) & 0x80u;
    const ts_u32 magnitude = __builtin_fabsf(x) < 57344.0f ? ts_narrow_bits<2, 15>(x) : 0x7Bu;
    return {(unsigned char)(x != x ? 0x7Fu : sign | magnitude)};
}

TS_DEVICE ts_i64 ts_to_i64(float x) {
    if (x != x) return 0;
    if (x >= 0x1p63f) return 0x7FFFFFFFFFFFFFFFLL;
    return x < -0x1p63f ? -0x7FFFFFFFFFFFFFFFLL - 1 : (ts_i64)x;
}

template <class To> struct ts_convert;
template <> struct ts_convert<float> {
    template <class From> static float from(From x) { return ts_to_f32(x); }
};
#define TS_CONVERT_TO_FLOAT(name, function, same)                                         \
    template <> struct ts_convert<name> {                                                 \
        static name from(name x) { return same; }                                         \
        static name from(ts_i64 x) { return function(ts_to_f32_odd(x)); }                 \
        static name from(ts_i32 x) { return function(ts_to_f32_odd(x)); }                 \
        template <class From> static name from(From x) { return function(ts_to_f32(x)); } \
    }
TS_CONVERT_TO_FLOAT(ts_bf16, ts_to_bf16, x);
TS_CONVERT_TO_FLOAT(ts_f16, ts_to_f16, x);
TS_CONVERT_TO_FLOAT(ts_fp8_e4m3, ts_to_fp8_e4m3, x);
// Infinity is no result of a rounding, not even of one from e5m2 to itself.
TS_CONVERT_TO_FLOAT(ts_fp8_e5m2, ts_to_fp8_e5m2, (x.bits & 0x7F) == 0x7C ? ts_fp8_e5m2{(unsigned char)(x.bits - 1)} : x);
#undef TS_CONVERT_TO_FLOAT
template <> struct ts_convert<bool> {
    static bool from(bool x) { return x; }
    static bool from(ts_i64 x) { return x != 0; }
    static bool from(ts_i32 x) { return x != 0; }
    static bool from(ts_i8 x) { return x != 0; }
    template <class From> static bool from(From x) { return ts_to_f32(x) != 0.0f; }
};
template <> struct ts_convert<ts_i64> {
    static ts_i64 from(ts_i64 x) { return x; }
    static ts_i64 from(ts_i32 x) { return x; }
    static ts_i64 from(ts_i8 x) { return x; }
    static ts_i64 from(bool x) { return x; }
    template <class From> static ts_i64 from(From x) { return ts_to_i64(ts_to_f32(x)); }
};
template <> struct ts_convert<ts_i32> {
    static ts_i32 from(ts_i32 x) { return x; }
    static ts_i32 from(ts_i8 x) { return x; }
    static ts_i32 from(bool x) { return x; }
    template <class From> static ts_i32 from(From x) {
        const ts_i64 wide = ts_convert<ts_i64>::from(x);
        return (ts_i32)(wide < -2147483648LL ? -2147483648LL : wide > 2147483647LL ? 2147483647LL : wide);
    }
};
template <> struct ts_convert<ts_i8> {
    static ts_i8 from(ts_i8 x) { return x; }
    template <class From> static ts_i8 from(From x) {
        const ts_i32 wide = ts_convert<ts_i32>::from(x);
        return (ts_i8)(wide < -128 ? -128 : wide > 127 ? 127 : wide);
    }
};
template <class To, class From> TS_DEVICE To ts_cast(From x) { return ts_convert<To>::from(x); }

TS_DEVICE ts_u32 ts_pack_bf16x2(ts_bf16 low, ts_bf16 high) { return (ts_u32)low.bits | ((ts_u32)high.bits << 16); }
// Two neighbouring elements of a matrix operand as one fragment register of the 16-bit format that they run in.
TS_DEVICE ts_u32 ts_operand_pair(ts_bf16 low, ts_bf16 high) { return ts_pack_bf16x2(low, high); }
TS_DEVICE ts_u32 ts_operand_pair(ts_f16 low, ts_f16 high) { return (ts_u32)low.bits | ((ts_u32)high.bits << 16); }
TS_DEVICE ts_u32 ts_operand_pair(ts_fp8_e5m2 low, ts_fp8_e5m2 high) {
    return ts_operand_pair(ts_to_f16(ts_to_f32(low)), ts_to_f16(ts_to_f32(high)));
}
TS_DEVICE ts_u32 ts_operand_pair(ts_fp8_e4m3 low, ts_fp8_e4m3 high) {
    return ts_operand_pair(ts_to_f16(ts_to_f32(low)), ts_to_f16(ts_to_f32(high)));
}
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
// The two elements of a fragment register.
TS_DEVICE void ts_split_pair(ts_bf16* out, ts_u32 pair) { out[0] = ts_low_bf16(pair), out[1] = ts_high_bf16(pair); }
TS_DEVICE void ts_split_pair(ts_f16* out, ts_u32 pair) {
    out[0].bits = (unsigned short)(pair & 0xFFFFu);
    out[1].bits = (unsigned short)(pair >> 16);
}
// Conversions of two elements at once.
TS_DEVICE void ts_cast_pair(float* out, const ts_bf16* a) { out[0] = ts_to_f32(a[0]), out[1] = ts_to_f32(a[1]); }
TS_DEVICE void ts_cast_pair(float* out, const ts_f16* a) { out[0] = ts_to_f32(a[0]), out[1] = ts_to_f32(a[1]); }
TS_DEVICE void ts_cast_pair(ts_bf16* out, const float* a) { out[0] = ts_to_bf16(a[0]), out[1] = ts_to_bf16(a[1]); }
TS_DEVICE void ts_cast_pair(ts_f16* out, const float* a) { out[0] = ts_to_f16(a[0]), out[1] = ts_to_f16(a[1]); }
// Sums and differences of two elements at once, rounded once: with two bits more than twice a significand's, as f32 has
// for both types, rounding to f32 first gives the same.
TS_DEVICE void ts_add_pair(ts_bf16* out, const ts_bf16* a, const ts_bf16* b) {
    for (int i = 0; i < 2; ++i) out[i] = ts_to_bf16(ts_to_f32(a[i]) + ts_to_f32(b[i]));
}
TS_DEVICE void ts_add_pair(ts_f16* out, const ts_f16* a, const ts_f16* b) {
    for (int i = 0; i < 2; ++i) out[i] = ts_to_f16(ts_to_f32(a[i]) + ts_to_f32(b[i]));
}
TS_DEVICE void ts_sub_pair(ts_bf16* out, const ts_bf16* a, const ts_bf16* b) {
    for (int i = 0; i < 2; ++i) out[i] = ts_to_bf16(ts_to_f32(a[i]) - ts_to_f32(b[i]));
}
TS_DEVICE void ts_sub_pair(ts_f16* out, const ts_f16* a, const ts_f16* b) {
    for (int i = 0; i < 2; ++i) out[i] = ts_to_f16(ts_to_f32(a[i]) - ts_to_f32(b[i]));
}
