//! Benches and drills: a cluster of real processes, load, what is timed beside what it is compared with, and
//! whether the answers were right.
//!
//! **Invariant:** no server uses this crate, and [`Oracle`] knows rows by a function of (id, version) and a
//! decoder of its own: it calls neither `tidepool-kernels` nor a table. Every figure is taken in turn with
//! its baseline, and is a median with its spread.
//!
//! Read first: [`cluster::LocalCluster`], [`load::run`], [`lookup::run`], [`kernel::run`], [`Oracle`].

pub mod cluster;
mod draw;
pub mod drill;
mod error;
pub mod kernel;
pub mod load;
pub mod lookup;
mod machine;
mod oracle;
mod page;
pub mod proc;
pub mod process;
pub mod quantize;
pub mod rank;
mod rows;
mod spread;
mod table;
pub mod trace;

pub use draw::{ParseSkewError, Skew};
pub use error::BenchError;
pub use machine::Machine;
pub use oracle::Oracle;
pub use rows::{id_of, stored_row};
pub use spread::Spread;
pub use table::{BenchTable, ROWS_VERSION, Step};
