//! A store in an object store: what is pushed is fetched, whatever happens on the way, and nobody sees half of it.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use object_store::{ObjectStoreExt, path::Path as Key};
use tempfile::TempDir;
use tidepool_store::{
    ArtifactStore, Artifacts, FetchEvent, Fetcher, NewRelease, RemoteStore, Retries, StoreError, Uploaded,
};
use tidepool_types::{ErrorCode, PartitionIndex, TableManifest};

use crate::{Fixture, ONNX, contract, faulty::Faulty, name, table};

/// Ranges of the files of these tests, which have 100 and 101 bytes.
const RANGE_BYTES: u64 = 10;

/// A table on an object store, and a place for what is fetched from it.
pub(crate) struct Cloud {
    pub(crate) fixture: Fixture,
    pub(crate) objects: Arc<Faulty>,
    pub(crate) remote: RemoteStore,
    pub(crate) dir: TempDir,
    came: Arc<AtomicU64>,
    resumed: Arc<AtomicU64>,
    retried: Arc<AtomicU64>,
}

impl Cloud {
    /// Both tables of the fixture, with bytes that tell where they are.
    pub(crate) async fn new() -> Self {
        let fixture = Fixture::new();
        for version in fixture.store.list_tables().unwrap() {
            let (manifest, _) = fixture.store.table_manifest(&version).unwrap();
            for file in &manifest.files {
                let path = fixture.store.partition_file(&manifest, file.partition).unwrap();
                let byte = |at: u64| (at * 7 + u64::from(file.partition.0)) as u8;
                fs::write(path, (0..file.file_bytes).map(byte).collect::<Vec<_>>()).unwrap();
            }
        }
        let objects = Faulty::new();
        let retries =
            Retries { attempts: 4, first: Duration::from_millis(1), longest: Duration::from_millis(2) };
        let remote =
            RemoteStore::over(objects.clone(), "ads/prod", "s3://bucket/ads/prod").with_retries(retries);
        let cloud = Self {
            fixture,
            objects,
            remote,
            dir: tempfile::tempdir().unwrap(),
            came: Arc::default(),
            resumed: Arc::default(),
            retried: Arc::default(),
        };
        for version in cloud.fixture.store.list_tables().unwrap() {
            let pushed = cloud.remote.push_table(&cloud.fixture.store, &version, &|_| ()).await.unwrap();
            assert_eq!(pushed, Uploaded::Now);
        }
        cloud
    }

    async fn manifest(&self) -> TableManifest {
        self.remote.table_manifest(&table("user", "v1")).await.unwrap().0
    }

    fn fetcher(&self) -> Fetcher {
        let (came, resumed, retried) = (self.came.clone(), self.resumed.clone(), self.retried.clone());
        Fetcher::new(2, None).with_range_bytes(RANGE_BYTES).noting(move |event| {
            match event {
                FetchEvent::Came(bytes) => came.fetch_add(bytes, Ordering::SeqCst),
                FetchEvent::Resumed(bytes) => resumed.fetch_add(bytes, Ordering::SeqCst),
                FetchEvent::Retried => retried.fetch_add(1, Ordering::SeqCst),
            };
        })
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("layout-2/part-00001.tide")
    }

    /// Fetches partition 1, of 101 bytes, and keeps it.
    async fn fetch(&self) -> Result<(), StoreError> {
        let manifest = self.manifest().await;
        self.fetch_listed(&manifest).await
    }

    async fn fetch_listed(&self, manifest: &TableManifest) -> Result<(), StoreError> {
        let fetcher = self.fetcher();
        let fetched =
            self.remote.fetch_partition(manifest, PartitionIndex(1), &self.target(), &fetcher).await?;
        assert!(!self.target().exists(), "it has no name before somebody has looked at it");
        fetched.keep()
    }

    fn original(&self) -> Vec<u8> {
        let version = table("user", "v1");
        let (manifest, _) = self.fixture.store.table_manifest(&version).unwrap();
        fs::read(self.fixture.store.partition_file(&manifest, PartitionIndex(1)).unwrap()).unwrap()
    }

