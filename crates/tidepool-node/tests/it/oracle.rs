//! What the answers should be: rows as the tests made them, and a decoder of stored rows of its own.

use tidepool_types::RowFormat;

/// Column `column` of the row of `id`: from -2 to 2, by a generator that nothing else uses.
pub(crate) fn value(id: u64, column: u32) -> f32 {
    let mut x = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(column) << 17);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    ((x % 4001) as f32 - 2000.0) / 1000.0
}

pub(crate) fn row(id: u64, dim: u32) -> Vec<f32> {
    (0..dim).map(|column| value(id, column)).collect()
}

/// The values of a stored row.
pub(crate) fn decode(format: RowFormat, dim: u32, stored: &[u8]) -> Vec<f64> {
    let dim = dim as usize;
    match format {
        RowFormat::Int4 => {
            let (codes, ends) = stored.split_at(dim / 2);
            let (scale, bias) = (half(ends[0], ends[1]), half(ends[2], ends[3]));
            let nibbles = codes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|code| f64::from(code) * scale + bias).collect()
        }
        RowFormat::F16 => stored.chunks_exact(2).map(|b| half(b[0], b[1])).collect(),
        other => panic!("no test has {other} rows"),
    }
}

/// An IEEE 754 half from its bytes, low one first.
fn half(low: u8, high: u8) -> f64 {
    let sign = if high & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = i32::from(high >> 2 & 31);
    let fraction = f64::from(u16::from(high & 3) << 8 | u16::from(low)) / 1024.0;
    match exponent {
        0 => sign * fraction * 2f64.powi(-14),
        31 => panic!("not a number, or infinite"),
        _ => sign * (1.0 + fraction) * 2f64.powi(exponent - 15),
    }
}

#[test]
fn halves() {
    assert_eq!(half(0x00, 0x3c), 1.0);
    assert_eq!(half(0x00, 0xbc), -1.0);
    assert_eq!(half(0x66, 0x2e), 0.099_975_585_937_5);
    assert_eq!(half(0x01, 0x00), 2f64.powi(-24));
}
