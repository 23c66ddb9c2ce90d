//! What a batch brings to the plan, in the staging buffer that goes to the device in one copy, and where the plan reads it.
//!
//! ```text
//! header   u32 rows, u32 requests, then of each array the place at which it begins (`packing.rs`)
//! arrays   the requests of rows, u32; then each input, f32, records side by side
//! ```
//! Arrays are as long as the batch. The plan has room for its whole bucket, and products of cuBLASLt read at addresses that
//! never change: so the first step of a graph spreads the arrays over the bucket's room (`spread.rs`), with zeros
//! behind them. Rows beyond the batch are of request 0 and compute what nobody reads.

use std::ops::Range;

use tidepool_types::Side;

use super::{
    memory::Layout,
    packing::{Packing, UNIT, units},
    record::Bucket,
    step::header,
};
use crate::{DenseBatch, contract::Given, plan::view::Space};

/// An array of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Array {
    /// Words of a record.
    pub(crate) width: usize,
    /// Whose records they are.
    pub(crate) space: Space,
    /// Where the plan reads it, in the buffer that arrays are spread over.
    pub(crate) at: usize,
}

/// What a bucket's batches bring to the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staging {
    pub(crate) bucket: Bucket,
    /// The requests of rows, then each input.
    pub(crate) arrays: Vec<Array>,
    /// Bytes of the buffer that they are spread over.
    pub(crate) spread: usize,
}

/// How much a filled staging buffer brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    /// Rows of the batch.
    pub(crate) rows: usize,
    /// Bytes that are to be copied: all that the device reads is in them.
    pub(crate) bytes: usize,
}

/// Rows of a batch that go to the device together, and the requests that they belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) rows: Range<usize>,
    /// The numbers of the requests in the batch; nothing when they are all of it.
    pub(crate) requests: Option<Vec<u32>>,
    /// The requests of the rows, by their place in `requests`; nothing when they are as in the batch.
    request_of: Option<Vec<u32>>,
}

impl Piece {
    /// All of a batch.
    pub(crate) fn whole(batch: &DenseBatch<'_>) -> Self {
        Self { rows: 0..batch.rows, requests: None, request_of: None }
    }
}

impl Staging {
    pub(crate) fn new(bucket: Bucket, given: &[Given]) -> Self {
        let mut layout = Layout::default();
        let mut array = |width: usize, space: Space| {
            let words = bucket.records(space) as usize * width;
            Array { width, space, at: layout.push(words * size_of::<u32>()) }
        };
        let mut arrays = vec![array(1, Space::Row)];
        arrays.extend(given.iter().map(|given| {
            let space = if given.side == Side::User { Space::Request } else { Space::Row };
            array(given.width(), space)
        }));
        Self { bucket, arrays, spread: layout.bytes() }
    }

    /// Bytes of the header.
    pub(crate) fn head(&self) -> usize {
        (size_of::<u32>() * (header::PLACES + self.arrays.len())).next_multiple_of(UNIT)
    }

    /// The end of the arrays of a batch that fills the bucket, when they begin at `first`.
    pub(crate) fn most(&self, first: usize) -> usize {
        let mut packing = Packing::new(first);
        for array in &self.arrays {
            packing.push(self.bucket.records(array.space) as usize * array.width, size_of::<u32>());
        }
        packing.end()
    }

    /// Writes a piece of a batch, arrays from `first` on; the byte behind them.
    pub(crate) fn fill(&self, to: &mut [u8], first: usize, batch: &DenseBatch<'_>, piece: &Piece) -> usize {
        let rows = piece.rows.len();
        let requests = piece.requests.as_ref().map_or(batch.requests, Vec::len);
        put(to, header::ROWS, rows as u32);
        put(to, header::REQUESTS, requests as u32);
        let mut packing = Packing::new(first);
        for (number, array) in self.arrays.iter().enumerate() {
            let (records, width) = (if array.space == Space::Request { requests } else { rows }, array.width);
            let at = packing.push(records * width, size_of::<u32>());
            put(to, header::PLACES + number, units(at));
            let region = &mut to[at..][..records * width * size_of::<u32>()];
            let Some(values) = number.checked_sub(1).map(|input| batch.inputs[input]) else {
                let of = piece.request_of.as_deref().unwrap_or(&batch.request_of[piece.rows.clone()]);
                let words = region.chunks_exact_mut(4).zip(of);
                words.for_each(|(to, of)| to.copy_from_slice(&of.to_le_bytes()));
                continue;
            };
            match (array.space, &piece.requests) {
                (Space::Request, Some(requests)) if width > 0 => {
                    for (to, &request) in region.chunks_exact_mut(width * 4).zip(requests) {
                        floats(to, &values[request as usize * width..][..width]);
                    }
                }
                (Space::Request, _) => floats(region, values),
                (Space::Row, _) => floats(region, &values[piece.rows.start * width..piece.rows.end * width]),
            }
        }
        packing.end()
    }
}