    fn key(&self, below: &str) -> Key {
        Key::parse(format!("ads/prod/{below}")).unwrap()
    }

    /// Puts another object in the place of partition 1.
    async fn replace(&self, bytes: Vec<u8>) {
        let key = self.key("tables/user/v1/layout-2/part-00001.tide");
        self.objects.inner.put(&key, bytes.into()).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_pushed_is_fetched_in_ranges_and_nothing_stays_beside_it() {
    let cloud = Cloud::new().await;
    assert_eq!(cloud.remote.list_tables().await.unwrap(), [table("user", "v1"), table("表", "nœud-1")]);
    let local = cloud.fixture.store.table_manifest(&table("user", "v1")).unwrap();
    assert_eq!(cloud.remote.table_manifest(&table("user", "v1")).await.unwrap(), local);
    cloud.fetch().await.unwrap();
    assert_eq!(fs::read(cloud.target()).unwrap(), cloud.original());
    assert_eq!(fs::read_dir(cloud.target().parent().unwrap()).unwrap().count(), 1);
    assert_eq!(cloud.came.load(Ordering::SeqCst), 101);
}

#[tokio::test]
async fn a_store_that_stops_midway_is_an_error_and_the_next_fetch_goes_on_from_there() {
    let cloud = Cloud::new().await;
    let manifest = cloud.manifest().await;
    cloud.objects.down_after(6);
    let error = cloud.fetch_listed(&manifest).await.unwrap_err();
    let StoreError::Unreachable { path, attempts, .. } = &error else { panic!("{error:?}") };
    assert_eq!(
        (path.to_str().unwrap(), *attempts),
        ("s3://bucket/ads/prod/tables/user/v1/layout-2/part-00001.tide", 4)
    );
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(cloud.retried.load(Ordering::SeqCst) >= 3);
    assert!(!cloud.target().exists());

    cloud.objects.set_down(false);
    cloud.objects.served_bytes.store(0, Ordering::SeqCst);
    cloud.fetch_listed(&manifest).await.unwrap();
    assert_eq!(fs::read(cloud.target()).unwrap(), cloud.original());
    let again = cloud.objects.served_bytes.load(Ordering::SeqCst);
    assert!(again <= 101 - 5 * RANGE_BYTES, "{again} bytes came again");
    assert_eq!(again + cloud.resumed.load(Ordering::SeqCst), 101);
}

#[tokio::test]
async fn failures_that_pass_and_answers_that_end_early_are_tried_again() {
    let cloud = Cloud::new().await;
    let manifest = cloud.manifest().await;
    cloud.objects.cuts.store(3, Ordering::SeqCst);
    cloud.objects.failures.store(2, Ordering::SeqCst);
    cloud.fetch_listed(&manifest).await.unwrap();
    assert_eq!(fs::read(cloud.target()).unwrap(), cloud.original());
    assert!(cloud.retried.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn an_object_that_is_replaced_midway_is_noticed_and_then_fetched_anew() {
    let cloud = Cloud::new().await;
    let manifest = cloud.manifest().await;
    let (objects, key) = (cloud.objects.clone(), cloud.key("tables/user/v1/layout-2/part-00001.tide"));
    cloud.objects.after_ranges(4, move || {
        objects.inner.put(&key, vec![9; 101].into()).now_or_never().unwrap().unwrap();
    });
    let error = cloud.fetch_listed(&manifest).await.unwrap_err();
    assert!(matches!(&error, StoreError::Changed { path } if path.ends_with("part-00001.tide")), "{error:?}");
    cloud.fetch_listed(&manifest).await.unwrap();
    assert_eq!(fs::read(cloud.target()).unwrap(), [9; 101], "nothing of the old one is in it");
}

#[tokio::test]
async fn what_is_missing_short_or_forbidden_is_said_by_name() {
    let cloud = Cloud::new().await;
    let manifest = cloud.manifest().await;
    cloud.replace(vec![1; 50]).await;
    let error = cloud.fetch_listed(&manifest).await.unwrap_err();
    assert!(matches!(&error, StoreError::Size { expected: 101, found: 50, .. }), "{error:?}");
    assert!(
        error.to_string().contains("s3://bucket/ads/prod/tables/user/v1/layout-2/part-00001.tide"),
        "{error}"
    );

    let key = cloud.key("tables/user/v1/layout-2/part-00001.tide");
    cloud.objects.inner.delete(&key).await.unwrap();
    let error = cloud.fetch_listed(&manifest).await.unwrap_err();
    assert!(matches!(&error, StoreError::Missing { .. }), "{error:?}");
    assert_eq!(error.code(), ErrorCode::Corrupt);

    cloud.objects.denies.store(true, Ordering::SeqCst);
    let error = cloud.fetch_listed(&manifest).await.unwrap_err();
    let StoreError::Denied { problem, .. } = &error else { panic!("{error:?}") };
    assert_eq!(problem, "AccessDenied: no");
    assert_eq!(cloud.retried.load(Ordering::SeqCst), 0, "that is not tried again");

    let error = cloud.remote.table_manifest(&table("user", "v9")).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }));
    cloud.objects.denies.store(false, Ordering::SeqCst);
    let error = cloud.remote.table_manifest(&table("user", "v9")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    cloud.objects.nowhere.store(true, Ordering::SeqCst);
    let error = cloud.remote.list_tables().await.unwrap_err();
    assert!(matches!(&error, StoreError::NoStore { path } if path.starts_with("s3://bucket")), "{error:?}");
}

#[tokio::test]
async fn a_throttle_holds_for_all_ranges_together() {
    let cloud = Cloud::new().await;
    let manifest = cloud.manifest().await;
    let fetcher = Fetcher::new(8, Some(200)).with_range_bytes(RANGE_BYTES);
    let begun = Instant::now();
    let target = cloud.target();
    cloud.remote.fetch_partition(&manifest, PartitionIndex(1), &target, &fetcher).await.unwrap();
    // 101 bytes at 200 a second, less the burst.
    assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nothing_shows_before_it_is_whole_and_an_upload_goes_on_where_one_died() {
    let cloud = Cloud::new().await;
    let changes = cloud.objects.changes.lock().unwrap().clone();
    let of_user: Vec<_> = changes.iter().filter(|c| c.contains("/user/")).map(String::as_str).collect();
    let dir = "ads/prod/tables/user/v1";
    assert_eq!(
        of_user,
        [
            format!("put {dir}/upload.claim"),
            format!("put {dir}/layout-2/part-00000.tide"),
            format!("put {dir}/layout-2/part-00001.tide"),
            format!("put {dir}/manifest.json"),
            format!("delete {dir}/upload.claim"),
        ]
    );

    // Another content of the same name, of which one file has come: it does not show, and keeps others away.
    let (mine, theirs) = (Fixture::new(), Fixture::new());
    let film = table("film", "v1");
    mine.add_table(&film);
    theirs.add_table_of(&film, 9);
    cloud.objects.failures.store(0, Ordering::SeqCst);
    let objects = cloud.objects.clone();
    let died = cloud.remote.push_table(&mine.store, &film, &move |_| objects.set_down(true)).await;
    assert!(matches!(died, Err(StoreError::Unreachable { .. })), "{died:?}");
    cloud.objects.set_down(false);
    assert!(!cloud.remote.list_tables().await.unwrap().contains(&film));
    let error = cloud.remote.push_table(&theirs.store, &film, &|_| ()).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Claimed { path, .. } if path.ends_with("film/v1/upload.claim")),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::Conflict);

    let before = cloud.objects.changes.lock().unwrap().len();
    assert_eq!(cloud.remote.push_table(&mine.store, &film, &|_| ()).await.unwrap(), Uploaded::Now);
    let put = cloud.objects.changes.lock().unwrap()[before..].iter().filter(|c| c.contains("tide")).count();
    assert_eq!(put, 1, "what had come is not uploaded again");
    assert_eq!(cloud.remote.push_table(&mine.store, &film, &|_| ()).await.unwrap(), Uploaded::Before);
    let error = cloud.remote.push_table(&theirs.store, &film, &|_| ()).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_uploads_with_different_content_at_the_same_time_one_is_whole_and_the_others_fail() {
    let cloud = Cloud::new().await;
    let film = table("film", "v1");
    let sources: Vec<_> = (0..6)
        .map(|writer| {
            let fixture = Fixture::new();
            fixture.add_table_of(&film, writer);
            let (manifest, _) = fixture.store.table_manifest(&film).unwrap();
            for file in &manifest.files {
                let path = fixture.store.partition_file(&manifest, file.partition).unwrap();
                fs::write(path, vec![writer as u8; file.file_bytes as usize]).unwrap();
            }
            fixture
        })
        .collect();
    let pushes = sources.iter().map(|fixture| {
        let (remote, store, film) = (cloud.remote.clone(), fixture.store.clone(), film.clone());
        tokio::spawn(async move { remote.push_table(&store, &film, &|_| ()).await })
    });
    let outcomes = futures::future::join_all(pushes).await;
    let winners: Vec<_> = (0..6).filter(|&at| outcomes[at].as_ref().unwrap().is_ok()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    let won = sources[winners[0]].store.table_manifest(&film).unwrap();
    assert_eq!(cloud.remote.table_manifest(&film).await.unwrap(), won);
    for partition in 0..2 {
        let key = cloud.key(&format!("tables/film/v1/layout-2/part-0000{partition}.tide"));
        let bytes = cloud.objects.inner.get(&key).await.unwrap().bytes().await.unwrap();
        assert!(bytes.iter().all(|&b| usize::from(b) == winners[0]), "partition {partition} is another's");
    }
}

const GOLDEN: &str = r#"{"schema_version": 1, "inputs": {"user": [{"raw": [7, 8], "ids": [7, 8]}]}}"#;

fn new_release<'a>(
    release: &'a tidepool_types::Name,
    model: &'a tidepool_types::Name,
    tables: &'a [tidepool_types::TableVersion],
    toml: &'a str,
) -> NewRelease<'a> {
    NewRelease { model, release, tables, model_toml: toml, onnx: ONNX, golden: Some(GOLDEN) }
}

#[tokio::test]
async fn a_release_goes_up_and_comes_down_whole_and_a_copy_serves_when_the_store_is_gone() {
    let cloud = Cloud::new().await;
    let (model, r1, tables) = (name("movielens"), name("r1"), [table("user", "v1")]);
    let toml = contract("movielens", &["user"]);
    let new = new_release(&r1, &model, &tables, &toml);
    let written = cloud.remote.write_release(new).await.unwrap();
    assert_eq!(cloud.remote.list_releases().await.unwrap(), [(model.clone(), r1.clone())]);
    let error = cloud.remote.write_release(new).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error:?}");
    let refused = new_release(&r1, &model, &tables, "inputs = [");
    assert!(matches!(cloud.remote.write_release(refused).await, Err(StoreError::Refused { .. })));

