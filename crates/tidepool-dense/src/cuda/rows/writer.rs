//! Writes the rows of a batch into the staging buffer, and checks what the kernel trusts in.

use std::sync::Arc;

use super::layout::{Places, RowCounts, RowsError, RowsLayout};
use crate::cuda::{packing::units, resident::ResidentSet};

/// Where the row of a member is: among the staged rows of its table, behind a staged key, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(pub(super) u32);

impl Position {
    /// No table has the id: it adds nothing.
    pub const MISSING: Self = Self(u32::MAX);
    /// The bit that says that a number is that of a key.
    pub(crate) const RESIDENT: u32 = 1 << 31;
    /// The most rows of a table in a batch, and the most keys.
    pub(crate) const MOST: u32 = Self::RESIDENT - 1;

    /// As the kernel reads it.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The number of a staged row.
    fn staged(self) -> Option<u32> {
        (self.0 & Self::RESIDENT == 0).then_some(self.0)
    }

    /// The number of a key.
    fn key(self) -> Option<u32> {
        (self.0 & Self::RESIDENT != 0 && self != Self::MISSING).then_some(self.0 & !Self::RESIDENT)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    bags: u32,
    ids: u32,
    weighted: bool,
}

/// How much of each table and input is written: kept from batch to batch, so that writing allocates nothing.
#[derive(Debug, Default)]
pub struct Tally {
    rows: Vec<u32>,
    inputs: Vec<Cursor>,
    /// Of each key, which table it is of.
    key_tables: Vec<u32>,
    /// Of each table, its number in the resident set.
    tags: Vec<Option<u32>>,
    /// How much the batch may bring, how many bags of each input, and where its arrays are.
    counts: RowCounts,
    bags: Vec<u32>,
    places: Places,
}

/// What has been staged; there is one when all of it was checked.
#[derive(Clone, Debug)]
#[must_use]
pub struct Staged {
    /// Ids that will be looked for in the resident set.
    pub keys: u32,
    /// Of each input: its bags.
    pub bags: Vec<u32>,
    /// Bytes of rows, keys, offsets, positions and weights, without the few that round arrays up.
    pub bytes: u64,
    /// Where the arrays end in the staging buffer.
    pub(crate) end: usize,
    /// The resident set that the batch names by its address: to be kept until the device is done with the batch.
    pub(crate) set: Option<Arc<ResidentSet>>,
}

impl Staged {
    /// Refuses a resident set that lies on another device than the batch runs on: its address means nothing there.
    pub(crate) fn check_device(&self, ordinal: u32) -> Result<(), RowsError> {
        match self.set.as_ref().map(|set| set.ordinal()) {
            Some(of) if of != ordinal => Err(RowsError::Mismatch {
                what: "the resident set".into(),
                problem: format!("it is on cuda:{of}, the model on cuda:{ordinal}"),
            }),
            _ => Ok(()),
        }
    }
}

/// Writes one batch.
#[derive(Debug)]
pub struct RowsWriter<'a> {
    layout: &'a RowsLayout,
    staging: &'a mut [u8],
    tally: &'a mut Tally,
    /// Where the head is, and where arrays begin.
    places: [usize; 2],
    resident: u64,
    set: Option<Arc<ResidentSet>>,
}

impl<'a> RowsWriter<'a> {
    /// Begins a batch in the staging buffer, of so much at most, and of so many bags of each input; what was there counts no
    /// more. `places` are where the head is that `layout` describes, and where its arrays begin.
    /// Not for other crates: who stages gets a writer of the batch that runs, and has none to put in its place.
    ///
    /// # Errors
    /// [`RowsError::Staging`] when the buffer is too short, [`RowsError::TooMany`] when there is no room for so much.
    pub(crate) fn begin(
        layout: &'a RowsLayout,
        staging: &'a mut [u8],
        places: [usize; 2],
        counts: &RowCounts,
        bags: &[u32],
        tally: &'a mut Tally,
    ) -> Result<Self, RowsError> {
        let needed = layout.most(places[1]);
        if staging.len() < needed || bags.len() != layout.inputs().len() {
            return Err(RowsError::Staging { found: staging.len(), needed });
        }
        layout.fits(counts, &|input| format!("input {input}"))?;
        for (at, (bags, input)) in bags.iter().zip(layout.inputs()).enumerate() {
            if *bags > input.bags {
                return Err(too_many(format!("input {at}"), "bags", input.bags as usize));
            }
        }
        tally.rows.clear();
        tally.rows.resize(layout.tables().len(), 0);
        tally.inputs.clear();
        tally.inputs.resize(layout.inputs().len(), Cursor::default());
        tally.key_tables.clear();
        tally.tags.clear();
        tally.tags.resize(layout.tables().len(), None);
        tally.counts.clone_from(counts);
        tally.bags.clear();
        tally.bags.extend_from_slice(bags);
        layout.place(counts, bags, places[1], &mut tally.places);
        Ok(Self { layout, staging, tally, places, resident: 0, set: None })
    }

