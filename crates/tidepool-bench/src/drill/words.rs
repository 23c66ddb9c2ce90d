//! The words by which drills are asked for.

use std::str::FromStr;

use thiserror::Error;

/// Drills of one kind, each with a word of its own.
pub trait Named: Copy + 'static {
    /// Every drill, in the order in which `all` runs them.
    const ALL: &'static [Self];

    /// The word for it.
    fn as_str(self) -> &'static str;
}

/// What was asked for: one drill, by its word, or `all`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<D>(pub Vec<D>);

/// A word that is no drill.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?} is no drill: {}, or all", known.join(", "))]
pub struct ParseDrillError {
    word: String,
    known: Vec<&'static str>,
}

impl<D: Named> FromStr for Asked<D> {
    type Err = ParseDrillError;

    fn from_str(word: &str) -> Result<Self, ParseDrillError> {
        if word == "all" {
            return Ok(Self(D::ALL.to_vec()));
        }
        match D::ALL.iter().find(|drill| drill.as_str() == word) {
            Some(drill) => Ok(Self(vec![*drill])),
            None => {
                let known = D::ALL.iter().map(|drill| drill.as_str()).collect();
                Err(ParseDrillError { word: word.to_owned(), known })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::drill::{Drill, releases::ReleaseDrill};

    fn every_drill_is_found_by_its_word<D: Named + Debug + PartialEq>() {
        for drill in D::ALL {
            assert_eq!(drill.as_str().parse(), Ok(Asked(vec![*drill])));
        }
        assert_eq!("all".parse(), Ok(Asked(D::ALL.to_vec())));
        let unknown = "fire".parse::<Asked<D>>().unwrap_err().to_string();
        assert!(D::ALL.iter().all(|drill| unknown.contains(drill.as_str())), "{unknown}");
    }

    #[test]
    fn drills_of_lookups_are_found_by_their_words() {
        every_drill_is_found_by_its_word::<Drill>();
    }

    #[test]
    fn drills_of_releases_are_found_by_their_words() {
        every_drill_is_found_by_its_word::<ReleaseDrill>();
    }
}
