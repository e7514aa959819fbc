// Operands of wgmma in shared memory: where a descriptor leads, as the hardware reads it. A wrong descriptor gives wrong
// numbers, not a finding, as long as it stays inside the shared block.
//
// An operand is made of chunks of 16 bytes in rows. Rows follow one another along m or n where its panels run along k,
// and along k where they run along m or n (the transposition bit; 16-bit types only). Eight rows of one panel lie
// `pitch` bytes apart, the next eight `stride` behind them, the next panel `leading` behind. Without a swizzle a panel is
// one chunk wide, and where it runs along m or n the two distances change places.
#pragma once

namespace ts_twin __attribute__((visibility("hidden"))) {

constexpr ts_u64 DESCRIPTOR_FIELD = 0x3FFF;  // in units of 16 bytes
constexpr int SHARED_WINDOW = 1 << 18;       // bytes that the address field reaches

struct Matrix {
    ts_i64 start;  // bytes from the start of the shared block, whose alignment makes the address bits agree
    int pitch, leading, stride;
    bool transposed;
};

inline Matrix decoded(ts_u64 descriptor, bool transposed) {
    constexpr int pitches[] = {16, 128, 64, 32};
    Matrix matrix{(ts_i64)(descriptor & DESCRIPTOR_FIELD) << 4, pitches[descriptor >> 62],
                  (int)(descriptor >> 16 & DESCRIPTOR_FIELD) << 4, (int)(descriptor >> 32 & DESCRIPTOR_FIELD) << 4,
                  transposed};
    if (transposed && matrix.pitch == 16) {
        const int leading = matrix.leading;
        matrix.leading = matrix.stride;
        matrix.stride = leading;
    }
    return matrix;
}

// The swizzle crosses bits of the address itself: 4 and on with 7 and on, as many as number the chunks of a panel.
inline ts_i64 chunk_offset(const Matrix& matrix, int row, int chunk) {
    const int wide = matrix.pitch / 16;
    ts_i64 address = matrix.start + row % 8 * matrix.pitch + row / 8 * matrix.stride + chunk % wide * 16 +
                     chunk / wide * matrix.leading;
    address ^= address >> 3 & (matrix.pitch - 16);
    return address & (SHARED_WINDOW - 1);
}

// Calls visit(offset, row, chunk) for `count` places along m or n from `first` on (multiples of 8), and all of k.
template <class Visit>
inline void each_chunk(const Matrix& matrix, int first, int count, Visit visit) {
    const int first_row = matrix.transposed ? 0 : first, rows = matrix.transposed ? 16 : count;
    const int first_chunk = matrix.transposed ? first / 8 : 0, chunks = matrix.transposed ? count / 8 : 2;
    for (int row = first_row; row < first_row + rows; ++row)
        for (int chunk = first_chunk; chunk < first_chunk + chunks; ++chunk)
            visit(chunk_offset(matrix, row, chunk), row, chunk);
}

// The operand as numbers, out[place along m or n - first][k].
template <class Operand>
inline void gather(double (*out)[8 * Operand::COUNT], const Matrix& matrix, int first, int count) {
    constexpr int COUNT = Operand::COUNT;
    each_chunk(matrix, first, count, [&](ts_i64 offset, int row, int chunk) {
        ts_u32 words[4];
        double values[4 * COUNT];
        __builtin_memcpy(words, state.shared + offset, 16);
        for (int i = 0; i < 4; ++i) Operand::unpack(values + i * COUNT, words[i]);
        for (int i = 0; i < 4 * COUNT; ++i) {
            if (matrix.transposed) out[chunk * 8 + i - first][row] = values[i];
            else out[row - first][chunk * 4 * COUNT + i] = values[i];
        }
    });
}

// `agent` starts to read the operand: from here on nobody may write there who does not follow its wait.
inline void watch_operand(int agent, const Matrix& matrix, int first, int count) {
    each_chunk(matrix, first, count, [&](ts_i64 offset, int, int) {
        check_shared(thread_of(agent), state.shared + offset, 16, 16, "reads");
        if (!state.shadow) return;
        shadow_read(agent, offset, 16);
        for (int i = 0; i < 16; ++i) check_fenced(agent, state.shadow[offset + i], offset + i, "reads");
    });
}

// It reads on in a new epoch, which nothing of the old one reaches.
inline void watch_on(const Event& event, const Matrix& matrix, int first, int count) {
    each_chunk(matrix, first, count, [&](ts_i64 offset, int, int) {
        Repeated last;
        for (int i = 0; state.shadow && i < 16; ++i) {
            Shadow& byte = state.shadow[offset + i];
            if (last.repeats(byte)) continue;
            last.begin(byte);
            add_reader(byte, event);
            byte.read = event;
            last.end(byte);
        }
    });
}

}  // namespace ts_twin

TS_DEVICE ts_u64 ts_wgmma_descriptor(const char* p, int leading, int stride, int swizzle, TS_TWIN_LINE) {
    using namespace ts_twin;
    at(line);
    const ts_i64 offset = p - state.shared;
    if (offset < 0 || offset > state.shared_bytes)
        fail(SHARED_BOUNDS, state.thread, "describes an operand at offset %lld of a shared block of %lld bytes", offset,
             state.shared_bytes);
    if (offset % 16 || leading % 16 || stride % 16)
        fail(MISALIGNED, state.thread, "describes an operand at shared offset %lld with distances of %d and %d bytes; each is a multiple of 16",
             offset, leading, stride);
    if (leading < 0 || stride < 0 || leading >= SHARED_WINDOW || stride >= SHARED_WINDOW)
        fail(SHARED_BOUNDS, state.thread, "describes an operand with distances of %d and %d bytes; a descriptor holds less than %d",
             leading, stride, SHARED_WINDOW);
    if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128)
        fail(MISALIGNED, state.thread, "describes an operand with a swizzle of %d bytes; there are 0, 32, 64 and 128", swizzle);
    const ts_u64 mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
    return (ts_u64)offset >> 4 | (ts_u64)(leading >> 4) << 16 | (ts_u64)(stride >> 4) << 32 | mode << 62;
}
