//! The place that a loaded release has for rows of its tables that lie on its device.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tidepool_client::Held;
use tidepool_dense::{CudaDevice, resident::ResidentSet};
use tidepool_types::TableSchema;

/// Where the resident rows of a release go. It is filled once at most, before the release serves: from then on its lookups
/// leave those rows out, and its batches say by their ids which ones they mean. Clones share it.
#[derive(Clone, Debug)]
pub struct ResidentPlace {
    device: Arc<CudaDevice>,
    cache: Option<PathBuf>,
    tables: Arc<[TableSchema]>,
    rows: Arc<OnceLock<ResidentRows>>,
}

/// What is in it. The set goes first: who is `held` holds it too, and lets it go where that may wait.
#[derive(Debug)]
pub(super) struct ResidentRows {
    pub(super) set: Arc<ResidentSet>,
    pub(super) held: Arc<dyn Held>,
    /// The number in the set of each of the place's tables.
    pub(super) numbers: Vec<Option<u32>>,
}

impl ResidentPlace {
    pub(super) fn new(device: Arc<CudaDevice>, cache: Option<PathBuf>, tables: Vec<TableSchema>) -> Self {
        Self { device, cache, tables: tables.into(), rows: Arc::default() }
    }

    /// The device that the release's model is on.
    #[must_use]
    pub fn device(&self) -> &Arc<CudaDevice> {
        &self.device
    }

    /// The folder of compiled kernels, if there is one.
    #[must_use]
    pub fn cache(&self) -> Option<&Path> {
        self.cache.as_deref()
    }

    /// The tables that the inputs of the model are made of: whose rows are of use here. Each version is there once.
    #[must_use]
    pub fn tables(&self) -> &[TableSchema] {
        &self.tables
    }

    /// Puts in what is resident: the set, and what says before a lookup which rows it has. False: something is here
    /// already, and it stays, since batches may have been made by it.
    pub fn put(&self, set: Arc<ResidentSet>, held: Arc<dyn Held>) -> bool {
        let numbers = self.tables.iter().map(|table| set.number(&table.table_version)).collect();
        self.rows.set(ResidentRows { set, held, numbers }).is_ok()
    }

    pub(super) fn rows(&self) -> Option<&ResidentRows> {
        self.rows.get()
    }
}
