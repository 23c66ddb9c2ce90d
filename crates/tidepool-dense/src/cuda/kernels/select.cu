// From the plan's outputs to what each request gets back: outputs are calibrated, candidates get what they are ranked
// by, and the best of each request are written where one copy takes them to the host.
//
// The functions of one number below are made of sums, products and fused products alone, and of divisions, so that they
// give the same bits on every device; select/math.rs has them in Rust, and says how far they are from exact. Nothing here
// is checked: the host writes the staged region through `SelectLayout`, which does.
//
// select/source.rs puts the formula behind this text, and the kernels of select_kernels.cu behind that.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define THREADS 128
#define NONE 0xffffffffu

// One curve of the contract; `kind` as select/curves.rs numbers them.
#define PLATT 1
#define LINEAR 2
#define ISOTONIC 3
struct Curve {
    u32 kind;
    u32 first;
    u32 points;
    u32 unused;
    double a;
    double b;
};

struct Point {
    double x;
    double y;
};

// What is staged of a batch besides its arrays: select/layout.rs. Places are counted in 16 bytes from the beginning of the
// staging buffer.
struct __align__(16) Head {
    u32 requests;
    u32 rows;
    // Outputs that are returned.
    u32 chosen;
    // Of all requests.
    u32 winners;
    u32 places[6];
    u32 unused[2];
};

// Where everything is: select/device.rs writes it when the model is loaded.
struct Select {
    const u8* staging;
    const Head* head;
    // [outputs]: addresses of [rows].
    const u64* outputs;
    const Curve* curves;
    const Point* points;
    // [rows].
    float* scores;
    // [rows] each: keys, and room to merge them into.
    u64* keys;
    u64* merged;
    u8* answer;
    // A count of resident rows that were not found, or 0.
    const u32* lost;
    // Scores of each request that are returned whatever they are.
    u32 samples;
    // Bits of a row's number in a key.
    u32 row_bits;
    // Where the sorted keys are: 0 in `keys`, 1 in `merged`.
    u32 sorted_in_merged;
    u32 unused;
};

// The batch: its numbers, and its arrays where they are.
struct Batch {
    u32 requests;
    u32 rows;
    u32 chosen;
    u32 total;
    // [requests + 1]: where the rows of each begin.
    const u32* starts;
    // [requests + 1]: where its winners begin.
    const u32* winners;
    // [chosen]: which outputs.
    const u32* columns;
    // [requests, formula + chosen]: the curve of each column, from 1; 0: none.
    const u32* curve_of;
    // [user numbers, requests].
    const float* users;
    // [candidate numbers, rows].
    const float* candidates;
};

static __device__ __forceinline__ Batch batch_of(const Select& s) {
    const Head head = *s.head;
    Batch b;
    b.requests = head.requests;
    b.rows = head.rows;
    b.chosen = head.chosen;
    b.total = head.winners;
    b.starts = (const u32*)(s.staging + 16ull * head.places[0]);
    b.winners = (const u32*)(s.staging + 16ull * head.places[1]);
    b.columns = (const u32*)(s.staging + 16ull * head.places[2]);
    b.curve_of = (const u32*)(s.staging + 16ull * head.places[3]);
    b.users = (const float*)(s.staging + 16ull * head.places[4]);
    b.candidates = (const float*)(s.staging + 16ull * head.places[5]);
    return b;
}

static __device__ __forceinline__ double not_a_number() { return __longlong_as_double(0x7ff8000000000000ll); }
static __device__ __forceinline__ double infinity() { return __longlong_as_double(0x7ff0000000000000ll); }

static __device__ __forceinline__ double power_of_two(int n) {
    return __longlong_as_double((long long)(n + 1023) << 52);
}

#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10

