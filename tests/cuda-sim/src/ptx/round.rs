//! Rounding to f32, f16 and bfloat16 in every mode, and exact sums.
//!
//! A result is first known exactly, as the sum of an f64 and the error that its own rounding left; the
//! sum is then rounded once. Two roundings in a row (first to f64, then to the narrow format) would be
//! wrong for halfway cases.

/// A rounding mode, as PTX's suffix says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// `.rn`: to the nearest, ties to even.
    Nearest,
    /// `.rna`: to the nearest, ties away from zero.
    Away,
    /// `.rz`.
    Zero,
    /// `.rm`.
    Down,
    /// `.rp`.
    Up,
}

/// A binary floating-point format of at most 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// Bits of the fraction.
    pub(super) fraction: u32,
    /// Bits of the exponent.
    pub(super) exponent: u32,
}

pub(super) const F32: Format = Format { fraction: 23, exponent: 8 };
pub(super) const F16: Format = Format { fraction: 10, exponent: 5 };
pub(super) const BF16: Format = Format { fraction: 7, exponent: 8 };
/// 19 bits that lie at the top of 32.
pub(super) const TF32: Format = Format { fraction: 10, exponent: 8 };

impl Format {
    fn sign_bit(self) -> u64 {
        1 << (self.fraction + self.exponent)
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The one NaN that arithmetic gives: every bit set but the sign.
    fn nan(self) -> u64 {
        self.sign_bit() - 1
    }
}

/// Rounds `value + rest` to `format`. `rest` is smaller than half a unit in the last place of `value`,
/// and only its sign matters.
pub(super) fn round(value: f64, rest: f64, format: Format, mode: Mode) -> u64 {
    if value.is_nan() {
        return format.nan();
    }
    let negative = value.is_sign_negative();
    let sign = if negative { format.sign_bit() } else { 0 };
    if value.is_infinite() {
        return sign | format.infinity();
    }
    if value == 0.0 {
        return sign;
    }
    let bits = value.abs().to_bits();
    let (biased, fraction) = ((bits >> 52) as i32, bits & ((1 << 52) - 1));
    let (whole, scale) = if biased == 0 { (fraction, -1074) } else { (fraction | 1 << 52, biased - 1075) };
    // Two more bits below hold which side of `value` the exact sum lies on.
    let mut magnitude = whole << 2;
    let scale = scale - 2;
    if rest != 0.0 {
        magnitude = if rest.is_sign_negative() == negative { magnitude + 1 } else { magnitude - 1 };
    }
    let bias = (1 << (format.exponent - 1)) - 1;
    let top = 63 - magnitude.leading_zeros() as i32 + scale;
    let last = top.max(1 - bias) - format.fraction as i32;
    let shift = last - scale;
    let kept = if shift <= 0 {
        magnitude << -shift
    } else if shift >= 64 {
        u64::from(carries(0, 1, 2, mode, negative))
    } else {
        let (quotient, dropped) = (magnitude >> shift, magnitude & ((1 << shift) - 1));
        quotient + u64::from(carries(quotient, dropped, 1 << (shift - 1), mode, negative))
    };
    // A kept integer below 1 << fraction is subnormal: its exponent field is zero, as is the addition's.
    let field = i64::from(last) + i64::from(format.fraction) + i64::from(bias) - 1;
    let result = (field.max(0) as u64) << format.fraction;
    let result = result + kept;
    if result < format.infinity() {
        return sign | result;
    }
    let overflows = match mode {
        Mode::Nearest | Mode::Away => true,
        Mode::Zero => false,
        Mode::Down => negative,
        Mode::Up => !negative,
    };
    sign | if overflows { format.infinity() } else { format.infinity() - 1 }
}

/// Whether the kept integer goes up by one, given what was dropped and where its half lies.
fn carries(kept: u64, dropped: u64, half: u64, mode: Mode, negative: bool) -> bool {
    match mode {
        Mode::Nearest => dropped > half || (dropped == half && kept & 1 == 1),
        Mode::Away => dropped >= half,
        Mode::Zero => false,
        Mode::Down => negative && dropped != 0,
        Mode::Up => !negative && dropped != 0,
    }
}

/// `a + b` as its rounding to f64 and what that rounding lost.
pub(super) fn sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    let of_b = s - a;
    (s, (a - (s - of_b)) + (b - of_b))
}

