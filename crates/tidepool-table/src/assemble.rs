//! One partition on its own: from its records, in the order of pushing, to its file, in the order of rows.
//!
//! The keys are read first, for the index; then the records once more, and each is put where the index
//! says. When the rows do not fit the memory allowed, they are placed chunk by chunk, and the records are
//! read once for each chunk.

use std::{fs::File, num::NonZeroUsize, path::Path};

use tidepool_types::{Keying, PartitionEntry, PartitionIndex, unmix64};

use crate::{
    builder::Duplicates,
    error::BuildError,
    header::{KeyCheck, MAX_PARTITION_ROWS},
    index::{self, BuiltIndex, IndexError, IndexShape},
    report::{Measure, RowCost},
    spill::{Records, key_of_record},
    write::{PartitionPlan, PartitionWriter},
};

/// Rows between two words of progress.
const PROGRESS_ROWS: u64 = 1 << 16;
/// A chunk is never smaller than this: a pass over the records costs more than it saves.
pub(crate) const MIN_CHUNK_BYTES: u64 = 4 << 20;

/// How all partitions of a version are built.
#[derive(Clone, Debug)]
pub(crate) struct Assembly<'a> {
    /// Everything about the file but which partition it is.
    pub(crate) plan: PartitionPlan,
    /// Where it is written.
    pub(crate) layout: &'a Path,
    pub(crate) duplicates: Duplicates,
    /// Whether each record has the cost of its row after its key.
    pub(crate) costs: bool,
    pub(crate) row_bytes: usize,
    /// Rows in the making, with all that belongs to them, take this much.
    pub(crate) chunk_bytes: u64,
    /// For the index of one partition.
    pub(crate) threads: NonZeroUsize,
}

/// A partition that was built.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) entry: PartitionEntry,
    /// Bytes of the file that are index.
    pub(crate) index_bytes: u64,
    /// With costs only: what storing these rows cost.
    pub(crate) measure: Option<Measure>,
}

