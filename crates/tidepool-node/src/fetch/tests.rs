//! Copies of what lies in an object store: fetched once, verified, counted, and taken away in time.

use object_store::{ObjectStore, ObjectStoreExt, memory::InMemory, path::Path as Key};
use tempfile::TempDir;
use tidepool_store::{RemoteStore, Retries};
use tidepool_table::{PartitionFile, TableBuilder, TableSpec};
use tidepool_types::{Keying, Name, PartitionCount, RowFormat};

use super::*;

/// A table in an object store, and a node's directory.
struct Site {
    dir: TempDir,
    objects: Arc<InMemory>,
    wanted: Vec<Wanted>,
}

fn limits() -> Limits {
    Limits {
        parallelism: 2,
        bytes_per_second: None,
        disk_capacity_bytes: None,
        collect_after: Duration::from_secs(60),
    }
}

impl Site {
    /// A table of two partitions.
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let name = |text| Name::new(text).unwrap();
        let table_version = TableVersion { table: name("pin"), version: name("v1") };
        let spec = TableSpec {
            table_version: table_version.clone(),
            dim: 8,
            format: RowFormat::Int8,
            keying: Keying::Hashed,
            partitions: PartitionCount::new(2).unwrap(),
            default_row: Vec::new(),
            composite: None,
            full_keys: false,
            seed: 1,
        };
        let built = ArtifactStore::open(dir.path().join("built")).unwrap();
        let mut builder = TableBuilder::new(spec).unwrap();
        (0..1000).for_each(|id| builder.push(id, &[id as f32; 8]).unwrap());
        let schema = builder.publish(&built.table_dir(&table_version), &mut |_, _| {}).unwrap().schema;
        let mut site = Self { dir, objects: Arc::new(InMemory::new()), wanted: Vec::new() };
        site.remote().push_table(&built, &table_version, &|_| ()).await.unwrap();
        let files = site.source(limits()).files().clone();
        let schema = Arc::new(schema);
        let wanted = |partition| Wanted {
            schema: schema.clone(),
            partition,
            path: files.partition_path(&table_version, schema.partitions, partition),
        };
        site.wanted = schema.partitions.indexes().map(wanted).collect();
        site
    }

    fn remote(&self) -> RemoteStore {
        let retries = Retries { attempts: 1, ..Retries::default() };
        RemoteStore::over(self.objects.clone(), "", "s3://bucket").with_retries(retries)
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn source(&self, limits: Limits) -> Source {
        let artifacts = Artifacts::of(self.remote(), &self.data_dir()).unwrap();
        Source::new(artifacts, limits, &Registry::new()).unwrap()
    }

    fn verified(&self) -> Arc<VerifiedFiles> {
        Arc::new(VerifiedFiles::open(&self.data_dir()))
    }

    fn key(partition: usize) -> Key {
        Key::parse(format!("tables/pin/v1/layout-2/part-0000{partition}.tide")).unwrap()
    }

    async fn object(&self, partition: usize) -> Vec<u8> {
        self.objects.get(&Self::key(partition)).await.unwrap().bytes().await.unwrap().to_vec()
    }

    async fn put(&self, partition: usize, bytes: Vec<u8>) {
        self.objects.put(&Self::key(partition), bytes.into()).await.unwrap();
    }

    /// Everything in the object store is gone.
    async fn empty(&self) {
        use futures::TryStreamExt;
        let all: Vec<_> = self.objects.list(None).try_collect().await.unwrap();
        for meta in all {
            self.objects.delete(&meta.location).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_copy_is_fetched_verified_and_as_good_without_the_store() {
    let site = Site::new().await;
    let (source, verified) = (site.source(limits()), site.verified());
    source.bring(&site.wanted[0], &verified).await.unwrap();
    let bytes = site.object(0).await;
    assert_eq!(fs::read(&site.wanted[0].path).unwrap(), bytes);
    assert_eq!(source.counts.bytes.get(), bytes.len() as u64);
    let file = PartitionFile::open(&site.wanted[0].path).unwrap();
    let identity = FileIdentity::of(&site.wanted[0].path, file.meta().footer_crc32c).unwrap();
    assert!(site.verified().has(&site.wanted[0].path, &identity), "it is verified under its name");

    site.empty().await;
    let after_restart = site.source(limits());
    after_restart.bring(&site.wanted[0], &verified).await.unwrap();
    assert_eq!(after_restart.counts.bytes.get(), 0);
    let error = after_restart.bring(&site.wanted[1], &verified).await.unwrap_err();
    assert!(
        chain(&error).contains("s3://bucket/tables/pin/v1/layout-2/part-00001.tide"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_damaged_object_is_named_and_not_fetched_again_until_it_is_another() {
    let site = Site::new().await;
    let (source, verified) = (site.source(limits()), site.verified());
    let good = site.object(1).await;
    let mut bad = good.clone();
    bad[5000] ^= 1;
    site.put(1, bad).await;
    for _ in 0..2 {
        let error = source.bring(&site.wanted[1], &verified).await.unwrap_err();
        let LoadError::BadObject { object, .. } = &error else { panic!("{error:?}") };
        assert_eq!(object.to_str().unwrap(), "s3://bucket/tables/pin/v1/layout-2/part-00001.tide");
        assert_eq!(source.counts.bytes.get(), good.len() as u64, "it came once");
        assert!(!site.wanted[1].path.exists());
    }
    site.put(1, good.clone()).await;
    source.bring(&site.wanted[1], &verified).await.unwrap();
    assert_eq!(fs::read(&site.wanted[1].path).unwrap(), good);
}

#[tokio::test]
async fn a_copy_that_is_damaged_on_the_nodes_disk_is_fetched_anew() {
    let site = Site::new().await;
    let (source, verified) = (site.source(limits()), site.verified());
    let wanted = &site.wanted[0];
    source.bring(wanted, &verified).await.unwrap();
    let mut bytes = fs::read(&wanted.path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&wanted.path, bytes).unwrap();
    source.bring(wanted, &verified).await.unwrap();
    let error = crate::partition::load(wanted, source.files(), &verified).unwrap_err();
    assert!(matches!(error, LoadError::Verify(_)), "{error:?}");
    source.distrust(wanted, &error).await;
    source.bring(wanted, &verified).await.unwrap();
    crate::partition::load(wanted, source.files(), &verified).unwrap();
}

#[tokio::test]
async fn the_disk_is_counted_with_what_is_to_come_and_what_is_not_wanted_makes_room() {
    let site = Site::new().await;
    let source = site.source(limits());
    let survey = source.survey(&site.wanted, BTreeSet::new()).await;
    let sizes = [site.object(0).await.len() as u64, site.object(1).await.len() as u64];
    assert_eq!(survey.sizes, [Some(sizes[0]), Some(sizes[1])]);
    assert_eq!((survey.to_come, survey.disk), (sizes.to_vec(), None));
    source.bring(&site.wanted[0], &site.verified()).await.unwrap();

    // Partition 0 is there. Both fit, so nothing goes.
    let roomy = Limits { disk_capacity_bytes: Some(sizes[0] + sizes[1] + 65_536), ..limits() };
    let survey = site.source(roomy).survey(&site.wanted, BTreeSet::new()).await;
    let (used, limit) = survey.disk.unwrap();
    assert!(used >= sizes[0] && used < sizes[0] + 65_536 && limit == sizes[0] + sizes[1] + 65_536);
    assert_eq!(survey.to_come, [0, sizes[1]]);

    // Only partition 1 is wanted: what is served stays, and what is neither makes room.
    let tight = Limits { disk_capacity_bytes: Some(sizes[1] + 16_384), ..limits() };
    let served = BTreeSet::from([site.wanted[0].path.clone()]);
    let survey = site.source(tight).survey(&site.wanted[1..], served).await;
    assert!(survey.disk.unwrap().0 >= sizes[0] && site.wanted[0].path.exists());
    let survey = site.source(tight).survey(&site.wanted[1..], BTreeSet::new()).await;
    assert!(survey.disk.unwrap().0 < sizes[0] && !site.wanted[0].path.exists());
    assert_eq!(survey.to_come, [sizes[1]]);
}

#[tokio::test]
async fn copies_go_when_they_have_not_been_assigned_for_long_enough() {
    let site = Site::new().await;
    let keep = Duration::from_millis(50);
    let (source, verified) = (site.source(Limits { collect_after: keep, ..limits() }), site.verified());
    for wanted in &site.wanted {
        source.bring(wanted, &verified).await.unwrap();
    }
    source.collect(&site.wanted).await;
    source.collect(&site.wanted[1..]).await;
    assert!(site.wanted[0].path.exists(), "it may be wanted again soon");
    // Assigned again in time: the clock starts anew.
    source.collect(&site.wanted).await;
    source.collect(&site.wanted[1..]).await;
    source.collection_due().await;
    std::thread::sleep(keep);
    source.collect(&site.wanted[1..]).await;
    assert!(!site.wanted[0].path.exists() && site.wanted[1].path.exists());
    assert!(source.counts.copies_bytes.get() > 0);

    source.collect(&[]).await;
    std::thread::sleep(keep);
    source.collect(&[]).await;
    let root = source.files().root().to_owned();
    assert!(!root.join("tables/pin").exists(), "nothing is left of the table");
    assert!(root.exists());
    assert_eq!(source.counts.copies_bytes.get(), 0);
}

#[tokio::test]
async fn a_directory_is_left_alone() {
    let site = Site::new().await;
    let built = ArtifactStore::open(site.dir.path().join("built")).unwrap();
    let tight = Limits { disk_capacity_bytes: Some(1), collect_after: Duration::ZERO, ..limits() };
    let source = Source::new(Artifacts::in_place(built.clone()), tight, &Registry::new()).unwrap();
    let at = |wanted: &Wanted| {
        let (schema, partition) = (wanted.schema.clone(), wanted.partition);
        let path = built.partition_path(&schema.table_version, schema.partitions, partition);
        Wanted { schema, partition, path }
    };
    let wanted: Vec<_> = site.wanted.iter().map(at).collect();
    let survey = source.survey(&wanted, BTreeSet::new()).await;
    assert_eq!((survey.disk, survey.to_come), (None, vec![0, 0]));
    assert_eq!(survey.sizes[0], Some(site.object(0).await.len() as u64));
    source.bring(&wanted[0], &site.verified()).await.unwrap();
    source.collect(&[]).await;
    assert!(wanted.iter().all(|wanted| wanted.path.exists()));
}
