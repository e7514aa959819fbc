// A part of tessera_device.h.

// ---- mbarriers -------------------------------------------------------------------------------------------------
// Eight bytes of shared memory, 8-aligned, that count arrivals in phases: phase 0 is open after the initialisation;
// when the expected number of arrivals has come, the phase completes and the next one opens with the same number.
//
// A wait names a parity and passes when the phase before the open one has it. So a fresh barrier passes a wait for
// parity 1 at once (a slot that nobody has filled is empty), and a waiter must follow each phase in turn: it cannot
// tell phase p from phase p - 2. An arrival releases what its thread has done, a wait that passes acquires it. Only
// these functions may touch the eight bytes between ts_mbarrier_init and ts_mbarrier_invalidate.

// One thread initialises; a block barrier must stand before any other thread arrives or waits.
TS_DEVICE void ts_mbarrier_init(char* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(ts_shared_address(barrier)), "r"(arrivals) : "memory");
}

// Gives the eight bytes back to ordinary use. Nobody may be waiting.
TS_DEVICE void ts_mbarrier_invalidate(char* barrier) {
    asm volatile("mbarrier.inval.shared.b64 [%0];" ::"r"(ts_shared_address(barrier)) : "memory");
}

// One arrival of this thread. It does not wait for the registers of an ldmatrix before it: the assembler may let the
// arrival overtake the data, so a slot is handed back after the instructions that use what was read from it.
TS_DEVICE void ts_mbarrier_arrive(char* barrier) {
    ts_u64 state;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(ts_shared_address(barrier)) : "memory");
}

// One arrival on behalf of this thread, at the moment when all cp.async that it has issued so far have landed. It is
// counted among the expected arrivals (.noinc). A waiter then sees the copied bytes; no group or commit is involved.
TS_DEVICE void ts_cp_async_mbarrier_arrive(char* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(ts_shared_address(barrier)) : "memory");
}

// The word of a register that holds x, alone or as its first element: data for ts_mbarrier_arrive_after.
TS_DEVICE ts_u32 ts_register_word(float x) { return __float_as_uint(x); }
TS_DEVICE ts_u32 ts_register_word(bool x) { return x; }
TS_DEVICE ts_u32 ts_register_word(ts_i8 x) { return (ts_u32)x; }
TS_DEVICE ts_u32 ts_register_word(ts_i32 x) { return (ts_u32)x; }
TS_DEVICE ts_u32 ts_register_word(ts_i64 x) { return (ts_u32)(x ^ x >> 32); }
template <class T>
TS_DEVICE ts_u32 ts_register_word(T x) {
    return x.bits;
}

// Whether the phase of this parity (0 or 1) has completed; returns at once.
TS_DEVICE bool ts_mbarrier_test(char* barrier, int parity) {
    ts_u32 done;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(ts_shared_address(barrier)), "r"(parity)
                 : "memory");
    return done != 0;
}

// A text that is compiled with TS_SPIN_LIMIT comes to an end although copies never land: a thread that has waited for so
// many turns, of a microsecond at most, ends, and from then on so does every thread that has to wait. What they would
// have written is missing. Without it none of this is there.
#ifdef TS_SPIN_LIMIT
__device__ int ts_given_up;
#endif

// Returns when the phase of this parity has completed. From sm_90 on the hardware suspends the thread for a while in
// each turn; before, the turns are a plain poll.
TS_DEVICE void ts_mbarrier_wait(char* barrier, int parity) {
#if defined(TS_SPIN_LIMIT) && __CUDA_ARCH__ >= 900
    for (int turn = 0;; ++turn) {
        ts_u32 done;
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2, 1000; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(ts_shared_address(barrier)), "r"(parity)
                     : "memory");
        if (done) return;
        volatile int* given_up = &ts_given_up;
        if (turn >= TS_SPIN_LIMIT || *given_up) {
            *given_up = 1;
            asm volatile("exit;");
        }
    }
#elif __CUDA_ARCH__ >= 900
    ts_u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done)
                     : "r"(ts_shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
#else
    while (!ts_mbarrier_test(barrier, parity)) {
    }
#endif
}
