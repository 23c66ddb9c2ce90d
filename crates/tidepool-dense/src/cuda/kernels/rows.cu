// Stored rows become the inputs of the plan: each vector is expanded, pooled and put where the plan reads it.
//
// One launch does all inputs of a kind: `blockIdx.y` is the input, and a few neighbouring threads make one vector. Each of them
// takes one 32-bit word of codes of every row, that is 8 elements of INT4, 4 of INT8, 2 of f16 or 1 of f32, and adds
// the members in the order of their bag with the operations of tidepool-kernels' reference, so that the bits are the
// same. Nothing here is checked: the host writes the staged region through `RowsWriter`, which does.
//
// The text is followed by a line for each kind of rows, `ROWS_KIND(number, format, dim)`, which rows/source.rs writes.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// RowFormat::code.
#define INT4 1
#define INT8 2
#define F16 3
#define F32 4

#define THREADS 128
#define MISSING 0xffffffffu
#define RESIDENT 0x80000000u
#define DEFAULTED 0x80000000u

// A table of the resident set, and the set: as resident/set.rs writes them.
struct ResidentTable {
    u64 rows;
    u32 count;
    u32 stride;
};

struct ResidentHead {
    u64 slots;
    u64 capacity;
    u64 seed;
    u32 probes;
    u32 tables;
};

// What is staged of one input besides its arrays. Places are counted in 16 bytes from the beginning of the staging buffer.
struct __align__(16) InputHead {
    u32 bags;
    u32 weighted;
    // Number of the table in the resident set, or MISSING.
    u32 table;
    // Place of its table's rows.
    u32 rows;
    // [bags + 1], in ids.
    u32 offsets;
    // [ids * hashes].
    u32 positions;
    // [ids] of f32, read when `weighted`.
    u32 weights;
    u32 unused;
};

// Where everything of one input is. It is fixed when the model is loaded; rows/device.rs writes it.
struct RowInput {
    const u8* staging;
    // Staged: the address of a ResidentHead, or 0.
    const u64* resident;
    const InputHead* head;
    // [width].
    const float* default_row;
    // By the place of a key among the staged ones: its row, or MISSING.
    const u32* found;
    // [vectors, width].
    float* out;
    // [vectors], or 0.
    float* mask;
    // [vectors]: rows found, and whether the vector is the default row.
    u32* state;
    // Resident rows that were promised and not found, since the model was loaded.
    u32* lost;
    u32 hashes;
    // 1: the rows of an id follow each other; 0: they are added up.
    u32 concat;
    u32 mean;
    // Vectors of a bag: of a sequence; 0: the bag is one vector.
    u32 max_len;
    // Bytes from one staged row to the next.
    u32 stride;
    u32 unused;
};

static __device__ __forceinline__ float from_half(u32 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
    return value;
}

static __device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// 1 / x of a finite x, but not of 0, to the last bit or two. The division of the language calls a function for
// unusual numbers, for which registers must be spilled; this is the same few operations for all.
static __device__ __forceinline__ double inverse_of(float x) {
    const double wide = fabs((double)x);
    double y = __longlong_as_double(0x7fde623822fc16e6LL - __double_as_longlong(wide));
#pragma unroll
    for (int i = 0; i < 5; ++i) y = __fma_rn(y, __fma_rn(-wide, y, 1.0), y);
    return x < 0.0f ? -y : y;
}

// x / by, rounded as the division of f32 is: what f64 is off by is far less than how near the quotient of two f32 can
// come to the middle between two others, and a quotient that f64 can hold is found exactly.
static __device__ __forceinline__ float divided(float x, float by, double inverse) {
    const double quotient = __dmul_rn((double)x, inverse);
    const double rest = __fma_rn(-quotient, (double)by, (double)x);
    return (float)__fma_rn(rest, inverse, quotient);
}

// Four bytes that may stand anywhere.
template <bool ALIGNED>
static __device__ __forceinline__ u32 word_at(const u8* at) {
    if (ALIGNED) return *(const u32*)at;
    return at[0] | (u32)at[1] << 8 | (u32)at[2] << 16 | (u32)at[3] << 24;
}

