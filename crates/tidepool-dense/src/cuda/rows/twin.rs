//! The kernel's work, done on the CPU from the same bytes: what it is held against.

use tidepool_kernels::RowKernel;
use tidepool_types::Combine;

use super::{
    DEFAULTED, Position, RowInput, RowsLayout,
    layout::{InputAt, Pool},
};
use crate::cuda::packing::UNIT;

/// An input that was made from stored rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Expanded {
    /// `[vectors, width]`, row-major: one vector per bag, or `max_len` of a sequence.
    pub values: Vec<f32>,
    /// `[vectors]` of a sequence with a mask; else empty.
    pub mask: Vec<f32>,
    /// `[vectors]`: the rows found, and [`DEFAULTED`] when the vector is the default row.
    pub state: Vec<u32>,
    /// Rows that the resident set was to have and has not: above 0, the host's picture of it was another.
    pub lost: u32,
}

/// Makes an input of what `staging` holds. `resident` gives the stored row of an id, by the number of its table in the
/// resident set.
///
/// # Panics
/// When `staging` is not what a [`RowsWriter`](super::RowsWriter) of this layout has written, its head first.
pub fn expand<'r>(
    layout: &RowsLayout,
    staging: &[u8],
    input: usize,
    resident: impl Fn(u32, u64) -> Option<&'r [u8]>,
) -> Expanded {
    let of = &layout.inputs()[input];
    let table = &layout.tables()[of.table];
    let word = |at: usize| {
        let bytes = &staging[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    };
    let place = |at: usize| UNIT * word(at) as usize;
    let head = RowsLayout::input_head(input);
    let at = InputAt { offsets: place(head + 16), positions: place(head + 20), weights: place(head + 24) };
    let reader = Reader { staging, of, at, ids_at: place(12), tags_at: place(16), rows_at: place(head + 12) };
    let (bags, width, weighted) = (word(head), layout.width(input), word(head + 4) != 0);
    let max_len = match of.pool {
        Pool::Sequence { max_len, .. } => Some(max_len),
        Pool::Sum | Pool::Mean => None,
    };
    let kernel = RowKernel::new(table.format, table.dim);
    let vectors = (bags * max_len.unwrap_or(1)) as usize;
    let mut out =
        Expanded { values: vec![0.0; vectors * width], mask: Vec::new(), state: Vec::new(), lost: 0 };
    for (vector, values) in out.values.chunks_exact_mut(width).enumerate() {
        #[expect(clippy::cast_possible_truncation, reason = "vectors are counted in 32 bits")]
        let (bag, slot) = (vector as u32 / max_len.unwrap_or(1), vector as u32 % max_len.unwrap_or(1));
        let (begin, end) = (reader.offset(bag), reader.offset(bag + 1));
        let (begin, ids) = match max_len {
            None => (begin, end - begin),
            Some(_) => (begin + slot, u32::from(begin + slot < end)),
        };
        let padding = max_len.is_some() && ids == 0;
        if matches!(of.pool, Pool::Sequence { mask: true, .. }) {
            out.mask.push(if padding { 0.0 } else { 1.0 });
        }
        let (mut found, mut missing) = (0, 0);
        let parts = values.len() / table.dim as usize;
        for (part, sums) in values.chunks_exact_mut(table.dim as usize).enumerate() {
            let (mut rows, mut weights) = (Vec::new(), Vec::new());
            let (mut ids_found, mut weight_sum) = (0u32, 0.0f32);
            for id in 0..ids {
                let weight =
                    if weighted { reader.f32(reader.at.weights + 4 * (begin + id) as usize) } else { 1.0 };
                let before = rows.len();
                for member in reader.members(parts, part, begin, ids, id) {
                    match reader.row(member, table.stride(), kernel.row_bytes(), &resident) {
                        Some(row) => rows.push(row),
                        None if member == Position::MISSING.bits() => missing += 1,
                        None if member & Position::RESIDENT != 0 => {
                            missing += 1;
                            out.lost += 1;
                        }
                        None => unreachable!("staged rows are there"),
                    }
                }
                weights.resize(rows.len(), weight);
                if rows.len() > before {
                    ids_found += 1;
                    weight_sum += weight;
                }
            }
            if weighted {
                kernel.accumulate_weighted(&rows, &weights, &[], sums);
            } else {
                kernel.accumulate(&rows, &[], sums);
            }
            if of.pool == Pool::Mean && !rows.is_empty() {
                #[expect(clippy::cast_precision_loss, reason = "a bag's mean is f32")]
                let divisor = if weighted { weight_sum } else { ids_found as f32 };
                let divisor = if divisor.is_finite() { divisor } else { f32::NAN };
                sums.iter_mut().for_each(|sum| *sum /= divisor);
            }
            #[expect(clippy::cast_possible_truncation, reason = "members are counted in 32 bits")]
            {
                found += rows.len() as u32;
            }
        }
        let torn = of.hashes > 1 && missing > 0;
        let settled = !padding && (found == 0 || torn || values.iter().any(|value| !value.is_finite()));
        if settled {
            match of.default_row.as_slice() {
                [] => values.fill(0.0),
                row => values.copy_from_slice(row),
            }
        }
        out.state.push(found | if settled { DEFAULTED } else { 0 });
    }
    out
}

struct Reader<'a> {
    staging: &'a [u8],
    of: &'a RowInput,
    at: InputAt,
    ids_at: usize,
    tags_at: usize,
    rows_at: usize,
}

impl<'a> Reader<'a> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.staging[at..at + N]);
        bytes
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.bytes(at))
    }

    fn offset(&self, bag: u32) -> u32 {
        self.u32(self.at.offsets + 4 * bag as usize)
    }

    /// The members of the id at `id` of a vector, in one of its parts.
    fn members(
        &self,
        parts: usize,
        part: usize,
        begin: u32,
        ids: u32,
        id: u32,
    ) -> impl Iterator<Item = u32> + use<'_, 'a> {
        let hashes = self.of.hashes as usize;
        let (begin, ids, id) = (begin as usize, ids as usize, id as usize);
        let (first, count) = match self.of.combine {
            Combine::Concat => (begin * hashes + part * ids + id, hashes / parts),
            Combine::Sum => ((begin + id) * hashes, hashes),
        };
        (first..first + count).map(|member| self.u32(self.at.positions + 4 * member))
    }

    fn row<'r>(
        &self,
        position: u32,
        stride: usize,
        row_bytes: usize,
        resident: &impl Fn(u32, u64) -> Option<&'r [u8]>,
    ) -> Option<&'a [u8]>
    where
        'r: 'a,
    {
        if position == Position::MISSING.bits() {
            return None;
        }
        if position & Position::RESIDENT == 0 {
            let at = self.rows_at + position as usize * stride;
            return Some(&self.staging[at..at + row_bytes]);
        }
        let key = (position & !Position::RESIDENT) as usize;
        let id = u64::from_le_bytes(self.bytes(self.ids_at + 8 * key));
        resident(self.u32(self.tags_at + 4 * key), id)
    }
}
