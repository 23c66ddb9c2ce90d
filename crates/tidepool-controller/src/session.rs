//! Sessions: a process reports over a stream, and receives what concerns it of every new map.

use std::{sync::Arc, time::Duration};

use tidepool_cluster::{Assignment, ClusterMap, Event, Quotas, SessionId};
use tidepool_proto::{WireError, v1};
use tidepool_runtime::{auth::Standing, error::chain};
use tidepool_types::{Name, NodeId};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    actor::Handle,
    convert::{node_report, ranker_report},
    error::RequestError,
};

/// How long a process may take to read what was sent before it is told why its session has ended.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// What differs between the sessions of nodes and of rankers.
pub(crate) trait Role: Send + 'static {
    /// For logs.
    const WORD: &'static str;
    type Report: Send + 'static;
    type Answer: Send + 'static;
    /// Who reports, and the event that it is.
    fn event(session: SessionId, report: Self::Report) -> Result<(Name, Event), WireError>;
    fn gone(name: Name, session: SessionId) -> Event;
    /// Whether quotas concern it.
    const QUOTAS: bool;
    /// What the process is sent of a map, and of the quotas, in a term.
    fn answer(map: &ClusterMap, quotas: &Quotas, term: u64, name: &Name) -> Self::Answer;
}

pub(crate) struct NodeRole;
pub(crate) struct RankerRole;

impl Role for NodeRole {
    const WORD: &'static str = "node";
    type Report = v1::NodeReport;
    type Answer = v1::Assignment;

    fn event(session: SessionId, report: v1::NodeReport) -> Result<(Name, Event), WireError> {
        let report = node_report(report)?;
        Ok((report.node.0.clone(), Event::NodeReported { session, report }))
    }

    fn gone(name: Name, session: SessionId) -> Event {
        Event::NodeGone { node: NodeId(name), session }
    }

    const QUOTAS: bool = true;

    fn answer(map: &ClusterMap, quotas: &Quotas, term: u64, name: &Name) -> v1::Assignment {
        (&Assignment { quotas: quotas.clone(), term, ..map.assignment(&NodeId(name.clone())) }).into()
    }
}

impl Role for RankerRole {
    const WORD: &'static str = "ranker";
    type Report = v1::RankerReport;
    type Answer = v1::ClusterMap;

    fn event(session: SessionId, report: v1::RankerReport) -> Result<(Name, Event), WireError> {
        let report = ranker_report(report)?;
        Ok((report.ranker.clone(), Event::RankerReported { session, report }))
    }

    fn gone(name: Name, session: SessionId) -> Event {
        Event::RankerGone { ranker: name, session }
    }

    const QUOTAS: bool = false;

    fn answer(map: &ClusterMap, _: &Quotas, _: u64, _: &Name) -> v1::ClusterMap {
        map.into()
    }
}

/// Runs one session until either side ends it.
pub(crate) async fn run<R: Role>(
    handle: Handle,
    mut standing: Standing,
    mut reports: Streaming<R::Report>,
    answers: mpsc::Sender<Result<R::Answer, Status>>,
    shutdown: CancellationToken,
) {
    let session = handle.new_session();
    let mut news = (handle.maps(), handle.quotas());
    let mut name = None;
    let ended = tokio::select! {
        // Its end is ours: the process has not gone, and finds us again when we are back.
        () = shutdown.cancelled() => {
            let _ = answers.try_send(Err(RequestError::ShuttingDown.into()));
            return;
        }
        () = handle.ended() => Err(RequestError::deposed()),
        refusal = standing.lost() => Err(RequestError::Lost(refusal.message)),
        ended = exchange::<R>(&handle, session, &mut reports, &answers, &mut news, &mut name) => ended,
    };
    let Some(name) = name else {
        if let Err(error) = ended {
            tracing::warn!(role = R::WORD, error = chain(&error), "session refused");
            farewell(&answers, error).await;
        }
        return;
    };
    match &ended {
        Ok(()) => tracing::info!(role = R::WORD, %name, "session ended"),
        Err(error) => tracing::warn!(role = R::WORD, %name, error = chain(error), "session ended"),
    }
    // The one that leads next is told by who comes to it, and by who does not.
    if !shutdown.is_cancelled() && !handle.is_ended() {
        // An error here is logged where it occurs, and the event is kept there.
        let _ = handle.report(R::gone(name, session)).await;
    }
    if let Err(error) = ended {
        farewell(&answers, error).await;
    }
}

/// Says why a session has ended, behind what was sent before; not to a process that does not read.
async fn farewell<A>(answers: &mpsc::Sender<Result<A, Status>>, error: RequestError) {
    let _ = tokio::time::timeout(FAREWELL_TIMEOUT, answers.send(Err(error.into()))).await;
}

/// Takes reports and sends answers until one of them ends. `name` is set once the process is registered.
async fn exchange<R: Role>(
    handle: &Handle,
    session: SessionId,
    reports: &mut Streaming<R::Report>,
    answers: &mpsc::Sender<Result<R::Answer, Status>>,
    (maps, quotas): &mut (watch::Receiver<Arc<ClusterMap>>, watch::Receiver<Arc<Quotas>>),
    name: &mut Option<Name>,
) -> Result<(), RequestError> {
    // A peer that does not read is sent the newest map when it does, not all of them.
    let mut to_send = false;
    loop {
        tokio::select! {
            report = reports.message() => {
                let report = match report {
                    Ok(Some(report)) => report,
                    Ok(None) => return Ok(()),
                    Err(status) => {
                        tracing::debug!(role = R::WORD, %status, "session broke");
                        return Ok(());
                    }
                };
                let (reporter, event) = R::event(session, report)?;
                if name.is_none() {
                    warn_if_newer(handle, &reporter, &event);
                }
                if let Some(first) = name && *first != reporter {
                    let (first, now) = (first.to_string(), reporter.to_string());
                    return Err(RequestError::OtherName { first, now });
                }
                handle.report(event).await?;
                if name.is_none() {
                    tracing::debug!(role = R::WORD, name = %reporter, "session");
                    *name = Some(reporter);
                    to_send = true;
                }
            }
            changed = maps.changed() => {
                changed.map_err(|_| RequestError::ShuttingDown)?;
                to_send = name.is_some();
            }
            changed = quotas.changed(), if R::QUOTAS => {
                changed.map_err(|_| RequestError::ShuttingDown)?;
                to_send = name.is_some();
            }
            permit = answers.reserve(), if to_send => {
                let Ok(permit) = permit else { return Ok(()) };
                let Some(name) = name else { continue };
                let map = maps.borrow_and_update().clone();
                let quotas = quotas.borrow_and_update().clone();
                permit.send(Ok(R::answer(&map, &quotas, handle.state().durable.term, name)));
                to_send = false;
            }
            () = answers.closed() => return Ok(()),
        }
    }
}

/// Says so when somebody holds a map that this controller does not know of: its state is older than the cluster.
fn warn_if_newer(handle: &Handle, name: &Name, event: &Event) {
    let held = match event {
        Event::NodeReported { report, .. } => report.epoch,
        Event::RankerReported { report, .. } => report.epoch,
        _ => return,
    };
    let epoch = handle.maps().borrow().epoch;
    if held > epoch {
        tracing::error!(
            %name, held_epoch = %held, %epoch,
            "it holds a newer cluster map than this controller: the metastore was lost or put back. Nobody follows \
             it until it is newer: run `tidepool metastore rebuild`, or `tidepool metastore restore` with \
             --incarnation {}", held.incarnation().saturating_add(1)
        );
    }
}
