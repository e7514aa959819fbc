// A part of tessera_device.h: what only sm_90a has, and what goes with it. Nothing here costs a kernel that does not use
// it: inline functions that are not called, and macros, leave no instruction, so texts for other architectures pass.

// ---- wgmma: products of a warpgroup ----------------------------------------------------------------------------
// Four warps, of which the first has a number that is a multiple of four, multiply 64 rows by N columns: 16 bits of k
// at once for bf16 and f16, 32 for the 8-bit types. A thread's accumulators and its words of A lie as in mma.sync, warp
// w of the four holding rows 16 w and on: acc[4 j + e] is element e of column block j.
//
// A product is asynchronous. From the call to the ts_wgmma_wait that covers its group and names its accumulators,
// these, its words of A and its operands in shared memory belong to it; only further products of the same shape may
// take the same accumulators. All four warps execute each of these functions, with the same arguments.

// Operands in shared memory: bits 0-13 the address, 16-29 the leading and 32-45 the stride distance, each in units of
// 16 bytes, 62-63 the swizzle. The hardware crosses bits 4 and on of each address with bits 7 and on, so swizzled
// panels begin at multiples of 1024 (128 bytes), 512 (64) or 256 (32), which leaves the base offset, bits 49-51, zero.
TS_DEVICE ts_u64 ts_wgmma_descriptor(const char* p, int leading, int stride, int swizzle) {
    const ts_u64 mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    return (ts_u64)((ts_shared_address(p) & 0x3FFFFu) >> 4) | (ts_u64)(leading >> 4) << 16 | (ts_u64)(stride >> 4) << 32 |
           mode << 62;
}

// Makes what the threads wrote to accumulators and words of A visible to the products after it; stands directly before
// them, since the assembler adds one of its own (C7519) where arithmetic has sunk below.
TS_DEVICE void ts_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TS_DEVICE void ts_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N of the youngest groups are in flight; the COUNT registers at `acc` are valid then. Naming them
// keeps the compiler from moving their uses above the wait. A wait for operands alone has COUNT 0.
template <int N, int COUNT>
TS_DEVICE void ts_wgmma_wait(float* acc) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
    TS_UNROLL
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(acc[i])::"memory");
}

