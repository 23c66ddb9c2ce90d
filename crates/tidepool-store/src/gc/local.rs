//! Of a directory.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tidepool_types::{Name, TableVersion};

use super::{Artifact, Found};
use crate::{
    documents::{self, RELEASE_MANIFEST},
    error::StoreError,
    local::{ArtifactStore, read_document},
    publish::{TEMP_PREFIX, sync_dir},
};

/// Below which directory of the store; how many levels of names.
const KINDS: [&str; 2] = ["releases", "tables"];

pub(super) fn inventory(store: &ArtifactStore) -> Result<Vec<Found>, StoreError> {
    let mut all = Vec::new();
    for kind in KINDS {
        for first in entries(&store.root().join(kind))? {
            if is_left_over(&first) {
                all.push(found(store, &first, None)?);
                continue;
            }
            for second in entries(&first)? {
                let artifact = artifact(kind, &first, &second);
                let left_over = artifact.is_none() && is_left_over(&second);
                if artifact.is_some() || left_over {
                    all.push(found(store, &second, artifact)?);
                }
            }
        }
    }
    all.sort_by(|a, b| a.artifact.cmp(&b.artifact));
    Ok(all)
}

/// The directories in `dir`; none when it is not there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |e| StoreError::io("list", dir)(e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            all.push(path);
        }
    }
    Ok(all)
}

fn is_left_over(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMP_PREFIX))
}

fn name(path: &Path) -> Option<Name> {
    Name::new(path.file_name()?.to_str()?).ok()
}

/// What a directory of two names is.
fn artifact(kind: &str, first: &Path, second: &Path) -> Option<Artifact> {
    let (first, second) = (name(first)?, name(second)?);
    Some(match kind {
        "tables" => Artifact::Table(TableVersion { table: first, version: second }),
        _ => Artifact::Release { model: first, release: second },
    })
}

fn found(store: &ArtifactStore, dir: &Path, artifact: Option<Artifact>) -> Result<Found, StoreError> {
    let pins = match &artifact {
        Some(Artifact::Release { model, release }) => {
            let path = dir.join(RELEASE_MANIFEST);
            let read = |bytes: Vec<u8>| documents::release_manifest(&path, &bytes, (model, release)).ok();
            read_document(&path)?.and_then(read).map(|manifest| manifest.tables)
        }
        _ => None,
    };
    let (bytes, newest) = size(dir)?;
    let artifact = artifact.unwrap_or_else(|| {
        let relative = dir.strip_prefix(store.root()).unwrap_or(dir);
        Artifact::Leftover(relative.to_string_lossy().into_owned())
    });
    let age = SystemTime::now().duration_since(newest).unwrap_or(Duration::ZERO);
    Ok(Found { artifact, bytes, age, pins })
}

/// Bytes of the files below `dir`, and when the newest entry was written.
fn size(dir: &Path) -> Result<(u64, SystemTime), StoreError> {
    let failed = |e| StoreError::io("list", dir)(e);
    let modified = |path: &Path| {
        let meta = fs::symlink_metadata(path)?;
        Ok::<_, std::io::Error>((meta.len(), meta.is_dir(), meta.modified()?))
    };
    let (_, _, mut newest) = modified(dir).map_err(failed)?;
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let (len, is_dir, at) = modified(&path).map_err(failed)?;
        let (len, at) = if is_dir { size(&path)? } else { (len, at) };
        bytes += len;
        newest = newest.max(at);
    }
    Ok((bytes, newest))
}

/// Takes it away: out of sight by one rename, then file by file.
pub(super) fn remove(store: &ArtifactStore, artifact: &Artifact) -> Result<(), StoreError> {
    let dir = match artifact {
        Artifact::Table(table) => store.table_dir(table),
        Artifact::Release { model, release } => store.release_dir(model, release),
        Artifact::Leftover(path) => store.root().join(path),
    };
    let hidden = match artifact {
        Artifact::Leftover(_) => dir,
        _ => {
            let parent = dir.parent().unwrap_or(store.root());
            let name = dir.file_name().unwrap_or_default().to_string_lossy();
            let hidden = parent.join(format!("{TEMP_PREFIX}gc-{name}"));
            // Of a collection that was broken off.
            remove_tree(&hidden)?;
            fs::rename(&dir, &hidden).map_err(StoreError::io("rename", &dir))?;
            sync_dir(parent)?;
            hidden
        }
    };
    remove_tree(&hidden)
}

fn remove_tree(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(StoreError::io("remove", dir)(e)),
        _ => Ok(()),
    }
}
