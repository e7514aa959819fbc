#include "tessera_device.h"
// Two warps play ping-pong through shared floats. Nothing but two mbarriers, of 32 arrivals each, orders them: `ping`
// says that warp 0 has written (and has read the answer before), `pong` that warp 1 has read and answered.
// In each round lane l of a warp adds what its left neighbour in the other warp holds.
TS_KERNEL(exchange, 64)(const float* TS_RESTRICT x, float* TS_RESTRICT out, ts_i64 rounds) {
    TS_SHARED(shared);
    char *ping = shared, *pong = shared + 8, *served = shared + 128, *returned = shared + 256;
    if (ts_thread() == 0) {
        ts_mbarrier_init(ping, 32);  // init: ping
        ts_mbarrier_init(pong, 32);  // init: pong
    }
    ts_barrier();  // barrier: mbarriers initialised
    const int lane = ts_lane(), left = (lane + 31) % 32;
    float mine[1], other[1];
    ts_ld_global<float, 1>(mine, x + ts_thread());
    int round = 0;
    while (round < rounds) {
        if (ts_warp() == 0) {
            ts_st_shared<float, 1>(served + lane * 4, mine);  // write: serve
            ts_mbarrier_arrive(ping);  // arrive: served
            ts_mbarrier_wait(pong, round & 1);  // wait: returned
            ts_ld_shared<float, 1>(other, returned + left * 4);  // read: return
            mine[0] += other[0];
        } else {
            while (!ts_mbarrier_test(ping, round & 1)) {  // wait: served
            }
            ts_ld_shared<float, 1>(other, served + left * 4);  // read: serve
            mine[0] += other[0];
            ts_st_shared<float, 1>(returned + lane * 4, mine);  // write: return
            ts_mbarrier_arrive(pong);  // arrive: returned
        }
        ++round;
    }
    ts_barrier();  // barrier: game over
    if (ts_thread() == 0) {
        ts_mbarrier_invalidate(ping);  // invalidate: ping
        ts_mbarrier_invalidate(pong);  // invalidate: pong
        ts_st_shared<float, 1>(shared, mine);  // write: the bytes are free again
    }
    ts_st_global<float, 1>(out + ts_thread(), mine);  // store: out
}
