// The kernels, behind the formula: `FORMULA` is the number of outputs that it speaks of, `formula_output(column)` says
// which each is, `formula(s, b, request, row)` is its worth, and `SAMPLED` the column of which samples are taken, or NONE
// for what candidates are ranked by.
//
// The answer, which one copy takes to the host, has no holes: what is where follows from the staged numbers.
//
//     u32 lost rows, u32 zero
//     bad      [requests, formula + chosen + 1] of u32 candidate (or NONE), f32 value: the first that is no finite number
//     samples  [requests, samples] f32
//     winners  [winners] u32 candidate, [winners] f32 what it is ranked by, [chosen, winners] f32 outputs

#define CHUNK 1024

struct Bad {
    u32 candidate;
    float value;
};

struct Answer {
    u32* lost;
    Bad* bad;
    float* samples;
    u32* winners;
};

static __device__ __forceinline__ Answer answer_of(const Select& s, u32 requests, u32 watched) {
    Answer answer;
    answer.lost = (u32*)s.answer;
    answer.bad = (Bad*)(s.answer + 8);
    answer.samples = (float*)(answer.bad + (u64)requests * watched);
    answer.winners = (u32*)(answer.samples + (u64)requests * s.samples);
    return answer;
}

static __device__ __forceinline__ bool is_finite(float value) {
    return (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
}

// Nothing is bad yet.
extern "C" __global__ void __launch_bounds__(THREADS) select_begin(const Select* select) {
    const Select& s = *select;
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const u32 requests = s.head->requests, watched = FORMULA + s.head->chosen + 1;
    const Answer answer = answer_of(s, requests, watched);
    if (at == 0) {
        answer.lost[0] = s.lost ? *s.lost : 0;
        answer.lost[1] = 0;
    }
    if (at >= requests * watched) return;
    answer.bad[at].candidate = NONE;
    answer.bad[at].value = 0.0f;
}

// Said of `4` blocks to a processor: or the compiler would spill registers over divisions, so that more blocks fit.
//
// A row each: what it is ranked by, a key that sorts by it, and whether a number of it is none.
extern "C" __global__ void __launch_bounds__(THREADS, 4) select_score(const Select* select) {
    const Select& s = *select;
    const u32 row = blockIdx.x * THREADS + threadIdx.x;
    const Batch b = batch_of(s);
    const u32 chosen = b.chosen;
    if (row >= b.rows) return;
    const u32 request = range_of(b.starts, b.requests, row);
    const u32 watched = FORMULA + chosen + 1;
    Bad* const bad = answer_of(s, b.requests, watched).bad + request * watched;
    const u32 candidate = row - b.starts[request];
    for (u32 column = 0; column < FORMULA + chosen; ++column) {
        const u32 output = column < FORMULA ? formula_output(column) : b.columns[column - FORMULA];
        if (!is_finite((float)calibrated(s, b, FORMULA, request, column, output, row)))
            atomicMin(&bad[column].candidate, candidate);
    }
    const float score = (float)formula(s, b, request, row);
    if (!is_finite(score)) atomicMin(&bad[FORMULA + chosen].candidate, candidate);
    s.scores[row] = score;
    // As numbers that sort best first; 0 and -0 are the same, and equal ones are in the order of the rows.
    const u32 bits = __float_as_uint(score == 0.0f ? 0.0f : score);
    const u32 descending = bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
    s.keys[row] = (u64)request << (32 + s.row_bits) | (u64)descending << s.row_bits | row;
}

// Each block sorts CHUNK keys, by Batcher's bitonic network.
extern "C" __global__ void __launch_bounds__(CHUNK / 2) select_sort(const Select* select) {
    const Select& s = *select;
    __shared__ u64 keys[CHUNK];
    const u32 rows = s.head->rows, first = blockIdx.x * CHUNK;
    if (first >= rows) return;
    for (u32 at = threadIdx.x; at < CHUNK; at += CHUNK / 2)
        keys[at] = first + at < rows ? s.keys[first + at] : 0xffffffffffffffffull;
    __syncthreads();
    for (u32 size = 2; size <= CHUNK; size *= 2) {
        for (u32 apart = size / 2; apart; apart /= 2) {
            const u32 at = threadIdx.x / apart * 2 * apart + threadIdx.x % apart;
            const u64 a = keys[at], b = keys[at + apart];
            if ((a > b) == ((at & size) == 0)) {
                keys[at] = b;
                keys[at + apart] = a;
            }
            __syncthreads();
        }
    }
    for (u32 at = threadIdx.x; at < CHUNK; at += CHUNK / 2)
        if (first + at < rows) s.keys[first + at] = keys[at];
}

// Neighbouring sorted runs of `run` keys become one: a key's place is its own in its run, and as many further as keys of
// the other run are smaller. No two are equal.
extern "C" __global__ void __launch_bounds__(THREADS) select_merge(const Select* select, u32 run, u32 from_merged) {
    const Select& s = *select;
    const u32 at = blockIdx.x * THREADS + threadIdx.x, rows = s.head->rows;
    if (at >= rows) return;
    const u64* const from = from_merged ? s.merged : s.keys;
    u64* const to = from_merged ? s.keys : s.merged;
    const u32 number = at / run, other = (number ^ 1) * run;
    const u64 key = from[at];
    u32 smaller = 0;
    if (other < rows) {
        for (u32 left = rows - other < run ? rows - other : run; left;) {
            const u32 half = left / 2;
            if (from[other + smaller + half] < key) {
                smaller += half + 1;
                left -= half + 1;
            } else {
                left = half;
            }
        }
    }
    to[(number & ~1u) * run + (at - number * run) + smaller] = key;
}

// What is returned: `blockIdx.y` 0 the winners, 1 the values that are bad, 2 the samples.
extern "C" __global__ void __launch_bounds__(THREADS, 4) select_take(const Select* select) {
    const Select& s = *select;
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    const Batch b = batch_of(s);
    const u32 requests = b.requests, chosen = b.chosen, total = b.total;
    const u32 watched = FORMULA + chosen + 1;
    const Answer answer = answer_of(s, requests, watched);
    if (blockIdx.y == 0) {
        if (at >= total) return;
        const u32 request = range_of(b.winners, requests, at);
        const u64* const sorted = s.sorted_in_merged ? s.merged : s.keys;
        const u64 key = sorted[b.starts[request] + at - b.winners[request]];
        const u32 row = (u32)key & ((1u << s.row_bits) - 1);
        answer.winners[at] = row - b.starts[request];
        float* const values = (float*)(answer.winners + total);
        values[at] = s.scores[row];
        for (u32 column = 0; column < chosen; ++column)
            values[(u64)(column + 1) * total + at] =
                (float)calibrated(s, b, FORMULA, request, FORMULA + column, b.columns[column], row);
    } else if (blockIdx.y == 1) {
        if (at >= requests * watched) return;
        Bad* const bad = answer.bad + at;
        if (bad->candidate == NONE) return;
        const u32 request = at / watched, column = at % watched;
        const u32 row = b.starts[request] + bad->candidate;
        if (column == FORMULA + chosen) {
            bad->value = s.scores[row];
        } else {
            const u32 output = column < FORMULA ? formula_output(column) : b.columns[column - FORMULA];
            bad->value = (float)calibrated(s, b, FORMULA, request, column, output, row);
        }
    } else {
        if (at >= requests * s.samples) return;
        const u32 request = at / s.samples, number = at % s.samples;
        const u32 first = b.starts[request], count = b.starts[request + 1] - first;
        const u32 step = count > s.samples ? (count + s.samples - 1) / s.samples : 1;
        float value = 0.0f;
        if (number * step < count) {
            const u32 row = first + number * step;
            if (SAMPLED == NONE)
                value = s.scores[row];
            else
                value = (float)calibrated(s, b, FORMULA, request, SAMPLED, formula_output(SAMPLED), row);
        }
        answer.samples[at] = value;
    }
}
