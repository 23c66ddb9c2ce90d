//! What the rows of a batch are in the staging buffer.
//!
//! ```text
//! head     u64 address of the resident set or 0, u32 staged keys, u32 place of their ids, u32 place of their tables' numbers, u32 0, 0, 0,
//!          then of each input: u32 bags, u32 weighted (0 or 1), u32 number of its table in the resident set or all ones,
//!          u32 places of its table's rows, of its offsets, its positions and its weights, u32 0
//! keys     u64 ids, then u32 numbers of their tables: what is to be found in the resident set
//! table    rows, one each stride; the stride is the row's bytes rounded up to 4, what is between is zero
//! input    u32 offsets of its bags, in ids, one more than bags; u32 positions, one per id and hash; f32 weights, one per id
//! ```
//! The head stays where it is, so that the graph of a bucket is captured once. The arrays follow each other as the batch has
//! need of them, and their places are counted from the beginning of the staging buffer, in units of 16 bytes
//! (`packing.rs`). All numbers are little-endian.

use thiserror::Error;
use tidepool_types::{Combine, MAX_DIM, RowFormat};

use super::Position;
use crate::cuda::packing::{Packing, UNIT};

/// A table whose rows are staged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowTable {
    /// How its rows are stored.
    pub format: RowFormat,
    /// Elements of a row.
    pub dim: u32,
    /// Room for so many different rows.
    pub rows: u32,
}

impl RowTable {
    /// Bytes from one row to the next, on the device.
    #[must_use]
    pub const fn stride(&self) -> usize {
        self.format.row_bytes(self.dim).next_multiple_of(4)
    }
}

/// What becomes of the vectors of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// One vector: their (weighted) sum.
    Sum,
    /// One vector: their mean, by the rows found or the weights of those.
    Mean,
    /// Each id has a vector of its own, in their order; zeros follow after the last.
    Sequence {
        /// Vectors of a bag, as many as it may have ids.
        max_len: u32,
        /// Whether a mask is made as well: 1 where there is an id, 0 after the last.
        mask: bool,
    },
}

/// An input of the model that is made from stored rows.
#[derive(Clone, Debug, PartialEq)]
pub struct RowInput {
    /// Which of the tables.
    pub table: usize,
    /// Room for so many bags: requests of the bucket for a user's feature, rows of it for a candidate's.
    pub bags: u32,
    /// Room for so many ids in all bags.
    pub ids: u32,
    /// What becomes of them.
    pub pool: Pool,
    /// Whether ids may have weights.
    pub weighted: bool,
    /// Rows of an id: 1, or the hashes of a composite table.
    pub hashes: u32,
    /// How the rows of an id become its vector.
    pub combine: Combine,
    /// The vector of nothing: as wide as a vector; empty: zeros.
    pub default_row: Vec<f32>,
}

/// Why rows cannot be staged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RowsError {
    /// A layout that the kernel cannot work with.
    #[error("{what}: {problem}")]
    Layout {
        /// Which table or input.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More than the bucket has room for. Nothing has been copied; a larger bucket, or fewer rows, is needed.
    #[error("{what}: there is room for {room} {of}")]
    TooMany {
        /// Which table or input.
        what: String,
        /// Of what.
        of: &'static str,
        /// How many there may be.
        room: u32,
    },
    /// The staging buffer is not the one that the layout was made for.
    #[error("the staging buffer has {found} bytes, the layout needs {needed}")]
    Staging {
        /// Its bytes.
        found: usize,
        /// The layout's.
        needed: usize,
    },
    /// What is staged does not fit together.
    #[error("{what}: {problem}")]
    Mismatch {
        /// Which table or input.
        what: String,
        /// What is wrong.
        problem: String,
    },
}

/// How much a batch stages at most. It is known before anything is staged, so that a bucket is chosen that has room, and the
/// batch travels without room to spare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Of each table: its different rows that are staged.
    pub rows: Vec<usize>,
    /// Of each input: the ids of all its bags.
    pub ids: Vec<usize>,
    /// Ids that are looked for in the resident set.
    pub keys: usize,
}

/// Where the arrays of one input are, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputAt {
    pub(crate) offsets: usize,
    pub(crate) positions: usize,
    /// Where weights would be; there is no room when the input has none.
    pub(crate) weights: usize,
}

