//! The store in a local directory: paths, verified reads, listings, and the writing of releases.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use tidepool_types::{
    Golden, ModelSpec, Name, PartitionCount, PartitionIndex, ReleaseManifest, TableManifest, TableVersion,
    paths,
};

use crate::{
    documents::{
        self, GOLDEN_JSON, MAX_DOCUMENT_BYTES, MODEL_ONNX, MODEL_TOML, NewRelease, RELEASE_MANIFEST,
        check_hash, release_words, table_words,
    },
    error::StoreError,
    hash::{content_hash, file_hash},
    publish::{create_dirs, publish_dir},
};

/// An artifact store in a directory of this machine (or of a file system that several share).
/// Any number of processes may read and write it at once.
#[derive(Clone, Debug)]
pub struct ArtifactStore {
    root: PathBuf,
}

/// A release whose every hash was checked.
#[derive(Clone, Debug)]
pub struct ReleaseFiles {
    /// `release.json`.
    pub manifest: ReleaseManifest,
    /// The [`content_hash`] of `release.json`: the identity of the release.
    pub manifest_hash: String,
    /// `model.toml`.
    pub spec: ModelSpec,
    /// `golden.json`, if the release has one.
    pub golden: Option<Golden>,
    /// Where `model.onnx` lies.
    pub onnx_path: PathBuf,
}

