//! Texts that open doors, kept out of logs, errors and `/status`.

use std::fmt;

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

#[cfg(test)]
mod tests {
    use super::*;

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
