// A part of tessera_device.h.

// ---- clusters --------------------------------------------------------------------------------------------------
// The blocks of a cluster are neighbours along axis 0, run at the same time, and reach each other's shared memory, from
// sm_90 on. A kernel that is declared with TS_KERNEL_CLUSTER runs in clusters of a fixed number of blocks, of which the
// grid must be a multiple.
//
// Only two things ever reach into another block: copies to several blocks at once, and arrivals. Both name a place by
// its address in the running block: it lies at the same offset in each block. Neither may come before the other block
// has initialised its barriers, nor after it has returned, so ts_cluster_barrier stands behind the initialisations and
// at the end.

#if __CUDA_ARCH__ >= 900

#define TS_KERNEL_CLUSTER(name, threads, min_blocks, cluster) \
    extern "C" __global__ void __launch_bounds__(threads, min_blocks) __cluster_dims__(cluster, 1, 1) name

// The number of the running block in its cluster.
TS_DEVICE int ts_cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// All threads of all blocks of the cluster. It makes barriers known that were initialised and fenced
// (ts_mbarrier_fence) before, and orders no other memory: a releasing arrival would wait for all that is in flight.
TS_DEVICE void ts_cluster_barrier() {
    asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}

// One arrival of this thread at the barrier of the block `rank`, which may be its own. (With the scope of a cluster
// spelled out, each arrival would wait for all of memory; the default releases what a slot needs.)
TS_DEVICE void ts_mbarrier_arrive_cluster(char* barrier, int rank) {
    asm volatile("{ .reg .b32 a; mapa.shared::cluster.u32 a, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [a]; }"
                 ::"r"(ts_shared_address(barrier)), "r"(rank)
                 : "memory");
}

// ts_mbarrier_arrive_after at the barriers of all `blocks` blocks of the cluster: as many lanes, from the one that the
// vote picks, arrive at one each.
TS_DEVICE void ts_mbarrier_arrive_cluster_after(char* barrier, ts_u32 word, int blocks) {
    const ts_u32 votes = __ballot_sync(0xFFFFFFFFu, word & 1u);
    const int rank = (ts_lane() + __clz((int)(votes | 1u)) + 1) & 31;  // 0: the lane of the highest vote
    asm volatile(
        "{ .reg .pred p; .reg .b32 a; setp.lt.s32 p, %1, %2; @p mapa.shared::cluster.u32 a, %0, %1; "
        "@p mbarrier.arrive.shared::cluster.b64 _, [a]; }"
        ::"r"(ts_shared_address(barrier)), "r"(rank), "r"(blocks)
        : "memory");
}

// dst = the box at the coordinates in each block whose bit (1 << rank) is in the mask. In each of them all bytes count
// on its own barrier at the same offset.
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0, int c1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5}], [%2], %3;"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "h"((unsigned short)mask),
        "r"(c0), "r"(c1)
        : "memory");
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0,
                                     int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6}], [%2], %3;"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "h"((unsigned short)mask),
        "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0,
                                     int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "h"((unsigned short)mask),
        "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
TS_DEVICE void ts_tma_load_multicast(char* dst, const ts_tensor_map& map, char* barrier, int mask, int c0,
                                     int c1, int c2, int c3, int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "h"((unsigned short)mask),
        "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
        : "memory");
}

#endif
