//! Names that people choose: tables, versions, models, releases, nodes, groups. They become folder names.

use std::{borrow::Borrow, fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A name: 1 to 100 bytes of UTF-8; letters and digits of any script, `-`, `_` and `.`, and not starting
/// with a dot or a dash. So it is one path component, one word in a shell, and it cannot climb out of a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a string is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing to call it by.
    #[error("a name must not be empty")]
    Empty,
    /// More than [`Name::MAX_BYTES`] bytes.
    #[error("the name {0:?} is longer than {max} bytes", max = Name::MAX_BYTES)]
    TooLong(String),
    /// A character that a folder name or a shell word should not have.
    #[error(
        "the name {name:?} has {character:?}: letters, digits, '-', '_' and '.' are allowed, the first not '.' or '-'"
    )]
    Character {
        /// The whole string.
        name: String,
        /// The first offender.
        character: char,
    },
}

impl Name {
    /// The longest name, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 100;

    /// Checks `name` against the rule above.
    ///
    /// # Errors
    /// [`NameError`] says which part of the rule it breaks.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Self::MAX_BYTES {
            return Err(NameError::TooLong(name));
        }
        let allowed = |(at, c): (usize, char)| match c {
            '.' | '-' => at > 0,
            '_' => true,
            _ => c.is_alphanumeric(),
        };
        match name.char_indices().find(|&it| !allowed(it)) {
            Some((_, character)) => Err(NameError::Character { name, character }),
            None => Ok(Self(name)),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_people_write() {
        for name in ["user", "2026-11-21", "v1.2_rc3", "nœud-1", "表", "_"] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_what_could_leave_a_folder_or_a_shell_word() {
        assert_eq!(Name::new(""), Err(NameError::Empty));
        assert!(matches!(Name::new("x".repeat(101)), Err(NameError::TooLong(_))));
        for name in [".", "..", ".hidden", "-flag", "a/b", "a\\b", "a b", "a\0", "a\n", "user@v1", "a:b"] {
            assert!(matches!(Name::new(name), Err(NameError::Character { .. })), "{name:?}");
        }
    }
}
