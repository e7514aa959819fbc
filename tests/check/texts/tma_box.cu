#include "tessera_device.h"
// Loads the box of x at `from`, leaves its bytes as they lie in shared memory in raw, and stores it to y at `to`.
#define START 1024

TS_DEVICE void begin(char* shared, int bytes) {
    if (ts_thread() == 0) {
        ts_mbarrier_init(shared, 1);
        ts_mbarrier_fence();
        ts_mbarrier_expect(shared, bytes);
    }
    ts_barrier();
}

TS_DEVICE void copy_raw(char* shared, ts_u32* raw, int bytes) {
    ts_mbarrier_wait(shared, 0);
    for (int i = ts_thread(); i < bytes / 4; i += 32) {
        ts_u32 word[1];
        ts_ld_shared<ts_u32, 1>(word, shared + START + i * 4);
        ts_st_global<ts_u32, 1>(raw + i, word);
    }
}

TS_DEVICE void end() {
    ts_tma_commit();
    ts_tma_wait_read<0>();
}

#define COORDINATES(v) ts_i32 v##0, ts_i32 v##1, ts_i32 v##2, ts_i32 v##3, ts_i32 v##4
#define BOX(rank, at_x, at_y)                                                                                      \
    TS_KERNEL(box_##rank, 32)(TS_MAP x, TS_MAP y, ts_u32* raw, ts_i32 bytes, COORDINATES(from), COORDINATES(to)) { \
        TS_SHARED(shared);                                                                                         \
        begin(shared, bytes);                                                                                      \
        if (ts_thread() == 0) ts_tma_load(shared + START, x, shared, at_x);                                        \
        copy_raw(shared, raw, bytes);                                                                              \
        if (ts_thread() == 0) ts_tma_store(y, shared + START, at_y);                                               \
        if (ts_thread() == 0) end();                                                                               \
    }
#define TWO(v) v##0, v##1
#define THREE(v) v##0, v##1, v##2
#define FOUR(v) v##0, v##1, v##2, v##3
#define FIVE(v) v##0, v##1, v##2, v##3, v##4
BOX(2, TWO(from), TWO(to))
BOX(3, THREE(from), THREE(to))
BOX(4, FOUR(from), FOUR(to))
BOX(5, FIVE(from), FIVE(to))
