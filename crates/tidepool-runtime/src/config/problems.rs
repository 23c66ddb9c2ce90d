//! A collector, so that whoever writes a configuration sees all that is wrong with it at once.

use std::{fmt::Display, net::SocketAddr, str::FromStr};

use thiserror::Error;

/// The problems found so far while a raw configuration is validated.
///
/// ```
/// # use std::net::SocketAddr;
/// # use tidepool_runtime::config::{InvalidConfig, Problems};
/// struct Raw { listen: String, threads: usize }
/// struct Config { listen: SocketAddr, threads: usize }
/// impl TryFrom<Raw> for Config {
///     type Error = InvalidConfig;
///     fn try_from(raw: Raw) -> Result<Self, InvalidConfig> {
///         let mut problems = Problems::default();
///         let listen = problems.parse("listen", &raw.listen);
///         problems.check(raw.threads > 0, "threads: at least 1");
///         problems.finish(|| Some(Self { listen: listen?, threads: raw.threads }))
///     }
/// }
/// let error = Config::try_from(Raw { listen: "here".into(), threads: 0 }).err().unwrap();
/// assert_eq!(error.problems.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<String>);

/// A configuration whose values contradict each other or their bounds.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}", problems.join("; "))]
pub struct InvalidConfig {
    /// Each begins with the key it is about.
    pub problems: Vec<String>,
}

impl Problems {
    /// Notes `problem` unless `good`; gives `good` back. Begin the text with the key.
    pub fn check(&mut self, good: bool, problem: impl Into<String>) -> bool {
        if !good {
            self.add(problem);
        }
        good
    }

    /// Notes a problem. Begin the text with the key.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// The value of `result`, or its error noted as a problem of `key`.
    pub fn take<T, E: Display>(&mut self, key: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.add(format!("{key}: {e}"))).ok()
    }

    /// `text` as a `T`, or a problem of `key`.
    pub fn parse<T: FromStr<Err: Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse::<T>().map_err(|e| self.add(format!("{key} = {text:?}: {e}"))).ok()
    }

    /// Notes `text` as a problem of `key` unless it is `host:port`, with a port that can be connected to.
    pub fn host_port(&mut self, key: &str, text: &str) -> bool {
        let good = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
        let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]".contains(c));
        self.check(good && plain, format!("{key}: {text:?} is not host:port"))
    }

    /// The address that others are told, `text` under `key`; empty, and `None`, for the one that is listened
    /// at, `listen` under `listen_key`, unless that is one which nobody can connect to.
    pub fn advertised(
        &mut self,
        (key, text): (&str, String),
        (listen_key, listen): (&str, Option<SocketAddr>),
    ) -> Option<String> {
        if !text.is_empty() {
            self.host_port(key, &text);
            return Some(text);
        }
        if let Some(listen) = listen
            && listen.ip().is_unspecified()
        {
            self.add(format!("{key}: must be given, for nobody can connect to {listen_key} = {listen}"));
        }
        None
    }

    /// Whether there is none so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing, if nothing was noted.
    ///
    /// # Errors
    /// [`InvalidConfig`] with all that was noted.
    pub fn into_result(self) -> Result<(), InvalidConfig> {
        if self.0.is_empty() { Ok(()) } else { Err(InvalidConfig { problems: self.0 }) }
    }

    /// What `build` makes, if nothing was noted. It gives `None` where a part is missing, which is a defect
    /// unless the part's problem was noted.
    ///
    /// # Errors
    /// [`InvalidConfig`] with all that was noted.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, InvalidConfig> {
        self.into_result()?;
        build().ok_or_else(|| InvalidConfig { problems: vec!["a required value is missing".into()] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_kept_and_named() {
        let mut problems = Problems::default();
        assert!(problems.check(true, "never"));
        assert!(!problems.check(false, "threads: at least 1"));
        assert_eq!(problems.parse::<u16>("port", "7400"), Some(7400));
        assert_eq!(problems.parse::<u16>("port", "x"), None);
        assert_eq!(problems.take("name", Err::<(), _>("too long")), None);
        assert!(!problems.is_empty());
        let error = problems.finish(|| Some(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "threads: at least 1; port = \"x\": invalid digit found in string; name: too long"
        );
    }

    #[test]
    fn an_address_for_others_is_one_that_they_can_connect_to() {
        let mut problems = Problems::default();
        for good in ["node-1.example:7410", "127.0.0.1:1", "[::1]:7410"] {
            assert!(problems.host_port("controllers", good), "{good}");
        }
        for bad in ["node-1", "node-1:0", ":7410", "node-1:70000", "http://node-1:7410", "a b:1"] {
            assert!(!problems.host_port("controllers", bad), "{bad}");
        }
        let mut problems = Problems::default();
        let mut given = |text: &str, listen: &str| {
            problems.advertised(("advertise_address", text.into()), ("grpc_address", listen.parse().ok()))
        };
        assert_eq!(given("", "10.0.0.1:7410"), None);
        assert_eq!(given("n:7410", "0.0.0.0:7410").as_deref(), Some("n:7410"));
        assert_eq!(given("", "0.0.0.0:7410"), None);
        assert_eq!(
            problems.into_result().unwrap_err().to_string(),
            "advertise_address: must be given, for nobody can connect to grpc_address = 0.0.0.0:7410"
        );
    }

    #[test]
    fn no_problem_no_error() {
        assert_eq!(Problems::default().into_result(), Ok(()));
        assert_eq!(Problems::default().finish(|| Some(7)), Ok(7));
        assert!(Problems::default().finish(|| None::<u8>).is_err());
    }
}
