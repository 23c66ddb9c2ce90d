//! What nobody refers to any more, and taking it away: table versions by the releases that pin them and by what is
//! served, releases by what the cluster knows, and what crashed writers have left. Nothing that is younger than a
//! grace time goes: it may be about to be published.

mod local;
mod remote;

use std::{collections::BTreeSet, fmt, time::Duration};

use serde::Serialize;
use tidepool_types::{Name, TableVersion};

use crate::{Store, error::StoreError};

/// What must stay. What releases in the store pin is found out there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Table versions that are served, or that a release of the cluster pins.
    pub tables: BTreeSet<TableVersion>,
    /// Model and release, of those that the cluster knows.
    pub releases: BTreeSet<(Name, Name)>,
}

/// Something that can be taken away as one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Artifact {
    /// A release.
    Release {
        /// Its model.
        model: Name,
        /// Its name.
        release: Name,
    },
    /// A table version.
    Table(TableVersion),
    /// What a writer has left that did not come to its end: a path within the store.
    Leftover(String),
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { model, release } => write!(f, "release {model}@{release}"),
            Self::Table(table) => write!(f, "table {table}"),
            Self::Leftover(path) => write!(f, "leftover {path}"),
        }
    }
}

/// One artifact of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub artifact: Artifact,
    /// Bytes of its files.
    pub bytes: u64,
    /// Since the newest of them was written.
    pub age: Duration,
    /// Of a release: the table versions that it pins; `None` when its manifest cannot be read.
    pub pins: Option<Vec<TableVersion>>,
}

/// What was taken away, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether it would be only.
    pub dry_run: bool,
    /// In the order in which it went.
    pub collected: Vec<Collected>,
    /// Bytes of all that.
    pub bytes: u64,
    /// Artifacts that stay because somebody refers to them.
    pub referenced: usize,
    /// Artifacts that nobody refers to, and that are too young.
    pub young: usize,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Which.
    pub artifact: Artifact,
    /// Bytes of its files.
    pub bytes: u64,
    /// Since the newest of them was written, in seconds.
    pub age_seconds: u64,
}

impl Store {
    /// Everything that is in it: releases, tables, leftovers.
    ///
    /// # Errors
    /// [`StoreError`] names what could not be read.
    pub async fn inventory(&self) -> Result<Vec<Found>, StoreError> {
        match self {
            Self::Directory(store) => {
                let at = store.root().to_owned();
                let store = store.clone();
                crate::remote::fetch::blocking(&at, move || local::inventory(&store)).await
            }
            Self::Remote(store) => remote::inventory(store).await,
        }
    }

