//! `tidepool trace record`: the file appears under its name when it is whole and on the disk.

use std::{
    fs::File,
    io::{BufWriter, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    header,
};
use serde_json::json;
use tempfile::NamedTempFile;
use tidepool_client::trace::{TraceDecoder, TraceEnd, TraceEntry, TraceStart, TraceWriter};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};

use crate::{
    commands::ranker_http,
    output::{Outcome, Output, bar},
    remote::Remote,
};

/// How long the ranker may say nothing beyond the time it was asked to record for.
const SILENCE: Duration = Duration::from_secs(30);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The ranker's HTTP address; without it the controller is asked for one.
    #[arg(long, value_name = "HOST:PORT")]
    ranker: Option<String>,
    /// For how long, up to an hour.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Every how many-th lookup.
    #[arg(long, default_value = "1")]
    every: NonZeroU64,
}

/// Why a recording ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Ranker,
    Interrupted,
    Connection,
}

pub(crate) async fn run(args: Args, remote: &Remote, output: Output) -> Result<Outcome> {
    let address = ranker_http::address(args.ranker, remote).await?;
    // Before anything is asked for: what cannot be written need not be recorded.
    let folder = args.out.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let writing = || format!("writing {}", args.out.display());
    let file = NamedTempFile::new_in(folder).with_context(writing)?;
    let time = Duration::from_secs(args.seconds);
    let uri = format!("/v1/trace?seconds={}&every={}", args.seconds, args.every);
    let request = Request::get(uri).header(header::HOST, &address).body(Full::new(Bytes::new()))?;
    let response = timeout(SILENCE, ranker_http::send(remote, &address, request)).await;
    let response = response.with_context(|| format!("no answer from {address}"))??;
    let mut recording = Recording::new(response.into_body());
    let start = recording.start().await.with_context(|| format!("recording at {address}"))?;
    // Heeded from here on: whoever reads the next line may interrupt.
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    output.line(format!("recording {} for {} s, every {}. lookup", start.source, args.seconds, start.every));
    let mut writer = TraceWriter::new(BufWriter::new(file), &start).with_context(writing)?;
    let copied = copy(&mut recording, &mut writer, time, &mut interrupt).await;
    let (ended, end) = copied.with_context(|| format!("recording at {address}"))?;
    let end = end.unwrap_or_else(|| recording.so_far(&start));
    let file = writer.finish(&end).with_context(writing)?.into_inner().map_err(|e| e.into_error())?;
    let bytes = put(file, &args.out, folder).with_context(writing)?;
    let (word, outcome) = match ended {
        Ended::Ranker => ("ranker", Outcome::Done),
        Ended::Interrupted => ("interrupted", Outcome::Done),
        Ended::Connection => ("connection", Outcome::PromiseBroken),
    };
    let Recording { requests, ids, .. } = recording;
    output.line(format!(
        "{requests} of {} lookups with {ids} ids in {:.1} s, {bytes} bytes; {} were dropped",
        end.lookups,
        end.lasted.as_secs_f64(),
        end.dropped
    ));
    if ended == Ended::Connection {
        output.line("the ranker ended the connection before the time was over");
    }
    output.object(json!({
        "file": args.out.display().to_string(), "ranker": start.source, "every": start.every,
        "seconds": end.lasted.as_secs_f64(), "lookups": end.lookups, "requests": requests, "ids": ids,
        "bytes": bytes, "dropped": end.dropped, "ended_by": word,
    }));
    Ok(outcome)
}

/// A trace as it comes from a ranker.
struct Recording {
    body: Incoming,
    decoder: TraceDecoder,
    began: Instant,
    requests: u64,
    ids: u64,
    /// One more than the highest number.
    numbers: u64,
}

impl Recording {
    fn new(body: Incoming) -> Self {
        let (decoder, began) = (TraceDecoder::new(), Instant::now());
        Self { body, decoder, began, requests: 0, ids: 0, numbers: 0 }
    }

    async fn start(&mut self) -> Result<TraceStart> {
        match timeout(SILENCE, self.next()).await.context("nothing comes")?? {
            Some(TraceEntry::Start(start)) => Ok(start),
            _ => bail!("what comes has no start"),
        }
    }

    /// The next record; None: the connection has ended.
    async fn next(&mut self) -> Result<Option<TraceEntry>> {
        loop {
            if let Some(entry) = self.decoder.next_entry()? {
                return Ok(Some(entry));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.decoder.push(&bytes);
                    }
                }
                // A ranker that is killed, or one that ends its answer early.
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }

    /// The end of a trace that did not come to its own.
    fn so_far(&self, start: &TraceStart) -> TraceEnd {
        TraceEnd {
            lasted: self.began.elapsed(),
            lookups: self.numbers.saturating_mul(start.every),
            dropped: self.numbers.saturating_sub(self.requests),
        }
    }
}

/// Copies lookups until the trace ends, by itself or not.
async fn copy(
    recording: &mut Recording,
    writer: &mut TraceWriter<BufWriter<NamedTempFile>>,
    time: Duration,
    interrupt: &mut Signal,
) -> Result<(Ended, Option<TraceEnd>)> {
    let mut too_late = std::pin::pin!(tokio::time::sleep(time + SILENCE));
    let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
    let bar = bar("recording, seconds", Some(time.as_secs()));
    loop {
        let entry = tokio::select! {
            entry = recording.next() => entry?,
            _ = interrupt.recv() => return Ok((Ended::Interrupted, None)),
            () = &mut too_late => return Err(anyhow!("the ranker does not come to an end")),
            _ = progress.tick() => {
                bar.set_position(recording.began.elapsed().as_secs().min(time.as_secs()));
                bar.set_message(format!("{} lookups, {} ids", recording.requests, recording.ids));
                continue;
            }
        };
        match entry {
            Some(TraceEntry::Lookup(lookup)) => {
                recording.requests += 1;
                recording.ids += lookup.features.iter().map(|f| f.ids.len() as u64).sum::<u64>();
                recording.numbers = recording.numbers.max(lookup.number.saturating_add(1));
                writer.lookup(&lookup)?;
            }
            Some(TraceEntry::End(end)) => return Ok((Ended::Ranker, Some(end))),
            Some(TraceEntry::Start(_)) => {}
            None => return Ok((Ended::Connection, None)),
        }
    }
}

/// Brings the file to the disk, then under its name; gives its length.
fn put(mut file: NamedTempFile, out: &Path, folder: &Path) -> Result<u64> {
    file.flush()?;
    file.as_file().sync_all()?;
    let bytes = file.as_file().metadata()?.len();
    file.persist(out).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Ok(bytes)
}
