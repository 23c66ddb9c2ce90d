// The steps of a plan that are not generated: lines, products of two values, chosen elements, and what stands before a
// product of cuBLASLt. `of` is null where records follow each other, and else has, for each row, the record that it
// reads: the one of its request.
//
// Sums run in the order in which cpu/ runs them, so these kernels give the CPU's bits.

static __device__ __forceinline__ const float *record(const float *a, u32 width, const u32 *of, u32 n) {
    return a + (u64)(of ? of[n] : n) * width;
}

// An array of a batch: where the plan reads it, the words that there is room for, words of a record, and which number at
// the beginning of the staging buffer counts the records. staging.rs says where arrays begin there.
struct Array {
    u32 *to;
    u64 room;
    u32 width;
    u32 count;
};

// What the batch brings to where the plan reads it, with zeros behind; `blockIdx.y` is the array. Places begin at
// number PLACES of the staging buffer, and are counted in UNIT_WORDS words from its beginning.
extern "C" __global__ void __launch_bounds__(256)
tp_spread(const u32 *staging, const Array *arrays) {
    const Array array = arrays[blockIdx.y];
    u64 at = ((u64)blockIdx.x * 256u + threadIdx.x) * 4u;
    if (at >= array.room) return;
    u64 used = (u64)staging[array.count] * array.width;
    const u32 *from = staging + (u64)staging[PLACES + blockIdx.y] * UNIT_WORDS + at;
    u32 *to = array.to + at;
    if (at + 4u <= used) {
        *(uint4 *)to = *(const uint4 *)from;
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4u; i++)
        if (at + i < array.room) to[i] = at + i < used ? from[i] : 0u;
}

// Chosen elements of each record.
extern "C" __global__ void __launch_bounds__(256)
tp_pick(float *out, const float *a, u32 width, const u32 *of, const u32 *elements, u32 count, u32 records) {
    u32 t = blockIdx.x * 256u + threadIdx.x;
    if (t >= records * count) return;
    u32 n = t / count, e = t % count;
    out[t] = record(a, width, of, n)[elements[e]];
}

// The first `count` elements of each record: what sums of products start from.
extern "C" __global__ void __launch_bounds__(256)
tp_start(float *out, const float *a, u32 width, const u32 *of, u32 count, u32 records) {
    u32 t = blockIdx.x * 256u + threadIdx.x;
    if (t >= records * count) return;
    u32 n = t / count, e = t % count;
    out[t] = record(a, width, of, n)[e];
}

// The left side of a product as cuBLASLt takes it: rows of `k` elements, padded with zeros to `padded`.
static __device__ __forceinline__ float left(const float *a, u32 width, const u32 *of, u32 m, u32 m_stride,
                                             u32 k_stride, u32 k, u32 row, u32 column) {
    return column < k ? record(a, width, of, row / m)[(row % m) * m_stride + column * k_stride] : 0.0f;
}

extern "C" __global__ void __launch_bounds__(256)
tp_pack_f32(float *out, const float *a, u32 width, const u32 *of, u32 m, u32 m_stride, u32 k_stride, u32 k, u32 padded,
            u32 rows) {
    u32 t = blockIdx.x * 256u + threadIdx.x;
    if (t >= rows * padded) return;
    out[t] = left(a, width, of, m, m_stride, k_stride, k, t / padded, t % padded);
}

// To bf16, to the nearest, ties to even; NaN stays NaN.
static __device__ __forceinline__ u32 bf16(float x) {
    u32 whole = __float_as_uint(x);
    if (x != x) return (whole >> 16) | 0x40u;
    return (whole + 0x7fffu + ((whole >> 16) & 1u)) >> 16;
}

// Two elements a thread: `padded` is even.
extern "C" __global__ void __launch_bounds__(256)
tp_pack_bf16(u32 *out, const float *a, u32 width, const u32 *of, u32 m, u32 m_stride, u32 k_stride, u32 k, u32 padded,
             u32 rows) {
    u32 t = blockIdx.x * 256u + threadIdx.x, pairs = padded / 2u;
    if (t >= rows * pairs) return;
    u32 row = t / pairs, column = t % pairs * 2u;
    u32 low = bf16(left(a, width, of, m, m_stride, k_stride, k, row, column));
    u32 high = bf16(left(a, width, of, m, m_stride, k_stride, k, row, column + 1u));
    out[t] = low | high << 16;
}