    let artifacts = Artifacts::of(cloud.remote.clone(), cloud.dir.path()).unwrap();
    artifacts.bring_release(&model, &r1).await.unwrap();
    let files = artifacts.files().release(&model, &r1).unwrap();
    assert_eq!((&files.manifest, fs::read(&files.onnx_path).unwrap()), (&written, ONNX.to_vec()));
    assert_eq!(files.golden.map(|golden| golden.cases()), Some(1));

    cloud.objects.set_down(true);
    artifacts.bring_release(&model, &r1).await.unwrap();
    let (manifest, _) = artifacts.table_manifest(&tables[0]).await.unwrap();
    assert_eq!(manifest.schema.table_version, tables[0]);
    let error = artifacts.bring_release(&model, &name("r2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    fs::remove_file(&files.onnx_path).unwrap();
    assert!(matches!(artifacts.bring_release(&model, &r1).await, Err(StoreError::Unreachable { .. })));
    cloud.objects.set_down(false);

    // Altered where it lies: the object is named, and nothing of it is kept.
    let key = cloud.key("releases/movielens/r1/model.onnx");
    cloud.objects.inner.put(&key, vec![0; ONNX.len()].into()).await.unwrap();
    let error = artifacts.bring_release(&model, &r1).await.unwrap_err();
    let object = "s3://bucket/ads/prod/releases/movielens/r1/model.onnx";
    assert!(matches!(&error, StoreError::Hash { path, .. } if path.to_str() == Some(object)), "{error:?}");
    cloud.objects.inner.put(&key, ONNX.to_vec().into()).await.unwrap();
    artifacts.bring_release(&model, &r1).await.unwrap();
    artifacts.files().release(&model, &r1).unwrap();
}

#[tokio::test]
async fn a_release_of_a_directory_is_pushed_once_its_tables_are_there() {
    let cloud = Cloud::new().await;
    cloud.fixture.write("r1").unwrap();
    let (model, r1) = (name("movielens"), name("r1"));
    let push = || cloud.remote.push_release(&cloud.fixture.store, &model, &r1);
    assert_eq!(push().await.unwrap(), Uploaded::Now);
    assert_eq!(push().await.unwrap(), Uploaded::Before);
    let other = Fixture::new();
    other.add_table_of(&table("film", "v1"), 3);
    let toml = contract("movielens", &["film"]);
    let r2 = name("r2");
    other.store.write_release(&model, &r2, &[table("film", "v1")], &toml, ONNX).unwrap();
    let error = cloud.remote.push_release(&other.store, &model, &r2).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound { what, .. } if what == "table film@v1"), "{error:?}");
    assert_eq!(cloud.remote.list_releases().await.unwrap(), [(model.clone(), r1.clone())]);
}