template <int FORMAT, int DIM>
struct Rows {
    // In an enum: members that are constants would become variables of the module.
    enum : int {
        PER = FORMAT == INT4 ? 8 : FORMAT == INT8 ? 4 : FORMAT == F16 ? 2 : 1,
        WORDS = (DIM + PER - 1) / PER,
        GROUP = WORDS > 16 ? 32 : WORDS > 8 ? 16 : WORDS > 4 ? 8 : WORDS > 2 ? 4 : WORDS > 1 ? 2 : 1,
    };

    // The elements of one word of a row.
    static __device__ __forceinline__ void values(const u8* row, u32 word, float (&out)[PER]) {
        const u32 codes = *(const u32*)(row + 4 * word);
        if (FORMAT == INT4) {
            constexpr int TAIL = (DIM + 1) / 2;
            const u32 tail = word_at<TAIL % 4 == 0>(row + TAIL);
            const float scale = from_half(tail & 0xffff), bias = from_half(tail >> 16);
#pragma unroll
            for (int e = 0; e < PER; ++e) out[e] = __fmaf_rn((float)(codes >> 4 * e & 0xf), scale, bias);
        } else if (FORMAT == INT8) {
            const float scale = __uint_as_float(word_at<DIM % 4 == 0>(row + DIM));
            const float bias = __uint_as_float(word_at<DIM % 4 == 0>(row + DIM + 4));
#pragma unroll
            for (int e = 0; e < PER; ++e) out[e] = __fmaf_rn((float)(codes >> 8 * e & 0xff), scale, bias);
        } else if (FORMAT == F16) {
#pragma unroll
            for (int e = 0; e < PER; ++e) out[e] = from_half(codes >> 16 * e & 0xffff);
        } else {
            out[0] = __uint_as_float(codes);
        }
    }

    static __device__ __forceinline__ void store(float* out, u32 word, const float (&values)[PER]) {
        const u32 first = word * PER;
        if constexpr (PER >= 4 && DIM % PER == 0) {
#pragma unroll
            for (int e = 0; e < PER; e += 4)
                *(float4*)(out + first + e) = make_float4(values[e], values[e + 1], values[e + 2], values[e + 3]);
        } else {
#pragma unroll
            for (int e = 0; e < PER; ++e)
                if (first + e < DIM) out[first + e] = values[e];
        }
    }

