// Warp collectives with data: shuffles, ldmatrix, stmatrix and mma, and the f32 product rule. The last lane to arrive works for
// all 32. A matrix product's bits are defined as the interpreter defines them: for each k-block of an mma (its depth;
// 8 for f32) the products are summed in float64 in ascending k, starting from +0, and acc = f32(acc + sum).
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

// Deposits: out = the lane's value, detail = the lane to read from.
inline void perform_shuffle(Warp& warp) {
    if (ts_twin_counter* totals = counter(fiber().line)) ++totals->warp_collectives;
    ts_u32 values[32];
    for (int lane = 0; lane < 32; ++lane) __builtin_memcpy(&values[lane], warp.deposits[lane].out, 4);
    for (int lane = 0; lane < 32; ++lane) {
        const Deposit& deposit = warp.deposits[lane];
        __builtin_memcpy(deposit.out, &values[deposit.detail & 31], 4);
    }
}

inline ts_twin_counter* counter_here() { return counter(fiber().line); }

// One ldmatrix or stmatrix; the eight rows of a matrix are served together.
template <int MATRICES>
inline void count_matrices(const Warp& warp, ts_twin_traffic ts_twin_counter::*traffic) {
    ts_twin_counter* totals = counter_here();
    if (!totals) return;
    Request request{};
    request.bytes = 16;
    for (int lane = 0; lane < 8 * MATRICES; ++lane) request.address[lane] = (ts_u64)warp.deposits[lane].first;
    int wavefronts = 0;
    for (int matrix = 0; matrix < MATRICES; ++matrix) {
        request.mask = 0xFFu << 8 * matrix;
        wavefronts += wavefronts_of(request, request.mask);
    }
    add(totals->*traffic, wavefronts, MATRICES, 128 * MATRICES);
}

// Deposits: out = ts_u32[MATRICES], first = the address of a row.
template <int MATRICES, bool TRANS>
inline void perform_ldmatrix(Warp& warp) {
    const int first_thread = (int)(&warp - state.warp) * 32;
    count_matrices<MATRICES>(warp, &ts_twin_counter::shared_read);
    for (int matrix = 0; matrix < MATRICES; ++matrix) {
        unsigned short elements[8][8];
        for (int row = 0; row < 8; ++row) {
            const int lane = matrix * 8 + row;
            const char* p = (const char*)warp.deposits[lane].first;
            __builtin_memcpy(elements[row], read_shared(first_thread + lane, p, 16, 16), 16);
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int i = lane / 4, j = lane % 4 * 2;
            const ts_u32 low = TRANS ? elements[j][i] : elements[i][j];
            const ts_u32 high = TRANS ? elements[j + 1][i] : elements[i][j + 1];
            ((ts_u32*)warp.deposits[lane].out)[matrix] = low | high << 16;
        }
    }
}

// Deposits: second = const ts_u32[MATRICES], first = the address of a row.
template <int MATRICES, bool TRANS>
inline void perform_stmatrix(Warp& warp) {
    const int first_thread = (int)(&warp - state.warp) * 32;
    count_matrices<MATRICES>(warp, &ts_twin_counter::shared_write);
    for (int matrix = 0; matrix < MATRICES; ++matrix) {
        unsigned short elements[8][8];
        for (int lane = 0; lane < 32; ++lane) {
            const int i = lane / 4, j = lane % 4 * 2;
            const ts_u32 word = ((const ts_u32*)warp.deposits[lane].second)[matrix];
            (TRANS ? elements[j][i] : elements[i][j]) = (unsigned short)word;
            (TRANS ? elements[j + 1][i] : elements[i][j + 1]) = (unsigned short)(word >> 16);
        }
        for (int row = 0; row < 8; ++row) {
            const int lane = matrix * 8 + row;
            write_shared(first_thread + lane, (char*)warp.deposits[lane].first, (const char*)elements[row], 16);
        }
    }
}

// A shape and a transposition of its own make another instruction: the lanes must agree on it.
inline void check_same_matrices(const Warp& warp, int detail) {
    for (int lane = 0; lane < 32; ++lane)
        if (warp.deposits[lane].detail != detail)
            fail(DIVERGENT, state.thread, "the lanes of warp %d wait in different %s instructions", state.thread / 32,
                 waiting_names[warp.collective]);
}

