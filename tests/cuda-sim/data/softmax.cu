// Softmax of rows, one block a row. Surplus threads leave before the barriers, which are inside a
// branch that all the others take.

extern "C" __global__ void softmax(const float* in, float* out, const int* lengths, int width) {
    extern __shared__ float values[];
    int n = lengths[blockIdx.x];
    int t = threadIdx.x;
    if (t >= width) return;
    const float* row = in + blockIdx.x * width;
    if (n > 0) {
        values[t] = t < n ? row[t] : -3.4e38f;
        __syncthreads();
        float top = values[0];
        for (int i = 1; i < n; ++i) top = fmaxf(top, values[i]);
        __syncthreads();
        values[t] = t < n ? __expf(row[t] - top) : 0.0f;
        __syncthreads();
        float sum = 0.0f;
        for (int i = 0; i < n; ++i) sum += values[i];
        out[blockIdx.x * width + t] = values[t] / sum;
    } else {
        out[blockIdx.x * width + t] = 0.0f;
    }
}
