//! Foreign files into tables, and back: CSV, NPY, and NPY of rows as FBGEMM stores them.
//!
//! **Invariant:** a server never depends on this crate. Files are read as streams, so memory does not
//! grow with them; their bytes never panic: whatever is wrong is an [`ImportError`] that names the file
//! and the line or row.
//!
//! Read first: [`RowSource`], [`import()`], [`ImportError`].

mod csv;
mod error;
mod export;
mod npy;
mod source;
mod stored;

pub use csv::CsvSource;
pub use error::ImportError;
pub use export::{export_csv, export_npy, export_stored};
pub use npy::NpySource;
pub use source::{Position, RowSource, import};
pub use stored::{StoredSource, import_stored};