/// One step from `nearest` towards the exact result, when `rest` (exact minus nearest) and the mode
/// ask for it. For operations in f64, whose exact results no wider type holds.
pub(super) fn direct(nearest: f64, rest: f64, mode: Mode) -> f64 {
    if rest == 0.0 || !nearest.is_finite() {
        return nearest;
    }
    match mode {
        Mode::Nearest | Mode::Away => nearest,
        Mode::Zero if (rest < 0.0) != (nearest < 0.0) => {
            if nearest < 0.0 {
                nearest.next_up()
            } else {
                nearest.next_down()
            }
        }
        Mode::Down if rest < 0.0 => nearest.next_down(),
        Mode::Up if rest > 0.0 => nearest.next_up(),
        _ => nearest,
    }
}

/// The value of f16 bits.
pub(super) fn from_f16(bits: u64) -> f64 {
    half::f16::from_bits(bits as u16).to_f64()
}

/// The value of bfloat16 bits.
pub(super) fn from_bf16(bits: u64) -> f64 {
    f64::from(f32::from_bits((bits as u32) << 16))
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Values that rounding finds hard: around every f16, and far outside.
    fn values() -> impl Iterator<Item = f64> {
        let around = (0..0x7c00_u16).step_by(7).flat_map(|bits| {
            let here = f16::from_bits(bits).to_f64();
            let next = f16::from_bits(bits + 1).to_f64();
            let middle = if next.is_finite() { (here + next) / 2.0 } else { 65520.0 };
            [here, middle, middle.next_up(), middle.next_down(), here.next_up()]
        });
        let outside =
            [1e-300, f64::MIN_POSITIVE, 1e-45, 1.4e-45, 3.4e38, 3.5e38, 1e300, 65519.9, 65520.0, 0.0];
        around.chain(outside).flat_map(|v| [v, -v])
    }

    #[test]
    fn nearest_agrees_with_rust_and_with_half() {
        for value in values() {
            assert_eq!(
                round(value, 0.0, F32, Mode::Nearest),
                u64::from((value as f32).to_bits()),
                "{value:e}"
            );
            // From f64, half looks at the upper 32 bits only; from f32 it is exact.
            let single = value as f32;
            if f64::from(single) == value {
                let half = u64::from(f16::from_f32(single).to_bits());
                assert_eq!(round(value, 0.0, F16, Mode::Nearest), half, "{value:e}");
                let brain = u64::from(bf16::from_f32(single).to_bits());
                assert_eq!(round(value, 0.0, BF16, Mode::Nearest), brain, "{value:e}");
            }
        }
    }

    #[test]
    fn directed_modes_enclose_the_value() {
        for value in values() {
            let [down, up, zero] = [Mode::Down, Mode::Up, Mode::Zero]
                .map(|mode| f64::from(f32::from_bits(round(value, 0.0, F32, mode) as u32)));
            assert!(down <= value && value <= up, "{value:e}");
            assert!(zero.abs() <= value.abs());
            let [down16, up16] = [Mode::Down, Mode::Up].map(|mode| from_f16(round(value, 0.0, F16, mode)));
            assert!(down16 <= value && value <= up16, "{value:e}");
            assert!(
                f16::from_f64(down16).to_bits().abs_diff(f16::from_f64(up16).to_bits()) <= 1
                    || value.abs() < 1e-7
            );
            let exact = f64::from(value as f32) == value;
            assert_eq!(down == up, exact, "{value:e}");
        }
    }

    #[test]
    fn the_rest_decides_halfway_cases() {
        let half_way = 1.0 + 2.0_f64.powi(-24);
        let at = |rest| f32::from_bits(round(half_way, rest, F32, Mode::Nearest) as u32);
        assert_eq!([at(0.0), at(-1e-30), at(1e-30)], [1.0, 1.0, 1.0_f32.next_up()]);
        let (s, rest) = sum(1.0, 1e-30);
        assert_eq!((s, rest), (1.0, 1e-30));
        assert_eq!(f32::from_bits(round(s, rest, F32, Mode::Up) as u32), 1.0_f32.next_up());
        assert_eq!(direct(1.0, -1e-30, Mode::Zero), 1.0_f64.next_down());
        assert_eq!(direct(-1.0, -1e-30, Mode::Zero), -1.0);
    }
}
