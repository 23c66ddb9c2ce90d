//! The footer: rkyv-archived metadata at the end of a partition file, read in place.
//!
//! bytecheck makes reading it safe, not right (it accepts most bit flips), so its crc32c, which stands
//! in the section table, is compared first.

use rkyv::{Archive, Serialize, rancor, util::AlignedVec};
use tidepool_types::{Name, TableVersion};

use crate::index::IndexShape;

/// What a partition file says of itself beyond its header page. Fields are only ever appended with a new
/// format version.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize)]
pub(crate) struct PartitionFooter {
    /// The table's name.
    pub(crate) table: String,
    /// The version's name.
    pub(crate) version: String,
    /// Rows of the version, in all partitions.
    pub(crate) table_rows: u64,
    /// The seed that the version was built with.
    pub(crate) build_seed: u64,
    /// [`IndexShape::seed`]; this and the next three are 0 when there is no index, or no row.
    pub(crate) index_seed: u64,
    /// [`IndexShape::parts`].
    pub(crate) index_parts: u32,
    /// [`IndexShape::buckets_per_part`].
    pub(crate) index_buckets_per_part: u32,
    /// [`IndexShape::slots_per_part`].
    pub(crate) index_slots_per_part: u32,
    /// crc32c of the header's preamble (its first 64 bytes).
    pub(crate) preamble_crc32c: u32,
    /// crc32c of the block checksums: with it, the footer's own checksum speaks for the whole file.
    pub(crate) checksums_crc32c: u32,
}

/// The footer as far as it is used after opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FooterValues {
    pub(crate) table_version: TableVersion,
    pub(crate) table_rows: u64,
    pub(crate) build_seed: u64,
    pub(crate) index: IndexShape,
    pub(crate) preamble_crc32c: u32,
    pub(crate) checksums_crc32c: u32,
}

impl PartitionFooter {
    /// The archive.
    pub(crate) fn encode(&self) -> Result<AlignedVec, rancor::Error> {
        rkyv::to_bytes(self)
    }

    /// Reads an archive whose checksum has been compared. `rows` is from the header. The error is the
    /// problem, for a message.
    pub(crate) fn read(bytes: &[u8], rows: u64) -> Result<FooterValues, String> {
        let footer = rkyv::access::<ArchivedPartitionFooter, rancor::Error>(bytes)
            .map_err(|error| format!("not an archive: {error}"))?;
        let name = |text: &str| Name::new(text).map_err(|error| error.to_string());
        let index = IndexShape {
            rows: u32::try_from(rows).map_err(|_| format!("{rows} rows"))?,
            seed: footer.index_seed.to_native(),
            parts: footer.index_parts.to_native(),
            buckets_per_part: footer.index_buckets_per_part.to_native(),
            slots_per_part: footer.index_slots_per_part.to_native(),
        };
        Ok(FooterValues {
            table_version: TableVersion { table: name(&footer.table)?, version: name(&footer.version)? },
            table_rows: footer.table_rows.to_native(),
            build_seed: footer.build_seed.to_native(),
            index,
            preamble_crc32c: footer.preamble_crc32c.to_native(),
            checksums_crc32c: footer.checksums_crc32c.to_native(),
        })
    }
}

#[cfg(test)]
mod tests;
