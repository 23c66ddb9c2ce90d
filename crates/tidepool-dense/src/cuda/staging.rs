//! The staging buffer of a bucket: what a batch brings, as one piece of memory that goes to the device in one copy.
//!
//! A header, the requests of rows, then each input, all at multiples of 256 bytes with room for the whole bucket. What a
//! batch does not fill is zero: rows beyond it are of request 0 and compute what nobody reads.

use std::ops::Range;

use tidepool_types::Side;

use super::{memory::Layout, record::Bucket, step::header};
use crate::{DenseBatch, contract::Given};

/// Where everything lies in the staging buffer of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Staging {
    pub(crate) bucket: Bucket,
    pub(crate) request_of: usize,
    /// Of each input: where it begins, elements per record, and whose it is.
    pub(crate) inputs: Vec<(usize, usize, Side)>,
    pub(crate) bytes: usize,
}

/// What the batch before left in a staging buffer, so that only that is wiped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    rows: usize,
    requests: usize,
}

impl Filled {
    /// Whatever may be in a buffer of this bucket.
    pub(crate) fn whole(bucket: Bucket) -> Self {
        Self { rows: bucket.rows as usize, requests: bucket.requests as usize }
    }
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
        layout.push(header::BYTES);
        let request_of = layout.push(bucket.rows as usize * size_of::<u32>());
        let inputs = given
            .iter()
            .map(|given| {
                let width = given.width();
                let records = if given.side == Side::User { bucket.requests } else { bucket.rows };
                (layout.push(records as usize * width * size_of::<f32>()), width, given.side)
            })
            .collect();
        Self { bucket, request_of, inputs, bytes: layout.bytes() }
    }

    /// Writes a piece of a batch, and zeros over what is left of the one before.
    pub(crate) fn fill(&self, to: &mut [u8], batch: &DenseBatch<'_>, piece: &Piece, filled: &mut Filled) {
        let rows = piece.rows.len();
        let requests = piece.requests.as_ref().map_or(batch.requests, Vec::len);
        let mut word = |at: usize, value: usize| {
            to[at * 4..][..4].copy_from_slice(&(value as u32).to_le_bytes());
        };
        word(header::ROWS, rows);
        word(header::REQUESTS, requests);
        let of = piece.request_of.as_deref().unwrap_or(&batch.request_of[piece.rows.clone()]);
        let region = &mut to[self.request_of..][..rows.max(filled.rows) * 4];
        let (mine, rest) = region.split_at_mut(rows * 4);
        mine.chunks_exact_mut(4).zip(of).for_each(|(to, of)| to.copy_from_slice(&of.to_le_bytes()));
        rest.fill(0);
        for (values, &(at, width, side)) in batch.inputs.iter().zip(&self.inputs) {
            let (count, before) = match side {
                Side::User => (requests, filled.requests),
                Side::Candidate => (rows, filled.rows),
            };
            let region = &mut to[at..][..count.max(before) * width * 4];
            let (mine, rest) = region.split_at_mut(count * width * 4);
            match (side, &piece.requests) {
                (Side::User, Some(requests)) if width > 0 => {
                    for (to, &request) in mine.chunks_exact_mut(width * 4).zip(requests) {
                        floats(to, &values[request as usize * width..][..width]);
                    }
                }
                (Side::User, _) => floats(mine, values),
                (Side::Candidate, _) => {
                    floats(mine, &values[piece.rows.start * width..piece.rows.end * width])
                }
            }
            rest.fill(0);
        }
        *filled = Filled { rows, requests };
    }
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
    fn a_batch_is_written_where_the_layout_says_and_the_rest_is_zero() {
        let staging = Staging::new(
            Bucket { rows: 4, requests: 2 },
            &[given("u", Side::User, 2), given("c", Side::Candidate, 1)],
        );
        assert_eq!((staging.request_of, staging.bytes), (256, 1024));
        let mut bytes = vec![0u8; staging.bytes];
        let mut filled = Filled::default();
        let (user, candidates) = (vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0]);
        let batch =
            DenseBatch { rows: 3, requests: 2, request_of: &[1, 0, 1], inputs: &[&user, &candidates] };
        let [piece] = &cut(&batch, staging.bucket)[..] else { panic!() };
        staging.fill(&mut bytes, &batch, piece, &mut filled);
        assert_eq!((bytes[0], bytes[4], &bytes[256..268]), (3, 2, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..]));
        assert_eq!(floats_at(&bytes, 512, 4), user);
        assert_eq!(floats_at(&bytes, 768, 4), [5.0, 6.0, 7.0, 0.0]);
        let batch = DenseBatch { rows: 1, requests: 1, request_of: &[0], inputs: &[&[8.0, 9.0], &[1.5]] };
        staging.fill(&mut bytes, &batch, &cut(&batch, staging.bucket)[0], &mut filled);
        assert_eq!(floats_at(&bytes, 512, 4), [8.0, 9.0, 0.0, 0.0]);
        assert_eq!(floats_at(&bytes, 768, 4), [1.5, 0.0, 0.0, 0.0]);
        assert!(bytes[256..512].iter().all(|&b| b == 0));
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
