//! The store against a real directory: what is written comes back, what was altered does not.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod faulty;
mod gc;
mod remote;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Barrier,
    thread,
};

use tempfile::TempDir;
use tidepool_store::{ArtifactStore, NewRelease, StoreError, content_hash};
use tidepool_types::{
    ErrorCode, Keying, Name, PartitionCount, PartitionEntry, PartitionIndex, ReleaseManifest, RowFormat,
    TableManifest, TableSchema, TableVersion,
};

const ONNX: &[u8] = b"not really a graph: the store does not look inside";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn table(table: &str, version: &str) -> TableVersion {
    TableVersion { table: name(table), version: name(version) }
}

fn contract(model: &str, tables: &[&str]) -> String {
    let mut text =
        format!("schema_version = 1\nmodel = {model:?}\nscore = \"p\"\n[[outputs]]\nname = \"p\"\n");
    for table in tables {
        text += &format!("[[inputs]]\nname = {table:?}\nside = \"user\"\ntable = {table:?}\n");
    }
    text
}

/// A store with two tables, and the means to spoil it.
struct Fixture {
    _dir: TempDir,
    store: ArtifactStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path().join("a").join("störe 1")).unwrap();
        let fixture = Self { _dir: dir, store };
        fixture.add_table(&table("user", "v1"));
        fixture.add_table(&table("表", "nœud-1"));
        fixture
    }

    /// What the table builder leaves behind: a manifest, and files as long as it says.
    fn add_table(&self, table: &TableVersion) {
        self.add_table_of(table, 7);
    }

    /// The same of another content, by what its manifest says of the footers.
    fn add_table_of(&self, table: &TableVersion, footer_crc32c: u32) {
        let partitions = PartitionCount::new(2).unwrap();
        let entry = |partition: PartitionIndex| PartitionEntry {
            partition,
            rows: 3,
            file_bytes: 100 + u64::from(partition.0),
            footer_crc32c,
        };
        let manifest = TableManifest {
            schema_version: 1,
            schema: TableSchema {
                table_version: table.clone(),
                dim: 4,
                format: RowFormat::Int4,
                keying: Keying::Hashed,
                partitions,
                rows: 6,
                default_row: Vec::new(),
                composite: None,
            },
            files: partitions.indexes().map(entry).collect(),
            quantization: None,
            bytes: None,
        };
        for file in &manifest.files {
            let path = self.store.partition_path(table, partitions, file.partition);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; file.file_bytes as usize]).unwrap();
        }
        fs::write(self.manifest_path(table), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    fn manifest_path(&self, table: &TableVersion) -> PathBuf {
        self.store.table_dir(table).join("manifest.json")
    }

    fn write(&self, release: &str) -> Result<ReleaseManifest, StoreError> {
        let tables = [table("user", "v1"), table("表", "nœud-1")];
        let toml = contract("movielens", &["user", "表"]);
        self.store.write_release(&name("movielens"), &name(release), &tables, &toml, ONNX)
    }

    fn read(&self, release: &str) -> Result<tidepool_store::ReleaseFiles, StoreError> {
        self.store.release(&name("movielens"), &name(release))
    }

    fn release_file(&self, release: &str, file: &str) -> PathBuf {
        self.store.release_dir(&name("movielens"), &name(release)).join(file)
    }
}

/// Changes one letter for another of the same length.
fn tamper(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

fn dot_entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with('.')).collect()
}

#[test]
fn a_release_comes_back_as_it_was_written() {
    let fixture = Fixture::new();
    let written = fixture.write("r-été").unwrap();
    let read = fixture.read("r-été").unwrap();
    assert_eq!(read.manifest, written);
    assert_eq!(read.spec.tables().map(Name::as_str).collect::<Vec<_>>(), ["user", "表"]);
    assert_eq!(fs::read(&read.onnx_path).unwrap(), ONNX);
    assert_eq!(written.model_onnx_hash, content_hash(ONNX));
    assert_eq!(
        read.manifest_hash,
        content_hash(&fs::read(fixture.release_file("r-été", "release.json")).unwrap())
    );
    let (_, hash) = fixture.store.table_manifest(&table("表", "nœud-1")).unwrap();
    assert_eq!(written.table_manifest_hashes[1], hash);
    assert_eq!(fixture.store.list_releases().unwrap(), [(name("movielens"), name("r-été"))]);
    assert_eq!(fixture.store.list_tables().unwrap(), [table("user", "v1"), table("表", "nœud-1")]);
}