#[tokio::test]
async fn a_table_is_pulled_whole_and_goes_on_where_it_was_broken_off() {
    let cloud = Cloud::new().await;
    let (to, user) = (ArtifactStore::open(cloud.dir.path().join("pulled")).unwrap(), table("user", "v1"));
    cloud.objects.down_after(14);
    let error = cloud.remote.pull_table(&to, &user, &cloud.fetcher()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert_eq!(to.list_tables().unwrap(), []);
    cloud.objects.set_down(false);
    cloud.objects.served_bytes.store(0, Ordering::SeqCst);
    let pulled = cloud.remote.pull_table(&to, &user, &cloud.fetcher()).await.unwrap();
    assert!(cloud.objects.served_bytes.load(Ordering::SeqCst) <= 201 - 12 * RANGE_BYTES);
    assert_eq!((to.list_tables().unwrap(), pulled.bytes()), (Vec::new(), 201));
    pulled.keep().unwrap();
    assert_eq!(to.table_manifest(&user).unwrap(), cloud.fixture.store.table_manifest(&user).unwrap());
    let (manifest, _) = to.table_manifest(&user).unwrap();
    let file = to.partition_file(&manifest, PartitionIndex(1)).unwrap();
    assert_eq!(fs::read(file).unwrap(), cloud.original());
    let again = cloud.remote.pull_table(&to, &user, &cloud.fetcher()).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists { .. })), "{again:?}");
}

#[test]
fn a_place_in_an_object_store_is_not_taken_for_a_directory() {
    for location in ["s3://bucket/prefix", "gs://bucket"] {
        for opened in [ArtifactStore::open(location), ArtifactStore::open_existing(location)] {
            let error = opened.unwrap_err();
            assert!(
                matches!(&error, StoreError::NotADirectory { location: at } if at == location),
                "{error:?}"
            );
            assert!(error.to_string().contains("tidepool store pull"), "{error}");
        }
    }
    assert!(!std::path::Path::new("s3:").exists());
}
