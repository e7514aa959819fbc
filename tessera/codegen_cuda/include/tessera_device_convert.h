// A part of tessera_device.h.

// ---- conversions -----------------------------------------------------------------------------------------------
// ts_cast<To>(x) between float, the bit types, ts_i8, ts_i32, ts_i64 and bool rounds once, to nearest even. f16 and
// bf16 overflow to infinity, fp8 to its largest value. A float becomes an integer by dropping its fraction. What an
// integer type cannot hold becomes its nearest value and NaN becomes 0 (the interpreter raises TS401 instead).

TS_DEVICE float ts_to_f32(float x) { return x; }
TS_DEVICE float ts_to_f32(ts_bf16 x) { return __uint_as_float((ts_u32)x.bits << 16); }
TS_DEVICE float ts_to_f32(ts_f16 x) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
}
// An e5m2 value is an f16 without its low byte.
TS_DEVICE float ts_to_f32(ts_fp8_e5m2 x) {
    ts_f16 wide;
    wide.bits = (unsigned short)(x.bits << 8);
    return ts_to_f32(wide);
}
TS_DEVICE float ts_to_f32(ts_fp8_e4m3 x) {
    ts_f16 wide;
#if __CUDA_ARCH__ >= 890
    ts_u32 pair;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((unsigned short)x.bits));
    wide.bits = (unsigned short)pair;
    return ts_to_f32(wide);
#else
    // The same fields at the places of f16, whose exponent counts from 8 lower; that has no room for e4m3's one NaN.
    wide.bits = (unsigned short)((x.bits & 0x80) << 8 | (x.bits & 0x7F) << 7);
    return (x.bits & 0x7F) == 0x7F ? __uint_as_float(0x7FFFFFFFu) : 256.0f * ts_to_f32(wide);
#endif
}
TS_DEVICE float ts_to_f32(ts_i64 x) { return (float)x; }
TS_DEVICE float ts_to_f32(ts_i32 x) { return (float)x; }
TS_DEVICE float ts_to_f32(ts_i8 x) { return (float)x; }
TS_DEVICE float ts_to_f32(bool x) { return x ? 1.0f : 0.0f; }

// An integer as the f32 from which a second rounding, to at most 22 significand bits, gives what one rounding would:
// truncated, and with its last bit set where anything was dropped.
TS_DEVICE float ts_to_f32_odd(ts_i64 x) {
    const float low = __ll2float_rz(x);
    return __uint_as_float(__float_as_uint(low) | (ts_u32)((ts_i64)low != x));
}

// NaN gives 0x7FFF.
TS_DEVICE ts_bf16 ts_to_bf16(float x) {
    ts_bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}
TS_DEVICE ts_f16 ts_to_f16(float x) {
    ts_f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
}

// |x|, finite and below the largest value, as the exponent and mantissa bits of a narrower type whose exponent is
// biased by BIAS and whose mantissa has MANTISSA bits. Below the smallest normal an f32 addition does the rounding:
// beside 2^(24 - BIAS - MANTISSA) the spacing of f32 is that of the narrow type's subnormals.
template <int MANTISSA, int BIAS>
TS_DEVICE ts_u32 ts_narrow_bits(float x) {
    const ts_u32 bits = __float_as_uint(x) & 0x7FFFFFFFu;
    const int shift = 23 - MANTISSA;
    const ts_u32 magic = (ts_u32)(127 + 24 - BIAS - MANTISSA) << 23;
    if (bits < (ts_u32)(128 - BIAS) << 23)
        return __float_as_uint(__uint_as_float(bits) + __uint_as_float(magic)) - magic;
    return (bits - ((ts_u32)(127 - BIAS) << 23) + (1u << (shift - 1)) - 1 + ((bits >> shift) & 1u)) >> shift;
}

