//! Of an object store.

use std::{collections::BTreeMap, time::Duration};

use object_store::ObjectMeta;
use tidepool_types::{Name, TableVersion, paths};

use super::{Artifact, Found};
use crate::{
    documents::RELEASE_MANIFEST,
    error::StoreError,
    remote::{CLAIM, RemoteStore, release_key, table_key},
};

/// The objects below one name.
#[derive(Default)]
struct Group {
    objects: Vec<(String, ObjectMeta)>,
    artifact: Option<Artifact>,
}

pub(super) async fn inventory(store: &RemoteStore) -> Result<Vec<Found>, StoreError> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for kind in ["releases", "tables"] {
        for (relative, meta) in store.objects_below(kind).await? {
            let parts: Vec<&str> = relative.split('/').collect();
            let [_, first, second, below @ ..] = &parts[..] else { continue };
            let group = groups.entry(format!("{kind}/{first}/{second}")).or_default();
            let document = if kind == "tables" { paths::MANIFEST_FILE } else { RELEASE_MANIFEST };
            if below == [document]
                && let (Ok(first), Ok(second)) = (first.parse::<Name>(), second.parse::<Name>())
            {
                group.artifact = Some(match kind {
                    "tables" => Artifact::Table(TableVersion { table: first, version: second }),
                    _ => Artifact::Release { model: first, release: second },
                });
            }
            group.objects.push((relative, meta));
        }
    }
    let mut all = Vec::new();
    for (dir, group) in groups {
        let pins = match &group.artifact {
            // One that is gone by now, or that does not parse: not known.
            Some(Artifact::Release { model, release }) => {
                match store.release_document(model, release).await {
                    Ok((manifest, _)) => Some(manifest.tables),
                    Err(error @ (StoreError::Unreachable { .. } | StoreError::Denied { .. })) => {
                        return Err(error);
                    }
                    Err(_) => None,
                }
            }
            _ => None,
        };
        let newest = group.objects.iter().map(|(_, meta)| meta.last_modified.timestamp_millis()).max();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let newest = Duration::from_millis(u64::try_from(newest.unwrap_or(0)).unwrap_or(0));
        all.push(Found {
            artifact: group.artifact.unwrap_or(Artifact::Leftover(dir)),
            bytes: group.objects.iter().map(|(_, meta)| meta.size).sum(),
            age: now.saturating_sub(newest),
            pins,
        });
    }
    all.sort_by(|a, b| a.artifact.cmp(&b.artifact));
    Ok(all)
}

/// Takes it away: the document that makes it visible first, a claim last.
pub(super) async fn remove(store: &RemoteStore, artifact: &Artifact) -> Result<(), StoreError> {
    let (dir, document) = match artifact {
        Artifact::Table(table) => (table_key(table), Some(paths::MANIFEST_FILE)),
        Artifact::Release { model, release } => (release_key(model, release), Some(RELEASE_MANIFEST)),
        Artifact::Leftover(dir) => (dir.clone(), None),
    };
    if let Some(document) = document {
        store.delete(&format!("{dir}/{document}")).await?;
    }
    let mut objects = store.objects_below(&dir).await?;
    objects.sort_by_key(|(relative, _)| relative.ends_with(CLAIM));
    for (relative, _) in objects {
        store.delete(&relative).await?;
    }
    Ok(())
}
