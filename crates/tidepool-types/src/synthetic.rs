//! Rows that are a function of (id, version): what generated tables contain, and what those who check
//! answers compute for themselves. Written so that any language with 64-bit integers gives the same bits.
//!
//! With `*` and `+` on 64 bits, wrapping, and [`mix64`] of `docs/table-format.md`:
//!
//! ```text
//! salt      = mix64(FNV-1a of the version's name in UTF-8, 64 bits)
//! row       = mix64(id ^ salt)
//! h(column) = mix64(row + (column + 1) * 0x9e3779b97f4a7c15)           splitmix64, seeded with `row`
//! sum       = the four 16-bit parts of h(column), added: from 0 to 262,140
//! value     = f32(sum - 131070) * f32(sqrt(3) / 65536)                 one rounding; the constant is 0x37dd_b3d7
//! ```
//! So a value lies in -3.464..3.464, with mean 0 and variance 1, and is nearly Gaussian (Irwin-Hall of four).
//!
//! The ids of a generated table are 0, 1, 2, ... or, *uniform*, `mix64(n + seed * 0xd1342543de82ef95)` for n = 0, 1,
//! 2, ...: spread over all 64 bits, and never the same twice.

use crate::mix::mix64;

/// The step of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Keeps the id sets of neighbouring seeds apart.
const SEED_STEP: u64 = 0xd134_2543_de82_ef95;
/// `sqrt(3) / 65536`: makes the variance 1.
const SCALE: f32 = f32::from_bits(0x37dd_b3d7);

/// What a version's name adds to each of its rows.
#[must_use]
pub const fn salt(version: &str) -> u64 {
    let bytes = version.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    mix64(hash)
}

/// Writes the row of `id`; `salt` is the [`salt`] of the version.
pub fn row(id: u64, salt: u64, values: &mut [f32]) {
    let row = mix64(id ^ salt);
    let mut state = row;
    for value in values {
        state = state.wrapping_add(STEP);
        let h = mix64(state);
        let sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
        *value = (sum as i32 - 131_070) as f32 * SCALE;
    }
}

/// The `n`-th of the uniform ids of a seed.
#[must_use]
pub const fn uniform_id(n: u64, seed: u64) -> u64 {
    mix64(n.wrapping_add(seed.wrapping_mul(SEED_STEP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed once with arbitrary-precision integers.
    #[test]
    fn golden_rows() {
        assert_eq!(SCALE, (3f64.sqrt() / 65536.0) as f32);
        assert_eq!(salt("v1"), 0x3c01_dc68_9161_1860);
        let mut values = [0.0; 4];
        row(42, salt("v1"), &mut values);
        assert_eq!(values.map(f32::to_bits), [0x3fa2_ebc8, 0xbe05_80d3, 0x3ebf_304a, 0xbfa7_b0e1]);
        assert_eq!(uniform_id(5, 7), 0x1fb1_40fa_e8f5_61c6);
    }

    #[test]
    fn values_have_mean_0_and_variance_1() {
        let (mut sum, mut squares, mut most) = (0.0, 0.0, 0f64);
        let mut values = [0.0; 32];
        for id in 0..10_000 {
            row(id, salt("v1"), &mut values);
            for value in values.map(f64::from) {
                sum += value;
                squares += value * value;
                most = most.max(value.abs());
            }
        }
        let count = 320_000.0;
        assert!((sum / count).abs() < 0.01, "{sum}");
        assert!((squares / count - 1.0).abs() < 0.01, "{squares}");
        assert!(most > 3.0 && most < 3.4642, "{most}");
    }

    #[test]
    fn versions_and_ids_differ() {
        let values = |id, version| {
            let mut values = [0.0; 8];
            row(id, salt(version), &mut values);
            values
        };
        assert_ne!(values(1, "v1"), values(2, "v1"));
        assert_ne!(values(1, "v1"), values(1, "v2"));
    }
}
