// A part of tessera_device.h.

// ---- TMA -------------------------------------------------------------------------------------------------------
// Copies of whole boxes of a tensor (rank 2 to 5) between global and shared memory, from sm_90 on. One thread issues a
// copy, which then runs by itself. A map names the tensor, its box and its swizzle; coordinates are those of the box's
// first element, innermost axis first, and may lie outside the tensor: what is outside arrives as zeros and is never
// written. In shared memory the rows of a box follow each other without gaps, from an address that is a multiple of 128
// (of 8 rows where the map has a swizzle, whose pattern starts there).
//
// TMA and wgmma reach shared memory by a way of their own, the asynchronous proxy. What a thread wrote by ordinary
// stores is visible there after its ts_fence_async; what arrived by TMA is visible to ordinary loads after the wait.
//
// The address of a map is a generic one that leads to the kernel's parameters (__grid_constant__), so that a map may be
// taken from a list at any index without a copy of the list.

#if __CUDA_ARCH__ >= 900

// After a thread's ts_mbarrier_init, before the block barrier: the barriers exist for TMA, too.
TS_DEVICE void ts_mbarrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One arrival of this thread; the phase does not complete before copies have brought `bytes` (up to 2^20 - 1 in one
// phase) as well. The copies of the phase may be issued before or after.
TS_DEVICE void ts_mbarrier_expect(char* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ts_shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Fetches the map itself, which the first copy would otherwise wait for.
TS_DEVICE void ts_prefetch_map(const ts_tensor_map& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((ts_u64)&map) : "memory");
}

// dst = the box at the coordinates. All bytes of the box, with its zeros, count on the barrier's open phase; a wait for
// that phase makes them visible.
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
                 ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "r"(c0), "r"(c1)
                 : "memory");
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2, int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
        "r"(c3)
        : "memory");
}
TS_DEVICE void ts_tma_load(char* dst, const ts_tensor_map& map, char* barrier, int c0, int c1, int c2, int c3, int c4) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];"
        ::"r"(ts_shared_address(dst)), "l"((ts_u64)&map), "r"(ts_shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
        "r"(c3), "r"(c4)
        : "memory");
}

// The box at the coordinates = src, as a part of this thread's open group.
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"((ts_u64)&map), "r"(ts_shared_address(src)), "r"(c0), "r"(c1)
                 : "memory");
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
                 ::"l"((ts_u64)&map), "r"(ts_shared_address(src)), "r"(c0), "r"(c1), "r"(c2)
                 : "memory");
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];"
                 ::"l"((ts_u64)&map), "r"(ts_shared_address(src)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
TS_DEVICE void ts_tma_store(const ts_tensor_map& map, const char* src, int c0, int c1, int c2, int c3, int c4) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];"
                 ::"l"((ts_u64)&map), "r"(ts_shared_address(src)), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
                 : "memory");
}

// Closes the group of stores that this thread has issued since the last one.
TS_DEVICE void ts_tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until at most N of this thread's youngest groups may still read their sources. Each thread that stores waits with N = 0
// before it returns: shared memory goes with the block.
template <int N>
TS_DEVICE void ts_tma_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

// Until all but N of them have written global memory, too.
template <int N>
TS_DEVICE void ts_tma_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

#endif