// The registers of the accumulators of N columns, in groups of four, and the numbers of the operands behind them.
#define TS_WGMMA_8(FIRST, NEXT) FIRST(0, 1, 2, 3)
#define TS_WGMMA_16(FIRST, NEXT) TS_WGMMA_8(FIRST, NEXT) NEXT(4, 5, 6, 7)
#define TS_WGMMA_24(FIRST, NEXT) TS_WGMMA_16(FIRST, NEXT) NEXT(8, 9, 10, 11)
#define TS_WGMMA_32(FIRST, NEXT) TS_WGMMA_24(FIRST, NEXT) NEXT(12, 13, 14, 15)
#define TS_WGMMA_40(FIRST, NEXT) TS_WGMMA_32(FIRST, NEXT) NEXT(16, 17, 18, 19)
#define TS_WGMMA_48(FIRST, NEXT) TS_WGMMA_40(FIRST, NEXT) NEXT(20, 21, 22, 23)
#define TS_WGMMA_56(FIRST, NEXT) TS_WGMMA_48(FIRST, NEXT) NEXT(24, 25, 26, 27)
#define TS_WGMMA_64(FIRST, NEXT) TS_WGMMA_56(FIRST, NEXT) NEXT(28, 29, 30, 31)
#define TS_WGMMA_72(FIRST, NEXT) TS_WGMMA_64(FIRST, NEXT) NEXT(32, 33, 34, 35)
#define TS_WGMMA_80(FIRST, NEXT) TS_WGMMA_72(FIRST, NEXT) NEXT(36, 37, 38, 39)
#define TS_WGMMA_88(FIRST, NEXT) TS_WGMMA_80(FIRST, NEXT) NEXT(40, 41, 42, 43)
#define TS_WGMMA_96(FIRST, NEXT) TS_WGMMA_88(FIRST, NEXT) NEXT(44, 45, 46, 47)
#define TS_WGMMA_104(FIRST, NEXT) TS_WGMMA_96(FIRST, NEXT) NEXT(48, 49, 50, 51)
#define TS_WGMMA_112(FIRST, NEXT) TS_WGMMA_104(FIRST, NEXT) NEXT(52, 53, 54, 55)
#define TS_WGMMA_120(FIRST, NEXT) TS_WGMMA_112(FIRST, NEXT) NEXT(56, 57, 58, 59)
#define TS_WGMMA_128(FIRST, NEXT) TS_WGMMA_120(FIRST, NEXT) NEXT(60, 61, 62, 63)
#define TS_WGMMA_136(FIRST, NEXT) TS_WGMMA_128(FIRST, NEXT) NEXT(64, 65, 66, 67)
#define TS_WGMMA_144(FIRST, NEXT) TS_WGMMA_136(FIRST, NEXT) NEXT(68, 69, 70, 71)
#define TS_WGMMA_152(FIRST, NEXT) TS_WGMMA_144(FIRST, NEXT) NEXT(72, 73, 74, 75)
#define TS_WGMMA_160(FIRST, NEXT) TS_WGMMA_152(FIRST, NEXT) NEXT(76, 77, 78, 79)
#define TS_WGMMA_168(FIRST, NEXT) TS_WGMMA_160(FIRST, NEXT) NEXT(80, 81, 82, 83)
#define TS_WGMMA_176(FIRST, NEXT) TS_WGMMA_168(FIRST, NEXT) NEXT(84, 85, 86, 87)
#define TS_WGMMA_184(FIRST, NEXT) TS_WGMMA_176(FIRST, NEXT) NEXT(88, 89, 90, 91)
#define TS_WGMMA_192(FIRST, NEXT) TS_WGMMA_184(FIRST, NEXT) NEXT(92, 93, 94, 95)
#define TS_WGMMA_200(FIRST, NEXT) TS_WGMMA_192(FIRST, NEXT) NEXT(96, 97, 98, 99)
#define TS_WGMMA_208(FIRST, NEXT) TS_WGMMA_200(FIRST, NEXT) NEXT(100, 101, 102, 103)
#define TS_WGMMA_216(FIRST, NEXT) TS_WGMMA_208(FIRST, NEXT) NEXT(104, 105, 106, 107)
#define TS_WGMMA_224(FIRST, NEXT) TS_WGMMA_216(FIRST, NEXT) NEXT(108, 109, 110, 111)
#define TS_WGMMA_232(FIRST, NEXT) TS_WGMMA_224(FIRST, NEXT) NEXT(112, 113, 114, 115)
#define TS_WGMMA_240(FIRST, NEXT) TS_WGMMA_232(FIRST, NEXT) NEXT(116, 117, 118, 119)
#define TS_WGMMA_248(FIRST, NEXT) TS_WGMMA_240(FIRST, NEXT) NEXT(120, 121, 122, 123)
#define TS_WGMMA_256(FIRST, NEXT) TS_WGMMA_248(FIRST, NEXT) NEXT(124, 125, 126, 127)
#define TS_WGMMA_INPUTS_8 4, 5, 6, 7, 8, 9, 10, 11
#define TS_WGMMA_INPUTS_16 8, 9, 10, 11, 12, 13, 14, 15
#define TS_WGMMA_INPUTS_24 12, 13, 14, 15, 16, 17, 18, 19
#define TS_WGMMA_INPUTS_32 16, 17, 18, 19, 20, 21, 22, 23
#define TS_WGMMA_INPUTS_40 20, 21, 22, 23, 24, 25, 26, 27
#define TS_WGMMA_INPUTS_48 24, 25, 26, 27, 28, 29, 30, 31
#define TS_WGMMA_INPUTS_56 28, 29, 30, 31, 32, 33, 34, 35
#define TS_WGMMA_INPUTS_64 32, 33, 34, 35, 36, 37, 38, 39
#define TS_WGMMA_INPUTS_72 36, 37, 38, 39, 40, 41, 42, 43
#define TS_WGMMA_INPUTS_80 40, 41, 42, 43, 44, 45, 46, 47
#define TS_WGMMA_INPUTS_88 44, 45, 46, 47, 48, 49, 50, 51
#define TS_WGMMA_INPUTS_96 48, 49, 50, 51, 52, 53, 54, 55
#define TS_WGMMA_INPUTS_104 52, 53, 54, 55, 56, 57, 58, 59
#define TS_WGMMA_INPUTS_112 56, 57, 58, 59, 60, 61, 62, 63
#define TS_WGMMA_INPUTS_120 60, 61, 62, 63, 64, 65, 66, 67
#define TS_WGMMA_INPUTS_128 64, 65, 66, 67, 68, 69, 70, 71
#define TS_WGMMA_INPUTS_136 68, 69, 70, 71, 72, 73, 74, 75
#define TS_WGMMA_INPUTS_144 72, 73, 74, 75, 76, 77, 78, 79
#define TS_WGMMA_INPUTS_152 76, 77, 78, 79, 80, 81, 82, 83
#define TS_WGMMA_INPUTS_160 80, 81, 82, 83, 84, 85, 86, 87
#define TS_WGMMA_INPUTS_168 84, 85, 86, 87, 88, 89, 90, 91
#define TS_WGMMA_INPUTS_176 88, 89, 90, 91, 92, 93, 94, 95
#define TS_WGMMA_INPUTS_184 92, 93, 94, 95, 96, 97, 98, 99
#define TS_WGMMA_INPUTS_192 96, 97, 98, 99, 100, 101, 102, 103
#define TS_WGMMA_INPUTS_200 100, 101, 102, 103, 104, 105, 106, 107
#define TS_WGMMA_INPUTS_208 104, 105, 106, 107, 108, 109, 110, 111
#define TS_WGMMA_INPUTS_216 108, 109, 110, 111, 112, 113, 114, 115
#define TS_WGMMA_INPUTS_224 112, 113, 114, 115, 116, 117, 118, 119
#define TS_WGMMA_INPUTS_232 116, 117, 118, 119, 120, 121, 122, 123
#define TS_WGMMA_INPUTS_240 120, 121, 122, 123, 124, 125, 126, 127
#define TS_WGMMA_INPUTS_248 124, 125, 126, 127, 128, 129, 130, 131
#define TS_WGMMA_INPUTS_256 128, 129, 130, 131, 132, 133, 134, 135

