//! The rows of bench tables: a function of (id, version), so that whoever checks an answer needs no table.

use tidepool_types::{Keying, RowFormat, mix64, unmix64};

use crate::draw::Random;

/// Keeps the ids of hashed tables away from the numbers that everything else is seeded with.
const ID_SALT: u64 = 0x7469_6465_706f_6f6c;

/// The id of row number `n`: the number itself in a dense table, one of 2^64 in a hashed one.
#[must_use]
pub const fn id_of(keying: Keying, n: u64) -> u64 {
    match keying {
        Keying::Dense => n,
        Keying::Hashed => mix64(n ^ ID_SALT),
    }
}

/// The number `n` of which [`id_of`] is `id`; a table of more rows than `n` has that id, others have not.
#[must_use]
pub(crate) const fn number_of(keying: Keying, id: u64) -> u64 {
    match keying {
        Keying::Dense => id,
        Keying::Hashed => unmix64(id) ^ ID_SALT,
    }
}

/// Writes the stored row of `id`, which is [`RowFormat::row_bytes`] long. Values are between -4 and 4, none
/// of them infinite, subnormal or NaN; scales and biases differ from row to row.
pub fn stored_row(format: RowFormat, id: u64, version: u64, row: &mut [u8]) {
    let mut random = Random::new(id ^ mix64(version));
    match format {
        RowFormat::Int4 => {
            let (codes, ends) = row.split_at_mut(row.len() - 4);
            random.fill(codes);
            let bits = random.next();
            // 2^-6 to 2^-3, and 1/4 to 1 of either sign.
            let scale = f16_bits(bits, 9 + (bits >> 16) % 3, false);
            let bias = f16_bits(bits >> 32, 13 + (bits >> 48) % 2, bits >> 63 == 1);
            ends[..2].copy_from_slice(&scale.to_le_bytes());
            ends[2..].copy_from_slice(&bias.to_le_bytes());
        }
        RowFormat::Int8 => {
            let (codes, ends) = row.split_at_mut(row.len() - 8);
            random.fill(codes);
            let bits = random.next();
            // 2^-9 to 2^-7, and 1/4 to 1 of either sign.
            let scale = f32_bits(bits, 118 + (bits >> 31) % 2, false);
            let bias = f32_bits(bits >> 32, 125 + (bits >> 62) % 2, bits >> 63 == 1);
            ends[..4].copy_from_slice(&scale.to_le_bytes());
            ends[4..].copy_from_slice(&bias.to_le_bytes());
        }
        RowFormat::F16 => {
            for value in row.as_chunks_mut::<2>().0 {
                let bits = random.next();
                *value = f16_bits(bits, 12 + (bits >> 16) % 4, bits >> 63 == 1).to_le_bytes();
            }
        }
        RowFormat::F32 => {
            for value in row.as_chunks_mut::<4>().0 {
                let bits = random.next();
                *value = f32_bits(bits, 124 + (bits >> 32) % 4, bits >> 63 == 1).to_le_bytes();
            }
        }
    }
}

/// An f16 with the low 10 of `bits` behind the binary point.
#[expect(clippy::cast_possible_truncation, reason = "ten bits, and an exponent of five")]
const fn f16_bits(bits: u64, exponent: u64, negative: bool) -> u16 {
    (negative as u16) << 15 | (exponent as u16) << 10 | (bits & 0x3ff) as u16
}

/// An f32 with the low 23 of `bits` behind the binary point.
#[expect(clippy::cast_possible_truncation, reason = "23 bits, and an exponent of eight")]
const fn f32_bits(bits: u64, exponent: u64, negative: bool) -> u32 {
    (negative as u32) << 31 | (exponent as u32) << 23 | (bits & 0x7f_ffff) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_depend_on_id_and_version_alone() {
        for format in RowFormat::ALL {
            let row = |id, version| {
                let mut row = vec![0; format.row_bytes(32)];
                stored_row(format, id, version, &mut row);
                row
            };
            assert_eq!(row(7, 1), row(7, 1));
            assert_ne!(row(7, 1), row(8, 1));
            assert_ne!(row(7, 1), row(7, 2));
        }
    }

    #[test]
    fn ids_of_a_hashed_table_are_distinct() {
        let ids: std::collections::BTreeSet<u64> = (0..10_000).map(|n| id_of(Keying::Hashed, n)).collect();
        assert_eq!(ids.len(), 10_000);
        assert_eq!(id_of(Keying::Dense, 5), 5);
        for keying in [Keying::Dense, Keying::Hashed] {
            assert!((0..10_000).all(|n| number_of(keying, id_of(keying, n)) == n), "{keying}");
        }
    }
}
