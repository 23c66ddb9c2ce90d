//! The matrix: dense models down, tables across. A cell is a dense model with tables: its own, those of another release, or
//! its own but for one of another release.

use std::{collections::BTreeMap, sync::Arc};

use tidepool_dense::DenseModel;
use tidepool_ranker::offline::OfflineModel;
use tidepool_runtime::{error::chain, pool::CpuPool};
use tidepool_store::{ArtifactStore, ReleaseFiles};
use tidepool_types::{ModelSpec, Name, TableVersion};

use crate::{
    SkewError,
    tables::{OpenTable, OwnTables, open},
};

/// Which releases are judged, and with whose tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The model.
    pub model: Name,
    /// Whose dense models are judged; each is tried with the tables of the others too.
    pub releases: Vec<Name>,
    /// Releases whose tables are tried with all of those.
    pub tables_of: Vec<Name>,
    /// Also a single table of another release, the rest being the dense model's own.
    pub each_table: bool,
}

/// A release that is judged.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) release: Name,
    pub(crate) spec: Arc<ModelSpec>,
    /// Its own tables.
    pub(crate) tables: Vec<TableVersion>,
    /// The first is with its own tables.
    pub(crate) cells: Vec<Cell>,
}

/// A dense model with tables.
#[derive(Debug)]
pub(crate) struct Cell {
    /// Whose tables.
    pub(crate) tables_of: Name,
    /// The one that is of `tables_of`; None: all are.
    pub(crate) only: Option<Name>,
    pub(crate) tables: Vec<TableVersion>,
    /// What runs it, or why nothing can.
    pub(crate) runs: Result<Arc<Runs>, String>,
}

/// What runs a cell.
#[derive(Debug)]
pub(crate) struct Runs {
    pub(crate) model: OfflineModel,
    pub(crate) source: Arc<OwnTables>,
}

/// Opens releases and tables, each table once.
pub(crate) struct Opener<'a> {
    pub(crate) store: &'a ArtifactStore,
    pub(crate) pool: (&'a CpuPool, usize),
    open: BTreeMap<TableVersion, Result<OpenTable, String>>,
}

