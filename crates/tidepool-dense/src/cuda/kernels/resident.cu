// The flat hash table of all resident tables: keys are put into it when a set is made, and found in it in every batch.
//
// A slot is 16 bytes: the id, then the row with the number of its table, which are all ones while the slot is empty.
// Whoever turns them from empty into its own by one compare-and-swap has the slot, and writes the id behind; nobody reads
// ids before all are written, since finding is another launch, and the host sees to it that no key comes twice. The
// host also knows the longest run of taken slots, which no order of insertion changes: `probes` is one more.

typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 128
#define MISSING 0xffffffffu
#define EMPTY 0xffffffffffffffffull

// As resident/set.rs writes it.
struct ResidentHead {
    u64 slots;
    u64 capacity;
    u64 seed;
    u32 probes;
    u32 tables;
};

// mix64 of tidepool-types.
static __device__ __forceinline__ u64 mix64(u64 z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static __device__ __forceinline__ u64 home(u64 id, u32 table, u64 seed, u64 capacity) {
    const u64 of_table = mix64(seed + table * 0x9e3779b97f4a7c15ull);
    return __umul64hi(mix64(id ^ of_table), capacity);
}

// Makes all slots empty, ids included: a slot is read as a whole.
extern "C" __global__ void __launch_bounds__(THREADS) resident_clear(const ResidentHead* set) {
    const u64 slot = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (slot >= set->capacity) return;
    ulonglong2* const slots = (ulonglong2*)set->slots;
    slots[slot] = make_ulonglong2(0, EMPTY);
}

// `count` ids of one table; their rows are `first_row` and those behind it. `failed` counts those that found no slot,
// which would be a defect of the host.
extern "C" __global__ void __launch_bounds__(THREADS)
    resident_insert(const ResidentHead* set, const u64* ids, u32 table, u32 first_row, u32 count, u32* failed) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= count) return;
    u64* const slots = (u64*)set->slots;
    const u64 capacity = set->capacity, id = ids[at];
    const u64 mine = (u64)table << 32 | (first_row + at);
    u64 slot = home(id, table, set->seed, capacity);
    for (u32 probe = 0; probe < set->probes; ++probe) {
        if (atomicCAS(slots + 2 * slot + 1, EMPTY, mine) == EMPTY) {
            slots[2 * slot] = id;
            return;
        }
        slot = slot + 1 == capacity ? 0 : slot + 1;
    }
    atomicAdd(failed, 1u);
}

// The row of an id, or MISSING.
static __device__ __forceinline__ u32 row_of(const ResidentHead* set, u64 id, u32 table) {
    const ulonglong2* const slots = (const ulonglong2*)set->slots;
    const u64 capacity = set->capacity;
    const u32 probes = set->probes;
    u64 slot = home(id, table, set->seed, capacity);
    for (u32 probe = 0; probe < probes; ++probe) {
        const ulonglong2 found = slots[slot];
        if (found.y == EMPTY) break;
        if (found.x == id && (u32)(found.y >> 32) == table) return (u32)found.y;
        slot = slot + 1 == capacity ? 0 : slot + 1;
    }
    return MISSING;
}

// Keys: `head[0]` is the set and `head[1]` their number. One thread each; `rows` gets the row of each, or MISSING.
extern "C" __global__ void __launch_bounds__(THREADS)
    resident_find(const u64* head, const u64* ids, const u32* tables, u32* rows) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= (u32)head[1]) return;
    rows[at] = row_of((const ResidentHead*)head[0], ids[at], tables[at]);
}

// What a batch says of its keys: rows/layout.rs. Places are counted in 16 bytes from the beginning of the staging buffer.
struct __align__(16) StagedKeys {
    u64 set;
    u32 keys;
    u32 ids;
    u32 tables;
    u32 unused[3];
};

// The same for the keys of a batch.
extern "C" __global__ void __launch_bounds__(THREADS)
    resident_find_staged(const unsigned char* staging, const StagedKeys* head, u32* rows) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const StagedKeys staged = *head;
    if (at >= staged.keys) return;
    const u64* const ids = (const u64*)(staging + 16ull * staged.ids);
    const u32* const tables = (const u32*)(staging + 16ull * staged.tables);
    rows[at] = row_of((const ResidentHead*)staged.set, ids[at], tables[at]);
}
