//! Stored rows travel to the device as they are, and are expanded and pooled there.
//!
//! A batch brings, for each table, its *unique rows* once; for each input, the *positions* of the members of its bags
//! among them (the inverse index of the lookup: a user's bag is there once per request, however many candidates there
//! are), where each bag ends, and weights. [`RowsLayout`] says what there is room for in the staging buffer of a
//! bucket; [`RowsWriter`] writes it there, straight into pinned memory, as long as the batch needs it, and checks all that
//! the kernel trusts in; one launch per kind of rows makes the inputs of the plan. [`expand`] does the same on the CPU, bit by bit: it is what
//! the kernel is held against.
//!
//! What a vector is made of is what the client's merge makes of it (DESIGN.md section 6): members are added in the
//! order of their bag; a missing one adds nothing; a mean is divided by the rows found, or by the sum of their weights;
//! a vector of nothing, or one that is not finite, is the default row.

mod device;
mod expander;
mod layout;
mod source;
#[cfg(test)]
mod tests;
mod twin;
mod writer;

pub(crate) use device::{DeviceRows, RowKernels, Target};
pub use expander::{ExpandError, RowExpander};
pub use layout::{Pool, RowCounts, RowInput, RowTable, RowsError, RowsLayout};
pub use twin::{Expanded, expand};
pub use writer::{Position, RowsWriter, Staged, Tally};

/// Set in a [state](Expanded::state): the vector is the default row. The other bits are the rows found.
pub const DEFAULTED: u32 = 1 << 31;
