//! Where the rows of a batch are in the staging buffer.
//!
//! ```text
//! head     u64 address of the resident set or 0, u32 staged keys, u32 zero,
//!          then of each input: u32 bags, u32 weighted (0 or 1), u32 number of its table in the resident set or all ones, u32 zero
//! keys     u64 ids, then u32 numbers of their tables: what is to be found in the resident set
//! table    rows, one each stride; the stride is the row's bytes rounded up to 4, what is between is zero
//! input    u32 offsets of its bags, in ids, one more than bags; u32 positions, one per id and hash; f32 weights, one per id
//! ```
//! Every array begins at a multiple of 256 bytes, has room for the whole bucket and stays where it is, so that the graph
//! of a bucket is captured once. All numbers are little-endian.

use thiserror::Error;
use tidepool_types::{Combine, MAX_DIM, RowFormat};

/// What arrays are aligned to.
const ALIGN: usize = 256;

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

/// Where the arrays of one input are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InputAt {
    pub(crate) head: usize,
    pub(crate) offsets: usize,
    pub(crate) positions: usize,
    /// Where weights would be; there is no room when the input has none.
    pub(crate) weights: usize,
}

/// The places of everything that the rows of one bucket bring.
#[derive(Clone, Debug, PartialEq)]
pub struct RowsLayout {
    tables: Vec<RowTable>,
    inputs: Vec<RowInput>,
    keys: u32,
    ids_at: usize,
    tags_at: usize,
    rows_at: Vec<usize>,
    inputs_at: Vec<InputAt>,
    bytes: usize,
}

/// Bytes of the head before those of the inputs.
const HEAD_BYTES: usize = 16;
/// Bytes of one input's head.
const INPUT_HEAD_BYTES: usize = 16;

impl RowsLayout {
    /// Where the address of the resident set stands.
    pub(crate) const RESIDENT_AT: usize = 0;
    /// Where the number of keys stands.
    pub(crate) const KEYS_AT: usize = 8;

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
        let mut bytes = 0usize;
        let mut push = |count: usize, size: usize| {
            let at = bytes;
            bytes += (count * size).next_multiple_of(ALIGN);
            at
        };
        push(1, HEAD_BYTES + inputs.len() * INPUT_HEAD_BYTES);
        let (ids_at, tags_at) = (push(keys as usize, 8), push(keys as usize, 4));
        let rows_at = tables.iter().map(|table| push(table.rows as usize, table.stride())).collect();
        let inputs_at = inputs.iter().enumerate().map(|(at, input)| InputAt {
            head: HEAD_BYTES + at * INPUT_HEAD_BYTES,
            offsets: push(input.bags as usize + 1, 4),
            positions: push(input.ids as usize * input.hashes as usize, 4),
            weights: push(if input.weighted { input.ids as usize } else { 0 }, 4),
        });
        let inputs_at = inputs_at.collect();
        Ok(Self { tables, inputs, keys, ids_at, tags_at, rows_at, inputs_at, bytes })
    }

    /// Bytes of the region, a multiple of 256.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
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

    pub(crate) fn ids_at(&self) -> usize {
        self.ids_at
    }

    pub(crate) fn tags_at(&self) -> usize {
        self.tags_at
    }

    pub(crate) fn rows_at(&self, table: usize) -> usize {
        self.rows_at[table]
    }

    pub(crate) fn input_at(&self, input: usize) -> InputAt {
        self.inputs_at[input]
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

use super::Position;

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
