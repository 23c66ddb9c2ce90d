//! Repair of the durable state, by whoever can reach the metastore: copies of it, and putting one back.
//!
//! A backup is a file with the same header and checksum as the embedded metastore's.

use std::{path::Path, time::Duration};

use thiserror::Error;
use tidepool_cluster::Durable;
use tidepool_types::Epoch;
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    config::MetastoreConfig,
    durable,
    metastore::{
        Election, EtcdElection, FileMetastore, Metastore, MetastoreError, RealDisk, Versioned, decode, encode,
    },
};

/// For becoming the leader when nobody else leads.
const CAMPAIGN_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a backup was not made or put back.
#[derive(Debug, Error)]
pub enum MaintenanceError {
    /// The metastore cannot be read or written, or the backup is damaged.
    #[error(transparent)]
    Metastore(#[from] MetastoreError),
    /// There is no state to copy.
    #[error("there is no state in {place} yet")]
    Empty {
        /// The metastore.
        place: String,
    },
    /// Nobody leads, and yet this program cannot.
    #[error("no turn to write came within {} s: is another `tidepool metastore` command running?", CAMPAIGN_TIMEOUT.as_secs())]
    NoTurn,
    /// A number that would not make the state newer.
    #[error("--incarnation {asked}: at least {least}, for {least_of} has had the one before")]
    Incarnation {
        /// What was asked for.
        asked: u32,
        /// What would do.
        least: u32,
        /// "the backup" or "the state that is there".
        least_of: &'static str,
    },
    /// The task that writes failed.
    #[error("writing the state failed: {0}")]
    Internal(String),
}

/// What a document holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Of the document in its metastore.
    pub revision: u64,
    /// Of its map.
    pub epoch: Epoch,
    /// Nodes in its map.
    pub nodes: usize,
    /// Table versions in its map.
    pub tables: usize,
    /// Releases in its map.
    pub releases: usize,
    /// Bytes of the document.
    pub bytes: usize,
}

/// What a restore does, or would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The state as it is written down: the backup's, at an epoch of a new incarnation.
    pub contents: Contents,
    /// What is replaced; `None` when there is nothing, or nothing that can be read.
    pub replaced: Option<Contents>,
    /// Why what is there cannot be read, if it cannot.
    pub damage: Option<String>,
}

fn contents(revision: u64, durable: &Durable, bytes: usize) -> Contents {
    let map = &durable.map;
    Contents {
        revision,
        epoch: map.epoch,
        nodes: map.nodes.len(),
        tables: map.layouts.len(),
        releases: map.releases.len(),
        bytes,
    }
}

/// The state as a backup file holds it. Controllers may run meanwhile.
///
/// # Errors
/// [`MaintenanceError::Empty`]; [`MaintenanceError::Metastore`].
pub async fn backup(metastore: &MetastoreConfig) -> Result<(Vec<u8>, Contents), MaintenanceError> {
    let found = match metastore {
        MetastoreConfig::File { dir } => FileMetastore::peek(&RealDisk, dir)?,
        MetastoreConfig::Etcd(options) => EtcdElection::new(options, String::new())?.peek().await?,
    };
    let place = metastore.to_string();
    let Versioned { revision, document } =
        found.ok_or_else(|| MaintenanceError::Empty { place: place.clone() })?;
    let durable = durable::read(&document, &place)?;
    let contents = contents(revision, &durable, document.len());
    Ok((encode(revision, &document), contents))
}

