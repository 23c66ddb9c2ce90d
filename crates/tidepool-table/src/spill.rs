//! [`Spill`]: the rows of a version on their way, sorted into partitions as they are pushed. Each partition
//! has a buffer; with a directory to spill to, a full buffer is appended to the partition's file there.
//! The page cache may keep these files as far as they fit memory that nobody else uses: they are read twice
//! and more, but never at the cost of pages that somebody serves from.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Write},
    path::{Path, PathBuf},
};

use tidepool_types::{PartitionCount, PartitionIndex};

use crate::{cache::drop_behind, error::BuildError, memory::unused_bytes};

/// The largest buffer of a partition that spills: a write of this size runs at the disk's rate.
const MAX_BUFFER_BYTES: usize = 1 << 20;
/// What is read from a spill file at once.
const READ_BYTES: usize = 1 << 20;

/// Rows by partition, each partition in the order in which its rows were pushed. A row is a *record* of
/// `record_bytes`, which begins with the key of the row; the rest is the builder's business.
#[derive(Debug)]
pub(crate) struct Spill {
    record_bytes: usize,
    /// A partition's buffer is written out before it would grow past this.
    buffer_bytes: usize,
    /// Where to; without it all stays in the buffers.
    dir: Option<PathBuf>,
    /// So many bytes more may stay in the page cache.
    cache_bytes: u64,
    partitions: Vec<Records>,
}

/// The rows of one partition.
#[derive(Debug)]
pub(crate) struct Records {
    record_bytes: usize,
    /// What was written out, if anything was.
    file: Option<PathBuf>,
    /// Bytes of that file.
    file_bytes: u64,
    /// Whether the page cache is to let go of the file.
    drop_behind: bool,
    /// What came later.
    buffer: Vec<u8>,
}

impl Spill {
    /// Buffers all together stay below `memory_bytes` when there is a `dir`, unless not even one record
    /// for each partition fits in.
    pub(crate) fn new(
        partitions: PartitionCount,
        record_bytes: usize,
        dir: Option<PathBuf>,
        memory_bytes: u64,
    ) -> Self {
        let share = memory_bytes / u64::from(partitions.get());
        let buffer_bytes = usize::try_from(share).unwrap_or(usize::MAX).min(MAX_BUFFER_BYTES);
        let records =
            |_| Records { record_bytes, file: None, file_bytes: 0, drop_behind: false, buffer: Vec::new() };
        // The other half is for the files that are built from them, and for the build itself.
        let cache_bytes = unused_bytes().unwrap_or(0).saturating_sub(memory_bytes) / 2;
        let partitions = partitions.indexes().map(records).collect();
        Self { record_bytes, buffer_bytes, dir, cache_bytes, partitions }
    }

    /// Adds a record. After an I/O error its partition may have lost rows: the build is over.
    pub(crate) fn push(&mut self, partition: PartitionIndex, record: &[u8]) -> Result<(), BuildError> {
        debug_assert_eq!(record.len(), self.record_bytes);
        let records = &mut self.partitions[partition.0 as usize];
        if let Some(dir) = &self.dir
            && !records.buffer.is_empty()
            && records.buffer.len() + record.len() > self.buffer_bytes
        {
            let path = records.file.get_or_insert_with(|| dir.join(format!("part-{:05}.rows", partition.0)));
            let bytes = records.buffer.len() as u64;
            self.cache_bytes = self.cache_bytes.saturating_sub(bytes);
            records.drop_behind |= self.cache_bytes == 0;
            append(path, &records.buffer, records.drop_behind).map_err(|source| BuildError::Io {
                action: "writing",
                path: path.clone(),
                source,
            })?;
            records.file_bytes += bytes;
            records.buffer.clear();
        }
        records.buffer.extend_from_slice(record);
        Ok(())
    }

    /// The partitions, in order.
    pub(crate) fn into_partitions(self) -> Vec<Records> {
        self.partitions
    }
}

/// Partitions are many and open files are few: a file is open only while it is appended to.
fn append(path: &Path, bytes: &[u8], behind: bool) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(bytes)?;
    if behind {
        // What was written before; of these bytes the writing begins.
        drop_behind(&file, 0, None);
    }
    Ok(())
}

impl Records {
    /// How many there are.
    pub(crate) fn rows(&self) -> u64 {
        (self.file_bytes + self.buffer.len() as u64) / self.record_bytes as u64
    }

    /// Reads them all, in the order in which they were pushed.
    pub(crate) fn try_for_each(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        if let Some(path) = &self.file {
            let io = |source| BuildError::Io { action: "reading", path: path.clone(), source };
            let mut file = BufReader::with_capacity(READ_BYTES, File::open(path).map_err(io)?);
            let mut record = vec![0; self.record_bytes];
            for _ in 0..self.file_bytes / self.record_bytes as u64 {
                file.read_exact(&mut record).map_err(io)?;
                each(&record)?;
            }
            if self.drop_behind {
                drop_behind(file.get_ref(), 0, None);
            }
        }
        self.buffer.chunks_exact(self.record_bytes).try_for_each(each)
    }

    /// The key of each, in the order in which they were pushed.
    pub(crate) fn keys(&self) -> Result<Vec<u64>, BuildError> {
        let mut keys = Vec::with_capacity(usize::try_from(self.rows()).unwrap_or(0));
        self.try_for_each(|record| {
            keys.push(key_of_record(record));
            Ok(())
        })?;
        Ok(keys)
    }

    /// Gives memory and disk space back.
    pub(crate) fn discard(self) -> Result<(), BuildError> {
        match self.file {
            Some(path) => {
                fs::remove_file(&path).map_err(|source| BuildError::Io { action: "removing", path, source })
            }
            None => Ok(()),
        }
    }
}

/// What a record begins with.
#[inline]
pub(crate) fn key_of_record(record: &[u8]) -> u64 {
    record.first_chunk().map_or(0, |key| u64::from_le_bytes(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_whether_or_not_they_were_written_out() {
        for memory_bytes in [0, 50, 1 << 30] {
            let dir = tempfile::TempDir::new().unwrap();
            let two = PartitionCount::new(2).unwrap();
            let mut spill = Spill::new(two, 9, Some(dir.path().to_owned()), memory_bytes);
            for n in 0..100u64 {
                let mut record = n.to_le_bytes().to_vec();
                record.push(n as u8);
                spill.push(PartitionIndex((n % 2) as u32), &record).unwrap();
            }
            let files = || std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(files(), if memory_bytes == 1 << 30 { 0 } else { 2 });
            for (records, first) in spill.into_partitions().into_iter().zip(0..) {
                assert_eq!(records.rows(), 50);
                let expected: Vec<u64> = (first..100).step_by(2).collect();
                assert_eq!(records.keys().unwrap(), expected);
                records.discard().unwrap();
            }
            assert_eq!(files(), 0);
        }
    }

    #[test]
    fn a_file_that_was_cut_is_an_error() {
        let dir = tempfile::TempDir::new().unwrap();
        let mut spill = Spill::new(PartitionCount::ONE, 8, Some(dir.path().to_owned()), 16);
        for n in 0..10u64 {
            spill.push(PartitionIndex(0), &n.to_le_bytes()).unwrap();
        }
        File::options().write(true).open(dir.path().join("part-00000.rows")).unwrap().set_len(20).unwrap();
        let error = spill.into_partitions().remove(0).keys().unwrap_err();
        assert!(error.to_string().contains("part-00000.rows"), "{error}");
    }
}
