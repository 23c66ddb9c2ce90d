// Rows of four-bit codes, each with an f16 scale and bias behind them, expanded and summed per bag.

__device__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

extern "C" __global__ void pool_int4(const unsigned char* rows, int stride, int dim, const unsigned* members,
                                     const int* offsets, int bags, float* out) {
    int bag = blockIdx.x * blockDim.y + threadIdx.y;
    if (bag >= bags) return;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0.0f;
        for (int m = offsets[bag]; m < offsets[bag + 1]; ++m) {
            const unsigned char* row = rows + (size_t)members[m] * stride;
            const unsigned short* tail = (const unsigned short*)(row + dim / 2);
            int code = row[i / 2] >> ((i & 1) * 4) & 15;
            sum += code * half_to_float(tail[0]) + half_to_float(tail[1]);
        }
        out[bag * dim + i] = sum;
    }
}
