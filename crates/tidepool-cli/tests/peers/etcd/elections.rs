//! One leads, the others take over, and who was deposed writes nothing.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tidepool_controller::metastore::{Election, EtcdElection, EtcdOptions, MetastoreError};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    server::Etcd,
    stores::{candidate, options, with},
};
use crate::command::DEADLINE;

/// Longer than a lease and what etcd takes to end it.
const TAKEN_OVER: Duration = Duration::from_secs(6);

#[tokio::test]
async fn etcd_elects_one_and_the_next_at_once_when_it_resigns() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let mut first = candidate(&etcd, "c-1:7400");
    let elected = first.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, b"one").unwrap()).await;

    let heard = Arc::new(Mutex::new(Vec::new()));
    let mut second = candidate(&etcd, "c-2:7400");
    let waits = tokio::spawn({
        let heard = heard.clone();
        async move {
            let elected = second.campaign(&move |leader| heard.lock().unwrap().push(leader)).await.unwrap();
            (second, elected)
        }
    });
    // It holds for longer than a lease, for it is renewed.
    let long = Instant::now() + Duration::from_secs(3);
    while Instant::now() < long {
        assert!(elected.lease.is_held() && !waits.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(heard.lock().unwrap().first(), Some(&Some("c-1:7400".to_owned())));
    let began = Instant::now();
    first.resign().await;
    assert!(!elected.lease.is_held());
    let (mut second, theirs) = timeout(DEADLINE, waits).await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "not only when the lease ends: {:?}", began.elapsed());

    // The first still has its handle: what it writes is refused, and it is told by whom.
    let (_, refused) = with(elected, move |store| store.store(revision, b"too late").unwrap_err()).await;
    assert!(matches!(refused, MetastoreError::Deposed { .. }), "{refused}");
    let (_, found) = with(theirs, |store| store.load().unwrap().unwrap()).await;
    assert_eq!(found.document, b"one");
    second.resign().await;
}

#[tokio::test]
async fn etcd_lets_another_lead_when_the_first_falls_silent() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let mut first = candidate(&etcd, "c-1:7400");
    let elected = first.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, &vec![1; 3 << 20]).unwrap()).await;
    // As a crash: nothing is renewed, nothing is given back.
    drop(first);
    let began = Instant::now();
    let mut second = candidate(&etcd, "c-2:7400");
    let theirs = timeout(TAKEN_OVER, second.campaign(&|_| {})).await.unwrap().unwrap();
    assert!(!elected.lease.is_held(), "the first knows by its own clock before anyone else can lead");
    assert!(began.elapsed() >= Duration::from_secs(1));
    let (_, refused) =
        with(elected, move |store| store.store(revision, &vec![2; 3 << 20]).unwrap_err()).await;
    assert!(matches!(refused, MetastoreError::Deposed { .. }), "{refused}");
    let (_, found) = with(theirs, |store| store.load().unwrap().unwrap()).await;
    assert_eq!(found.document, vec![1; 3 << 20]);
    second.resign().await;
}

#[tokio::test]
async fn etcd_fences_by_the_key_and_not_by_the_clock() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let mut first = candidate(&etcd, "c-1:7400");
    let elected = first.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, b"one").unwrap()).await;
    // Somebody takes the key while the first is sure of its lease.
    assert!(etcd.ctl(&["del", "/test/leader"]).0);
    assert!(etcd.ctl(&["put", "/test/leader", "c-9:7400"]).0);
    let (elected, refused) = with(elected, move |store| store.store(revision, b"two").unwrap_err()).await;
    match refused {
        MetastoreError::Deposed { leader } => {
            // Its own renewal may have noticed before.
            assert!(leader.is_none_or(|leader| leader == "c-9:7400"));
        }
        other => panic!("{other}"),
    }
    assert!(!elected.lease.is_held());
    first.resign().await;
    assert!(etcd.ctl(&["get", "/test/state"]).1.contains("one"));
}

/// `http://host:port` of a way to etcd on which nothing comes through once it is cut; connections stay open.
async fn way_to(etcd: &Etcd, cut: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let way = format!("http://{}", listener.local_addr().unwrap());
    let to = etcd.endpoint().trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let (to, cut) = (to.clone(), cut.clone());
            tokio::spawn(async move {
                if cut.is_cancelled() {
                    return std::future::pending().await;
                }
                let mut to = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut from, &mut to) => {}
                    () = cut.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    way
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_a_leader_that_is_cut_off_stops_before_another_leads() {
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(dir.path());
    let cut = CancellationToken::new();
    let endpoints = vec![way_to(&etcd, cut.clone()).await];
    let through = EtcdOptions { endpoints, ..options(&etcd) };
    let mut first = EtcdElection::new(&through, "c-1:7400".to_owned()).unwrap();
    let elected = first.campaign(&|_| {}).await.unwrap();
    let (elected, revision) = with(elected, |store| store.store(0, b"one").unwrap()).await;
    let lease = elected.lease.clone();
    let stops = tokio::spawn(async move {
        lease.lost().await;
        Instant::now()
    });
    let mut second = candidate(&etcd, "c-2:7400");
    let takes_over = tokio::spawn(async move {
        let theirs = second.campaign(&|_| {}).await.unwrap();
        (Instant::now(), second, theirs)
    });
    cut.cancel();
    let stopped = timeout(TAKEN_OVER, stops).await.unwrap().unwrap();
    let (leads, mut second, theirs) = timeout(TAKEN_OVER, takes_over).await.unwrap().unwrap();
    assert!(stopped < leads, "two led for {:?}", stopped - leads);
    let (_, refused) = with(elected, move |store| store.store(revision, b"two").unwrap_err()).await;
    assert!(matches!(refused, MetastoreError::Deposed { leader: None }), "{refused}");
    let (_, found) = with(theirs, |store| store.load().unwrap().unwrap()).await;
    assert_eq!(found.document, b"one");
    second.resign().await;
}
