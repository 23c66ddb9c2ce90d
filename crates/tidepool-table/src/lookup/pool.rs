//! The pool form: one sum per bag, over the members that were found, in the order of the request. So the
//! same request gives the same bits, however its ids are cut into blocks.

use std::ops::Range;

use super::{LayoutView, LookupScratch, Missing, NotHeld, PartitionRows, recycle, resolve::Resolver};

/// Members whose rows are handed to the kernel in one call.
const PIECE_ROWS: usize = 32;

/// Which ids are summed into which vector: packed little-endian numbers, as they travel.
#[derive(Clone, Copy, Debug)]
pub struct Bags<'a> {
    /// `u32` positions in the ids, bag after bag; `None`: each id is a member once, in order.
    pub members: Option<&'a [[u8; 4]]>,
    /// Members of each bag, `u32`.
    pub lengths: &'a [[u8; 4]],
    /// One `f32` per member; `None` for plain sums.
    pub weights: Option<&'a [[u8; 4]]>,
}

/// The sums of the bags of a lookup: packed little-endian numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pooled {
    /// `dim` `f32` per bag.
    pub sums: Vec<u8>,
    /// Members that were found, one `u32` per bag.
    pub counts: Vec<u8>,
    /// The sum of their weights, one `f32` per bag; empty without weights.
    pub weight_sums: Vec<u8>,
    /// Ids without a row, whether or not a bag has them.
    pub missing: Missing,
}

/// Room for the sums of a lookup, packed as in [`Pooled`] and exactly as long.
#[derive(Debug)]
pub struct SumsRoom<'a> {
    /// `dim` `f32` per bag.
    pub sums: &'a mut [u8],
    /// One `u32` per bag.
    pub counts: &'a mut [u8],
    /// One `f32` per bag; empty without weights.
    pub weight_sums: &'a mut [u8],
}

impl<P: PartitionRows> LayoutView<P> {
    /// The sums of `bags` over packed ids (little-endian `u64`), written over `out`.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not; `out` then holds nothing of use.
    ///
    /// # Panics
    /// When a member is no position in `ids`, the lengths do not add up to the members, or there are not
    /// as many weights as members: the caller has checked that.
    pub fn pool(
        &self,
        ids: &[[u8; 8]],
        bags: Bags<'_>,
        scratch: &mut LookupScratch,
        out: &mut Pooled,
    ) -> Result<(), NotHeld> {
        let (count, dim) = (bags.lengths.len(), self.kernel.dim() as usize);
        out.sums.resize(count * dim * 4, 0);
        out.counts.resize(count * 4, 0);
        out.weight_sums.resize(if bags.weights.is_some() { count * 4 } else { 0 }, 0);
        let room =
            SumsRoom { sums: &mut out.sums, counts: &mut out.counts, weight_sums: &mut out.weight_sums };
        self.pool_into(ids, bags, scratch, room, &mut out.missing)
    }

