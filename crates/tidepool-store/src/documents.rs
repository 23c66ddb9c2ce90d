//! The documents of a store, wherever they lie: manifests and contracts, held against their place and against the
//! hashes that promise them.

use std::path::Path;

use serde::de::DeserializeOwned;
use tidepool_types::{Golden, ModelSpec, Name, ReleaseManifest, TableManifest, TableVersion};

use crate::{error::StoreError, hash::content_hash};

/// No manifest and no `model.toml` is larger. The largest layout has 65,536 partitions of about 100 bytes each.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

pub(crate) const RELEASE_MANIFEST: &str = "release.json";
pub(crate) const MODEL_TOML: &str = "model.toml";
pub(crate) const MODEL_ONNX: &str = "model.onnx";
pub(crate) const GOLDEN_JSON: &str = "golden.json";

pub(crate) fn release_words(model: &Name, release: &Name) -> String {
    format!("release {model}@{release}")
}

pub(crate) fn table_words(table: &TableVersion) -> String {
    format!("table {table}")
}

/// The manifest of `table` that lies at `path`, and its hash.
pub(crate) fn table_manifest(
    path: &Path,
    bytes: &[u8],
    table: &TableVersion,
) -> Result<(TableManifest, String), StoreError> {
    let manifest: TableManifest = parse_json(path, bytes)?;
    manifest.validate().map_err(|source| StoreError::Manifest { path: path.to_owned(), source })?;
    let found = &manifest.schema.table_version;
    if found != table {
        let (expected, found) = (table.to_string(), found.to_string());
        return Err(StoreError::Misplaced { path: path.to_owned(), expected, found });
    }
    Ok((manifest, content_hash(bytes)))
}

/// The `release.json` that lies at `path`.
pub(crate) fn release_manifest(
    path: &Path,
    bytes: &[u8],
    (model, release): (&Name, &Name),
) -> Result<ReleaseManifest, StoreError> {
    let manifest: ReleaseManifest = parse_json(path, bytes)?;
    manifest.validate().map_err(|source| StoreError::Manifest { path: path.to_owned(), source })?;
    if (&manifest.model, &manifest.release) != (model, release) {
        let found = release_words(&manifest.model, &manifest.release);
        let expected = release_words(model, release);
        return Err(StoreError::Misplaced { path: path.to_owned(), expected, found });
    }
    Ok(manifest)
}

/// The `model.toml` that lies at `path`, as its release promises it.
pub(crate) fn contract(
    path: &Path,
    bytes: &[u8],
    manifest: &ReleaseManifest,
) -> Result<ModelSpec, StoreError> {
    let what = release_words(&manifest.model, &manifest.release);
    check_hash(path, &what, &manifest.model_toml_hash, content_hash(bytes))?;
    let spec = ModelSpec::from_toml(&String::from_utf8_lossy(bytes))
        .map_err(|source| StoreError::Model { path: path.to_owned(), source })?;
    let problems = contract_problems(&spec, &manifest.model, &manifest.tables);
    if problems.is_empty() {
        return Ok(spec);
    }
    let expected = format!("a contract of {what}");
    Err(StoreError::Misplaced { path: path.to_owned(), expected, found: problems.join("; ") })
}

/// The `golden.json` that lies at `path`, as its release promises it. Whether the contract keeps it is for whoever
/// serves by the contract to compute.
pub(crate) fn golden(
    path: &Path,
    bytes: &[u8],
    manifest: &ReleaseManifest,
    promised: &str,
) -> Result<Golden, StoreError> {
    let what = release_words(&manifest.model, &manifest.release);
    check_hash(path, &what, promised, content_hash(bytes))?;
    parse_json(path, bytes)
}

/// What a release that is to be written is made of, held against each other.
#[derive(Clone, Copy, Debug)]
pub struct NewRelease<'a> {
    /// Its model.
    pub model: &'a Name,
    /// Its name.
    pub release: &'a Name,
    /// The table versions that the model was trained with.
    pub tables: &'a [TableVersion],
    /// The content of `model.toml`.
    pub model_toml: &'a str,
    /// The content of `model.onnx`.
    pub onnx: &'a [u8],
    /// The content of `golden.json`, if there are golden vectors.
    pub golden: Option<&'a str>,
}

impl NewRelease<'_> {
    /// "release movielens@r1".
    pub(crate) fn words(&self) -> String {
        release_words(self.model, self.release)
    }

    /// Whether the contract is one of this model, takes vectors from no other tables, and keeps the golden vectors.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let problems = match ModelSpec::from_toml(self.model_toml) {
            Ok(spec) => {
                let mut problems = contract_problems(&spec, self.model, self.tables);
                problems.extend(self.golden.into_iter().flat_map(|golden| golden_problems(&spec, golden)));
                problems
            }
            Err(e) => vec![e.to_string()],
        };
        if problems.is_empty() { Ok(()) } else { Err(self.refused(problems)) }
    }

    /// `release.json`, and its bytes. `table_manifest_hashes` are those of the tables, in their order.
    pub(crate) fn manifest(
        &self,
        path: &Path,
        table_manifest_hashes: Vec<String>,
    ) -> Result<(ReleaseManifest, Vec<u8>), StoreError> {
        let manifest = ReleaseManifest {
            schema_version: ReleaseManifest::SCHEMA_VERSION,
            model: self.model.clone(),
            release: self.release.clone(),
            tables: self.tables.to_vec(),
            table_manifest_hashes,
            model_toml_hash: content_hash(self.model_toml.as_bytes()),
            model_onnx_hash: content_hash(self.onnx),
            golden_json_hash: self.golden.map(|golden| content_hash(golden.as_bytes())),
        };
        manifest.validate().map_err(|e| self.refused(vec![e.to_string()]))?;
        let mut json = serde_json::to_vec_pretty(&manifest)
            .map_err(|source| StoreError::Syntax { path: path.to_owned(), source })?;
        json.push(b'\n');
        Ok((manifest, json))
    }

    fn refused(&self, problems: Vec<String>) -> StoreError {
        StoreError::Refused { what: self.words(), problems }
    }
}

/// What keeps the text of a `golden.json` from being what `spec` gives.
fn golden_problems(spec: &ModelSpec, golden: &str) -> Vec<String> {
    if golden.len() as u64 > MAX_DOCUMENT_BYTES {
        return vec![format!("golden.json has {} bytes, it may have {MAX_DOCUMENT_BYTES}", golden.len())];
    }
    let problems = match serde_json::from_str::<Golden>(golden) {
        Ok(golden) => golden.check(spec),
        Err(error) => vec![error.to_string()],
    };
    problems.into_iter().map(|problem| format!("golden.json: {problem}")).collect()
}

/// What keeps `spec` from being the contract of a release of `model` that pins `tables`.
fn contract_problems(spec: &ModelSpec, model: &Name, tables: &[TableVersion]) -> Vec<String> {
    let mut problems = Vec::new();
    if spec.model != *model {
        problems.push(format!("model.toml is the contract of model {}, not of {model}", spec.model));
    }
    let unpinned = spec.tables().filter(|name| !tables.iter().any(|t| t.table == **name));
    problems.extend(
        unpinned.map(|name| format!("model.toml pools from table {name}, the release pins no version of it")),
    );
    problems
}

pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Syntax { path: path.to_owned(), source })
}

/// Holds a hash against the one that `what` promises.
pub(crate) fn check_hash(path: &Path, what: &str, expected: &str, found: String) -> Result<(), StoreError> {
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Hash {
        path: path.to_owned(),
        what: what.to_owned(),
        expected: expected.to_owned(),
        found,
    })
}
