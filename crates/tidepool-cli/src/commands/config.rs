//! `tidepool config check`: all problems of a configuration file at once, without starting anything.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::json;
use tidepool_runtime::config::{ConfigError, load_valid};

use crate::output::{Outcome, Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Check a file, with the environment as it is.
    Check {
        /// The configuration.
        file: PathBuf,
        /// For which role; without it the file's name tells: node.toml, or node-7.toml, is a node's.
        #[arg(long)]
        role: Option<Role>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Controller,
    Node,
    Ranker,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Node => "node",
            Self::Ranker => "ranker",
        }
    }

    fn of_file(file: &Path) -> Option<Self> {
        let stem = file.file_stem()?.to_str()?;
        Self::value_variants().iter().copied().find(|role| stem.starts_with(role.as_str()))
    }

    /// Loads and validates, as the role itself would.
    fn check(self, file: &Path) -> Result<(), ConfigError> {
        let file = Some(file);
        match self {
            Self::Controller => load_valid::<tidepool_controller::RawConfig, tidepool_controller::Config>(
                file,
                self.prefix(),
                &[],
            )
            .map(drop),
            Self::Node => {
                load_valid::<tidepool_node::RawConfig, tidepool_node::Config>(file, self.prefix(), &[])
                    .map(drop)
            }
            Self::Ranker => {
                load_valid::<tidepool_ranker::RawConfig, tidepool_ranker::Config>(file, self.prefix(), &[])
                    .map(drop)
            }
        }
    }

    /// What the role's environment variables begin with, before two underscores and the key.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Controller => "TIDEPOOL_CONTROLLER",
            Self::Node => "TIDEPOOL_NODE",
            Self::Ranker => "TIDEPOOL_RANKER",
        }
    }
}

pub(crate) fn run(command: Command, output: Output) -> Result<Outcome> {
    let Command::Check { file, role } = command;
    let role = role.or_else(|| Role::of_file(&file)).with_context(|| {
        format!("{}: which role is it for? say --role controller|node|ranker", file.display())
    })?;
    role.check(&file)?;
    output.line(format!("{} is a valid configuration of a {}", file.display(), role.as_str()));
    output.object(json!({ "file": file, "role": role.as_str(), "valid": true }));
    Ok(Outcome::Done)
}
