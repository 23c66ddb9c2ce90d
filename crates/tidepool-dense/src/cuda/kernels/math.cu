// Functions of one number, as cpu/math.rs has them: the same polynomials in the same order, fused where that file
// fuses. Compiled without contraction (--fmad=false), they give the CPU's bits; their errors are stated there.

typedef unsigned int u32;
typedef unsigned long long u64;

static __device__ __forceinline__ float bits(u32 value) { return __uint_as_float(value); }

static __device__ __forceinline__ float tp_exp(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float round = 12582912.0f;
    float shifted = fmaf(x, bits(0x3fb8aa3bu), round);
    float whole = shifted - round;
    int n = (int)(__float_as_uint(shifted) - __float_as_uint(round));
    float r = fmaf(whole, -0.6933594f, x);
    r = fmaf(whole, 2.1219444e-4f, r);
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3982e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p * r, r, r) + 1.0f;
    int half = n >> 1;
    return p * bits(((u32)half + 127u) << 23) * bits(((u32)n - (u32)half + 127u) << 23);
}

static __device__ __forceinline__ float tp_ln(float x) {
    bool small = x < bits(0x00800000u);
    float scaled = small ? x * 8388608.0f : x;
    int whole = (int)__float_as_uint(scaled);
    int exponent = (whole >> 23) - 126 - (small ? 23 : 0);
    float m = bits((u32)((whole & 0x007fffff) | 0x3f000000));
    bool low = m < bits(0x3f3504f3u);
    float e = (float)exponent - (low ? 1.0f : 0.0f);
    m = low ? m + m - 1.0f : m - 1.0f;
    float z = m * m;
    float p = 7.0376836e-2f;
    p = fmaf(p, m, -1.151461e-1f);
    p = fmaf(p, m, 1.16769987e-1f);
    p = fmaf(p, m, -1.2420141e-1f);
    p = fmaf(p, m, 1.4249323e-1f);
    p = fmaf(p, m, -1.6668058e-1f);
    p = fmaf(p, m, 2.0000715e-1f);
    p = fmaf(p, m, -2.4999994e-1f);
    p = fmaf(p, m, 3.333333e-1f);
    float y = fmaf(e, -2.1219444e-4f, p * m * z);
    y = fmaf(z, -0.5f, y);
    y = fmaf(e, 0.6933594f, m + y);
    y = x == bits(0x7f800000u) ? x : y;
    y = x == 0.0f ? bits(0xff800000u) : y;
    return x >= 0.0f ? y : bits(0x7fc00000u);
}

static __device__ __forceinline__ float tp_sigmoid(float x) { return 1.0f / (1.0f + tp_exp(-x)); }

static __device__ __forceinline__ float tp_tanh(float x) {
    float z = x * x;
    float p = -5.7049887e-3f;
    p = fmaf(p, z, 2.0639088e-2f);
    p = fmaf(p, z, -5.3739715e-2f);
    p = fmaf(p, z, 1.3331442e-1f);
    p = fmaf(p, z, -3.333328e-1f);
    float near = fmaf(p * z, x, x);
    float far = copysignf(1.0f - 2.0f / (tp_exp(2.0f * fabsf(x)) + 1.0f), x);
    return fabsf(x) < 0.625f ? near : far;
}

static __device__ __forceinline__ float tp_erf(float x) {
    float z = x * x;
    float p = -8.548327e-4f;
    p = fmaf(p, z, 5.2239776e-3f);
    p = fmaf(p, z, -2.6866171e-2f);
    p = fmaf(p, z, 1.1283792e-1f);
    p = fmaf(p, z, -3.7612639e-1f);
    p = fmaf(p, z, bits(0x3f906ebbu));
    float near = p * x;
    float t = 1.0f / fmaf(0.3275911f, fabsf(x), 1.0f);
    float q = 1.0614054f;
    q = fmaf(q, t, -1.453152f);
    q = fmaf(q, t, 1.4214138f);
    q = fmaf(q, t, -0.28449672f);
    q = fmaf(q, t, 0.2548296f);
    float far = copysignf(fmaf(-(q * t), tp_exp(-z), 1.0f), x);
    return fabsf(x) < 0.5f ? near : far;
}

// The greater and the lesser of two; NaN when one of them is.
static __device__ __forceinline__ float tp_max(float a, float b) { return a < b || b != b ? b : a; }
static __device__ __forceinline__ float tp_min(float a, float b) { return a > b || b != b ? b : a; }

static __device__ __forceinline__ float tp_gelu(float x) {
    return 0.5f * x * (1.0f + tp_erf(x * bits(0x3f3504f3u)));
}

static __device__ __forceinline__ float tp_gelu_tanh(float x) {
    float inner = bits(0x3f4c422au) * fmaf(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tp_tanh(inner));
}

static __device__ __forceinline__ float tp_hard_swish(float x) {
    return x * tp_max(tp_min(x * bits(0x3e2aaaabu) + 0.5f, 1.0f), 0.0f);
}

static __device__ __forceinline__ float tp_sign(float x) {
    return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x * 0.0f;
}

// A whole power, by squaring; the exponent is a constant wherever it is called.
static __device__ __forceinline__ float tp_power(float x, int n) {
    float result = 1.0f, base = x;
    for (u32 left = n < 0 ? (u32)-n : (u32)n; left > 0u; left >>= 1) {
        if (left & 1u) result *= base;
        base *= base;
    }
    return n < 0 ? 1.0f / result : result;
}