    /// Says which resident set the batch uses, and which number each of the layout's tables has in it
    /// ([`ResidentSet::number`]); `None`: it has none of that table's rows. The set is
    /// kept until the batch is done: the device reads it by its address.
    ///
    /// # Errors
    /// [`RowsError::Mismatch`] when the rows of a table are stored otherwise there, or a set was named before.
    pub fn resident(&mut self, set: Arc<ResidentSet>, numbers: &[Option<u32>]) -> Result<(), RowsError> {
        if self.set.is_some() {
            let problem = "the batch has named one before; ids are placed by one set".into();
            return Err(RowsError::Mismatch { what: "the resident set".into(), problem });
        }
        for (at, (table, number)) in self.layout.tables().iter().zip(numbers).enumerate() {
            let Some(number) = number else { continue };
            if set.rows_of(*number) != Some((table.format, table.dim)) {
                let problem = format!("number {number} of the resident set has other rows");
                return Err(RowsError::Mismatch { what: format!("table {at}"), problem });
            }
        }
        self.resident_at(set.address(), numbers);
        self.set = Some(set);
        Ok(())
    }

    pub(super) fn resident_at(&mut self, address: u64, numbers: &[Option<u32>]) {
        self.resident = address;
        self.tally.tags.iter_mut().zip(numbers).for_each(|(tag, of)| *tag = *of);
    }

    /// Stages a row of a table, as it is stored.
    ///
    /// # Errors
    /// When there is no room for one more, or it has not the bytes of a row.
    pub fn row(&mut self, table: usize, row: &[u8]) -> Result<Position, RowsError> {
        let of = self.table(table)?;
        let (stride, row_bytes) = (of.stride(), of.format.row_bytes(of.dim));
        if row.len() != row_bytes {
            let problem = format!("a row of {} bytes, its rows have {row_bytes}", row.len());
            return Err(RowsError::Mismatch { what: format!("table {table}"), problem });
        }
        let number = self.tally.rows[table];
        self.room_for(table, 1)?;
        let at = self.tally.places.rows[table] + number as usize * stride;
        self.staging[at..at + row_bytes].copy_from_slice(row);
        self.staging[at + row_bytes..at + stride].fill(0);
        self.tally.rows[table] += 1;
        Ok(Position(number))
    }