/// Where the arrays of a batch are, in bytes from the beginning of the staging buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) ids: usize,
    pub(crate) tags: usize,
    /// Of each table.
    pub(crate) rows: Vec<usize>,
    pub(crate) inputs: Vec<InputAt>,
    /// Behind the last of them.
    pub(crate) end: usize,
}

/// What the rows of one bucket may bring.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsLayout {
    tables: Vec<RowTable>,
    inputs: Vec<RowInput>,
    keys: u32,
    room: RowCounts,
    /// Bytes of the arrays of a batch that has all that there is room for.
    arrays: usize,
}

/// Bytes of the head before those of the inputs.
const HEAD_BYTES: usize = 32;
/// Bytes of one input's head.
const INPUT_HEAD_BYTES: usize = 32;

impl RowsLayout {
    /// A layout for these inputs; `keys` of the ids of a batch may be looked for in the resident set.
    ///
    /// # Errors
    /// [`RowsError::Layout`] names the table or input.
    pub fn new(tables: Vec<RowTable>, inputs: Vec<RowInput>, keys: u32) -> Result<Self, RowsError> {
        for (at, table) in tables.iter().enumerate() {
            check_table(table)
                .map_err(|problem| RowsError::Layout { what: format!("table {at}"), problem })?;
        }
        for (at, input) in inputs.iter().enumerate() {
            check_input(&tables, input)
                .map_err(|problem| RowsError::Layout { what: format!("input {at}"), problem })?;
        }
        if keys > Position::MOST {
            let problem = format!("{keys} keys, there may be {}", Position::MOST);
            return Err(RowsError::Layout { what: "resident set".into(), problem });
        }
        let rows = tables.iter().map(|table| table.rows as usize).collect();
        let ids = inputs.iter().map(|input| input.ids as usize).collect();
        let room = RowCounts { rows, ids, keys: keys as usize };
        let mut made = Self { tables, inputs, keys, room, arrays: 0 };
        let bags: Vec<u32> = made.inputs.iter().map(|input| input.bags).collect();
        let mut places = Places::default();
        made.place(&made.room, &bags, 0, &mut places);
        made.arrays = places.end;
        Ok(made)
    }