    /// Takes away what nobody refers to and what is older than `grace`: releases, then tables, then leftovers. Of each
    /// the document that makes it visible goes first, so that whatever a crash leaves is a leftover. With `dry_run`
    /// nothing is touched.
    ///
    /// # Errors
    /// [`StoreError`] names what could not be read or taken away. A release that stays and cannot be read is one: what it
    /// pins is not known, so nothing is taken away.
    pub async fn collect(
        &self,
        references: &References,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Report, StoreError> {
        self.collect_some(references, grace, dry_run, Scope::All).await
    }

    /// The same for releases, and for the table versions that nobody but they needed: other tables and leftovers stay.
    ///
    /// # Errors
    /// As [`collect`](Self::collect).
    pub async fn collect_releases(
        &self,
        references: &References,
        grace: Duration,
        dry_run: bool,
    ) -> Result<Report, StoreError> {
        self.collect_some(references, grace, dry_run, Scope::Releases).await
    }

    async fn collect_some(
        &self,
        references: &References,
        grace: Duration,
        dry_run: bool,
        scope: Scope,
    ) -> Result<Report, StoreError> {
        let found = self.inventory().await?;
        let mut plan = plan(&found, references, grace, self)?;
        if scope == Scope::Releases {
            plan.keep_to_releases();
        }
        if dry_run {
            return Ok(plan.report(true));
        }
        let is_release = |found: &Found| matches!(found.artifact, Artifact::Release { .. });
        let (releases, mut others): (Vec<_>, Vec<_>) = plan.collected.into_iter().partition(is_release);
        for release in &releases {
            self.remove(&release.artifact).await?;
        }
        // What was published meanwhile pins tables too.
        let now = self::plan(&self.inventory().await?, references, grace, self)?;
        others.retain(|found| now.collected.iter().any(|still| still.artifact == found.artifact));
        for other in &others {
            self.remove(&other.artifact).await?;
        }
        plan.collected = releases.into_iter().chain(others).collect();
        Ok(plan.report(false))
    }

    async fn remove(&self, artifact: &Artifact) -> Result<(), StoreError> {
        match self {
            Self::Directory(store) => {
                let at = store.root().to_owned();
                let (store, artifact) = (store.clone(), artifact.clone());
                crate::remote::fetch::blocking(&at, move || local::remove(&store, &artifact)).await
            }
            Self::Remote(store) => remote::remove(store, artifact).await,
        }
    }

    fn path_of(&self, model: &Name, release: &Name) -> std::path::PathBuf {
        match self {
            Self::Directory(store) => store.release_dir(model, release),
            Self::Remote(store) => store.shown(&crate::remote::release_key(model, release)),
        }
    }
}

/// How much of what nobody refers to goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    /// Releases, and tables that one of them pins.
    Releases,
}

/// What is to go, in order, and how much stays.
struct Plan {
    collected: Vec<Found>,
    referenced: usize,
    young: usize,
}

impl Plan {
    /// Leaves alone what no release that goes has pinned.
    fn keep_to_releases(&mut self) {
        let pinned: BTreeSet<_> =
            self.collected.iter().filter_map(|found| found.pins.clone()).flatten().collect();
        self.collected.retain(|found| match &found.artifact {
            Artifact::Release { .. } => true,
            Artifact::Table(table) => pinned.contains(table),
            Artifact::Leftover(_) => false,
        });
    }

    fn report(&self, dry_run: bool) -> Report {
        let collected: Vec<_> = self.collected.iter().map(Collected::from).collect();
        let bytes = collected.iter().map(|c| c.bytes).sum();
        Report { dry_run, collected, bytes, referenced: self.referenced, young: self.young }
    }
}

impl From<&Found> for Collected {
    fn from(found: &Found) -> Self {
        Self { artifact: found.artifact.clone(), bytes: found.bytes, age_seconds: found.age.as_secs() }
    }
}

/// Decides; touches nothing.
fn plan(found: &[Found], references: &References, grace: Duration, of: &Store) -> Result<Plan, StoreError> {
    let mut tables = references.tables.clone();
    for found in found {
        let Artifact::Release { model, release } = &found.artifact else { continue };
        let stays = found.age < grace || references.releases.contains(&(model.clone(), release.clone()));
        if stays {
            let unknown = || StoreError::Missing {
                what: found.artifact.to_string(),
                path: of.path_of(model, release).join(crate::documents::RELEASE_MANIFEST),
            };
            tables.extend(found.pins.clone().ok_or_else(unknown)?);
        }
    }
    let mut plan = Plan { collected: Vec::new(), referenced: 0, young: 0 };
    for found in found {
        let referenced = match &found.artifact {
            Artifact::Release { model, release } => {
                references.releases.contains(&(model.clone(), release.clone()))
            }
            Artifact::Table(table) => tables.contains(table),
            Artifact::Leftover(_) => false,
        };
        if referenced {
            plan.referenced += 1;
        } else if found.age < grace {
            plan.young += 1;
        } else {
            plan.collected.push(found.clone());
        }
    }
    // Releases before the tables that they pin: the order of the enum.
    plan.collected.sort_by(|a, b| a.artifact.cmp(&b.artifact));
    Ok(plan)
}
