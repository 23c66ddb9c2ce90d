//! The durable state as a document: which versions of it this program reads, and the one that it writes.
//!
//! **Invariant:** a document of a version that is not known is refused, never read in part: what a newer program has
//! written down would be lost with the next change.

use serde::Deserialize;
use tidepool_cluster::Durable;
use tidepool_runtime::error::chain;

use crate::metastore::{Metastore, MetastoreError};

/// The oldest version that is read. Since then fields and states have come, which it merely does not have.
const OLDEST: u32 = 1;

/// Of a document of any version.
#[derive(Deserialize)]
struct Version {
    schema_version: u32,
}

/// The durable state as it is written down.
pub(crate) fn document(durable: &Durable) -> Result<Vec<u8>, MetastoreError> {
    serde_json::to_vec(durable).map_err(|e| MetastoreError::Corrupt {
        place: "the state of this process".to_owned(),
        problem: e.to_string(),
    })
}

/// Reads the durable state from a metastore, with its revision; none yet is revision 0.
pub(crate) fn recover(metastore: &mut dyn Metastore) -> Result<(u64, Option<Durable>), MetastoreError> {
    let Some(found) = metastore.load()? else { return Ok((0, None)) };
    Ok((found.revision, Some(read(&found.document, "the durable state")?)))
}

/// The durable state in a document that was read from `place`. It is of the version that is written from then on.
pub(crate) fn read(document: &[u8], place: &str) -> Result<Durable, MetastoreError> {
    let corrupt = |problem: String| MetastoreError::Corrupt { place: place.to_owned(), problem };
    // First: in another version the rest may be anything.
    let version: Version = serde_json::from_slice(document).map_err(|e| corrupt(e.to_string()))?;
    let (found, newest) = (version.schema_version, Durable::SCHEMA_VERSION);
    if !(OLDEST..=newest).contains(&found) {
        return Err(MetastoreError::Version { place: place.to_owned(), found, oldest: OLDEST, newest });
    }
    let mut durable: Durable = serde_json::from_slice(document).map_err(|e| corrupt(e.to_string()))?;
    durable.map.validate().map_err(|e| corrupt(chain(&e)))?;
    durable.schema_version = newest;
    Ok(durable)
}

#[cfg(test)]
mod tests {
    use tidepool_cluster::ReleaseState;

    use super::*;

    /// As the first program wrote it: before terms, quotas, shares of traffic, events, drains and pins.
    const VERSION_1: &str = include_str!("../tests/golden/state-v1.json");
    const VERSION_2: &str = include_str!("../tests/golden/state-v2.json");

    #[test]
    fn a_document_of_version_1_is_read_and_written_as_version_2() {
        let read_1 = read(VERSION_1.as_bytes(), "state").unwrap();
        let states: Vec<_> = read_1.map.releases.iter().map(|release| release.state).collect();
        assert_eq!(states, [ReleaseState::Previous, ReleaseState::Current, ReleaseState::Loading]);
        assert_eq!((read_1.term, read_1.map.epoch.0, read_1.map.nodes.len()), (0, 41, 2));
        assert_eq!(read_1.served.len(), 1);
        assert!(read_1.map.releases.iter().all(|release| !release.pinned) && read_1.map.traffic.is_empty());
        let written = document(&read_1).unwrap();
        let version: Version = serde_json::from_slice(&written).unwrap();
        assert_eq!(version.schema_version, 2);
        assert_eq!(read(&written, "state").unwrap(), read_1);
    }

    #[test]
    fn a_document_of_version_2_stays_as_it_is() {
        let read_2 = read(VERSION_2.as_bytes(), "state").unwrap();
        let states: Vec<_> =
            read_2.map.releases.iter().map(|release| (release.state, release.pinned)).collect();
        assert_eq!(
            states,
            [(ReleaseState::Retiring, false), (ReleaseState::Ready, true), (ReleaseState::Current, false)]
        );
        assert!(read_2.map.nodes.values().any(|node| node.draining));
        assert_eq!(String::from_utf8(document(&read_2).unwrap()).unwrap(), VERSION_2.trim_end());
    }

    #[test]
    fn another_version_is_refused_with_what_to_do_and_before_anything_else_is_read() {
        let newer = r#"{"schema_version":3,"of a program to come":[1,2]}"#;
        for (document, found) in [(newer, 3), (r#"{"schema_version":0}"#, 0)] {
            let refused = read(document.as_bytes(), "state.backup").unwrap_err();
            assert!(matches!(refused, MetastoreError::Version { found: version, .. } if version == found));
            let text = refused.to_string();
            assert!(text.contains(&format!("state.backup has schema version {found}")), "{text}");
            assert!(text.contains("reads 1 to 2") && text.contains("tidepool metastore restore"), "{text}");
        }
        for damaged in ["", "{}", r#"{"schema_version":2}"#, r#"{"schema_version":"2"}"#] {
            let refused = read(damaged.as_bytes(), "state").unwrap_err();
            assert!(matches!(refused, MetastoreError::Corrupt { .. }), "{refused}");
        }
    }
}
