//! The gather limit: every cache line of every row asked for ahead, then one word of it added up. No pooling
//! that reads whole rows from memory can be faster, but for what it does between two rows.

use tidepool_kernels::prefetch_read;

const LINE_BYTES: usize = 64;

/// Touches every line of `rows`, and asks for them `distance` rows ahead.
pub(super) fn touch(rows: &[&[u8]], distance: usize) -> u64 {
    let ahead = &rows[distance.min(rows.len())..];
    rows[..distance.min(rows.len())].iter().for_each(|row| prefetch_read(row));
    let (with_later, last) = rows.split_at(ahead.len());
    let mut sum = 0u64;
    for (row, later) in with_later.iter().zip(ahead) {
        prefetch_read(later);
        sum = sum.wrapping_add(words(row));
    }
    last.iter().fold(sum, |sum, row| sum.wrapping_add(words(row)))
}

/// A word of each line. Those at every 64th byte and the last one are in all the lines of a row, wherever it
/// begins. Where the last line is no line of its own it is read twice: counting the lines of each row would
/// cost a branch that nobody can predict, and that is dearer.
#[inline]
fn words(row: &[u8]) -> u64 {
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let last = row.last_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    if row.len() < size_of::<u64>() {
        return row.iter().map(|&byte| u64::from(byte)).sum();
    }
    if row.len() <= LINE_BYTES {
        return word(row).wrapping_add(last);
    }
    row.chunks(LINE_BYTES).fold(last, |sum, line| sum.wrapping_add(word(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_touched_once_whatever_the_distance() {
        let bytes: Vec<u8> = (0..200u8).collect();
        for length in [1, 7, 8, 36, 64, 65, 140] {
            let rows: Vec<&[u8]> = (0..50).map(|at| &bytes[at..at + length]).collect();
            let expected = rows.iter().fold(0u64, |sum, row| sum.wrapping_add(words(row)));
            for distance in [0, 1, 49, 50, 51, 1000] {
                assert_eq!(touch(&rows, distance), expected, "{length} {distance}");
            }
        }
    }

    #[test]
    fn every_line_of_a_row_has_a_word_in_the_sum() {
        let line = [1u8; 256];
        for (length, expected) in [(4, 4), (36, 2), (64, 2), (72, 3), (128, 3), (136, 4)] {
            let word = if length < 8 { 1 } else { u64::from_le_bytes([1; 8]) };
            assert_eq!(words(&line[..length]), word * expected, "{length}");
        }
    }
}