    static __device__ __forceinline__ void pool(const RowInput& in) {
        const u32 lane = threadIdx.x % GROUP;
        const u32 vector = blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
        const InputHead head = *in.head;
        const u32 bags = head.bags;
        const u32 vectors = in.max_len ? bags * in.max_len : bags;
        // Whole blocks leave, not threads: those of a warp vote below.
        if (blockIdx.x * (THREADS / GROUP) >= vectors) return;
        const bool live = vector < vectors;

        // The ids of the vector.
        const u32* const offsets = (const u32*)(in.staging + 16ull * head.offsets);
        u32 begin = 0, ids = 0;
        bool padding = false;
        if (live) {
            if (in.max_len) {
                const u32 bag = vector / in.max_len, slot = vector - bag * in.max_len;
                begin = offsets[bag] + slot;
                padding = begin >= offsets[bag + 1];
                ids = padding ? 0 : 1;
            } else {
                begin = offsets[vector];
                ids = offsets[vector + 1] - begin;
            }
        }
        const bool weighted = head.weighted;
        const u8* resident_rows = 0;
        u32 resident_stride = 0;
        if (*in.resident && head.table != MISSING) {
            const ResidentHead* set = (const ResidentHead*)*in.resident;
            const ResidentTable* table = (const ResidentTable*)(set + 1) + head.table;
            resident_rows = (const u8*)table->rows;
            resident_stride = table->stride;
        }
        // What the loops read stands in registers; the rest is read from `in` where it is wanted.
        const u32* const positions = (const u32*)(in.staging + 16ull * head.positions);
        const float* const weight_of = (const float*)(in.staging + 16ull * head.weights);
        const u32* const found_of = in.found;
        const u8* const staged_rows = in.staging + 16ull * head.rows;
        const u32 hashes = in.hashes, stride = in.stride;
        const u32 parts = in.concat ? hashes : 1, rows_per_id = hashes / parts;
        float* out = in.out + (u64)vector * (parts * DIM);
        u32 found = 0, missing = 0, lost = 0;
        bool bad = false;
        float divisor = 1.0f;
        if (live) {
            for (u32 part = 0; part < parts; ++part) {
                const u32 first = begin * hashes + part * ids;
                for (u32 word = lane; word < WORDS; word += GROUP) {
                    float sums[PER];
#pragma unroll
                    for (int e = 0; e < PER; ++e) sums[e] = 0.0f;
                    float weights = 0.0f;
                    u32 rows = 0, member = first;
                    for (u32 id = 0; id < ids; ++id) {
                        const float weight = weighted ? weight_of[begin + id] : 1.0f;
                        u32 rows_of_id = 0;
                        for (u32 k = 0; k < rows_per_id; ++k, ++member) {
                            const u32 position = positions[member];
                            const u8* row = staged_rows + (u64)position * stride;
                            if (position & RESIDENT) {
                                if (position == MISSING) continue;
                                const u32 at = found_of[position & ~RESIDENT];
                                lost += word == 0 && at == MISSING;
                                if (at == MISSING) continue;
                                row = resident_rows + (u64)at * resident_stride;
                            }
                            ++rows_of_id;
                            float read[PER];
                            values(row, word, read);
#pragma unroll
                            for (int e = 0; e < PER; ++e)
                                sums[e] = weighted ? __fmaf_rn(weight, read[e], sums[e]) : __fadd_rn(sums[e], read[e]);
                        }
                        rows += rows_of_id;
                        if (rows_of_id) weights = __fadd_rn(weights, weight);
                    }
                    if (word == lane) {
                        found += rows;
                        missing += ids * rows_per_id - rows;
                    }
                    // Of several parts each has the same ids.
                    divisor = weighted ? weights : (float)(hashes == 1 ? rows : ids);
#pragma unroll
                    for (int e = 0; e < PER; ++e) bad |= word * PER + e < DIM && !is_finite(sums[e]);
                    store(out + part * DIM, word, sums);
                }
            }
        }
        if (in.mean && found) {
            const double inverse = inverse_of(divisor);
            // A weighted mean whose weights add up to 0, or beyond f32, is none.
            bad |= divisor == 0.0f || !is_finite(divisor);
            for (u32 part = 0; part < parts; ++part)
                for (u32 word = lane; word < WORDS; word += GROUP)
                    for (u32 at = word * PER; at < DIM && at < word * PER + PER; ++at) {
                        const float mean = divided(out[part * DIM + at], divisor, inverse);
                        bad |= !is_finite(mean);
                        out[part * DIM + at] = mean;
                    }
        }
        u32 any_bad = bad;
#pragma unroll
        for (int apart = GROUP / 2; apart; apart /= 2) any_bad |= __shfl_xor_sync(0xffffffffu, any_bad, apart, GROUP);
        if (!live) return;
        // A vector that lacks a row of an id with several is none.
        const bool defaulted = !padding && (found == 0 || any_bad || (in.hashes > 1 && missing));
        if (defaulted) {
            for (u32 part = 0; part < parts; ++part)
                for (u32 word = lane; word < WORDS; word += GROUP) {
                    float values[PER];
#pragma unroll
                    for (int e = 0; e < PER; ++e)
                        values[e] = word * PER + e < DIM ? in.default_row[part * DIM + word * PER + e] : 0.0f;
                    store(out + part * DIM, word, values);
                }
        }
        if (lane == 0) {
            in.state[vector] = found | (defaulted ? DEFAULTED : 0);
            if (in.mask) in.mask[vector] = padding ? 0.0f : 1.0f;
            if (lost) atomicAdd(in.lost, lost);
        }
    }
};

// One kernel for each kind of rows; `members[blockIdx.y]` is the input. Said of `6` blocks to a processor: or the
// compiler would spill a few registers, so that more blocks fit.
#define ROWS_KIND(number, format, dim)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 6)                                      \
        rows_pool_##number(const RowInput* inputs, const u32* members) {                          \
        Rows<format, dim>::pool(inputs[members[blockIdx.y]]);                                     \
    }
