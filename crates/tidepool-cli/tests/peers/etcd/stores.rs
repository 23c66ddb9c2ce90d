//! What every metastore must do: the same tests for the file and for etcd.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidepool_controller::metastore::{
    Elected, Election, EtcdElection, EtcdOptions, FileElection, Metastore, MetastoreError, Versioned,
};
use tokio::task::spawn_blocking;

use super::server::Etcd;
use crate::command::DEADLINE;

/// Longer than a request to etcd may be, and unlike at each place.
fn long(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| tidepool_types::mix64(seed.wrapping_add(at)) as u8).collect()
}

pub(super) fn options(etcd: &Etcd) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![etcd.endpoint()],
        tls: etcd.client_files(),
        prefix: "/test".into(),
        timeout: Duration::from_millis(500),
        lease: Duration::from_secs(2),
        compact_every: 100,
    }
}

pub(super) fn candidate(etcd: &Etcd, address: &str) -> EtcdElection {
    EtcdElection::new(&options(etcd), address.to_owned()).unwrap()
}

/// Does something with a metastore where waiting is allowed.
pub(super) async fn with<T: Send + 'static>(
    elected: Elected,
    act: impl FnOnce(&mut dyn Metastore) -> T + Send + 'static,
) -> (Elected, T) {
    let Elected { mut metastore, lease } = elected;
    let (metastore, done) = spawn_blocking(move || {
        let done = act(&mut *metastore);
        (metastore, done)
    })
    .await
    .unwrap();
    (Elected { metastore, lease }, done)
}

async fn a_document_is_replaced_by_its_revision(mut election: impl Election) {
    let elected = election.campaign(&|_| {}).await.unwrap();
    assert!(elected.lease.is_held());
    let (elected, ()) = with(elected, |store| {
        assert_eq!(store.load().unwrap(), None);
        assert!(matches!(store.store(7, b"x"), Err(MetastoreError::Conflict { expected: 7, found: 0, .. })));
        let first = store.store(0, b"one").unwrap();
        let second = store.store(first, b"two").unwrap();
        assert!(second > first);
        let stale = store.store(first, b"three");
        assert!(matches!(stale, Err(MetastoreError::Conflict { .. })), "{stale:?}");
        assert_eq!(store.load().unwrap(), Some(Versioned { revision: second, document: b"two".to_vec() }));
    })
    .await;
    drop(elected);
    election.resign().await;
    // Another controller goes on from there, with documents of any length.
    let elected = election.campaign(&|_| {}).await.unwrap();
    let (elected, last) = with(elected, |store| {
        let found = store.load().unwrap().unwrap();
        assert_eq!(found.document, b"two");
        let mut revision = found.revision;
        for bytes in [5 << 20, 3, (1 << 20) + 1, 1 << 20, 0, (7 << 20) + 5] {
            let document = long(bytes as u64, bytes);
            let next = store.store(revision, &document).unwrap();
            assert!(next > revision);
            assert_eq!(store.load().unwrap(), Some(Versioned { revision: next, document }));
            revision = next;
        }
        revision
    })
    .await;
    drop(elected);
    election.resign().await;
    let elected = election.campaign(&|_| {}).await.unwrap();
    let (_, found) = with(elected, |store| store.load().unwrap().unwrap()).await;
    let bytes = (7 << 20) + 5;
    assert_eq!(found, Versioned { revision: last, document: long(bytes as u64, bytes) });
    election.resign().await;
}

#[tokio::test]
async fn the_file_metastore_keeps_a_document() {
    let dir = TempDir::new().unwrap();
    a_document_is_replaced_by_its_revision(FileElection::new(dir.path().join("state"))).await;
}

#[tokio::test]
async fn etcd_keeps_a_document() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    a_document_is_replaced_by_its_revision(candidate(&etcd, "c-1:7400")).await;
    // Of the documents that were replaced no chunk is left.
    let chunks = etcd.keys("/test/chunks/");
    assert_eq!(chunks.len(), 8, "{chunks:?}");
    assert_eq!(etcd.keys("/test").len(), 9, "the state and its chunks; the leader has resigned");
}

#[tokio::test]
async fn etcd_damage_and_other_hands_are_named() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let mut election = candidate(&etcd, "c-1:7400");
    let elected = election.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, &long(1, 2 << 20)).unwrap()).await;
    let chunk = etcd.keys("/test/chunks/").remove(1);
    assert!(etcd.ctl(&["put", &chunk, "garbage"]).0);
    let (elected, error) = with(elected, |store| store.load().unwrap_err()).await;
    assert!(
        matches!(&error, MetastoreError::Corrupt { place, .. } if place.contains("/test/state")),
        "{error}"
    );
    assert!(etcd.ctl(&["del", &chunk]).0);
    let (elected, error) = with(elected, |store| store.load().unwrap_err()).await;
    assert!(error.to_string().contains("chunk 1"), "{error}");
    drop(elected);
    election.resign().await;

    let elected = election.campaign(&|_| {}).await.unwrap();
    let (elected, _) = with(elected, move |store| {
        store.load().unwrap_err();
        store.store(0, b"anew").unwrap()
    })
    .await;
    assert!(revision > 0);
    // Somebody writes past the controller: it does not write over that.
    assert!(etcd.ctl(&["put", "/test/state", "tidepool-metastore 1 revision=999 bytes=0"]).0);
    let (_, error) = with(elected, |store| store.store(1, b"more").unwrap_err()).await;
    assert!(matches!(error, MetastoreError::Corrupt { .. } | MetastoreError::Conflict { .. }), "{error}");
    election.resign().await;
}

#[tokio::test]
async fn etcd_forgets_old_documents() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let often = EtcdOptions { compact_every: 3, ..options(&etcd) };
    let mut election = EtcdElection::new(&often, "c-1:7400".to_owned()).unwrap();
    let elected = election.campaign(&|_| {}).await.unwrap();
    let first = etcd.revision();
    let (elected, _) = with(elected, |store| {
        let mut revision = 0;
        for at in 0..9u64 {
            revision = store.store(revision, &long(at, 2 << 20)).unwrap();
        }
    })
    .await;
    // It is done in the background.
    let until = Instant::now() + DEADLINE;
    while etcd.ctl(&["get", "/test/leader", "--rev", &first.to_string()]).0 {
        assert!(Instant::now() < until, "the first revision can still be read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (_, found) = with(elected, |store| store.load().unwrap().unwrap()).await;
    assert_eq!((found.revision, found.document), (9, long(8, 2 << 20)));
    let last = etcd.revision() - 1;
    assert!(etcd.ctl(&["get", "/test/leader", "--rev", &last.to_string()]).0, "what is new is kept");
    election.resign().await;
}
