//! The kernel's functions of one number, in Rust: operation by operation what `kernels/select.cu` does, so that how far
//! they are from exact is tested where there is no GPU. Against the standard library's, which are within 1 unit in the
//! last place: `exp`, `log` and `log1p` 2 units, `pow` 2 units, `sigmoid` 4.

const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

fn power_of_two(n: i32) -> f64 {
    f64::from_bits(((i64::from(n) + 1023) as u64) << 52)
}

/// `sum = sum * z + coefficient`, over all.
fn horner(coefficients: &[f64], z: f64) -> f64 {
    coefficients[1..].iter().fold(coefficients[0], |p, c| p.mul_add(z, *c))
}

pub(super) fn exp(x: f64, low: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.8 {
        return f64::INFINITY;
    }
    if x < -746.0 {
        return 0.0;
    }
    let shifted = x.mul_add(std::f64::consts::LOG2_E, 6_755_399_441_055_744.0);
    let whole = shifted - 6_755_399_441_055_744.0;
    let n = shifted.to_bits() as u32 as i32;
    let near = (-whole).mul_add(LN2_HIGH, x);
    let r = (-whole).mul_add(LN2_LOW, near);
    let rest = (-whole).mul_add(LN2_LOW, near - r) + low;
    let mut factorial = 1.0;
    let mut inverse = Vec::new();
    for n in 2..=13 {
        factorial *= f64::from(n);
        inverse.push(1.0 / factorial);
    }
    inverse.reverse();
    let p = horner(&inverse, r);
    let above_one = (p * r).mul_add(r, r);
    let value = 1.0 + (above_one + rest.mul_add(above_one, rest));
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n - half)
}

fn mantissa(mut x: f64) -> (f64, f64) {
    let mut below = 0.0;
    if x < f64::MIN_POSITIVE {
        x *= 18_014_398_509_481_984.0;
        below = 54.0;
    }
    let bits = x.to_bits();
    let mut m = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let mut e = (bits >> 52) as i32 - 1023;
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    (m, f64::from(e) - below)
}

pub(super) fn log(x: f64) -> f64 {
    if x.is_nan() || x <= 0.0 {
        return if x == 0.0 { f64::NEG_INFINITY } else { f64::NAN };
    }
    if x == f64::INFINITY {
        return x;
    }
    let (m, k) = mantissa(x);
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let series: Vec<f64> = (1..=10).rev().map(|n| 2.0 / f64::from(2 * n + 1)).collect();
    let p = horner(&series, z);
    let half_square = 0.5 * f * f;
    k * LN2_HIGH - ((half_square - (s * (half_square + p * z) + k * LN2_LOW)) - f)
}

pub(super) fn log1p(x: f64) -> f64 {
    let u = 1.0 + x;
    if u.is_nan() || u <= 0.0 || u == f64::INFINITY {
        return log(u);
    }
    log(u) + (x - (u - 1.0)) / u
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + exp(-x, 0.0))
}

fn power(x: f64, y: f64) -> f64 {
    const THIRD: f64 = 1.0 / 3.0;
    let (m, k) = mantissa(x);
    let f = m - 1.0;
    let d = 2.0 + f;
    let d_low = f - (d - 2.0);
    let s = f / d;
    let s_low = (-s).mul_add(d_low, (-s).mul_add(d, f)) / d;
    let z = s * s;
    let z_low = (2.0 * s).mul_add(s_low, s.mul_add(s, -z));
    let series: Vec<f64> = (2..=11).rev().map(|n| 1.0 / f64::from(2 * n + 1)).collect();
    let w = horner(&series, z) * z;
    let c = THIRD + w;
    let c_low = (THIRD - c) + w + 1.850_371_707_708_594e-17;
    let p = z * c;
    let p_low = z.mul_add(c, -p) + (z * c_low + z_low * c);
    let t = s * p;
    let t_low = s.mul_add(p, -t) + (s * p_low + s_low * p);
    let a = s + t;
    let a_low = (s - a) + t + (s_low + t_low);
    let (l, m) = (k * LN2_HIGH, 2.0 * a);
    let sum = l + m;
    let part = sum - l;
    let rest = (l - (sum - part)) + (m - part) + (2.0 * a_low + k * LN2_LOW);
    let high = sum + rest;
    let low = (sum - high) + rest;
    let e = y * high;
    if !(-746.0..=710.0).contains(&e) {
        return if e > 0.0 { f64::INFINITY } else { 0.0 };
    }
    exp(e, y.mul_add(high, -e) + y * low)
}