fn put(to: &mut [u8], word: usize, value: u32) {
    to[word * 4..][..4].copy_from_slice(&value.to_le_bytes());
}

fn floats(to: &mut [u8], from: &[f32]) {
    to.chunks_exact_mut(4).zip(from).for_each(|(to, value)| to.copy_from_slice(&value.to_le_bytes()));
}

/// Cuts a batch into pieces that fit the bucket: neighbouring rows, as many as it has room for, of as many requests as
/// it has room for. A batch that fits is one piece, as it is.
pub(crate) fn cut(batch: &DenseBatch<'_>, largest: Bucket) -> Vec<Piece> {
    let (most_rows, most_requests) = (largest.rows as usize, largest.requests as usize);
    if batch.rows <= most_rows && batch.requests <= most_requests {
        return vec![Piece::whole(batch)];
    }
    let mut pieces = Vec::new();
    // For each request of the batch its place in the piece that is made, and which piece that was.
    let mut places: Vec<(usize, u32)> = vec![(usize::MAX, 0); batch.requests];
    let mut first = 0;
    while first < batch.rows {
        let (mut requests, mut request_of) = (Vec::new(), Vec::new());
        for &of in &batch.request_of[first..batch.rows.min(first + most_rows)] {
            let place = &mut places[of as usize];
            if place.0 != pieces.len() {
                if requests.len() == most_requests {
                    break;
                }
                *place = (pieces.len(), requests.len() as u32);
                requests.push(of);
            }
            request_of.push(place.1);
        }
        let rows = first..first + request_of.len();
        first = rows.end;
        pieces.push(Piece { rows, requests: Some(requests), request_of: Some(request_of) });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &str, side: Side, width: usize) -> Given {
        Given { name: name.into(), side, shape: vec![width] }
    }

    fn floats_at(bytes: &[u8], at: usize, count: usize) -> Vec<f32> {
        bytes[at..][..count * 4]
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    #[test]
    fn a_batch_is_as_long_as_it_is() {
        let staging = Staging::new(
            Bucket { rows: 100, requests: 2 },
            &[given("u", Side::User, 2), given("c", Side::Candidate, 1)],
        );
        let array = |width, space, at| Array { width, space, at };
        let arrays = [array(1, Space::Row, 0), array(2, Space::Request, 512), array(1, Space::Row, 768)];
        assert_eq!((&staging.arrays[..], staging.spread), (&arrays[..], 1280));
        assert_eq!((staging.head(), staging.most(48)), (32, 48 + 400 + 16 + 400));
        let mut bytes = vec![0xeeu8; staging.most(48)];
        let (user, candidates) = (vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0]);
        let batch =
            DenseBatch { rows: 3, requests: 2, request_of: &[1, 0, 1], inputs: &[&user, &candidates] };
        let [piece] = &cut(&batch, staging.bucket)[..] else { panic!() };
        assert_eq!(staging.fill(&mut bytes, 48, &batch, piece), 96);
        let words: Vec<u8> = bytes[..20].chunks(4).map(|word| word[0]).collect();
        assert_eq!(words, [3, 2, 3, 4, 5], "rows, requests, and places in units of 16 bytes");
        assert_eq!(bytes[48..60], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!((floats_at(&bytes, 64, 4), floats_at(&bytes, 80, 3)), (user, candidates));
        assert!(bytes[96..].iter().all(|&byte| byte == 0xee), "what is behind is not touched");
        let batch = DenseBatch { rows: 1, requests: 1, request_of: &[0], inputs: &[&[8.0, 9.0], &[1.5]] };
        assert_eq!(staging.fill(&mut bytes, 48, &batch, &cut(&batch, staging.bucket)[0]), 96);
        assert_eq!((floats_at(&bytes, 64, 2), floats_at(&bytes, 80, 1)), (vec![8.0, 9.0], vec![1.5]));
    }

    #[test]
    fn a_batch_beyond_the_bucket_is_cut_by_rows_and_by_requests() {
        let request_of = [0, 3, 0, 1, 2, 2, 1];
        let batch = DenseBatch { rows: 7, requests: 4, request_of: &request_of, inputs: &[] };
        let pieces = cut(&batch, Bucket { rows: 3, requests: 2 });
        let told: Vec<_> =
            pieces.iter().map(|p| (p.rows.clone(), p.requests.clone(), p.request_of.clone())).collect();
        assert_eq!(
            told,
            [
                (0..3, Some(vec![0, 3]), Some(vec![0, 1, 0])),
                (3..6, Some(vec![1, 2]), Some(vec![0, 1, 1])),
                (6..7, Some(vec![1]), Some(vec![0])),
            ]
        );
    }
}
