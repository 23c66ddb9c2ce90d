// y = a * x + y on eight f16 at a time, which travel as one float4.

__device__ unsigned fma2(unsigned a, unsigned x, unsigned y) {
    unsigned result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(x), "r"(y));
    return result;
}

extern "C" __global__ void half_axpy(float a, const float4* x, float4* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned pair;
    asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b32 %0, {h, h}; }" : "=r"(pair) : "f"(a));
    float4 left = x[i], right = y[i];
    right.x = __uint_as_float(fma2(pair, __float_as_uint(left.x), __float_as_uint(right.x)));
    right.y = __uint_as_float(fma2(pair, __float_as_uint(left.y), __float_as_uint(right.y)));
    right.z = __uint_as_float(fma2(pair, __float_as_uint(left.z), __float_as_uint(right.z)));
    right.w = __uint_as_float(fma2(pair, __float_as_uint(left.w), __float_as_uint(right.w)));
    y[i] = right;
}
