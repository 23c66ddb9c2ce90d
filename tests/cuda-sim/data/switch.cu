// A switch with many arms, loops of different lengths, and local memory that is indexed at run time.

extern "C" __global__ void many_ways(const int* in, int* out, int n) {
    int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    int x = in[t], stack[8];
    for (int i = 0; i < 8; ++i) stack[i] = i * i + x;
    switch (x % 11) {
        case 0: x = x / 7 + 1; break;
        case 1: x = x % 13 - 5; break;
        case 2: x <<= t & 7; break;
        case 3: x >>= 3; break;
        case 4: for (int i = 0; i < t; ++i) x = x * 31 + i; break;
        case 5: x = __popc(x) + __clz(x); break;
        case 6: x = stack[x & 7]; break;
        case 7: stack[x & 7] = -x; x = stack[t & 7]; break;
        case 8: x = max(x, t) * min(x, 40); break;
        case 9: x = __mulhi(x, 0x12345678) ^ (int)__brev(x); break;
        default: x = -x;
    }
    out[t] = x;
}