    /// Stages rows of a table that stand one behind the other, as a node sends them; the first of them gets the
    /// position that is returned, the others those after it.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn rows(&mut self, table: usize, rows: &[u8]) -> Result<Position, RowsError> {
        let of = self.table(table)?;
        let (stride, row_bytes) = (of.stride(), of.format.row_bytes(of.dim));
        if !rows.len().is_multiple_of(row_bytes) {
            let problem = format!("{} bytes are no whole number of rows of {row_bytes}", rows.len());
            return Err(RowsError::Mismatch { what: format!("table {table}"), problem });
        }
        let (first, more) = (self.tally.rows[table], rows.len() / row_bytes);
        self.room_for(table, more)?;
        let at = self.tally.places.rows[table] + first as usize * stride;
        if stride == row_bytes {
            self.staging[at..at + rows.len()].copy_from_slice(rows);
        } else {
            let into = self.staging[at..at + more * stride].chunks_exact_mut(stride);
            for (into, row) in into.zip(rows.chunks_exact(row_bytes)) {
                let (head, rest) = into.split_at_mut(row_bytes);
                head.copy_from_slice(row);
                rest.fill(0);
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most the room, which is a u32")]
        {
            self.tally.rows[table] += more as u32;
        }
        Ok(Position(first))
    }

    /// The position of the row so many behind `first`, of those that [`rows`](Self::rows) has staged.
    #[must_use]
    pub fn behind(first: Position, by: u32) -> Position {
        Position(first.0.saturating_add(by))
    }

    /// Stages an id that the resident set has.
    ///
    /// # Errors
    /// When there is no room for one more, or the set has nothing of the table.
    pub fn key(&mut self, table: usize, id: u64) -> Result<Position, RowsError> {
        self.table(table)?;
        let Some(tag) = self.tally.tags[table] else {
            let problem = "the resident set has none of its rows".into();
            return Err(RowsError::Mismatch { what: format!("table {table}"), problem });
        };
        let number = self.tally.key_tables.len();
        if number == self.tally.counts.keys {
            return Err(too_many("resident set".into(), "keys", number));
        }
        let (ids_at, tags_at) = (self.tally.places.ids, self.tally.places.tags);
        self.put(ids_at + 8 * number, id.to_le_bytes());
        self.put(tags_at + 4 * number, tag.to_le_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "tables and keys are counted in 31 bits")]
        {
            self.tally.key_tables.push(table as u32);
            Ok(Position(number as u32 | Position::RESIDENT))
        }
    }

