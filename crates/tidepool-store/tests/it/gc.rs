//! Collecting what nobody refers to: what stays, what goes, and what a crash in between leaves.

use std::{fs, path::Path, sync::atomic::Ordering, time::Duration};

use tidepool_store::{Artifact, ArtifactStore, References, Report, Store, StoreError};
use tidepool_types::{Name, TableVersion};

use crate::{ONNX, contract, name, remote::Cloud, table};

const NO_GRACE: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

fn references(tables: &[TableVersion], releases: &[&str]) -> References {
    let release = |release: &&str| (name("movielens"), name(release));
    References { tables: tables.iter().cloned().collect(), releases: releases.iter().map(release).collect() }
}

fn words(report: &Report) -> Vec<String> {
    report.collected.iter().map(|c| c.artifact.to_string()).collect()
}

/// Tables user@v1, user@v2 and 表@nœud-1; release r1 of user@v1, r2 of user@v2. In a directory and in an object store.
async fn stores() -> (Cloud, [Store; 2]) {
    let cloud = Cloud::new().await;
    let store = &cloud.fixture.store;
    cloud.fixture.add_table_of(&table("user", "v2"), 5);
    cloud.remote.push_table(store, &table("user", "v2"), &|_| ()).await.unwrap();
    let model = name("movielens");
    for (release, version) in [("r1", "v1"), ("r2", "v2")] {
        let (release, tables): (Name, _) = (name(release), [table("user", version)]);
        store.write_release(&model, &release, &tables, &contract("movielens", &["user"]), ONNX).unwrap();
        cloud.remote.push_release(store, &model, &release).await.unwrap();
    }
    let stores = [Store::Directory(store.clone()), Store::Remote(cloud.remote.clone())];
    (cloud, stores)
}

async fn tables_of(store: &Store) -> Vec<TableVersion> {
    match store {
        Store::Directory(store) => store.list_tables().unwrap(),
        Store::Remote(store) => store.list_tables().await.unwrap(),
    }
}

async fn releases_of(store: &Store) -> Vec<(Name, Name)> {
    match store {
        Store::Directory(store) => store.list_releases().unwrap(),
        Store::Remote(store) => store.list_releases().await.unwrap(),
    }
}

#[tokio::test]
async fn what_nobody_refers_to_goes_and_the_rest_stays() {
    let (_cloud, stores) = stores().await;
    for store in stores {
        // Release r2 is known to the cluster, and 表 is served on its own. Table user@v2 is pinned by r2 alone.
        let keep = references(&[table("表", "nœud-1")], &["r2"]);
        let gone = ["release movielens@r1", "table user@v1"];
        let young = store.collect(&keep, HOUR, false).await.unwrap();
        // What r1 pins is referred to as long as r1 is young.
        assert_eq!((young.collected.len(), young.young), (0, 1), "{store:?}");

        let would = store.collect(&keep, NO_GRACE, true).await.unwrap();
        assert_eq!(words(&would), gone);
        assert!(would.dry_run && would.bytes > 200 && would.referenced == 3, "{would:?}");
        assert_eq!(tables_of(&store).await.len(), 3, "a dry run touches nothing");

        let done = store.collect(&keep, NO_GRACE, false).await.unwrap();
        assert_eq!((words(&done), done.bytes), (words(&would), would.bytes));
        assert_eq!(tables_of(&store).await, [table("user", "v2"), table("表", "nœud-1")]);
        assert_eq!(releases_of(&store).await, [(name("movielens"), name("r2"))]);
        let again = store.collect(&keep, NO_GRACE, false).await.unwrap();
        assert_eq!(again.collected, []);

        let all = store.collect(&References::default(), NO_GRACE, false).await.unwrap();
        assert_eq!(words(&all), ["release movielens@r2", "table user@v2", "table 表@nœud-1"]);
        assert_eq!(store.inventory().await.unwrap(), []);
    }
}

#[tokio::test]
async fn what_a_release_pins_stays_as_long_as_it_is_young_though_the_table_is_old() {
    let (cloud, [store, _]) = stores().await;
    let dir = cloud.fixture.store.table_dir(&table("user", "v1"));
    age(&dir, 2 * HOUR);
    // The cluster does not know r1 yet.
    let done = store.collect(&references(&[table("表", "nœud-1")], &["r2"]), HOUR, false).await.unwrap();
    assert_eq!(done.collected, []);
    age(&cloud.fixture.store.release_dir(&name("movielens"), &name("r1")), 2 * HOUR);
    let done = store.collect(&references(&[table("表", "nœud-1")], &["r2"]), HOUR, false).await.unwrap();
    assert_eq!(words(&done), ["release movielens@r1", "table user@v1"]);
    assert!(done.collected.iter().all(|c| c.age_seconds >= 7200), "{done:?}");
}

