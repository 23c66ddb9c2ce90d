//! The section `[audit_sample]` of a ranker's configuration; `config/ranker.toml` explains every key.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidepool_runtime::config::Problems;

use crate::samples::MAX_LINE_BYTES;

/// The file, when none is named.
const FILE: &str = "audit-sample.jsonl";

/// The document, key by key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawAuditSample {
    /// Share of the requests that are written down; 0: none.
    pub percent: f64,
    /// Where; empty: in the data directory.
    pub path: String,
    /// Bytes of the file until it is put aside.
    pub max_bytes: u64,
    /// How many such files are kept.
    pub keep: u32,
    /// Bytes of a request that is written down, at most.
    pub max_record_bytes: u32,
}

impl Default for RawAuditSample {
    fn default() -> Self {
        Self { percent: 0.0, path: String::new(), max_bytes: 256 << 20, keep: 3, max_record_bytes: 4 << 20 }
    }
}

/// What is sampled, and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditSampleOptions {
    /// Share of the requests, above 0 and at most 100.
    pub percent: f64,
    /// The file that is written now.
    pub path: PathBuf,
    /// A file that would grow beyond this is put aside.
    pub max_bytes: u64,
    /// How many files are kept beside the one that is written.
    pub keep: u32,
    /// A larger request is left out.
    pub max_record_bytes: usize,
}

impl AuditSampleOptions {
    /// What the section says; `None`: nothing is sampled. Problems are noted.
    pub(crate) fn check(problems: &mut Problems, raw: RawAuditSample, data_dir: &Path) -> Option<Self> {
        problems.check((0.0..=100.0).contains(&raw.percent), "audit_sample.percent: from 0 to 100");
        problems.check(raw.max_bytes > 0, "audit_sample.max_bytes: at least 1");
        problems.check(
            (1..=MAX_LINE_BYTES).contains(&(raw.max_record_bytes as usize)),
            "audit_sample.max_record_bytes: from 1 to 67108864 (64 MiB), the longest line that is read again",
        );
        (raw.percent > 0.0).then(|| Self {
            percent: raw.percent,
            path: if raw.path.is_empty() { data_dir.join(FILE) } else { raw.path.into() },
            max_bytes: raw.max_bytes,
            keep: raw.keep,
            max_record_bytes: raw.max_record_bytes as usize,
        })
    }
}
