//! Foreign files into tables: CSV and NPY.
//!
//! **Invariant:** a server never depends on this crate. Files are read as streams, so memory does not
//! grow with them; their bytes never panic: whatever is wrong is an [`ImportError`] that names the file
//! and the line or row.
//!
//! Read first: [`RowSource`], [`import()`], [`ImportError`].

mod csv;
mod error;
mod npy;
mod source;

pub use csv::CsvSource;
pub use error::ImportError;
pub use npy::NpySource;
pub use source::{Position, RowSource, import};
