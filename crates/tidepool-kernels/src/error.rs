//! Why a vector cannot be stored as a row.

use thiserror::Error;
use tidepool_types::RowFormat;

/// A value that the row format cannot hold. The caller knows whose row it is and adds the id.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum QuantizeError {
    /// NaN or an infinity: no format takes them.
    #[error("column {column} is {value}: only finite numbers can be stored")]
    NotFinite {
        /// Which element, from 0.
        column: usize,
        /// What stood there.
        value: f32,
    },
    /// A finite value too large for the format: beyond f16 itself, or a row whose f16 bias or scale
    /// (int4), or f32 scale (int8), would overflow because of it.
    #[error("column {column} is {value}: too large to be stored as {format}")]
    OutOfRange {
        /// Which element, from 0: the one that must be smaller.
        column: usize,
        /// What stood there.
        value: f32,
        /// The format asked for.
        format: RowFormat,
    },
}