    /// Bytes of head and arrays of a batch that has all that there is room for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.most(self.head())
    }

    /// What there is room for.
    #[must_use]
    pub fn room(&self) -> &RowCounts {
        &self.room
    }

    /// Bytes of the head.
    pub(crate) fn head(&self) -> usize {
        Self::input_head(self.inputs.len())
    }

    /// Where the head of an input is in that.
    pub(crate) fn input_head(input: usize) -> usize {
        HEAD_BYTES + input * INPUT_HEAD_BYTES
    }

    /// The end of the arrays of a batch that has all that there is room for, when they begin at `first`.
    pub(crate) fn most(&self, first: usize) -> usize {
        first.next_multiple_of(UNIT) + self.arrays
    }

    /// Where the arrays of a batch are that has so much, and so many bags of each input, when they begin at `first`.
    pub(crate) fn place(&self, counts: &RowCounts, bags: &[u32], first: usize, places: &mut Places) {
        let mut packing = Packing::new(first);
        let mut push = |count: usize, size: usize| packing.push(count, size);
        (places.ids, places.tags) = (push(counts.keys, 8), push(counts.keys, 4));
        places.rows.clear();
        let tables = self.tables.iter().zip(&counts.rows);
        places.rows.extend(tables.map(|(table, rows)| push(*rows, table.stride())));
        places.inputs.clear();
        let inputs = self.inputs.iter().zip(bags.iter().zip(&counts.ids));
        places.inputs.extend(inputs.map(|(input, (bags, ids))| InputAt {
            offsets: push(*bags as usize + 1, 4),
            positions: push(ids * input.hashes as usize, 4),
            weights: push(if input.weighted { *ids } else { 0 }, 4),
        }));
        places.end = packing.end();
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &[RowTable] {
        &self.tables
    }

    /// The inputs.
    #[must_use]
    pub fn inputs(&self) -> &[RowInput] {
        &self.inputs
    }

    /// Room for so many ids that are looked for in the resident set.
    #[must_use]
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// Elements of a vector of this input.
    #[must_use]
    pub fn width(&self, input: usize) -> usize {
        let of = &self.inputs[input];
        let parts = if of.combine == Combine::Concat { of.hashes } else { 1 };
        (parts * self.tables[of.table].dim) as usize
    }

    /// The most vectors of this input.
    #[must_use]
    pub fn vectors(&self, input: usize) -> usize {
        self.inputs[input].vectors()
    }

    /// The numbers of the input at `input`, as the plan reads them: `[vectors, width]`.
    #[must_use]
    pub fn numbers(&self, input: usize) -> usize {
        self.vectors(input) * self.width(input)
    }

    /// Whether a batch of so much may be staged here; `name` says what an input is called.
    ///
    /// # Errors
    /// [`RowsError::TooMany`] with the first input, table or number of keys that there is not room for;
    /// [`RowsError::Mismatch`] when the counts are of another model.
    pub fn fits(&self, counts: &RowCounts, name: &dyn Fn(usize) -> String) -> Result<(), RowsError> {
        let of_model = (self.tables.len(), self.inputs.len());
        if (counts.rows.len(), counts.ids.len()) != of_model {
            let (tables, inputs) = of_model;
            let problem = format!(
                "they are of {} tables and {} inputs, the model has {tables} and {inputs}",
                counts.rows.len(),
                counts.ids.len()
            );
            return Err(RowsError::Mismatch { what: "the counts of a batch".into(), problem });
        }
        let fits = |what: &dyn Fn() -> String, of, count: usize, room: u32| match count <= room as usize {
            true => Ok(()),
            false => Err(RowsError::TooMany { what: what(), of, room }),
        };
        for (at, (ids, input)) in counts.ids.iter().zip(&self.inputs).enumerate() {
            fits(&|| format!("{} with {ids} ids", name(at)), "ids", *ids, input.ids)?;
        }
        for (at, (rows, table)) in counts.rows.iter().zip(&self.tables).enumerate() {
            fits(&|| format!("table {at} with {rows} unique rows"), "unique rows", *rows, table.rows)?;
        }
        let keys = counts.keys;
        fits(&|| format!("the resident set with {keys} keys"), "keys", keys, self.keys)
    }
}

impl RowInput {
    /// The most vectors.
    #[must_use]
    pub fn vectors(&self) -> usize {
        match self.pool {
            Pool::Sum | Pool::Mean => self.bags as usize,
            Pool::Sequence { max_len, .. } => self.bags as usize * max_len as usize,
        }
    }
}

fn check_table(table: &RowTable) -> Result<(), String> {
    if table.dim == 0 || table.dim > MAX_DIM {
        return Err(format!("dimension {}, it must be 1 to {MAX_DIM}", table.dim));
    }
    if table.rows > Position::MOST {
        return Err(format!("room for {} rows, it may be for {}", table.rows, Position::MOST));
    }
    Ok(())
}

fn check_input(tables: &[RowTable], input: &RowInput) -> Result<(), String> {
    let Some(table) = tables.get(input.table) else {
        return Err(format!("its table is number {}, there are {}", input.table, tables.len()));
    };
    if input.hashes == 0 || input.hashes as usize > tidepool_types::MAX_HASHES {
        return Err(format!(
            "{} rows per id, there may be 1 to {}",
            input.hashes,
            tidepool_types::MAX_HASHES
        ));
    }
    let count = |numbers: u64, what: &str| match u32::try_from(numbers) {
        // The kernel counts vectors and members in 32 bits.
        Ok(count) if count < u32::MAX => Ok(()),
        _ => Err(format!("{numbers} {what} are more than the kernel can count")),
    };
    count(u64::from(input.ids) * u64::from(input.hashes), "members")?;
    if let Pool::Sequence { max_len, .. } = input.pool {
        if max_len == 0 {
            return Err("a sequence of no ids".into());
        }
        if input.weighted {
            return Err("a sequence has no weights".into());
        }
        count(u64::from(input.bags) * u64::from(max_len), "vectors")?;
    }
    let parts = if input.combine == Combine::Concat { input.hashes } else { 1 };
    let width = (parts * table.dim) as usize;
    if !input.default_row.is_empty() && input.default_row.len() != width {
        return Err(format!("a default row of {} elements, a vector has {width}", input.default_row.len()));
    }
    Ok(())
}
