// A part of tessera_device.h.

// ---- pairs of 16-bit floats -------------------------------------------------------------------------------------------
// Two bf16 values in one fragment register, the lower index in the lower half.
TS_DEVICE ts_u32 ts_pack_bf16x2(ts_bf16 low, ts_bf16 high) { return (ts_u32)low.bits | ((ts_u32)high.bits << 16); }
// Two neighbouring elements of a matrix operand as one fragment register of the 16-bit format that they run in.
TS_DEVICE ts_u32 ts_operand_pair(ts_bf16 low, ts_bf16 high) { return ts_pack_bf16x2(low, high); }
TS_DEVICE ts_u32 ts_operand_pair(ts_f16 low, ts_f16 high) { return (ts_u32)low.bits | ((ts_u32)high.bits << 16); }
TS_DEVICE ts_u32 ts_operand_pair(ts_fp8_e5m2 low, ts_fp8_e5m2 high) {
    return ((ts_u32)low.bits << 8) | ((ts_u32)high.bits << 24);
}
TS_DEVICE ts_u32 ts_operand_pair(ts_fp8_e4m3 low, ts_fp8_e4m3 high) {
    ts_u32 pair;
#if __CUDA_ARCH__ >= 890
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((unsigned short)(low.bits | high.bits << 8)));
#else
    // Both halves at once: the fields at the places of f16 times 256, whose f16 is 0x5C00, and NaN put back.
    const ts_u32 bytes = (ts_u32)low.bits | ((ts_u32)high.bits << 16);
    const ts_u32 fields = ((bytes & 0x00800080u) << 8) | ((bytes & 0x007F007Fu) << 7);
    const ts_u32 nan = ((bytes & 0x007F007Fu) + 0x00010001u) & 0x00800080u;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(fields), "r"(0x5C005C00u));
    pair |= (nan << 8) - (nan >> 7);
#endif
    return pair;
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
// The two elements of a fragment register, and two neighbours as one. Halves that come from a word as bytes are one word
// again when they are or-ed; joined as bytes too, elements stay in memory so long that NVRTC 13.0 spilled 26 registers
// of gated deltas 256 wide.
template <class T>
TS_DEVICE void ts_split_pair(T* out, ts_u32 pair) { memcpy(out, &pair, 4); }
template <class T>
TS_DEVICE ts_u32 ts_joined_pair(const T* a) { return ts_operand_pair(a[0], a[1]); }
// Conversions of two elements at once, an instruction for each that is widened and one for both that are rounded. In
// C++ the compiler would take a word apart before it shifts its halves, and round one after the other.
TS_DEVICE void ts_cast_pair(float* out, const ts_bf16* a) {
    const ts_u32 pair = ts_joined_pair(a);
    asm("shl.b32 %0, %1, 16;" : "=f"(out[0]) : "r"(pair));
    asm("and.b32 %0, %1, 0xFFFF0000;" : "=f"(out[1]) : "r"(pair));
}
TS_DEVICE void ts_cast_pair(float* out, const ts_f16* a) { out[0] = ts_to_f32(a[0]), out[1] = ts_to_f32(a[1]); }
TS_DEVICE void ts_cast_pair(ts_bf16* out, const float* a) {
    ts_u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(a[1]), "f"(a[0]));
    ts_split_pair(out, pair);
}
TS_DEVICE void ts_cast_pair(ts_f16* out, const float* a) {
    ts_u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(a[1]), "f"(a[0]));
    ts_split_pair(out, pair);
}
// Sums and differences of two elements at once, rounded once: with two bits more than twice a significand's, as f32 has
// for both types, rounding to f32 first gives the same.
TS_DEVICE void ts_add_pair(ts_bf16* out, const ts_bf16* a, const ts_bf16* b) {
    ts_u32 pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(ts_joined_pair(b)), "r"(0x3F803F80u), "r"(ts_joined_pair(a)));
    ts_split_pair(out, pair);
}
TS_DEVICE void ts_sub_pair(ts_bf16* out, const ts_bf16* a, const ts_bf16* b) {
    ts_u32 pair;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"
        : "=r"(pair)
        : "r"(ts_joined_pair(b)), "r"(0xBF80BF80u), "r"(ts_joined_pair(a)));
    ts_split_pair(out, pair);
}
TS_DEVICE void ts_add_pair(ts_f16* out, const ts_f16* a, const ts_f16* b) {
    ts_u32 pair;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(ts_joined_pair(a)), "r"(ts_joined_pair(b)));
    ts_split_pair(out, pair);
}
TS_DEVICE void ts_sub_pair(ts_f16* out, const ts_f16* a, const ts_f16* b) {
    ts_u32 pair;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(ts_joined_pair(a)), "r"(ts_joined_pair(b)));
    ts_split_pair(out, pair);
}