#[tokio::test]
async fn releases_go_with_the_tables_that_only_they_used_and_nothing_else_does() {
    let (cloud, stores) = stores().await;
    // Of a writer that was killed, and a table that no release pins.
    fs::create_dir_all(cloud.fixture.store.root().join("tables/user/.tmp-x")).unwrap();
    for store in stores {
        let keep = references(&[], &["r2"]);
        let would = store.collect_releases(&keep, NO_GRACE, true).await.unwrap();
        assert_eq!(words(&would), ["release movielens@r1", "table user@v1"]);
        let done = store.collect_releases(&keep, NO_GRACE, false).await.unwrap();
        assert_eq!((words(&done), done.bytes), (words(&would), would.bytes));
        assert_eq!(tables_of(&store).await, [table("user", "v2"), table("表", "nœud-1")]);
        // What is served stays, whoever has pinned it.
        let served = references(&[table("user", "v2")], &[]);
        let done = store.collect_releases(&served, NO_GRACE, false).await.unwrap();
        assert_eq!(words(&done), ["release movielens@r2"]);
        assert_eq!(tables_of(&store).await.len(), 2);
    }
    assert!(cloud.fixture.store.root().join("tables/user/.tmp-x").exists());
}

/// Makes a directory and all in it look so old.
fn age(dir: &Path, by: Duration) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path, by);
        } else {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - by).unwrap();
        }
    }
    let status = std::process::Command::new("touch")
        .args(["-d", &format!("{} seconds ago", by.as_secs())])
        .arg(dir)
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn what_a_broken_off_writer_or_collector_left_goes_by_its_age_and_shows_to_nobody() {
    let (cloud, [local, remote]) = stores().await;
    let root = cloud.fixture.store.root();
    fs::create_dir_all(root.join("tables/user/.tmp-abc/layout-2")).unwrap();
    fs::write(root.join("tables/user/.tmp-abc/layout-2/part"), [0; 1000]).unwrap();
    let keep = references(&[table("表", "nœud-1")], &["r1", "r2"]);
    assert_eq!(local.collect(&keep, HOUR, false).await.unwrap().young, 1);
    let done = local.collect(&keep, NO_GRACE, false).await.unwrap();
    assert_eq!((words(&done), done.bytes), (vec!["leftover tables/user/.tmp-abc".to_owned()], 1000));
    assert!(!root.join("tables/user/.tmp-abc").exists());

    // The object store goes away after the first delete: the manifest is what went, so nobody sees half a table.
    let keep = references(&[table("表", "nœud-1")], &["r2"]);
    let objects = cloud.objects.clone();
    let before = objects.changes.lock().unwrap().len();
    let watch = tokio::spawn({
        let objects = objects.clone();
        async move {
            loop {
                let deleted = objects.changes.lock().unwrap()[before..]
                    .iter()
                    .any(|c| c.starts_with("delete") && c.ends_with("user/v1/manifest.json"));
                if deleted {
                    return objects.set_down(true);
                }
                tokio::task::yield_now().await;
            }
        }
    });
    let outcome = remote.collect(&keep, NO_GRACE, false).await;
    watch.await.unwrap();
    cloud.objects.down.store(false, Ordering::SeqCst);
    let tables = tables_of(&remote).await;
    assert!(!tables.contains(&table("user", "v1")), "{tables:?}");
    if outcome.is_err() {
        let left = remote.collect(&keep, NO_GRACE, false).await.unwrap();
        assert_eq!(words(&left), ["leftover tables/user/v1"]);
    }
    assert_eq!(remote.inventory().await.unwrap().len(), 3);
}

#[tokio::test]
async fn nothing_goes_while_a_release_that_stays_cannot_be_read() {
    let (cloud, [store, _]) = stores().await;
    let manifest = cloud.fixture.store.release_dir(&name("movielens"), &name("r2")).join("release.json");
    fs::write(&manifest, "{").unwrap();
    let error = store.collect(&references(&[], &["r2"]), NO_GRACE, false).await.unwrap_err();
    assert!(matches!(&error, StoreError::Missing { path, .. } if *path == manifest), "{error:?}");
    assert_eq!(tables_of(&store).await.len(), 3);
    // When nobody refers to it, it goes like any other.
    let done = store.collect(&references(&[], &["r1"]), NO_GRACE, false).await.unwrap();
    assert!(words(&done).contains(&"release movielens@r2".to_owned()), "{done:?}");
}

#[tokio::test]
async fn an_inventory_says_what_there_is() {
    let (cloud, stores) = stores().await;
    for store in stores {
        let found = store.inventory().await.unwrap();
        let artifacts: Vec<_> = found.iter().map(|f| f.artifact.to_string()).collect();
        let expected = [
            "release movielens@r1",
            "release movielens@r2",
            "table user@v1",
            "table user@v2",
            "table 表@nœud-1",
        ];
        assert_eq!(artifacts, expected);
        assert_eq!(found[0].pins.as_deref(), Some(&[table("user", "v1")][..]));
        let manifest = fs::metadata(cloud.fixture.manifest_path(&table("user", "v1"))).unwrap().len();
        assert_eq!(found[2].bytes, 201 + manifest);
        assert!(found.iter().all(|f| f.age < HOUR));
        assert!(matches!(found[2].artifact, Artifact::Table(_)));
    }
    let nowhere = ArtifactStore::open(cloud.dir.path().join("empty")).unwrap();
    assert_eq!(Store::Directory(nowhere).inventory().await.unwrap(), []);
}
