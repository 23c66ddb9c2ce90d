// bfloat16 in, bias and ReLU in f32, bfloat16 out: once by bit arithmetic, once by cvt.

extern "C" __global__ void bf16_relu(const unsigned short* in, const float* bias, unsigned short* out, int n, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float value = fmaxf(__uint_as_float((unsigned)in[i] << 16) + bias[i % width], 0.0f);
    if (i & 1) {
        unsigned bits = __float_as_uint(value);
        out[i] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else {
        unsigned short bits;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
        out[i] = bits;
    }
}