impl Assembly<'_> {
    /// How many different keys there are.
    pub(crate) fn distinct(&self, records: &Records) -> Result<u64, BuildError> {
        let mut keys = records.keys()?;
        keys.sort_unstable();
        keys.dedup();
        Ok(keys.len() as u64)
    }

    /// Refuses keys that cannot stand together in this partition.
    pub(crate) fn check(&self, partition: PartitionIndex, records: &Records) -> Result<(), BuildError> {
        self.checked_keys(partition, records).map(drop)
    }

    /// Writes the file. `progress` is told of rows twice: when they are in the index, and when they are placed.
    pub(crate) fn assemble(
        &self,
        partition: PartitionIndex,
        records: &Records,
        progress: &dyn Fn(u64),
    ) -> Result<Assembled, BuildError> {
        let plan = PartitionPlan { partition, ..self.plan.clone() };
        let (rows, index) = match plan.keying {
            Keying::Dense => {
                let rows = self.checked_keys(partition, records)?.len() as u64;
                (rows, BuiltIndex { shape: IndexShape::EMPTY, pilots: Vec::new(), remap: Vec::new() })
            }
            Keying::Hashed => self.index(partition, records)?,
        };
        progress(rows);
        let path = self.layout.join(tidepool_types::paths::partition_file_name(partition));
        let io = |source| BuildError::Io { action: "writing", path: path.clone(), source };
        let mut writer = PartitionWriter::new(File::create_new(&path).map_err(io)?, plan, rows);
        let mut measure = self.costs.then(Measure::new);
        let chunk_rows = (self.chunk_bytes.max(MIN_CHUNK_BYTES) / self.bytes_per_placed_row()).max(1);
        let remap = index.remap_bytes();
        let view = index.view(&remap);
        let row_of = |key| match self.plan.keying {
            Keying::Dense => Some(key),
            Keying::Hashed => view.row(view.probe(key)),
        };
        let mut first = 0;
        while first < rows {
            let mut chunk = Chunk::new(self, first, chunk_rows.min(rows - first));
            self.fill(&mut chunk, partition, records, &row_of, progress)?;
            if let Some(measure) = &mut measure {
                chunk.costs(|key, cost| measure.add(self.id_of(partition, key), cost));
            }
            writer.append(&chunk.rows, &chunk.cold_keys).map_err(io)?;
            first += chunk.count;
        }
        let written = writer.finish(&index).map_err(io)?;
        let entry = PartitionEntry {
            partition,
            rows,
            file_bytes: written.file_bytes,
            footer_crc32c: written.footer_crc32c,
        };
        let index_bytes = (index.pilots.len() + remap.len()) as u64;
        Ok(Assembled { entry, index_bytes, measure })
    }

    /// Bytes of a row in a chunk: stride, cold key, cost, key for the cost, and a bit.
    pub(crate) const fn bytes_per_placed_row(&self) -> u64 {
        let check = self.plan.key_check.bytes();
        let costs = if self.costs { RowCost::BYTES + 8 } else { 0 };
        (self.row_bytes + check + 4 + costs + 1) as u64
    }

    /// Puts the records of a chunk in their places. Every key goes through the evaluator that will serve it:
    /// a row that two keys reach, or none, stops the build. Of records with the same key the last one stays.
    fn fill(
        &self,
        chunk: &mut Chunk,
        partition: PartitionIndex,
        records: &Records,
        row_of: &dyn Fn(u64) -> Option<u64>,
        progress: &dyn Fn(u64),
    ) -> Result<(), BuildError> {
        let mut placed = 0;
        records.try_for_each(|record| {
            let key = key_of_record(record);
            let row = row_of(key).ok_or_else(|| defect(partition, key, None))?;
            let Some(at) = row.checked_sub(chunk.first).filter(|&at| at < chunk.count) else { return Ok(()) };
            match chunk.place(at as usize, key, &record[8..]) {
                Placed::New => placed += 1,
                Placed::Again => return Ok(()),
                Placed::OnAnother => return Err(defect(partition, key, Some(row))),
            }
            if placed % PROGRESS_ROWS == 0 {
                progress(PROGRESS_ROWS);
            }
            Ok(())
        })?;
        progress(placed % PROGRESS_ROWS);
        if placed == chunk.count {
            Ok(())
        } else {
            let missing = chunk.count - placed;
            Err(BuildError::Internal(format!("{missing} rows of partition {partition} are nobody's")))
        }
    }

    /// The index over the keys, and how many there are.
    fn index(&self, partition: PartitionIndex, records: &Records) -> Result<(u64, BuiltIndex), BuildError> {
        let mut keys = self.keys(partition, records)?;
        if self.duplicates == Duplicates::Last {
            keys.sort_unstable();
            keys.dedup();
        }
        let rows = keys.len() as u64;
        match index::build_owned(keys, self.plan.build_seed, self.threads) {
            Ok(index) => Ok((rows, index)),
            Err(IndexError::TooMany(rows)) => Err(BuildError::TooManyRows { partition: partition.0, rows }),
            Err(IndexError::Unplaceable) => Err(BuildError::Index { partition: partition.0, rows }),
            Err(IndexError::Duplicate) => Err(match self.check(partition, records) {
                Err(error) => error,
                Ok(()) => BuildError::Internal(format!("partition {partition} has one key twice, and not")),
            }),
        }
    }

    fn keys(&self, partition: PartitionIndex, records: &Records) -> Result<Vec<u64>, BuildError> {
        let rows = records.rows();
        if rows > MAX_PARTITION_ROWS && self.duplicates == Duplicates::Error {
            return Err(BuildError::TooManyRows { partition: partition.0, rows });
        }
        records.keys()
    }

    /// The different keys in ascending order. What is refused is named by its smallest id.
    fn checked_keys(&self, partition: PartitionIndex, records: &Records) -> Result<Vec<u64>, BuildError> {
        let mut keys = self.keys(partition, records)?;
        keys.sort_unstable();
        match self.duplicates {
            Duplicates::Last => keys.dedup(),
            Duplicates::Error => {
                let twice = keys.windows(2).filter(|pair| pair[0] == pair[1]);
                if let Some(id) = twice.map(|pair| self.id_of(partition, pair[0])).min() {
                    return Err(BuildError::DuplicateId { id });
                }
            }
        }
        if self.plan.keying == Keying::Dense {
            self.refuse_holes(partition, &keys)?;
        }
        Ok(keys)
    }

    /// N different ids are 0..N exactly when row `r` of each partition has the key `r`.
    fn refuse_holes(&self, partition: PartitionIndex, keys: &[u64]) -> Result<(), BuildError> {
        let rows = self.plan.table_rows;
        let expected = Keying::dense_rows(rows, partition, self.plan.partitions);
        let keys_then_none = keys.iter().map(|&key| Some(key)).chain(std::iter::repeat(None));
        match (0..expected).zip(keys_then_none).find(|&(row, key)| key != Some(row)) {
            Some((row, _)) => Err(BuildError::MissingId { id: self.id_of(partition, row), rows }),
            // One too many here is one too few elsewhere, and there it has a name.
            None if keys.len() as u64 > expected => Err(BuildError::MissingId { id: u64::MAX, rows }),
            None => Ok(()),
        }
    }

    fn id_of(&self, partition: PartitionIndex, key: u64) -> u64 {
        match self.plan.keying {
            Keying::Dense => key * u64::from(self.plan.partitions.get()) + u64::from(partition.0),
            Keying::Hashed => unmix64(key),
        }
    }
}

