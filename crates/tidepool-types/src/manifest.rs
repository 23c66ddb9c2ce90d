//! Manifests: what a table version and a release say of themselves, as JSON beside their files.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    composite::Composite,
    ids::{PartitionCount, PartitionIndex, TableVersion},
    keying::Keying,
    name::Name,
    report::{QuantizationReport, SizeReport},
    row::RowFormat,
};

/// What a reader must know of a table version to look ids up in it. It travels in the cluster map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSchema {
    /// Table and version.
    pub table_version: TableVersion,
    /// Elements of a row.
    pub dim: u32,
    /// How rows are stored.
    pub format: RowFormat,
    /// Which ids there may be.
    pub keying: Keying,
    /// The layout: into how many partitions the version is cut.
    pub partitions: PartitionCount,
    /// Rows in all partitions together.
    pub rows: u64,
    /// The vector that stands for a missing id, and for a bag with nothing found:
    /// [`vector_dim`](Self::vector_dim) elements, or empty for zeros.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_row: Vec<f32>,
    /// Present when ids are not those of rows, but have several rows each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composite: Option<Composite>,
}

impl TableSchema {
    /// Bytes of one stored row, without fingerprint: what travels for one gathered id.
    #[must_use]
    pub const fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.dim)
    }

    /// Elements of the vector that a caller gets for an id or a bag: `dim`, or what a composite table makes
    /// of it.
    #[must_use]
    pub fn vector_dim(&self) -> u32 {
        self.composite.as_ref().map_or(self.dim, |composite| composite.vector_dim(self.dim))
    }

    /// Checks what types alone cannot: the dimension, the default row's length and values, and the hashes of
    /// a composite table.
    ///
    /// # Errors
    /// [`ManifestError::Schema`] lists every problem.
    pub fn validate(&self) -> Result<(), ManifestError> {
        let mut problems: Vec<_> =
            RowFormat::check_dim(u64::from(self.dim)).err().iter().map(ToString::to_string).collect();
        problems.extend(self.composite.iter().flat_map(|composite| composite.problems(self.keying)));
        let (len, dim) = (self.default_row.len(), self.vector_dim());
        if len != 0 && len != dim as usize {
            problems.push(format!("default row: it has {len} elements, vectors have {dim}"));
        }
        if let Some(at) = self.default_row.iter().position(|v| !v.is_finite()) {
            problems.push(format!("default row: element {at} is not finite"));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ManifestError::Schema { table: self.table_version.clone(), problems })
        }
    }
}

/// One partition file of a layout, as its manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionEntry {
    /// Which partition.
    pub partition: PartitionIndex,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// crc32c of the footer, which holds the checksums of everything else.
    pub footer_crc32c: u32,
}

/// `manifest.json` of a table version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableManifest {
    /// Of this document: 1.
    pub schema_version: u32,
    /// Schema.
    pub schema: TableSchema,
    /// The layout's files, in partition order.
    pub files: Vec<PartitionEntry>,
    /// What quantization cost; absent when rows were imported as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationReport>,
    /// What a row takes; absent when there is none, and where an earlier Tidepool did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<SizeReport>,
}

impl TableManifest {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;

    /// Checks the schema, and that the files are those of its layout and add up to its rows.
    ///
    /// # Errors
    /// [`ManifestError`] names what does not fit.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.schema_version != Self::SCHEMA_VERSION {
            return Err(ManifestError::SchemaVersion {
                found: self.schema_version,
                known: Self::SCHEMA_VERSION,
            });
        }
        self.schema.validate()?;
        let table = &self.schema.table_version;
        let in_order = self.files.iter().map(|f| f.partition).eq(self.schema.partitions.indexes());
        if !in_order {
            return Err(ManifestError::Files {
                table: table.clone(),
                problem: format!(
                    "partitions 0..{} are not each listed once, in order",
                    self.schema.partitions
                ),
            });
        }
        let sum = self.files.iter().map(|f| u128::from(f.rows)).sum::<u128>();
        if sum != u128::from(self.schema.rows) {
            return Err(ManifestError::Files {
                table: table.clone(),
                problem: format!("the partitions have {sum} rows, the table has {}", self.schema.rows),
            });
        }
        Ok(())
    }

    /// Bytes of all partition files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, f| sum.saturating_add(f.file_bytes))
    }
}

/// `release.json`: a dense model and the exact table versions that it was trained with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseManifest {
    /// Of this document: 1.
    pub schema_version: u32,
    /// The model.
    pub model: Name,
    /// The release of it.
    pub release: Name,
    /// The table versions, by table; each table once.
    pub tables: Vec<TableVersion>,
    /// Identity of each table version, in the order of `tables`: the hash of its manifest.
    pub table_manifest_hashes: Vec<String>,
    /// Hash of `model.toml`.
    pub model_toml_hash: String,
    /// Hash of `model.onnx`.
    pub model_onnx_hash: String,
    /// Hash of `golden.json`; absent when the release has no golden vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_json_hash: Option<String>,
}