/// Puts the state of a backup, read from `file`, in the place of the one that is there. No controller may lead.
///
/// The state gets an incarnation of its own, larger than that of the backup and of what is there (or the one
/// that is asked for), so that nodes and rankers take its maps for newer than all that they hold.
///
/// # Errors
/// [`MetastoreError::InUse`] or [`MetastoreError::Led`] when a controller runs; [`MetastoreError::Corrupt`] when
/// the backup is damaged; [`MaintenanceError`].
pub async fn restore(
    metastore: &MetastoreConfig,
    (file, bytes): (&Path, &[u8]),
    incarnation: Option<u32>,
    dry_run: bool,
) -> Result<Restored, MaintenanceError> {
    let place = file.display().to_string();
    let backup = decode(&place, bytes)?;
    let durable = durable::read(&backup.document, &place)?;
    match metastore {
        MetastoreConfig::File { dir } => {
            let (store, found) = FileMetastore::open_to_replace(Box::new(RealDisk), dir)?;
            replace(Box::new(store), found, durable, incarnation, dry_run)
        }
        MetastoreConfig::Etcd(options) => {
            let mut election = EtcdElection::new(options, "tidepool metastore restore".to_owned())?;
            if let Some(leader) = election.leader().await? {
                return Err(MetastoreError::Led { leader }.into());
            }
            if dry_run {
                let found = election.peek().await;
                if let Err(error @ MetastoreError::Etcd { .. }) = found {
                    return Err(error.into());
                }
                return plan(found, durable, incarnation).map(|(_, restored)| restored);
            }
            let elected = timeout(CAMPAIGN_TIMEOUT, election.campaign(&|_| {})).await;
            let elected = match elected {
                Ok(Ok(elected)) => elected,
                failed => {
                    // The leader's key may be ours although nobody has heard of it: nobody else could lead by then.
                    election.resign().await;
                    return Err(failed.map_or(MaintenanceError::NoTurn, |failed| match failed {
                        Err(error) => error.into(),
                        Ok(_) => MaintenanceError::NoTurn,
                    }));
                }
            };
            let written = spawn_blocking(move || {
                let mut store = elected.metastore;
                let found = store.load();
                if let Err(error @ MetastoreError::Etcd { .. }) = found {
                    return Err(error.into());
                }
                replace(store, found, durable, incarnation, false)
            });
            let written = written.await.map_err(|e| MaintenanceError::Internal(e.to_string()));
            election.resign().await;
            written?
        }
    }
}

/// It blocks.
fn replace(
    mut store: Box<dyn Metastore>,
    found: Result<Option<Versioned>, MetastoreError>,
    durable: Durable,
    incarnation: Option<u32>,
    dry_run: bool,
) -> Result<Restored, MaintenanceError> {
    let expected = found.as_ref().ok().and_then(Option::as_ref).map_or(0, |found| found.revision);
    let (durable, mut restored) = plan(found, durable, incarnation)?;
    if !dry_run {
        restored.contents.revision = store.store(expected, &durable::document(&durable)?)?;
    }
    Ok(restored)
}

/// The state to write, and what that means.
fn plan(
    found: Result<Option<Versioned>, MetastoreError>,
    mut durable: Durable,
    incarnation: Option<u32>,
) -> Result<(Durable, Restored), MaintenanceError> {
    let (mut replaced, mut damage, mut revision) = (None, None, 0);
    let mut least = (durable.map.epoch.incarnation().saturating_add(1), "the backup");
    match found.and_then(|found| {
        found.map(|found| Ok((durable::read(&found.document, "the state that is there")?, found))).transpose()
    }) {
        Ok(Some((there, found))) => {
            revision = found.revision;
            durable.term = durable.term.max(there.term);
            let after = there.map.epoch.incarnation().saturating_add(1);
            if after > least.0 {
                least = (after, "the state that is there");
            }
            replaced = Some(contents(found.revision, &there, found.document.len()));
        }
        Ok(None) => {}
        Err(error) => damage = Some(tidepool_runtime::error::chain(&error)),
    }
    let number = match incarnation {
        Some(asked) if asked < least.0 => {
            return Err(MaintenanceError::Incarnation { asked, least: least.0, least_of: least.1 });
        }
        Some(asked) => asked,
        None => least.0,
    };
    durable.map.epoch = Epoch(Epoch::before(number).0 + 1);
    let bytes = durable::document(&durable)?.len();
    let contents = contents(revision + 1, &durable, bytes);
    Ok((durable, Restored { contents, replaced, damage }))
}