impl ArtifactStore {
    /// Opens the store in `root`, which is created when it does not exist.
    ///
    /// # Errors
    /// [`StoreError::Io`] when `root` is not a directory and cannot become one; [`StoreError::NotADirectory`]
    /// when it is written like a place in an object store.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = directory(root.into())?;
        create_dirs(&root)?;
        fs::read_dir(&root).map_err(StoreError::io("read the directory", &root))?;
        Ok(Self { root })
    }

    /// Opens the store in `root`, which must be there: for whoever only reads.
    ///
    /// # Errors
    /// [`StoreError::NoStore`] when it is not; [`StoreError::Io`] when it is not a directory, or may not be
    /// read; [`StoreError::NotADirectory`] as [`open`](Self::open).
    pub fn open_existing(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = directory(root.into())?;
        match fs::read_dir(&root) {
            Ok(_) => Ok(Self { root }),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(StoreError::NoStore { path: root }),
            Err(e) => Err(StoreError::io("read the directory", root)(e)),
        }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a table version lies, or would: `<root>/tables/<table>/<version>`.
    #[must_use]
    pub fn table_dir(&self, table: &TableVersion) -> PathBuf {
        self.root.join("tables").join(table.table.as_str()).join(table.version.as_str())
    }

    /// Where a partition file lies, or would: `.../layout-16/part-00003.tide`.
    #[must_use]
    pub fn partition_path(
        &self,
        table: &TableVersion,
        partitions: PartitionCount,
        partition: PartitionIndex,
    ) -> PathBuf {
        paths::partition_path(&self.table_dir(table), partitions, partition)
    }

    /// The manifest of a table version, and its hash: the version's identity.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such version; [`StoreError`] naming the document when it
    /// does not parse, contradicts itself, or is that of another version.
    pub fn table_manifest(&self, table: &TableVersion) -> Result<(TableManifest, String), StoreError> {
        let path = self.table_dir(table).join(paths::MANIFEST_FILE);
        let not_found = || StoreError::NotFound { what: table_words(table), path: path.clone() };
        let bytes = read_document(&path)?.ok_or_else(not_found)?;
        documents::table_manifest(&path, &bytes, table)
    }

    /// The path of one partition file of a version, after a look that it is there in its full length.
    /// What is in it is for `tidepool-table` to verify.
    ///
    /// # Errors
    /// [`StoreError::Missing`] or [`StoreError::Size`]; [`StoreError::NotFound`] when the manifest lists no
    /// such partition.
    pub fn partition_file(
        &self,
        manifest: &TableManifest,
        partition: PartitionIndex,
    ) -> Result<PathBuf, StoreError> {
        let schema = &manifest.schema;
        let path = self.partition_path(&schema.table_version, schema.partitions, partition);
        let Some(entry) = manifest.files.iter().find(|f| f.partition == partition) else {
            let what = format!("partition {partition} of table {}", schema.table_version);
            return Err(StoreError::NotFound { what, path });
        };
        let what = table_words(&schema.table_version);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == entry.file_bytes && meta.is_file() => Ok(path),
            Ok(meta) => Err(StoreError::Size { path, what, expected: entry.file_bytes, found: meta.len() }),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(StoreError::Missing { what, path }),
            Err(e) => Err(StoreError::io("look at", path)(e)),
        }
    }

    /// Where a release lies, or would: `<root>/releases/<model>/<release>`.
    #[must_use]
    pub fn release_dir(&self, model: &Name, release: &Name) -> PathBuf {
        self.root.join("releases").join(model.as_str()).join(release.as_str())
    }

    /// Reads a release and verifies it: the manifest, the hashes of `model.toml`, `golden.json` and `model.onnx`, and that
    /// the table versions it pins are still those it was made with.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such release or no such table version; otherwise
    /// [`StoreError`] naming the file that is missing, altered, or that does not belong there.
    pub fn release(&self, model: &Name, release: &Name) -> Result<ReleaseFiles, StoreError> {
        let dir = self.release_dir(model, release);
        let what = release_words(model, release);
        let path = dir.join(RELEASE_MANIFEST);
        let bytes = read_document(&path)?
            .ok_or_else(|| StoreError::NotFound { what: what.clone(), path: path.clone() })?;
        let manifest = documents::release_manifest(&path, &bytes, (model, release))?;

        let toml_path = dir.join(MODEL_TOML);
        let toml = read_document(&toml_path)?
            .ok_or_else(|| StoreError::Missing { what: what.clone(), path: toml_path.clone() })?;
        let spec = documents::contract(&toml_path, &toml, &manifest)?;

        let golden = match &manifest.golden_json_hash {
            None => None,
            Some(promised) => {
                let path = dir.join(GOLDEN_JSON);
                let bytes = read_document(&path)?
                    .ok_or_else(|| StoreError::Missing { what: what.clone(), path: path.clone() })?;
                Some(documents::golden(&path, &bytes, &manifest, promised)?)
            }
        };

        let onnx_path = dir.join(MODEL_ONNX);
        let onnx_hash = file_hash(&onnx_path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => StoreError::Missing { what: what.clone(), path: onnx_path.clone() },
            _ => StoreError::io("read", &onnx_path)(e),
        })?;
        check_hash(&onnx_path, &what, &manifest.model_onnx_hash, onnx_hash)?;

        for (table, expected) in manifest.tables.iter().zip(&manifest.table_manifest_hashes) {
            let (_, found) = self.table_manifest(table)?;
            check_hash(&self.table_dir(table).join(paths::MANIFEST_FILE), &what, expected, found)?;
        }
        Ok(ReleaseFiles { manifest, manifest_hash: content_hash(&bytes), spec, golden, onnx_path })
    }

    /// Writes a release that has no golden vectors. Whoever has some takes [`write`](Self::write): none are looked for.
    ///
    /// # Errors
    /// What [`write`](Self::write) says.
    pub fn write_release(
        &self,
        model: &Name,
        release: &Name,
        tables: &[TableVersion],
        model_toml: &str,
        onnx: &[u8],
    ) -> Result<ReleaseManifest, StoreError> {
        self.write(NewRelease { model, release, tables, model_toml, onnx, golden: None })
    }

    /// Writes a release, all of it or nothing: `release.json`, `model.toml`, `model.onnx`, and `golden.json` if there is
    /// one. The table versions must lie in the store, complete; their hashes and those of the files go into
    /// `release.json`.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when the name is taken, also by a writer at the same time;
    /// [`StoreError::Refused`] when `model_toml` is no contract, is that of another model, takes vectors from a table
    /// that is not in `tables`, or does not keep the golden vectors; what [`table_manifest`](Self::table_manifest) and
    /// [`partition_file`](Self::partition_file) say of the tables; [`StoreError::Io`].
    pub fn write(&self, new: NewRelease<'_>) -> Result<ReleaseManifest, StoreError> {
        new.check()?;
        let mut table_manifest_hashes = Vec::with_capacity(new.tables.len());
        for table in new.tables {
            let (manifest, hash) = self.table_manifest(table)?;
            for partition in manifest.schema.partitions.indexes() {
                self.partition_file(&manifest, partition)?;
            }
            table_manifest_hashes.push(hash);
        }
        let dir = self.release_dir(new.model, new.release);
        let (manifest, json) = new.manifest(&dir.join(RELEASE_MANIFEST), table_manifest_hashes)?;
        let mut files: Vec<(&str, &[u8])> =
            vec![(MODEL_TOML, new.model_toml.as_bytes()), (MODEL_ONNX, new.onnx), (RELEASE_MANIFEST, &json)];
        files.extend(new.golden.map(|golden| (GOLDEN_JSON, golden.as_bytes())));
        publish_dir(&dir, &new.words(), &files)?;
        Ok(manifest)
    }

    /// Every release by name, sorted: model, release. That they are whole is seen when one is read.
    ///
    /// # Errors
    /// [`StoreError::Io`] names the directory that could not be read.
    pub fn list_releases(&self) -> Result<Vec<(Name, Name)>, StoreError> {
        list_pairs(&self.root.join("releases"))
    }

    /// Every table version by name, sorted. That they are whole is seen when one is read.
    ///
    /// # Errors
    /// [`StoreError::Io`] names the directory that could not be read.
    pub fn list_tables(&self) -> Result<Vec<TableVersion>, StoreError> {
        let pairs = list_pairs(&self.root.join("tables"))?;
        Ok(pairs.into_iter().map(|(table, version)| TableVersion { table, version }).collect())
    }
}

