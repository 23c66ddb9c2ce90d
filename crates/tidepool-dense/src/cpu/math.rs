//! Functions of one number, without branches, so that loops over them become vector code. Their errors are stated
//! where they are, and tested against f64.

/// `e^x`: at most 2 units in the last place off; 0 below -104, infinity above 88.73.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons and no `clamp`: NaN stays NaN.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    // Adding 1.5 * 2^23 rounds to a whole number, which stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    // ln 2 in two parts, so that the remainder is exact.
    let r = whole.mul_add(-0.693_359_4, x);
    let r = whole.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let p = (p * r).mul_add(r, r) + 1.0;
    // 2^n in two factors: n reaches from -150 to 128, an exponent from -126 to 127.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// The natural logarithm: at most 2 units in the last place off; NaN below 0, minus infinity at 0.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let small = x < f32::MIN_POSITIVE;
    let scaled = if small { x * 8_388_608.0 } else { x };
    let bits = scaled.to_bits() as i32;
    let exponent = (bits >> 23).wrapping_sub(126).wrapping_sub(if small { 23 } else { 0 });
    let m = f32::from_bits(((bits & 0x007f_ffff) | 0x3f00_0000) as u32);
    let low = m < std::f32::consts::FRAC_1_SQRT_2;
    let e = exponent as f32 - if low { 1.0 } else { 0.0 };
    let m = if low { m + m - 1.0 } else { m - 1.0 };
    let z = m * m;
    let p = 7.037_683_6e-2_f32;
    let p = p.mul_add(m, -1.151_461e-1);
    let p = p.mul_add(m, 1.167_699_87e-1);
    let p = p.mul_add(m, -1.242_014_1e-1);
    let p = p.mul_add(m, 1.424_932_3e-1);
    let p = p.mul_add(m, -1.666_805_8e-1);
    let p = p.mul_add(m, 2.000_071_5e-1);
    let p = p.mul_add(m, -2.499_999_4e-1);
    let p = p.mul_add(m, 3.333_333e-1);
    let y = e.mul_add(-2.121_944_4e-4, p * m * z);
    let y = z.mul_add(-0.5, y);
    let y = e.mul_add(0.693_359_4, m + y);
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // Also what is NaN itself.
    if x >= 0.0 { y } else { f32::NAN }
}

/// `1 / (1 + e^-x)`: relative error below 4e-7 where the result is a normal number.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent: relative error below 4e-7.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3_f32;
    let p = p.mul_add(z, 2.063_908_8e-2);
    let p = p.mul_add(z, -5.373_971_5e-2);
    let p = p.mul_add(z, 1.333_144_2e-1);
    let p = p.mul_add(z, -3.333_328e-1);
    let near = (p * z).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// The error function: absolute error below 3e-7, relative below 4e-7 near 0.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let z = x * x;
    let p = -8.548_327e-4_f32;
    let p = p.mul_add(z, 5.223_977_6e-3);
    let p = p.mul_add(z, -2.686_617_1e-2);
    let p = p.mul_add(z, 1.128_379_2e-1);
    let p = p.mul_add(z, -3.761_263_9e-1);
    let p = p.mul_add(z, std::f32::consts::FRAC_2_SQRT_PI);
    let near = p * x;
    // Abramowitz and Stegun, 7.1.26.
    let t = 1.0 / 0.327_591_1_f32.mul_add(x.abs(), 1.0);
    let q = 1.061_405_4_f32;
    let q = q.mul_add(t, -1.453_152);
    let q = q.mul_add(t, 1.421_413_8);
    let q = q.mul_add(t, -0.284_496_72);
    let q = q.mul_add(t, 0.254_829_6);
    let far = (-(q * t)).mul_add(exp(-z), 1.0).copysign(x);
    if x.abs() < 0.5 { near } else { far }
}

/// The greater of two; NaN when one of them is.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    if a < b || b.is_nan() { b } else { a }
}

/// The lesser of two; NaN when one of them is.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32) -> f32 {
    if a > b || b.is_nan() { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every size, both signs, dense around 0.
    fn numbers() -> impl Iterator<Item = f32> {
        (-120_000..=120_000).map(|i| i as f32 * 1e-3).chain((0..200).map(|i| (1e-30 * 2f64.powi(i)) as f32))
    }

    fn off(found: f32, expected: f64) -> f64 {
        (f64::from(found) - expected).abs() / expected.abs().max(f64::from(f32::MIN_POSITIVE))
    }

    #[test]
    fn errors_are_within_what_is_stated() {
        for x in numbers() {
            let wide = f64::from(x);
            if (-87.0..88.7).contains(&x) {
                assert!(off(exp(x), wide.exp()) < 2.4e-7, "exp {x}: {}", exp(x));
                assert!(off(sigmoid(x), 1.0 / (1.0 + (-wide).exp())) < 4e-7, "sigmoid {x}");
            }
            assert!(off(tanh(x), wide.tanh()) < 4e-7, "tanh {x}: {}", tanh(x));
            if x > 0.0 {
                let error = (f64::from(ln(x)) - wide.ln()).abs();
                assert!(error < 2.4e-7 * wide.ln().abs().max(0.3), "ln {x}: {}", ln(x));
            }
        }
    }

    #[test]
    fn the_error_function_equals_its_integral() {
        // Simpson's rule in f64, step by step from 0.
        let density = |x: f64| std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp();
        let (mut sum, step) = (0.0, 1e-3);
        for i in 0..5_000 {
            let x = f64::from(i) * step;
            assert!((f64::from(erf(x as f32)) - sum).abs() < 3e-7, "erf {x}: {} {sum}", erf(x as f32));
            assert!((f64::from(erf(-x as f32)) + sum).abs() < 3e-7, "erf -{x}");
            sum += step / 6.0 * (density(x) + 4.0 * density(x + step / 2.0) + density(x + step));
        }
    }

    #[test]
    fn edges_are_what_they_are_in_arithmetic() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(f32::INFINITY), exp(0.0)), (0.0, f32::INFINITY, 1.0));
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY)), (0.0, 1.0));
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(f32::INFINITY), tanh(0.0)), (-1.0, 1.0, 0.0));
        assert_eq!((ln(0.0), ln(f32::INFINITY), ln(1.0)), (f32::NEG_INFINITY, f32::INFINITY, 0.0));
        assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (1.0, -1.0));
        for nan in [exp(f32::NAN), ln(f32::NAN), ln(-1.0), sigmoid(f32::NAN), tanh(f32::NAN), erf(f32::NAN)] {
            assert!(nan.is_nan());
        }
        assert!(max(f32::NAN, 0.0).is_nan() && max(0.0, f32::NAN).is_nan() && min(f32::NAN, 0.0).is_nan());
    }
}
