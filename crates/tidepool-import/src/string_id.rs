//! Ids of strings: a stated hash, the same wherever a table is built or looked up.

use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

/// How a string becomes an id.
///
/// Two strings of n may become the same id, with a probability of about `n^2 / 2^65` (1 in 3,700 for 100 million
/// strings): the build then says so, as of any id that stands twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringIds {
    /// XXH3, 64 bits, seed 0, of the bytes of the string (UTF-8). `"user:42"` is 11511735035886662826.
    Xxh3,
}

impl StringIds {
    /// The id of a string, given as its bytes.
    #[must_use]
    pub fn id(self, text: &[u8]) -> u64 {
        match self {
            Self::Xxh3 => xxh3_64(text),
        }
    }
}

impl FromStr for StringIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "xxh3" => Ok(Self::Xxh3),
            _ => Err(format!("{text:?}: xxh3 is wanted")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first is XXH3_64bits of nothing, seed 0, as xxHash's own test values give it; the others are what
    /// `xxhash.xxh3_64_intdigest` of Python's xxhash 4.1 says.
    #[test]
    fn ids_are_those_of_the_published_algorithm() {
        for (text, id) in [
            ("", 0x2d06_8005_38d3_94c2),
            ("user:42", 11_511_735_035_886_662_826),
            ("идентификатор", 527_191_812_638_044_447),
        ] {
            assert_eq!(StringIds::Xxh3.id(text.as_bytes()), id, "{text}");
        }
        assert!("xxh64".parse::<StringIds>().is_err());
    }
}
