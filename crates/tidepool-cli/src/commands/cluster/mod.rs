//! `tidepool cluster`: what the cluster is, what is wrong with it, what happened to it, and what operators do with
//! nodes.

mod drain;
mod events;
mod nodes;
mod status;
mod tables;
mod view;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    output::{Outcome, Output},
    remote::Remote,
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// What is wrong now and what to do about it; then who leads, groups, tables, releases and rankers.
    Status(status::Args),
    /// Every node: what it should hold, what it holds, and what it could not load.
    Nodes,
    /// Every table version that is served: where it lies, how much of it is ready, and who needs it.
    Tables,
    /// What happened, by whom and why, the oldest first.
    Events(events::Args),
    /// Have traffic leave a node or a replica group: the other groups serve what it holds, and it keeps that.
    Drain(drain::Args),
}

pub(crate) async fn run(command: Command, remote: &Remote, output: Output) -> Result<Outcome> {
    match command {
        Command::Status(args) => status::run(args, remote, output).await,
        Command::Nodes => nodes::run(remote, output).await,
        Command::Tables => tables::run(remote, output).await,
        Command::Events(args) => events::run(args, remote, output).await,
        Command::Drain(args) => drain::run(args, remote, output).await,
    }
}
