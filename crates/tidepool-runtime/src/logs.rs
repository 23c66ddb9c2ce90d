//! Logs: one line per event to standard error, for people or as JSON.

use std::{
    env,
    io::{self, IsTerminal},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{MakeWriter, Subscriber as Lines},
    util::SubscriberInitExt,
};

/// The variable that overrides the filter of the configuration, for a closer look at one process.
pub const FILTER_VARIABLE: &str = "TIDEPOOL_LOG";

/// The `[log]` section of a role's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogOptions {
    /// For whom.
    pub format: LogFormat,
    /// What is written: a level (`info`), or levels by module (`info,tidepool_node=debug`).
    pub filter: String,
}

/// For whom log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// People.
    #[default]
    Human,
    /// Programs: one JSON object a line.
    Json,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { format: LogFormat::Human, filter: "info".into() }
    }
}

/// Why there are no logs.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("{origin}: {text:?} is not a log filter, as \"info\" or \"info,tidepool_node=debug\" are")]
    Filter {
        /// `TIDEPOOL_LOG` or `log.filter`.
        origin: &'static str,
        /// What stands there.
        text: String,
        /// Why not.
        source: ParseError,
    },
    /// Something in this process writes the logs already.
    #[error("the logs of this process are set up already")]
    Taken {
        /// As tracing says it.
        source: tracing_subscriber::util::TryInitError,
    },
}

/// Sends the events of this process to standard error from now on. Once per process.
///
/// # Errors
/// [`LogError`].
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    let variable = env::var(FILTER_VARIABLE).ok();
    subscriber(options, variable.as_deref(), io::stderr().is_terminal(), io::stderr)?
        .try_init()
        .map_err(|source| LogError::Taken { source })
}

/// Checks a filter as [`init`] would: for `config check`.
///
/// # Errors
/// [`LogError::Filter`].
pub fn check(options: &LogOptions) -> Result<(), LogError> {
    filter("log.filter", &options.filter).map(drop)
}

fn filter(origin: &'static str, text: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(text).map_err(|source| LogError::Filter {
        origin,
        text: text.to_owned(),
        source,
    })
}

fn subscriber<W>(
    options: &LogOptions,
    variable: Option<&str>,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // An empty variable is one that nobody set.
    let filter = match variable.filter(|text| !text.is_empty()) {
        Some(text) => filter(FILTER_VARIABLE, text)?,
        None => filter("log.filter", &options.filter)?,
    };
    let lines = Lines::builder().with_env_filter(filter).with_writer(writer);
    Ok(match options.format {
        LogFormat::Human => Box::new(lines.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(lines.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Where the lines of one test go.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(options: &LogOptions, variable: Option<&str>) -> Vec<String> {
        let written = Lines::default();
        let writer = written.clone();
        let subscriber = subscriber(options, variable, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(rows = 7, table = "user", "loaded");
            tracing::debug!("details");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn people_get_one_line_per_event() {
        let lines = lines(&LogOptions::default(), None);
        assert_eq!(lines.len(), 1, "debug is not shown: {lines:?}");
        assert!(lines[0].contains("INFO") && lines[0].contains("loaded rows=7 table=\"user\""), "{lines:?}");
    }

    #[test]
    fn programs_get_json() {
        let options = LogOptions { format: LogFormat::Json, ..LogOptions::default() };
        let lines = lines(&options, None);
        let event: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            (&event["message"], &event["rows"], &event["level"]),
            (&"loaded".into(), &7.into(), &"INFO".into())
        );
    }

    #[test]
    fn the_variable_overrides_the_filter_unless_it_is_empty() {
        assert_eq!(lines(&LogOptions::default(), Some("debug")).len(), 2);
        assert_eq!(lines(&LogOptions::default(), Some("off")).len(), 0);
        assert_eq!(lines(&LogOptions::default(), Some("")).len(), 1);
        let quiet = LogOptions { filter: "warn".into(), ..LogOptions::default() };
        assert_eq!(lines(&quiet, None).len(), 0);
    }

    #[test]
    fn a_bad_filter_is_named_by_where_it_stands() {
        let bad = LogOptions { filter: "info,a=loudest".into(), ..LogOptions::default() };
        let error = check(&bad).unwrap_err();
        assert!(error.to_string().starts_with("log.filter: \"info,a=loudest\""), "{error}");
        let error = subscriber(&LogOptions::default(), Some("=="), false, io::sink).err().unwrap();
        assert!(error.to_string().starts_with("TIDEPOOL_LOG: "), "{error}");
        assert!(check(&LogOptions::default()).is_ok());
    }

    #[test]
    fn the_section_reads_and_writes_as_toml() {
        let options: LogOptions = toml::from_str("format = \"json\"\n").unwrap();
        assert_eq!(options, LogOptions { format: LogFormat::Json, filter: "info".into() });
        assert_eq!(toml::to_string(&options).unwrap(), "format = \"json\"\nfilter = \"info\"\n");
        assert!(toml::from_str::<LogOptions>("level = 1").is_err());
    }
}