#[test]
fn golden_vectors_travel_in_the_release_and_must_be_kept() {
    let fixture = Fixture::new();
    let (model, r1, tables) = (name("movielens"), name("r1"), [table("user", "v1")]);
    let model_toml = contract("movielens", &["user"]);
    let golden = |ids: &str| {
        format!(r#"{{"schema_version": 1, "inputs": {{"user": [{{"raw": [7, 8], "ids": {ids}}}]}}}}"#)
    };
    let write = |golden: &str| {
        let (release, tables) = (&r1, &tables);
        let new = NewRelease {
            model: &model,
            release,
            tables,
            model_toml: &model_toml,
            onnx: ONNX,
            golden: Some(golden),
        };
        fixture.store.write(new)
    };
    let refusal = |golden: &str| match write(golden) {
        Err(StoreError::Refused { problems, .. }) => problems.join("; "),
        other => panic!("{other:?}"),
    };
    let said = refusal(&golden("[7, 9]"));
    assert_eq!(said, "golden.json: input \"user\", case 0: [7, 8] gives ids [7, 8], training gave [7, 9]");
    assert!(refusal("{}").contains("golden.json: missing field"));
    let written = write(&golden("[7, 8]")).unwrap();
    assert_eq!(written.golden_json_hash, Some(content_hash(golden("[7, 8]").as_bytes())));
    assert_eq!(fixture.read("r1").unwrap().golden.map(|golden| golden.cases()), Some(1));
    let path = fixture.release_file("r1", "golden.json");
    tamper(&path, "[7, 8]}", "[7, 9]}");
    assert!(matches!(fixture.read("r1"), Err(StoreError::Hash { path: at, .. }) if at == path));
    fs::remove_file(&path).unwrap();
    assert!(matches!(fixture.read("r1"), Err(StoreError::Missing { path: at, .. }) if at == path));
    // One that has none says nothing of them, as releases of before do.
    fixture.write("r2").unwrap();
    let text = fs::read_to_string(fixture.release_file("r2", "release.json")).unwrap();
    assert!(!text.contains("golden"), "{text}");
    assert_eq!(fixture.read("r2").unwrap().golden, None);
}

#[test]
fn a_second_handle_on_the_same_root_sees_the_same() {
    let fixture = Fixture::new();
    fixture.write("r1").unwrap();
    let again = ArtifactStore::open(fixture.store.root()).unwrap();
    assert_eq!(again.release(&name("movielens"), &name("r1")).unwrap().manifest.release, name("r1"));
}

#[test]
fn altered_files_of_a_release_are_named() {
    for (file, from, to) in [("model.toml", "\"user\"", "\"uzer\""), ("model.onnx", "graph", "grabh")] {
        let fixture = Fixture::new();
        fixture.write("r1").unwrap();
        let path = fixture.release_file("r1", file);
        tamper(&path, from, to);
        let error = fixture.read("r1").unwrap_err();
        assert!(matches!(&error, StoreError::Hash { path: p, .. } if *p == path), "{error:?}");
        assert_eq!(error.code(), ErrorCode::Corrupt);

        fs::write(&path, "").unwrap();
        assert!(matches!(fixture.read("r1"), Err(StoreError::Hash { .. })), "{file} cut to nothing");
        fs::remove_file(&path).unwrap();
        assert!(matches!(fixture.read("r1"), Err(StoreError::Missing { path: p, .. }) if p == path));
    }
}

#[test]
fn an_altered_release_manifest_is_refused() {
    type Check = fn(&StoreError) -> bool;
    let cases: [(&str, &str, Check); 6] = [
        ("\"r1\"", "\"r2\"", |e| matches!(e, StoreError::Misplaced { .. })),
        ("\"v1\"", "\"v2\"", |e| matches!(e, StoreError::NotFound { .. })),
        ("\"model\"", "\"mode1\"", |e| matches!(e, StoreError::Syntax { .. })),
        ("\"schema_version\": 1", "\"schema_version\": 9", |e| matches!(e, StoreError::Manifest { .. })),
        ("{", "", |e| matches!(e, StoreError::Syntax { .. })),
        ("\"model_toml_hash\": \"", "\"model_toml_hash\": \"0", |e| matches!(e, StoreError::Hash { .. })),
    ];
    for (from, to, expected) in cases {
        let fixture = Fixture::new();
        fixture.write("r1").unwrap();
        tamper(&fixture.release_file("r1", "release.json"), from, to);
        let error = fixture.read("r1").unwrap_err();
        assert!(expected(&error), "{from} to {to}: {error:?}");
    }
}

#[test]
fn a_release_notices_that_a_table_it_pins_has_changed() {
    let fixture = Fixture::new();
    fixture.write("r1").unwrap();
    let path = fixture.manifest_path(&table("user", "v1"));
    tamper(&path, "\"footer_crc32c\":7", "\"footer_crc32c\":8");
    let error = fixture.read("r1").unwrap_err();
    assert!(matches!(&error, StoreError::Hash { path: p, .. } if *p == path), "{error:?}");
    assert!(error.to_string().contains("release movielens@r1"), "{error}");

    fs::remove_dir_all(fixture.store.table_dir(&table("user", "v1"))).unwrap();
    let error = fixture.read("r1").unwrap_err();
    assert!(matches!(&error, StoreError::NotFound { what, .. } if what == "table user@v1"), "{error:?}");
}

#[test]
fn table_manifests_are_validated() {
    let fixture = Fixture::new();
    let user = table("user", "v1");
    let missing = fixture.store.table_manifest(&table("user", "v9")).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::NotFound);
    assert!(missing.to_string().contains("table user@v9"), "{missing}");

    let moved = fixture.store.table_dir(&table("user", "v2"));
    fs::create_dir(&moved).unwrap();
    fs::copy(fixture.manifest_path(&user), moved.join("manifest.json")).unwrap();
    let error = fixture.store.table_manifest(&table("user", "v2")).unwrap_err();
    assert!(
        matches!(&error, StoreError::Misplaced { expected, found, .. } if expected == "user@v2" && found == "user@v1")
    );

    let path = fixture.manifest_path(&user);
    tamper(&path, "\"rows\":6", "\"rows\":7");
    let error = fixture.store.table_manifest(&user).unwrap_err();
    assert!(matches!(error, StoreError::Manifest { .. }), "{error:?}");
    assert!(error.source().is_some_and(|e| e.to_string().contains("7")));

    fs::write(&path, "{} {").unwrap();
    assert!(
        matches!(fixture.store.table_manifest(&user), Err(StoreError::Syntax { path: p, .. }) if p == path)
    );
}