// NaN gives 0x7F in both fp8 types, as the instruction does.
TS_DEVICE ts_fp8_e4m3 ts_to_fp8_e4m3(float x) {
    ts_fp8_e4m3 result;
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    result.bits = (unsigned char)pair;
#else
    const ts_u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
    const ts_u32 magnitude = fabsf(x) < 448.0f ? ts_narrow_bits<3, 7>(x) : 0x7Eu;
    result.bits = (unsigned char)(x != x ? 0x7Fu : sign | magnitude);
#endif
    return result;
}
TS_DEVICE ts_fp8_e5m2 ts_to_fp8_e5m2(float x) {
    ts_fp8_e5m2 result;
#if __CUDA_ARCH__ >= 890
    unsigned short pair;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
    result.bits = (unsigned char)pair;
#else
    const ts_u32 sign = (__float_as_uint(x) >> 24) & 0x80u;
    const ts_u32 magnitude = fabsf(x) < 57344.0f ? ts_narrow_bits<2, 15>(x) : 0x7Bu;
    result.bits = (unsigned char)(x != x ? 0x7Fu : sign | magnitude);
#endif
    return result;
}

TS_DEVICE ts_i64 ts_to_i64(float x) { return x != x ? 0 : __float2ll_rz(x); }

template <class To> struct ts_convert;
template <> struct ts_convert<float> {
    template <class From> static TS_DEVICE float from(From x) { return ts_to_f32(x); }
};
#define TS_CONVERT_TO_FLOAT(name, function, same)                                                   \
    template <> struct ts_convert<name> {                                                           \
        static TS_DEVICE name from(name x) { return same; }                                         \
        static TS_DEVICE name from(ts_i64 x) { return function(ts_to_f32_odd(x)); }                 \
        static TS_DEVICE name from(ts_i32 x) { return function(ts_to_f32_odd(x)); }                 \
        template <class From> static TS_DEVICE name from(From x) { return function(ts_to_f32(x)); } \
    }
TS_CONVERT_TO_FLOAT(ts_bf16, ts_to_bf16, x);
TS_CONVERT_TO_FLOAT(ts_f16, ts_to_f16, x);
TS_CONVERT_TO_FLOAT(ts_fp8_e4m3, ts_to_fp8_e4m3, x);
// Infinity is no result of a rounding, not even of one from e5m2 to itself.
TS_CONVERT_TO_FLOAT(ts_fp8_e5m2, ts_to_fp8_e5m2, (x.bits & 0x7F) == 0x7C ? ts_fp8_e5m2{(unsigned char)(x.bits - 1)} : x);
#undef TS_CONVERT_TO_FLOAT
template <> struct ts_convert<bool> {
    static TS_DEVICE bool from(bool x) { return x; }
    static TS_DEVICE bool from(ts_i64 x) { return x != 0; }
    static TS_DEVICE bool from(ts_i32 x) { return x != 0; }
    static TS_DEVICE bool from(ts_i8 x) { return x != 0; }
    template <class From> static TS_DEVICE bool from(From x) { return ts_to_f32(x) != 0.0f; }
};
template <> struct ts_convert<ts_i64> {
    static TS_DEVICE ts_i64 from(ts_i64 x) { return x; }
    static TS_DEVICE ts_i64 from(ts_i32 x) { return x; }
    static TS_DEVICE ts_i64 from(ts_i8 x) { return x; }
    static TS_DEVICE ts_i64 from(bool x) { return x; }
    template <class From> static TS_DEVICE ts_i64 from(From x) { return ts_to_i64(ts_to_f32(x)); }
};
template <> struct ts_convert<ts_i32> {
    static TS_DEVICE ts_i32 from(ts_i32 x) { return x; }
    static TS_DEVICE ts_i32 from(ts_i8 x) { return x; }
    static TS_DEVICE ts_i32 from(bool x) { return x; }
    template <class From> static TS_DEVICE ts_i32 from(From x) {
        const ts_i64 wide = ts_convert<ts_i64>::from(x);
        return (ts_i32)(wide < -2147483648LL ? -2147483648LL : wide > 2147483647LL ? 2147483647LL : wide);
    }
};
template <> struct ts_convert<ts_i8> {
    static TS_DEVICE ts_i8 from(ts_i8 x) { return x; }
    template <class From> static TS_DEVICE ts_i8 from(From x) {
        const ts_i32 wide = ts_convert<ts_i32>::from(x);
        return (ts_i8)(wide < -128 ? -128 : wide > 127 ? 127 : wide);
    }
};
template <class To, class From> TS_DEVICE To ts_cast(From x) { return ts_convert<To>::from(x); }