impl ReleaseManifest {
    /// The only document version there is.
    pub const SCHEMA_VERSION: u32 = 1;

    /// The version that this release pins of `table`.
    #[must_use]
    pub fn version_of(&self, table: &str) -> Option<&TableVersion> {
        self.tables.iter().find(|t| t.table.as_str() == table)
    }

    /// Checks that every table is pinned once and has its hash.
    ///
    /// # Errors
    /// [`ManifestError`] names the table.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.schema_version != Self::SCHEMA_VERSION {
            return Err(ManifestError::SchemaVersion {
                found: self.schema_version,
                known: Self::SCHEMA_VERSION,
            });
        }
        for (at, t) in self.tables.iter().enumerate() {
            if self.tables[..at].iter().any(|earlier| earlier.table == t.table) {
                return Err(ManifestError::Files {
                    table: t.clone(),
                    problem: "the release pins this table twice".into(),
                });
            }
        }
        if self.tables.len() != self.table_manifest_hashes.len() {
            return Err(ManifestError::Hashes {
                tables: self.tables.len(),
                hashes: self.table_manifest_hashes.len(),
            });
        }
        Ok(())
    }
}

/// A manifest that contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Written by a newer Tidepool, or not ours.
    #[error("manifest schema version {found}, this build knows {known}")]
    SchemaVersion {
        /// In the document.
        found: u32,
        /// In this build.
        known: u32,
    },
    /// A schema that no table can have.
    #[error("schema of {table}: {}", problems.join("; "))]
    Schema {
        /// Whose.
        table: TableVersion,
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// The list of files or tables does not fit the rest.
    #[error("manifest of {table}: {problem}")]
    Files {
        /// Whose.
        table: TableVersion,
        /// What is wrong.
        problem: String,
    },
    /// A release without a hash for each table.
    #[error("the release pins {tables} tables and has {hashes} manifest hashes")]
    Hashes {
        /// Tables pinned.
        tables: usize,
        /// Hashes given.
        hashes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::composite::Combine;

    fn schema() -> TableSchema {
        serde_json::from_str(
            r#"{"table_version": {"table": "t", "version": "v"}, "dim": 4, "format": "int4",
                "keying": "dense", "partitions": 2, "rows": 9}"#,
        )
        .unwrap()
    }

    fn problems(schema: &TableSchema) -> Vec<String> {
        match schema.validate() {
            Ok(()) => Vec::new(),
            Err(ManifestError::Schema { problems, .. }) => problems,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_schema_without_hashes_is_read_and_written_as_ever() {
        let schema = schema();
        assert_eq!((schema.composite.as_ref(), schema.vector_dim()), (None, 4));
        assert_eq!(schema.validate(), Ok(()));
        assert!(!serde_json::to_string(&schema).unwrap().contains("composite"));
    }

    #[test]
    fn a_composite_schema_comes_back_and_knows_its_vectors() {
        for (combine, dim) in [(Combine::Concat, 32), (Combine::Sum, 4)] {
            let composite = Composite::from_build_seed(u64::MAX, 8, combine);
            let default_row = vec![0.5; dim as usize];
            let schema = TableSchema { composite: Some(composite), default_row, ..schema() };
            assert_eq!((schema.validate(), schema.vector_dim()), (Ok(()), dim));
            let json = serde_json::to_string(&schema).unwrap();
            assert_eq!(serde_json::from_str::<TableSchema>(&json).unwrap(), schema);
        }
    }

    #[test]
    fn every_problem_of_a_schema_is_listed() {
        let composite = |seeds, combine| Some(Composite { seeds, combine });
        let bad = TableSchema {
            dim: 5,
            keying: Keying::Hashed,
            default_row: vec![0.0, f32::NAN],
            composite: composite(vec![7, 8, 7, 7], Combine::Concat),
            ..schema()
        };
        assert_eq!(
            problems(&bad),
            [
                "dimension 5: it must be even, from 2 to 1024",
                "composite: the keying must be dense, it is hashed",
                "composite: the seed 7 stands twice",
                "default row: it has 2 elements, vectors have 20",
                "default row: element 1 is not finite",
            ]
        );
        let said = bad.validate().unwrap_err().to_string();
        assert!(said.starts_with("schema of t@v: dimension 5") && said.ends_with("not finite"), "{said}");
        for (hashes, combine) in [(0, Combine::Sum), (65, Combine::Concat)] {
            let bad = TableSchema { composite: composite((0..hashes).collect(), combine), ..schema() };
            assert_eq!(problems(&bad), [format!("composite: {hashes} hashes; there must be 1 to 64")]);
        }
        let row_of_a_row = TableSchema {
            default_row: vec![0.0; 4],
            composite: composite(vec![1, 2], Combine::Concat),
            ..schema()
        };
        assert_eq!(problems(&row_of_a_row), ["default row: it has 4 elements, vectors have 8"]);
    }
}
