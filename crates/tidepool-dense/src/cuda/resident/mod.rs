//! Rows that live on the device: small tables, and the most wanted rows of large ones.
//!
//! A [`ResidentSet`] holds stored rows of any number of tables and one flat hash table over all of them, whose key is
//! (table, id). The host has the same keys ([`KeyTable`]), so it knows before it asks any node which rows need not be
//! asked for ([`Inventory::place`]); of those it stages the ids, and one kernel finds the rows of all tables at once.
//!
//! A set never changes. Each release has its own, which is built beside those in use; a batch names the set that its ids were
//! judged by, by address, in the staging buffer, and holds it until it is done. So a graph runs with whatever set its batch
//! names, and no batch sees two.

mod budget;
mod inventory;
mod set;
mod table;

use thiserror::Error;

pub use budget::{Fit, LOAD, Offer, bytes_per_id, fit, fixed_bytes};
pub use inventory::{Hits, Inventory, Place, Segment};
pub(crate) use set::source;
pub use set::{ResidentOptions, ResidentSet};
pub use table::{Key, KeyTable};

use super::CudaError;

/// Why rows are not resident.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResidentError {
    /// An id stands twice among those of a table.
    #[error("id {id} stands twice among the resident ids of table number {table}")]
    Twice {
        /// The number of the table.
        table: u32,
        /// The id.
        id: u64,
    },
    /// The hash table's runs are too long.
    #[error("{keys} resident ids collide far more than chance would have them: try another seed")]
    Crowded {
        /// How many ids there are.
        keys: usize,
    },
    /// What is offered does not fit together.
    #[error("the resident rows of {table}: {problem}")]
    Offer {
        /// The table.
        table: String,
        /// What is wrong.
        problem: String,
    },
    /// The set would take more than it may.
    #[error(
        "the resident rows would take {bytes} bytes of a budget of {budget_bytes}; without any rows it takes about a thousand and 272 for each table"
    )]
    Budget {
        /// What it would take.
        bytes: u64,
        /// What it may.
        budget_bytes: u64,
    },
    /// The device found fewer keys than it was given.
    #[error("the device lost {lost} of {keys} resident ids while they were inserted: a defect")]
    Lost {
        /// How many it lost.
        lost: u32,
        /// Of how many.
        keys: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}
