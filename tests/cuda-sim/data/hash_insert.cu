// A hash table with open addressing: keys are claimed by compare-and-swap, values counted by atomics.

typedef unsigned long long u64;

__device__ u64 mix(u64 x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

extern "C" __global__ void hash_insert(u64* keys, unsigned* counts, unsigned mask, const u64* ids, int n, unsigned* full) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned slot = (unsigned)mix(ids[i]) & mask;
    for (unsigned probe = 0; probe <= mask; ++probe, slot = (slot + 1) & mask) {
        u64 old = atomicCAS(&keys[slot], ~0ull, ids[i]);
        if (old == ~0ull || old == ids[i]) {
            atomicAdd(&counts[slot], 1u);
            return;
        }
    }
    atomicOr(full, 1u);
}
