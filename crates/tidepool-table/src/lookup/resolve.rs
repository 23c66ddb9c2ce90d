//! From packed ids to rows, a stretch ahead of whoever reads them.
//!
//! A dense id is a row number: arithmetic. A hashed id takes two reads on its way, its pilot and then the
//! key check of the row, so hashed ids go in blocks: while the pilots of one block come from memory, the
//! rows of the block before are computed, and rows are compared with their keys just before they are read.
//!
//! A row that is known is not yet asked for: that is done one at a time ([`Resolver::later`]), while rows that
//! have arrived are added, so that the memory never rests. In a table of gigabytes a row first waits for the
//! translation of its address. A CPU looks only a few hundred instructions past what waits, so there rows are
//! asked for in bursts, with nothing in between, and wait together.

use std::ops::Range;

use tidepool_kernels::prefetch_read;
use tidepool_types::Keying;

use super::{LayoutView, Missing, NotHeld, PartitionRows};

/// Ids that are found together, and whose rows are asked for in one burst where bursts are better.
const BLOCK_IDS: usize = 128;

/// From how many bytes on bursts are better: at 0.7 GB they lose a fifth, at 3.6 GB they win a third
/// (docs/benchmarks.md).
const BURST_BYTES: u64 = 1 << 30;

/// How far rows are asked for ahead of their use. Farther was no faster.
const AHEAD_LINES: usize = 64;

const LINE_BYTES: usize = 64;

/// An id on its way.
struct Pending<'a, P: PartitionRows> {
    /// `None` only in places that no id has reached.
    partition: Option<&'a P>,
    probe: P::Probe,
}

impl<P: PartitionRows> Clone for Pending<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: PartitionRows> Copy for Pending<'_, P> {}

/// Finds the rows of `ids`, in order, when they are asked for.
pub(super) struct Resolver<'a, 'q, P: PartitionRows> {
    layout: &'a LayoutView<P>,
    ids: &'q [[u8; 8]],
    /// Rows of the first ids with their key checks, as many as there are; empty where missing. Those before
    /// `checked` are known to be of their ids.
    rows: Vec<&'a [u8]>,
    checked: usize,
    /// Rows before this were asked for.
    asked: usize,
    /// [`AHEAD_LINES`], in rows.
    ahead: usize,
    /// Whether rows are asked for in bursts.
    bursts: bool,
    /// Ids located: those past `rows` are pending.
    located: usize,
    pending: [Pending<'a, P>; BLOCK_IDS],
    pub(super) missing: &'q mut Missing,
}

impl<'a, 'q, P: PartitionRows> Resolver<'a, 'q, P> {
    /// `rows` is room to work in, and empty.
    pub(super) fn new(
        layout: &'a LayoutView<P>,
        ids: &'q [[u8; 8]],
        mut rows: Vec<&'a [u8]>,
        missing: &'q mut Missing,
    ) -> Self {
        missing.clear();
        rows.reserve(ids.len());
        let lines = layout.kernel.row_bytes() / LINE_BYTES + 1;
        Self {
            layout,
            ids,
            rows,
            checked: 0,
            asked: 0,
            ahead: (AHEAD_LINES / lines).max(2),
            bursts: layout.held_bytes > BURST_BYTES,
            located: 0,
            pending: [Pending { partition: None, probe: P::Probe::default() }; BLOCK_IDS],
            missing,
        }
    }

    /// Makes the rows of the ids before `end` readable. `later` of them the caller will ask for itself,
    /// through [`later`](Self::later), before it comes here again.
    ///
    /// # Errors
    /// [`NotHeld`] for the first id whose partition is not.
    #[inline]
    pub(super) fn ready(&mut self, end: usize, later: usize) -> Result<(), NotHeld> {
        let want = (end + self.ahead).min(self.ids.len());
        if self.rows.len() < want {
            match self.layout.schema.keying {
                Keying::Dense => self.find_dense(want)?,
                Keying::Hashed => self.find_hashed(want)?,
            }
        }
        let now = if !self.bursts {
            want.saturating_sub(later)
        } else if self.asked < want {
            self.rows.len()
        } else {
            0
        };
        if self.asked < now {
            self.rows[self.asked..now].iter().for_each(|row| prefetch_read(row));
            self.asked = now;
        }
        if self.checked < end {
            self.check(end);
        }
        Ok(())
    }

    /// The next `count` rows to be asked for, as far as there are; none where bursts are better.
    #[inline]
    pub(super) fn later(&mut self, count: usize) -> Range<usize> {
        let to = if self.bursts { self.asked } else { (self.asked + count).min(self.rows.len()) };
        let from = std::mem::replace(&mut self.asked, to);
        from..to
    }

    /// Rows of ids in order, those before the last `end` of [`ready`](Self::ready) readable; empty where
    /// missing, and with their key checks where not.
    #[inline]
    pub(super) fn rows(&self) -> &[&'a [u8]] {
        &self.rows
    }

    /// The room to work in.
    pub(super) fn into_rows(self) -> Vec<&'a [u8]> {
        self.rows
    }

    /// Finds rows until there are `want`, or a few more.
    fn find_dense(&mut self, want: usize) -> Result<(), NotHeld> {
        let (from, layout) = (self.rows.len(), self.layout);
        let to = want.next_multiple_of(BLOCK_IDS).min(self.ids.len());
        let (mut not_held, mut all_found) = (None, true);
        self.rows.extend(self.ids[from..to].iter().map(|id| {
            let at = Keying::Dense.locate(u64::from_le_bytes(*id), layout.schema.partitions);
            let Some(partition) = layout.partition(at.partition) else {
                not_held = not_held.or(Some(NotHeld(at.partition)));
                return [].as_slice();
            };
            let row = partition.row(at.key);
            all_found &= !row.is_empty();
            row
        }));
        if !all_found {
            let empty = (from..to).filter(|&at| self.rows[at].is_empty());
            empty.for_each(|at| self.missing.mark(at, self.ids.len()));
        }
        self.checked = to;
        not_held.map_or(Ok(()), Err)
    }

    /// As [`find_dense`](Self::find_dense), but the rows may turn out to be those of other ids.
    fn find_hashed(&mut self, want: usize) -> Result<(), NotHeld> {
        let layout = self.layout;
        while self.rows.len() < want {
            // Their pilots were asked for when the last block was found.
            let found = &self.pending[..self.located - self.rows.len()];
            self.rows.extend(found.iter().map(|id| id.partition.map_or(&[][..], |p| p.seek(id.probe))));
            let to = (self.located + BLOCK_IDS).min(self.ids.len());
            for (pending, id) in self.pending.iter_mut().zip(&self.ids[self.located..to]) {
                let at = Keying::Hashed.locate(u64::from_le_bytes(*id), layout.schema.partitions);
                let partition = &**layout.partition(at.partition).ok_or(NotHeld(at.partition))?;
                *pending = Pending { partition: Some(partition), probe: partition.probe(at.key) };
            }
            self.located = to;
        }
        Ok(())
    }

    /// Compares the rows before `end` with the keys that they should have.
    fn check(&mut self, end: usize) {
        let row_bytes = self.layout.kernel.row_bytes();
        let range = self.checked..end;
        for ((at, id), row) in range.clone().zip(&self.ids[range.clone()]).zip(&mut self.rows[range]) {
            let key = Keying::Hashed.locate(u64::from_le_bytes(*id), self.layout.schema.partitions).key;
            if !P::is_of(row, row_bytes, key) {
                *row = &[];
                self.missing.mark(at, self.ids.len());
            }
        }
        self.checked = end;
    }
}