    /// Appends a bag to an input: the positions of its members, in their order, and a weight for each id or none at all.
    ///
    /// Where an id has several rows, positions are in the order of the client: of vectors that are added up, or of a
    /// sequence, all rows of an id, then all of the next; of vectors that follow each other, all ids' rows of the first
    /// hash, then all of the second.
    ///
    /// # Errors
    /// When there is no room, or something does not fit together: a position that nothing was staged at above all,
    /// which the kernel would read from.
    pub fn bag(&mut self, input: usize, members: &[Position], weights: &[f32]) -> Result<(), RowsError> {
        let what = || format!("input {input}");
        let mismatch = |problem: String| RowsError::Mismatch { what: format!("input {input}"), problem };
        let Some(of) = self.layout.inputs().get(input) else {
            return Err(mismatch(format!("there are {}", self.layout.inputs().len())));
        };
        let hashes = of.hashes as usize;
        if !members.len().is_multiple_of(hashes) {
            return Err(mismatch(format!("{} members, an id has {hashes}", members.len())));
        }
        let ids = members.len() / hashes;
        if let super::Pool::Sequence { max_len, .. } = of.pool
            && ids > max_len as usize
        {
            return Err(too_many(what(), "ids of a bag", max_len as usize));
        }
        if !weights.is_empty() && (!of.weighted || weights.len() != ids) {
            let room = if of.weighted { "one per id is wanted" } else { "the input has none" };
            return Err(mismatch(format!("{} weights for {ids} ids; {room}", weights.len())));
        }
        let cursor = self.tally.inputs[input];
        let (bags, room) = (self.tally.bags[input], self.tally.counts.ids[input]);
        if cursor.bags == bags {
            return Err(too_many(what(), "bags", bags as usize));
        }
        if ids > room - cursor.ids as usize {
            return Err(too_many(what(), "ids", room));
        }
        if let Some(wrong) = members.iter().find(|member| !self.is_staged(of.table, **member)) {
            return Err(mismatch(format!("nothing of its table is staged at position {:#x}", wrong.0)));
        }
        let (places, hashes) = (self.tally.places.inputs[input], of.hashes as usize);
        let start = cursor.ids as usize;
        let into = &mut self.staging[places.positions + 4 * start * hashes..][..4 * members.len()];
        into.chunks_exact_mut(4).zip(members).for_each(|(into, m)| into.copy_from_slice(&m.0.to_le_bytes()));
        if of.weighted {
            // Also where this bag has none: another may have some.
            let into = self.staging[places.weights + 4 * start..][..4 * ids].chunks_exact_mut(4);
            let weights = weights.iter().copied().chain(std::iter::repeat(1.0));
            into.zip(weights).for_each(|(into, weight)| into.copy_from_slice(&weight.to_le_bytes()));
        }
        if cursor.bags == 0 {
            self.put(places.offsets, 0u32.to_le_bytes());
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most the room, which is a u32")]
        let end = cursor.ids + ids as u32;
        self.put(places.offsets + 4 * (cursor.bags as usize + 1), end.to_le_bytes());
        let weighted = cursor.weighted || !weights.is_empty();
        self.tally.inputs[input] = Cursor { bags: cursor.bags + 1, ids: end, weighted };
        Ok(())
    }

    /// Ends the batch: all bags of each input must have been written. Counts and places are written where kernels read them.
    ///
    /// # Errors
    /// When an input has fewer bags.
    pub(crate) fn finish(mut self) -> Result<Staged, RowsError> {
        #[expect(clippy::cast_possible_truncation, reason = "at most the room, which is a u32")]
        let keys = self.tally.key_tables.len() as u32;
        let [head, _] = self.places;
        self.put(head, self.resident.to_le_bytes());
        let (ids_at, tags_at) = (units(self.tally.places.ids), units(self.tally.places.tags));
        self.words(head + 8, [keys, ids_at, tags_at, 0, 0, 0]);
        let mut bytes = 12 * u64::from(keys);
        for (rows, table) in self.tally.rows.iter().zip(self.layout.tables()) {
            bytes += u64::from(*rows) * table.stride() as u64;
        }
        for (at, input) in self.layout.inputs().iter().enumerate() {
            let (cursor, wanted) = (self.tally.inputs[at], self.tally.bags[at]);
            if cursor.bags != wanted {
                let problem = format!("{} bags were written, the batch has {wanted}", cursor.bags);
                return Err(RowsError::Mismatch { what: format!("input {at}"), problem });
            }
            if cursor.bags == 0 {
                // Else the first bag has written it.
                self.put(self.tally.places.inputs[at].offsets, 0u32.to_le_bytes());
            }
            let tag = self.tally.tags[input.table].unwrap_or(Position::MISSING.0);
            let places = self.tally.places.inputs[at];
            let places =
                [self.tally.places.rows[input.table], places.offsets, places.positions, places.weights];
            let [rows, offsets, positions, weights] = places.map(units);
            let weighted = u32::from(cursor.weighted);
            let numbers = [cursor.bags, weighted, tag, rows, offsets, positions, weights, 0];
            self.words(head + RowsLayout::input_head(at), numbers);
            let per_id = 4 * u64::from(input.hashes) + if input.weighted { 4 } else { 0 };
            bytes += 4 * (u64::from(cursor.bags) + 1) + per_id * u64::from(cursor.ids);
        }
        Ok(Staged { keys, bags: self.tally.bags.clone(), bytes, end: self.tally.places.end, set: self.set })
    }

    fn table(&self, table: usize) -> Result<&'a super::RowTable, RowsError> {
        let tables = self.layout.tables();
        tables.get(table).ok_or_else(|| RowsError::Mismatch {
            what: format!("table {table}"),
            problem: format!("there are {}", tables.len()),
        })
    }

    /// Whether so many more rows of a table may be staged.
    fn room_for(&self, table: usize, more: usize) -> Result<(), RowsError> {
        let room = self.tally.counts.rows[table];
        match more <= room - self.tally.rows[table] as usize {
            true => Ok(()),
            false => Err(too_many(format!("table {table}"), "unique rows", room)),
        }
    }

    /// Whether an input of this table may read there.
    fn is_staged(&self, table: usize, position: Position) -> bool {
        match (position.staged(), position.key()) {
            (Some(row), _) => row < self.tally.rows[table],
            (None, Some(key)) => {
                self.tally.key_tables.get(key as usize).is_some_and(|of| *of as usize == table)
            }
            (None, None) => true,
        }
    }

    fn words<const N: usize>(&mut self, at: usize, words: [u32; N]) {
        for (number, word) in words.into_iter().enumerate() {
            self.put(at + 4 * number, word.to_le_bytes());
        }
    }

    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.staging[at..at + N].copy_from_slice(&bytes);
    }
}

/// There is room for as many as was said before, which is a u32 as the bucket's.
fn too_many(what: String, of: &'static str, room: usize) -> RowsError {
    RowsError::TooMany { what, of, room: u32::try_from(room).unwrap_or(u32::MAX) }
}
