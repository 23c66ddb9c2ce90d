//! Tables within this process, as a source of vectors for the ranker's batches; what each was asked for is counted.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tidepool_client::{
    ClientError, Counted, FeatureRows, Held, LocalTables, LookupAccount, LookupOptions, LookupOutcome,
    LookupRequest, PutRow,
};
use tidepool_kernels::RowKernel;
use tidepool_ranker::batch::{Looking, VectorSource};
use tidepool_store::ArtifactStore;
use tidepool_table::{Gathered, LayoutReader, LayoutView, LookupScratch};
use tidepool_types::{Name, TableVersion};

use crate::SkewError;

/// A table, open and verified.
pub(crate) type OpenTable = Arc<LayoutView>;

/// Opens a version and looks at every block of it, as a node does before it serves it.
///
/// # Errors
/// [`SkewError::Open`] or [`SkewError::Damaged`].
pub(crate) fn open(store: &ArtifactStore, version: &TableVersion) -> Result<OpenTable, SkewError> {
    let reader = LayoutReader::open(&store.table_dir(version))
        .map_err(|source| SkewError::Open { table: version.clone(), source: Box::new(source) })?;
    reader
        .verify()
        .map_err(|source| SkewError::Damaged { table: version.clone(), source: Box::new(source) })?;
    let schema = &reader.manifest().schema;
    let kernel = RowKernel::new(schema.format, schema.dim);
    Ok(Arc::new(reader.into_view(kernel)))
}

/// Tables that stand in for a cluster.
#[derive(Debug)]
pub(crate) struct OwnTables {
    views: Vec<OpenTable>,
    local: LocalTables,
    counts: Mutex<BTreeMap<Name, Asked>>,
}

/// Ids that a table was asked for, repetitions counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) ids: u64,
    pub(crate) missing: u64,
}

impl OwnTables {
    pub(crate) fn new(views: Vec<OpenTable>) -> Self {
        let local = LocalTables::new(views.iter().map(|view| view.schema().clone()).collect());
        Self { views, local, counts: Mutex::default() }
    }

    /// By table.
    pub(crate) fn counts(&self) -> BTreeMap<Name, Asked> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a lookup of vectors or of rows: `look_up` is the one or the other, and is given what finds rows.
    fn answer<T: Counted>(
        &self,
        request: &LookupRequest,
        look_up: impl FnOnce(&mut FindRows<'_>) -> Result<LookupOutcome<T>, ClientError>,
    ) -> Result<LookupOutcome<T>, ClientError> {
        let (mut scratch, mut gathered) = (LookupScratch::default(), Gathered::default());
        let outcome = look_up(&mut |table, ids, put| {
            let view = &self.views[table];
            let packed: Vec<[u8; 8]> = ids.iter().map(|id| id.to_le_bytes()).collect();
            // Every partition should be held: an id that is refused is not one that the table does not have.
            view.gather(&packed, &mut scratch, &mut gathered).map_err(|error| error.to_string())?;
            let missing = &gathered.missing.bits;
            let is_missing = |at: usize| missing.get(at / 8).is_some_and(|bits| bits >> (at % 8) & 1 == 1);
            for (at, row) in gathered.rows.chunks_exact(view.kernel().row_bytes()).enumerate() {
                if !is_missing(at) {
                    put(at, row);
                }
            }
            Ok(())
        })?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (feature, found) in request.features.iter().zip(&outcome.features) {
            let asked = counts.entry(feature.table_version.table.clone()).or_default();
            asked.ids += feature.ids.len() as u64;
            asked.missing += u64::from(found.counts().missing_ids);
        }
        drop(counts);
        Ok(outcome)
    }
}

/// Gives the rows that there are of the ids of a table, by its place among the tables.
type FindRows<'a> = dyn FnMut(usize, &[u64], &mut PutRow<'_>) -> Result<(), String> + 'a;

impl VectorSource for OwnTables {
    fn default_options(&self) -> LookupOptions {
        LookupOptions::default()
    }

    fn look_up<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a> {
        Box::pin(async move { self.answer(request, |find| self.local.look_up(request, find)) })
    }

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        Box::pin(async move { self.answer(request, |find| self.local.look_up_rows(request, held, find)) })
    }
}
