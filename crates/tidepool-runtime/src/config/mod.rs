//! Configuration: default, file, environment, override; the later wins.
//!
//! A role has two types. Its *raw* configuration is what people write: a struct (of structs) with
//! `#[serde(deny_unknown_fields, default)]` on each, whose `Default` holds the defaults. Its *validated*
//! configuration is made from it by `TryFrom<Raw, Error = InvalidConfig>`, which collects every problem
//! in [`Problems`]. [`load`] gives the first, [`load_valid`] the second.
//!
//! **Environment.** With the prefix `TIDEPOOL_NODE`, the variable `TIDEPOOL_NODE__POOL__QUEUE_LEN` sets the
//! key `pool.queue_len`: prefix and levels are joined by two underscores, the key is in upper case. (Two
//! after the prefix as well, because Kubernetes sets `TIDEPOOL_NODE_PORT` and its like by itself where a
//! service is called tidepool-node.) A variable that begins with the prefix and `__` but names no
//! key is refused.
//!
//! **Values** of variables and overrides are read as TOML values (`8`, `true`, `["a", "b"]`); where that
//! does not fit the key, or is no TOML, the text itself is the value, so strings need no quotes.

mod problems;
mod sample;

use std::{
    env,
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use thiserror::Error;
use toml::{Table, Value};

pub use problems::{InvalidConfig, Problems};
pub use sample::sample_matches_defaults;

/// Why there is no configuration. The sources name the key and what was expected of it.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("could not read the configuration file {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong type.
    #[error("the configuration file {path} is not accepted", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, key and why.
        source: Box<toml::de::Error>,
    },
    /// The raw type does not accept nothing at all: a key of it lacks a default, a defect.
    #[error("the configuration has keys without a default")]
    Defaults {
        /// Which key.
        source: Box<toml::de::Error>,
    },
    /// A variable or an override names an unknown key, or has a value of the wrong type.
    #[error("{origin} is not accepted for the key {key:?}")]
    Setting {
        /// Where it comes from.
        origin: Origin,
        /// The key, levels joined by dots.
        key: String,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A variable or an override whose key has an empty level.
    #[error("{origin} names no key: {key:?}")]
    Key {
        /// Where it comes from.
        origin: Origin,
        /// What stands where the key should.
        key: String,
    },
    /// A variable of ours that is not UTF-8.
    #[error("{0} is not UTF-8")]
    Encoding(Origin),
    /// Each value has its type, but they do not make a configuration.
    #[error("{} is not valid", file.as_deref().map_or("the configuration".into(), |f| format!("the configuration (file {})", f.display())))]
    Invalid {
        /// The file it came from, as far as it did.
        file: Option<PathBuf>,
        /// All problems.
        source: InvalidConfig,
    },
}

/// Where a setting that is not in the file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An environment variable, by name.
    Environment(String),
    /// An override on the command line, by key.
    Override(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Override(key) => write!(f, "the command-line override of {key}"),
        }
    }
}

/// The raw configuration: defaults, then `file`, then this process's environment under `env_prefix`
/// (without trailing underscores), then `overrides` (key with dots, value).
///
/// # Errors
/// [`ConfigError`] names the file, variable or override, and its source the key.
pub fn load<Raw: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    overrides: &[(String, String)],
) -> Result<Raw, ConfigError> {
    load_from(file, env_prefix, env::vars_os(), overrides)
}

/// [`load`], then validated.
///
/// # Errors
/// As [`load`], and [`ConfigError::Invalid`] with all problems at once.
pub fn load_valid<Raw, Config>(
    file: Option<&Path>,
    env_prefix: &str,
    overrides: &[(String, String)],
) -> Result<Config, ConfigError>
where
    Raw: DeserializeOwned,
    Config: TryFrom<Raw, Error = InvalidConfig>,
{
    let raw = load::<Raw>(file, env_prefix, overrides)?;
    Config::try_from(raw).map_err(|source| ConfigError::Invalid { file: file.map(Path::to_owned), source })
}

/// [`load`] with the environment handed in.
///
/// # Errors
/// As [`load`].
pub fn load_from<Raw: DeserializeOwned>(
    file: Option<&Path>,
    env_prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    overrides: &[(String, String)],
) -> Result<Raw, ConfigError> {
    let mut layers = match file {
        Some(path) => Layers::<Raw>::from_file(path)?,
        None => Layers::empty()?,
    };
    let prefix = format!("{env_prefix}__");
    let mut variables = Vec::new();
    for (name, value) in environment {
        // A name that is not UTF-8 cannot begin with our prefix and go on with a key of ours.
        let Some((name, path)) = name
            .to_str()
            .and_then(|name| Some((name.to_owned(), name.strip_prefix(&prefix)?.to_lowercase())))
        else {
            continue;
        };
        let origin = Origin::Environment(name);
        let Ok(value) = value.into_string() else { return Err(ConfigError::Encoding(origin)) };
        variables.push((path.split("__").map(str::to_owned).collect::<Vec<_>>(), origin, value));
    }
    // The environment has no order; errors should.
    variables.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, origin, value) in variables {
        layers.set(&path, origin, &value)?;
    }
    for (key, value) in overrides {
        let path: Vec<_> = key.split('.').map(str::to_owned).collect();
        layers.set(&path, Origin::Override(key.clone()), value)?;
    }
    Ok(layers.raw)
}

/// What the layers so far say (`table`), and what that comes to (`raw`). Each setting is tried at once,
/// so an error belongs to exactly one of them.
struct Layers<Raw> {
    table: Table,
    raw: Raw,
}

impl<Raw: DeserializeOwned> Layers<Raw> {
    fn empty() -> Result<Self, ConfigError> {
        let error = |source| ConfigError::Defaults { source: Box::new(source) };
        Ok(Self { table: Table::new(), raw: Raw::deserialize(Table::new()).map_err(error)? })
    }

    fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let error = |source| ConfigError::File { path: path.to_owned(), source: Box::new(source) };
        // From the text and not from the table, because that error shows the line.
        let raw = toml::from_str(&text).map_err(error)?;
        Ok(Self { table: text.parse().map_err(error)?, raw })
    }

    fn set(&mut self, path: &[String], origin: Origin, text: &str) -> Result<(), ConfigError> {
        let key = path.join(".");
        if path.iter().any(String::is_empty) {
            return Err(ConfigError::Key { origin, key });
        }
        let value = text.parse::<Value>().unwrap_or_else(|_| Value::String(text.to_owned()));
        let as_text = Value::String(text.to_owned());
        let tried = match self.with(path, value.clone()) {
            // `release = "2026"` needs no quotes in a variable: what does not fit as a number may as text.
            Err(e) if value != as_text => self.with(path, as_text).map_err(|_| e),
            tried => tried,
        };
        *self = tried.map_err(|source| ConfigError::Setting { origin, key, source: Box::new(source) })?;
        Ok(())
    }

    fn with(&self, path: &[String], value: Value) -> Result<Self, toml::de::Error> {
        let mut table = self.table.clone();
        insert(&mut table, path, value);
        Ok(Self { raw: Raw::deserialize(table.clone())?, table })
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let entry = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                // A path through a value: the section that it asks for is refused by the raw type.
                *entry = Value::Table(Table::new());
            }
            if let Value::Table(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