#define TS_WGMMA_TEXT_FIRST(a, b, c, d) "%" #a ", %" #b ", %" #c ", %" #d
#define TS_WGMMA_TEXT_NEXT(a, b, c, d) ", %" #a ", %" #b ", %" #c ", %" #d
#define TS_WGMMA_ACC_FIRST(a, b, c, d) "+f"(acc[a]), "+f"(acc[b]), "+f"(acc[c]), "+f"(acc[d])
#define TS_WGMMA_ACC_NEXT(a, b, c, d) , "+f"(acc[a]), "+f"(acc[b]), "+f"(acc[c]), "+f"(acc[d])

// By type: depth in k, the types of A and B, the largest transposition bit, and the bits as immediates: 8-bit types have
// none.
#define TS_WGMMA_TYPE_bf16 16, ".bf16.bf16", 1, TS_WGMMA_BITS
#define TS_WGMMA_TYPE_f16 16, ".f16.f16", 1, TS_WGMMA_BITS
#define TS_WGMMA_TYPE_e4m3 32, ".e4m3.e4m3", 0, TS_WGMMA_NO_BITS
#define TS_WGMMA_TYPE_e5m2 32, ".e5m2.e5m2", 0, TS_WGMMA_NO_BITS
#define TS_WGMMA_TYPE_e4m3_e5m2 32, ".e4m3.e5m2", 0, TS_WGMMA_NO_BITS
#define TS_WGMMA_TYPE_e5m2_e4m3 32, ".e5m2.e4m3", 0, TS_WGMMA_NO_BITS
#define TS_WGMMA_BITS(text) text
#define TS_WGMMA_NO_BITS(text) ""

#define TS_WGMMA_CALL(macro, ...) macro(__VA_ARGS__)
#define TS_WGMMA_TEXT(TYPES, N, K, p) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k" #K ".f32" TYPES " {" \
    TS_WGMMA_##N(TS_WGMMA_TEXT_FIRST, TS_WGMMA_TEXT_NEXT) "}, "

// Both operands in shared memory.
#define TS_WGMMA_SS(T, N, K, TYPES, MOST, BITS, i0, i1, i2, i3, i4, i5, i6, i7)                                      \
    template <int TRANS_A, int TRANS_B>                                                                              \
    TS_DEVICE void ts_wgmma_##T##_n##N##_ss(float* acc, ts_u64 a, ts_u64 b, bool accumulate) {                       \
        static_assert(0 <= TRANS_A && TRANS_A <= MOST && 0 <= TRANS_B && TRANS_B <= MOST, "no such transposition");  \
        asm volatile(TS_WGMMA_TEXT(TYPES, N, K, i2) "%" #i0 ", %" #i1 ", p, 1, 1" BITS(", %" #i3 ", %" #i4) ";\n}"        \
                     : TS_WGMMA_##N(TS_WGMMA_ACC_FIRST, TS_WGMMA_ACC_NEXT)                                           \
                     : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANS_A), "n"(TRANS_B)                              \
                     : "memory");                                                                                    \
    }
// A in registers, never transposed.
#define TS_WGMMA_RS(T, N, K, TYPES, MOST, BITS, i0, i1, i2, i3, i4, i5, i6, i7)                                      \
    template <int TRANS_B>                                                                                           \
    TS_DEVICE void ts_wgmma_##T##_n##N##_rs(float* acc, const ts_u32* a, ts_u64 b, bool accumulate) {                \
        static_assert(0 <= TRANS_B && TRANS_B <= MOST, "no such transposition");                                     \
        asm volatile(TS_WGMMA_TEXT(TYPES, N, K, i5) "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1"    \
                     BITS(", %" #i6) ";\n}"                                                                           \
                     : TS_WGMMA_##N(TS_WGMMA_ACC_FIRST, TS_WGMMA_ACC_NEXT)                                           \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANS_B)        \
                     : "memory");                                                                                    \
    }

