//! The tables within this process, as a source of vectors: what a ranker would have without a network.

use std::{
    collections::HashMap,
    fmt,
    hint::black_box,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tidepool_client::{
    ClientError, FeatureLookup, FeatureRows, FeatureVectors, Held, LocalTables, LookupAccount, LookupOptions,
    LookupOutcome, LookupRequest, PutRow,
};
use tidepool_ranker::{
    InputRows,
    batch::{BatchModel, InputFrom, Looking, VectorSource},
};
use tidepool_store::ArtifactStore;
use tidepool_table::{Bags, Gathered, LayoutView, LookupScratch, Pooled};
use tidepool_types::{Pooling, TableVersion};

use super::tables::RankTable;
use crate::BenchError;

/// Tables that are open here.
pub(super) struct OwnTables {
    views: HashMap<TableVersion, LayoutView>,
    /// The versions in the order in which the next knows them.
    versions: Vec<TableVersion>,
    /// Makes of rows as they are stored what a ranker would be given.
    local: LocalTables,
    /// Of lookups that have ended; the next ones need not grow theirs.
    scratch: Mutex<Vec<(LookupScratch, Pooled)>>,
}

impl fmt::Debug for OwnTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnTables").field("tables", &self.views.len()).finish_non_exhaustive()
    }
}

impl OwnTables {
    pub(super) fn open(tables: &[RankTable], store: &ArtifactStore) -> Result<Self, BenchError> {
        let views = tables.iter().map(|table| Ok((table.table_version.clone(), table.open(store)?)));
        let views = views.collect::<Result<HashMap<_, _>, BenchError>>()?;
        let (versions, schemas) =
            views.iter().map(|(version, view)| (version.clone(), view.schema().clone())).unzip();
        Ok(Self { views, versions, local: LocalTables::new(schemas), scratch: Mutex::default() })
    }

    /// Gives the rows that there are of `ids`, by the place of their table among the versions.
    ///
    /// # Errors
    /// What the table says.
    fn find(&self, table: usize, ids: &[u64], put: &mut PutRow<'_>) -> Result<(), String> {
        let view = self.views.get(&self.versions[table]).ok_or("it is not open in this process")?;
        let ids: Vec<[u8; 8]> = ids.iter().map(|id| id.to_le_bytes()).collect();
        let mut gathered = Gathered::default();
        view.gather(&ids, &mut LookupScratch::default(), &mut gathered)
            .map_err(|error| format!("it does not answer in this process: {error}"))?;
        for (at, row) in gathered.rows.chunks_exact(view.kernel().row_bytes()).enumerate() {
            let bits = gathered.missing.bits.get(at / 8).copied().unwrap_or(0);
            if bits >> (at % 8) & 1 == 0 {
                put(at, row);
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`ClientError`]: a table that is not here, or one that does not answer.
    fn answer(&self, request: &LookupRequest) -> Result<LookupOutcome, ClientError> {
        let kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (mut scratch, mut pooled) = kept.unwrap_or_default();
        let mut outcome = LookupOutcome::default();
        for (at, feature) in request.features.iter().enumerate() {
            outcome.rows_requested += feature.ids.len() as u64;
            let vectors = self.pool(feature, &mut scratch, &mut pooled).map_err(|problem| {
                ClientError::Invalid { feature: at, table: feature.table_version.clone(), problem }
            })?;
            outcome.features.push(vectors);
        }
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner).push((scratch, pooled));
        Ok(outcome)
    }

    /// How long one thread takes to look up the rows of a request.
    ///
    /// # Errors
    /// [`BenchError`]: it cannot.
    pub(super) fn time(&self, model: &BatchModel, rows: Vec<InputRows>) -> Result<Duration, BenchError> {
        let asked = model.inputs.iter().zip(rows).filter_map(|(input, rows)| match (&input.from, rows) {
            (InputFrom::Bags(table_version, pooling), InputRows::Bags { ids, lengths, weights }) => {
                let (table_version, pooling) = (table_version.clone(), *pooling);
                Some(FeatureLookup { table_version, pooling, ids, lengths, weights })
            }
            _ => None,
        });
        let request = LookupRequest { request_id: String::new(), features: asked.collect() };
        let began = Instant::now();
        black_box(self.answer(&request)).map_err(|error| BenchError::Table(error.to_string()))?;
        Ok(began.elapsed())
    }

    /// Pools a feature.
    fn pool(
        &self,
        feature: &FeatureLookup,
        scratch: &mut LookupScratch,
        out: &mut Pooled,
    ) -> Result<FeatureVectors, String> {
        let bags = feature.lengths.as_ref().map_or(feature.ids.len(), Vec::len);
        let name = &feature.table_version;
        let view = self.views.get(name).ok_or("it is not open in this process")?;
        let dim = view.schema().vector_dim();
        let ids: Vec<[u8; 8]> = feature.ids.iter().map(|id| id.to_le_bytes()).collect();
        let lengths: Vec<[u8; 4]> = match &feature.lengths {
            Some(lengths) => lengths.iter().map(|length| length.to_le_bytes()).collect(),
            None => vec![1u32.to_le_bytes(); bags],
        };
        let asked = Bags { members: None, lengths: &lengths, weights: None };
        view.pool(&ids, asked, scratch, out)
            .map_err(|error| format!("it does not answer in this process: {error}"))?;
        let (mut values, mut found) = (vec![0.0; bags * dim as usize], vec![0; bags]);
        for (value, sum) in values.iter_mut().zip(out.sums.as_chunks().0) {
            *value = f32::from_le_bytes(*sum);
        }
        for (found, count) in found.iter_mut().zip(out.counts.as_chunks().0) {
            *found = u32::from_le_bytes(*count);
        }
        if feature.pooling == Pooling::Mean {
            for (vector, found) in values.chunks_exact_mut(dim.max(1) as usize).zip(&found) {
                let count = (*found).max(1) as f32;
                vector.iter_mut().for_each(|value| *value /= count);
            }
        }
        let defaulted: Vec<u32> =
            (0..).zip(&found).filter(|(_, found)| **found == 0).map(|(at, _)| at).collect();
        Ok(FeatureVectors {
            table_version: feature.table_version.clone(),
            sequence: 0,
            dim,
            values,
            missing_ids: (feature.ids.len() as u32).saturating_sub(found.iter().sum()),
            found,
            unavailable_ids: 0,
            unavailable: Vec::new(),
            defaulted_bags: defaulted.len() as u32,
            defaulted,
        })
    }
}

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
        Box::pin(async move { self.answer(request) })
    }

    fn look_up_rows<'a>(
        &'a self,
        request: &'a LookupRequest,
        _: &'a LookupOptions,
        held: Option<&'a dyn Held>,
        _: Option<&'a LookupAccount>,
    ) -> Looking<'a, FeatureRows> {
        Box::pin(async move {
            self.local.look_up_rows(request, held, |table, ids, put| self.find(table, ids, put))
        })
    }
}