// e^(x + low), of a low that is far smaller than x.
static __device__ __forceinline__ double exp_of(double x, double low) {
    if (x != x) return x;
    if (x > 709.8) return infinity();
    if (x < -746.0) return 0.0;
    // Adding 1.5 * 2^52 rounds to a whole number, which stands in the low bits.
    const double shifted = __fma_rn(x, 1.44269504088896338700, 6755399441055744.0);
    const double whole = shifted - 6755399441055744.0;
    const int n = (int)(u32)__double_as_longlong(shifted);
    const double near = __fma_rn(-whole, LN2_HIGH, x);
    const double r = __fma_rn(-whole, LN2_LOW, near);
    const double rest = __fma_rn(-whole, LN2_LOW, near - r) + low;
    double p = 1.60590438368216145994e-10;
    p = __fma_rn(p, r, 2.08767569878680989792e-09);
    p = __fma_rn(p, r, 2.50521083854417187751e-08);
    p = __fma_rn(p, r, 2.75573192239858906526e-07);
    p = __fma_rn(p, r, 2.75573192239858906526e-06);
    p = __fma_rn(p, r, 2.48015873015873015873e-05);
    p = __fma_rn(p, r, 1.98412698412698412698e-04);
    p = __fma_rn(p, r, 1.38888888888888888889e-03);
    p = __fma_rn(p, r, 8.33333333333333333333e-03);
    p = __fma_rn(p, r, 4.16666666666666666667e-02);
    p = __fma_rn(p, r, 1.66666666666666666667e-01);
    p = __fma_rn(p, r, 0.5);
    const double above_one = __fma_rn(p * r, r, r);
    const double value = 1.0 + (above_one + __fma_rn(rest, above_one, rest));
    // In two factors: n reaches from -1076 to 1024, an exponent from -1022 to 1023.
    const int half = n >> 1;
    return value * power_of_two(half) * power_of_two(n - half);
}

// x = m * 2^k with m from sqrt(1/2) to sqrt(2), of an x above 0 that is finite.
static __device__ __forceinline__ double mantissa(double x, double& k) {
    double below = 0.0;
    if (x < 2.2250738585072014e-308) {
        x *= 18014398509481984.0;
        below = 54.0;
    }
    const long long bits = __double_as_longlong(x);
    double m = __longlong_as_double((bits & 0x000fffffffffffffll) | 0x3ff0000000000000ll);
    int e = (int)(bits >> 52) - 1023;
    if (m > 1.41421356237309514547) {
        m *= 0.5;
        e += 1;
    }
    k = (double)e - below;
    return m;
}

static __device__ __forceinline__ double log_of(double x) {
    if (!(x > 0.0)) return x == 0.0 ? -infinity() : not_a_number();
    if (x == infinity()) return x;
    double k;
    const double f = mantissa(x, k) - 1.0;
    const double s = f / (2.0 + f), z = s * s;
    double p = 9.52380952380952380952e-02;
    p = __fma_rn(p, z, 1.05263157894736842105e-01);
    p = __fma_rn(p, z, 1.17647058823529411765e-01);
    p = __fma_rn(p, z, 1.33333333333333333333e-01);
    p = __fma_rn(p, z, 1.53846153846153846154e-01);
    p = __fma_rn(p, z, 1.81818181818181818182e-01);
    p = __fma_rn(p, z, 2.22222222222222222222e-01);
    p = __fma_rn(p, z, 2.85714285714285714286e-01);
    p = __fma_rn(p, z, 4.00000000000000000000e-01);
    p = __fma_rn(p, z, 6.66666666666666666667e-01);
    const double half_square = 0.5 * f * f;
    return k * LN2_HIGH - ((half_square - (s * (half_square + p * z) + k * LN2_LOW)) - f);
}

// log(1 + x).
static __device__ __forceinline__ double log1p_of(double x) {
    const double u = 1.0 + x;
    if (!(u > 0.0) || u == infinity()) return log_of(u);
    return log_of(u) + (x - (u - 1.0)) / u;
}

static __device__ __forceinline__ double sigmoid_of(double x) { return 1.0 / (1.0 + exp_of(-x, 0.0)); }