#[test]
fn partition_files_are_there_in_full_or_an_error() {
    let fixture = Fixture::new();
    let user = table("user", "v1");
    let (manifest, _) = fixture.store.table_manifest(&user).unwrap();
    let path = fixture.store.partition_file(&manifest, PartitionIndex(1)).unwrap();
    assert!(path.ends_with("tables/user/v1/layout-2/part-00001.tide"), "{path:?}");

    let beyond = fixture.store.partition_file(&manifest, PartitionIndex(2));
    assert!(matches!(beyond, Err(StoreError::NotFound { .. })));

    fs::write(&path, vec![0; 100]).unwrap();
    let short = fixture.store.partition_file(&manifest, PartitionIndex(1));
    assert!(matches!(short, Err(StoreError::Size { expected: 101, found: 100, .. })));
    assert!(matches!(fixture.write("r1"), Err(StoreError::Size { .. })), "a release of a short table");

    fs::remove_file(&path).unwrap();
    let gone = fixture.store.partition_file(&manifest, PartitionIndex(1));
    assert!(matches!(gone, Err(StoreError::Missing { path: p, .. }) if p == path));
    assert!(
        matches!(fixture.write("r1"), Err(StoreError::Missing { .. })),
        "a release of a table with a hole"
    );
    assert_eq!(fixture.store.list_releases().unwrap(), []);
}

#[test]
fn what_does_not_fit_together_is_refused_before_anything_is_written() {
    let fixture = Fixture::new();
    let user = table("user", "v1");
    let write = |tables: &[TableVersion], toml: &str| {
        fixture.store.write_release(&name("movielens"), &name("r1"), tables, toml, ONNX)
    };
    let Err(StoreError::Refused { problems, .. }) =
        write(std::slice::from_ref(&user), &contract("other", &["user", "film"]))
    else {
        panic!("accepted")
    };
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("other") && problems[1].contains("film"), "{problems:?}");

    let toml = contract("movielens", &["user"]);
    assert!(matches!(write(std::slice::from_ref(&user), "inputs = ["), Err(StoreError::Refused { .. })));
    assert!(matches!(write(&[user.clone(), user.clone()], &toml), Err(StoreError::Refused { .. })));
    let unknown = write(&[user, table("film", "v1")], &toml).unwrap_err();
    assert!(matches!(&unknown, StoreError::NotFound { what, .. } if what == "table film@v1"), "{unknown:?}");
    assert!(!fixture.store.root().join("releases").exists());
}

