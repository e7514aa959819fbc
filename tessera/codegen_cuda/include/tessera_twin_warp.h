// Warp collectives with data: shuffles, ldmatrix and mma, and the f32 product rule. The last lane to arrive works for
// all 32. A matrix product's bits are defined as the interpreter defines them: for each k-block of an mma (16 for bf16,
// 8 for f32) the products are summed in float64 in ascending k, starting from +0, and acc = f32(acc + sum).
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

// Deposits: out = the lane's value, detail = the lane to read from.
inline void perform_shuffle(Warp& warp) {
    ts_u32 values[32];
    for (int lane = 0; lane < 32; ++lane) __builtin_memcpy(&values[lane], warp.deposits[lane].out, 4);
    for (int lane = 0; lane < 32; ++lane) {
        const Deposit& deposit = warp.deposits[lane];
        __builtin_memcpy(deposit.out, &values[deposit.detail & 31], 4);
    }
}

// Deposits: out = ts_u32[MATRICES], first = the address of a row.
template <int MATRICES, bool TRANS>
inline void perform_ldmatrix(Warp& warp) {
    const int first_thread = (int)(&warp - state.warp) * 32;
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

template <int MATRICES, bool TRANS>
inline void ldmatrix(ts_u32* r, const char* row) {
    // A shape and a transposition of its own make another instruction: the lanes must agree on it.
    Deposit deposit{MATRICES * 2 + TRANS, r, row, nullptr};
    rendezvous(LDMATRIX, deposit, [](Warp& warp) {
        for (int lane = 0; lane < 32; ++lane)
            if (warp.deposits[lane].detail != MATRICES * 2 + TRANS)
                fail(DIVERGENT, state.thread, "the lanes of warp %d wait in different ldmatrix instructions",
                     state.thread / 32);
        perform_ldmatrix<MATRICES, TRANS>(warp);
    });
}

inline void unpack_bf16x2(double* out, ts_u32 pair) {
    float value;
    ts_u32 bits = pair << 16;
    __builtin_memcpy(&value, &bits, 4);
    out[0] = value;
    bits = pair & 0xFFFF0000u;
    __builtin_memcpy(&value, &bits, 4);
    out[1] = value;
}

// Deposits: out = float c[4], first = ts_u32 a[4], second = ts_u32 b[2]. With g = lane / 4 and t = lane % 4:
// a[i] holds row g + 8 (i % 2), columns 2 t + 8 (i / 2) and one more; b[i] rows 2 t + 8 i and one more of column g;
// c[i] row g + 8 (i / 2), column 2 t + i % 2.
inline void perform_mma_m16n8k16(Warp& warp) {
    double a[16][16], b[8][16];  // b by columns, so that a product runs along k in both
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        const ts_u32* from_a = (const ts_u32*)warp.deposits[lane].first;
        const ts_u32* from_b = (const ts_u32*)warp.deposits[lane].second;
        for (int i = 0; i < 4; ++i) unpack_bf16x2(&a[g + 8 * (i % 2)][2 * t + 8 * (i / 2)], from_a[i]);
        for (int i = 0; i < 2; ++i) unpack_bf16x2(&b[g][2 * t + 8 * i], from_b[i]);
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* c = (float*)warp.deposits[lane].out;
        for (int i = 0; i < 4; ++i) {
            const double* row = a[lane / 4 + 8 * (i / 2)];
            const double* column = b[lane % 4 * 2 + i % 2];
            double sum = 0.0;
            for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
            c[i] = (float)((double)c[i] + sum);
        }
    }
}

}  // namespace ts_twin

template <class T>
TS_DEVICE T ts_shfl(T value, int lane) {
    static_assert(sizeof(T) == 4, "shuffles move 4 bytes");
    ts_twin::rendezvous(ts_twin::SHUFFLE, ts_twin::Deposit{lane, &value, nullptr, nullptr}, ts_twin::perform_shuffle);
    return value;
}
template <class T>
TS_DEVICE T ts_shfl_xor(T value, int mask) {
    return ts_shfl(value, ts_lane() ^ mask);
}

TS_DEVICE void ts_ldmatrix_x1(ts_u32* r, const char* row) { ts_twin::ldmatrix<1, false>(r, row); }
TS_DEVICE void ts_ldmatrix_x2(ts_u32* r, const char* row) { ts_twin::ldmatrix<2, false>(r, row); }
TS_DEVICE void ts_ldmatrix_x4(ts_u32* r, const char* row) { ts_twin::ldmatrix<4, false>(r, row); }
TS_DEVICE void ts_ldmatrix_x1_trans(ts_u32* r, const char* row) { ts_twin::ldmatrix<1, true>(r, row); }
TS_DEVICE void ts_ldmatrix_x2_trans(ts_u32* r, const char* row) { ts_twin::ldmatrix<2, true>(r, row); }
TS_DEVICE void ts_ldmatrix_x4_trans(ts_u32* r, const char* row) { ts_twin::ldmatrix<4, true>(r, row); }

TS_DEVICE void ts_mma_m16n8k16_bf16(float* c, const ts_u32* a, const ts_u32* b) {
    ts_twin::rendezvous(ts_twin::MMA, ts_twin::Deposit{0, c, a, b}, ts_twin::perform_mma_m16n8k16);
}

// The device adds eight fused multiply-adds one by one; the defined bits are one rounding per block of 8.
TS_DEVICE float ts_fma_block8(float acc, const float* a, int a_stride, const float* b, int b_stride) {
    double sum = 0.0;
    for (int k = 0; k < 8; ++k) sum += (double)a[k * a_stride] * (double)b[k * b_stride];
    return (float)((double)acc + sum);
}