impl<'a> Opener<'a> {
    pub(crate) fn new(store: &'a ArtifactStore, pool: (&'a CpuPool, usize)) -> Self {
        Self { store, pool, open: BTreeMap::new() }
    }

    /// Everything that is to be run.
    ///
    /// # Errors
    /// [`SkewError`] when a release cannot be run with its own tables. With those of others it may be that it cannot: its
    /// cell says why.
    pub(crate) fn open(
        &mut self,
        plan: &Plan,
        progress: &mut dyn FnMut(&TableVersion),
    ) -> Result<Vec<Judged>, SkewError> {
        let mut files = BTreeMap::new();
        let all = || plan.releases.iter().chain(&plan.tables_of);
        for release in all() {
            let read = self.store.release(&plan.model, release).map_err(|source| SkewError::Release {
                model: plan.model.clone(),
                release: release.clone(),
                source: Box::new(source),
            })?;
            if files.insert(release.clone(), read).is_some() {
                return Err(SkewError::Twice(release.clone()));
            }
        }
        let others: Vec<&ReleaseFiles> = all().map(|release| &files[release]).collect();
        plan.releases
            .iter()
            .map(|release| self.judged(&files[release], &others, plan.each_table, progress))
            .collect()
    }

    fn judged(
        &mut self,
        files: &ReleaseFiles,
        others: &[&ReleaseFiles],
        each_table: bool,
        progress: &mut dyn FnMut(&TableVersion),
    ) -> Result<Judged, SkewError> {
        let own = &files.manifest;
        let release = own.release.clone();
        for version in &own.tables {
            progress(version);
            if !self.open.contains_key(version) {
                self.open.insert(version.clone(), Ok(open(self.store, version)?));
            }
        }
        let dim_of = |table: &Name| {
            let view = self.open.get(own.version_of(table)?)?.as_ref().ok()?;
            Some(view.schema().vector_dim())
        };
        let dense = DenseModel::load(&files.onnx_path, &files.spec, &dim_of)
            .map_err(|source| SkewError::Dense { release: release.clone(), source: Box::new(source) })?;
        let contract = (Arc::new(files.spec.clone()), release.clone());
        let dense = Arc::new(dense);
        let runs = self.runs(&contract, &dense, &own.tables);
        let runs = runs.map_err(|source| SkewError::Offline { release: release.clone(), source })?;
        let matched = Cell {
            tables_of: release.clone(),
            only: None,
            tables: own.tables.clone(),
            runs: Ok(Arc::new(runs)),
        };
        let mut cells = vec![matched];
        for other in others.iter().filter(|other| other.manifest.release != release) {
            for (only, mixed) in mixtures(files, other, each_table) {
                let (tables, runs) = match mixed {
                    Ok(tables) => {
                        let runs = self.fits(&own.tables, &tables, progress).and_then(|()| {
                            let runs = self.runs(&contract, &dense, &tables);
                            runs.map(Arc::new).map_err(|error| chain(&error))
                        });
                        (tables, runs)
                    }
                    Err(problem) => (Vec::new(), Err(problem)),
                };
                cells.push(Cell { tables_of: other.manifest.release.clone(), only, tables, runs });
            }
        }
        Ok(Judged { release, spec: contract.0, tables: own.tables.clone(), cells })
    }

    /// Whether the vectors of `tables` have the widths of `own`, which are those that the graph wants.
    fn fits(
        &mut self,
        own: &[TableVersion],
        tables: &[TableVersion],
        progress: &mut dyn FnMut(&TableVersion),
    ) -> Result<(), String> {
        for (own, version) in own.iter().zip(tables) {
            progress(version);
            let store = self.store;
            let opened = self.open.entry(version.clone());
            let opened = opened.or_insert_with(|| open(store, version).map_err(|error| chain(&error)));
            let found = opened.as_ref().map_err(Clone::clone)?.schema().vector_dim();
            let wanted = self.open[own].as_ref().map_err(Clone::clone)?.schema().vector_dim();
            if found != wanted {
                return Err(format!(
                    "vectors of table {version} have {found} numbers, the model wants {wanted}"
                ));
            }
        }
        Ok(())
    }

    fn runs(
        &self,
        (spec, release): &(Arc<ModelSpec>, Name),
        dense: &Arc<DenseModel>,
        tables: &[TableVersion],
    ) -> Result<Runs, tidepool_ranker::offline::OfflineError> {
        let views = tables.iter().filter_map(|version| self.open.get(version)?.as_ref().ok().cloned());
        let source = Arc::new(OwnTables::new(views.collect()));
        let model = OfflineModel::new((spec, release), dense.clone(), tables, source.clone(), self.pool)?;
        Ok(Runs { model, source })
    }
}

/// The one table that is of another release, or none if all are; and the tables, or why there are none.
type Mixture = (Option<Name>, Result<Vec<TableVersion>, String>);

/// The tables of a release with those of another in their places: all of them, and one at a time.
fn mixtures(own: &ReleaseFiles, other: &ReleaseFiles, each_table: bool) -> Vec<Mixture> {
    let pinned = &own.manifest.tables;
    let of_other = |version: &TableVersion| {
        let there = other.manifest.version_of(&version.table).cloned();
        there.ok_or_else(|| format!("release {} has no table {}", other.manifest.release, version.table))
    };
    let mut mixtures = vec![(None, pinned.iter().map(of_other).collect())];
    if each_table && pinned.len() > 1 {
        for (at, version) in pinned.iter().enumerate() {
            let replaced = of_other(version);
            if replaced.as_ref() == Ok(version) {
                continue;
            }
            let mixed = replaced.map(|replaced| {
                let mut tables = pinned.clone();
                tables[at] = replaced;
                tables
            });
            mixtures.push((Some(version.table.clone()), mixed));
        }
    }
    mixtures
}