template <int MATRICES, bool TRANS>
inline void ldmatrix(ts_u32* r, const char* row, int line) {
    at(line);
    rendezvous(LDMATRIX, Deposit{MATRICES * 2 + TRANS, r, row, nullptr}, [](Warp& warp) {
        check_same_matrices(warp, MATRICES * 2 + TRANS);
        perform_ldmatrix<MATRICES, TRANS>(warp);
    });
}

template <int MATRICES, bool TRANS>
inline void stmatrix(char* row, const ts_u32* r, int line) {
    at(line);
    rendezvous(STMATRIX, Deposit{MATRICES * 2 + TRANS, nullptr, row, r}, [](Warp& warp) {
        check_same_matrices(warp, MATRICES * 2 + TRANS);
        perform_stmatrix<MATRICES, TRANS>(warp);
    });
}

inline double unpack_f32(ts_u32 bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

// How each kind of operand lies in a word of a fragment.
struct Bf16Pair {
    static constexpr int COUNT = 2;
    static void unpack(double* out, ts_u32 word) {
        out[0] = unpack_f32(word << 16);
        out[1] = unpack_f32(word & 0xFFFF0000u);
    }
};
struct F16Pair {
    static constexpr int COUNT = 2;
    static void unpack(double* out, ts_u32 word) {
        out[0] = ts_to_f32(ts_f16{(unsigned short)word});
        out[1] = ts_to_f32(ts_f16{(unsigned short)(word >> 16)});
    }
};
struct E4m3Quad {
    static constexpr int COUNT = 4;
    static void unpack(double* out, ts_u32 word) {
        for (int i = 0; i < 4; ++i) out[i] = ts_to_f32(ts_fp8_e4m3{(unsigned char)(word >> 8 * i)});
    }
};
struct E5m2Quad {
    static constexpr int COUNT = 4;
    static void unpack(double* out, ts_u32 word) {
        for (int i = 0; i < 4; ++i) out[i] = ts_to_f32(ts_fp8_e5m2{(unsigned char)(word >> 8 * i)});
    }
};
struct Tf32 {
    static constexpr int COUNT = 1;
    // As the hardware does: a fragment that was not rounded before loses its low bits.
    static void unpack(double* out, ts_u32 word) { out[0] = unpack_f32(word & 0xFFFFE000u); }
};

// The words of A that a lane holds, for a product of 16 rows.
template <class Operand>
inline void unpack_a(double (*a)[8 * Operand::COUNT], int lane, const ts_u32* words) {
    constexpr int COUNT = Operand::COUNT;
    for (int i = 0; i < 4; ++i)
        Operand::unpack(&a[lane / 4 + 8 * (i % 2)][COUNT * (lane % 4 + 4 * (i / 2))], words[i]);
}

// The rule of a k-block.
template <int DEPTH>
inline float add_block(float c, const double* row, const double* column) {
    double sum = 0.0;
    for (int k = 0; k < DEPTH; ++k) sum += row[k] * column[k];
    return (float)((double)c + sum);
}

// m16n8k(8 * COUNT). Deposits: out = float c[4], first = ts_u32 a[4], second = ts_u32 b[2]. With g = lane / 4,
// t = lane % 4 and COUNT operands in a word: a[i] holds row g + 8 (i % 2), columns COUNT (t + 4 (i / 2)) and on;
// b[i] rows COUNT (t + 4 i) and on of column g; c[i] row g + 8 (i / 2), column 2 t + i % 2.
template <class Operand>
inline void perform_mma(Warp& warp) {
    if (ts_twin_counter* totals = counter_here()) ++totals->mma;
    constexpr int COUNT = Operand::COUNT, DEPTH = 8 * COUNT;
    double a[16][DEPTH], b[8][DEPTH];  // b by columns, so that a product runs along k in both
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const ts_u32* from_b = (const ts_u32*)warp.deposits[lane].second;
        unpack_a<Operand>(a, lane, (const ts_u32*)warp.deposits[lane].first);
        for (int i = 0; i < 2; ++i) Operand::unpack(&b[g][COUNT * (t + 4 * i)], from_b[i]);
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* c = (float*)warp.deposits[lane].out;
        for (int i = 0; i < 4; ++i) {
            c[i] = add_block<DEPTH>(c[i], a[lane / 4 + 8 * (i / 2)], b[lane % 4 * 2 + i % 2]);
        }
    }
}

