// Random numbers by counter: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).

// c[4], a counter of four words, becomes the four random words of it and the key.
TS_DEVICE void ts_philox4x32(ts_u32* c, ts_u32 key0, ts_u32 key1) {
    TS_UNROLL
    for (int round = 0; round < 10; ++round) {
        const ts_u64 left = (ts_u64)0xD2511F53u * c[0], right = (ts_u64)0xCD9E8D57u * c[2];
        c[0] = (ts_u32)(right >> 32) ^ c[1] ^ key0;
        c[1] = (ts_u32)right;
        c[2] = (ts_u32)(left >> 32) ^ c[3] ^ key1;
        c[3] = (ts_u32)left;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}
// In [0, 1), by element number and seed: the upper 24 bits of the first word, which f32 holds, so nothing is rounded.
TS_DEVICE float ts_uniform(ts_i64 index, ts_i64 seed) {
    ts_u32 words[4] = {(ts_u32)index, (ts_u32)((ts_u64)index >> 32), 0, 0};
    ts_philox4x32(words, (ts_u32)seed, (ts_u32)((ts_u64)seed >> 32));
    return (float)(words[0] >> 8) * 0x1p-24f;
}