#[test]
fn a_taken_name_is_an_error_and_stays_as_it_was() {
    let fixture = Fixture::new();
    fixture.write("r1").unwrap();
    let before = fs::read(fixture.release_file("r1", "release.json")).unwrap();
    let (tables, toml) = ([table("user", "v1")], contract("movielens", &["user"]));
    let error =
        fixture.store.write_release(&name("movielens"), &name("r1"), &tables, &toml, b"other").unwrap_err();
    assert!(
        matches!(&error, StoreError::AlreadyExists { what, .. } if what == "release movielens@r1"),
        "{error:?}"
    );
    assert_eq!(error.code(), ErrorCode::Conflict);
    assert_eq!(fs::read(fixture.release_file("r1", "release.json")).unwrap(), before);
}

#[test]
fn of_many_writers_of_one_release_exactly_one_wins() {
    let fixture = Fixture::new();
    let writers = 8;
    for round in 0..5 {
        let release = name(&format!("r{round}"));
        let start = Barrier::new(writers);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let run = |writer: usize| {
                let (start, release, store) = (&start, &release, fixture.store.clone());
                scope.spawn(move || {
                    let onnx = format!("graph of writer {writer}");
                    let toml = contract("movielens", &["user"]);
                    start.wait();
                    let tables = [table("user", "v1")];
                    store.write_release(&name("movielens"), release, &tables, &toml, onnx.as_bytes())
                })
            };
            let handles: Vec<_> = (0..writers).map(run).collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        let winners: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let losers = outcomes.iter().filter(|o| matches!(o, Err(StoreError::AlreadyExists { .. })));
        assert_eq!(losers.count(), writers - 1, "{outcomes:?}");
        assert_eq!(fixture.store.release(&name("movielens"), &release).unwrap().manifest, *winners[0]);
    }
    let dir = fixture.store.root().join("releases").join("movielens");
    assert_eq!(dot_entries(&dir), Vec::<String>::new(), "losers clean up behind themselves");
}

#[test]
fn listings_skip_what_is_being_written_and_what_is_no_name() {
    let fixture = Fixture::new();
    assert_eq!(fixture.store.list_releases().unwrap(), [], "before there is a releases directory");
    fixture.write("r2").unwrap();
    fixture.write("r1").unwrap();
    let root = fixture.store.root();
    for left_over in
        ["releases/movielens/.tmp-x", "releases/.tmp-y/z", "tables/user/.tmp-v3", "tables/lost+found"]
    {
        fs::create_dir_all(root.join(left_over)).unwrap();
    }
    fs::write(root.join("tables/README"), "a file").unwrap();
    assert_eq!(
        fixture.store.list_releases().unwrap(),
        [(name("movielens"), name("r1")), (name("movielens"), name("r2"))]
    );
    assert_eq!(fixture.store.list_tables().unwrap(), [table("user", "v1"), table("表", "nœud-1")]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for root in [file.join("store"), file.clone()] {
        let error = ArtifactStore::open(&root).unwrap_err();
        assert!(matches!(&error, StoreError::Io { path, .. } if path.starts_with(&file)), "{error:?}");
        assert!(error.to_string().starts_with("could not "), "{error}");
        assert_eq!(error.code(), ErrorCode::Unavailable);
    }

    let fixture = Fixture::new();
    let releases = fixture.store.root().join("releases");
    fs::write(&releases, "in the way").unwrap();
    let error = fixture.write("r1").unwrap_err();
    assert!(matches!(&error, StoreError::Io { path, .. } if path.starts_with(&releases)), "{error:?}");
}

#[test]
fn a_release_is_readable_for_those_the_umask_allows() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    fixture.write("r1").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let plain = fixture.store.root().join("plain");
    fs::create_dir(&plain).unwrap();
    assert_eq!(mode(fixture.release_file("r1", "model.onnx").parent().unwrap()), mode(&plain));
}

#[test]
fn whoever_only_reads_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("nowhere");
    let error = ArtifactStore::open_existing(&root).unwrap_err();
    assert!(matches!(&error, StoreError::NoStore { path } if *path == root), "{error}");
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(!root.exists());
    fs::write(&root, "").unwrap();
    assert!(matches!(ArtifactStore::open_existing(&root), Err(StoreError::Io { .. })));
    fs::remove_file(&root).unwrap();
    ArtifactStore::open(&root).unwrap();
    assert_eq!(ArtifactStore::open_existing(&root).unwrap().root(), root);
}

#[test]
fn a_pipe_in_the_place_of_a_document_is_not_waited_for() {
    let fixture = Fixture::new();
    let manifest = fixture.store.table_dir(&table("user", "v1")).join("manifest.json");
    fs::remove_file(&manifest).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&manifest).status().unwrap().success());
    let error = fixture.store.table_manifest(&table("user", "v1")).unwrap_err();
    assert!(matches!(&error, StoreError::NotAFile { path } if *path == manifest), "{error}");
    assert_eq!(error.code(), ErrorCode::Corrupt);
}
