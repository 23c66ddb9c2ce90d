//! `GET /v1/trace?seconds=30&every=1`: what this ranker looks up, as a trace (docs/trace-format.md) that is
//! written while it lasts. One at a time; it ends by itself, and when the ranker drains.

use std::{
    num::NonZeroU64,
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tidepool_client::{
    Client,
    trace::{Tap, TapOptions, TraceError, TraceStart, TraceWriter},
};
use tidepool_runtime::{
    auth::{Caller, Standing},
    shutdown::Shutdown,
};
use tidepool_types::ErrorCode;
use tokio::{sync::mpsc, time};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use crate::http::answer_error;

/// The longest recording: an hour.
const MAX_SECONDS: u64 = 3600;
/// How long after its time a reader may take for what is left.
const READER_GRACE: Duration = Duration::from_secs(10);
/// Records that may lie between the tap, which is where they are dropped, and the socket.
const SENT_AHEAD: usize = 16;

#[derive(Clone)]
struct Recorder {
    ranker: String,
    client: Client,
    shutdown: Shutdown,
}

/// The route, for the lookups of `client`.
pub(crate) fn routes(ranker: String, client: Client, shutdown: Shutdown) -> Router {
    Router::new().route("/v1/trace", get(record)).with_state(Recorder { ranker, client, shutdown })
}

async fn record(
    State(recorder): State<Recorder>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Response {
    let options = match options(uri.query().unwrap_or_default()) {
        Ok(options) => options,
        Err(problem) => return answer_error(StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest, &problem),
    };
    let tap = match recorder.client.tap(options) {
        Ok(tap) => tap,
        Err(busy) => return answer_error(StatusCode::CONFLICT, ErrorCode::Conflict, &busy.to_string()),
    };
    let start =
        TraceStart { began: SystemTime::now(), every: options.every.get(), source: recorder.ranker.clone() };
    info!(seconds = options.time.as_secs(), every = options.every, "lookups are being recorded");
    let (pieces, body) = mpsc::channel(SENT_AHEAD);
    let (draining, mut standing) = (recorder.shutdown.draining(), Standing::new(caller));
    // Not one of the tasks that draining waits for: it ends by itself once that has begun.
    tokio::spawn(async move {
        let ends = time::timeout(options.time + READER_GRACE, write(tap, &start, &pieces, draining));
        let ends = tokio::select! {
            ends = ends => ends,
            // The recording breaks off, and whoever reads it sees that it has no end.
            lost = standing.lost() => return warn!(why = lost.message, "a recording of lookups was cut off"),
        };
        match ends {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the recording of lookups failed"),
            Err(_) => warn!("whoever records lookups does not read them: the recording is cut off"),
        }
    });
    let pieces = ReceiverStream::new(body);
    let pieces = tokio_stream::StreamExt::map(pieces, Ok::<_, std::convert::Infallible>);
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(pieces)).into_response()
}

/// Writes the trace in pieces until the tap ends, the process drains or nobody reads any more.
async fn write(
    mut tap: Tap,
    start: &TraceStart,
    pieces: &mpsc::Sender<Bytes>,
    draining: impl Future<Output = ()>,
) -> Result<(), TraceError> {
    let mut writer = TraceWriter::new(Vec::new(), start)?;
    let mut draining = std::pin::pin!(draining);
    let mut drains = false;
    loop {
        // Nobody reads any more: that is who records ending it.
        let Ok(piece) = pieces.reserve().await else { return Ok(()) };
        piece.send(std::mem::take(writer.get_mut()).into());
        let lookup = tokio::select! {
            lookup = tap.next() => lookup,
            () = &mut draining, if !drains => {
                drains = true;
                tap.stop();
                tap.next().await
            }
            () = pieces.closed() => return Ok(()),
        };
        let Some(lookup) = lookup else { break };
        match writer.lookup(&lookup) {
            Err(error @ TraceError::TooLarge { .. }) => {
                warn!(%error, "a lookup is left out of the recording")
            }
            other => other?,
        }
    }
    let end = tap.end();
    info!(lookups = end.lookups, dropped = end.dropped, "lookups have been recorded");
    // As above: without a reader there is nobody to tell.
    let _ = pieces.send(writer.finish(&end)?.into()).await;
    Ok(())
}

/// `seconds` and `every`, in any order; without them 30 and 1.
fn options(query: &str) -> Result<TapOptions, String> {
    let mut options = TapOptions::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let number = value.parse::<NonZeroU64>();
        match (key, number) {
            ("seconds", Ok(seconds)) if seconds.get() <= MAX_SECONDS => {
                options.time = Duration::from_secs(seconds.get());
            }
            ("every", Ok(every)) => options.every = every,
            ("seconds", _) => {
                return Err(format!("seconds={value}: a whole number from 1 to {MAX_SECONDS} is expected"));
            }
            ("every", _) => return Err(format!("every={value}: a whole number from 1 on is expected")),
            _ => return Err(format!("{key:?} is not known: seconds and every are")),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_asked_for_in_whole_seconds() {
        let seconds =
            |query: &str| options(query).map(|options| (options.time.as_secs(), options.every.get()));
        assert_eq!(seconds(""), Ok((30, 1)));
        assert_eq!(seconds("every=10&seconds=3600"), Ok((3600, 10)));
        for (query, word) in [
            ("seconds=3601", "3600"),
            ("seconds=0", "from 1"),
            ("seconds", "from 1"),
            ("every=0", "every"),
            ("every=-1", "every"),
            ("often=1", "often"),
        ] {
            assert!(seconds(query).unwrap_err().contains(word), "{query}");
        }
    }
}
