//! `tidepool cluster events`: what happened, and what happens.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tidepool_proto::{
    code_of,
    v1::{self, releases_client::ReleasesClient},
};
use tidepool_types::ErrorCode;
use tonic::Code;

use super::super::control::refusal;
use crate::{
    columns::{Columns, harmless, utc},
    leader,
    output::{Outcome, Output},
    remote::{Caller, Remote},
};

/// Between two questions of `--follow`.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Go on as things happen, until Ctrl-C. With --json every event then is an object on a line of its own.
    #[arg(long)]
    follow: bool,
    /// Only events with a larger number than this.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    since: u64,
    /// The last so many of them.
    #[arg(long, value_name = "EVENTS", default_value_t = 100)]
    limit: usize,
}

pub(super) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let mut releases = ReleasesClient::new(leader::channel(remote).await?);
    let events = ask(&mut releases, args.since).await.map_err(|status| refusal(&status))?;
    let first = events.first().map(|event| event.number);
    let last = events.last().map_or(args.since, |event| event.number);
    let shown = &events[events.len().saturating_sub(args.limit)..];
    if let Some(first) = first.filter(|first| *first > args.since + 1) {
        output.line(format!("events {} to {} are forgotten", args.since + 1, first - 1));
    }
    if !shown.is_empty() && shown.len() < events.len() {
        let (left_out, all) = (events.len() - shown.len(), events.len());
        output.line(format!("{left_out} of {all} events are older: --limit {all} shows them"));
    }
    if events.is_empty() && !args.follow {
        output.line("nothing has happened");
    }
    show(shown, true, output);
    if !args.follow {
        output.object(json!({
            "events": shown.iter().map(object).collect::<Vec<_>>(),
            "last": last,
            "left_out": events.len() - shown.len(),
        }));
        return Ok(Outcome::Done);
    }
    shown.iter().for_each(|event| output.object(object(event)));
    tokio::select! {
        followed = follow(releases, last, remote, output) => followed?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(Outcome::Done)
}

/// Shows what happens after event `last`, for ever. A controller that ends is followed by the one that leads next.
async fn follow(
    mut releases: ReleasesClient<Caller>,
    mut last: u64,
    remote: &Remote,
    output: Output,
) -> Result<()> {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        match ask(&mut releases, last).await {
            Ok(events) => {
                show(&events, false, output);
                events.iter().for_each(|event| output.object(object(event)));
                last = events.last().map_or(last, |event| event.number);
            }
            // It has gone, or does not lead any more.
            Err(status)
                if code_of(&status) == ErrorCode::NotLeader
                    || [Code::Unavailable, Code::Cancelled, Code::Unknown].contains(&status.code()) =>
            {
                let why = harmless(status.message());
                output.line(format!("looking for the controller that leads, after: {why}"));
                // While none leads, it is looked for again.
                if let Ok(channel) = leader::channel(remote).await {
                    releases = ReleasesClient::new(channel);
                }
            }
            Err(status) => return Err(refusal(&status)),
        }
    }
}

async fn ask(
    releases: &mut ReleasesClient<Caller>,
    after: u64,
) -> Result<Vec<v1::ClusterEvent>, tonic::Status> {
    let answer = releases.get_events(v1::GetEventsRequest { after }).await?;
    Ok(answer.into_inner().events)
}

fn show(events: &[v1::ClusterEvent], heads: bool, output: Output) {
    let mut columns = Columns::new(&[">number", "when (UTC)", "what", "to", "by", "why"]);
    for event in events {
        let to = match event.release.as_str() {
            "" => event.subject.clone(),
            release => format!("{}@{release}", event.subject),
        };
        columns.row([
            event.number.to_string(),
            utc(event.unix_seconds),
            event.kind.replace('_', " "),
            harmless(&to),
            harmless(&event.by),
            harmless(&event.why),
        ]);
    }
    let skipped = usize::from(!heads);
    columns.lines().iter().skip(skipped).for_each(|line| output.line(line));
}

fn object(event: &v1::ClusterEvent) -> Value {
    let release = (!event.release.is_empty()).then_some(&event.release);
    json!({
        "number": event.number, "unix_seconds": event.unix_seconds, "by": event.by, "kind": event.kind,
        "subject": event.subject, "release": release, "why": event.why,
    })
}
