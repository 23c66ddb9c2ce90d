//! The node's session with a controller: it reports, and receives what it should hold. Sessions end, and
//! another is begun; lookups go on meanwhile.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tidepool_cluster::Assignment;
use tidepool_proto::{
    WireError, leader_of,
    v1::{self, control_client::ControlClient},
};
use tidepool_runtime::{error::chain, tls::Dial};
use tidepool_table::charged_bytes;
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{self, Endpoint},
};

use crate::state::NodeState;

/// Reports that may wait to be sent. A controller that does not read gets the newest with the next beat.
const QUEUED_REPORTS: usize = 4;

/// The largest assignment: 65,536 partitions of a hundred tables fit many times.
const MAX_ASSIGNMENT_BYTES: usize = 64 << 20;

/// Who the node is, to whom it reports, and how patiently.
pub(crate) struct Session {
    pub(crate) controllers: Vec<String>,
    pub(crate) dial: Dial,
    /// A report without partitions: names, addresses and capacity.
    pub(crate) introduction: v1::NodeReport,
    pub(crate) report_interval: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) reconnect_min: Duration,
    pub(crate) reconnect_max: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) state: watch::Receiver<NodeState>,
    pub(crate) assignments: watch::Sender<Option<Arc<Assignment>>>,
    pub(crate) shutdown: CancellationToken,
}

/// Why a session ended.
#[derive(Debug, Error)]
enum SessionError {
    #[error("the address cannot be used")]
    Address(#[source] transport::Error),
    #[error("could not connect")]
    Connect(#[source] transport::Error),
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("the controller refused: {message}", message = .0.message())]
    Refused(Box<Status>),
    #[error("the session broke: {message}", message = .0.message())]
    Broken(Box<Status>),
    #[error("the controller sent an assignment that contradicts itself")]
    Assignment(#[from] WireError),
    #[error("the controller ended the session")]
    Ended,
}

impl Session {
    /// Keeps a session until the node stops.
    pub(crate) async fn run(self) {
        if self.controllers.is_empty() {
            self.shutdown.cancelled().await;
        }
        let mut wait = self.reconnect_min;
        let mut controllers = self.controllers.iter().cloned().cycle();
        // Whom a follower has named.
        let mut leader = None;
        while let Some(controller) = leader.take().or_else(|| controllers.next()) {
            let mut welcomed = false;
            let ended = tokio::select! {
                () = self.shutdown.cancelled() => return,
                ended = self.session(&controller, &mut welcomed) => ended,
            };
            if welcomed {
                wait = self.reconnect_min;
            }
            if let Err(SessionError::Refused(status)) = &ended
                && let Some(named) = leader_of(status)
                && *named != controller
            {
                tracing::debug!(%controller, leader = named, "the controller does not lead");
                leader = Some(named.to_owned());
                wait = self.reconnect_min;
            } else if let Err(error) = ended {
                tracing::warn!(%controller, error = chain(&error), retry_in = ?wait, "no session with the controller");
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = time::sleep(wait) => {}
            }
            wait = (wait * 2).min(self.reconnect_max);
        }
    }

    /// One session, until it ends. `welcomed` becomes true with the first assignment.
    async fn session(&self, controller: &str, welcomed: &mut bool) -> Result<(), SessionError> {
        let endpoint = Endpoint::from_shared(format!("http://{controller}"))
            .map_err(SessionError::Address)?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true);
        let channel = self.dial.connect(endpoint).await.map_err(SessionError::Connect)?;
        let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_ASSIGNMENT_BYTES);

        let mut state = self.state.clone();
        let (reports, outgoing) = mpsc::channel(QUEUED_REPORTS);
        // The channel is empty: the first report always fits, and it registers the node.
        let _ = reports.try_send(self.report(&state.borrow_and_update()));
        let answer = time::timeout(self.connect_timeout, client.node_session(ReceiverStream::new(outgoing)));
        let mut incoming = answer
            .await
            .map_err(|_| SessionError::NoAnswer(self.connect_timeout))?
            .map_err(|status| SessionError::Refused(Box::new(status)))?
            .into_inner();
        tracing::info!(%controller, "session with the controller");

        let mut beat = time::interval(self.report_interval);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        beat.reset();
        loop {
            tokio::select! {
                message = incoming.message() => {
                    let message = message.map_err(|status| SessionError::Broken(Box::new(status)))?;
                    self.take(controller, message.ok_or(SessionError::Ended)?.try_into()?);
                    *welcomed = true;
                    continue;
                }
                // The loader ends only with the node.
                _ = state.changed() => {}
                _ = beat.tick() => {}
            }
            let report = self.report(&state.borrow_and_update());
            match reports.try_send(report) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(SessionError::Ended),
            }
        }
    }

    /// Hands an assignment to the loader, unless it is the one that is being worked on, or older: that a controller
    /// has lost its state, or does not know that it was deposed, is no reason to let partitions go.
    fn take(&self, controller: &str, assignment: Assignment) {
        self.assignments.send_if_modified(|current| {
            if let Some(held) = current.as_deref().filter(|held| assignment.is_older_than(held)) {
                tracing::warn!(
                    %controller, epoch = %assignment.epoch, term = assignment.term, held_epoch = %held.epoch,
                    held_term = held.term,
                    "the controller's assignment is older than the one that is served, and is passed over: if its \
                     metastore was lost, run `tidepool metastore rebuild`, or restore a backup"
                );
                return false;
            }
            let new = current.as_deref() != Some(&assignment);
            if new {
                *current = Some(Arc::new(assignment));
            }
            new
        });
    }

    fn report(&self, state: &NodeState) -> v1::NodeReport {
        v1::NodeReport {
            epoch: state.epoch.0,
            partitions: state.partitions.iter().map(|held| (&held.status).into()).collect(),
            memory: Some(v1::HostMemory {
                charged_bytes: charged_bytes().unwrap_or(0),
                ..(&state.memory).into()
            }),
            ..self.introduction.clone()
        }
    }
}