    /// The same, written over `room`.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not; `room` then holds nothing of use.
    ///
    /// # Panics
    /// As [`pool`](Self::pool), and when `room` is not that of so many bags.
    pub fn pool_into(
        &self,
        ids: &[[u8; 8]],
        bags: Bags<'_>,
        scratch: &mut LookupScratch,
        room: SumsRoom<'_>,
        missing: &mut Missing,
    ) -> Result<(), NotHeld> {
        let dim = self.kernel.dim() as usize;
        let (sums, counts) = (room.sums.as_chunks_mut::<4>().0, room.counts.as_chunks_mut::<4>().0);
        let weight_sums = room.weight_sums.as_chunks_mut::<4>().0;
        let count = bags.lengths.len();
        let weighted = if bags.weights.is_some() { count } else { 0 };
        let has_room = (sums.len(), counts.len(), weight_sums.len()) == (count * dim, count, weighted);
        assert!(has_room, "room for {count} bags of dimension {dim}");
        let mut weight_sums = weight_sums.iter_mut();
        let rows = recycle(std::mem::take(&mut scratch.rows));
        let mut resolver = Resolver::new(self, ids, rows, missing);
        let mut piece = recycle(std::mem::take(&mut scratch.piece));
        let (sum, weights) = (&mut scratch.sum, &mut scratch.weights);
        sum.resize(dim, 0.0);

        let mut members = Members::new(bags.members, ids.len());
        let mut member_weights = bags.weights;
        let places = sums.chunks_exact_mut(dim).zip(counts);
        for (&length, (sum_place, count_place)) in bags.lengths.iter().zip(places) {
            let mut left = u32::from_le_bytes(length) as usize;
            let (mut count, mut weight_sum) = (0u32, 0.0f32);
            sum.fill(0.0);
            while left > 0 {
                let now = left.min(PIECE_ROWS);
                left -= now;
                let these = members.next(now);
                weights.clear();
                if let Some(all) = &mut member_weights {
                    let (these_weights, later) = all.split_at(now);
                    *all = later;
                    weights.extend(these_weights.iter().map(|weight| f32::from_le_bytes(*weight)));
                }
                let (in_order, end) = these.reach();
                resolver.ready(end, now)?;
                let as_they_are = in_order && resolver.missing.count == 0;
                if !as_they_are {
                    collect(resolver.rows(), &these, weights, &mut piece);
                }
                let ask = resolver.later(if as_they_are { now } else { piece.len() });
                let all_rows = resolver.rows();
                let rows = if as_they_are { &all_rows[end - now..end] } else { &piece };
                if bags.weights.is_some() {
                    self.kernel.accumulate_weighted(rows, weights, &all_rows[ask], sum);
                    weight_sum = weights.iter().fold(weight_sum, |sum, weight| sum + weight);
                } else {
                    self.kernel.accumulate(rows, &all_rows[ask], sum);
                }
                count += rows.len() as u32;
            }
            for (place, value) in sum_place.iter_mut().zip(&*sum) {
                *place = value.to_le_bytes();
            }
            *count_place = count.to_le_bytes();
            if let Some(place) = weight_sums.next() {
                *place = weight_sum.to_le_bytes();
            }
        }
        assert!(members.left() == 0, "bag lengths that leave {} members over", members.left());
        // Ids that no bag has are looked up too, for they may be missing.
        resolver.ready(ids.len(), 0)?;
        scratch.rows = recycle(resolver.into_rows());
        scratch.piece = recycle(piece);
        Ok(())
    }
}

/// Members as they travel.
enum Members<'a> {
    /// Positions in the ids.
    At(&'a [[u8; 4]]),
    /// These ids, each once.
    Each(Range<usize>),
}

impl<'a> Members<'a> {
    const fn new(packed: Option<&'a [[u8; 4]]>, ids: usize) -> Self {
        match packed {
            Some(packed) => Self::At(packed),
            None => Self::Each(0..ids),
        }
    }

    const fn left(&self) -> usize {
        match self {
            Self::At(members) => members.len(),
            Self::Each(ids) => ids.end - ids.start,
        }
    }

    /// Takes the next `count` of them.
    #[inline]
    fn next(&mut self, count: usize) -> Self {
        match self {
            Self::At(members) => {
                let (these, later) = members.split_at(count);
                *members = later;
                Self::At(these)
            }
            Self::Each(ids) => {
                assert!(count <= ids.len(), "bag lengths that need more members than the {} left", ids.len());
                let from = ids.start;
                ids.start += count;
                Self::Each(from..ids.start)
            }
        }
    }

    /// Whether they stand for consecutive ids, as they mostly do where an id is first seen; and the first
    /// position past all of them.
    #[inline]
    fn reach(&self) -> (bool, usize) {
        let members = match self {
            Self::At(members) => members,
            Self::Each(ids) => return (true, ids.end),
        };
        let at = |member: &[u8; 4]| u32::from_le_bytes(*member);
        let first = members.first().map_or(0, at);
        let in_order =
            members.iter().zip(0u32..).fold(true, |all, (m, n)| all & (at(m) == first.wrapping_add(n)));
        let last =
            if in_order { members.last().map_or(0, at) } else { members.iter().map(at).max().unwrap_or(0) };
        (in_order, last as usize + 1)
    }
}

/// Writes the rows of members over `piece`, and leaves out what is missing, with its weight.
fn collect<'a>(rows: &[&'a [u8]], members: &Members<'_>, weights: &mut Vec<f32>, piece: &mut Vec<&'a [u8]>) {
    piece.clear();
    let mut kept = 0;
    let mut add = |at: usize, row: &'a [u8]| {
        if !row.is_empty() {
            piece.push(row);
            if let Some(&weight) = weights.get(at) {
                weights[kept] = weight;
                kept += 1;
            }
        }
    };
    match members {
        Members::At(members) => {
            for (at, member) in members.iter().enumerate() {
                add(at, rows[u32::from_le_bytes(*member) as usize]);
            }
        }
        Members::Each(ids) => rows[ids.clone()].iter().enumerate().for_each(|(at, row)| add(at, row)),
    }
    weights.truncate(kept);
}
