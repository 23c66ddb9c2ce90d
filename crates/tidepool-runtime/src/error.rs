//! Errors in one line, and why a role ended before it was told to.

use std::{error::Error, net::SocketAddr};

use thiserror::Error;

/// An error and its causes in one line: what travels to a caller, a report or a log.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why a role ended before it was told to.
#[derive(Debug, Error)]
#[error("the {what} server at {address} ended: {problem}")]
pub struct ServeError {
    /// "gRPC" or "HTTP".
    pub what: &'static str,
    /// Where it listened.
    pub address: SocketAddr,
    /// What it said.
    pub problem: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_in_one_line() {
        #[derive(Debug, Error)]
        #[error("could not read the map")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("the disk is gone"));
        assert_eq!(chain(&error), "could not read the map: the disk is gone");
        assert_eq!(chain(&std::io::Error::other("alone")), "alone");
    }
}
