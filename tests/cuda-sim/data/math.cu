// What libdevice makes of the mathematical functions that models use, and of integer division.

extern "C" __global__ void math(const float* in, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = in[i], *to = out + i * 12;
    to[0] = expf(x);
    to[1] = logf(fabsf(x) + 1e-3f);
    to[2] = tanhf(x);
    to[3] = erff(x);
    to[4] = sinf(x * 1000.0f);
    to[5] = powf(fabsf(x), 1.7f);
    to[6] = 1.0f / (1.0f + expf(-x));
    to[7] = 0.5f * x * (1.0f + erff(x * 0.70710678f));
    to[8] = sqrtf(fabsf(x)) + rsqrtf(fabsf(x) + 1.0f);
    to[9] = rintf(x) + floorf(x) + truncf(x);
    to[10] = log1pf(fabsf(x)) + exp2f(x);
    to[11] = fmodf(x * 10.0f, 3.0f);
}

extern "C" __global__ void math_f64(const double* in, double* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double x = in[i], *to = out + i * 5;
    to[0] = exp(x);
    to[1] = log(fabs(x) + 1e-3);
    to[2] = tanh(x);
    to[3] = sin(x * 100.0);
    to[4] = 1.0 / sqrt(fabs(x) + 1.0);
}

extern "C" __global__ void divide(const long long* a, const long long* b, long long* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long x = a[i], y = b[i];
    unsigned u = (unsigned)x, v = (unsigned)y | 1;
    out[i * 4] = x / y;
    out[i * 4 + 1] = x % y;
    out[i * 4 + 2] = (unsigned long long)x / 1000003u + u / 7 + u % v;
    out[i * 4 + 3] = __mul64hi(x, y) + (long long)((unsigned short)x / 7) + (signed char)x;
}