fn defect(partition: PartitionIndex, key: u64, row: Option<u64>) -> BuildError {
    BuildError::Internal(format!(
        "the index of partition {partition} gives key {key:#x} the row {row:?} of another"
    ))
}

/// Consecutive rows in the making.
struct Chunk {
    first: u64,
    count: u64,
    check: KeyCheck,
    stride: usize,
    row_bytes: usize,
    /// Rows with their key checks, as they will be written.
    rows: Vec<u8>,
    /// As they will be written; empty where the file has none.
    cold_keys: Vec<u8>,
    /// Key and cost of each row, or empty.
    costs: Vec<(u64, [u8; RowCost::BYTES])>,
    /// Which rows are there.
    there: Vec<u64>,
}

enum Placed {
    New,
    /// In the place of an earlier row of the same key.
    Again,
    OnAnother,
}

impl Chunk {
    fn new(assembly: &Assembly<'_>, first: u64, count: u64) -> Self {
        let check = assembly.plan.key_check;
        let stride = assembly.row_bytes + check.bytes();
        let of = |bytes: usize| vec![0; count as usize * bytes];
        Self {
            first,
            count,
            check,
            stride,
            row_bytes: assembly.row_bytes,
            rows: of(stride),
            cold_keys: of(if check == KeyCheck::Fingerprint32 { 4 } else { 0 }),
            costs: vec![Default::default(); if assembly.costs { count as usize } else { 0 }],
            there: vec![0; (count as usize).div_ceil(64)],
        }
    }

    /// Puts what follows the key in a record (its cost, if there are costs, then the row) at row `at`.
    #[inline]
    fn place(&mut self, at: usize, key: u64, rest: &[u8]) -> Placed {
        let (cost, row) = rest.split_at(rest.len() - self.row_bytes);
        let check = self.check.of(key);
        let (word, bit) = (&mut self.there[at / 64], 1 << (at % 64));
        let (place, placed_check) =
            self.rows[at * self.stride..(at + 1) * self.stride].split_at_mut(self.row_bytes);
        let check = &check[..placed_check.len()];
        let cold = &key.to_le_bytes()[..4];
        let placed = if *word & bit == 0 {
            *word |= bit;
            placed_check.copy_from_slice(check);
            if let Some(place) = self.cold_keys.get_mut(at * 4..at * 4 + 4) {
                place.copy_from_slice(cold);
            }
            Placed::New
        } else if placed_check == check && self.cold_keys.get(at * 4..at * 4 + 4).is_none_or(|c| c == cold) {
            Placed::Again
        } else {
            return Placed::OnAnother;
        };
        place.copy_from_slice(row);
        if let (Some(place), Some(cost)) = (self.costs.get_mut(at), cost.first_chunk()) {
            *place = (key, *cost);
        }
        placed
    }

    fn costs(&self, mut each: impl FnMut(u64, RowCost)) {
        self.costs.iter().for_each(|&(key, cost)| each(key, RowCost::from_bytes(cost)));
    }
}