// |x|^y for an x that is neither 0, 1 nor infinite: the logarithm in two numbers, so that y may be large.
static __device__ __forceinline__ double power(double x, double y) {
    double k;
    const double f = mantissa(x, k) - 1.0;
    const double d = 2.0 + f, d_low = f - (d - 2.0);
    const double s = f / d;
    const double s_low = __fma_rn(-s, d_low, __fma_rn(-s, d, f)) / d;
    const double z = s * s, z_low = __fma_rn(2.0 * s, s_low, __fma_rn(s, s, -z));
    double w = 4.34782608695652173913e-02;
    w = __fma_rn(w, z, 4.76190476190476190476e-02);
    w = __fma_rn(w, z, 5.26315789473684210526e-02);
    w = __fma_rn(w, z, 5.88235294117647058824e-02);
    w = __fma_rn(w, z, 6.66666666666666666667e-02);
    w = __fma_rn(w, z, 7.69230769230769230769e-02);
    w = __fma_rn(w, z, 9.09090909090909090909e-02);
    w = __fma_rn(w, z, 1.11111111111111111111e-01);
    w = __fma_rn(w, z, 1.42857142857142857143e-01);
    w = __fma_rn(w, z, 2.00000000000000000000e-01);
    w *= z;
    const double c = 3.33333333333333314830e-01 + w;
    const double c_low = (3.33333333333333314830e-01 - c) + w + 1.85037170770859413132e-17;
    const double p = z * c;
    const double p_low = __fma_rn(z, c, -p) + (z * c_low + z_low * c);
    const double t = s * p;
    const double t_low = __fma_rn(s, p, -t) + (s * p_low + s_low * p);
    const double a = s + t;
    const double a_low = (s - a) + t + (s_low + t_low);
    const double l = k * LN2_HIGH, m = 2.0 * a;
    const double sum = l + m;
    const double part = sum - l;
    const double rest = (l - (sum - part)) + (m - part) + (2.0 * a_low + k * LN2_LOW);
    const double high = sum + rest;
    const double low = (sum - high) + rest;
    const double e = y * high;
    if (e > 710.0 || e < -746.0) return e > 0.0 ? infinity() : 0.0;
    return exp_of(e, __fma_rn(y, high, -e) + y * low);
}

static __device__ __forceinline__ double pow_of(double x, double y) {
    if (y == 0.0 || x == 1.0) return 1.0;
    if (x != x || y != y) return not_a_number();
    const double size = fabs(x), size_y = fabs(y);
    // Beyond 2^53 all are even.
    const bool is_whole = size_y >= 9007199254740992.0 || (double)(long long)size_y == size_y;
    const bool is_odd = is_whole && size_y < 9007199254740992.0 && ((long long)size_y & 1);
    const bool negative = is_odd && (__double_as_longlong(x) < 0);
    double value;
    if (size == 0.0) {
        value = y < 0.0 ? infinity() : 0.0;
    } else if (size == infinity()) {
        value = y < 0.0 ? 0.0 : infinity();
    } else if (size_y == infinity()) {
        value = size == 1.0 ? 1.0 : (size > 1.0) == (y > 0.0) ? infinity() : 0.0;
    } else if (x < 0.0 && !is_whole) {
        return not_a_number();
    } else {
        value = size == 1.0 ? 1.0 : power(size, y);
    }
    return negative ? -value : value;
}

static __device__ __forceinline__ double min_of(double x, double y) { return x <= y || x != x ? x : y; }
static __device__ __forceinline__ double max_of(double x, double y) { return x >= y || x != x ? x : y; }

// Straight lines between points, and level beyond the first and the last.
static __device__ double along(const Point* points, u32 count, double x) {
    if (x != x) return x;
    u32 above = 0;
    for (u32 left = count; left;) {
        const u32 half = left / 2;
        if (points[above + half].x <= x) {
            above += half + 1;
            left -= half + 1;
        } else {
            left = half;
        }
    }
    if (above == 0) return points[0].y;
    const Point below = points[above - 1];
    if (above == count) return below.y;
    const Point next = points[above];
    const double y = below.y + (x - below.x) / (next.x - below.x) * (next.y - below.y);
    return y < next.y ? y : next.y;
}

// The number of the range that `at` lies in; `starts` are those of `count` ranges, and the end.
static __device__ __forceinline__ u32 range_of(const u32* starts, u32 count, u32 at) {
    u32 low = 0;
    for (u32 left = count; left;) {
        const u32 half = left / 2;
        if (starts[low + half + 1] <= at) {
            low += half + 1;
            left -= half + 1;
        } else {
            left = half;
        }
    }
    return low;
}

// An output for a row, calibrated for the surface of its request. `column` is its place among those of the formula, of
// which there are `formula`, and the chosen ones.
static __device__ double calibrated(const Select& s, const Batch& b, u32 formula, u32 request, u32 column, u32 output,
                                    u32 row) {
    const double x = (double)((const float*)s.outputs[output])[row];
    const u32 number = b.curve_of[request * (formula + b.chosen) + column];
    if (number == 0) return x;
    const Curve curve = s.curves[number - 1];
    if (curve.kind == LINEAR) return curve.a * x + curve.b;
    if (curve.kind == ISOTONIC) return along(s.points + curve.first, curve.points, x);
    return sigmoid_of(curve.a * (log_of(x) - log1p_of(-x)) + curve.b);
}