template <class Operand>
inline void mma(float* c, const ts_u32* a, const ts_u32* b, int line) {
    at(line);
    rendezvous(MMA, Deposit{Operand::COUNT, c, a, b}, perform_mma<Operand>);
}

}  // namespace ts_twin

template <class T>
TS_DEVICE T ts_shfl(T value, int lane, TS_TWIN_LINE) {
    ts_twin::at(line);
    ts_u32 words[(sizeof(T) + 3) / 4] = {};
    __builtin_memcpy(words, &value, sizeof(T));
    for (ts_u32& word : words)
        ts_twin::rendezvous(ts_twin::SHUFFLE, ts_twin::Deposit{lane, &word, nullptr, nullptr}, ts_twin::perform_shuffle);
    __builtin_memcpy(&value, words, sizeof(T));
    return value;
}
template <class T>
TS_DEVICE T ts_shfl_xor(T value, int mask, TS_TWIN_LINE) {
    return ts_shfl(value, ts_lane() ^ mask, line);
}

TS_DEVICE void ts_ldmatrix_x1(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<1, false>(r, row, line); }
TS_DEVICE void ts_ldmatrix_x2(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<2, false>(r, row, line); }
TS_DEVICE void ts_ldmatrix_x4(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<4, false>(r, row, line); }
TS_DEVICE void ts_ldmatrix_x1_trans(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<1, true>(r, row, line); }
TS_DEVICE void ts_ldmatrix_x2_trans(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<2, true>(r, row, line); }
TS_DEVICE void ts_ldmatrix_x4_trans(ts_u32* r, const char* row, TS_TWIN_LINE) { ts_twin::ldmatrix<4, true>(r, row, line); }

TS_DEVICE void ts_stmatrix_x1(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<1, false>(row, r, line); }
TS_DEVICE void ts_stmatrix_x2(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<2, false>(row, r, line); }
TS_DEVICE void ts_stmatrix_x4(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<4, false>(row, r, line); }
TS_DEVICE void ts_stmatrix_x1_trans(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<1, true>(row, r, line); }
TS_DEVICE void ts_stmatrix_x2_trans(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<2, true>(row, r, line); }
TS_DEVICE void ts_stmatrix_x4_trans(char* row, const ts_u32* r, TS_TWIN_LINE) { ts_twin::stmatrix<4, true>(row, r, line); }

TS_DEVICE void ts_mma_m16n8k16_bf16(float* c, const ts_u32* a, const ts_u32* b, TS_TWIN_LINE) {
    ts_twin::mma<ts_twin::Bf16Pair>(c, a, b, line);
}
TS_DEVICE void ts_mma_m16n8k16_f16(float* c, const ts_u32* a, const ts_u32* b, TS_TWIN_LINE) {
    ts_twin::mma<ts_twin::F16Pair>(c, a, b, line);
}
TS_DEVICE void ts_mma_m16n8k8_tf32(float* c, const ts_u32* a, const ts_u32* b, TS_TWIN_LINE) {
    ts_twin::mma<ts_twin::Tf32>(c, a, b, line);
}

// To nearest, ties away from zero: half of the dropped bits more carries into the kept ones. NaN is NaN.
TS_DEVICE ts_u32 ts_round_tf32(ts_u32 bits) {
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFFFFFu;
    return (bits & 0x7F800000u) == 0x7F800000u ? bits : (bits + 0x1000u) & ~0x1FFFu;
}
TS_DEVICE ts_u32 ts_round_tf32(float x) {
    ts_u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return ts_round_tf32(bits);
}

// The device adds eight fused multiply-adds one by one; the defined bits are one rounding per block of 8.
TS_DEVICE float ts_fma_block8(float acc, const float* a, int a_stride, const float* b, int b_stride) {
    double sum = 0.0;
    for (int k = 0; k < 8; ++k) sum += (double)a[k * a_stride] * (double)b[k * b_stride];
    return (float)((double)acc + sum);
}