pub(super) fn pow(x: f64, y: f64) -> f64 {
    if y == 0.0 || x == 1.0 {
        return 1.0;
    }
    if x.is_nan() || y.is_nan() {
        return f64::NAN;
    }
    let (size, size_y) = (x.abs(), y.abs());
    const BEYOND: f64 = 9_007_199_254_740_992.0;
    let is_whole = size_y >= BEYOND || (size_y as i64) as f64 == size_y;
    let is_odd = is_whole && size_y < BEYOND && (size_y as i64) & 1 == 1;
    let negative = is_odd && x.is_sign_negative();
    let value = if size == 0.0 {
        if y < 0.0 { f64::INFINITY } else { 0.0 }
    } else if size == f64::INFINITY {
        if y < 0.0 { 0.0 } else { f64::INFINITY }
    } else if size_y == f64::INFINITY {
        match size == 1.0 {
            true => 1.0,
            false if (size > 1.0) == (y > 0.0) => f64::INFINITY,
            false => 0.0,
        }
    } else if x < 0.0 && !is_whole {
        return f64::NAN;
    } else if size == 1.0 {
        1.0
    } else {
        power(size, y)
    };
    if negative { -value } else { value }
}

#[cfg(test)]
mod tests {
    use tidepool_types::mix64;

    use super::*;

    /// How many numbers lie between two.
    fn apart(a: f64, b: f64) -> u64 {
        if a.is_nan() && b.is_nan() {
            return 0;
        }
        let line = |x: f64| {
            if x.is_sign_negative() { -((x.to_bits() << 1 >> 1) as i64) } else { x.to_bits() as i64 }
        };
        if a.is_nan() != b.is_nan() { u64::MAX } else { line(a).abs_diff(line(b)) }
    }

    /// Numbers of every size and both signs, and the edges.
    fn numbers() -> impl Iterator<Item = f64> {
        let edges =
            [0.0, 1.0, 0.5, 2.0, f64::INFINITY, f64::MIN_POSITIVE, 5e-324, f64::MAX, f64::NAN, 709.7, 745.1];
        let near = (0..200_000u64).map(|n| (mix64(n) >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0);
        let any = (0..200_000u64).map(|n| f64::from_bits(mix64(n)));
        edges.into_iter().flat_map(|x| [x, -x]).chain(near.flat_map(|x| [x, x * 30.0, x * 800.0])).chain(any)
    }

    #[test]
    fn functions_of_one_number_are_near_those_of_the_standard_library() {
        for x in numbers() {
            assert!(apart(exp(x, 0.0), x.exp()) <= 2, "exp {x:e}: {:e} {:e}", exp(x, 0.0), x.exp());
            assert!(apart(log(x), x.ln()) <= 2, "log {x:e}: {:e} {:e}", log(x), x.ln());
            assert!(apart(log1p(x), x.ln_1p()) <= 2, "log1p {x:e}: {:e} {:e}", log1p(x), x.ln_1p());
            let expected = 1.0 / (1.0 + (-x).exp());
            assert!(apart(sigmoid(x), expected) <= 4, "sigmoid {x:e}: {:e} {expected:e}", sigmoid(x));
        }
    }

    #[test]
    fn powers_are_near_those_of_the_standard_library() {
        let edges =
            [0.0, 1.0, 2.0, 3.0, 0.5, 1e300, 5e-324, f64::INFINITY, f64::NAN, 9_007_199_254_740_991.0, 1e16];
        let both = || edges.into_iter().flat_map(|x| [x, -x]);
        let pairs = both().flat_map(|x| both().map(move |y| (x, y)));
        let usual = (0..400_000u64).map(|n| {
            let unit = |n: u64| (mix64(n) >> 11) as f64 / (1u64 << 53) as f64;
            ((unit(n) * 60.0 - 30.0).exp(), (unit(n + 1_000_000) - 0.5) * 40.0)
        });
        let near_one =
            (0..100_000u64).map(|n| (1.0 + (mix64(n) as i64) as f64 * 1e-22, (mix64(n + 7) >> 40) as f64));
        for (x, y) in pairs.chain(usual).chain(near_one) {
            let expected = x.powf(y);
            assert!(apart(pow(x, y), expected) <= 2, "{x:e} ^ {y:e}: {:e} {expected:e}", pow(x, y));
        }
    }
}
