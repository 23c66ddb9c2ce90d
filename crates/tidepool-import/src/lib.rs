//! Foreign files into tables, and back: Parquet, CSV, NPY, NPZ, safetensors, and rows as FBGEMM stores them.
//!
//! **Invariant:** a server never depends on this crate. Files are read as streams, so memory does not
//! grow with them; their bytes never panic: whatever is wrong is an [`ImportError`] that names the file
//! and the line or row.
//!
//! Read first: [`RowSource`], [`import()`], [`ImportError`].

mod array;
mod csv;
mod error;
mod export;
mod import;
mod parquet;
mod source;
mod stored;
mod string_id;

pub use array::{ArrayPath, ArraySource};
pub use csv::CsvSource;
pub use error::ImportError;
pub use export::{export_csv, export_npy, export_parquet, export_stored};
pub use import::import;
pub use parquet::{ParquetColumns, ParquetSource};
pub use source::{Position, RowSource};
pub use stored::{ScaleBias, StoredLayout, StoredSource, import_stored};
pub use string_id::StringIds;
