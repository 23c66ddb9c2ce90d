//! Texts that open doors, kept out of logs, errors and `/status`.

use std::{fmt, fs, io, os::unix::fs::MetadataExt, path::Path};

use thiserror::Error;

/// A text that must not be shown: a bearer token. Nothing writes it out but [`expose`](Self::expose).
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

/// The mode of a file with a secret that others than its owner may read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) mode: u32,
}

/// Why a file with a secret was not read.
#[derive(Debug, Error)]
pub enum SecretError {
    /// Others may read it.
    #[error("{path} can be read by others (its mode is {mode:04o}): `chmod 600 {path}`")]
    Shared {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// It could not be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl Secret {
    /// Reads a secret from a file that its owner alone may read, without the white space around it.
    ///
    /// # Errors
    /// [`SecretError`] names the file.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let shown = || path.display().to_string();
        kept(path).map_err(|Shared { mode }| SecretError::Shared { path: shown(), mode })?;
        let text = fs::read_to_string(path);
        let text = text.map_err(|source| SecretError::Read { path: shown(), source })?;
        Ok(Self::new(text.trim()))
    }
}

/// Refuses a file that others may read or write. One that cannot be looked at is for the reading to tell of.
pub(crate) fn kept(path: &Path) -> Result<(), Shared> {
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    // Files that are no files (a pipe, as the shell's <(...) makes one) have nobody else at their other end.
    let mode = found.mode() & 0o777;
    let me = fs::metadata("/proc/self").ok().map(|me| me.uid());
    match found.is_file() && is_shared(mode, found.uid(), me) {
        true => Err(Shared { mode }),
        false => Ok(()),
    }
}

/// Whether others than the owner of a file may read or write it. What belongs to root may be read by the group of a
/// process that is not root: it could not read it otherwise, and Kubernetes mounts secrets like that.
fn is_shared(mode: u32, owner: u32, me: Option<u32>) -> bool {
    let of_root = owner == 0 && me.is_some_and(|me| me != 0);
    mode & if of_root { 0o037 } else { 0o077 } != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_may_read_is_refused_and_told_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, " sesame\n").unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for shared in [0o644, 0o604, 0o622, 0o601] {
            mode(shared);
            let error = Secret::read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("its mode is {shared:04o}")), "{error}");
            assert!(error.contains("`chmod 600 ") && error.contains("token"), "{error}");
        }
        for kept in [0o600, 0o400] {
            mode(kept);
            assert_eq!(Secret::read(&path).unwrap().expose(), "sesame");
        }
        let error = Secret::read(&folder.path().join("none")).unwrap_err();
        assert!(matches!(error, SecretError::Read { .. }), "{error:?}");
    }

    #[test]
    fn the_group_may_read_what_belongs_to_root_where_nobody_is_root() {
        assert!(
            is_shared(0o640, 1000, Some(1000)) && is_shared(0o640, 0, Some(0)) && is_shared(0o640, 0, None)
        );
        assert!(!is_shared(0o640, 0, Some(1000)) && !is_shared(0o440, 0, Some(1000)));
        assert!(is_shared(0o644, 0, Some(1000)) && is_shared(0o660, 0, Some(1000)));
    }

    #[test]
    fn a_secret_is_not_shown() {
        #[derive(Debug)]
        struct Holder {
            token: Option<Secret>,
        }
        let holder = Holder { token: Some(Secret::new("sesame")) };
        for shown in [format!("{holder:?}"), format!("{holder:#?}")] {
            assert!(!shown.contains("sesame") && shown.contains("not shown"), "{shown}");
        }
        assert_eq!(holder.token.unwrap().expose(), "sesame");
    }
}