// A product in forms that cuBLASLt is not asked for: many small ones per record, each by one of several matrices.
// A call is where the left side begins, which matrix, and where the result begins; sums start from the result.
extern "C" __global__ void __launch_bounds__(256)
tp_product(float *out, u32 out_width, const float *a, u32 width, const u32 *of, const float *weights, const u32 *calls,
           u32 count, u32 m, u32 m_stride, u32 m_out, u32 k, u32 k_stride, u32 columns, u32 matrix, u32 stride,
           u32 activation, u32 records) {
    u32 t = blockIdx.x * 256u + threadIdx.x, per = count * m * columns;
    if (t >= records * per) return;
    u32 n = t / per, e = t % per;
    u32 call = e / (m * columns), row = e / columns % m, column = e % columns;
    const float *x = record(a, width, of, n) + calls[call * 3u] + row * m_stride;
    const float *w = weights + (u64)calls[call * 3u + 1u] * matrix + column;
    float *to = out + (u64)n * out_width + calls[call * 3u + 2u] + row * m_out + column;
    float sum = *to;
    for (u32 i = 0; i < k; i++) sum = fmaf(x[i * k_stride], w[(u64)i * stride], sum);
    *to = activation == 1u ? tp_max(sum, 0.0f) : activation == 2u ? tp_gelu_tanh(sum) : sum;
}

// Sixteen sums, then pairwise: the order of cpu/line.rs.
static __device__ __forceinline__ float dot(const float *a, const float *b, u32 k) {
    float lanes[16];
#pragma unroll
    for (u32 lane = 0; lane < 16u; lane++) lanes[lane] = 0.0f;
    u32 whole = k / 16u * 16u;
    for (u32 i = 0; i < whole; i += 16u) {
#pragma unroll
        for (u32 lane = 0; lane < 16u; lane++) lanes[lane] = fmaf(a[i + lane], b[i + lane], lanes[lane]);
    }
#pragma unroll
    for (u32 lane = 0; lane < 16u; lane++)
        if (whole + lane < k) lanes[lane] = fmaf(a[whole + lane], b[whole + lane], lanes[lane]);
#pragma unroll
    for (u32 half = 8u; half > 0u; half /= 2u) {
#pragma unroll
        for (u32 lane = 0; lane < 8u; lane++)
            if (lane < half) lanes[lane] = lanes[lane] + lanes[lane + half];
    }
    return lanes[0];
}

// Products of two values. A place is where each side and the result begin.
extern "C" __global__ void __launch_bounds__(256)
tp_pair(float *out, u32 out_width, const float *a, u32 a_width, const u32 *a_of, const float *b, u32 b_width,
        const u32 *b_of, const u32 *places, u32 count, u32 m, u32 a_row, u32 columns, u32 b_column, u32 k, u32 a_k,
        u32 b_k, u32 out_row, u32 in_lanes, u32 records) {
    u32 t = blockIdx.x * 256u + threadIdx.x, per = count * m * columns;
    if (t >= records * per) return;
    u32 n = t / per, e = t % per;
    u32 place = e / (m * columns), row = e / columns % m, column = e % columns;
    const float *x = record(a, a_width, a_of, n) + places[place * 3u] + row * a_row;
    const float *y = record(b, b_width, b_of, n) + places[place * 3u + 1u] + column * b_column;
    float sum = 0.0f;
    if (in_lanes) {
        sum = dot(x, y, k);
    } else {
        for (u32 i = 0; i < k; i++) sum = fmaf(x[i * a_k], y[i * b_k], sum);
    }
    out[(u64)n * out_width + places[place * 3u + 2u] + row * out_row + column] = sum;
}

enum { LOG_SOFTMAX, MAX, MEAN_OF_SQUARES, MIN, PROD, RMS_NORM, SOFTMAX, SUM };

static __device__ __forceinline__ float start_of(u32 op) {
    return op == MAX ? bits(0xff800000u) : op == MIN ? bits(0x7f800000u) : op == PROD ? 1.0f : 0.0f;
}

static __device__ __forceinline__ float join(u32 op, float a, float b) {
    return op == MAX ? tp_max(a, b) : op == MIN ? tp_min(a, b) : op == PROD ? a * b : a + b;
}