/// `root`, unless it is written like a place in an object store: nobody means a directory called "s3:".
fn directory(root: PathBuf) -> Result<PathBuf, StoreError> {
    match root.to_str() {
        Some(location) if location.contains("://") => {
            Err(StoreError::NotADirectory { location: location.to_owned() })
        }
        _ => Ok(root),
    }
}

/// The whole of a small file, or `None` when there is none.
pub(crate) fn read_document(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    // Looked at before it is opened: to open a pipe is to wait for whoever writes into it.
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("look at", path)(e)),
    };
    if !metadata.is_file() {
        return Err(StoreError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let bytes = file.metadata().map_err(StoreError::io("look at", path))?.len();
    if bytes > MAX_DOCUMENT_BYTES {
        return Err(StoreError::TooLarge { path: path.to_owned(), bytes, limit: MAX_DOCUMENT_BYTES });
    }
    let mut content = Vec::new();
    // The bound holds even for a file that grows while it is read; what is cut off does not parse.
    file.take(MAX_DOCUMENT_BYTES).read_to_end(&mut content).map_err(StoreError::io("read", path))?;
    Ok(Some(content))
}

/// The directories two levels below `dir` whose names are names, sorted; none when `dir` is not there.
fn list_pairs(dir: &Path) -> Result<Vec<(Name, Name)>, StoreError> {
    let mut pairs = Vec::new();
    for first in list_names(dir)? {
        let below = list_names(&dir.join(first.as_str()))?;
        pairs.extend(below.into_iter().map(|second| (first.clone(), second)));
    }
    pairs.sort();
    Ok(pairs)
}

fn list_names(dir: &Path) -> Result<Vec<Name>, StoreError> {
    let error = |e| StoreError::io("list", dir)(e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        // What is not a name (a dot in front: being written) cannot be asked for, so it is not listed.
        let name = entry.file_name().into_string().ok().and_then(|name| Name::new(name).ok());
        if let Some(name) = name
            && entry.path().is_dir()
        {
            names.push(name);
        }
    }
    Ok(names)
}