// At file scope, once for each type (bf16, f16, e4m3, e5m2, or those of A and B: e4m3_e5m2, e5m2_e4m3) and N (8 to 256 in
// steps of 8) that a text uses: declares ts_wgmma_<T>_n<N>_ss and _rs. acc has N / 2 registers. The product is added to them, or takes their place where
// `accumulate` is false: then they need not hold anything before. A transposition bit of 1 says that the descriptor's
// panels run along m or n, 0 that they run along k.
#define TS_WGMMA(T, N)                                                                 \
    TS_WGMMA_CALL(TS_WGMMA_SS, T, N, TS_WGMMA_TYPE_##T, TS_WGMMA_INPUTS_##N)           \
    TS_WGMMA_CALL(TS_WGMMA_RS, T, N, TS_WGMMA_TYPE_##T, TS_WGMMA_INPUTS_##N)

// ---- registers of a warpgroup ----------------------------------------------------------------------------------
// Moves registers between warpgroups: those of one say how many each of their threads holds from here on. An increase
// waits until others have given enough back. All four warps take part. A kernel that calls these is declared with
// TS_KERNEL_OCC: else the assembler does not know how many each thread has at the start, and ignores them (C7508).

template <int N>
TS_DEVICE void ts_registers_increase() {
    static_assert(N % 8 == 0 && 24 <= N && N <= 256, "registers come in multiples of 8, from 24 to 256");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
TS_DEVICE void ts_registers_decrease() {
    static_assert(N % 8 == 0 && 24 <= N && N <= 256, "registers come in multiples of 8, from 24 to 256");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- order -----------------------------------------------------------------------------------------------------

// What this thread wrote to shared memory by ordinary stores becomes visible to TMA and wgmma. A barrier that tells
// whoever starts them comes after it.
TS_DEVICE void ts_fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier among `threads` threads, whole warps, under a number of 1 to 15; 0 is that of ts_barrier.
TS_DEVICE void ts_barrier_of(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// One arrival for a warp, by the lane that a vote on `word` picks: the exclusive or of the registers that each lane read
// from what it hands back. So the arrival needs the data and cannot overtake it, as one after ldmatrix can; a branch
// round it between products would make the assembler run them one by one (C7520), so it has a predicate.
TS_DEVICE void ts_mbarrier_arrive_after(char* barrier, ts_u32 word) {
    const ts_u32 votes = __ballot_sync(0xFFFFFFFFu, word & 1u);
    const int lane = 31 - __clz((int)(votes | 1u));
    asm volatile("{ .reg .pred p; .reg .b64 s; setp.eq.s32 p, %1, %2; @p mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(
                     ts_shared_address(barrier)),
                 "r"(ts_lane()), "r"(lane)
                 : "memory");
}

// ---- stmatrix --------------------------------------------------------------------------------------------------
// The inverse of ldmatrix, with the same addresses and registers.

#define TS_STMATRIX_X1(name, qualifier)                                                                                \
    TS_DEVICE void name(char* row, const ts_u32* r) {                                                                  \
        asm volatile("stmatrix.sync.aligned.m8n8.x1" qualifier ".shared.b16 [%0], {%1};" ::"r"(ts_shared_address(row)), \
                     "r"(r[0])                                                                                         \
                     : "memory");                                                                                      \
    }
#define TS_STMATRIX_X2(name, qualifier)                                                                          \
    TS_DEVICE void name(char* row, const ts_u32* r) {                                                            \
        asm volatile("stmatrix.sync.aligned.m8n8.x2" qualifier ".shared.b16 [%0], {%1, %2};" ::"r"(              \
                         ts_shared_address(row)),                                                                \
                     "r"(r[0]), "r"(r[1])                                                                        \
                     : "memory");                                                                                \
    }
#define TS_STMATRIX_X4(name, qualifier)                                                                          \
    TS_DEVICE void name(char* row, const ts_u32* r) {                                                            \
        asm volatile("stmatrix.sync.aligned.m8n8.x4" qualifier ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(      \
                         ts_shared_address(row)),                                                                \
                     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])                                                  \
                     : "memory");                                                                                \
    }
TS_STMATRIX_X1(ts_stmatrix_x1, "")
TS_STMATRIX_X2(ts_stmatrix_x2, "")
TS_STMATRIX_X4(ts_stmatrix_x4, "")
TS_STMATRIX_X1(ts_stmatrix_x1_trans, ".trans")
TS_STMATRIX_X2(ts_stmatrix_x2_trans, ".trans")
TS_STMATRIX_X4(ts_stmatrix_x4_trans, ".trans")
#undef TS_STMATRIX_X1
#undef TS_STMATRIX_X2
#undef TS_STMATRIX_X4
