//! Where a store is: a directory, or a bucket and what its keys begin with. As people write it.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::error::StoreError;

/// The scheme of places in an object store.
const S3_SCHEME: &str = "s3";

/// A place for an artifact store.
///
/// ```
/// # use tidepool_store::StoreLocation;
/// let location: StoreLocation = "s3://bucket/some/prefix".parse().unwrap();
/// assert_eq!(location.to_string(), "s3://bucket/some/prefix");
/// assert!("s3://".parse::<StoreLocation>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// A directory of this machine, or of a file system that several share.
    Directory(PathBuf),
    /// A bucket of an S3 API.
    S3 {
        /// The bucket.
        bucket: String,
        /// What keys begin with, without slashes around it; may be empty.
        prefix: String,
    },
}

impl FromStr for StoreLocation {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let wrong = |problem| Err(StoreError::Location { text: text.to_owned(), problem });
        if text.is_empty() {
            return wrong("it is empty");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Directory(text.into()));
        };
        if scheme != S3_SCHEME {
            return wrong("the only object stores are those of the S3 API");
        }
        // Credentials are never part of it: what is shown of a location is the whole of it.
        if rest.contains(['@', '?', '#', '%', '\\']) || rest.chars().any(char::is_control) {
            return wrong("neither credentials nor a query belong there");
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let in_bucket = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.is_empty() || !bucket.chars().all(in_bucket) {
            return wrong("it names no bucket");
        }
        let prefix = prefix.trim_end_matches('/');
        let is_part = |part: &str| !["", ".", ".."].contains(&part);
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return wrong("a part of the prefix is empty or made of dots");
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "{S3_SCHEME}://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "{S3_SCHEME}://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_understood() {
        let s3 =
            |bucket: &str, prefix: &str| StoreLocation::S3 { bucket: bucket.into(), prefix: prefix.into() };
        let cases = [
            ("data/store", StoreLocation::Directory("data/store".into())),
            ("/s3:/x", StoreLocation::Directory("/s3:/x".into())),
            ("s3://b", s3("b", "")),
            ("s3://b/", s3("b", "")),
            ("s3://my.bucket-1/ads/表/", s3("my.bucket-1", "ads/表")),
        ];
        for (text, expected) in cases {
            let location: StoreLocation = text.parse().unwrap();
            assert_eq!(location, expected, "{text}");
            assert_eq!(location.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn what_is_no_place_is_refused_and_credentials_are_not_taken() {
        let bad = [
            "",
            "s3://",
            "s3:///p",
            "gs://b/p",
            "s3://key:secret@b/p",
            "s3://b/p?x=1",
            "s3://b//p",
            "s3://b/../p",
        ];
        for text in bad {
            let error = text.parse::<StoreLocation>().unwrap_err();
            assert!(matches!(error, StoreError::Location { .. }), "{text}: {error}");
        }
    }
}