struct Line {
    const float *from;
    const u32 *elements;
    u32 stride, len;
    __device__ __forceinline__ float operator[](u32 i) const { return from[elements ? elements[i] : i * stride]; }
};

// What several threads have is brought together: sixteen lanes pairwise, or all threads of a block.
template <u32 THREADS> struct Together;

template <> struct Together<16> {
    static __device__ __forceinline__ float of(u32 op, float value) {
#pragma unroll
        for (u32 half = 8u; half > 0u; half /= 2u)
            value = join(op, value, __shfl_xor_sync(0xffffffffu, value, half));
        return value;
    }
};

template <> struct Together<256> {
    static __device__ __forceinline__ float of(u32 op, float value) {
        __shared__ float warps[8];
#pragma unroll
        for (u32 half = 16u; half > 0u; half /= 2u)
            value = join(op, value, __shfl_xor_sync(0xffffffffu, value, half));
        // Nobody overwrites what others still read of the sum before.
        __syncthreads();
        if (threadIdx.x % 32u == 0u) warps[threadIdx.x / 32u] = value;
        __syncthreads();
        value = warps[0];
#pragma unroll
        for (u32 warp = 1; warp < 8u; warp++) value = join(op, value, warps[warp]);
        return value;
    }
};

template <u32 THREADS>
static __device__ __forceinline__ void line(float *out, const Line &line, u32 op, float epsilon, u32 thread, bool live) {
    float count = (float)line.len;
    if (op == SOFTMAX || op == LOG_SOFTMAX) {
        float top = bits(0xff800000u);
        for (u32 i = thread; i < line.len; i += THREADS) top = tp_max(top, line[i]);
        top = Together<THREADS>::of(MAX, top);
        float sum = 0.0f;
        for (u32 i = thread; i < line.len; i += THREADS) sum = sum + tp_exp(line[i] - top);
        sum = Together<THREADS>::of(SUM, sum);
        if (!live) return;
        float log = tp_ln(sum), scale = 1.0f / sum;
        for (u32 i = thread; i < line.len; i += THREADS)
            out[i] = op == SOFTMAX ? tp_exp(line[i] - top) * scale : (line[i] - top) - log;
        return;
    }
    bool squares = op == RMS_NORM || op == MEAN_OF_SQUARES;
    u32 how = squares ? (u32)SUM : op;
    float value = start_of(how);
    for (u32 i = thread; i < line.len; i += THREADS) {
        float x = line[i];
        value = squares ? fmaf(x, x, value) : join(how, value, x);
    }
    value = Together<THREADS>::of(how, value);
    if (!live) return;
    if (op == RMS_NORM) {
        float scale = 1.0f / sqrtf(value / count + epsilon);
        for (u32 i = thread; i < line.len; i += THREADS) out[i] = line[i] * scale;
    } else if (thread == 0u) {
        out[0] = op == MEAN_OF_SQUARES ? value / count : value;
    }
}

// Sixteen threads a line: the CPU's sixteen sums. Threads beyond the last line do it once more and write nothing, since
// every thread of a warp must be there when sums are brought together.
extern "C" __global__ void __launch_bounds__(128)
tp_line_16(float *out, const float *a, u32 width, const u32 *of, const u32 *starts, u32 lines, const u32 *elements,
           u32 stride, u32 len, u32 made, u32 op, float epsilon, u32 records) {
    u32 at = (blockIdx.x * 128u + threadIdx.x) / 16u, all = records * lines;
    bool live = at < all;
    at = live ? at : all - 1u;
    u32 n = at / lines, l = at % lines;
    Line from = {record(a, width, of, n) + starts[l], elements, stride, len};
    line<16>(out + (u64)at * made, from, op, epsilon, threadIdx.x % 16u, live);
}

// A block a line, for long ones: sums run in another order than the CPU's.
extern "C" __global__ void __launch_bounds__(256)
tp_line_256(float *out, const float *a, u32 width, const u32 *of, const u32 *starts, u32 lines, const u32 *elements,
            u32 stride, u32 len, u32 made, u32 op, float epsilon, u32 records) {
    u32 at = blockIdx.x;
    if (at >= records * lines) return;
    u32 n = at / lines, l = at % lines;
    Line from = {record(a, width, of, n) + starts[l], elements, stride, len};
    line<256>(out + (u64)at * made, from, op, epsilon, threadIdx.x, true);
}
