//! `tidepool trace`: what a ranker looks up, written to a file and looked at.

mod inspect;
mod record;

use anyhow::Result;
use clap::Subcommand;

use crate::output::{Outcome, Output};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write down what a ranker looks up, for a while; Ctrl-C ends it with what there is.
    Record(record::Args),
    /// Show what a trace holds: rates, batches, bags, and how often ids come again.
    Inspect(inspect::Args),
}

pub(crate) async fn run(command: Command, controller: &str, output: Output) -> Result<Outcome> {
    match command {
        Command::Record(args) => record::run(args, controller, output).await,
        Command::Inspect(args) => {
            tokio::task::spawn_blocking(move || inspect::run(&args, output).map(|()| Outcome::Done)).await?
        }
    }
}
