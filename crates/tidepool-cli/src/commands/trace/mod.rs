//! `tidepool trace`: what a ranker looks up, written to a file, looked at, and asked again.

mod inspect;
mod record;
mod replay;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write down what a ranker looks up, for a while; Ctrl-C ends it with what there is.
    Record(record::Args),
    /// Show what a trace holds: rates, batches, bags, and how often ids come again.
    Inspect(inspect::Args),
    /// Ask a cluster what a trace holds, at the times at which it was asked for.
    Replay(replay::Args),
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Replay(args) => Box::pin(replay::run(args, remote, output)).await,
        Command::Record(args) => record::run(args, remote, output).await,
        Command::Inspect(args) => {
            tokio::task::spawn_blocking(move || inspect::run(&args, output).map(|()| Outcome::Done)).await?
        }
    }
}
